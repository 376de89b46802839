"""`warm`: pulls and loads models before someone needs them."""
