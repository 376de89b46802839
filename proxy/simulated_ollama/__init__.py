"""A simulated Ollama v0.32.15 on loopback: the demo and the tests talk to it as they would to the real one.

Its bytes follow recordings of a real server; `tests/simulated_ollama/test_ollama_sim.py` replays them. Start it as
`python -m proxy.simulated_ollama` or, inside a test, as `async with SimulatedOllama() as ollama`.
"""

from proxy.simulated_ollama.models import DEFAULT_MODELS, EMBEDDER, REMOTE_STUB, Model
from proxy.simulated_ollama.server import SimulatedOllama, main

__all__ = ["DEFAULT_MODELS", "EMBEDDER", "REMOTE_STUB", "Model", "SimulatedOllama", "main"]
