"""Reuse what a connection has worked out for one head when a later head differs only in a length, an id or a date.

An SDK sends each request of a conversation with the same field lines but for a length, an id or a retry counter, and
Ollama answers all of them with the same lines but for Date and length. So those values are cut out of each head that a
parser has read. A later head on the same connection that has the same constant pieces needs no parser, gate or
forwarding rules: its values are put into what was worked out before.

With real traffic (the openai and anthropic SDKs, ten chats of different lengths on one connection), 9 of 10 request
heads and as many response heads need no parser; `tests/exchange/message/test_known_heads.py` counts them. A first
request is always parsed.

Nothing here outlives its connection, and no connection knows what another one carried.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, TypeVar

from proxy.exchange.message.failures import Malformed
from proxy.exchange.message.forwarding import response_head
from proxy.policy.gate import decide
from proxy.policy.heads import RequestHead

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.policy.gate import Policy, Verdict
    from proxy.policy.heads import FieldLines

KNOWN_HEADS = 16
"""Heads that a connection keeps, one for each kind of request. The oldest is dropped first."""

KNOWN_LENGTH = 4096
"""The longest head that is kept, in bytes."""

_VISIBLE = rb"[!-~](?:[ -~]*[!-~])?"  # read alike by any parser: no space at its ends, nothing that could end a line
_VALUE = re.compile(_VISIBLE).fullmatch

Pieces = list[bytes]
"""A cut head: constant, value, constant, … Each constant before a value ends with the field's name and a colon."""


def _cut(*names: bytes) -> Callable[[bytes], Pieces]:
    """Return a function that cuts the values of these fields out of a head, where any parser reads them alike."""
    lines = re.compile(rb"\r\n(?:%b): (%b)(?=\r\n|\Z)" % (b"|".join(names), _VISIBLE), re.IGNORECASE)

    def cut(octets: bytes) -> Pieces:
        pieces, at = [], 0
        for line in lines.finditer(octets):
            pieces += [octets[at : line.start(1)], line[1]]
            at = line.end()
        return [*pieces, octets[at:]]

    return cut


# Of a request: what differs from one to the next of the same program, and nobody decides by but for the length.
_cut_request = _cut(b"content-length", b"x-request-id", b"idempotency-key", b"traceparent", b"x-stainless-retry-count")
_cut_answer = _cut(b"date", b"content-length")

_STREAMS = (b"text/event-stream", b"application/x-ndjson")

Value = TypeVar("Value")


def _names(pieces: Pieces) -> list[bytes]:
    """Return the names, lower-cased, of the fields whose values are cut out, in order."""
    return [constant[: -len(b": ")].rpartition(b"\n")[2].lower() for constant in pieces[:-1:2]]


def _is_length(value: bytes) -> bool:
    """Return whether any parser reads a Content-Length alike: digits without a leading zero, and not too many."""
    return value.isdigit() and len(value) < 16 and (value >= b"1" or value == b"0")


class Known(ABC, Generic[Value]):
    """A head with its results, which hold for each head that differs from it only in the values cut out."""

    __slots__ = ("_constants", "_last", "_length_at", "_names")

    def __init__(self, pieces: Pieces) -> None:
        self._names = _names(pieces)
        self._length_at = self._place(b"content-length")
        *self._constants, self._last = pieces[::2]

    def values_in(self, octets: bytes) -> list[bytes] | None:
        """Return the values in a head that is like this one; None if it isn't.

        It looks at no other line. With ten different heads on a connection, finding one takes 25,000 instructions
        instead of the 36,000 of cutting it first (CPython 3.13).
        """
        values, at = [], 0
        for constant in self._constants:
            if not octets.startswith(constant, at):
                return None
            at += len(constant)
            end = octets.find(b"\r\n", at)
            values.append(octets[at:] if end < 0 else octets[at:end])
            at = len(octets) if end < 0 else end
        if octets[at:] != self._last:
            return None
        for value in values:
            if not value.isdigit() and not _VALUE(value):  # a regular expression takes 2,500 instructions
                return None
        return values if self._length_at is None or _is_length(values[self._length_at]) else None

    @abstractmethod
    def like(self, values: list[bytes]) -> Value:
        """Return the head that has these values."""

    def _place(self, name: bytes) -> int | None:
        """Return where among the values that of a field is, given its lower-cased `name`; None if it isn't cut out."""
        return self._names.index(name) if name in self._names else None


