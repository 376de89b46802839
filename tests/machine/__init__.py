"""The owner's Mac: findings, services, install, upgrade and uninstall."""
