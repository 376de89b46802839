"""One connection of a client: its requests in order, its content both ways, its deadlines (RFC 9112, 9).

`requests` turns bytes into requests, `gate` decides who may ask for what, and `gateway` serves it.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, cast

from proxy.event_loop import sockets
from proxy.event_loop.life import Life
from proxy.exchange.client.client_socket import OVER, PIECE, ClientSocket, Ending, Mode
from proxy.exchange.client.downstream import PIPELINE_LIMIT
from proxy.exchange.client.requests import RequestParser
from proxy.exchange.message.exchange import Party, Stop
from proxy.exchange.message.upload import Upload
from proxy.policy import refusals
from proxy.policy.refusals import Reason
from proxy.policy.replies import CONTINUE

if TYPE_CHECKING:
    from proxy.exchange.client.requests import Content
    from proxy.exchange.client.server import Server
    from proxy.exchange.message.known_heads import Request
    from proxy.policy.refusals import Refusal

# Bytes of content of a waiting request, beyond which the connection isn't read.
PIPELINE_OCTETS = 64 * 1024
# Bytes of chunk framing, extensions above all, on top of 16 for each byte of content.
FRAMING_LIMIT = 64 * 1024

# Members that every request uses.
_IDLE, _HEAD, _BUSY, _KEEP = Mode.IDLE, Mode.HEAD, Mode.BUSY, Ending.KEEP


class Connection(ClientSocket):
    """One connection of a client."""

    __slots__ = (
        *("_admitted", "_content", "_life", "_raw_octets", "_request", "_requests", "_server", "_stopped"),
        "upload",
    )

    def __init__(self, server: Server) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(server, loop, server.limits.max_head)
        self.upload = Upload(chunked=False)  # the content of the current request, or the last
        self._server = server
        self._requests = RequestParser(loop, server.limits.max_head)
        self._request: Request | None = None  # the current one, or the last one
        self._content: Content | None = None  # of the current request, until all of it has come
        self._admitted = False  # the current request may use its content
        self._stopped = False  # the current exchange has been asked to end
        self._raw_octets = 0  # of the current request's content, with its framing

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, {self._requests}>"

    # --- the connection ---

    def connection_lost(self, exc: BaseException | None) -> None:
        """Give up what was running, because the client is gone."""
        self._leave()
        self.mode = Mode.GONE
        self._life.cancel(None)
        super().connection_lost(exc)
        self._requests.close()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Treat a half-close as leaving, as Ollama does. Without an exchange, pending writes still go out."""
        if self.mode is _BUSY:
            reset = self.delimits  # a client that ended its side may still read
            self._leave()
            self.cut(reset=reset)
        elif self.mode not in OVER and (self._requests.queue or self._requests.fault is not None):  # still unanswered
            self._half_closed = True
        return self._half_closed

    def _leave(self) -> None:
        if self.mode is _HEAD:
            self._server.unparsable(self, refusals.MALFORMED, self._deadlines.since, Party.DOWNSTREAM)
            self.mode = Mode.GONE
        self.stop(Stop(Party.DOWNSTREAM))
        self._content = None
        self._requests.queue.clear()

    # --- requests ---

    def data_received(self, data: bytes) -> None:
        """Parse one read, pass on content, and wake what serves the complete requests."""
        if len(data) > PIECE:
            self._receive_in_pieces(data)
            return
        requests = self._requests
        if self.mode is _IDLE and requests.take_known(data):
            self._work.ring()
            return
        if self.mode in OVER or requests.fault is not None:
            return
        requests.feed(data)
        if self._content is not None:
            self._raw_octets += len(data)
            self._end_broken(self._pump(self._content))
        queue = requests.queue
        if queue and (len(queue) >= PIPELINE_LIMIT or requests.waiting() > PIPELINE_OCTETS):
            # They wait for their turn. Reading stops no sooner, because a client can leave unnoticed while it isn't
            # read.
            self._stop_reading(True)
        if self.mode is _BUSY:
            return
        if queue or requests.fault is not None:
            self._work.ring()
        elif requests.head_octets:
            self._begin_head()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask to be accepted, through `web.Server.connection_made`, and begin to serve."""
        super().connection_made(transport)
        self._life = Life(self._serve(), asyncio.get_running_loop())
        self._life.start()

    async def _serve(self) -> None:
        """Serve requests in order, until the connection ends."""
        requests = self._requests
        try:
            while self.mode not in OVER:
                if self.blocked:  # a client that doesn't read its responses gets no more of ours either
                    await self._work
                elif requests.queue:
                    request, arrived = self._begin(*requests.take())
                    self._finish(await self._server.serve(self, request, arrived))
                elif requests.fault is not None:
                    self._begin_head()
                    refusal = await self._server.refused_peer(self)
                    if self.mode is _HEAD:
                        self.refuse_unparsable(refusal or requests.fault)
                elif requests.stopped:
                    requests.feed(b"")
                elif self._half_closed:
                    self._end(linger=False)
                else:
                    if self._reading_stopped or requests.head_octets:
                        self._rest()
                    await self._work
        except asyncio.CancelledError:  # it is lost
            self.mode = Mode.GONE

    def _rest(self) -> None:
        """Prepare for a while without a request."""
        if self._reading_stopped:
            self._stop_reading(False)
        if self._requests.head_octets:
            self._begin_head()

    def _begin_head(self) -> None:
        if self.mode is _IDLE:
            self.mode = _HEAD
            self._deadlines.since = monotonic()

    def _begin(self, request: Request, content: Content | bytes) -> tuple[Request, float]:
        """Begin with a request; return it, and when it arrived."""
        now = monotonic()
        arrived = self._deadlines.since if self.mode is _HEAD else now
        self.mode = _BUSY
        self._request = request
        self._admitted = self._stopped = self.delimits = self.pinged = False
        self.upload = upload = Upload(chunked=request.head.chunked, announced=request.length)
        if isinstance(content, bytes):
            if content:
                upload.add(content)
            upload.done = True
        else:
            self._content = content
            self._raw_octets = 0
            self._deadlines.begin_content(now)
        if not self._requests.queue and not self._requests.stopped:  # nothing waits behind it
            self._stop_reading(False)
        return request, arrived

    def admitted(self) -> None:
        """Read the content of the current request, now admitted. Sends 100 Continue if the client waits for it.

        Raises CancelledError if the content is broken or too large already.
        """
        self._admitted = True
        content = self._content
        if content is None:
            stop = self._too_large() if self.upload.size > self._server.limits.max_body else None
        else:
            head = cast("Request", self._request).head
            if b"expect" in head.read and head.version == (1, 1) and not content.total_bytes:
                self.write(CONTINUE)
            stop = self._pump(content)
        if stop is not None:
            raise asyncio.CancelledError(stop)

    def _too_large(self) -> Stop:
        refusal = refusals.content_too_large(self._server.limits.max_body)
        return Stop(Party.DOWNSTREAM, refusal.reason, refusal)

    def _pump(self, content: Content) -> Stop | None:
        """Pass on the content that has arrived, and its end; return why it can't continue, or None."""
        size, upload = content.total_bytes, self.upload
        if size > self._server.limits.max_body:
            return self._too_large()
        data = content.read_nowait(-1) if size else b""
        if data:
            upload.add(data)
            if upload.full:
                self.hold()
        fault = self._requests.fault
        if content.is_eof():
            self._content = None
            self.release()  # nothing is left to hold back, and a client that isn't read can leave unnoticed
            upload.end()
        elif fault is not None:
            return Stop(Party.DOWNSTREAM, fault.reason, fault)
        elif upload.chunked and self._raw_octets > 16 * size + FRAMING_LIMIT:
            return Stop(Party.DOWNSTREAM, Reason.MALFORMED, refusals.MALFORMED)
        return None

    def _end_broken(self, stop: Stop | None) -> None:
        """End the exchange if its content can't continue. Before it is admitted only reading ends.

        `admitted` then finds it again, after it is known who asks.
        """
        if stop is not None and self._admitted:
            self.stop(stop)
        elif stop is not None:
            self.hold()

    def stop(self, stop: Stop) -> None:
        """End the running exchange, if there is one: cancel what serves it, and say who ends it and why."""
        if self.mode is _BUSY and not self._stopped:
            self._stopped = True
            self._life.cancel(stop)

    def refuse_unparsable(self, refusal: Refusal) -> None:
        """Send a last response to bytes that made no request, or to a connection before its first request."""
        arrived = self._deadlines.since if self.mode is _HEAD else monotonic()
        self._server.unparsable(self, refusal, arrived, Party.PROXY)
        self._end(linger=not self._half_closed)

    # --- what an exchange asks for ---

    @property
    def persistent(self) -> bool:
        """Whether another request may follow on this connection."""
        if self._request is None or not self._request.persistent or self._server.draining:
            return False
        return self._content is None or self._content.is_eof()

    @property
    def date(self) -> bytes:
        """The HTTP-date of now."""
        return self._server.date

    # --- ends ---

    def _finish(self, ending: Ending) -> None:
        """Continue with the next request, or close."""
        content, self._content = self._content, None
        self.upload.drop()  # the connection may stay idle for long
        if self.mode is not _BUSY:  # it has ended meanwhile
            return
        if ending is _KEEP and not self._server.draining:
            self.mode = _IDLE
            self._deadlines.since = monotonic()
        elif ending is Ending.CUT:
            self._end(linger=False, flush=True)
        elif ending is Ending.RESET or ending is Ending.LEFT:
            self.cut(reset=ending is Ending.RESET or self.delimits)  # a client that ended its side may still read
        else:
            unread = content is not None and not content.is_eof()
            unasked = bool(self._requests.queue) or self._requests.fault is not None
            # Unless the client has said that nothing follows, its next request may be on its way, and a reset would
            # destroy this response.
            last = self._server.draining or (self._request is not None and self._request.last)
            self._end(linger=unread or unasked or not last)

    def _end(self, *, linger: bool, flush: bool = False) -> None:
        self._requests.queue.clear()
        super()._end(linger=linger, flush=flush)

    def hold(self) -> None:
        """Stop reading content, because Ollama is slower."""
        if self._content is not None:
            self._deadlines.held_since = self._deadlines.held_since or monotonic()
            self._stop_reading(True)

    # --- deadlines ---

    def tick(self, now: float) -> None:
        """Check every deadline of this connection; called each second.

        A client that has unread data waiting is reset. After a plain end the kernel would keep its send buffer for
        minutes, beyond our limits, and a client that comes back could take the end for a true one.
        """
        transport, due, limits = self.transport, self._deadlines, self._server.limits
        if transport is None:
            return
        # A ping on its way keeps the kernel from probing a client that is silently gone, so its acknowledgement counts.
        waiting = self.unsent if self.pinged else transport.get_write_buffer_size()
        if due.stalled(now, self._written, waiting, limits.stall_timeout):
            self.stop(Stop(Party.PROXY, Reason.STALLED))
            self.cut(reset=True)
        elif self._reading_stopped and sockets.was_reset(transport):
            self._leave()
            self.cut(reset=False)
        elif self.mode is _BUSY:
            self.upload.tick(now)
            if self._content is not None and self._admitted:
                refusal = due.content_overdue(now, self._content.total_bytes, limits)
                if refusal is not None:
                    self.stop(Stop(Party.PROXY, refusal.reason, refusal))
        elif self.mode is _HEAD and due.head_too_slow(now, limits.head_timeout):
            self.refuse_unparsable(refusals.head_timeout(limits.head_timeout))
        elif self.mode is _IDLE and due.idle_too_long(now):
            self._end(linger=False)
        elif due.overdue(now):
            self.cut(reset=bool(waiting))

    def drain(self) -> None:
        """End now if no exchange is running, otherwise at its end."""
        if self.mode is _HEAD:
            self.refuse_unparsable(refusals.DRAINING)
        elif self.mode is _IDLE and not self._requests.queue:
            self._end(linger=False)

    def failed(self) -> None:
        """End now, after a mistake in the proxy; a running exchange still gets its line."""
        try:
            self.stop(Stop(Party.PROXY, Reason.INTERNAL))
        finally:
            self.cut(reset=True)

    def drain_over(self) -> None:
        """End now."""
        if self.mode is _BUSY:
            self.stop(Stop(Party.PROXY, Reason.DRAINING, refusals.DRAINING))
        else:
            self.cut(reset=False)
