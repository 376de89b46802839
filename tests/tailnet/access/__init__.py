"""Access rules in a real tailnet: what each device may use, what a change takes away, and a Tailscale in trouble."""
