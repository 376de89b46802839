"""One exchange on one upstream connection: content both ways, backpressure, and the truth about how it ended.

No task, no queue, no timer of its own: every move is a call from the client's connection, from the upstream's, or from
the listener's wheel. Once a status line has gone downstream there are two endings: the true one, or one that the client
can see is broken; never a clean last chunk after a failure.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import cached_property
from time import monotonic
from typing import TYPE_CHECKING, Protocol, cast

from proxy import refusals
from proxy.exchange import Party, Phase
from proxy.failures import Malformed, OutOfFiles, Unreachable, UpstreamFailure
from proxy.forwarding import request_head
from proxy.refusals import Reason, Refusal
from proxy.replies import cors_fields, error_event
from proxy.routes import Dialect
from proxy.streams import Answer, Events
from proxy.upload import LAST_CHUNK, NO_CONTENT, Upload, chunk
from proxy.upstream import State, Upstream, connect

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.exchange import Exchange, RequestHead
    from proxy.pool import Pool
    from proxy.routes import Route
    from proxy.upstream import ResponseHead

# Seconds after sending within which a reused connection that closes was stale, and not an Ollama that died of us.
STALE_WITHIN = 1.0

# Members read through their class cost 60 ns each on Python 3.11.
_CONNECT, _REQUEST, _WAIT, _CONTENT, _DONE = Phase.CONNECT, Phase.REQUEST, Phase.WAIT, Phase.CONTENT, Phase.DONE
_MESSAGES, _IDLE = Dialect.MESSAGES, State.IDLE


class Client(Protocol):
    """What a relay needs of the client's connection."""

    blocked: bool  # it takes less than has been written

    @property
    def persistent(self) -> bool:
        """Whether it may serve another request after this one, as far as can be said now."""

    def write(self, octets: bytes) -> None:
        """Send octets of the response."""

    def refuse(self, refusal: Refusal) -> None:
        """Answer in our own words: nothing has been sent yet."""

    def finish(self, now: float, *, keep_alive: bool) -> None:
        """End the exchange: its last octet is written."""

    def flush_and_close(self) -> None:
        """End the exchange and the connection so that the client sees the content is cut, after what is written."""

    def cut(self, *, reset: bool) -> None:
        """End the exchange and the connection at once."""

    def hold(self) -> None:
        """Take no more content from the client."""

    def release(self) -> None:
        """Take content again."""

    def may_have_left(self) -> bool:
        """Say whether something unread waits: more octets, or the end of the connection."""


@dataclass(frozen=True)
class Target:
    """Where Ollama is and how it is asked. Times in seconds."""

    host: str
    port: int
    connect_timeout: float
    forward_credentials: bool = False

    @cached_property
    def authority(self) -> bytes:
        """What Ollama calls itself: it answers only to names that mean loopback."""
        return f"[{self.host}]:{self.port}".encode() if ":" in self.host else f"{self.host}:{self.port}".encode()


