"""What one connection has worked out for the heads it carried, for heads that differ from those in nothing that counts.

An SDK sends each request of a conversation with the same field lines but for a length, an id or a retry counter, and
Ollama answers all of them with the same lines but for Date and length. So a head is compared line by line with those
that the same connection carried before. Where only values differ that decide nothing, what follows from it needs no
parser, no gate and no forwarding rules: only the lines that differ are put into what was worked out before.

Of real traffic (the openai and anthropic SDKs, ten chats of different lengths on one connection) it spares the parser
9 of 10 request heads and as many answer heads; `tests/test_known.py` counts. A first request is always parsed.

Nothing here outlives its connection, and no connection knows what another one carried.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Generic, TypeVar

from proxy.failures import Malformed
from proxy.forwarding import last_part, request_parts, response_parts
from proxy.gate import decide
from proxy.heads import READ_FIELDS, RequestHead

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.gate import Policy, Verdict
    from proxy.heads import FieldLines

KNOWN_HEADS = 8
"""Heads that a connection keeps: one of each kind of request. The one that came first goes first."""

KNOWN_LENGTH = 4096
"""Bytes of a head that is kept."""

# A value as any parser reads it: visible, no space at its ends, nothing that could end a line.
_PLAIN = re.compile(rb"[!-~](?:[ -~]*[!-~])?").fullmatch
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,14}").fullmatch

# Of a request, what nobody decides by: any field but those that we read, or aiohttp does.
_DECIDING = READ_FIELDS - {b"content-length", b"user-agent", b"x-request-id"} | {b"sec-websocket-key1"}
_VARYING_IN_ANSWERS = frozenset({b"date", b"content-length"})

_NONE_DIFFERS: dict[int, bytes] = {}

_STREAMS = (b"text/event-stream", b"application/x-ndjson")

Meaning = TypeVar("Meaning")
Line = tuple[bytes, "Callable[[bytes], object]"] | None
"""What a line may be instead: its name and colon, and what its value must match. None: nothing else."""


class Heads(Generic[Meaning]):
    """The heads that one connection has carried, each with its meaning."""

    __slots__ = ("_heads", "_may_vary", "found", "missed")

    def __init__(self, may_vary: Callable[[bytes], bool]) -> None:
        """Let those fields differ whose lower-cased names `may_vary` returns True for."""
        self._heads: list[_Head[Meaning]] = []
        self._may_vary = may_vary
        self.found = 0
        self.missed = 0

    def __repr__(self) -> str:
        return f"<Heads {len(self._heads)} known, {self.found} found, {self.missed} missed>"

    def find(self, octets: bytes) -> tuple[Meaning, dict[int, bytes]] | None:
        """Return the meaning of a head like `octets`, and which field lines have which other values; None: unknown."""
        if self._heads:
            lines = octets.split(b"\r\n")
            for known in self._heads:
                if lines == known.lines:
                    self.found += 1
                    return known.meaning, _NONE_DIFFERS
                if len(lines) == len(known.lines) and lines[0] == known.lines[0]:
                    values = known.differences(lines, self._may_vary)
                    if values is not None:
                        self.found += 1
                        return known.meaning, values
        self.missed += 1
        return None

    def learn(self, octets: bytes, meaning: Meaning) -> None:
        """Keep `meaning` for heads like `octets`, which a parser has read: its lines are the head's fields."""
        if len(octets) <= KNOWN_LENGTH:
            self._heads.insert(0, _Head(octets.split(b"\r\n"), meaning))
            del self._heads[KNOWN_HEADS:]


class _Head(Generic[Meaning]):
    """A head that was carried. What its lines may be instead is worked out for the first head that differs from it."""

    __slots__ = ("_free", "lines", "meaning")

    def __init__(self, lines: list[bytes], meaning: Meaning) -> None:
        self.lines = lines
        self.meaning = meaning
        self._free: dict[int, Line] = {}  # by the place of the line

    def differences(self, lines: list[bytes], may_vary: Callable[[bytes], bool]) -> dict[int, bytes] | None:
        """Return the values that differ by the place of their field line; None where anything else differs."""
        known, free, values = self.lines, self._free, {}
        for at, line in enumerate(lines):
            if line != known[at]:
                if at not in free:
                    free[at] = _line(known[at], may_vary)
                may_be = free[at]
                if may_be is None or not line.startswith(may_be[0]):
                    return None
                value = line[len(may_be[0]) :]
                if not may_be[1](value):
                    return None
                values[at - 1] = value
        return values


def _line(line: bytes, may_vary: Callable[[bytes], bool]) -> Line:
    """Return what may stand in place of `line`."""
    name, colon, value = line.partition(b": ")
    lowered = name.lower()
    may_be = _LENGTH if lowered == b"content-length" else _PLAIN
    # Its own value, too: by one that isn't plain, the gate may decide otherwise than by those that are.
    varies = bool(colon) and b":" not in name and may_vary(lowered) and may_be(value)
    return (name + colon, may_be) if varies else None


# --- requests ---------------------------------------------------------------------------------------------------------


