"""The proxy's own requests to Ollama, over the connections that exchanges use."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from proxy.exchange.message.failures import Malformed
from proxy.exchange.upstream.states import State

if TYPE_CHECKING:
    from proxy.exchange.message.failures import UpstreamFailure
    from proxy.exchange.message.known_heads import ResponseHead
    from proxy.exchange.upstream.pool import Pool
    from proxy.exchange.upstream.target import Target

MOST = 8 * 1024 * 1024
"""Most bytes of a response. A list of a thousand models takes one megabyte."""


class Response(NamedTuple):
    """Ollama's response to a request of the proxy's own."""

    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Ollama:
    """Where Ollama is, and how to reach it."""

    pool: Pool
    target: Target

    async def ask(self, method: str, path: str, body: bytes = b"") -> Response:
        """Return Ollama's response, however long it takes; raise UpstreamFailure if there is none.

        Call it in a task. Cancelling it ends the request.
        """
        target = self.target
        connection = self.pool.take() or await self.pool.open(target.host, target.port, target.connect_timeout)
        question = _Question()
        connection.owner = question
        lines = (
            b"%b %b HTTP/1.1\r\nHost: %b\r\n" % (method.encode(), path.encode(), target.authority),
            b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body) if body else b"",
            b"\r\n",
            body,
        )
        sent_at = monotonic()
        try:
            connection.send(b"".join(lines), head_only=False)
            return await question.answer
        finally:
            if connection.state is State.IDLE:
                self.pool.put(connection, monotonic())
            else:
                connection.abandon(monotonic() - sent_at)


class _Question:
    """The owner of the connection during one request. Collects the response."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._status = 0
        self._body = bytearray()

    def response(self, head: ResponseHead | None, content: bytes, ended: bool) -> None:
        """Take what one read brought."""
        if head is not None:
            self._status = head.status
        self._body += content
        if self.answer.done():
            return
        if len(self._body) > MOST:
            self.answer.set_exception(Malformed("a response to the proxy itself is too large"))
        elif ended:
            self.answer.set_result(Response(self._status, bytes(self._body)))

    def token(self, octets: bytes) -> bool:  # noqa: ARG002 - an Owner's
        """Return False: no response here is a stream."""
        return False

    def chunk(self, octets: bytes, content: bytes) -> None:  # noqa: ARG002 - an Owner's
        """Take one chunk."""
        self.response(None, content, False)

    def failed(self, failure: UpstreamFailure) -> None:
        """Fail the request, because no more will come."""
        if not self.answer.done():
            self.answer.set_exception(failure)

    def upstream_blocked(self) -> None:
        """Do nothing: all was sent in one write."""

    def upstream_ready(self) -> None:
        """Do nothing."""
