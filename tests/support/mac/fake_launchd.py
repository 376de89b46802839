"""A launchd for tests: fakes on PATH and a home folder of their own, with plists whose programs are real processes.

agents = Agents(tmp_path)
agents.plist(PROXY, SLEEPER)
launchd = Launchd(os.getuid(), agents.machine().run)
...
agents.close()
"""

from __future__ import annotations

import json
import os
import plistlib
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from proxy.manage.machine import launchd
from tests.support.mac.played_fakes import AnsweringMachine
from tests.support.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.manage.machine.machine import Machine

FAKES = Path(__file__).parent.parent.parent / "fakes"

SLEEPER = (sys.executable, "-I", "-S", "-c", "import signal; signal.pause()")
"""A program that ends silently at SIGTERM."""

STUBBORN = (
    *(sys.executable, "-I", "-S", "-c"),
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True);"
    "[signal.pause() for _ in 'ab']",
)
"""A program that SIGTERM doesn't end; it writes a line once that is so."""


class Agents:
    """A home folder with LaunchAgents, and a launchd that knows of them. `close` ends every process it has."""

    def __init__(self, folder: Path, *fakes: str) -> None:
        """Put `launchctl`, `plutil` and more of the `fakes` on a PATH that begins in `folder`."""
        self.home = folder / "home"
        self.state = folder / "launchd"
        self.commands = folder / "bin"
        for each in (self.home / "Library" / "LaunchAgents", self.state / "jobs", self.commands):
            each.mkdir(parents=True)
        for name in ("launchctl", "plutil", *fakes):
            self.command(name, f'exec "{sys.executable}" -S "{FAKES / name}" "$@"')
        (self.state / "owner.json").write_text(str(os.getpid()))
        self.knobs(throttle=0.2)
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(launchd, "POLL", 0.02)  # as often as the fake launchd looks at its jobs
        self.environ = {
            "PATH": f"{self.commands}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self.home),
            "TMPDIR": str(folder),
            "FAKE_LAUNCHD": str(self.state),
        }

    def command(self, name: str, script: str) -> None:
        """Put a command on the PATH."""
        path = self.commands / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def machine(self, platform: str = "darwin") -> Machine:
        """Return this Mac."""
        return AnsweringMachine(self.home, os.getuid(), platform, path=self.environ["PATH"], environ=self.environ)

    def knobs(self, **values: object) -> None:
        """Turn knobs of the fake launchctl; the others stay as they are."""
        path = self.state / "knobs.json"
        before = json.loads(path.read_text()) if path.exists() else {}
        draft = path.with_suffix(".new")  # supervisors read it all the time
        draft.write_text(json.dumps({**before, **values}))
        draft.replace(path)

    def plist(self, label: str, program: tuple[str, ...] = SLEEPER, **keys: Any) -> Path:
        """Write the plist of a job that runs `program` forever."""
        path = self.home / "Library" / "LaunchAgents" / f"{label}.plist"
        plist = {"Label": label, "ProgramArguments": list(program), "KeepAlive": True, "RunAtLoad": True, **keys}
        path.write_bytes(plistlib.dumps(plist))
        path.chmod(0o600)
        return path

    def job(self, label: str) -> dict[str, Any] | None:
        """Return what the fake launchd has of a loaded job."""
        try:
            found: dict[str, Any] = json.loads((self.state / "jobs" / f"{label}.json").read_text())
        except FileNotFoundError:
            return None
        return found

    def verbs(self) -> list[str]:
        """Return what launchctl was asked to change, in order: its uses but for the questions."""
        calls = self.state / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        return [line for line in lines if not line.startswith(("print", "list", "error"))]

    def close(self) -> None:
        """End it all."""
        self.patch.undo()
        self.end_jobs()

    def end_jobs(self) -> None:
        """End every job and its supervisor, however stubborn."""
        self.knobs(pace=1e6)
        for path in (self.state / "jobs").glob("*.json"):
            order = path.with_suffix(".order.new")
            order.write_text('"bootout"')
            order.replace(path.with_suffix(".order"))
        until(lambda: not list((self.state / "jobs").glob("*.json")))


def until(there: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Return what `there` gives as soon as that is true; AssertionError when it isn't in time."""
    end = time.monotonic() + seconds
    while not (found := there()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)
    return found


def alive(pid: int) -> bool:
    """Return whether there is a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def end(pid: int) -> None:
    """End a process as SIGKILL does."""
    os.kill(pid, signal.SIGKILL)
