"""One request, from its head to its record. `gateway.py` shows all of it on one screen."""
