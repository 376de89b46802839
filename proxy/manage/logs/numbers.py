"""Check the numbers of the access log's lines: which are missing, lost, torn, double, moved or without a number.

The proxy numbers the lines of a run without a hole, in the order of the file, and an `audit_gap` line stands for the
numbers of lines that it lost. So any other hole was made by something else. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import orjson

from proxy.manage.logs.lines import text

if TYPE_CHECKING:
    from collections.abc import Iterator


class Kind(StrEnum):
    """What can be wrong with numbers."""

    MISSING = "missing"  # no line has them
    LOST = "lost"  # the proxy itself reports that it couldn't write them
    TORN = "torn"  # only a part of the line is there
    TWICE = "twice"  # an earlier line has them
    MOVED = "moved"  # they come after later ones
    UNNUMBERED = "unnumbered"  # the line has no number, although earlier ones do


@dataclass(slots=True)
class Fault:
    """What is wrong with some numbers of a run, and the line at which it shows."""

    kind: Kind
    run: str  # empty if it isn't known
    first: int  # numbers; 0 if they aren't known
    last: int
    lines: int
    file: str
    line: int
    at: int = field(compare=False)  # the order in which faults came up

    def goes_on(self, later: Fault) -> bool:
        """Return whether `later` continues this one, line by line."""
        return (
            (self.kind, self.run, self.file) == (later.kind, later.run, later.file)
            and later.line == self.line + self.lines
            and later.lines == 1
            and (later.first == self.last + 1 or not later.first)
        )

    def shown(self) -> dict[str, Any]:
        """Return it as `--json` prints it."""
        numbers = {"first": self.first or None, "last": self.last or None}
        place = {"file": self.file, "line": self.line}
        return {"kind": str(self.kind), "run": self.run or None, **numbers, "lines": self.lines, **place}


@dataclass(slots=True)
class _Run:
    """What is known about a run."""

    begin: int  # the lowest number
    next: int  # the number that its next line should have
    first_at: int  # the place of its first line among all lines
    last_at: int = 0
    lines: int = 0
    lost: int = 0
    begins: str = ""  # times of its first and its last line
    ends: str = ""
    torn: int = 0  # the number of its latest torn line
    holes: list[Fault] = field(default_factory=list)


_NUMBERED = re.compile(rb'\{"time":"([^"]+)","run":"([!-~]{1,64}?)","seq":([1-9][0-9]{0,14}),')
_AFTER = re.compile(r"([!-~]{1,256})/([1-9][0-9]{0,14})")


class Numbers:
    """Takes all lines of a log, the oldest first; `totals` says what is wrong."""

    def __init__(self) -> None:
        self._runs: dict[str, _Run] = {}
        self._faults: list[Fault] = []
        self._together: dict[tuple[str, str], None] = {}
        self._current = ""  # the run of the line before
        self._place = ("", 0)
        self._files: dict[str, None] = {}
        self._lines = 0

    def take(self, line: bytes, file: str, number: int) -> None:
        """Take a line, which is line `number` of `file`."""
        if not line:
            return
        self._lines += 1
        self._place = (file, number)
        self._files[file] = None
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:
            record = None
        if not isinstance(record, dict):
            self._torn(line)
            return
        run, first, gap = text(record, "run"), _natural(record.get("seq")), "audit_gap" in record
        count = _natural(record.get("audit_gap", 1))
        if not (run and first and count):
            if gap and count:
                self._fault(Kind.LOST, "", 0, 0, count)  # of a version that knew no numbers
            elif self._runs:
                self._fault(Kind.UNNUMBERED, "", 0, 0)
            return
        last = first + count - 1
        if match := _AFTER.fullmatch(text(record, "after")):
            self._follows(match[1], int(match[2]))
        state = self._number(run, first, last, text(record, "time"))
        if gap:
            state.lost += count
            self._fault(Kind.LOST, run, first, last)
        else:
            state.lines += 1

    def _torn(self, line: bytes) -> None:
        """Take what isn't a whole line. Its number may be readable."""
        if (match := _NUMBERED.match(line)) is None:
            self._fault(Kind.TORN, "", 0, 0)
            return
        time, run, number = match[1].decode("utf-8", "replace"), match[2].decode(), int(match[3])
        self._number(run, number, number, time).torn = number
        self._fault(Kind.TORN, run, number, number)

    def _number(self, run: str, first: int, last: int, time: str) -> _Run:
        """Note that a line of `run` has these numbers."""
        state = self._runs.get(run)
        if state is None:
            # Older files are removed, so the first line of all may have any number.
            begin = first if self._lines == 1 else 1
            state = self._runs[run] = _Run(begin, begin, self._lines, begins=time)
        elif self._current != run and first >= state.next:
            self._together[self._current, run] = None
        self._current = run
        state.last_at, state.ends = self._lines, time
        if first > state.next:
            state.holes.append(self._made(Kind.MISSING, run, state.next, first - 1, first - state.next))
        if first >= state.next:
            state.next = last + 1
        elif first != state.torn:  # which a reopened log has again, whole
            self._late(state, run, first, last)
        return state

    def _late(self, state: _Run, run: str, first: int, last: int) -> None:
        """Note numbers below the latest one: they fill holes, or are there already."""
        if first < state.begin:
            if last + 1 < state.begin:
                state.holes.append(self._made(Kind.MISSING, run, last + 1, state.begin - 1, state.begin - last - 1))
            state.begin = first
            self._fault(Kind.MOVED, run, first, last)
            return
        filled, left = 0, []
        for hole in state.holes:
            low, high = max(first, hole.first), min(last, hole.last)
            if low > high:
                left.append(hole)
                continue
            filled += high - low + 1
            for begin, end in ((hole.first, low - 1), (high + 1, hole.last)):
                if begin <= end:
                    left.append(Fault(hole.kind, run, begin, end, end - begin + 1, hole.file, hole.line, hole.at))
        state.holes, state.next = left, max(state.next, last + 1)
        self._fault(Kind.MOVED if filled == last - first + 1 else Kind.TWICE, run, first, last)

    def _follows(self, run: str, last: int) -> None:
        """Note that a new run found `last` as the number of the last line at its start."""
        state = self._runs.get(run)
        if state is None:
            if self._lines > 1:
                state = self._runs[run] = _Run(1, 1, self._lines)
            else:
                return
        if state.next <= last:
            state.holes.append(self._made(Kind.MISSING, run, state.next, last, last + 1 - state.next))
            state.next = last + 1

    def _made(self, kind: Kind, run: str, first: int, last: int, lines: int) -> Fault:
        return Fault(kind, run, first, last, lines, *self._place, self._lines)

    def _fault(self, kind: Kind, run: str, first: int, last: int, lines: int = 0) -> None:
        fault = self._made(kind, run, first, last, lines or last - first + 1)
        if self._faults and self._faults[-1].goes_on(fault):
            self._faults[-1].lines += 1
            self._faults[-1].last = fault.last
        else:
            self._faults.append(fault)

    def _missing(self) -> Iterator[Fault]:
        """Yield the holes. One at a run's beginning doesn't count if the log begins in the middle of both runs."""
        opening = next(iter(self._runs.values()), None)
        for state in self._runs.values():
            for hole in state.holes:
                if hole.first > 1 or opening is None or opening.begin == 1 or state.first_at > opening.last_at:
                    yield hole

    def totals(self) -> dict[str, Any]:
        """Return what `logs --verify --json` prints."""
        faults = sorted([*self._faults, *self._missing()], key=lambda fault: (fault.at, fault.first))
        return {
            "files": list(self._files),
            "lines": self._lines,
            "runs": [
                {"run": run, "first": state.begin, "last": state.next - 1, "lines": state.lines, "lost": state.lost}
                | {"from": state.begins or None, "to": state.ends or None}
                for run, state in self._runs.items()
            ],
            "together": [list(pair) for pair in self._together],
            "findings": [fault.shown() for fault in faults],
        }


def _natural(value: object) -> int:
    """Return a value that should be a natural number; 0 if it isn't."""
    return value if type(value) is int and value > 0 else 0
