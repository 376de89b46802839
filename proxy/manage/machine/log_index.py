"""Where `dashboard` keeps the index of an access log: next to it, under the log's name and a suffix."""

from __future__ import annotations

SUFFIX = ".index"

_BESIDES = ("", "-wal", "-shm", "-journal")
"""What SQLite appends to the names of the files that belong to a database."""


def index_path(log: str) -> str:
    """Return where the index of a log is."""
    return f"{log}{SUFFIX}"


def index_files(log: str) -> list[str]:
    """Return the files that an index may consist of."""
    return [index_path(log) + each for each in _BESIDES]
