"""The types of options: how a value is read and checked, a description of what it takes, and how it is written.

Pure. They are `Annotated` types of pydantic, whose validators take what a source gives: a text, or a TOML value.
`reader` returns a function that reads one value of a type. `settings` says which options there are.
"""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticKnownError

from proxy.reading.native import NativeOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic_core import ErrorDetails

KIB, MIB, GIB = 2**10, 2**20, 2**30

QUOTE_LIMIT = 200
"""Characters of a wrong value that an error shows: enough to recognise it."""


# --- texts of others --------------------------------------------------------------------------------------------------


def printable(text: str) -> str:
    """Return `text` with everything escaped that could control a terminal:

    control characters, bidi marks, surrogates.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def encodable(value: object) -> bool:
    """Return False for a text with lone surrogates, which UTF-8 can't encode; True for any other value."""
    return not isinstance(value, str) or not any("\ud800" <= character <= "\udfff" for character in value)


def masked(text: str) -> str:
    """Return `text` with stars instead of the user and password in a URL, as in `http://alice:secret@proxy:3128`."""
    return re.sub(r"(?<=://)[^\s\"]+(?=@)", lambda match: "*" * len(match[0]), text)


def quoted(value: object) -> str:
    """Return a value as it was given, in quotes, escaped and cut, because it may contain anything.

    Of a table only that it is one: the values next to a wrong one may be secrets.
    """
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list) and any(isinstance(each, dict) for each in value):
        return "a list of tables"
    return shown(json.dumps(value, ensure_ascii=False, default=str))


def shown(text: str) -> str:
    """Return a text escaped and cut, because even the name of an option may contain anything."""
    text = printable(masked(text))
    return text if len(text) <= QUOTE_LIMIT else f"{text[:QUOTE_LIMIT]}…"


# --- what a type says of itself ---------------------------------------------------------------------------------------


def takes(field: FieldInfo) -> str:
    """Return what a field takes, in words: its title, or its bounds."""
    if field.title:
        return field.title
    found = {type(each): each for each in field.metadata}
    write = found[PlainSerializer].func
    return f"{write(found[Ge].ge)} to {write(found[Le].le)}"


def said(fault: ErrorDetails, field: FieldInfo) -> str:
    """Return the fault of a field's value, as the end of a sentence that begins with the value."""
    if fault["type"] == "value_error":
        text = printable(masked(str(fault["ctx"]["error"])))  # which may quote the value, with the remedy behind it
        return text if len(text) <= 3 * QUOTE_LIMIT else f"{text[:QUOTE_LIMIT]}…{text[-2 * QUOTE_LIMIT :]}"
    wrong = "is out of range:" if fault["type"] in {"greater_than_equal", "less_than_equal"} else "is not"
    return f"{wrong} {takes(field)}"


def reader(kind: Any) -> Callable[[object], Any]:
    """Return a function that reads a value of a type; its ValueError goes on after the value."""
    field, adapter = FieldInfo.from_annotation(kind), TypeAdapter(kind)

    def read(given: object) -> Any:
        try:
            return adapter.validate_python(given)
        except ValidationError as error:
            raise ValueError(said(error.errors()[0], field)) from None

    return read


# --- numbers, switches, words -----------------------------------------------------------------------------------------


def _text(given: object) -> str:
    """Return a scalar as text. A list, a table or a date has none, and matches nothing."""
    return str(given).strip() if isinstance(given, str | int | float) else ""


def _number(noun: str, units: Mapping[str, int], plain: str = "") -> tuple[BeforeValidator, PlainSerializer]:
    """Return what reads and writes a number with one of `units`, largest first; `plain` is a bare number's unit.

    A number that is counted in units of 1 has no fraction.
    """
    fraction = r"(?:\.\d{1,9})?" if plain else ""
    form = re.compile(rf"(-?\d{{1,18}}{fraction}) ?({'|'.join(units)}|)", re.ASCII)

    def read(given: object) -> float:
        match = form.fullmatch(_text(given))
        if not match:
            raise ValueError(f"is not {noun}")
        return (float(match[1]) if plain else int(match[1])) * units.get(match[2], 1)

    def write(value: float) -> str:
        unit = next((unit for unit, size in units.items() if value and not value % size), plain)
        return f"{value / units.get(unit, 1):.15g}{unit}"

    return BeforeValidator(read), PlainSerializer(write, when_used="json")


_SIZE = "a size: bytes, or with a unit as in 64KiB, 64MiB or 1GiB"
_DURATION = "a duration: seconds, or with a unit as in 10s, 5m or 1h"
_AGE = "a duration: seconds, or with a unit as in 90s, 30m, 2h or 7d"

