"""What can be seen of this machine and its services. Each fact is looked up once. Nothing here judges it."""
