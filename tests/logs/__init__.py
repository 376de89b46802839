"""The access log and the diagnostics, as they are written."""
