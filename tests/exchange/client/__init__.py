"""The client's side: its connection, its requests, its deadlines, and how it goes away."""
