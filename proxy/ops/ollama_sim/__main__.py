"""`python -m proxy.ops.ollama_sim`: a simulated Ollama as a process."""

import sys

from proxy.ops.ollama_sim.server import main

if __name__ == "__main__":
    sys.exit(main())
