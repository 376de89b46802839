"""`python -m tests.tailnet`: build Tailscale if need be, then run these tests; arguments go to pytest.

Exit code 0 with one line that says why where this machine can't run them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.tailnet.build import MissingError, need_machine, need_programs

if __name__ == "__main__":
    try:
        need_machine()
        need_programs()
    except MissingError as missing:
        print(f"test-tailnet is skipped: {missing}")
        sys.exit(0)
    os.environ["TEST_TAILNET"] = "1"
    sys.exit(pytest.main(["-n", "2", "-q", str(Path(__file__).parent), *sys.argv[1:]]))
