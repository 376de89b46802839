"""`connect`: which tools it sets up, and how."""
