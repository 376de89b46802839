"""What can be wrong on a machine, and what is found of it by each command."""
