"""Tailscale: its addresses, its LocalAPI, who a peer is, the rules of `tailscale serve`."""
