"""Tailscale as the program asks it, and the fakes that answer."""
