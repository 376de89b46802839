"""One request through the gateway: its client, its way to Ollama and back, and its end."""
