"""Parse the TOML file as people save it: its bytes become a table, or a message with the line and the remedy.

Pure except for `read`. `settings` says which options a file may have, and which file is read.
"""

from __future__ import annotations

import codecs
import difflib
import os
import re
import stat
import tomllib
import unicodedata
from typing import TYPE_CHECKING, Any

from proxy.settings.kinds import masked, printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path

_LINE_LIMIT = 120  # characters of a line in an error

_CURLY = frozenset("“”„‟‘’‚‛«»‹›″′＂＇")
_ENDLESS = "can't be read as TOML: a number in it is too large, or lists are nested too deeply"
_PLAIN_TEXT = "save it as plain text in UTF-8"
_SMART_QUOTES = "write plain ones (TextEdit: Edit > Substitutions, turn off Smart Quotes)"
_WIDE = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # before UTF-16, whose mark begins the same way
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


SIZE_LIMIT = 64 * 1024
"""The largest file in bytes. One with every option and a page of comments has 10 KiB."""

DEPTH_LIMIT = 100
"""The deepest nesting of tables. Python can neither print nor compare some hundreds of levels."""

INTEGER_BITS = 4096
"""The largest integer in bits, because Python refuses to print one of more than 4300 digits."""


class ConfigFileError(ValueError):
    """The file can't be read as TOML; the text gives the reason, as the end of a sentence that begins with the file."""


def read(path: Path | str) -> bytes:
    """Return the bytes of a file; raise OSError if it can't be opened, ConfigFileError if it can't be a settings file.

    A pipe without a writer would block forever, so the file is opened without waiting.
    """
    with open(path, "rb", opener=_without_waiting) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) and found.st_rdev != os.stat(os.devnull).st_rdev:
            raise ConfigFileError("is not a file but a pipe or a device: write the settings to a file")
        octets = file.read(SIZE_LIMIT + 1)
    if len(octets) > SIZE_LIMIT:
        raise ConfigFileError(f"has more than {SIZE_LIMIT // 1024} KiB, as no settings have: name another file")
    return octets


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def parse(octets: bytes) -> dict[str, Any]:
    """Return the table in the file. Accepts a byte order mark and any line ends; raises ConfigFileError."""
    text = _decoded(octets)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigFileError(f"is not TOML: {_located(str(error), text)}") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, or as many brackets
        raise ConfigFileError(_ENDLESS) from None
    if not _bounded(table):
        raise ConfigFileError(_ENDLESS)
    return table


def _bounded(table: dict[str, Any]) -> bool:
    """Return whether no table or list is nested too deeply, and no number is too large, to be shown."""
    level: list[object] = [table]
    for _ in range(DEPTH_LIMIT):
        level = [
            each
            for value in level
            for each in (value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())
        ]
        if any(isinstance(each, int) and each.bit_length() > INTEGER_BITS for each in level):
            return False
    return not level


def take_misplaced(
    table: dict[str, Any], octets: bytes, options: Collection[str], tables: Collection[str]
) -> Iterator[tuple[str, object, str]]:
    """Take values out of the tables in `table` that are meant as options; yield each one's name, value and fault.

    TOML gives everything below a `[table]` to that table. In a table of variables an option would be lost silently.
    """
    for name in [name for name, value in table.items() if isinstance(value, dict)]:
        meant = {key: option for key in table[name] if (option := _option(key, options))}
        if name not in tables:
            message = f"no such table{nearest(name, tables)}"
            if meant:
                message += f"; options belong at the top of the file, above all tables, without [{name}]"
            yield name, table.pop(name), message
            continue
        for key, option in meant.items():
            line = line_of(octets, key, name)
            where = f"is in line {line}, below [{name}]" if line else f"is in [{name}]"
            spelled = "" if key == option else f" as {option}"
            message = f"{where}, so it isn't an option of the proxy: write it above [{name}]{spelled}"
            yield key, table[name].pop(key), message


def nearest(name: str, names: Iterable[str]) -> str:
    """Return a question that names the nearest of `names`, or an empty text if none is near."""
    found = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {found[0]}?" if found else ""


def _option(name: str, options: Collection[str]) -> str:
    """Return the option that a name must mean, spelled as no variable of Ollama is, or an empty text."""
    found = difflib.get_close_matches(name.replace("-", "_").lower(), options, 1, 0.85)
    return found[0] if found and not name.isupper() else ""


