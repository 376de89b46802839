"""Which requests pass, and what the others are told."""
