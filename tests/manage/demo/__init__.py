"""`demo`: its tour."""
