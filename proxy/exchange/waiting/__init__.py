"""What an exchange waits for between the gate and Ollama: a turn in the queue, a load, and pings meanwhile."""