Count = Annotated[int, *_number("a whole number", {})]
Size = Annotated[int, *_number(_SIZE, {"GiB": GIB, "MiB": MIB, "KiB": KIB})]
Duration = Annotated[float, *_number(_DURATION, {"h": 3600, "m": 60, "s": 1}, "s")]
Age = Annotated[float, *_number(_AGE, {"d": 86400, "h": 3600, "m": 60, "s": 1}, "s")]

_WORD = BeforeValidator(lambda given: _text(given).lower())

_LOWER = PlainSerializer(lambda value: str(value).lower(), when_used="json")
Switch = Annotated[bool, _WORD, _LOWER, Field(title="true or false")]
Level = Annotated[Literal["debug", "info", "warning", "error"], _WORD, Field(title="debug, info, warning or error")]
Native = Annotated[NativeOptions, _WORD, Field(title="drop, refuse or pass")]


def _auto_or_count(given: object) -> int | None:
    """Return a count from 1 to 1024, or None for `auto`."""
    text = _text(given).lower()
    if text == "auto":
        return None
    if not re.fullmatch("[0-9]{1,4}", text) or not 1 <= int(text) <= 1024:
        raise ValueError("is not 1 to 1024, or auto")
    return int(text)


_AUTO = PlainSerializer(lambda value: "auto" if value is None else str(value), when_used="json")
AutoCount = Annotated[int | None, BeforeValidator(_auto_or_count), _AUTO, Field(title="1 to 1024, or auto")]


# --- paths, lists, tables ---------------------------------------------------------------------------------------------


def path(given: object) -> str:
    """Return an absolute path:

    `~` is the home folder, and a relative path starts at the folder that the command runs in.
    """
    if not isinstance(given, str) or not given.strip() or "\0" in given or given == "-":
        raise PydanticKnownError("string_type")
    return os.path.abspath(os.path.expanduser(given))


def _log(dash: str | None, meaning: str) -> tuple[BeforeValidator, Any]:
    """Return what reads a path, or `-` as `dash`."""
    return BeforeValidator(lambda given: dash if given == "-" else path(given)), Field(
        title=f"a path, or `-` for {meaning}"
    )


File = Annotated[str, BeforeValidator(path), Field(title="a path")]
Output = Annotated[str, *_log("-", "standard output")]
Errors = Annotated[
    str | None, *_log(None, "standard error"), PlainSerializer(lambda path: path or "-", when_used="json")
]


def _entries(given: object) -> tuple[str, ...]:
    """Return the entries of a list, each once; a text separates them with commas."""
    entries = given.split(",") if isinstance(given, str) else given
    if not isinstance(entries, list | tuple) or not all(isinstance(entry, str) for entry in entries):
        raise ValueError("is not a list of strings")
    return tuple(dict.fromkeys(entry.strip() for entry in entries if entry.strip()))


Texts = Annotated[tuple[str, ...], BeforeValidator(_entries), PlainSerializer(", ".join, when_used="json")]


def each(check: Callable[[str], str | None]) -> AfterValidator:
    """Return a validator of a list that raises ValueError with every fault that `check` finds in an entry."""

    def judge(entries: tuple[str, ...]) -> tuple[str, ...]:
        if faults := [found for entry in entries if (found := check(entry))]:
            raise ValueError("; ".join(faults))
        return entries

    return AfterValidator(judge)


_OURS = frozenset({"HOME", "OLLAMA_HOST", "OLLAMA_NO_CLOUD"})


def _pairs(given: object) -> tuple[tuple[str, str], ...]:
    """Return a TOML table of environment variables as pairs; raise ValueError for one that only the proxy may set."""
    if not isinstance(given, dict | tuple):
        raise PydanticKnownError("dict_type")
    pairs = dict(given).items()
    for name, value in pairs:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name, re.ASCII):
            raise ValueError(f"has {quoted(name)}, which is not a valid name of a variable")
        if name in _OURS:
            raise ValueError(f"has {name}, which only the proxy may set")
        if not isinstance(value, str | int | float):
            kind = "a list" if isinstance(value, list) else "a table" if isinstance(value, dict) else "a date or time"
            raise ValueError(f"has {kind} for {name}; a value is a string, a number or a boolean")
        if "\0" in str(value) or not encodable(value):
            raise ValueError(f"has a string for {name} that no variable can hold")
    return tuple((name, str(value).lower() if isinstance(value, bool) else str(value)) for name, value in pairs)


def _table(pairs: tuple[tuple[str, str], ...]) -> str:
    entries = ", ".join(f"{name} = {json.dumps(masked(value))}" for name, value in pairs)
    return f"{{ {entries} }}" if entries else ""


_PAIRS = (BeforeValidator(_pairs), PlainSerializer(_table, when_used="json"))
Variables = Annotated[
    tuple[tuple[str, str], ...], *_PAIRS, Field(title="a table whose values are strings, numbers or booleans")
]
