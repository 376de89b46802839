"""Ollama's side: its connections, its responses, and all that goes wrong there."""
