"""`python -m proxy.simulated_ollama`: a simulated Ollama as a process."""

import sys

from proxy.simulated_ollama.server import main
from proxy.terminal.output import written

if __name__ == "__main__":
    sys.exit(written(main))
