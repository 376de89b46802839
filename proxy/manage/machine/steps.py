"""Steps that change a machine: each can be shown, taken, and undone; and how a series of them is taken.

A step remembers what it found when it was taken, so that `undo` restores just that, however far `do` came.
"""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from proxy.manage.machine.machine import Machine


class StepError(Exception):
    """A step could not be taken; `hint` is a command that helps, or nothing."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Step(ABC):
    """One change of the machine. `title` says what it does, in words."""

    title: str
    notes: tuple[str, ...] = ()  # notes to print once it was taken

    def shown(self) -> Iterator[str]:
        """Yield what it would run, as `$ command`, and what it would write, each line of it after `| `."""
        yield from ()

    def done(self) -> bool:
        """Return whether things are already as it would make them; then it isn't taken."""
        return False

    @abstractmethod
    def do(self) -> None:
        """Take it. Raises StepError, OSError, or an error with a `hint`."""

    def undo(self) -> None:  # noqa: B027 - not every step leaves something to put back
        """Restore what was there before `do`, which may have ended anywhere."""


class RolledBackError(Exception):
    """A series of steps ended early and was undone; `left` says what could not be."""

    def __init__(self, title: str, cause: BaseException, left: Sequence[str]) -> None:
        reason = "interrupted" if isinstance(cause, KeyboardInterrupt) else str(cause) or type(cause).__name__
        super().__init__(f"{title}: {reason}")
        self.hint: str = getattr(cause, "hint", "")
        self.left = tuple(left)


def carry_out(steps: Sequence[Step], say: Callable[[str], None]) -> None:
    """Take `steps` in order, and print each.

    If one fails, or the user interrupts it, it undoes all steps that began, the last one first, and raises
    RolledBackError.
    """
    begun: list[Step] = []
    for step in steps:
        try:
            if step.done():
                say(f"  same  {step.title}")
                continue
            begun.append(step)
            say(f"  do    {step.title}")
            step.do()
            for note in step.notes:
                say(f"        {note}")
        except BaseException as error:
            say(f"  FAIL  {step.title}")
            raise RolledBackError(step.title, error, _take_back(begun, say)) from error


def _take_back(begun: Sequence[Step], say: Callable[[str], None]) -> list[str]:
    """Undo what began, the last first; return what could not be undone, which doesn't stop the rest."""
    left = []
    for step in reversed(begun):
        say(f"  undo  {step.title}")
        try:
            step.undo()
        # Whatever it is that goes wrong, a second Ctrl-C too: the steps before it are to be undone all the same.
        except (Exception, KeyboardInterrupt) as error:
            left.append(f"{step.title}: {error}")
    return left


@dataclass(frozen=True, slots=True)
class Kept:
    """What was at a path: nothing, a link, or a file with its content and mode."""

    path: Path
    target: str | None = None
    content: bytes | None = None
    mode: int = 0

    @classmethod
    def of(cls, path: Path) -> Kept:
        """Return what is at `path` now."""
        if path.is_symlink():
            return cls(path, target=os.readlink(path))
        if not path.exists():
            return cls(path)
        return cls(path, content=path.read_bytes(), mode=stat.S_IMODE(path.stat().st_mode))

    def restore(self) -> None:
        """Make the path what it was."""
        if self == Kept.of(self.path):
            return
        if self.content is not None:
            write(self.path, self.content, self.mode)
        else:
            self.path.unlink(missing_ok=True)
            if self.target is not None:
                self.path.symlink_to(self.target)


def write(path: Path, content: bytes, mode: int) -> None:
    """Write a file completely or not at all: a reader sees the old one or the new one."""
    beside = path.with_name(f".{path.name}.new")
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            file.write(content)
        beside.chmod(mode)  # whatever the umask is
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def remove_empty(folder: Path) -> bool:
    """Remove a folder that holds nothing, or only the file that Finder leaves; return whether it is gone."""
    try:
        if [path.name for path in folder.iterdir()] == [".DS_Store"]:
            (folder / ".DS_Store").unlink()
        folder.rmdir()
    except OSError:
        return False
    return True


class Folder(Step):
    """Make a folder and missing ones above it, for this user only; an existing one stays as it is."""

    def __init__(self, machine: Machine, path: Path, mode: int = 0o700) -> None:
        self.title = f"make the folder {machine.shown(path)}"
        self.path, self.mode = path, mode
        self.made: list[Path] = []

    def shown(self) -> Iterator[str]:
        """Yield the command that does the same."""
        yield f"$ mkdir -p -m {self.mode:o} '{self.path}'"

    def done(self) -> bool:
        """Return whether it is there."""
        return self.path.is_dir()

    def do(self) -> None:
        """Make them from the top."""
        for folder in [*reversed(self.path.parents), self.path]:
            if not folder.is_dir():
                folder.mkdir(self.mode if folder == self.path else 0o755)
                self.made.append(folder)

    def undo(self) -> None:
        """Remove the folders that were made, unless something is in them: a log may explain what went wrong."""
        for folder in reversed(self.made):
            for path in folder.iterdir():
                if path.is_file() and not path.stat().st_size:
                    path.unlink()
            remove_empty(folder)


class Replacing(Step):
    """A step that replaces what is at one path; `before` is what was there, once it was taken."""

    before: Kept | None = None

    def undo(self) -> None:
        """Restore what was there, or nothing."""
        if self.before is not None:
            self.before.restore()


class WriteFile(Replacing):
    """Write a file, atomically; with `keep`, only where there is none."""

    def __init__(
        self, machine: Machine, title: str, path: Path, content: bytes, *, mode: int = 0o600, keep: bool = False
    ) -> None:
        self.title = f"{title} {machine.shown(path)}"
        self.path, self.content, self.mode, self.keep = path, content, mode, keep

    def shown(self) -> Iterator[str]:
        """Yield the file."""
        yield from shown_file(self.path, self.content, self.mode)

    def done(self) -> bool:
        """Return whether it says that already."""
        if self.keep:
            return self.path.exists()
        return self.path.is_file() and self.path.read_bytes() == self.content

    def do(self) -> None:
        """Write it."""
        self.before = Kept.of(self.path)
        write(self.path, self.content, self.mode)


def shown_file(path: Path, content: bytes, mode: int) -> Iterator[str]:
    """Yield a file as a dry run shows it."""
    yield f"> {path} (mode {mode:o})"
    for line in content.decode(errors="replace").splitlines():
        yield f"| {line.expandtabs(2)}".rstrip()


class Link(Replacing):
    """Make a symbolic link; before, there was one of ours, or nothing."""

    def __init__(self, machine: Machine, path: Path, target: Path) -> None:
        self.title = f"link {machine.shown(path)} to {machine.shown(target)}"
        self.path, self.target = path, target

    def shown(self) -> Iterator[str]:
        """Yield the command that does the same."""
        yield f"$ ln -sfn '{self.target}' '{self.path}'"

    def done(self) -> bool:
        """Return whether it points there."""
        return self.path.is_symlink() and self.path.readlink() == self.target

    def do(self) -> None:
        """Point it there."""
        self.before = Kept.of(self.path)
        self.path.unlink(missing_ok=True)
        self.path.symlink_to(self.target)
