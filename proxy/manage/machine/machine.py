"""The machine that the owner's commands work on: what system it is, where things are kept, how a command is run.

One value holds all of it, so that a test can supply another machine. Nothing here decides.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from proxy import NAME
from proxy.event_loop.sockets import bound
from proxy.manage.machine.processes import Process, process, processes
from proxy.settings.live_socket import live_folder
from proxy.settings.settings import default_paths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

SYSTEM = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""Where macOS keeps its own commands; a user's PATH may lack some of these folders."""

COMMAND_TIMEOUT = 30.0
"""Seconds that a command may take unless its caller knows better; some of macOS's never return without a screen."""


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command went. Code 127: it can't be run, 124: it was ended because it took too long, below 0: a signal."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """The last line that it had to say, errors first: tools put the reason there."""
        lines = (self.err.strip() or self.out.strip()).splitlines()
        return lines[-1].strip() if lines else f"exit code {self.code}"


def bind_briefly(address: str, port: int) -> OSError | None:
    """Bind an address as the listener does, and let it go at once; return why that failed, or None."""
    try:
        bound(address, port).close()
    except OSError as error:
        return error
    return None


def agents_folder(home: Path) -> Path:
    """Return the folder that launchd loads a user's agents from at login."""
    return home / "Library" / "LaunchAgents"


@dataclass(frozen=True, slots=True)
class Machine:
    """A home folder on a system. `root` is where the system's own folders begin."""

    home: Path
    uid: int
    platform: str = sys.platform
    root: Path = Path("/")
    path: str = ""  # folders with commands, as in the variable PATH
    environ: Mapping[str, str] = field(default_factory=dict)  # what commands get
    bind: Callable[[str, int], OSError | None] = bind_briefly
    process: Callable[[int], Process | None] = process
    processes: Callable[[], Iterable[Process]] = processes

    @classmethod
    def here(cls) -> Machine:
        """Return the machine that this runs on, for the user who runs it."""
        home = Path(os.environ.get("HOME") or Path.home())
        return cls(home, os.getuid(), path=os.environ.get("PATH", os.defpath), environ=dict(os.environ))

    @property
    def is_mac(self) -> bool:
        """Whether there is a launchd to install under."""
        return self.platform == "darwin"

    @property
    def system(self) -> str:
        """What one calls the system."""
        return {"darwin": "macOS", "linux": "Linux"}.get(self.platform, self.platform)

    @property
    def config(self) -> Path:
        """The file that the installed proxy reads its settings from."""
        return Path(default_paths({"HOME": str(self.home)}, "darwin")["config"])

    @property
    def support(self) -> Path:
        """The folder that holds all that is installed; unlike Documents, a LaunchAgent may read it."""
        return self.config.parent

    @property
    def logs(self) -> Path:
        """The folder of the proxy's logs."""
        return Path(default_paths({"HOME": str(self.home)}, "darwin")["access_log"]).parent

    @property
    def agents(self) -> Path:
        """The folder that launchd loads a user's agents from at login."""
        return agents_folder(self.home)

    @property
    def versions(self) -> Path:
        """The folder with one virtual environment for each installed version."""
        return self.support / "versions"

    @property
    def pythons(self) -> Path:
        """The folder in which uv keeps a Python of ours."""
        return self.support / "python"

    @property
    def backup(self) -> Path:
        """The folder with the plists of others that an install replaced."""
        return self.support / "backup"

    @property
    def receipt(self) -> Path:
        """The file in which an install notes what it made."""
        return self.support / "receipt.json"

    @property
    def sockets(self) -> Path:
        """The folder in which an installed proxy has the Unix socket for its owner."""
        return Path(live_folder({"HOME": str(self.home), "TMPDIR": self.environ.get("TMPDIR", "")}, "darwin"))

    @property
    def link(self) -> Path:
        """The command, where a shell finds it."""
        return self.home / ".local" / "bin" / NAME

    def at(self, path: str) -> Path:
        """Return where the absolute `path` of the system is."""
        return self.root / path.removeprefix("/")

    def find(self, name: str, *folders: str) -> Path | None:
        """Return the command `name`, from PATH, `folders` or where macOS keeps its own; None: there is none."""
        known = (*folders, *(SYSTEM if self.is_mac else ()))
        places = os.pathsep.join([self.path, *(str(self.at(folder)) for folder in known)])
        found = shutil.which(name, path=places)
        return Path(found) if found else None

    def run(self, *command: str | Path, timeout: float = COMMAND_TIMEOUT, **environ: str) -> Ran:
        """Run a command to its end, without a shell and with nothing on standard input; it never raises."""
        words = [str(word) for word in command]
        found = words[0] if "/" in words[0] else self.find(words[0])
        if found is None:
            return Ran(127, "", f"{words[0]}: command not found")
        try:
            done = subprocess.run(  # noqa: S603 - no shell, and the words are ours
                [str(found), *words[1:]],
                env={**self.environ, "PATH": self.path, "HOME": str(self.home), "LC_ALL": "C", **environ},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Ran(124, "", f"{words[0]} did not end within {timeout:g} s")
        except OSError as error:
            return Ran(127, "", f"{words[0]}: {error.strerror}")
        return Ran(done.returncode, done.stdout, done.stderr)

    def shown(self, path: Path) -> str:
        """Return a path as one would write it in a shell, the home folder as `~`."""
        if path.is_relative_to(self.home):
            return f"~/{path.relative_to(self.home)}"
        return str(path)


def spelled(command: Sequence[str | Path]) -> str:
    """Return a command as one would type it."""
    return shlex.join(str(word) for word in command)
