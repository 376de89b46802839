"""Turn lines of the access log into rows of the index, and add them up.

Pure. `manage.logs` decides what a line means, both for the summary and here.
"""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
import orjson

from proxy.dashboard.index.database import OFFSET_BITS
from proxy.dashboard.index.measures import Measure, bin_of
from proxy.manage.logs.lines import number, rate, text
from proxy.manage.logs.summary import NO_REQUEST, is_verifys, kind_of
from proxy.manage.verify.asking.asking import USER_AGENT
from proxy.settings.kinds import printable

HOUR = 3_600_000
"""Milliseconds."""

VERIFY = "verify"
"""The kind of the requests of `verify`, which count nowhere else."""

GAP = "missing"
"""The kind of a line that says how many lines are missing."""

LARGEST = 2**53
"""The largest count, with either sign. Integers end here in JavaScript, and at 63 bits in SQLite."""

LATEST = 253_370_764_800_000
"""Milliseconds since 1970 at the end of the year 9998. Later times don't count: some zones have no such day."""

BETWEEN = "\x1f"
"""The separator of options. No option contains it, because control characters are escaped."""

CODES = 64
"""The code of a bin is its number plus this many times its measure."""


class Line(msgspec.Struct, gc=False):
    """The values of a line that the index needs, by their keys in the log."""

    time: str = ""
    peer: str = ""
    user_agent: str = ""
    verdict: str = ""
    reason: str = ""
    device: str = ""
    user: str = ""
    status: int = 0
    ended: str = ""
    model: str = ""
    stream: bool = False
    first_byte_ms: float | None = None
    total_ms: float | None = None
    tokens_in: int = 0
    tokens_out: int | None = None
    events: int | None = None
    waited_ms: float | None = None
    context_full: bool = False
    egress: bool = False
    dropped: list[str] = []
    audit_gap: int | None = None


class Combination(NamedTuple):
    """The values that lines are counted by."""

    name: str  # the device's, or nothing
    peer: str  # its address, if it has no name
    model: str
    kind: str
    reason: str
    ended: str
    context_full: bool
    egress: bool
    dropped: str  # the options that the proxy removed, sorted, with BETWEEN between them


class Counted:
    """The totals of one combination in one hour."""

    __slots__ = ("bins", "first", "last", "requests", "tokens_in", "tokens_out")

    def __init__(self, time: int) -> None:
        self.requests = self.tokens_in = self.tokens_out = 0
        self.first = self.last = time
        self.bins: dict[int, int] = {}


_TEXTS = ("time", "peer", "user_agent", "verdict", "reason", "device", "user", "ended", "model")
_NUMBERS = ("first_byte_ms", "total_ms", "tokens_out", "events", "waited_ms")
_SWITCHES = ("stream", "context_full", "egress")

_FIRST, _SPEED, _WAITED = (int(measure) * CODES for measure in Measure)

_read = msgspec.json.Decoder(Line).decode


