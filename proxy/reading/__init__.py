"""What a request's body asks for, read so that Ollama cannot read it differently. Pure."""
