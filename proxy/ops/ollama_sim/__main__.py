"""`python -m proxy.ops.ollama_sim`: a simulated Ollama as a process."""

import sys

from proxy.ops.ollama_sim.server import main
from proxy.output import written

if __name__ == "__main__":
    sys.exit(written(main))
