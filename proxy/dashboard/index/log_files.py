"""The files of the access log, and how one is recognised after a rotation.

A rotation renames files, and a file system may give a new file the inode of a removed one. So a file is recognised by
its inode, its first line, and the last line that was read from it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from proxy.manage.logs.files import ROTATED_AT_MOST

if TYPE_CHECKING:
    from collections.abc import Iterator

RECOGNISED_BY = 4096
"""Bytes of a line that are compared."""


class LogFile(NamedTuple):
    """One file, open for reading."""

    fd: int
    path: str
    device: int
    inode: int
    size: int
    head: str  # a digest of its first line; empty: it has none yet


@contextmanager
def log_files(log: str) -> Iterator[list[LogFile]]:
    """Give all existing files, the oldest first. Raises OSError if one can't be read.

    They are opened in the direction in which a rotation renames them, from the newest to the oldest. So none is missed.
    One that is renamed meanwhile is found twice.
    """
    found: dict[tuple[int, int], LogFile] = {}
    try:
        for number in range(ROTATED_AT_MOST + 1):
            path = f"{log}.{number}" if number else log
            with suppress(FileNotFoundError):
                file = _opened(path)
                if (before := found.pop((file.device, file.inode), None)) is not None:
                    os.close(before.fd)
                found[file.device, file.inode] = file
        yield list(found.values())[::-1]
    finally:
        for file in found.values():
            os.close(file.fd)


def _opened(path: str) -> LogFile:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        state = os.fstat(fd)
        if not stat.S_ISREG(state.st_mode):
            raise OSError(f"{path} is not a regular file")
        return LogFile(fd, path, state.st_dev, state.st_ino, state.st_size, digest_at(fd, 0, state.st_size))
    except OSError:
        os.close(fd)
        raise


def digest_at(fd: int, begin: int, end: int) -> str:
    """Return a digest of the first whole line between two offsets; empty if there is none. A long line is cut."""
    content = os.pread(fd, min(end - begin, RECOGNISED_BY), begin)
    line, ended, _ = content.partition(b"\n")
    if not ended and len(content) < RECOGNISED_BY:
        return ""
    return hashlib.blake2b(line, digest_size=16).hexdigest()
