"""The dashboard's page in a real Chromium, before a real proxy and a simulated Ollama: `make test-browser`."""
