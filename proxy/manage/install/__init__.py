"""`install` and `uninstall`: which steps each takes, and what would keep an install from working."""
