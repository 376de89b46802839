"""The state of a Mac that exists only as answers: what its tools are to say, in the file `mac.json` in $FAKE_STATE.

A test writes it with `change`; each tool reads what concerns it, and answers as the real one would.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

NEW = {
    "macos": "15.6.1",
    "arm64": True,
    "ollama": "0.32.15",  # version of the binary
    "firewall": 0,  # State: 0 off, 1 on, 2 blocks all
    "block_all": False,
    "apps": {},  # path -> "permitted" or "blocked"
    "allow_signed": True,  # the firewall lets signed programs in unasked, as a new Mac does
    "stealth": False,
    "sleep": 0,  # minutes on mains power
    "app": False,  # Ollama.app runs
    # {"pid", "program", "executable", "listen": [[address, port], ...]} next to the jobs of launchd; `executable`
    # is the program's path, if that has spaces
    "processes": [],
    "foreign": [],  # [address, port] where another user's process listens: lsof doesn't show it
    "silent": False,  # Ollama and proxy are started as processes that do nothing, which is quicker
}


def read() -> dict:
    """Return the state."""
    file = Path(os.environ["FAKE_STATE"]) / "mac.json"
    return NEW | (json.loads(file.read_text()) if file.exists() else {})


def change(**values: object) -> None:
    """Change the state."""
    (Path(os.environ["FAKE_STATE"]) / "mac.json").write_text(json.dumps(read() | values))


def job_pids() -> list[int]:
    """Return the processes of the fake launchd's jobs."""
    jobs = Path(os.environ["FAKE_LAUNCHD"]) / "jobs"
    found = [json.loads(path.read_text()).get("pid") for path in jobs.glob("*.json")]
    return [pid for pid in found if pid]
