"""A Mac that isn't there: its kernel's rules, its launchd, its tools, and one with an install."""
