"""Checks of the machine and its services. A table says which commands run a check, and how serious a failure is."""
