"""Which requests were sent, and whether each has exactly one line in the access log."""

from __future__ import annotations

import json
from collections import Counter
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING

from proxy.manage.logs.files import Log

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CURRENT: ContextVar[Call] = ContextVar("CURRENT")
"""The call that this task makes, for the hooks of the SDKs' HTTP clients."""


@dataclass(slots=True)
class Call:
    """One request. Its line must exist once it was answered, and may exist as soon as it began to be sent."""

    id: str
    kind: str
    begun: float = field(default_factory=monotonic)
    sent: bool = False  # at least begun
    answered: float | None = None  # when the head of the answer came
    ended: float | None = None
    fault: str | None = None  # why it failed, if it did and didn't leave by itself


class Ledger:
    """All calls, and all lines. Requests whose id doesn't reach the log are only counted."""

    def __init__(self, access_log: Path) -> None:
        self.calls: dict[str, Call] = {}
        self.nameless = 0  # requests without an id that must have a line
        self.nameless_maybe = 0  # those whose bytes a reset may have overtaken
        self.turned_away = 0  # requests that got the proxy's own words: too many waited, or it was cancelled
        self.kinds: Counter[str] = Counter()
        self.endings: Counter[str] = Counter()  # of all lines, as logged
        self.gaps = 0  # lines that the log says it lost
        self._lines: Counter[str] = Counter()  # by id
        self._log = Log(str(access_log))
        self._numbers = count(1)

    def begin(self, kind: str) -> Call:
        """Record a call that is about to be made."""
        call = Call(f"soak-{next(self._numbers)}", kind)
        self.calls[call.id] = call
        self.kinds[kind] += 1
        return call

    def read(self) -> None:
        """Read what is new in the access log, across its rotations. Raises ValueError for an invalid line."""
        for found in self._log.read():
            line = json.loads(found)
            if "audit_gap" in line:
                self.gaps += line["audit_gap"]
            else:
                self._lines[line["id"]] += 1
                self.endings[line["ended"]] += 1

    @property
    def lines(self) -> int:
        """How many lines there are."""
        return self._lines.total()

    @property
    def complete(self) -> bool:
        """Whether no line is missing any more."""
        return not any(self._missing()) and self._nameless() >= self.nameless

    def _missing(self) -> Iterator[str]:
        return (each.id for each in self.calls.values() if each.answered is not None and not self._lines[each.id])

    def _nameless(self) -> int:
        return sum(lines for name, lines in self._lines.items() if name not in self.calls)

    def faults(self) -> list[str]:
        """Return what doesn't match."""
        found = []
        if missing := [*self._missing()]:
            found.append(f"{len(missing)} requests without a line, {self.calls[missing[0]]} first")
        if twice := [name for name, lines in self._lines.items() if lines > 1]:
            found.append(f"{len(twice)} requests with more than one line, {self.calls.get(twice[0], twice[0])} first")
        if unsent := [each for each in self.calls.values() if not each.sent and self._lines[each.id]]:
            found.append(f"{len(unsent)} lines of requests that were never sent, {unsent[0]} first")
        if not self.nameless <= self._nameless() <= self.nameless + self.nameless_maybe:
            most = self.nameless + self.nameless_maybe
            found.append(f"{self._nameless()} lines without a known id instead of {self.nameless} to {most}")
        if self.gaps:
            found.append(f"the log says that {self.gaps} lines are lost")
        return found
