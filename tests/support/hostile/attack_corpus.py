"""The attacks of tests/attacks/, read and written out.

`python -m tests.support.hostile.attack_corpus` lists them, and prints the one that is named as FAMILY/ID.
tests/attacks/README.md explains how an entry is written.
"""

from __future__ import annotations

import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

FOLDER = Path(__file__).parent.parent.parent / "attacks"

EVIL = "DELETE /api/delete HTTP/1.1\r\nHost: mac\r\n\r\n"
"""The request that an attack tries to get past: 42 bytes that must never be a request to Ollama."""

# What no byte can be stands for what would be too long to write: characters beyond U+00FF.
_MARK = re.compile("⟦([^⟦⟧]*)⟧")
_REPEAT = re.compile(r"(.+) × ([0-9]+)", re.DOTALL).fullmatch


@dataclass(frozen=True)
class Expected:
    """One answer that is due."""

    status: int
    reason: str | None  # in the access log; None: it was served
    to_head: bool  # it answers HEAD, so it has no content

    @classmethod
    def of(cls, text: str) -> list[Expected]:
        """Read `200`, `403 path_not_served`, `405 method_not_served to HEAD` or `200 × 50`."""
        text, _, count = text.partition(" × ")
        words = text.removesuffix(" to HEAD").split()
        return [cls(int(words[0]), words[1] if words[1:] else None, text.endswith(" to HEAD"))] * int(count or 1)


@dataclass(frozen=True)
class Reached:
    """One request that may reach Ollama."""

    method: str
    target: str
    content: bytes

    @classmethod
    def of(cls, text: str) -> list[Reached]:
        """Read `METHOD TARGET`, or that and the content after a line break, or `METHOD TARGET × 50`."""
        start, _, content = text.partition("\n")
        method, target, *count = octets_of(start).decode("latin-1").replace(" × ", " ").split(" ")
        return [cls(method, target, octets_of(content))] * int(count[0] if count else 1)


@dataclass(frozen=True)
class Outcome:
    """What must come of an attack."""

    answers: tuple[Expected, ...]  # in order, 1xx left out
    reaches: tuple[Reached, ...]  # all that reaches Ollama whole, in order
    then: str  # `closed`: by the proxy; `open`: the next request is served; `waits`: for more of a request
    unfinished: str | None  # the request line that may reach Ollama of a request that never becomes whole


@dataclass(frozen=True)
class Attack:
    """Bytes that a hostile client sends on one connection."""

    family: str
    id: str
    octets: bytes
    why: str
    whole: Outcome  # when they come in one read
    apart: Outcome  # when each comes by itself
    absent: tuple[str, ...]  # field names, in lower case, that must not reach Ollama
    present: tuple[str, ...]  # field lines that must
    elsewhere: tuple[Reached, ...]  # what another proxy may rightly let through
    generated: bool  # one of a systematic family, not written by hand

    @property
    def name(self) -> str:
        """What it is called everywhere."""
        return f"{self.family}/{self.id}"


_OUTCOME = {"answers", "reaches", "then", "unfinished"}
_KEYS = {"octets", "why", "absent", "present", "apart", "elsewhere", *_OUTCOME}


def octets_of(text: str) -> bytes:
    """Return the bytes that `text` stands for: a character each, but for the marks."""
    while "⟦" in text:  # innermost first
        text = _MARK.sub(_written_out, text)
    return text.encode("latin-1")


def _written_out(mark: re.Match[str]) -> str:
    if mark[1] == "EVIL":
        return EVIL
    found = _REPEAT(mark[1])
    if found is None:
        raise ValueError(f"{mark[0]} is no mark")
    return found[1] * int(found[2])


def _outcome(entry: dict[str, Any]) -> Outcome:
    then = entry.get("then", "closed")
    if then not in {"closed", "open", "waits"}:
        raise ValueError(f"then = {then!r}")
    return Outcome(
        tuple(each for text in entry["answers"] for each in Expected.of(text)),
        _reaches(entry.get("reaches", ())),
        then,
        entry.get("unfinished"),
    )


def _reaches(texts: Iterable[str]) -> tuple[Reached, ...]:
    return tuple(each for text in texts for each in Reached.of(text))


def _attack(family: str, name: str, entry: dict[str, Any], *, generated: bool) -> Attack:
    if unknown := entry.keys() - _KEYS:
        raise ValueError(f"{family}/{name}: no key is called {', '.join(sorted(unknown))}")
    apart = entry.get("apart", {})
    if unknown := apart.keys() - _OUTCOME:
        raise ValueError(f"{family}/{name}: apart has no key {', '.join(sorted(unknown))}")
    whole, parted = _outcome(entry), _outcome({**entry, **apart})
    most = max(whole.reaches, parted.reaches, key=len)
    return Attack(
        family,
        name,
        octets_of(entry["octets"]),
        entry["why"],
        whole,
        parted,
        tuple(entry.get("absent", ())),
        tuple(entry.get("present", ())),
        _reaches(entry["elsewhere"]) if "elsewhere" in entry else most,
        generated,
    )


def _spellings(path: str) -> Iterator[tuple[str, str]]:
    """Return every way to write one character of `path` as an escape, and all of it; names and spellings."""
    escapes = {"lower": "%{:02x}", "upper": "%{:02X}", "twice": "%25{:02x}"}
    for case, escape in escapes.items():
        for spot, mark in enumerate(path[1:], 1):
            if case != "upper" or escape.format(ord(mark)) != escapes["lower"].format(ord(mark)):
                yield f"{case}_{spot}", path[:spot] + escape.format(ord(mark)) + path[spot + 1 :]
        yield f"{case}_all", "/" + "".join(escape.format(ord(mark)) for mark in path[1:])


def _entries(given: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the entries that one table of a file stands for, with their ids."""
    entry = {key: value for key, value in given.items() if key not in {"id", "cases", "every_escape_of"}}
    if "every_escape_of" in given:
        for row in given["every_escape_of"]:
            method, path = row.split(" ")
            for name, spelling in _spellings(path):
                octets = entry["octets"].replace("⟦METHOD⟧", method).replace("⟦HERE⟧", spelling)
                yield f"{path.strip('/').replace('/', '_')}_{name}", {**entry, "octets": octets}
    elif "cases" in given:
        for name, here, why, *others in given["cases"]:
            octets = entry["octets"].replace("⟦HERE⟧", here)
            yield name, {**entry, "octets": octets, "why": why, **(others[0] if others else {})}
    else:
        yield given["id"], entry


def load(folder: Path = FOLDER) -> list[Attack]:
    """Return every attack, in the order of the files. ValueError for what is written wrongly."""
    attacks = []
    for path in sorted(folder.glob("*.toml")):
        for table in tomllib.loads(path.read_text("utf-8"))["attack"]:
            generated = "every_escape_of" in table
            attacks += [_attack(path.stem, name, entry, generated=generated) for name, entry in _entries(table)]
    return attacks


def main() -> None:
    """Print all of them, or the bytes of those that are named."""
    for attack in load():
        if attack.name in sys.argv[1:]:
            sys.stdout.buffer.write(attack.octets)
        elif not sys.argv[1:]:
            print(f"{attack.name}\n    {attack.why}\n    {attack.octets[:4000]!r}")


if __name__ == "__main__":
    main()
