"""`warm`: which models it loads, its hints and its progress."""
