"""`install` and `uninstall`: which steps each takes, in which order."""
