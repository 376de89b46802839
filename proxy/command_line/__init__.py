"""The command line: which commands there are, what each takes, and the exit codes."""
