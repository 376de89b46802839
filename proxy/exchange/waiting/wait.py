"""Keep a client waiting with an early head and pings, and report a failure that can no longer be a status."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from proxy.exchange.message.plain_chunks import chunk
from proxy.exchange.waiting.pings import Failure, Pace, early_head, failure_of, may_begin_early, ping

if TYPE_CHECKING:
    from proxy.exchange.message.exchange import Exchange, Stop
    from proxy.exchange.message.upload import Upload
    from proxy.exchange.waiting.pings import Times
    from proxy.policy.refusals import Refusal
    from proxy.policy.routes import Dialect, Route
    from proxy.reading.asked import Asked


class Client(Protocol):
    """The client's connection, as far as waiting needs it."""

    upload: Upload
    pinged: bool

    @property
    def date(self) -> bytes:
        """The HTTP-date of now."""

    @property
    def persistent(self) -> bool:
        """Whether another request may follow on it."""

    @property
    def written(self) -> int:
        """Bytes that were written to it."""

    @property
    def unsent(self) -> int:
        """Bytes that its machine hasn't acknowledged yet."""

    def write(self, octets: bytes) -> None:
        """Send bytes of a response."""

    def release(self) -> None:
        """Read the request's content again, if that was stopped."""

    def stop(self, stop: Stop) -> None:
        """End the running exchange."""


class Stream(Protocol):
    """The reader of a response's events, as far as waiting needs it."""

    terminated: bool
    events: int

    @property
    def at_border(self) -> bool:
        """Whether an event of ours may come next."""

    def last_sequence(self) -> tuple[int, str | None]:
        """Return the last sequence number, or -1, and the response's id."""


class Late:
    """A response of Ollama's that doesn't fit the early head, which its client already has."""

    __slots__ = ("_dialect", "_status", "_wait", "body")

    def __init__(self, wait: Wait, dialect: Dialect, status: int) -> None:
        self._wait = wait
        self._dialect = dialect
        self._status = status
        self.body = bytearray()

    def event(self) -> bytes:
        """Return the chunk that replaces the response's status."""
        return self._wait.failure(failure_of(self._dialect, self._status, bytes(self.body)))


class Wait:
    """Sends one client the early head and the pings of a request that waits."""

    __slots__ = ("_asked", "_client", "_dialect", "_exchange", "_pace", "_route", "_written", "keep_alive")

    def __init__(
        self, exchange: Exchange, route: Route, dialect: Dialect, asked: Asked, client: Client, times: Times
    ) -> None:
        head = exchange.head
        early = head is not None and may_begin_early(route, head, asked)
        self._exchange = exchange
        self._route = route
        self._dialect = dialect
        self._asked = asked
        self._client = client
        self._pace = Pace(times, early=early, since=exchange.first_octet or exchange.arrived)
        self._written = client.written
        self.keep_alive = False  # what an early head promised

    def __repr__(self) -> str:
        return f"<Wait of {self._exchange.id}, {self._pace}>"

    @property
    def begun(self) -> bool:
        """Whether the client got a head before Ollama gave one."""
        return self._pace.begun

    @property
    def pings(self) -> int:
        """How many pings were sent."""
        return self._pace.pings

    def tick(self, now: float, stream: Stream | None) -> None:
        """Send what is due; called each second. `stream` is Ollama's, once that is passed on in chunks."""
        client, pace = self._client, self._pace
        if client.written != self._written:
            self._written = client.written
            pace.passed(now)
        if stream is None and not pace.begun:
            if pace.head_due(now) and not self._exchange.first_octet:
                self._begin(now)
            return
        between_events = stream is None or (stream.at_border and not stream.terminated)
        if pace.ping_due(now, unsent=client.unsent, between_events=between_events):
            number = -1 if stream is None else stream.last_sequence()[0]
            model = self._asked.model or ""
            self._write(chunk(ping(self._route, model=model, at=time.time(), sequence_number=number)))
            pace.pinged(now)

    def _begin(self, now: float) -> None:
        client, exchange = self._client, self._exchange
        self.keep_alive = client.persistent
        head = early_head(
            self._dialect,
            request_id=exchange.id,
            date=client.date,
            origin=exchange.origin,
            keep_alive=self.keep_alive,
        )
        self._write(head)
        self._pace.began(now)

    def failure(self, failure: Failure) -> bytes:
        """Return the chunk that replaces a status after an early head."""
        return chunk(failure.event(self._dialect))

    def refused(self, refusal: Refusal) -> bytes:
        """Return the same chunk for a refusal of the proxy's own."""
        kind = "invalid_request_error" if refusal.status < 500 else "api_error"
        return self.failure(Failure(refusal.status, refusal.message, kind))

    def _write(self, octets: bytes) -> None:
        self._client.write(octets)
        self._client.pinged = True
        self._written = self._client.written
