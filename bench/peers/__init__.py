"""The others: their configurations, each doing the work that the proxy does, as far as the program can."""
