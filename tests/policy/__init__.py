"""Which requests pass, and which response the others get."""
