"""What clients and servers that mean ill can't do."""
