"""One connection of a client: its requests in order, its content both ways, its deadlines (RFC 9112, 9).

Octets become requests in `requests`; who may ask for what is `gate`'s business, what comes of it `relay`'s.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING

from proxy import refusals, sockets
from proxy.deadlines import LINGER_FOR, Deadlines
from proxy.exchange import Party
from proxy.refusals import Reason
from proxy.replies import CONTINUE
from proxy.requests import PIPELINE_LIMIT, RequestParser

if TYPE_CHECKING:
    import select

    from proxy.clients import Clients
    from proxy.exchange import Exchange
    from proxy.refusals import Refusal
    from proxy.relay import Relay
    from proxy.requests import Content, Request

# Octets of content of a request that waits for its turn, before the connection is read no further.
PIPELINE_OCTETS = 64 * 1024
# Octets of chunk framing, extensions above all, on top of 16 for each octet of content.
FRAMING_LIMIT = 64 * 1024


class Mode(Enum):
    """What a connection is doing."""

    __hash__ = object.__hash__  # Enum's own is a Python function, and `_OVER` is looked into three times a request

    IDLE = "idle"  # no octet of a next request yet
    HEAD = "head"  # a head has begun
    BUSY = "busy"  # an exchange is under way
    LINGER = "linger"  # answered for the last time, the rest is thrown away
    FLUSH = "flush"  # nothing more will be read, what is written is on its way
    GONE = "gone"


# A member read through its class costs 60 ns on Python 3.11.
_IDLE, _HEAD, _BUSY, _LINGER, _FLUSH, _GONE = Mode
_OVER = frozenset({_LINGER, _FLUSH, _GONE})


class Downstream(asyncio.Protocol):
    """One connection of a client."""

    __slots__ = (
        *("blocked", "by_serve", "exchange", "peer", "peer_port", "relay"),
        *("_clients", "_content", "_deadlines", "_mode", "_parser", "_raw_octets", "_reading_paused", "_request"),
        *("_running", "_transport", "_waiting", "_written"),
    )

    def __init__(self, clients: Clients) -> None:
        self.peer = ""
        self.peer_port = 0
        self.by_serve = False  # whether it came to the port that is for `tailscale serve`
        self.exchange: Exchange | None = None  # the one under way; the gateway's to set and read
        self.relay: Relay | None = None  # what serves it, unless the answer is our own
        self.blocked = False  # the client takes less than has been written
        self._clients = clients
        self._transport: asyncio.Transport | None = None
        self._mode = _IDLE
        self._parser = RequestParser(asyncio.get_running_loop(), clients.limits.max_head)
        self._request: Request | None = None  # the current one, or the last
        self._content: Content | None = None  # of the current request, until all of it has come
        self._running = False
        self._reading_paused = False
        self._deadlines = Deadlines(monotonic())
        self._raw_octets = 0  # of the current request's content, with its framing
        self._waiting: select.poll | None = None  # tells whether anything waits to be read
        self._written = 0  # octets of all answers

    def __repr__(self) -> str:
        return f"<Downstream {self._mode.name} {self.peer}:{self.peer_port}>"

    # --- the connection ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask to be let in."""
        self._transport = transport  # type: ignore[assignment]
        peer, local = sockets.address(transport, "peername"), sockets.address(transport, "sockname")
        if peer is None or local is None:  # reset before it was taken in
            self.cut(reset=False)
            return
        self.peer, self.peer_port = peer
        sockets.accepted(transport)
        transport.set_write_buffer_limits(high=65536)  # type: ignore[attr-defined]
        self._waiting = sockets.watch(transport)  # type: ignore[arg-type]
        self._clients.admit(self, local[0])

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - who left is the same either way
        """Give up what was under way: nobody is left to answer."""
        self._leave()
        self._mode = _GONE
        self._transport = None
        self._clients.forget(self)

    def eof_received(self) -> None:
        """Take a half-close as leaving, as Ollama does. Without an exchange, what is written still goes out."""
        if self._mode is _BUSY:
            reset = self.relay is not None and self.relay.close_delimited  # one that ended its side may still read
            self._leave()
            self.cut(reset=reset)

    def _leave(self) -> None:
        relay, self.relay = self.relay, None
        if relay is not None:
            relay.give_up(Party.DOWNSTREAM)
        elif self._mode is _HEAD:
            self._clients.gateway.unparsable(self, refusals.MALFORMED, self._deadlines.since, Party.DOWNSTREAM)
            self._mode = _GONE
        self._content = None
        self._parser.queue.clear()

    # --- requests ---

    def data_received(self, data: bytes) -> None:
        """Parse one read, hand on content, and serve the requests that are whole."""
        parser = self._parser
        if self._mode is _IDLE and not self.blocked:
            known = parser.known(data)
            if known is not None:
                self._begin(known[0], known[1])
                return
        if self._mode in _OVER or parser.fault is not None:
            return
        parser.feed(data)
        if self._content is not None and self.relay is not None:
            self._raw_octets += len(data)
            self._pump(self._content, self.relay)
        if self._mode is not _BUSY:
            self._run()
        queue = parser.queue
        if queue and (len(queue) >= PIPELINE_LIMIT or queue[-1][1].total_bytes > PIPELINE_OCTETS):
            # They wait for their turn. Reading stops no sooner, for a client that isn't read can leave unseen.
            self._pause(True)

    def _run(self) -> None:
        """Serve requests in order, until one has to wait for Ollama, the client for its answers, or there is none."""
        if self._running:
            return
        self._running = True
        parser = self._parser
        while self.relay is None and self._mode not in _OVER and not self.blocked:
            if parser.queue:
                self._begin(*parser.take())
            elif parser.fault is not None:
                self.refuse_unparsable(parser.fault)
            elif parser.stopped:
                parser.feed(b"")
            elif self._reading_paused:
                self._pause(False)
            else:
                break
        self._running = False
        if self._mode is _IDLE and parser.head_octets:
            self._mode = _HEAD
            self._deadlines.since = monotonic()

    def _begin(self, request: Request, content: Content | bytes) -> None:
        now = monotonic()
        arrived = self._deadlines.since if self._mode is _HEAD else now
        self._mode = _BUSY
        self._request = request
        if not isinstance(content, bytes):
            self._content = content
            self._raw_octets = 0
            self._deadlines.begin_content(now)
            if self._reading_paused:
                self._pause(False)  # nothing can wait behind it yet
        self._clients.gateway.request(self, request.head, arrived)
        relay = self.relay
        if relay is None:
            return
        if not isinstance(content, bytes):
            head = request.head
            if b"expect" in head.read and head.version == (1, 1) and not content.total_bytes:
                self.write(CONTINUE)
            self._pump(content, relay)
            relay.start(now)
        elif len(content) > self._clients.limits.max_body:
            relay.content_failed(refusals.content_too_large(self._clients.limits.max_body), Party.DOWNSTREAM)
        else:
            relay.start(now, content)

    def _pump(self, content: Content, relay: Relay) -> None:
        """Hand on the content that has come, its end, or that it is broken."""
        size, limit = content.total_bytes, self._clients.limits.max_body
        if size > limit:
            relay.content_failed(refusals.content_too_large(limit), Party.DOWNSTREAM)
            return
        data = content.read_nowait(-1) if size else b""
        if data:
            relay.content(data)
        if content.is_eof():
            self._content = None
            self.release()  # nothing is left to hold back, and a client that isn't read can leave unseen
            relay.content_end()
        elif self._parser.fault is not None:
            relay.content_failed(self._parser.fault, Party.DOWNSTREAM)
        elif self._request is not None and self._request.head.chunked and self._raw_octets > 16 * size + FRAMING_LIMIT:
            relay.content_failed(refusals.MALFORMED, Party.DOWNSTREAM)

    def refuse_unparsable(self, refusal: Refusal) -> None:
        """Answer octets that made no request, or a connection before it made any, for the last time."""
        arrived = self._deadlines.since if self._mode is _HEAD else monotonic()
        self._clients.gateway.unparsable(self, refusal, arrived, Party.PROXY)
        self._end(linger=True)

    # --- what an exchange asks for ---

    @property
    def persistent(self) -> bool:
        """Whether another request may follow on this connection."""
        if self._request is None or not self._request.persistent or self._clients.draining:
            return False
        return self._content is None or self._content.is_eof()

    def write(self, octets: bytes) -> None:
        """Send octets of a response."""
        transport = self._transport
        if transport is not None and not transport.is_closing():
            self._written += len(octets)
            transport.write(octets)

    def answer(self, octets: bytes, *, keep_alive: bool) -> None:
        """Send a whole response of our own."""
        self.write(octets)
        self.finish(monotonic(), keep_alive=keep_alive)

    def refuse(self, refusal: Refusal) -> None:
        """Answer the exchange under way in our own words."""
        octets = self._clients.gateway.refuse(self, refusal)
        self.answer(octets, keep_alive=self.persistent and not refusal.closes)

    def finish(self, now: float, *, keep_alive: bool) -> None:
        """End the exchange; go on with the next request, or close."""
        self.relay = self.exchange = None
        content, self._content = self._content, None
        if not keep_alive or self._clients.draining:
            unread = content is not None and not content.is_eof()
            unasked = bool(self._parser.queue) or self._parser.fault is not None
            # Who hasn't said that nothing follows may be sending the next request, and a reset would eat this answer.
            last = self._clients.draining or (self._request is not None and self._request.last)
            self._end(linger=unread or unasked or not last)
            return
        self._mode = _IDLE
        self._deadlines.since = now
        parser = self._parser
        if parser.queue or self._reading_paused or not parser.exact:
            self._run()

    def flush_and_close(self) -> None:
        """Let what is written go out, for a few seconds at most, then close: the content is visibly cut."""
        self._end(linger=False)
        self._deadlines.end_by = monotonic() + LINGER_FOR

    def cut(self, *, reset: bool) -> None:
        """Close at once; with a reset where a mere end would read as the end of content that isn't whole."""
        self.relay = None
        self._mode = _FLUSH
        if self._transport is not None:
            if reset or self._transport.get_write_buffer_size():  # what waits there is lost
                sockets.reset(self._transport)
            else:
                self._transport.abort()

    def _end(self, *, linger: bool) -> None:
        """Close when all is written; `linger` to read on meanwhile, for a reset for unread octets eats our answer."""
        self.relay = None
        self._parser.queue.clear()
        self._deadlines.end_by = monotonic() + LINGER_FOR if linger else 0.0
        self._mode = _LINGER if linger else _FLUSH
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if linger:
            self._pause(False)
            transport.write_eof()
        else:
            transport.close()

    def _pause(self, paused: bool) -> None:
        if paused is not self._reading_paused:
            self._reading_paused = paused
            if self._transport is not None and not self._transport.is_closing():
                (self._transport.pause_reading if paused else self._transport.resume_reading)()

    def hold(self) -> None:
        """Take no more content: Ollama is slower."""
        if self._content is not None:
            self._deadlines.held_since = self._deadlines.held_since or monotonic()
            self._pause(True)

    def release(self) -> None:
        """Take content again."""
        if self._deadlines.held_since:
            self._deadlines.release(monotonic())
            self._pause(False)

    def may_have_left(self) -> bool:
        """Say whether octets, or the end, wait to be read on this connection."""
        transport, waiting = self._transport, self._waiting
        return transport is None or waiting is None or transport.is_closing() or bool(waiting.poll(0))

    # --- backpressure and deadlines ---

    def pause_writing(self) -> None:
        """Read no more from Ollama for this client."""
        self.blocked = True
        if self.relay is not None:
            self.relay.client_blocked()

    def resume_writing(self) -> None:
        """Read from Ollama again, or serve the requests that wait."""
        self.blocked = False
        if self.relay is not None:
            self.relay.client_ready()
        else:
            self._run()

    def tick(self, now: float) -> None:
        """Look at every deadline of this connection; called each second.

        Whom octets wait for is reset: after a mere end the kernel would keep its send buffer on, for minutes and beyond
        our limits, for a client that takes nothing; and one that comes back could take the end for a true one.
        """
        transport, due, limits = self._transport, self._deadlines, self._clients.limits
        if transport is None:
            return
        waiting = transport.get_write_buffer_size()
        if due.stalled(now, self._written, waiting, limits.stall_timeout):
            if self.relay is not None:
                self.relay.give_up(Party.PROXY, Reason.STALLED)
            self.cut(reset=True)
        elif self._reading_paused and sockets.was_reset(transport):
            self._leave()
            self.cut(reset=False)
        elif self.relay is not None:
            self.relay.tick(now)
            if self._content is not None:
                self._tick_content(now, self.relay, self._content)
        elif self._mode is _HEAD and now - due.since > limits.head_timeout:
            self.refuse_unparsable(refusals.head_timeout(limits.head_timeout))
        elif self._mode is _IDLE and due.idle_too_long(now):
            self._end(linger=False)
        elif due.overdue(now):
            self.cut(reset=bool(waiting))

    def _tick_content(self, now: float, relay: Relay, content: Content) -> None:
        """Look at content that hasn't all come: it is the client that is slow, or Ollama that doesn't take it."""
        due, limits = self._deadlines, self._clients.limits
        if due.held_since:
            if due.held_too_long(now, limits.stall_timeout):
                relay.content_failed(refusals.HELD_UPLOAD, Party.PROXY)
        elif due.content_too_slow(now, content.total_bytes, limits.body_timeout):
            relay.content_failed(refusals.content_timeout(limits.body_timeout), Party.PROXY)

    def drain(self) -> None:
        """Go if no exchange is under way, else at its end."""
        if self._mode is _HEAD:
            self.refuse_unparsable(refusals.DRAINING)
        elif self._mode is _IDLE:
            self._end(linger=False)

    def failed(self) -> None:
        """Go now, after a mistake of ours; what is under way still has its line."""
        relay, self.relay = self.relay, None
        try:
            if relay is not None:
                relay.give_up(Party.PROXY, Reason.INTERNAL)
        finally:
            self.cut(reset=True)

    def drain_over(self) -> None:
        """Go now."""
        if self.relay is not None:
            self.relay.drain_over()
        else:
            self.cut(reset=False)
