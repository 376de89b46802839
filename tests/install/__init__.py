"""What install, uninstall and the agent of `warm` make of a Mac, and of what they were given."""
