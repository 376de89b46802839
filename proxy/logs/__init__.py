"""The access log and the diagnostics, and writing them without waiting."""
