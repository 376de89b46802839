"""How commands print: findings, tables, and output that survives a failed write."""
