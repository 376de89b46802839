"""The access log and the diagnostics log: their lines, their rotation, and writing them without waiting."""
