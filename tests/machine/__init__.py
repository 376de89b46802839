"""The owner's Mac: services, install, upgrade and uninstall."""
