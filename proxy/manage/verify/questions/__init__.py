"""The questions that `verify` asks a proxy, from the Mac or from any client of it."""
