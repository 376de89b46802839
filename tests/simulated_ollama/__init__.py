"""The simulated Ollama, against recordings of a real one."""
