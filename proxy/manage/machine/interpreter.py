"""Which Python the installed proxy runs on: one whose binary stays where it is.

The macOS firewall knows a program by its binary. When that moves (Homebrew does it with every upgrade), connections to
the proxy are dropped silently, and the binary of its virtual environment is gone too.
"""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.manage.machine.machine import spelled
from proxy.manage.machine.steps import Step, StepError
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.manage.machine.machine import Machine

OLDEST = (3, 11)
KEPT_BY_UV = "3.13"
"""The release that uv is asked for when it is to keep one: wheels of all packages exist for it."""

PYTHON_ORG = "https://www.python.org/downloads/macos/"
UV_TIMEOUT = 600.0  # seconds: 30 MB from the network

FRAMEWORK = "/Library/Frameworks/Python.framework/Versions"
_HOMEBREW = "/opt/homebrew/opt"
_PROBE = "import sys, venv, ensurepip, platform; print(*sys.version_info[:2], sys.platform, platform.machine())"


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python: the command that starts it (None: uv has yet to download it), and who keeps it."""

    path: Path | None
    keeper: str  # "python.org", "uv", "Homebrew" or "other"
    version: str  # "3.13"

    @property
    def stays(self) -> bool:
        """Whether the binary is where it is until its user removes it."""
        return self.keeper in {"python.org", "uv"}

    @property
    def program(self) -> Path:
        """What the firewall knows it by.

        The commands of a framework, which python.org's and Homebrew's are, become the app inside it (public source:
        CPython `Mac/Tools/pythonw.c`). uv's is a plain binary.
        """
        assert self.path is not None, "uv has yet to download it"  # noqa: S101
        app = self.path.parent.parent / "Resources" / "Python.app"
        if self.keeper == "python.org":
            return app
        binary = self.path.resolve()
        app = binary.parent.parent / "Resources" / "Python.app"
        return app if app.exists() else binary

    def __str__(self) -> str:
        """Return it in words."""
        return f"Python {self.version} of {self.keeper}" if self.keeper != "other" else f"Python {self.version}"


def choose(machine: Machine) -> Interpreter | None:
    """Return the Python to install on: python.org's, one that uv keeps for us or can bring, what there is, or None."""
    for path, keeper in _candidates(machine):
        if version := _probed(machine, path):
            return Interpreter(path, keeper, version)
        if keeper == "uv to bring":
            return Interpreter(None, "uv", KEPT_BY_UV)
    return None


def of(machine: Machine, binary: Path) -> Interpreter | None:
    """Return the Python that an environment was made of, by its resolved binary; None when that no longer runs."""
    version = _probed(machine, binary)
    return Interpreter(binary, keeper_of(machine, binary), version) if version else None


def keeper_of(machine: Machine, binary: Path) -> str:
    """Return who keeps a binary, by where it is."""
    homes = {"python.org": machine.at(FRAMEWORK), "uv": machine.pythons, "Homebrew": machine.at("/opt/homebrew")}
    return next((keeper for keeper, home in homes.items() if binary.is_relative_to(home)), "other")


def _candidates(machine: Machine) -> Iterator[tuple[Path, str]]:
    """Yield commands and who keeps them, the best first; of one keeper the newest first."""
    yield from _newest(machine.at(FRAMEWORK), "3.*/bin/python3.*", "python.org")
    yield from _newest(machine.pythons, "cpython-*/bin/python3.*", "uv")
    if uv := uv_of(machine):
        yield uv, "uv to bring"
    yield from _newest(machine.at(_HOMEBREW), "python@3.*/bin/python3.*", "Homebrew")
    running = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    yield running, keeper_of(machine, running)


def _newest(folder: Path, pattern: str, keeper: str) -> Iterator[tuple[Path, str]]:
    found = [path for path in folder.glob(pattern) if re.fullmatch(r"python3\.\d+", path.name)]
    if keeper == "uv":  # it has links from minor releases to the newest patch, which it moves; the binary stays
        found = [path.resolve() for path in found]
    for path in sorted(dict.fromkeys(found), key=_release, reverse=True):
        yield path, keeper


