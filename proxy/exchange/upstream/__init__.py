"""A connection to Ollama: its states, and the pool of idle connections."""
