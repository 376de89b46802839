"""The virtual environment of the installed proxy: one folder for each version, built next to the running one.

It holds the wheel from a source, and exactly the packages of its lock file, by their hashes.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from proxy import NAME
from proxy.manage.machine import interpreter
from proxy.manage.machine.interpreter import Interpreter
from proxy.manage.machine.machine import spelled
from proxy.manage.machine.source import PIP, WHEEL, run
from proxy.manage.machine.steps import Step, StepError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from proxy.manage.machine.machine import Machine
    from proxy.manage.machine.source import Source

_MARK = ".made-of"  # names the interpreter; written last, so a folder without it was not finished
_IMPORTS = "import proxy.command_line.cli, proxy.serving.listener"


def running(machine: Machine) -> Path | None:
    """Return the installed environment that this runs from; None when it is another one."""
    folder = Path(sys.prefix)
    return folder if folder.parent.resolve() == machine.versions.resolve() else None


def keeps_its_command(machine: Machine) -> bool:
    """Return whether the command on the PATH is that of the copy that runs, put there by uv or pipx, who own it."""
    link = machine.link
    return (
        link.is_symlink() and running(machine) is None and link.resolve() == (Path(sys.prefix) / "bin" / NAME).resolve()
    )


def commands_for(source: Source, python: Path | str, folder: Path, wheel: str) -> list[list[str]]:
    """Return the commands that build the environment `folder` on `python`, from the file `wheel`."""
    inside = str(folder / "bin" / "python")
    return [
        [str(python), "-I", "-m", "venv", "--clear", str(folder)],
        [inside, *PIP, "install", "--require-hashes", "--no-deps", "--only-binary", ":all:", "-r", str(source.lock)],
        [inside, *PIP, "install", "--no-deps", "--no-index", wheel],
    ]


def build(machine: Machine, source: Source, python: Path, folder: Path) -> None:
    """Build the environment `folder`. StepError names what failed and why.

    The wheel comes first: to make it is to check that lock file and code are what the owner installed.
    """
    with tempfile.TemporaryDirectory(prefix=f"{NAME}-") as wheels:
        source.make_wheel(machine, Path(wheels))
        for command in commands_for(source, python, folder, f"{wheels}/{WHEEL}"):
            run(machine, command, source.hint)


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
        source: Source,
        python: Callable[[], Path],
        shown_python: str,
        builder: Callable[[Machine, Source, Path, Path], None] = build,
    ) -> None:
        self.folder = machine.versions / source.version
        self.title = f"build the environment {machine.shown(self.folder)} (takes a minute)"
        self.machine, self.source, self.python, self.builder = machine, source, python, builder
        self.shown_python = shown_python
        self.aside = self.folder.with_name(f"{self.folder.name}.replaced")
        self.made: list[Path] = []

    def shown(self) -> Iterator[str]:
        """Yield the commands."""
        yield from self.source.shown("WHEELS")
        for command in commands_for(self.source, self.shown_python, self.folder, f"WHEELS/{WHEEL}"):
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
        self.builder(self.machine, self.source, python, self.folder)
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
