"""A client's connection: its socket, its requests in order, its deadlines."""
