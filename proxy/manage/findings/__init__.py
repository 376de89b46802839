"""Facts about this machine and its two services, and checks of what is wrong."""
