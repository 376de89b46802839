"""`python -m tests.dashboard.browser`: test the page in Chromium; arguments go to pytest. `--pictures` writes pictures.

Exit code 0 with one line that says why where there is no Chromium, or no Playwright to drive it.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.dashboard.browser.chromium import chromium

if __name__ == "__main__":
    missing = "Chromium (Debian: sudo apt install chromium)" if chromium() is None else ""
    if find_spec("playwright") is None:
        missing = "Playwright (make test-browser installs it)"
    if missing:
        print(f"test-browser is skipped: it needs {missing}")
        sys.exit(0)
    os.environ["TEST_BROWSER"] = "1"
    words = sys.argv[1:]
    if "--pictures" in words:
        os.environ["BROWSER_PICTURES"] = "1"
        words.remove("--pictures")
    named = any(".py" in word for word in words)
    sys.exit(pytest.main(["-q", "-n", "0", *([] if named else [str(Path(__file__).parent)]), *words]))
