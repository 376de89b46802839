"""The virtual environment of the installed proxy: one folder for each version, built beside the one that runs.

What is installed is a wheel of the checkout, and exactly the packages of `requirements.lock`, by their hashes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import proxy
from proxy.ops import interpreter
from proxy.ops.interpreter import Interpreter
from proxy.ops.machine import NAME, spelled
from proxy.ops.steps import Step, StepError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from proxy.ops.machine import Machine

BUILD_TIMEOUT = 900.0
"""Seconds for one step of pip: some 30 MB from the network."""

_MARK = ".made-of"  # names the interpreter; written last, so a folder without it was not finished
_IMPORTS = "import proxy.cli, proxy.listener"


@dataclass(frozen=True, slots=True)
class Checkout:
    """The sources that are installed from."""

    folder: Path
    version: str  # and the first digits of a digest of all that goes into the environment

    @classmethod
    def here(cls) -> Checkout | None:
        """Return the checkout that this runs from; None when it is an installed copy that runs."""
        folder = Path(proxy.__file__).resolve().parent.parent
        if not (folder / "requirements.lock").is_file() or not (folder / "pyproject.toml").is_file():
            return None
        digest = hashlib.sha256()
        patterns = ("proxy/**/*.py", "launchd/*", "pyproject.toml", "requirements.lock")
        for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(folder)} {len(content)}\n".encode() + content)
        return cls(folder, f"{proxy.__version__}-{digest.hexdigest()[:8]}")


def running(machine: Machine) -> Path | None:
    """Return the installed environment that this runs from; None when it is another one."""
    folder = Path(sys.prefix)
    return folder if folder.parent.resolve() == machine.versions.resolve() else None


def can_build() -> bool:
    """Return whether the Python that runs this can make a wheel of the checkout without fetching anything."""
    return all(importlib.util.find_spec(name) is not None for name in ("hatchling", "pip"))


def commands_for(checkout: Checkout, python: Path | str, folder: Path, wheels: Path | str) -> list[list[str]]:
    """Return what is run to build the environment `folder` on `python`; `wheels` is a folder for a moment."""
    inside = str(folder / "bin" / "python")
    pip = ["-I", "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet"]
    locked = str(checkout.folder / "requirements.lock")
    wheel = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(checkout.folder)]
    return [
        [str(python), "-I", "-m", "venv", "--clear", str(folder)],
        [inside, *pip, "install", "--require-hashes", "--no-deps", "--only-binary", ":all:", "-r", locked],
        [sys.executable, *pip, *wheel],
        [inside, *pip, "install", "--no-deps", "--no-index", "--find-links", str(wheels), NAME],
    ]


def build(machine: Machine, checkout: Checkout, python: Path, folder: Path) -> None:
    """Build the environment `folder`. StepError names the command that failed and what it said."""
    with tempfile.TemporaryDirectory(prefix=f"{NAME}-") as wheels:
        for command in commands_for(checkout, python, folder, wheels):
            done = machine.run(*command, timeout=BUILD_TIMEOUT)
            if done.code:
                said = (done.err.strip() or done.out.strip()).splitlines()[-3:]
                reason = " / ".join(line.strip() for line in said) or f"exit code {done.code}"
                raise StepError(f"`{spelled(command)}` failed: {reason}", "make setup")


def works(machine: Machine, folder: Path) -> bool:
    """Return whether the proxy in the environment `folder` can be started: interpreter and packages are there."""
    return machine.run(folder / "bin" / "python", "-I", "-c", _IMPORTS).code == 0


def made_of(folder: Path) -> Path | None:
    """Return the resolved binary of the Python that an environment was built on; None if it was never finished."""
    mark = folder / _MARK
    return Path(mark.read_text()) if mark.is_file() else None


def python_of(machine: Machine, program: str | Path) -> Interpreter:
    """Return the Python behind a program that is, or is in an environment, one of its commands."""
    path = Path(program)
    made = made_of(path.parent.parent)
    known = interpreter.of(machine, made) if made else None
    return known or Interpreter(path, interpreter.keeper_of(machine, path.resolve()), "")


class BuildEnvironment(Step):
    """Build the environment of a version; one that is there, of the same Python, and works, stays."""

    def __init__(
        self,
        machine: Machine,
        checkout: Checkout,
        python: Callable[[], Path],
        shown_python: str,
        builder: Callable[[Machine, Checkout, Path, Path], None] = build,
    ) -> None:
        self.folder = machine.versions / checkout.version
        self.title = f"build the environment {machine.shown(self.folder)} (takes a minute)"
        self.machine, self.checkout, self.python, self.builder = machine, checkout, python, builder
        self.shown_python = shown_python
        self.aside = self.folder.with_name(f"{self.folder.name}.replaced")
        self.made: list[Path] = []

    def shown(self) -> Iterator[str]:
        """Yield the commands."""
        for command in commands_for(self.checkout, self.shown_python, self.folder, "WHEELS"):
            yield f"$ {spelled(command)}"

    def done(self) -> bool:
        """Return whether it is there and works."""
        made = made_of(self.folder)
        return made is not None and made == self.python().resolve() and works(self.machine, self.folder)

    def do(self) -> None:
        """Build it, and put the mark once it works."""
        python = self.python()
        if self.folder.exists():
            self.folder.rename(self.aside)
        if not self.folder.parent.exists():
            self.folder.parent.mkdir(mode=0o700)
            self.made.append(self.folder.parent)
        self.builder(self.machine, self.checkout, python, self.folder)
        if not works(self.machine, self.folder):
            raise StepError(f"the proxy in {self.folder} doesn't start", f"'{self.folder}/bin/python' -c '{_IMPORTS}'")
        (self.folder / _MARK).write_text(str(python.resolve()))

    def undo(self) -> None:
        """Remove it, and bring back what was in its place."""
        if self.folder.exists():
            shutil.rmtree(self.folder)
        if self.aside.exists():
            self.aside.rename(self.folder)
        for folder in self.made:
            folder.rmdir()


class RemoveOldVersions(Step):
    """Remove the environments that nothing uses any more. The last step: it can't be undone, and needn't be."""

    def __init__(self, machine: Machine, keep: str) -> None:
        self.title = "remove the environments of earlier versions"
        self.machine, self.keep = machine, keep

    def _others(self) -> list[Path]:
        folder = self.machine.versions
        there = folder.iterdir() if folder.is_dir() else ()
        return [path for path in there if path.name != self.keep and path.is_dir()]  # a .DS_Store is no environment

    def shown(self) -> Iterator[str]:
        """Yield a command for each."""
        for path in self._others():
            yield f"$ rm -r '{path}'"

    def done(self) -> bool:
        """Return whether there are none."""
        return not self._others()

    def do(self) -> None:
        """Remove them; one that resists is tried again by the next install."""
        for path in self._others():
            shutil.rmtree(path, ignore_errors=True)

    def undo(self) -> None:
        """Do nothing: what it removes is used by nobody."""
