"""Which command runs, and what can be typed."""
