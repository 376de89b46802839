"""`install` and `uninstall`: the steps of each, and their order."""
