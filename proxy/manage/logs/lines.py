"""Turn a line of a log into what is shown: which lines are wanted, their cells, and how these fit the width.

Pure. It relies on nothing in a record: a key may be absent or of another type, and texts may contain anything.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.cells import cell_len, set_cell_size

from proxy.settings.kinds import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Record = Mapping[str, Any]

LEAST_TOKENS = 10
"""An answer's speed is shown from so many tokens on, because its first token came before the measured time."""

LEVELS = {"error": "red", "warning": "yellow", "info": "green", "debug": "dim"}
"""Level of a diagnostic -> how it is shown."""

GAP = "bold magenta"
"""How it is shown that lines are missing."""


# --- which lines ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which lines of the access log are asked for; an empty criterion doesn't matter."""

    since: str = ""  # as lines have it: UTC, RFC 3339
    device: str = ""  # its name, or that of its user, or its address
    model: str = ""  # its tag may be left out
    refused: bool = False
    gaps: bool = True  # with the lines that say that lines are missing, which have neither device nor model

    def __call__(self, record: Record) -> bool:
        """Return whether a line is wanted."""
        if self.since and text(record, "time") < self.since:
            return False
        if "audit_gap" in record:
            return self.gaps
        if self.refused and record.get("verdict") != "refused":
            return False
        if self.device and not _is_of(record, self.device.lower()):
            return False
        return not self.model or _is_model(text(record, "model").lower(), self.model.lower())


def _is_of(record: Record, name: str) -> bool:
    """Return whether a line is of the device or user `name`; a device's may be said without that of its tailnet."""
    device = text(record, "device").lower()
    whole = {device, device.partition(".")[0], text(record, "user").lower(), text(record, "peer").lower()}
    return name.rstrip(".") in whole - {""}


def _is_model(model: str, name: str) -> bool:
    """Return whether `name` means `model`: any tag of it if it has none itself; `latest` is what no tag means."""
    return name in {model, model.removesuffix(":latest"), model.partition(":")[0], f"{model}:latest"} - {""}


# --- what a line shows ------------------------------------------------------------------------------------------------


def text(record: Record, key: str) -> str:
    """Return a value that should be a text, fit to be printed; an absent one, or another than a scalar, is empty."""
    value = record.get(key)
    if not isinstance(value, str):
        return str(value) if isinstance(value, int | float) else ""
    return value if value.isprintable() else printable(value)


def number(record: Record, key: str) -> float | None:
    """Return a value that should be a number."""
    value = record.get(key)
    return value if type(value) in {int, float} else None


def first_token(record: Record) -> float | None:
    """Return the milliseconds to the first token. Only of a stream: another answer begins when all of it is there."""
    return number(record, "first_byte_ms") if record.get("stream") is True else None


def speed(record: Record) -> float | None:
    """Return tokens a second, from the first one to the end of the answer; None if that can't be known."""
    if record.get("stream") is not True:
        return None
    return rate(*(number(record, key) for key in ("tokens_out", "first_byte_ms", "total_ms", "events")))


def rate(tokens: float | None, first: float | None, total: float | None, events: float | None) -> float | None:
    """Return tokens a second of a stream, from the first one to its end.

    None if that can't be known: if Ollama reported no tokens, or too few, or held them back, as it does with tool
    calls, and sent them in fewer events than half their number.
    """
    if tokens is None or first is None or total is None:
        return None
    if tokens < LEAST_TOKENS or total <= first or (events or 0) * 2 < tokens:
        return None
    return tokens * 1000 / (total - first)


def device(record: Record) -> str:
    """Return who asked: the device, or its address where its name wasn't known."""
    return text(record, "device") or text(record, "peer")


def failed(record: Record) -> bool:
    """Return whether Ollama or the proxy failed, rather than the client."""
    return text(record, "ended").startswith("upstream/") or (number(record, "status") or 0) >= 500


def cut(record: Record) -> bool:
    """Return whether someone ended it before its end."""
    return text(record, "ended") not in {"", "complete"}


def cancelled(record: Record) -> bool:
    """Return whether the owner ended it."""
    return text(record, "ended") == "cancelled"


def context_full(record: Record) -> bool:
    """Return whether the model's context was full, so that Ollama cut the prompt or the answer."""
    return record.get("context_full") is True


def egress(record: Record) -> bool:
    """Return whether the request may have left the Mac, as the owner allows."""
    return record.get("egress") is True


def dropped(record: Record) -> list[str]:
    """Return the options that the proxy took out of the request."""
    value = record.get("dropped")
    return [printable(each) for each in value if isinstance(each, str)] if isinstance(value, list) else []


def style(record: Record) -> str:
    """Return how a line of the access log is shown."""
    if record.get("verdict") == "refused":
        return "red"
    if cut(record) or failed(record) or context_full(record):
        return "yellow"
    if egress(record):
        return "cyan"
    return "dim" if record.get("verdict") in {"redirected", "preflight"} else ""


def note(record: Record) -> str:
    """Return why it was refused, failed or was cut, and what else its owner should know."""
    notes = [text(record, "reason"), text(record, "ended") if cut(record) else ""]
    notes += ["context_full" if context_full(record) else "", "egress" if egress(record) else ""]
    if options := dropped(record):
        notes.append(f"dropped {','.join(options)}")
    return " ".join(filter(None, dict.fromkeys(notes)))


def cells(record: Record) -> dict[str, str]:
    """Return the cells of a line of the access log, by column."""
    date, clock = local(text(record, "time"))
    request = f"{text(record, 'method')} {text(record, 'path')}".strip()
    per = speed(record)
    return {
        "date": date,
        "time": clock,
        "device": device(record),
        "request": request or "(no request)",
        "status": text(record, "status"),
        "model": text(record, "model"),
        "in": text(record, "tokens_in"),
        "out": text(record, "tokens_out"),
        "tok/s": "" if per is None else per_second(per),
        "first": brief(first_token(record)),
        "total": brief(number(record, "total_ms")),
        "ended": note(record),
        "agent": text(record, "user_agent"),
    }


