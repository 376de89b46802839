"""The wait between the gate and Ollama: for a turn in the queue, for a load, with pings to the client."""
