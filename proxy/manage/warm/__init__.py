"""`warm`: pulls and loads models before somebody waits for them."""
