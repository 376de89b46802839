"""One connection to Ollama: requests out, responses in, strictly by RFC 9112.

httptools parses. What it accepts and we must not is refused here. A fault is reported to the exchange, never
repaired.
"""

from __future__ import annotations

import asyncio
import re
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Protocol, cast

import httptools

from proxy.event_loop import sockets
from proxy.exchange.message.failures import ClosedEarly, Malformed, UpstreamFailure
from proxy.exchange.message.known_heads import KnownAnswer, ResponseHead, answer_heads
from proxy.exchange.message.plain_chunks import all_plain, plain
from proxy.exchange.upstream.states import TRANSITIONS, Event, State

if TYPE_CHECKING:
    import select

# Bytes of a response head, from status line to empty line. httptools has no limit of its own and takes quadratic time
# for one long value that arrives in pieces: 1 MB blocks the loop for 0.2 s.
MAX_HEAD = 128 * 1024
# Interim responses (1xx) before a final one. Ollama sends none.
MAX_INTERIM = 8
# Seconds for which a sent request is left alone although its client has left. An earlier close leaks the connection
# inside Ollama permanently (seen up to 20 ms on v0.24.0, up to 2 ms on v0.32.15).
GRACE = 0.052

_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search


# Members that every read uses.
_IDLE, _AWAITING, _CONTENT = State.IDLE, State.AWAITING, State.CONTENT
_SEND, _HEAD, _END = Event.SEND, Event.HEAD, Event.END


class Owner(Protocol):
    """The exchange that a connection serves."""

    def response(self, head: ResponseHead | None, content: bytes, ended: bool) -> None:
        """Take the content of one read: the head once it is complete, content, and whether that was the end."""

    def token(self, octets: bytes) -> bool:
        """Take one chunk if it only brings a token, framed as it should be; return whether it was one."""

    def chunk(self, octets: bytes, content: bytes) -> None:
        """Take one chunk, with its correct framing, and its content."""

    def failed(self, failure: UpstreamFailure) -> None:
        """Take the news that the response won't continue, and why."""

    def upstream_blocked(self) -> None:
        """Stop sending: the connection holds enough."""

    def upstream_ready(self) -> None:
        """Send again."""