class Heads(Generic[Value]):
    """The heads that one connection has carried, each with its results."""

    __slots__ = ("_cut", "_known", "_octets", "_value", "found", "missed")

    def __init__(self, cut: Callable[[bytes], Pieces]) -> None:
        """Let those values differ that `cut` cuts out."""
        self._known: dict[tuple[bytes, ...], Known[Value]] = {}  # by what is constant
        self._cut = cut
        self._octets = b""  # the last head that was found
        self._value: Value | None = None  # that head
        self.found = 0
        self.missed = 0

    def __repr__(self) -> str:
        return f"<Heads {len(self._known)} known, {self.found} found, {self.missed} missed>"

    def find(self, octets: bytes) -> Value | None:
        """Return the head in `octets`, if a similar one is known."""
        if octets == self._octets:  # a client that polls sends the same
            self.found += 1
            return self._value
        for known in self._known.values():
            values = known.values_in(octets)
            if values is not None:
                self._octets, self._value = octets, known.like(values)
                self.found += 1
                return self._value
        self.missed += 1
        return None

    def learn(self, octets: bytes, know: Callable[[Pieces], Known[Value]]) -> None:
        """Keep `octets`, which a parser has read, with the results of `know`; not if a varying field is repeated."""
        if len(octets) <= KNOWN_LENGTH:
            pieces, lowered = self._cut(octets), octets.lower()
            if all(lowered.count(b"\r\n%b:" % name) == 1 for name in _names(pieces)):
                self._known[tuple(pieces[::2])] = know(pieces)
                if len(self._known) > KNOWN_HEADS:
                    del self._known[next(iter(self._known))]


class _Template:
    """A head as it is forwarded, into which the values of a similar head are put."""

    __slots__ = ("_forwarded", "_places")

    def __init__(self, forwarded: Pieces, names: list[bytes]) -> None:
        """Take the pieces of the head as it is forwarded, and the names of the values that it will get."""
        self._forwarded = forwarded
        mine = _names(forwarded)
        self._places = [(2 * mine.index(name) + 1, at) for at, name in enumerate(names) if name in mine]

    def filled(self, values: list[bytes]) -> bytes:
        """Return the head as it is forwarded, with these values."""
        forwarded = self._forwarded
        for to, at in self._places:
            forwarded[to] = values[at]
        return b"".join(forwarded)


# --- requests ---------------------------------------------------------------------------------------------------------


class Request:
    """The meaning of one request's head for the connection. A value."""

    __slots__ = ("asked_id", "head", "known", "last", "length", "persistent", "values")

    def __init__(self, head: RequestHead, *, last: bool, persistent: bool) -> None:
        self.head = head  # of a known request, the head of the one before: see `exact_head`
        self.last = last  # the client has said that it sends no other
        self.persistent = persistent  # another may follow it
        length = head.read.get(b"content-length", b"0")
        self.length = int(length) if length.isdigit() and len(length) < 16 else -1  # bytes of content that it announces
        self.asked_id = head.read.get(b"x-request-id")  # the client's own name for it
        self.known: KnownRequest | None = None  # the results for a head like this one
        self.values: list[bytes] = []  # its own, if it is known

    def exact_head(self) -> RequestHead:
        """Return its head with its own values. Costs as much as parsing it."""
        head = self.head
        if self.known is None:
            return head
        lines = self.known.octets(self.values).lstrip(b"\r\n").split(b"\r\n")[1:]
        fields = tuple(
            (name, line[len(name) + 1 :].strip(b" \t")) for (name, _), line in zip(head.fields, lines, strict=True)
        )
        return RequestHead(head.method, head.target, head.version, fields)


def request_heads() -> Heads[Request]:
    """Return the knowledge of a new client connection about requests."""
    return Heads(_cut_request)


