"""The same attacks against other proxies: `make compare-security`."""
