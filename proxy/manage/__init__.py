"""What an owner types, apart from what has a folder of its own below."""
