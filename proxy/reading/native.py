"""Cuts out of a native request what loads, reloads, unloads or pins a model for everyone. Pure.

Nothing else of the body changes, not a byte: Ollama reads what was judged. So the body is not written again, which
would merge keys that stand twice, and change large numbers.
"""

from __future__ import annotations

import re
from enum import StrEnum

import orjson

from proxy.reading.fields import LOAD_OPTIONS, folded
from proxy.reading.scanner import NOISE, TEXT

_KEEP_ALIVE = frozenset({"keep_alive"})

_BETWEEN = re.compile(rb"[ \t\r\n,]*+")
_MEMBER = re.compile(rb"(?s)(%b)[ \t\r\n]*+:[ \t\r\n]*+" % TEXT)
_PLAIN_VALUE = re.compile(rb"(?s)%b|[-+.0-9A-Za-z]++" % TEXT)

_OPEN_OBJECT, _CLOSE_OBJECT = b"{}"
_OPENING, _CLOSING = frozenset(b"[{"), frozenset(b"]}")


class NativeOptions(StrEnum):
    """What becomes of `keep_alive` and of the `options` that decide how a model is loaded."""

    DROP = "drop"  # the request goes on without them
    REFUSE = "refuse"
    PASS = "pass"  # noqa: S105 - no password


class _Members:
    """The members of one open object: which of them go, and where those begin and end that are to be cut out."""

    __slots__ = ("end", "kept", "names", "start")

    def __init__(self, names: frozenset[str], at: int) -> None:
        self.names = names  # of the members that go
        self.start: int | None = None  # if the last member that was read goes: where it begins, with those before it
        self.end = at  # where the last member ends; behind the opening bracket if there is none
        self.kept = at  # where the last member that stays ends; behind the opening bracket if there is none


class Cutter:
    """Cuts one body, which was read to its end before. Call `run` until it returns the rest."""

    __slots__ = ("_at", "_body", "_depth", "_kept", "_open", "_pieces")

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = body.index(b"{") + 1
        self._depth = 0  # of the containers that are open within a value
        self._open = [_Members(_KEEP_ALIVE, self._at)]  # the request, and its `options` where those are read
        self._pieces: list[bytes] = []
        self._kept = 0  # where what stays, and isn't in the pieces, begins

    def run(self, steps: int) -> bytes | None:
        """Go on for so many steps, about one for each token. Return the body that goes on, or None before its end."""
        for _ in range(steps):
            if self._depth:
                self._within_value()
            elif self._step():
                return b"".join((*self._pieces, self._body[self._kept :]))
        return None

    def _within_value(self) -> None:
        """Read on to the next bracket of a value, and behind it."""
        at = NOISE.match(self._body, self._at).end()  # type: ignore[union-attr]
        self._depth += 1 if self._body[at] in _OPENING else -1
        self._at = at + 1
        if not self._depth:
            self._ended(self._at)

    def _step(self) -> bool:
        """Read one member, or its beginning, or the end of the object. Return whether that was the last one."""
        body, members = self._body, self._open[-1]
        at = _BETWEEN.match(body, self._at).end()  # type: ignore[union-attr]
        if body[at] == _CLOSE_OBJECT:
            self._close()
            self._at = at + 1
            if self._open:
                self._ended(self._at)
            return not self._open
        member = _MEMBER.match(body, at)
        if member is None:
            raise ValueError("the body was not read to its end before")
        name = _name(member[1])
        if name in members.names:
            members.start = at if members.start is None else members.start
        elif members.start is not None:
            self._cut(members.start, at)
            members.start = None
        at = member.end()
        if body[at] in _OPENING:
            if len(self._open) == 1 and name == "options" and body[at] == _OPEN_OBJECT:
                self._open.append(_Members(LOAD_OPTIONS, at + 1))
            else:
                self._depth = 1
            self._at = at + 1
        else:
            self._at = _PLAIN_VALUE.match(body, at).end()  # type: ignore[union-attr]
            self._ended(self._at)
        return False

    def _ended(self, at: int) -> None:
        """Note where the value of a member ends."""
        members = self._open[-1]
        members.end = at
        if members.start is None:
            members.kept = at

    def _close(self) -> None:
        """Cut the last members of an object if they go, with the comma before them."""
        members = self._open.pop()
        if members.start is not None:
            self._cut(members.kept, members.end)

    def _cut(self, start: int, end: int) -> None:
        self._pieces.append(self._body[self._kept : start])
        self._kept = end


def _name(key: bytes) -> str:
    """Return the key that Go takes this one for."""
    try:
        text: str = orjson.loads(key)
    except orjson.JSONDecodeError:  # no name that matters
        return ""
    return folded(text)
