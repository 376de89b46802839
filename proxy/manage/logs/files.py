"""A log across all its rotated files: its content, its last lines, and what is added meanwhile.

The program that writes it appends to one file at a time, and continues in another after a rotation. So files are
distinguished by their identity, not by their names, which change. A file is finished once a newer one has bytes.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Self

from proxy.manage.facts.log_end import BLOCK, backwards
from proxy.terminal.result import CommandError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROTATED_AT_MOST = 99
"""The highest number after a log's name that is looked for: the most that `log_keep` allows."""


class LogError(CommandError):
    """A log can't be read."""


class Log:
    """A log being read, from its oldest file to the end of its newest. `with` closes what is open."""

    def __init__(self, path: str, rotated: int = ROTATED_AT_MOST) -> None:
        """Look for `path` and so many rotated files: `path.1`, the newest of them, and so on. None need be there."""
        self.path = path
        self._rotated = rotated
        self._files: list[_File] = []  # not read to their ends, or not over, the oldest first
        self._look()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    @property
    def found(self) -> bool:
        """Whether there is a file of it, or was one since it is being read."""
        return bool(self._files)

    def read(self) -> Iterator[bytes]:
        """Yield the whole lines that came since the last call, or since the beginning; without their newlines.

        Half a line is left for the next call, unless its file is over.
        """
        self._look()
        while self._files:
            file = self._files[0]
            over = any(newer.size() for newer in self._files[1:])  # asked before it is read to its end
            yield from file.lines()
            if not over:
                return
            if file.half:
                yield file.half
            self._files.pop(0).close()

    def last(self, count: int, wanted: Callable[[bytes], bool]) -> list[bytes]:
        """Return the last lines that are wanted, at most `count`; `read` goes on after them."""
        found: list[bytes] = []
        for file in reversed(self._files):
            for line in file.backwards():  # its first step is what sets the place at which `read` goes on
                if len(found) == count:
                    break
                if wanted(line):
                    found.append(line)
        return found[::-1]

    @property
    def place(self) -> tuple[str, int]:
        """The file and number of the line that `read` yielded last or, after all of them, of the half line."""
        return self._files[0].place if self._files else (self.path, 1)

    def half(self) -> bytes:
        """Return the half line that `read` waits to be finished."""
        return self._files[0].half if self._files else b""

    def _look(self) -> None:
        """Add files that are newer than those at hand.

        From the newest name to older ones, as files wander: one that is renamed meanwhile is met twice, none is missed.
        If the one at hand has no name any more, newer files are those that were written to later.
        """
        newest = self._files[-1] if self._files else None
        if newest is not None and newest.is_at(self.path):
            return
        fresh: dict[tuple[int, int], tuple[int, _File]] = {}
        for number in range(self._rotated + 1):
            file = _File.at(f"{self.path}.{number}" if number else self.path)
            if file is None:
                continue
            if newest is not None and file.identity == newest.identity:
                file.close()
                break
            if (before := fresh.pop(file.identity, None)) is not None:  # what was met between is newer than it
                file.close()
                file = before[1]
            fresh[file.identity] = (number, file)
        else:
            if newest is not None:
                for number, file in list(fresh.values()):
                    if number and file.written() <= newest.written():
                        del fresh[file.identity]
                        file.close()
        self._files += [file for _, file in reversed(fresh.values())]


class _File:
    """One file, open for reading."""

    def __init__(self, fd: int, identity: tuple[int, int], path: str) -> None:
        self.identity = identity
        self._path = path  # when it was found
        self._whole = 0  # lines that were read
        self.half = b""  # what was read of a line whose end isn't there yet
        self._fd = fd
        self._read = 0  # bytes

    @classmethod
    def at(cls, path: str) -> Self | None:
        """Open `path`; None if there is no such file. LogError for what can't be read."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # which keeps a FIFO from stopping us here
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LogError(f"{path} can't be read: {error.strerror}", f"ls -ld '{path}'") from error
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            raise LogError(f"{path} is not a regular file", f"ls -ld '{path}'")
        return cls(fd, (found.st_dev, found.st_ino), path)

    def is_at(self, path: str) -> bool:
        """Return whether `path` is this file; it may be nothing at the moment, in the midst of a rotation."""
        try:
            found = os.stat(path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self.identity

    @property
    def place(self) -> tuple[str, int]:
        """The file's name and the number of the line that `lines` yielded last, or of the half line after them."""
        return self._path, self._whole + 1

    def size(self) -> int:
        """Return how many bytes it has."""
        return os.fstat(self._fd).st_size

    def written(self) -> int:
        """Return when it was last written to, in nanoseconds since 1970."""
        return os.fstat(self._fd).st_mtime_ns

    def lines(self) -> Iterator[bytes]:
        """Yield the whole lines that weren't read yet. A file that became shorter is read from its beginning."""
        if self.size() < self._read:
            self._read, self._whole, self.half = 0, 0, b""
        while block := os.pread(self._fd, BLOCK, self._read):
            self._read += len(block)
            *whole, self.half = (self.half + block).split(b"\n")
            for line in whole:
                yield line
                self._whole += 1

    def backwards(self) -> Iterator[bytes]:
        """Yield the whole lines, the last one first; `lines` goes on after them as soon as the first was asked for."""
        size = self.size()
        lines = backwards(self._fd, size)
        self._read = size - len(next(lines))
        yield from lines

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._fd)
