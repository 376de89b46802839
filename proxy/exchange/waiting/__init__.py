"""How exchanges wait between the gate and Ollama: the queue, loads, and pings to clients."""
