"""A gateway that lets chosen requests, and no others, through to an Ollama on loopback."""

__version__ = "0.1.0"