class Relay:
    """Moves one admitted exchange to Ollama and back. `start` it once; `done` is called once, when it is over."""

    __slots__ = (
        *("_answer", "_client", "_connecting", "_done", "_exchange", "_framed", "_head"),
        *("_keep_alive", "_octets", "_over", "_pool", "_reused", "_route", "_sent_at"),
        *("_sent_first", "_target", "_upload", "_upstream", "close_delimited"),
    )

    def __init__(
        self,
        exchange: Exchange,
        route: Route,
        client: Client,
        pool: Pool,
        target: Target,
        done: Callable[[Exchange], None],
    ) -> None:
        self._exchange = exchange
        self._head: RequestHead = exchange.head  # type: ignore[assignment]
        self._route = route
        self._client = client
        self._pool = pool
        self._target = target
        self._done = done
        self._upstream: Upstream | None = None
        self._upload = Upload(self._head) if self._head.framing else NO_CONTENT
        self._reused = False  # the connection has served another exchange before
        self._sent_first = 0.0  # when the request was sent, in whole or its first octets; 0.0 is never
        self._over = False
        self._octets = 0  # of the response's content
        self.close_delimited = False  # the end of the client's connection is the end of the content
        self._sent_at: float  # the same of its last octets so far
        self._connecting: asyncio.Task[None] | None  # kept while it runs, for the event loop alone would not
        self._answer: Answer | Events | None = None
        self._framed: bool  # the response, from its head on, goes downstream in chunks
        self._keep_alive: bool

    # --- towards Ollama ---

    def start(self, now: float, content: bytes | None = None) -> None:
        """Take an idle connection, or open one. `content` is all of the request's, if that has come already."""
        if self._over:
            return
        if content:
            self._exchange.request_octets = len(content)
            self._upload.add(content)
        if content is not None:
            self._upload.done = True
        self._exchange.phase = _CONNECT
        connection = self._pool.take()
        if connection is None:
            self._connect()
        else:
            self._reused = True
            self._send(connection, now)

    def _connect(self) -> None:
        self._connecting = asyncio.get_running_loop().create_task(self._open())

    async def _open(self) -> None:
        try:
            connection = await connect(self._target.host, self._target.port, self._target.connect_timeout)
        except (Unreachable, OutOfFiles) as failure:
            if not self._over:
                self._fail(failure)
            return
        finally:
            self._connecting = None
        if self._over:
            self._give_back(connection, monotonic())
        else:
            self._send_late(connection)

    def _send_late(self, connection: Upstream, *, looked: bool = False) -> None:
        """Send on a connection that was waited for, if it still stands."""
        if connection.reusable:
            self._send(connection, monotonic(), looked=looked)
        else:
            self._upstream = connection
            self.failed(UpstreamFailure("closed before the request was sent"))

    def _send(self, connection: Upstream, now: float, *, looked: bool = False) -> None:
        """Send, unless the client has left: a request that nobody waits for leaks a connection inside Ollama."""
        head, upload, target = self._head, self._upload, self._target
        self._upstream = connection
        connection.owner = self
        if upload.done and not looked and self._client.may_have_left():
            # Two turns of the loop: the first runs before the sockets are read again, the second after.
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self._looked)
            return
        self._exchange.phase = _WAIT if upload.done else _REQUEST
        self._sent_at = self._sent_first = now
        if self._client.blocked:  # it hasn't taken the answer before this one yet
            connection.pause()
        if not upload.done:
            self._client.release()  # before sending, which holds it again where Ollama doesn't take that much
        forwarded = head.forwarded
        if forwarded is None or forwarded[0] is not target:
            octets = request_head(head, target.authority, forward_credentials=target.forward_credentials)
            forwarded = head.forwarded = (target, octets)
        octets = forwarded[1]
        connection.send(
            octets + upload.octets() if upload.size or upload.chunked else octets, head_only=head.method == "HEAD"
        )
        if upload.size and upload.full:
            upload.let_go()

    def _looked(self) -> None:
        if not self._over and self._upstream is not None:
            self._send_late(self._upstream, looked=True)

    def content(self, data: bytes) -> None:
        """Take content from the client and send it on, or hold it until there is somewhere to send it."""
        self._exchange.request_octets += len(data)
        upload = self._upload
        upload.add(data)
        if not self._sent_first:
            if upload.full:
                self._client.hold()
        elif self._upstream is not None:
            self._sent_at = monotonic()
            self._upstream.send_content(upload.framed(data))
            if upload.full:
                upload.let_go()

    def content_end(self) -> None:
        """Learn that the request's content is whole."""
        self._upload.done = True
        self._client.release()  # there is nothing to hold back any more, and a client that isn't read leaves unseen
        if self._exchange.phase is _REQUEST:
            self._exchange.phase = _WAIT
        if self._upload.chunked and self._sent_first and self._upstream is not None:
            self._upstream.send_content(LAST_CHUNK)

    def content_failed(self, refusal: Refusal, party: Party) -> None:
        """Give the exchange up because its content is broken, too large or too slow; answer so if there is time."""
        self._abandon()
        self._cut(refusal.reason, party, refusal)

    def upstream_blocked(self) -> None:
        """Hold the client's upload: Ollama doesn't take it as fast as it comes."""
        if not self._upload.done:
            self._client.hold()

    def upstream_ready(self) -> None:
        """Let the client's upload go on."""
        self._client.release()

    # --- towards the client ---

    def response(self, head: ResponseHead | None, content: bytes, ended: bool) -> None:
        """Write what one read from Ollama brought, in one go, never holding it back."""
        now = monotonic()
        octets = b"" if head is None else self._begin(head, now)
        if content:
            self._note(content)
            octets += chunk(content) if self._framed else content
        if ended:
            self._end(octets, now)
        else:
            self._client.write(octets)

    def chunk(self, octets: bytes, content: bytes) -> None:
        """Write one chunk as it came."""
        self._note(content)
        self._client.write(octets if self._framed else content)

    def _note(self, content: bytes) -> None:
        """Count content, and read it in passing."""
        self._octets += len(content)
        if self._answer is not None:
            try:
                self._answer.feed(content)
            except Exception:  # a mistake of ours in reading may cost facts, never the answer
                self._answer = None
                self._exchange.reason = Reason.INTERNAL

    def _end(self, octets: bytes, now: float) -> None:
        """Write the last of what Ollama sent, and end the exchange, unless an event stream lacks its terminator."""
        answer, client = self._answer, self._client
        connection, self._upstream = self._upstream, None
        cut = isinstance(answer, Events) and not answer.complete()
        if self._framed and not cut:
            octets += LAST_CHUNK
        if octets:
            client.write(octets)
        if connection is not None:
            if self._upload.done and connection.state is _IDLE:
                self._give_back(connection, now)
            else:
                connection.close()
        if cut:
            self._break_off(Reason.MISSING_TERMINATOR, Party.UPSTREAM)
            return
        self._exchange.phase = _DONE
        self._over = True
        self._conclude(now)
        client.finish(now, keep_alive=self._keep_alive)

    def _begin(self, head: ResponseHead, now: float) -> bytes:
        """Return the response head for the client, and decide how the content goes and whether it is read."""
        exchange, status, length = self._exchange, head.status, head.length
        exchange.status = status
        exchange.phase = _CONTENT
        exchange.first_octet = now
        exchange.stream = head.streams
        dialect = self._route.dialect
        if dialect is None or status != 200 or head.encoded:
            self._answer = None
        elif head.streams:
            self._answer = Events(exchange, dialect)
            length = None  # with it the content could end without its terminator and look whole
        else:
            self._answer = Answer(exchange)
        http_1_1 = self._head.version == (1, 1)
        open_ended = length is None and self._head.method != "HEAD" and status not in (204, 304)
        self._framed = open_ended and http_1_1
        self.close_delimited = open_ended and not http_1_1
        self._keep_alive = self._client.persistent and not self.close_delimited
        identity = exchange.id.encode()
        if self._framed:
            octets = b"%b\r\nTransfer-Encoding: chunked\r\nx-request-id: %b" % (head.forwarded, identity)
        elif length is not None and status != 204:
            octets = b"%b\r\nContent-Length: %d\r\nx-request-id: %b" % (head.forwarded, length, identity)
        else:
            octets = b"%b\r\nx-request-id: %b" % (head.forwarded, identity)
        if dialect is _MESSAGES:
            octets += b"\r\nrequest-id: " + identity
        if exchange.origin is not None:
            octets += b"\r\n" + cors_fields(exchange.origin).removesuffix(b"\r\n")
        if not self._keep_alive:
            octets += b"\r\nConnection: close"
        elif not http_1_1:
            octets += b"\r\nConnection: keep-alive"
        return octets + b"\r\n\r\n"

    def failed(self, failure: UpstreamFailure) -> None:
        """End as it demands; start again on a stale connection, never a POST that was sent (RFC 9110, 9.2.2)."""
        connection, self._upstream = cast("Upstream", self._upstream), None
        at = self._sent_first  # 0.0: nothing was
        stale = self._reused and (not at or (not connection.octets_in and monotonic() - at < STALE_WITHIN))
        if stale and (not at or self._head.method == "GET") and self._upload.whole:
            self._reused, self._sent_first = False, 0.0
            self._exchange.phase = _CONNECT
            self._connect()
            return
        connection.close()
        self._fail(failure, stale=stale)

    def _fail(self, failure: UpstreamFailure, *, stale: bool = False) -> None:
        if isinstance(failure, OutOfFiles):
            self._cut(Reason.OVERLOADED, Party.PROXY, refusals.OUT_OF_FILES)
            return
        if isinstance(failure, Unreachable):
            refusal = refusals.UPSTREAM_UNREACHABLE if failure.refused else refusals.UPSTREAM_TIMEOUT
        elif isinstance(failure, Malformed):
            refusal = refusals.UPSTREAM_MALFORMED
        else:
            refusal = refusals.UPSTREAM_STALE if stale else refusals.UPSTREAM_CLOSED
        self._cut(refusal.reason, Party.UPSTREAM, refusal)

    def _cut(self, reason: Reason, party: Party, refusal: Refusal) -> None:
        """End the exchange early: with an answer of ours while there is time for one, visibly broken otherwise."""
        if self._exchange.status is not None:
            self._break_off(reason, party)
            return
        self._over = True
        self._exchange.ended_by = party
        self._exchange.reason = reason
        self._exchange.status = refusal.status
        self._exchange.first_octet = now = monotonic()
        self._client.refuse(refusal)
        self._conclude(now)

    def _break_off(self, reason: Reason, party: Party) -> None:
        """End content that isn't whole, and never cleanly; say why, where an event of ours may come next."""
        self._over = True
        self._exchange.ended_by = party
        self._exchange.reason = reason
        answer = self._answer
        said = refusals.STREAM_FAILURES.get(reason)
        if isinstance(answer, Events) and self._framed and answer.at_border and not answer.terminated and said:
            number, response_id = answer.last_sequence()
            event = error_event(answer.dialect, said, sequence_number=number + 1, response_id=response_id)
            self._client.write(chunk(event))
        if self.close_delimited:
            self._client.cut(reset=True)
        else:
            self._client.flush_and_close()
        self._conclude(monotonic())

    # --- who left first ---

    def give_up(self, party: Party, reason: Reason | None = None) -> None:
        """Give up, for `party` left or has had enough; closing the connection is what makes Ollama stop generating."""
        if self._over:
            return
        self._over = True
        self._exchange.ended_by = party
        self._exchange.reason = reason or self._exchange.reason
        self._abandon()
        self._conclude(monotonic())

    def drain_over(self) -> None:
        """Stop now: the time for draining is up."""
        if not self._over:
            self._abandon()
            self._cut(Reason.DRAINING, Party.PROXY, refusals.DRAINING)

    def client_blocked(self) -> None:
        """Read no more from Ollama: the client is slower."""
        if self._upstream is not None:
            self._upstream.pause()

    def client_ready(self) -> None:
        """Read from Ollama again."""
        if self._upstream is not None:
            self._upstream.resume()

    def tick(self, now: float) -> None:
        """Let held content go once no repetition is due any more."""
        if self._upload.size and self._upload.whole and self._sent_first and now - self._sent_first > STALE_WITHIN:
            self._upload.let_go()

    def _abandon(self) -> None:
        connection, self._upstream = self._upstream, None
        if connection is not None and not self._sent_first:
            self._give_back(connection, monotonic())
        elif connection is not None:
            connection.abandon(monotonic() - self._sent_at)

    def _give_back(self, connection: Upstream, now: float) -> None:
        if connection.paused:
            connection.resume()
        surplus = self._pool.put(connection, now)
        if surplus is not None:
            surplus.close()

    def _conclude(self, now: float) -> None:
        """Close the books. Nothing may be written for this exchange any more."""
        exchange = self._exchange
        exchange.ended = now
        exchange.rest = self._read_rest
        exchange.response_octets += self._octets
        self._done(exchange)

    def _read_rest(self) -> None:
        """Read what only the line tells, beside its like: between two requests it took twice as long."""
        exchange = self._exchange
        try:
            if self._answer is not None:
                self._answer.end()
            if exchange.model is None and self._upload.size:  # an error or a cut answer didn't echo it
                exchange.model = self._upload.model()
        except Exception:  # as in `_note`
            exchange.reason = Reason.INTERNAL
