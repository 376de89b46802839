"""How commands print and end: findings, tables, exit codes, and output that survives a failed write."""
