"""The index of the access log: its tables, and the process that keeps them up to date with the log's files."""
