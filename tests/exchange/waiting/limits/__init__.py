"""How many requests of one access rule Ollama has at once."""