def _release(path: Path) -> tuple[int, ...]:
    """Return the numbers of a Python's release, with its patch where the folder's name has it."""
    folder = path.parent.parent.name  # 3.13, python@3.13, cpython-3.13.10-macos-aarch64-none
    match = re.search(r"3\.\d+(\.\d+)?", folder)
    return tuple(map(int, (match[0] if match else path.name.removeprefix("python")).split(".")))


def _probed(machine: Machine, path: Path) -> str | None:
    """Return the release of a Python that runs, makes environments, is new enough, and needs no Rosetta; else None."""
    if not path.name.startswith("python"):
        return None
    probed = machine.run(path, "-I", "-c", _PROBE)
    match = re.fullmatch(r"(\d+) (\d+) (.+)", probed.out.strip())
    if probed.code or match is None or (int(match[1]), int(match[2])) < OLDEST or match[3] == "darwin x86_64":
        return None
    return f"{match[1]}.{match[2]}"


def uv_of(machine: Machine) -> Path | None:
    """Return the command uv, if it is installed."""
    home = machine.home
    return machine.find("uv", "/opt/homebrew/bin", "/usr/local/bin") or next(
        (path for path in (home / ".local/bin/uv", home / ".cargo/bin/uv") if path.is_file()), None
    )


def judge(interpreter: Interpreter | None) -> Finding:
    """Report whether the Python to install on stays where it is."""
    if interpreter is None:
        detail = f"no Python {'.'.join(map(str, OLDEST))} or newer, with venv and ensurepip, was found"
        return Finding("python", Outcome.FAIL, detail, f"open {PYTHON_ORG}")
    if interpreter.path is None:
        detail = f"uv will download {interpreter} into the proxy's own folder, where it doesn't move"
        return Finding("python", Outcome.PASS, detail)
    if not interpreter.stays:
        detail = (
            f"{interpreter} at {interpreter.path} may move or go when it is upgraded; the firewall would then drop "
            "connections silently, and the proxy would not start"
        )
        return Finding("python", Outcome.WARN, detail, f"open {PYTHON_ORG}; then run the install again")
    return Finding("python", Outcome.PASS, f"{interpreter} at {interpreter.path}, which doesn't move")


def bring_command(machine: Machine, uv: Path) -> list[str]:
    """Return the command that has uv bring a Python into our folder."""
    # Without UV_PYTHON_INSTALL_BIN=0 newer versions of uv put a python3.13 on the user's PATH as well.
    return [
        *("/usr/bin/env", "UV_PYTHON_INSTALL_BIN=0", str(uv), "python", "install"),
        *("--install-dir", str(machine.pythons), KEPT_BY_UV),
    ]


class BringPython(Step):
    """Have uv bring a Python into our folder; `path` is its binary afterwards."""

    def __init__(self, machine: Machine, uv: Path) -> None:
        self.title = f"bring Python {KEPT_BY_UV} to {machine.shown(machine.pythons)}"
        self.machine = machine
        self.was_there = False
        self.command = bring_command(machine, uv)

    def shown(self) -> Iterator[str]:
        """Yield the command."""
        yield f"$ {spelled(self.command)}"

    def path(self) -> Path:
        """Return the binary; StepError when there is none."""
        for path, _ in _newest(self.machine.pythons, f"cpython-{KEPT_BY_UV}*/bin/python{KEPT_BY_UV}", "uv"):
            return path
        raise StepError(f"uv left no Python in {self.machine.pythons}", f"open {PYTHON_ORG}")

    def do(self) -> None:
        """Have it brought."""
        self.was_there = self.machine.pythons.exists()
        done = self.machine.run(*self.command, timeout=UV_TIMEOUT)
        if done.code:
            raise StepError(f"uv: {done.said}", f"open {PYTHON_ORG}")
        self.path()

    def undo(self) -> None:
        """Remove what came."""
        if not self.was_there and self.machine.pythons.exists():
            shutil.rmtree(self.machine.pythons)
