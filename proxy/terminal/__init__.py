"""How commands print and end: findings, tables, exit codes, and what happens when output can't be written."""