@lru_cache(maxsize=1024)
def local(time: str) -> tuple[str, str]:
    """Return date and time of day, where we are, of a line's `time`; what isn't one is returned as the latter."""
    try:
        return tuple(datetime.fromisoformat(time).astimezone().strftime("%Y-%m-%d %H:%M:%S").split(" "))  # type: ignore[return-value]
    except (ValueError, OverflowError):
        return "", time


def brief(milliseconds: float | None) -> str:
    """Return a time that something took, in at most six characters."""
    if milliseconds is None:
        return ""
    seconds = round(milliseconds / 1000, 1)
    if milliseconds < 999.5:
        return f"{milliseconds:.0f}ms" if milliseconds >= 1 else "<1ms"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def per_second(rate: float) -> str:
    """Return a number of tokens a second."""
    return f"{rate:.1f}" if rate < 99.95 else f"{rate:.0f}"


# --- how it fits ------------------------------------------------------------------------------------------------------


class _Column(NamedTuple):
    least: int
    most: int
    right: bool = False


_COLUMNS = {
    "date": _Column(5, 5),
    "time": _Column(8, 8),
    "device": _Column(8, 16),
    "request": _Column(17, 26),
    "status": _Column(3, 3),
    "model": _Column(9, 24),
    "in": _Column(6, 6, right=True),
    "out": _Column(6, 6, right=True),
    "tok/s": _Column(5, 5, right=True),
    "first": _Column(6, 6, right=True),
    "total": _Column(6, 6, right=True),
    "ended": _Column(18, 30),
    "agent": _Column(12, 40),
}
_LEFT_OUT = ("agent", "ended", "date", "in", "out", "tok/s", "model")  # where there isn't room for all, in this order
_NUMBERS = ("in", "out", "tok/s", "first", "total")


class Grid:
    """The columns of the access log in the `width` there is; None is as much as they like, and nothing is cut.

    Lines are printed as they come. A table of rich's needs all rows first, and 1 ms for each; this takes 12 µs.
    """

    def __init__(self, width: int | None, ellipsis: str = "…") -> None:
        self.width = width
        self._ellipsis = ellipsis
        self._widths = {name: column.most for name, column in _COLUMNS.items()}
        if width is None:
            self._widths["date"] = 10
        else:
            self._fit(width)

    def _fit(self, width: int) -> None:
        """Leave out columns without room, and give the others their part of the rest."""
        left = dict(_COLUMNS)
        for name in _LEFT_OUT:
            if sum(column.least + 1 for column in left.values()) - 1 > width:
                del left[name]
        self._widths = {name: column.least for name, column in left.items()}
        spare = width - sum(self._widths.values()) - len(left) + 1
        while spare > 0 and (growing := [name for name in left if self._widths[name] < left[name].most]):
            for name in growing[:spare]:
                self._widths[name] += 1
                spare -= 1

    def heading(self) -> str:
        """Return the line above the others."""
        titles = {name: "" if name in {"date", "status"} else name for name in _COLUMNS}
        return self._line(titles, self._widths)

    def row(self, cells: Mapping[str, str]) -> str:
        """Return a line. How it ended takes the place of the numbers, if that matters and has no column of its own."""
        if "ended" in self._widths or not cells["ended"]:
            return self._line(cells, self._widths)
        places = {name: width for name, width in self._widths.items() if name not in _NUMBERS}
        places["ended"] = max(1, (self.width or 0) - sum(places.values()) - len(places))
        return self._line(cells, places)

    def _line(self, cells: Mapping[str, str], widths: Mapping[str, int]) -> str:
        shown = []
        for name, width in widths.items():
            cell = cells[name][-width:] if name == "date" else cells[name]
            if self.width is not None and not _COLUMNS[name].right:
                cell = self._cut(cell, width)
            room = " " * (width - cell_len(cell))
            shown.append(room + cell if _COLUMNS[name].right else cell + room)
        line = " ".join(shown).rstrip()
        return line if self.width is None else self._cut(line, self.width)

    def _cut(self, cell: str, width: int) -> str:
        if cell_len(cell) <= width:
            return cell
        return set_cell_size(cell, max(0, width - len(self._ellipsis))) + self._ellipsis


def gap(record: Record) -> str:
    """Return the text that is shown for missing lines."""
    date, clock = local(text(record, "time"))
    return f"{date} {clock}  {text(record, 'audit_gap')} lines are missing here: the log could not be written".strip()


# --- diagnostics ------------------------------------------------------------------------------------------------------


def diagnostic(record: Record, paint: Callable[[str, str], str]) -> Iterator[str]:
    """Yield the lines that show a diagnostic: time, level, event and fields, and its hint below; `paint` colours."""
    level = text(record, "level")
    fields = [
        f"{printable(name)}={_quoted(value)}"
        for name, value in record.items()
        if name not in {"time", "level", "event", "hint"}
    ]
    when = " ".join(local(text(record, "time"))).strip()
    shown = (when, paint(f"{level:<7}", LEVELS.get(level, "")), paint(text(record, "event"), "bold"), *fields)
    yield " ".join(shown)
    if hint := text(record, "hint"):
        yield f"{' ' * len(when)} hint: {hint}"


def _quoted(value: object) -> str:
    """Return a value, in quotes where a reader couldn't see its borders."""
    bare = isinstance(value, str) and value and not set(value) & set(' "=\\')
    return printable(str(value) if bare else json.dumps(value, ensure_ascii=False))