class Request:
    """What one request's head says, and what it means for the connection. A value."""

    __slots__ = ("head", "known", "last", "length", "persistent", "values")

    def __init__(self, head: RequestHead, *, last: bool, persistent: bool) -> None:
        self.head = head
        self.last = last  # the client has said that it sends no other
        self.persistent = persistent  # another may follow it
        length = head.read.get(b"content-length", b"0")
        self.length = int(length) if length.isdigit() and len(length) < 16 else -1  # bytes of content that it announces
        self.known: Known | None = None  # what a head like this one has led to before
        self.values: dict[int, bytes] = {}  # the field lines in which it differs from that


def request_heads() -> Heads[Known]:
    """Return what a client's connection knows of requests: nothing yet."""
    return Heads(lambda name: name not in _DECIDING)


class Known:
    """What a request led to: its verdict, and its head as it goes upstream."""

    __slots__ = ("_forwarded", "_parts", "_policy", "_request", "_target", "_verdict")

    def __init__(self, request: Request) -> None:
        self._request = request
        self._policy: Policy | None = None
        self._verdict: Verdict
        self._target: object = None
        self._parts: list[bytes]
        self._forwarded: bytes

    def like(self, values: dict[int, bytes]) -> Request:
        """Return the request that differs from this one in `values`."""
        before = self._request
        request = Request.__new__(Request)
        request.head = head = before.head.with_values(values) if values else before.head
        request.last, request.persistent, request.length = before.last, before.persistent, before.length
        request.known, request.values = self, values
        if values and before.length >= 0 and b"content-length" in head.read:
            request.length = int(head.read[b"content-length"])
        return request

    def verdict(self, request: Request, policy: Policy) -> Verdict:
        """Return what the gate says to `request`: the same as before, but for its length."""
        if request.length > policy.max_body:
            return decide(request.head, policy)
        if self._policy is not policy:
            self._policy, self._verdict = policy, decide(request.head, policy)
        return self._verdict

    def forwarded(self, request: Request, target: object, authority: bytes, *, forward_credentials: bool) -> bytes:
        """Return the head of `request` for Ollama: the one before, with what differs put in."""
        if self._target is not target:
            parts = request_parts(self._request.head, authority, forward_credentials=forward_credentials)
            self._target, self._parts, self._forwarded = target, parts, b"".join(parts)
        if not request.values:
            return self._forwarded
        parts = self._parts.copy()
        fields = request.head.fields
        for at, value in request.values.items():
            if parts[at + 1]:
                parts[at + 1] = b"\r\n%b: %b" % (fields[at][0], value)
        parts[-1] = last_part(request.head)
        return b"".join(parts)


# --- answers ----------------------------------------------------------------------------------------------------------


class ResponseHead:
    """A final response's status and header section, and how its content is framed. A value."""

    __slots__ = ("chunked", "encoded", "fields", "length", "parts", "status", "streams")

    def __init__(
        self,
        status: int,
        fields: FieldLines,
        length: int | None,
        *,
        chunked: bool = False,
        streams: bool = False,
        encoded: bool = False,
    ) -> None:
        self.status = status
        self.fields = fields
        self.length = length  # bytes of content when a Content-Length tells; 0 when there is none by definition
        self.chunked = chunked
        self.streams = streams  # the content is events, or NDJSON
        self.encoded = encoded  # a Content-Encoding is present: the content can't be read in passing
        self.parts = response_parts(status, fields)  # what goes downstream of it

    @classmethod
    def of(cls, status: int, version: str, fields: FieldLines) -> ResponseHead:
        """Return what a parser has read, judged: Malformed where it isn't HTTP/1, or two parsers could differ."""
        if version not in ("1.1", "1.0") or not 200 <= status <= 599:
            raise Malformed("not an HTTP/1 response")
        length: int | None = None
        codings: list[bytes] = []
        streams = encoded = False
        for name, value in fields:
            lowered = name.lower()
            if lowered == b"content-length":
                length = int(value)
            elif lowered == b"transfer-encoding":
                codings.append(value.lower())
            elif lowered == b"content-type":
                streams = value.lower().startswith(_STREAMS)
            elif lowered == b"content-encoding":
                encoded = True
        if codings and (codings != [b"chunked"] or length is not None or version == "1.0"):
            raise Malformed("a transfer-coding other than chunked")
        if status == 204:
            length = 0
        return cls(status, fields, length, chunked=bool(codings), streams=streams, encoded=encoded)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ResponseHead) and all(
            getattr(self, name) == getattr(other, name) for name in self.__slots__
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def forwarded(self) -> bytes:
        """What goes downstream of it, before our own lines."""
        return b"".join(self.parts)

    def like(self, values: dict[int, bytes]) -> ResponseHead:
        """Return the head that differs from this one in the values of Date and Content-Length, by their places."""
        if not values:
            return self
        head = ResponseHead.__new__(ResponseHead)
        head.status, head.length, head.chunked = self.status, self.length, self.chunked
        head.streams, head.encoded = self.streams, self.encoded
        head.parts = parts = self.parts.copy()
        fields = list(self.fields)
        for at, value in values.items():
            name = fields[at][0]
            fields[at] = (name, value)
            if parts[at + 1]:
                parts[at + 1] = b"\r\n%b: %b" % (name, value)
            if name.lower() == b"content-length":
                head.length = int(value)
        head.fields = tuple(fields)
        return head


def response_heads() -> Heads[ResponseHead]:
    """Return what a connection to Ollama knows of answers: nothing yet."""
    return Heads(_VARYING_IN_ANSWERS.__contains__)
