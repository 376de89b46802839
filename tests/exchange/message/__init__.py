"""Heads and content as values, without a socket."""
