"""What the program adds to the event loop."""
