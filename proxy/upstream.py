"""One connection to Ollama: requests out, responses in, by RFC 9112 and nothing more lenient.

httptools parses; what it lets through and we must not is refused here. A fault goes to the exchange, never repaired.
"""

from __future__ import annotations

import asyncio
import errno
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, cast

import httptools

from proxy import sockets
from proxy.failures import ClosedEarly, Malformed, OutOfFiles, Unreachable
from proxy.forwarding import response_head
from proxy.patience import within

if TYPE_CHECKING:
    import select

    from proxy.exchange import FieldLines
    from proxy.failures import UpstreamFailure

# Octets of a response head. httptools has no limit, and takes quadratic time for one long value in many pieces.
MAX_HEAD = 128 * 1024
# Interim responses (1xx) before a final one. Ollama sends none.
MAX_INTERIM = 8
# Seconds for which a request that was sent is left alone: an earlier close leaks a connection inside Ollama for good.
GRACE = 0.052
# Response heads that are known by their octets, and the most octets that one of these may have: 1 MiB in all.
KNOWN_LIMIT = 256
KNOWN_LENGTH = 4096

_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search
_STREAMS = (b"text/event-stream", b"application/x-ndjson")


class State(StrEnum):
    """Where a connection stands between two messages."""

    __hash__ = str.__hash__  # Enum's own is a Python function, and the table is consulted four times a request

    IDLE = "idle"
    AWAITING = "awaiting"  # a request is on its way or sent, no response head yet
    CONTENT = "content"  # the response head is there, its content isn't whole
    CLOSED = "closed"


class Event(StrEnum):
    """What moves it: consulted at message borders, not for every read."""

    __hash__ = str.__hash__

    SEND = "send"
    HEAD = "head"
    END = "end"
    CLOSE = "close"


# A member read through its class costs 60 ns on Python 3.11.
_IDLE, _AWAITING, _CONTENT, _CLOSED = State

TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.IDLE, Event.SEND): State.AWAITING,
    (State.AWAITING, Event.HEAD): State.CONTENT,
    (State.CONTENT, Event.END): State.IDLE,
    (State.IDLE, Event.CLOSE): State.CLOSED,
    (State.AWAITING, Event.CLOSE): State.CLOSED,
    (State.CONTENT, Event.CLOSE): State.CLOSED,
    (State.CLOSED, Event.CLOSE): State.CLOSED,
}


@dataclass(slots=True)
class ResponseHead:
    """A final response's status and header section, and how its content is framed. It may serve many answers."""

    status: int
    fields: FieldLines
    length: int | None  # octets of content when a Content-Length tells; 0 when there is none by definition
    streams: bool  # the content is events, or NDJSON
    encoded: bool  # a Content-Encoding is present: the content can't be read in passing
    forwarded: bytes  # what goes downstream of it


# The size lines that Ollama writes (RFC 9112, 7.1): lower-case, without extension. The last chunk's isn't among them.
_SIZES = {b"%x" % size: size for size in range(1, 4096)}
# Octets of a whole chunk -> what it begins with, and those of its content: each length is that of one chunk at most.
_PLAIN = {len(line) + size + 4: (line + b"\r\n", size) for line, size in _SIZES.items()}
# Octets of a response head whose content has a length, without its empty line -> what they say. Emptied when full.
_known: dict[bytes, ResponseHead] = {}


class Owner(Protocol):
    """The exchange that a connection serves."""

    def response(self, head: ResponseHead | None, content: bytes, ended: bool) -> None:
        """Take what one read brought: the head when it is just complete, content, whether that was the end."""

    def chunk(self, octets: bytes, content: bytes) -> None:
        """Take one chunk, framed as it should be, and its content."""

    def failed(self, failure: UpstreamFailure) -> None:
        """Learn that no more will come, and why."""

    def upstream_blocked(self) -> None:
        """Stop sending: the connection holds enough."""

    def upstream_ready(self) -> None:
        """Send again."""


