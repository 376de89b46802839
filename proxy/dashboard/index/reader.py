"""Read the index: the combinations of device, model and so on, and the counts of each.

If the index has been rebuilt, the reader opens the new one.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from proxy.dashboard.index.database import OFFSET_BITS, opened_to_read
from proxy.dashboard.index.intake import CODES, HOUR, Combination, day_of
from proxy.dashboard.index.measures import Measure, bin_of, bounds, place
from proxy.manage.machine.log_index import index_path

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Iterator, Mapping

DAYS_BEYOND = 10 * 24
"""If the first line is older than this many hours, each bar of the whole log is a day."""

BARS = 4000
"""The most bars of a period: eleven years of days. Older lines have no bar, but count in all totals."""


Cell = tuple[int, int, int, int, int]
"""The counts of one combination in one bar: when the bar begins (seconds since 1970), the combination, requests, tokens
read, tokens written. A plain tuple, because a long log has 40,000 of them, and named ones take a fifth of the time of
an answer."""


class Total(NamedTuple):
    """The counts of one combination in a whole period."""

    combination: int
    requests: int
    tokens_in: int
    tokens_out: int
    first: int  # milliseconds since 1970; 0 if no line has a time
    last: int


class Span(NamedTuple):
    """Which rows hold the bars of a period."""

    table: str  # `lines` for bars of a minute
    since: int  # milliseconds since 1970
    step: int  # seconds of a bar

    @property
    def totals(self) -> str:
        """The table with the fewest rows that add up to the whole period."""
        return self.table if self.since else "ever"


class Place(NamedTuple):
    """Where a line is."""

    time: int
    id: int
    path: str
    device: int
    inode: int

    @property
    def offset(self) -> int:
        """The offset in its file."""
        return self.id & ((1 << OFFSET_BITS) - 1)


class Reader:
    """Reads one log's index. For one thread at a time."""

    def __init__(self, log: str) -> None:
        """Open the index. Raises sqlite3.Error if there is none."""
        self._log = log
        self._connection, self._inode = self._opened()

    def _opened(self) -> tuple[sqlite3.Connection, int]:
        return opened_to_read(self._log), os.stat(index_path(self._log)).st_ino

    def close(self) -> None:
        """Close it."""
        self._connection.close()

    def begin(self) -> None:
        """Keep to the present state of the index until `end`. Raises sqlite3.Error, OSError."""
        if os.stat(index_path(self._log)).st_ino != self._inode:
            self._connection.close()
            self._connection, self._inode = self._opened()
        self._connection.execute("BEGIN")

    def end(self) -> None:
        """Follow the index again."""
        self._connection.execute("ROLLBACK")

    # --- what there is ------------------------------------------------------------------------------------------------

    def combinations(self) -> dict[int, Combination]:
        """Return all combinations by their numbers."""
        return {number: Combination(*rest) for number, *rest in self._connection.execute("SELECT * FROM combinations")}

    def names(self) -> dict[str, str]:
        """Return the names of addresses, as the newest lines have them."""
        rows = self._connection.execute("SELECT peer, name FROM names JOIN files ON file = id ORDER BY age")
        return dict(rows.fetchall())

    def seen(self) -> Iterator[tuple[str, str, int, str]]:
        """Yield each device's name, its address if it has none, its first time, and its user; the oldest file first."""
        yield from self._connection.execute(
            "SELECT seen.name, peer, time, user FROM seen JOIN files ON file = id ORDER BY age, time"
        )

    def reach(self) -> tuple[int, int] | None:
        """Return the times of the first and the last line; None without one."""
        first, last = self._connection.execute("SELECT min(first), max(last) FROM ever WHERE first > 0").fetchone()
        return None if first is None else (first, last)

    # --- what was counted ---------------------------------------------------------------------------------------------

    def span(self, period: str, since: int, now: int) -> Span:
        """Return which rows hold the bars of a period."""
        if period == "hour":
            return Span("lines", since, 60)
        if since:
            return Span("hours", since, 3600)
        first, _ = self.reach() or (now, now)
        return Span("days", 0, 86400) if (now - first) // HOUR > DAYS_BEYOND else Span("hours", 0, 3600)

    def cells(self, span: Span, wanted: Collection[int] | None) -> list[Cell]:
        """Return the counts by bars, of the wanted combinations or of all."""
        also, values = _among(wanted)
        if span.table == "lines":
            what = "time / 60000 * 60, combination, sum(requests), sum(tokens_in), sum(tokens_out)"
            query = f"SELECT {what} FROM lines WHERE time >= ? {also} GROUP BY 1, 2"
            rows = self._connection.execute(query, (span.since, *values))
        else:
            what = "hour * 3600, combination, requests, tokens_in, tokens_out"
            query = f"SELECT {what} FROM {span.table} WHERE hour >= ? {also}"
            rows = self._connection.execute(query, (span.since // HOUR, *values))
        return rows.fetchall()

    def totals(self, span: Span, wanted: Collection[int] | None) -> Iterator[Total]:
        """Yield the counts of each combination in the whole period."""
        also, values = _among(wanted)
        if span.table == "lines":
            begins, first, last, since = "time", "time", "time", span.since
        else:
            begins, first, last, since = "hour", "nullif(first, 0)", "last", span.since // HOUR
        counted = f"sum(requests), sum(tokens_in), sum(tokens_out), ifnull(min({first}), 0), max({last})"
        query = f"SELECT combination, {counted} FROM {span.totals} WHERE {begins} >= ? {also} GROUP BY 1"
        yield from map(Total._make, self._connection.execute(query, (since, *values)))

    def bins(self, span: Span, wanted: Collection[int] | None) -> Iterator[tuple[int, Measure, int, int]]:
        """Yield (combination, measure, bin, count)."""
        also, values = _among(wanted)
        if span.table == "lines":
            columns = ", ".join(measure.name.lower() for measure in Measure)
            query = f"SELECT combination, {columns} FROM lines WHERE time >= ? {also}"
            for combination, *measured in self._connection.execute(query, (span.since, *values)):
                for measure, value in zip(Measure, measured, strict=True):
                    if value is not None:
                        yield combination, measure, bin_of(value), 1
            return
        query = f"SELECT combination, code, sum(count) FROM {span.totals}_bins WHERE hour >= ? {also} GROUP BY 1, 2"
        for combination, code, count in self._connection.execute(query, (span.since // HOUR, *values)):
            yield combination, Measure(code // CODES), code % CODES, count

    def hours(self, span: Span, wanted: Collection[int]) -> dict[int, int]:
        """Return the requests of each hour since 1970."""
        also, values = _among(wanted)
        query = f"SELECT hour, sum(requests) FROM hours WHERE hour >= ? {also} GROUP BY 1"
        return dict(self._connection.execute(query, (span.since // HOUR, *values)).fetchall())

    def quantile(
        self,
        measure: Measure,
        span: Span,
        wanted: Collection[int] | None,
        counts: Mapping[int, int],
        numbers: Collection[int],
    ) -> float:
        """Return the mean of the values at these places in ascending order. `counts` are those of all bins."""
        found: list[float] = []
        column, (also, values) = measure.name.lower(), _among(wanted)
        in_bins: dict[int, list[int]] = {}  # in most cases all are in one
        for number in sorted(numbers):
            which, rest = place(counts, number)
            in_bins.setdefault(which, []).append(rest)
        for which, rests in in_bins.items():
            query = f"SELECT {column} FROM lines WHERE {column} >= ? AND {column} < ? AND time >= ? {also} "
            ordered = f"{query} ORDER BY {column} LIMIT ? OFFSET ?"
            count = rests[-1] - rests[0] + 1
            rows = self._connection.execute(ordered, (*bounds(which), span.since, *values, count, rests[0])).fetchall()
            found += [float(rows[rest - rests[0]][0]) for rest in rests]
        return sum(each / len(found) for each in found)  # divided first, so that no sum is infinite

    # --- lines --------------------------------------------------------------------------------------------------------

    def places(
        self, since: int, wanted: Collection[int] | None, before: tuple[int, int] | None, limit: int
    ) -> list[Place]:
        """Return the places of the newest lines before a time and id, the newest first."""
        also, values = _among(wanted)
        time, which = before or (2**62, 2**62)
        hours = self._connection.execute(
            f"SELECT DISTINCT hour FROM hours WHERE hour >= ? AND hour <= ? {also} ORDER BY hour DESC",
            (since // HOUR, time // HOUR, *values),
        )
        found: list[Place] = []
        what = "SELECT time, lines.id, path, device, inode FROM lines JOIN files"
        where = f"files.id = lines.id >> {OFFSET_BITS} AND time >= ? AND time < ? AND (time, lines.id) < (?, ?) {also}"
        for (hour,) in hours:
            times = max(since, hour * HOUR), (hour + 1) * HOUR
            query = f"{what} WHERE {where} ORDER BY time DESC, lines.id DESC LIMIT ?"
            rows = self._connection.execute(query, (*times, time, which, *values, limit - len(found)))
            found += map(Place._make, rows)
            if len(found) >= limit:
                break
        with suppress(Exception):
            hours.close()
        return found


def bars(span: Span, first: int, now: int) -> list[int]:
    """Return when all bars of a period begin, in seconds since 1970; `first` is the time of its first line."""
    begin = (span.since or first) // 1000
    if span.table != "days":
        return list(range(begin // span.step * span.step, now // 1000 + 1, span.step))
    hours = range(day_of(begin // 3600), now // HOUR + 1, 24)
    days = dict.fromkeys(day_of(min(hour + 12, now // HOUR)) for hour in hours)
    days[day_of(now // HOUR)] = None
    return [hour * 3600 for hour in days][-BARS:]


def _among(wanted: Collection[int] | None) -> tuple[str, tuple[str, ...]]:
    """Return a condition for rows of these combinations, and its value."""
    if wanted is None:
        return "", ()
    return "AND combination IN (SELECT value FROM json_each(?))", (json.dumps(list(wanted)),)
