"""The end of a log of JSON lines, without reading the rest of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

BLOCK = 2**20
"""Bytes of a log that are read at once."""

_TAIL = 2**18  # bytes: about 500 lines


def backwards(fd: int, end: int, begin: int = 0) -> Iterator[bytes]:
    """Yield what follows the last newline before `end`, which may be nothing, then each whole line, the last one first.

    Bytes before `begin` are not read, and the line that it cuts is left out.
    """
    at, head = end, b""
    while at > begin:
        stop, at = at, max(begin, at - BLOCK)
        head, *whole = (os.pread(fd, stop - at, at) + head).split(b"\n")
        yield from reversed(whole)
    if not begin:
        yield head


def last_lines(path: str | Path, octets: int = _TAIL) -> list[bytes]:
    """Return the whole lines among the last bytes of a file, in their order; none where it can't be read."""
    try:
        with open(path, "rb") as log:
            size = os.fstat(log.fileno()).st_size
            return list(backwards(log.fileno(), size, max(0, size - octets)))[:0:-1]
    except OSError:
        return []


def last_records(path: str | Path) -> Iterator[Mapping[str, Any]]:
    """Yield the objects in the last lines, the newest first. Lines that aren't objects are left out."""
    for line in reversed(last_lines(path)):
        try:
            found = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(found, dict):
            yield found
