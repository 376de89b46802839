"""Read the log lines that match a filter. The index only has their places."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from proxy.dashboard.counts import known_combinations
from proxy.dashboard.filters import AskedWronglyError
from proxy.dashboard.index.intake import GAP, VERIFY
from proxy.dashboard.index.log_files import log_files
from proxy.dashboard.live import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.dashboard.filters import Filter, Known, Period
    from proxy.dashboard.index.reader import Place, Reader

LIMIT = 50
LARGEST_LIMIT = 200

LONGEST = 2**17
"""Bytes of a line that are read: more than the proxy writes."""


class Cursor(NamedTuple):
    """The last line that was shown: its time, and its id in the index."""

    time: int
    id: int

    def __str__(self) -> str:
        return f"{self.time}.{self.id}"

    @classmethod
    def read(cls, text: str | None) -> Cursor | None:
        """Return the cursor in a text. Raises AskedWronglyError."""
        if text is None:
            return None
        time, _, which = text.partition(".")
        if not (text.isascii() and time.isdecimal() and which.isdecimal() and len(text) < 40):
            raise AskedWronglyError("before= is no cursor of an earlier answer")
        return cls(min(int(time), 2**62), min(int(which), 2**62))


def limit_of(text: str | None) -> int:
    """Return the wanted number of lines. Raises AskedWronglyError."""
    if text is None:
        return LIMIT
    if not (text.isascii() and text.isdecimal() and len(text) < 4 and 1 <= int(text) <= LARGEST_LIMIT):
        raise AskedWronglyError(f"limit={text} is not a number from 1 to {LARGEST_LIMIT}")
    return int(text)


def lines(
    reader: Reader, log: str, period: Period, wanted: Filter, before: Cursor | None, limit: int
) -> dict[str, Any]:
    """Return the newest lines that match a filter, the newest first. Lines that have left the log are left out."""
    known = {} if wanted.is_empty else known_combinations(reader)
    numbers = {number for number, each in known.items() if _is_wanted(wanted, each)}
    places = reader.places(period.since, None if wanted.is_empty else numbers, before, limit)
    last = places[-1] if len(places) == limit else None
    return {"lines": list(_read(log, places)), "next": str(Cursor(last.time, last.id)) if last is not None else None}


def _is_wanted(wanted: Filter, each: Known) -> bool:
    """Return whether lines of a combination are wanted. Those of `verify` must be asked for by kind."""
    return wanted.takes(each) and (each.kind not in {VERIFY, GAP} or wanted.kind == each.kind)


def _read(log: str, places: list[Place]) -> Iterator[dict[str, Any]]:
    with log_files(log) as files:
        by_identity = {(file.device, file.inode): file for file in files}
        for place in places:
            file = by_identity.get((place.device, place.inode))
            if file is None:
                continue
            content = os.pread(file.fd, LONGEST, place.offset).partition(b"\n")[0]
            try:
                record = shown(orjson.loads(content))
            except (orjson.JSONDecodeError, RecursionError):
                continue
            if isinstance(record, dict):
                yield {"cursor": str(Cursor(place.time, place.id)), "file": Path(file.path).name, "record": record}
