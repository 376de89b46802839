"""A connection to Ollama: its states, and the pool of those that are idle."""
