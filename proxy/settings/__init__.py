"""Every option: its value, its source, and what is wrong with it."""
