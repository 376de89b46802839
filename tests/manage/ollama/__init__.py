"""What the owner's commands ask Ollama."""
