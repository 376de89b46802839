"""Ollama as the owner's commands use it: its API, and how it reads model names."""
