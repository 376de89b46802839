"""`connect`: prints what to paste into a tool so that it uses this machine's proxy."""
