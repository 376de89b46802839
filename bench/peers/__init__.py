"""The other proxies' configurations. Each does the same work as the proxy, as far as the program can."""
