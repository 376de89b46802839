"""What Linux's kernel gives to tests: its view of sockets, network namespaces, a full disk."""