class Upstream(asyncio.Protocol):
    """A keep-alive connection that serves one exchange after the other."""

    __slots__ = (
        *("_at_border", "_chunked", "_fault", "_fields", "_head", "_head_octets", "_head_only"),
        *("_interim", "_interims", "_keep_alive", "_parser", "_parts", "_until_close"),
        *("idle_since", "octets_in", "on_body", "owner", "paused", "served", "state", "transport", "waiting"),
    )

    def __init__(self) -> None:
        self.transport: asyncio.Transport  # from connection_made on, which `connect` waits for
        self.waiting: select.poll | None = None  # reports whether anything waits to be read; `connect` sets it
        self.owner: Owner | None = None
        self.state = _IDLE
        self.paused = False  # it isn't read
        self.served = 0  # requests sent
        self.idle_since: float  # the pool sets it
        self.octets_in: int  # since the last request was sent
        self._parts: list[bytes] = []  # content that the read being parsed has brought
        self.on_body = self._parts.append  # no function of ours for each chunk of a stream
        self._parser = httptools.HttpResponseParser(self)
        self._at_border = False  # between two chunks: what comes next begins one, and the parser knows of nothing else
        self._head: ResponseHead | None = None
        self._fault: str | None = None
        # Of one exchange, from `send` on:
        self._head_octets: int
        self._head_only: bool
        self._interims: int
        self._keep_alive: bool
        # Of one response, from its head on:
        self._fields: list[tuple[bytes, bytes]]
        self._chunked: bool
        self._interim: bool
        self._until_close: bool

    def __repr__(self) -> str:
        return f"<Upstream {self.state.name} #{self.served}>"

    def _move(self, event: Event) -> bool:
        """Enter the state that `event` leads to; when there is none, close and fail with both names; return which."""
        after = TRANSITIONS.get((self.state, event))
        if after is None:
            self._fault = f"{event} while {self.state}"
            self.transport.abort()
            return False
        self.state = after
        return True

    # What the exchange asks for

    def send(self, octets: bytes, *, head_only: bool) -> None:
        """Send a request's head and what is there of its content; `head_only` when the method is HEAD."""
        if self.state is not _IDLE:
            self._move(Event.SEND)  # which is none of the moves, and ends it
            return
        self.state = _AWAITING
        self.served += 1
        self.octets_in = self._head_octets = self._interims = 0
        self._head_only = head_only
        self._at_border = self._keep_alive = False
        self.transport.write(octets)

    def send_content(self, octets: bytes) -> None:
        """Send more of the request's content, framed already."""
        if not self.transport.is_closing():
            self.transport.write(octets)

    def pause(self) -> None:
        """Read no more until `resume`: the client is slower than Ollama."""
        if not self.transport.is_closing():
            self.paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self.paused and not self.transport.is_closing():
            self.paused = False
            self.transport.resume_reading()

    @property
    def reusable(self) -> bool:
        """Whether the next exchange may use this connection: idle, open, and nothing has come, not even its end.

        The end may wait unread. A request that is sent after it is lost, and a POST can't be repeated.
        """
        if self.state is not _IDLE or self.transport.is_closing():
            return False
        return self.waiting is None or not self.waiting.poll(0)

    def close(self) -> None:
        """Close at once; a request that is being served is thereby given up."""
        self.owner = None
        self._move(Event.CLOSE)
        self.transport.abort()

    def abandon(self, quiet_for: float) -> None:
        """Close as soon as Ollama can take it, discarding what still comes: `quiet_for` seconds since the last send."""
        self.owner = None
        if quiet_for >= GRACE:
            self.close()
        else:
            asyncio.get_running_loop().call_later(GRACE - quiet_for, self.close)

    # What the connection brings

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; its buffer is bounded so that a slow Ollama holds back the client."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=65536)

    def data_received(self, data: bytes) -> None:  # noqa: C901 - in pieces it costs a call for each chunk
        """Parse one read and hand on all that it brought in one call.

        A head that was parsed before and comes with all of its content, as the answer's first octets, is known. So is
        what nearly all reads of a stream bring: one chunk in its plainest form.
        """
        owner = self.owner
        if self._at_border:
            plain = _PLAIN.get(len(data))
            if plain is not None:
                beginning, size = plain  # find, startswith and endswith take twice as long as to remove
                content = data.removeprefix(beginning).removesuffix(b"\r\n")
                if len(content) == size:
                    if owner is not None:
                        owner.chunk(data, content)
                    return
        idle = self.state is _IDLE
        if idle or owner is None:
            # Nobody asked, or nobody waits any more. An abandoned connection discards until its time is up.
            if idle:
                self.close()
            return
        first = not self.octets_in and not self._head_only
        self.octets_in += len(data)
        if first:
            octets, end, content = data.partition(b"\r\n\r\n")
            known = _known.get(octets)
            if known is not None and end and known.length == len(content):
                self.state = _IDLE
                owner.response(known, content, True)
                return
        fault = self._parse(data)
        head, self._head = self._head, None
        parts = self._parts
        content = parts.pop() if len(parts) == 1 else b"".join(parts)
        if parts:
            parts.clear()
        if self._head_only:  # whatever follows the head; a client would take it for its next answer
            content = b""
        ended = self.state is _IDLE
        if fault is not None or (ended and not self._keep_alive):
            # The answer may be whole all the same; but the octets behind it spoil the connection for another.
            self.state = _CLOSED
        elif ended and first and head is not None:
            _remember(head, data)
        self._at_border = not ended and self._ends_chunk(head, data, first)
        if head is not None or content or ended:
            owner.response(head, content, ended)
        if fault is not None and not ended and self.owner is owner:
            self.owner = None
            owner.failed(Malformed(fault))

    def _ends_chunk(self, head: ResponseHead | None, data: bytes, first: bool) -> bool:
        """Say whether `data` ends with a chunk: that is known where all of the content so far was plain chunks."""
        if head is None and self._at_border:
            at = 0
        elif head is not None and first and self._chunked:
            at = data.find(b"\r\n\r\n") + 4
        else:
            return False
        while at < len(data):
            end = data.find(b"\r\n", at)
            size = _SIZES.get(data[at:end])
            if size is None or data[end + size + 2 : end + size + 4] != b"\r\n":
                return False
            at = end + size + 4
        return True

    def _parse(self, data: bytes) -> str | None:
        """Feed the parser; return what was wrong, if anything."""
        try:
            if self.state is _AWAITING:
                if not self._head_octets and not data.startswith(b"H"):  # httptools takes ICE/1.0 and RTSP/1.0 as well
                    return "not an HTTP/1 response"
                data = self._parse_head(data)
            if data:
                self._parser.feed_data(data)
                if self._parts:
                    self._head_octets = 0
                    return None
                # Trailers and chunk extensions count as a head does: httptools keeps a line until it is whole.
                self._head_octets += len(data)
        except httptools.HttpParserCallbackError as error:
            return str(error.__context__)
        except httptools.HttpParserError as error:
            return type(error).__name__
        return "too many octets that are no content" if self._head_octets > MAX_HEAD else None

    def _parse_head(self, data: bytes) -> bytes:
        """Feed no more than a head may have; return what is left for its content."""
        room = MAX_HEAD - self._head_octets
        self._parser.feed_data(data[:room])
        if self.state is _AWAITING:
            self._head_octets += len(data)
            return b""
        return data[room:]

    def eof_received(self) -> None:
        """Take the end of the connection as the end of content that has no other; anything else is cut short."""
        if self.state is _CONTENT and self._until_close and self.owner is not None:
            self.state = _CLOSED
            self.owner.response(None, b"", True)
        self.transport.abort()  # a mere close would wait until Ollama has taken what isn't sent yet

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the exchange, unless its answer is whole."""
        owner, self.owner = self.owner, None
        self._move(Event.CLOSE)
        if owner is not None:
            owner.failed(ClosedEarly(self._fault or f"the connection was {'reset' if exc else 'closed'}"))

    def pause_writing(self) -> None:
        """Hold back the client's upload."""
        if self.owner is not None:
            self.owner.upstream_blocked()

    def resume_writing(self) -> None:
        """Let the client's upload go on."""
        if self.owner is not None:
            self.owner.upstream_ready()

    # What httptools calls. Malformed stops it there: nothing that follows is taken for content.

    def on_message_begin(self) -> None:
        """Start a head; one that nobody asked for is a fault."""
        if self.state is not _AWAITING:
            raise Malformed(f"a response while {self.state}")
        self._fields = []

    def on_status(self, reason: bytes) -> None:
        """Refuse a reason phrase with octets that none has (RFC 9112, 4), which httptools lets through."""
        if _CONTROL(reason):
            raise Malformed("a control octet in the reason phrase")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a field line; trailers, which come while content does, are dropped."""
        if self.state is _AWAITING:
            self._fields.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """Judge the head: what is an interim response, what framing the content has, what is not HTTP/1."""
        status = self._parser.get_status_code()
        self._interim = 100 <= status < 200
        if self._interim:
            self._interims += 1
            if status == 101 or self._interims > MAX_INTERIM:
                raise Malformed("an interim response that nobody asked for")
            return
        if self._parser.get_http_version() not in ("1.1", "1.0") or not 200 <= status <= 599:
            raise Malformed("not an HTTP/1 response")
        self._head = self._judged(status)
        self._move(Event.HEAD)
        if self._head_only:
            self._move(Event.END)

    def _judged(self, status: int) -> ResponseHead:
        length: int | None = None
        codings: list[bytes] = []
        streams = encoded = False
        for name, value in self._fields:
            lowered = name.lower()
            if lowered == b"content-length":
                length = int(value)
            elif lowered == b"transfer-encoding":
                codings.append(value.lower())
            elif lowered == b"content-type":
                streams = value.lower().startswith(_STREAMS)
            elif lowered == b"content-encoding":
                encoded = True
        if codings and (codings != [b"chunked"] or length is not None or self._parser.get_http_version() == "1.0"):
            raise Malformed("a transfer-coding other than chunked")
        self._chunked = bool(codings)
        self._until_close = not codings and length is None  # of an answer to HEAD, 204 and 304 the head is the end
        if status == 204:
            length = 0
        fields = tuple(self._fields)
        return ResponseHead(status, fields, length, streams, encoded, response_head(status, fields))

    def on_message_complete(self) -> None:
        """End the response, unless it was an interim one."""
        if not self._interim and not self._head_only:
            self._keep_alive = self._parser.should_keep_alive()  # not to be had any more after this call
            self._move(Event.END)


def _remember(head: ResponseHead, data: bytes) -> None:
    """Keep `head` for the next answer that begins with its octets, if `data` is just that and content of its length."""
    octets, _, content = data.partition(b"\r\n\r\n")
    if head.status == 200 and head.length == len(content) and len(octets) + 4 <= KNOWN_LENGTH:  # 204 and 304 have none
        if len(_known) >= KNOWN_LIMIT:
            _known.clear()
        _known[octets] = head


async def connect(host: str, port: int, seconds: float) -> Upstream:
    """Open a connection within `seconds`, or raise Unreachable or OutOfFiles."""
    loop = asyncio.get_running_loop()
    try:
        async with within(seconds):
            _, connection = await loop.create_connection(Upstream, host, port)
    except TimeoutError:
        raise Unreachable(f"no connection to {host}:{port} within {seconds:g} s", refused=False) from None
    except OSError as error:
        if any(f"[Errno {number}]" in str(error) for number in (errno.EMFILE, errno.ENFILE)):
            raise OutOfFiles("no file descriptor is left for a connection to Ollama") from None
        # A name of several addresses, as localhost is, brings one error that lists the errors of all.
        refusals = str(error).count(f"[Errno {errno.ECONNREFUSED}]")
        refused = refusals > 0 and refusals == str(error).count("[Errno ")
        what = "refuses connections" if refused else f"can't be reached ({error.strerror or type(error).__name__})"
        raise Unreachable(f"{host}:{port} {what}", refused=refused) from None
    if not connection.transport.is_closing():
        connection.waiting = sockets.watch(connection.transport)
    return connection
