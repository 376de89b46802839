"""How the value of an option is read, judged by itself, and shown: sizes, durations, lists, paths.

Pure. A kind is called with what a source gave (text, or what TOML makes of it) and returns the value; a ValueError says
what is wrong with it, as the end of a sentence that begins with the value. `settings` says which options there are.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

KIB, MIB, GIB = 2**10, 2**20, 2**30

QUOTE_LIMIT = 200
"""Characters of a wrong value that are shown: enough to recognise it."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What is taken, in words for help and docs; how it is read; how it is shown, so that reading it gives it back."""

    takes: str
    read: Callable[[object], Any]
    show: Callable[[Any], str] = str

    def __call__(self, given: object) -> Any:
        """Return the value that `given` means."""
        return self.read(given)


def printable(text: str) -> str:
    """Return `text` with all that could steer a terminal escaped: control characters, bidi marks, lone surrogates."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def encodable(value: object) -> bool:
    """Return whether a value is anything but a text with lone surrogates, which no UTF-8 stands for."""
    return not isinstance(value, str) or not any("\ud800" <= character <= "\udfff" for character in value)


def quoted(value: object) -> str:
    """Return a value as it was given, in quotes, escaped and cut: it may hold anything."""
    return shown(json.dumps(value, ensure_ascii=False, default=str))


def shown(text: str) -> str:
    """Return a text escaped and cut: the name of an option may hold anything too."""
    text = printable(text)
    return text if len(text) <= QUOTE_LIMIT else f"{text[:QUOTE_LIMIT]}…"


def _text(given: object) -> str:
    """Return a scalar as text; a list, a table or a date has none and matches nothing."""
    return str(given).strip() if isinstance(given, str | int | float) else ""


def _quantity(least: float, most: float, units: dict[str, int], noun: str, *, fractions: bool) -> Kind:
    """Return the kind of a number from `least` to `most`, whose `units` come largest first."""

    def read(given: object) -> float:
        match = re.fullmatch(r"(-?\d{1,18})(\.\d{1,9})? ?([A-Za-z]*)", _text(given), re.ASCII)
        if not match or match[3] not in {"", *units} or (match[2] and not fractions):
            raise ValueError(f"is not {noun}")
        value = (float(match[1] + (match[2] or "")) if fractions else int(match[1])) * units.get(match[3], 1)
        if not least <= value <= most:
            raise ValueError(f"is out of range: {show(least)} to {show(most)}")
        return value

    def show(value: float) -> str:
        unit = next((unit for unit, size in units.items() if value and not value % size), "s" if fractions else "")
        return f"{value / units.get(unit, 1):.15g}{unit}"

    return Kind(f"{show(least)} to {show(most)}", read, show)


def number(least: int, most: int) -> Kind:
    """Return the kind of a whole number."""
    return _quantity(least, most, {}, "a whole number", fractions=False)


def size(least: int, most: int) -> Kind:
    """Return the kind of a number of octets."""
    noun = "a size: octets, or with a unit as in 64KiB, 64MiB or 1GiB"
    return _quantity(least, most, {"GiB": GIB, "MiB": MIB, "KiB": KIB}, noun, fractions=False)


def duration(least: float, most: float, *, days: bool = False) -> Kind:
    """Return the kind of a number of seconds, which may have a fraction; `days` may be its unit, too."""
    units = {"h": 3600, "m": 60, "s": 1}
    if days:
        noun = "a duration: seconds, or with a unit as in 90s, 30m, 2h or 7d"
        return _quantity(least, most, {"d": 86400, **units}, noun, fractions=True)
    return _quantity(least, most, units, "a duration: seconds, or with a unit as in 10s, 5m or 1h", fractions=True)


def _switch(given: object) -> bool:
    word = _text(given).lower()
    if word not in {"true", "yes", "on", "1", "false", "no", "off", "0"}:
        raise ValueError("is neither true nor false")
    return word in {"true", "yes", "on", "1"}


SWITCH = Kind("true or false", _switch, lambda value: str(value).lower())


def choice(*words: str) -> Kind:
    """Return the kind of one of `words`, in any letter case."""
    takes = f"{', '.join(words[:-1])} or {words[-1]}"

    def read(given: object) -> str:
        word = _text(given).lower()
        if word not in words:
            raise ValueError(f"is none of {takes}")
        return word

    return Kind(takes, read)


def file(dash: str = "", *, dash_value: str | None = "-") -> Kind:
    """Return the kind of a path; if `dash` says what `-` means, that is taken too and read as `dash_value`.

    `~` is the home folder. A relative path starts at the folder that the command runs in, and is kept absolute.
    """
    takes = f"a path, or `-` for {dash}" if dash else "a path"

    def read(given: object) -> str | None:
        if given == "-" and dash:
            return dash_value
        if not isinstance(given, str) or not given.strip() or "\0" in given or given == "-":
            raise ValueError(f"is not {takes}")
        return os.path.abspath(os.path.expanduser(given))

    return Kind(takes, read, lambda value: "-" if value is None else str(value))


def several(takes: str, check: Callable[[tuple[str, ...]], tuple[str, ...]]) -> Kind:
    """Return the kind of a list: commas in a text, an array in TOML; `check` judges its entries, each there once."""

    def read(given: object) -> tuple[str, ...]:
        entries = given.split(",") if isinstance(given, str) else given
        if not isinstance(entries, list | tuple) or not all(isinstance(entry, str) for entry in entries):
            raise ValueError("is not a list of texts")
        return check(tuple(dict.fromkeys(entry.strip() for entry in entries if entry.strip())))

    return Kind(takes, read, ", ".join)


def variables(*ours: str) -> Kind:
    """Return the kind of a TOML table of environment variables, read as pairs; `ours` are names that it can't set."""

    def read(given: object) -> tuple[tuple[str, str], ...]:
        if not isinstance(given, dict | tuple):
            raise ValueError(f"is not {takes}")
        pairs = dict(given).items()
        for name, value in pairs:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name, re.ASCII):
                raise ValueError(f"has {quoted(name)}, which is no name of a variable")
            if name in ours:
                raise ValueError(f"has {name}, which is the proxy's to set")
            if not isinstance(value, str | int | float) or "\0" in str(value) or not encodable(value):
                raise ValueError(f"has no text or number for {name}")
        return tuple((name, str(value).lower() if isinstance(value, bool) else str(value)) for name, value in pairs)

    takes = "a table of names and texts or numbers"

    def show(pairs: tuple[tuple[str, str], ...]) -> str:
        entries = ", ".join(f"{name} = {json.dumps(value)}" for name, value in pairs)
        return f"{{ {entries} }}" if entries else ""

    return Kind(takes, read, show)


def each(check: Callable[[str], str | None]) -> Callable[[tuple[str, ...]], tuple[str, ...]]:
    """Return a check of a list that raises ValueError with every fault that `check` finds in an entry."""

    def judge(entries: tuple[str, ...]) -> tuple[str, ...]:
        if faults := [found for entry in entries if (found := check(entry))]:
            raise ValueError("; ".join(faults))
        return entries

    return judge
