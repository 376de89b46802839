"""Ollama's API, as the owner's commands use it."""
