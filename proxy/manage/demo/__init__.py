"""`demo`: the tour on loopback, with a simulated Ollama."""