class Upstream(asyncio.Protocol):
    """A keep-alive connection that serves one exchange after the other."""

    __slots__ = (
        *("_chunks", "_chunked", "_fault", "_fields", "_head", "_head_octets", "_head_only"),
        *("_interim", "_interims", "_keep_alive", "_parser", "_parts", "_until_close"),
        *("heads", "idle_since", "octets_in", "on_body", "owner", "paused", "served", "state", "transport", "waiting"),
    )

    def __init__(self) -> None:
        self.transport: asyncio.Transport  # from connection_made on; `connect` waits for it
        self.waiting: select.poll | None = None  # reports whether anything waits to be read; `connect` sets it
        self.owner: Owner | None = None
        self.state = State.OPENING
        self.paused = False  # it isn't read
        self.served = 0  # requests sent
        self.idle_since = 0.0  # the pool sets it
        self.octets_in = 0  # since the last request was sent
        self._parts: list[bytes] = []  # content in the read that is being parsed
        self.on_body = self._parts.append  # no function of ours for each chunk of a stream
        self._parser = httptools.HttpResponseParser(self)
        self.heads = answer_heads()
        self._head: ResponseHead | None = None
        self._fault: str | None = None
        # Of one exchange, from `send` on:
        self._head_octets = 0
        self._head_only = False
        self._interims = 0
        self._keep_alive = False
        # Of one response, from its head on:
        self._fields: list[tuple[bytes, bytes]] = []
        self._chunked = False
        self._interim = False
        self._until_close = False
        self._chunks = False  # all of the content so far was plain chunks: the parser stands between two

    def __repr__(self) -> str:
        return f"<Upstream {self.state.name} #{self.served}>"

    def move(self, event: Event) -> bool:
        """Enter the state that `event` leads to, and return it. If there is none, close, and fail with both names."""
        after = TRANSITIONS[self.state].get(event)
        if after is None:
            self._fault = f"{event} while {self.state}"
            self.transport.abort()
            return False
        self.state = after
        return True

    # What the exchange asks for

    def send(self, octets: bytes, *, head_only: bool) -> None:
        """Send a request's head and the content that is there; `head_only` when the method is HEAD."""
        if not self.move(_SEND):
            return
        self.served += 1
        self.octets_in = self._head_octets = self._interims = 0
        self._head_only = head_only
        self._chunks = self._keep_alive = False
        self.transport.write(octets)

    def send_content(self, octets: bytes) -> None:
        """Send more of the request's content, framed already."""
        if not self.transport.is_closing():
            self.transport.write(octets)

    def pause(self) -> None:
        """Stop reading until `resume`, because the client is slower than Ollama."""
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
        """Whether the next exchange may use this connection: idle, open, and nothing has arrived, not even its end.

        The end may wait unread. A request that is sent after it is lost, and a POST can't be repeated.
        """
        if self.state is not _IDLE or self.transport.is_closing():
            return False
        return self.waiting is None or not self.waiting.poll(0)

    def close(self) -> None:
        """Close at once, and give up a request that is being served."""
        self.owner = None
        self.move(Event.CLOSE)
        self.transport.abort()

    def abandon(self, quiet_for: float) -> None:
        """Close as soon as Ollama tolerates it: `quiet_for` seconds after the last send. Discard input until then."""
        self.owner = None
        if quiet_for >= GRACE or self.state not in (_AWAITING, _CONTENT):
            self.close()
        else:
            self.move(Event.ABANDON)
            self._close_at(monotonic() + GRACE - quiet_for)

    def _close_at(self, moment: float) -> None:
        """Close at `moment`, not earlier: a timer is early by as long as its loop has been busy."""
        left = moment - monotonic()
        if left > 0:
            asyncio.get_running_loop().call_later(left, self._close_at, moment)
        else:
            self.close()

    # What the connection brings

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; its buffer is bounded so that a slow Ollama holds back the client."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=sockets.WRITE_BUFFER)
        self.move(Event.OPEN)

    def data_received(self, data: bytes) -> None:
        """Pass on everything from one read in one call.

        Most reads of a stream are one plain chunk, which needs no parser. Neither does a complete response with a head
        like an earlier one.
        """
        state, owner = self.state, self.owner
        if self._chunks and owner is not None:
            if owner.token(data):
                return
            content = plain(data)
            if content is not None:
                owner.chunk(data, content)
                return
        if owner is None or state is _IDLE:
            if state is _IDLE:  # no request is under way
                self.close()
            return
        first = not self.octets_in and not self._head_only
        self.octets_in += len(data)
        if not (first and self._known(data, owner)):
            self._read(data, owner, first)

    def _known(self, data: bytes, owner: Owner) -> bool:
        """Pass on a complete response whose head is like an earlier one; return whether it was that."""
        octets, end, content = data.partition(b"\r\n\r\n")
        head = self.heads.find(octets) if end else None
        if head is None or head.length != len(content):
            return False
        self.move(_HEAD)
        self.move(_END)
        owner.response(head, content, True)
        return True

    def _read(self, data: bytes, owner: Owner, first: bool) -> None:
        """Pass on the parser's result for `data`; `first` for the first read of a response that may have content."""
        fault = self._parse(data)
        head, self._head = self._head, None
        parts = self._parts
        content = b"" if self._head_only else parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()  # a client would take bytes after the head of a response to HEAD for its next response
        ended = self.state is _IDLE
        if fault is not None or (ended and not self._keep_alive):
            # The response may be complete, but the bytes after it make the connection unusable.
            self.move(Event.CLOSE)
        elif ended and first and head is not None:
            self._learn(head, data)
        self._chunks = not ended and fault is None and self._only_chunks(head, data, first)
        if head is not None or content or ended:
            owner.response(head, content, ended)
        if fault is not None and not ended and self.owner is owner:
            self.owner = None
            owner.failed(Malformed(fault))

    def _learn(self, head: ResponseHead, data: bytes) -> None:
        """Keep `head` for similar responses, if `data` is only that and content of its length."""
        octets, _, content = data.partition(b"\r\n\r\n")
        if head.status == 200 and head.length == len(content):  # 204 and 304 have none
            self.heads.learn(octets, partial(KnownAnswer, head))

    def _only_chunks(self, head: ResponseHead | None, data: bytes, first: bool) -> bool:
        """Return whether `data` ends with a chunk, and all of the content so far was plain chunks."""
        if head is None:
            return self._chunks and all_plain(data)
        return first and self._chunked and all_plain(data, data.find(b"\r\n\r\n") + 4)

    def _parse(self, data: bytes) -> str | None:
        """Feed the parser; return what was wrong, if anything."""
        try:
            if self.state is _AWAITING:
                if not self._head_octets and not data.startswith(b"H"):  # httptools accepts ICE/1.0 and RTSP/1.0 too
                    return "not an HTTP/1 response"
                data = self._parse_head(data)
            if data:
                self._parser.feed_data(data)
                if self._parts:
                    self._head_octets = 0
                    return None
                # Trailers and chunk extensions count like a head, because httptools keeps a line until it is complete.
                self._head_octets += len(data)
        except httptools.HttpParserCallbackError as error:
            return str(error.__context__)
        except httptools.HttpParserError as error:
            return type(error).__name__
        return "too many bytes that aren't content" if self._head_octets > MAX_HEAD else None

    def _parse_head(self, data: bytes) -> bytes:
        """Feed at most as much as a head may have; return what is left for its content."""
        room = MAX_HEAD - self._head_octets
        self._parser.feed_data(data[:room])
        if self.state is _AWAITING:
            self._head_octets += len(data)
            return b""
        return data[room:]

    def eof_received(self) -> None:
        """Take the end of the connection as the end of content that has no other; anything else is cut short."""
        if self.state is _CONTENT and self._until_close and self.owner is not None:
            self.move(_END)
            self.move(Event.CLOSE)
            self.owner.response(None, b"", True)
        self.transport.abort()  # an ordinary close would wait until Ollama has read what isn't sent yet

    def connection_lost(self, exc: Exception | None) -> None:
        """Report that the exchange failed, unless its response is complete."""
        owner, self.owner = self.owner, None
        self.move(Event.CLOSE)
        if owner is not None:
            owner.failed(ClosedEarly(self._fault or f"the connection was {'reset' if exc else 'closed'}"))

    def pause_writing(self) -> None:
        """Hold back the client's upload."""
        if self.owner is not None:
            self.owner.upstream_blocked()

    def resume_writing(self) -> None:
        """Let the client's upload continue."""
        if self.owner is not None:
            self.owner.upstream_ready()

    # Called by httptools. Malformed stops it there, so nothing that follows is taken for content.

    def on_message_begin(self) -> None:
        """Start a head; an unexpected one is a fault."""
        if self.state is not _AWAITING:
            raise Malformed(f"a response while {self.state}")
        self._fields = []

    def on_status(self, reason: bytes) -> None:
        """Refuse a reason phrase with bytes that aren't allowed there (RFC 9112, 4), which httptools lets through."""
        if _CONTROL(reason):
            raise Malformed("a control byte in the reason phrase")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a field line; drop trailers, which come during content."""
        if self.state is _AWAITING:
            self._fields.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """Judge the head: whether it is an interim response, how the content is framed, whether it is HTTP/1."""
        status = self._parser.get_status_code()
        self._interim = 100 <= status < 200
        if self._interim:
            self._interims += 1
            if status == 101 or self._interims > MAX_INTERIM:
                raise Malformed("an unexpected interim response")
            return
        self._head = head = ResponseHead.of(status, self._parser.get_http_version(), tuple(self._fields))
        self._chunked = head.chunked
        self._until_close = not head.chunked and head.length is None  # a response to HEAD ends with its head
        self.move(_HEAD)
        if self._head_only:
            self.move(_END)

    def on_message_complete(self) -> None:
        """End the response, unless it was an interim one."""
        if not self._interim and not self._head_only:
            self._keep_alive = self._parser.should_keep_alive()  # not available any more after this call
            self.move(_END)