def line_of(octets: bytes, name: str, table: str = "") -> int:
    """Return the number of the line that sets `name` in `table`, or above all tables; 0 if that isn't clear.

    If `name` is a table itself, it is the line of its first header.
    """
    inside = not table
    key = re.compile(rf"\s*[\"']?{re.escape(name)}[\"']?\s*=")
    header = re.compile(rf"\s*\[\s*[\"']?{re.escape(table)}[\"']?\s*\]")
    for number, line in enumerate(_decoded(octets).split("\n"), 1):
        inside = bool(table and header.match(line)) if line.lstrip().startswith("[") else inside
        if inside and key.match(line):
            return number
    own = re.compile(rf"\s*\[\[?\s*[\"']?{re.escape(name)}[\"']?\s*\]")
    lines = enumerate(_decoded(octets).split("\n"), 1)
    return 0 if table else next((number for number, line in lines if own.match(line)), 0)


def line_of_rule(octets: bytes, table: str, number: int, name: str = "") -> int:
    """Return the line that sets `name` in the `[[table]]` with this number, or its header's; 0 if that isn't clear."""
    key = re.compile(rf"\s*[\"']?{re.escape(name)}[\"']?\s*=") if name else None
    header = re.compile(rf"\s*\[\[\s*[\"']?{re.escape(table)}[\"']?\s*\]\]")
    count = 0
    for at, line in enumerate(_decoded(octets).split("\n"), 1):
        if header.match(line):
            count += 1
        if count == number and (key or header).match(line):
            return at
    return line_of(octets, table)


def _decoded(octets: bytes) -> str:
    """Return the text of the file, with line feeds as the only line ends."""
    for mark, name in _WIDE:
        if octets.startswith(mark):
            raise ConfigFileError(f"is in {name}: {_PLAIN_TEXT}")
    if octets.startswith(b"{\\rtf"):
        raise ConfigFileError("is a rich text document: save it as plain text (TextEdit: Format > Make Plain Text)")
    if b"\0" in octets:
        if octets.removeprefix(codecs.BOM_UTF8)[:2].count(0) == 1:  # an ASCII character in UTF-16
            raise ConfigFileError(f"is in UTF-16: {_PLAIN_TEXT}")
        raise ConfigFileError(f"has a NUL byte in {_shown(octets, octets.index(0))}: remove it")
    try:
        text = octets.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        whole = error.object if isinstance(error.object, bytes) else octets
        raise ConfigFileError(f"is not UTF-8 in {_shown(whole, error.start)}: {_PLAIN_TEXT}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _shown(octets: bytes, at: int) -> str:
    """Return the number and text of the line with byte `at`, with invalid UTF-8 escaped."""
    before = re.split(rb"\r\n|\r|\n", octets[:at])
    start = at - len(before[-1])
    line = re.split(rb"[\r\n]", octets[start:], maxsplit=1)[0]
    return _quoted(len(before), line.decode(errors="backslashreplace"), at - start)


def _located(message: str, text: str) -> str:
    """Return a message of tomllib's with its line, and with a note about characters that were probably pasted."""
    lines = text.split("\n")
    match = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", message)
    reason = message[: match.start()] if match else message
    if at_end := not (match and match[1]):
        number = max((number for number, line in enumerate(lines, 1) if line.strip()), default=1)
        column = len(lines[number - 1]) + 1
    else:
        number, column = int(match[1]), int(match[2])
    line = lines[number - 1]
    message = f"{reason[:1].lower()}{reason[1:]}, in {_quoted(number, line, column - 1, exactly=True)}"
    if any(character in _CURLY for character in line[:column]):
        return f"{message}: it has curly quotes, {_SMART_QUOTES}"
    if at_end:
        return f"{message}, where the file ends"
    odd = line[column - 1 : column]
    if odd > "\x7f":
        return f"{message}: the character there is U+{ord(odd):04X} {unicodedata.name(odd, '')}; write a plain one"
    return message


def _quoted(number: int, line: str, at: int, *, exactly: bool = False) -> str:
    """Return the number and text of a line, `exactly` with the column; of a long line, only the part around `at`."""
    line = masked(line)
    start = max(0, min(at - _LINE_LIMIT // 2, len(line) - _LINE_LIMIT))
    part = line[start : start + _LINE_LIMIT]
    before, after = "…" if start else "", "…" if start + len(part) < len(line) else ""
    column = f", column {at + 1}" if exactly else ""
    return f"line {number}{column}: `{before}{printable(part.strip())}{after}`"
