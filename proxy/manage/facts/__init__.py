"""Facts about this machine and its services. Each is looked up once. Nothing here judges it."""
