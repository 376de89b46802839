"""The process that serves: its sockets, addresses, signals and limits."""
