"""`top` and `cancel`: watch requests as they run and wait, and end one."""
