"""The end of a log of JSON lines, without reading the rest of it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_TAIL = 2**18  # bytes: about 500 lines


def last_lines(path: str | Path, octets: int = _TAIL) -> list[bytes]:
    """Return the whole lines among the last bytes of a file; none where it can't be read."""
    try:
        with open(path, "rb") as log:
            begin = log.seek(max(0, log.seek(0, os.SEEK_END) - octets))
            return log.read(octets).split(b"\n")[1 if begin else 0 : -1]
    except OSError:
        return []


def last_records(path: str | Path) -> Iterator[Mapping[str, Any]]:
    """Yield the objects that the last lines are, the newest first; what is no object is left out."""
    for line in reversed(last_lines(path)):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found
