"""What tests stand on: fakes of the machine and of both sides of the proxy, and the one time to wait."""
