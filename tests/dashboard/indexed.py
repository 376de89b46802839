"""An access log and its index, without another process."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from proxy.dashboard.filters import filter_of, period_of
from proxy.dashboard.history import history
from proxy.dashboard.index.database import opened
from proxy.dashboard.index.intake import day_of
from proxy.dashboard.index.reader import Reader
from proxy.dashboard.index.writer import Writer
from proxy.dashboard.log_lines import Cursor, limit_of, lines
from proxy.logs.logfile import json_line
from proxy.manage.logs.files import Log
from proxy.manage.logs.lines import Wanted
from proxy.manage.logs.summary import Summary
from proxy.manage.machine.log_index import index_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

NOW = 1_795_465_000.0  # 2026-11-23T20:16:40Z
USUAL: dict[str, Any] = {
    "time": "2026-11-23T20:00:00.123Z",
    "id": "a1",
    "peer": "100.64.0.9",
    "device": "laptop",
    "user": "me@example.com",
    "method": "POST",
    "path": "/v1/chat/completions",
    "verdict": "allowed",
    "status": 200,
    "ended": "complete",
    "model": "qwen3:8b",
}


@contextmanager
def in_zone(zone: str) -> Iterator[None]:
    """Be in a time zone, written as POSIX writes it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TZ", zone)
        time.tzset()
        day_of.cache_clear()
        yield
    time.tzset()
    day_of.cache_clear()


def line(**given: Any) -> bytes:
    """Return a line of a usual request, with what is given; None leaves a key out."""
    return json_line({key: value for key, value in (USUAL | given).items() if value is not None})


class Indexed:
    """A log in a folder of its own."""

    def __init__(self, folder: Path, now: float = NOW) -> None:
        self.path = folder / "access.log"
        self.now = now

    def append(self, *lines: bytes, number: int = 0) -> None:
        """Append to the log, or to the rotated file with this number."""
        with self.rotated(number).open("ab") as file:
            file.writelines(lines)

    def rotated(self, number: int) -> Path:
        """Return the path of a rotated file; 0 is the log's own."""
        return self.path.with_name(f"access.log.{number}") if number else self.path

    def rotate(self) -> None:
        """Rename all files, as the proxy does."""
        for number in range(8, -1, -1):
            if self.rotated(number).exists():
                self.rotated(number).rename(self.rotated(number + 1))

    def update(self) -> list[tuple[int, int]]:
        """Bring the index up to date; return how far it reported to be."""
        reported: list[tuple[int, int]] = []
        with closing(opened(str(self.path))) as connection:
            Writer(connection, str(self.path)).update(lambda *far: reported.append(far) or True)
        return reported

    def history(self, period: str = "all", **query: str) -> dict[str, Any]:
        """Bring the index up to date, and return what the page would get."""
        self.update()
        with closing(Reader(str(self.path))) as reader:
            return history(reader, period_of(period, self.now), filter_of(query))

    def lines(self, period: str = "all", before: str | None = None, limit: str | None = None, **query: str) -> Any:
        """Return what the page would get of the log's lines."""
        self.update()
        with closing(Reader(str(self.path))) as reader:
            asked = period_of(period, self.now), filter_of(query), Cursor.read(before), limit_of(limit)
            return lines(reader, str(self.path), *asked)

    def summary(self, since: str | None = None) -> dict[str, Any]:
        """Return what `logs --summary --json` prints."""
        summary = Summary(Wanted(since or ""))
        with Log(str(self.path)) as log:
            for each in log.read():
                summary.add(orjson.loads(each))
        return summary.totals()

    def rows(self, table: str) -> list[tuple[Any, ...]]:
        """Return all rows of a table of the index."""
        with closing(sqlite3.connect(index_path(str(self.path)))) as connection:
            return connection.execute(f"SELECT * FROM {table}").fetchall()

    def texts(self) -> str:
        """Return everything that the index holds, as text."""
        return "\n".join(
            str(row) for _, name, *_ in self.rows("sqlite_master WHERE type = 'table'") for row in self.rows(name)
        )


def total(answer: dict[str, Any], *keys: str) -> tuple[Any, ...]:
    """Return some of an answer's totals."""
    return tuple(answer["totals"][key] for key in keys)


def names(rows: Iterable[dict[str, Any]], key: str = "name") -> list[Any]:
    """Return one value of each row."""
    return [row[key] for row in rows]
