"""`python -m proxy`: the same as the installed command `remote-ollama-proxy`."""

import sys

from proxy.command_line.cli import main

if __name__ == "__main__":
    sys.exit(main())
