"""Bodies in the room: those that are held whole, and those that are too large for that."""
