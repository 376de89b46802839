"""Processes of this machine, as psutil reports them: their command, their user, and their start.

macOS shows command lines of other users to root only, and the rest to everyone (public source: psutil `_psosx.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

_ASKED = ("name", "exe", "cmdline", "uids", "username", "create_time")


@dataclass(frozen=True, slots=True)
class Process:
    """One process. What this user may not see is empty or None."""

    pid: int
    name: str = ""
    executable: str = ""  # the path of its program
    command: str = ""  # its command line
    uid: int | None = None  # whose rights it has
    user: str = ""
    begun: float | None = None  # seconds since 1970


def process(pid: int) -> Process | None:
    """Return a process; None when there is none of that number."""
    try:
        return _read(pid, psutil.Process(pid).as_dict(_ASKED))
    except psutil.NoSuchProcess:
        return None


def processes() -> Iterator[Process]:
    """Yield each process that there is now."""
    for each in psutil.process_iter(_ASKED):
        yield _read(each.pid, each.info)


def _read(pid: int, seen: dict[str, Any]) -> Process:
    return Process(
        pid,
        seen["name"] or "",
        seen["exe"] or "",
        " ".join(seen["cmdline"] or ()),
        seen["uids"].effective if seen["uids"] else None,
        seen["username"] or "",
        seen["create_time"],
    )