def line_of(content: bytes) -> Line | None:
    """Return a line, or None if it isn't a JSON object. A value of a wrong type counts as missing."""
    try:
        return _read(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    try:
        record = orjson.loads(content)
    except orjson.JSONDecodeError:
        return None
    return _line_of_record(record) if isinstance(record, dict) else None


def _line_of_record(record: dict[str, Any]) -> Line:
    gap, options = record.get("audit_gap"), record.get("dropped")
    values: dict[str, Any] = {key: text(record, key) for key in _TEXTS}
    values |= {key: number(record, key) for key in _NUMBERS}
    values |= {key: record.get(key) is True for key in _SWITCHES}
    return Line(
        **values,
        status=int(number(record, "status") or 0),
        tokens_in=int(number(record, "tokens_in") or 0),
        dropped=[each for each in options if isinstance(each, str)] if isinstance(options, list) else [],
        audit_gap=int(number(record, "audit_gap") or 0) if gap is not None else None,
    )


_minutes: dict[str, int] = {}


def milliseconds(time: str) -> int:
    """Return a line's time in milliseconds since 1970, or 0 if it has no valid one."""
    try:
        if len(time) != 24:
            raise ValueError
        minute = _minutes.get(time[:17])
        if minute is None:
            if len(_minutes) > 10_000:
                _minutes.clear()
            minute = int(datetime.fromisoformat(f"{time[:17]}00Z").timestamp()) * 1000
            if not 0 < minute < LATEST:
                return _other_time(time)
            _minutes[time[:17]] = minute
        return minute + int(time[17:19]) * 1000 + int(time[20:23])
    except ValueError:
        return _other_time(time)


def _other_time(time: str) -> int:
    try:
        found = int(datetime.fromisoformat(time).timestamp() * 1000)
    except (ValueError, OverflowError):
        return 0
    return found if 0 < found < LATEST else 0


@lru_cache(maxsize=4096)
def day_of(hour: int) -> int:
    """Return the first hour since 1970 of the local day that another hour belongs to.

    It is the first hour that begins in that day: in some zones, midnight is in the middle of an hour.
    """
    # Both are without a zone, so that each has the offset of its own moment: the clocks may change between them.
    local = datetime.fromtimestamp(hour * 3600)
    return -(-int(datetime(local.year, local.month, local.day).timestamp()) // 3600)


class Intake:
    """The rows that come from lines of one file."""

    def __init__(self, file: int, numbers: dict[tuple[Any, ...], int], fresh: Any) -> None:
        """`numbers` holds those of known combinations, by values of lines; `fresh` gives one to a new Combination."""
        self.rows: list[tuple[Any, ...]] = []
        self.hours: dict[tuple[int, int], Counted] = {}
        self.names: dict[str, str] = {}  # of addresses
        self.seen: dict[tuple[str, str], tuple[int, str]] = {}  # devices: when each was first seen, and its user
        self.lines = 0
        self._file = file << OFFSET_BITS
        self._numbers = numbers
        self._fresh = fresh

    def take_block(self, block: bytes, offset: int) -> int:
        """Take the lines of a block that begins at an offset. Return where the last one begins."""
        last = offset
        for line in block.split(b"\n")[:-1]:
            if line:
                self.take(line, offset)
            last, offset = offset, offset + len(line) + 1
        return last

    def take(self, content: bytes, offset: int) -> None:
        """Take a line that begins at an offset."""
        line = line_of(content)
        if line is None:
            return
        self.lines += 1
        time = milliseconds(line.time)
        name, peer = line.device, line.peer
        if name:
            self.names[peer] = name
            peer = ""
        if line.audit_gap is None:
            before = self.seen.get((name, peer))
            if before is None or time < before[0]:
                self.seen[name, peer] = time, line.user
        agent, kept = line.user_agent == USER_AGENT, line.audit_gap is None
        switches = line.context_full + 2 * line.egress + 4 * agent + 8 * kept
        key = (name, peer, line.model, line.verdict, line.reason, line.ended, line.status, switches, *line.dropped)
        combination = self._numbers.get(key)
        if combination is None:
            combination = self._numbers[key] = self._fresh(_combination(line))
        self._count(line, combination, time, offset, measured=kept and not agent)

    def _count(self, line: Line, combination: int, time: int, offset: int, *, measured: bool) -> None:
        first = rate_ = waited = None
        tokens_in, tokens_out = line.tokens_in, line.tokens_out or 0
        if abs(tokens_in) > LARGEST or abs(tokens_out) > LARGEST:
            tokens_in, tokens_out = _bounded(tokens_in), _bounded(tokens_out)
        requests = 1 if line.audit_gap is None else _bounded(line.audit_gap)
        if measured:
            if line.stream:
                first = line.first_byte_ms
                rate_ = rate(line.tokens_out, first, line.total_ms, line.events)
            waited = line.waited_ms
        where = self._file + offset
        self.rows.append((where, time, combination, requests, tokens_in, tokens_out, first, rate_, waited))
        hour = time // HOUR
        counted = self.hours.get((hour, combination))
        if counted is None:
            counted = self.hours[hour, combination] = Counted(time)
        counted.requests += requests
        counted.tokens_in += tokens_in
        counted.tokens_out += tokens_out
        if time > counted.last:
            counted.last = time
        elif time < counted.first:
            counted.first = time
        for value, measure in ((first, _FIRST), (rate_, _SPEED), (waited, _WAITED)):
            if value is not None:
                code = measure + bin_of(value)
                counted.bins[code] = counted.bins.get(code, 0) + 1


def _bounded(count: int) -> int:
    return max(-LARGEST, min(count, LARGEST))


def _combination(line: Line) -> Combination:
    """Return the combination of a line."""
    judged = {"user_agent": line.user_agent, "verdict": line.verdict or None, "reason": line.reason}
    if line.audit_gap is not None:
        kind = GAP
    elif is_verifys(judged):
        kind = VERIFY
    else:
        kind = kind_of({**judged, "ended": line.ended, "status": line.status})
    device, peer, model, reason, ended = map(
        plain,
        (
            line.device,
            "" if line.device else line.peer,
            line.model.removesuffix(":latest"),
            line.reason or (NO_REQUEST if kind == "refused" else ""),
            line.ended,
        ),
    )
    dropped = BETWEEN.join(sorted({plain(option) for option in line.dropped}))
    return Combination(device, peer, model, kind, reason, ended, line.context_full, line.egress, dropped)


def plain(text: str) -> str:
    """Return a text as `logs` prints it."""
    return text if text.isprintable() else printable(text)
