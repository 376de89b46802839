"""One admitted exchange on one connection to Ollama: the request up, the response down, backpressure both ways.

`Relay.run` is its life, from the first look for a connection to the last byte. Data from either side is passed on in
the call that brings it, without a task or a queue between. Once a status line was sent downstream there are two
possible ends: the true one, or one that the client can recognise as broken, which has no last chunk.
"""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from proxy.event_loop.life import Signal
from proxy.exchange.message.exchange import ANSWER, CONNECT, GOOD, SEND, SENT, Outcome
from proxy.exchange.message.failures import ClosedEarly, Stale, Unfinished, UpstreamFailure
from proxy.exchange.message.forwarding import CHUNKED, CLOSE, KEEP_ALIVE, LENGTH, finished_head
from proxy.exchange.message.plain_chunks import LAST_CHUNK, chunk
from proxy.exchange.streams import Answer, Events
from proxy.exchange.upstream.states import State
from proxy.exchange.waiting.wait import Late
from proxy.policy.replies import STREAM_FAILURES, cors_fields
from proxy.policy.routes import Dialect

if TYPE_CHECKING:
    from proxy.exchange.client.connection import Connection
    from proxy.exchange.message.exchange import Exchange
    from proxy.exchange.message.known_heads import Request, ResponseHead
    from proxy.exchange.upstream.pool import Pool
    from proxy.exchange.upstream.target import Target
    from proxy.exchange.upstream.upstream import Upstream
    from proxy.exchange.waiting.visit import Visit
    from proxy.exchange.waiting.wait import Wait
    from proxy.policy.refusals import Reason
    from proxy.policy.routes import Route

# If a reused connection closes within so many seconds after sending, it was stale, and the request isn't the cause.
STALE_WITHIN = 1.0

_IDLE, _MESSAGES = State.IDLE, Dialect.MESSAGES  # members that every request uses


