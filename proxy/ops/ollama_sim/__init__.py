"""A simulated Ollama v0.32.15 on loopback: the demo and the tests talk to it as they would to the real one.

Its octets follow recordings of a real server; `tests/test_ollama_sim.py` replays them. It is started as
`python -m proxy.ops.ollama_sim` or, inside a test, as `async with SimulatedOllama() as ollama`.
"""

from proxy.ops.ollama_sim.models import DEFAULT_MODELS, EMBEDDER, REMOTE_STUB, Model
from proxy.ops.ollama_sim.server import SimulatedOllama, main

__all__ = ["DEFAULT_MODELS", "EMBEDDER", "REMOTE_STUB", "Model", "SimulatedOllama", "main"]
