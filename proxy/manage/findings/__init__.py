"""What can be found out about this machine and its two services, and what of it is wrong."""