class KnownRequest(Known[Request]):
    """The results for a request: its verdict, and its head as it goes upstream."""

    __slots__ = ("_id_at", "_pieces", "_policy", "_request", "_target", "_template", "_verdict")

    def __init__(self, request: Request, pieces: Pieces) -> None:
        """Take a request that the parser has read, and its head in `pieces`."""
        super().__init__(pieces)
        self._request = request
        self._pieces = pieces
        self._id_at = self._place(b"x-request-id")
        self._policy: Policy | None = None
        self._verdict: Verdict
        self._target: object = None
        self._template: _Template

    def like(self, values: list[bytes]) -> Request:
        """Return the request whose head has these values."""
        before, length_at, id_at = self._request, self._length_at, self._id_at
        request = Request.__new__(Request)
        request.length = before.length if length_at is None else int(values[length_at])
        request.head, request.last, request.persistent = before.head, before.last, before.persistent
        request.asked_id = before.asked_id if id_at is None else values[id_at]
        request.known, request.values = self, values
        return request

    def octets(self, values: list[bytes]) -> bytes:
        """Return the head that has these values."""
        pieces = [*self._pieces]
        pieces[1::2] = values
        return b"".join(pieces)

    def verdict(self, request: Request, policy: Policy) -> Verdict:
        """Return the gate's verdict about `request`: the same as before, except for its length."""
        if request.length > policy.max_body:
            return decide(request.exact_head(), policy)
        if self._policy is not policy:
            self._policy, self._verdict = policy, decide(request.exact_head(), policy)
        return self._verdict

    def forwarded(self, request: Request, target: object, work_out: Callable[[RequestHead], bytes]) -> bytes:
        """Return the head of `request` for `target`: the one before, with its own values. `work_out` makes one."""
        if self._target is not target:
            forwarded = _cut_request(work_out(self._request.head).removesuffix(b"\r\n\r\n"))
            forwarded[-1] += b"\r\n\r\n"
            self._target, self._template = target, _Template(forwarded, self._names)
        return self._template.filled(request.values)


# --- answers ----------------------------------------------------------------------------------------------------------


class ResponseHead:
    """A final response's status and header section, and how its content is framed. A value."""

    __slots__ = ("chunked", "encoded", "forwarded", "length", "status", "streams")

    def __init__(
        self,
        status: int,
        forwarded: bytes,
        length: int | None,
        *,
        chunked: bool,
        streams: bool,
        encoded: bool,
    ) -> None:
        self.status = status
        self.length = length  # bytes of content according to a Content-Length; 0 if there is none by definition
        self.chunked = chunked
        self.streams = streams  # the content is events, or NDJSON
        self.encoded = encoded  # a Content-Encoding is present: the content can't be read in passing
        self.forwarded = forwarded  # the part that goes downstream, before our own lines

    @classmethod
    def of(cls, status: int, version: str, fields: FieldLines) -> ResponseHead:
        """Return what a parser has read, checked; raise Malformed if it isn't HTTP/1, or two parsers could differ."""
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
        return cls(
            status, response_head(status, fields), length, chunked=bool(codings), streams=streams, encoded=encoded
        )

    def resized(self, forwarded: bytes, length: int | None) -> ResponseHead:
        """Return the head of a response with other content."""
        return ResponseHead(self.status, forwarded, length, chunked=False, streams=self.streams, encoded=self.encoded)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ResponseHead) and all(
            getattr(self, name) == getattr(other, name) for name in self.__slots__
        )

    __hash__ = None  # type: ignore[assignment]


class KnownAnswer(Known[ResponseHead]):
    """A response's head that can be made from a similar one."""

    __slots__ = ("_head", "_template")

    def __init__(self, head: ResponseHead, pieces: Pieces) -> None:
        """Take a head that the parser has read, and the same in `pieces`."""
        super().__init__(pieces)
        self._head = head
        self._template = _Template(_cut_answer(head.forwarded), self._names)

    def like(self, values: list[bytes]) -> ResponseHead:
        """Return the head that has these values."""
        before, length_at = self._head, self._length_at
        head = ResponseHead.__new__(ResponseHead)
        head.length = before.length if length_at is None else int(values[length_at])
        head.status, head.chunked = before.status, before.chunked
        head.streams, head.encoded = before.streams, before.encoded
        head.forwarded = self._template.filled(values)
        return head


def answer_heads() -> Heads[ResponseHead]:
    """Return the knowledge of a new connection to Ollama about responses."""
    return Heads(_cut_answer)
