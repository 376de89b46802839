"""Turns, loads and pings."""