class Relay:
    """Moves one exchange to Ollama and back. `run` it once; then `conclude`."""

    __slots__ = (
        *("_answer", "_answered", "_client", "_connection", "_exchange", "_framed", "_last_sent", "_late"),
        *("_passage", "_pool", "_request", "_route", "_sent_at", "_slow", "_target", "_tokens", "_upload", "_visit"),
        *("keep_alive", "misread", "status"),
    )

    def __init__(
        self,
        exchange: Exchange,
        route: Route,
        request: Request,
        client: Connection,
        target: Target,
        pool: Pool,
        visit: Visit | None = None,
    ) -> None:
        self._exchange = exchange
        self._route = route
        self._request = request
        self._client = client
        self._upload = client.upload
        self._target = target
        self._pool = pool
        self._connection: Upstream | None = None  # the connection in use
        self._sent_at: float | None = None  # when the request's head was sent
        self._last_sent = 0.0  # when data was last sent
        self._answered: Signal[UpstreamFailure | None]  # what ended the response; made for each connection
        self._answer: Answer | Events | None = None  # what reads the response in passing, if anything does
        self._tokens: Events | None = None  # the same, while chunks are passed on unchanged
        self._visit = visit  # what may have given the client a head already
        self._passage = None if visit is None else visit.passage  # what the content goes through if it isn't held
        self._slow = False  # Ollama reads more slowly than content arrives
        self._late: Late | None = None  # a response that can't be passed on, because the client has a head
        self._framed = False  # the response, from its head on, goes downstream in chunks
        self.status: int | None = None  # of the response, once its head was sent downstream
        self.misread = False  # facts were lost because of a mistake in the proxy
        self.keep_alive = False  # the client's connection serves on behind this answer

    # --- its life ---

    async def run(self) -> Outcome:
        """Send the request to Ollama, and pass its response on; UpstreamFailure if there is none or it breaks."""
        self._exchange.move(CONNECT)
        target, pool = self._target, self._pool
        kept = pool.take()
        connection = kept or await pool.open(target.host, target.port, target.connect_timeout)
        try:
            return await self._ask(connection)
        except UpstreamFailure:
            if not self._may_repeat(connection, kept=kept is not None):
                if kept is not None and self._was_stale(connection):
                    raise Stale("a kept connection was closed before it answered") from None
                raise
        self._sent_at = None
        self._upload.stop()  # so that it isn't dropped before the other connection is there
        self._exchange.move(CONNECT)
        return await self._ask(await pool.open(target.host, target.port, target.connect_timeout))

    async def _ask(self, connection: Upstream) -> Outcome:
        """Send the request on `connection`, and return when the response is complete."""
        self._connection = connection
        self._answered = Signal()
        connection.owner = self
        try:
            if self._client.may_have_left() if self._upload.done else self._client.has_left:
                await self._client.settle()
                if not connection.reusable:
                    raise ClosedEarly("closed before the request was sent")
            self._send(connection)
            if self._visit is not None and self._passage is not None:
                await self._visit.turn_late()
                await self._client.settle()
                if not self._answered.done:
                    self._passage.open()
            failure = await self._answered
        finally:
            self._let_go(connection)
        if failure is not None:
            raise failure
        return GOOD if self.status == 200 else Outcome(self.status)

    def _let_go(self, connection: Upstream) -> None:
        """Give `connection` back to the pool if it can be reused; else end it, which makes Ollama stop generating."""
        self._connection = self._client.source = None
        sent, passage = self._upload.done, self._passage
        if not sent:
            self._upload.stop()
        if passage is not None:
            passage.stop()
            sent = sent and passage.opened
        if connection.state is _IDLE and (sent or self._sent_at is None):
            if connection.paused:
                connection.resume()
            self._pool.put(connection, monotonic())
        else:
            connection.abandon(monotonic() - self._last_sent)

    def _was_stale(self, connection: Upstream) -> bool:
        """Return whether a connection was already gone: it closed soon, without a byte of a response."""
        at = self._sent_at
        return at is None or (not connection.octets_in and monotonic() - at < STALE_WITHIN)

    def _may_repeat(self, connection: Upstream, *, kept: bool) -> bool:
        """Return whether the request may be sent on another connection (RFC 9110, 9.2.2).

        A POST may only if nothing was sent, or not the byte that makes Ollama act. All that came must still be held.
        """
        if not self._upload.kept:
            return False
        if self._passage is not None and not self._passage.opened and not connection.octets_in:
            return True
        get = self._request.head.method == "GET"
        return kept and self._was_stale(connection) and (self._sent_at is None or (get and self._upload.done))

    def _send(self, connection: Upstream) -> None:
        client, upload, target, request = self._client, self._upload, self._target, self._request
        self._exchange.move(SEND)
        self._sent_at = self._last_sent = now = monotonic()
        client.source = connection
        if client.blocked:  # it hasn't taken the answer before this one yet
            connection.pause()
        octets, passage = target.head_of(request, upload.unpacked), self._passage
        self._slow = False
        if not upload.done:
            client.release()  # before sending, which holds it again where Ollama doesn't take that much
        elif passage is None:
            self._exchange.move(SENT)
        sent = partial(self._exchange.move, SENT)
        if passage is None and (upload.size or upload.chunked or not upload.done):
            octets += upload.flow(self._send_on, sent, now)
        connection.send(octets, head_only=request.head.method == "HEAD")
        if passage is not None:
            passage.begin(upload, self._send_on, sent, client.hold, self._ready, now)

    def _send_on(self, octets: bytes) -> None:
        """Send content that came later."""
        if self._connection is not None:
            self._last_sent = monotonic()
            self._connection.send_content(octets)

    def upstream_blocked(self) -> None:
        """Hold the client's upload, because Ollama reads more slowly than it arrives."""
        self._slow = True
        if not self._upload.done:
            self._client.hold()

    def upstream_ready(self) -> None:
        """Let the client's upload continue."""
        self._slow = False
        self._ready()

    def _ready(self) -> None:
        if not self._slow and (self._passage is None or not self._passage.full):
            self._client.release()

    # --- what Ollama's connection brings ---

    def response(self, head: ResponseHead | None, content: bytes, ended: bool) -> None:
        """Write everything from one read of Ollama at once, without holding it back."""
        octets = b"" if head is None else self._started(head)
        if self._late is not None:
            self._late.body += content
            if ended:
                self._client.write(self._late.event() + LAST_CHUNK)
                self._end(None)
            return
        if content:
            self._note(content)
            octets += chunk(content) if self._framed else content
        failure = None
        if ended:
            if isinstance(self._answer, Events) and not self._answer.complete():
                failure = Unfinished("the stream's terminator is missing")
            elif self._framed:
                octets += LAST_CHUNK
        if octets:
            self._client.write(octets)
        if ended:
            self._end(failure)

    def token(self, octets: bytes) -> bool:
        """Write one chunk unchanged if it only brings a token; return whether it does."""
        if self._tokens is None:
            return False
        try:
            size = self._tokens.token(octets)
        except Exception:  # as in `_note`
            self._misread()
            return False
        if size:
            self._exchange.response_octets += size
            self._client.write(octets)
        return size > 0

    def chunk(self, octets: bytes, content: bytes) -> None:
        """Write one chunk unchanged."""
        if self._late is not None:
            self._late.body += content
            return
        self._note(content)
        self._client.write(octets if self._framed else content)

    def failed(self, failure: UpstreamFailure) -> None:
        """Note that the response won't continue."""
        self._end(failure)

    def _end(self, failure: UpstreamFailure | None) -> None:
        """Note the end of the response. It may come while the end of the request is held back."""
        self._answered.set(failure)
        if self._visit is not None and self._passage is not None:
            self._visit.interrupt()

    def _note(self, content: bytes) -> None:
        """Count content, and read it in passing."""
        self._exchange.response_octets += len(content)
        if self._answer is not None:
            try:
                self._answer.feed(content)
            except Exception:  # a mistake in reading may cost facts, never the response
                self._misread()

    def _misread(self) -> None:
        self._answer = self._tokens = None
        self.misread = True

    def _started(self, head: ResponseHead) -> bytes:
        """Take the response's head; return the one for the client, unless it has one already."""
        self._exchange.upstream_status = head.status
        visit, dialect, wait = self._visit, self._route.dialect, None if self._visit is None else self._visit.wait
        if wait is not None and wait.begun and dialect is not None:
            self._begin_late(head, dialect, wait)
            octets = b""
        else:
            octets = self._begin(head)
        if visit is not None:
            visit.stream = self._tokens
        return octets

    def _begin(self, head: ResponseHead) -> bytes:
        """Return the response's head for the client, and decide how the content is framed and whether it is read."""
        exchange, status, length, request = self._exchange, head.status, head.length, self._request.head
        exchange.move(ANSWER)
        exchange.first_octet = monotonic()
        exchange.stream = head.streams
        dialect, self.status = self._route.dialect, status
        if dialect is not None and status == 200 and not head.encoded:
            if head.streams:
                self._answer = Events(exchange, dialect)
                length = None  # with it the content could end without its terminator and look complete
            else:
                self._answer = Answer(exchange)
        http_1_1 = request.version == (1, 1)
        open_ended = length is None and request.method != "HEAD" and status != 304  # a 204 has the length 0
        self._framed = open_ended and http_1_1
        if self._framed and isinstance(self._answer, Events):
            self._tokens = self._answer
        self._client.delimits = open_ended and not http_1_1
        self.keep_alive = self._client.persistent and not self._client.delimits
        framing = CHUNKED if self._framed else b"" if length is None or status == 204 else LENGTH % length
        connection = CLOSE if not self.keep_alive else b"" if http_1_1 else KEEP_ALIVE
        cors = b"" if exchange.origin is None else cors_fields(exchange.origin)
        lines = cors + connection
        return finished_head(head.forwarded, framing, exchange.id.encode(), lines, anthropic=dialect is _MESSAGES)

    def _begin_late(self, head: ResponseHead, dialect: Dialect, wait: Wait) -> None:
        """Continue a response that has an early head, or collect one that says that there is none to continue."""
        self._exchange.move(ANSWER)
        self._exchange.first_octet = monotonic()
        self.status = 200
        self.keep_alive = wait.keep_alive
        self._framed = self._exchange.stream = True
        self._answer = events = Events(self._exchange, dialect)
        if head.status == 200 and head.streams and not head.encoded:
            self._tokens = events
        else:
            self._late = Late(wait, dialect, head.status)

    # --- its end ---

    def farewell(self, reason: Reason | None) -> bytes:
        """Return the end of an incomplete response: an event that says why, if an event of ours may come next."""
        answer, said = self._answer, None if reason is None else STREAM_FAILURES.get(reason)
        return answer.farewell(said) if isinstance(answer, Events) and self._framed and said else b""

    @property
    def complete(self) -> bool:
        """Whether all of Ollama's response was passed on."""
        return self.status is not None and self._answered.done and self._answered.value is None

    @property
    def terminated(self) -> bool:
        """Whether the stream's terminator was passed on: what is still missing is framing."""
        return isinstance(self._answer, Events) and self._answer.terminated

    def conclude(self) -> None:
        """Note what is known about both contents once they are complete."""
        exchange = self._exchange
        exchange.request_octets = self._upload.size
        try:
            if self._answer is not None:
                self._answer.end()
            if exchange.model is None and self._upload.size:  # an error or a cut answer didn't echo it
                exchange.model = self._upload.model()
        except Exception:  # as in `_note`
            self.misread = True
