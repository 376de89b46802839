"""One exchange alone, without a network: a fake client, and connections to Ollama that a test plays."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from proxy.event_loop.life import Life
from proxy.exchange.client.client_socket import ClientSocket
from proxy.exchange.gateway import Gateway
from proxy.exchange.message.exchange import Party, Record, Stop
from proxy.exchange.message.known_heads import Request
from proxy.exchange.message.upload import Upload
from proxy.exchange.upstream import pool, upstream
from proxy.exchange.upstream.pool import Pool
from proxy.exchange.upstream.target import Target
from proxy.policy.gate import Policy
from proxy.policy.heads import RequestHead
from tests.support.raw_http import Line, within

if TYPE_CHECKING:
    import pytest

    from proxy.exchange.client.client_socket import Ending
    from proxy.policy.refusals import Reason, Refusal

DATE = b"Tue, 01 Dec 2026 04:00:00 GMT"


class Caller:
    """A client's connection as an exchange sees it."""

    peer, peer_port, local, date = "127.0.0.1", 1, "127.0.0.1", DATE

    def __init__(self, *, chunked: bool, persistent: bool = True) -> None:
        self.by_serve = False
        self.blocked = False
        self.persistent = persistent
        self.unread = False  # something unread waits
        self.has_left = False
        self.held = False
        self.delimits = False
        self.source: upstream.Upstream | None = None
        self.upload = Upload(chunked=chunked)
        self.written = b""

    def admitted(self) -> None:
        """Be let pass."""

    def write(self, octets: bytes) -> None:
        """Take a part of the answer."""
        self.written += octets

    def hold(self) -> None:
        """Send no more content."""
        self.held = True

    def release(self) -> None:
        """Send content again."""
        self.held = False

    settle = ClientSocket.settle

    def may_have_left(self) -> bool:
        """Return whether anything waits to be read."""
        return self.unread

    @property
    def content(self) -> bytes:
        """The content of the one answer, framing included."""
        return self.written.partition(b"\r\n\r\n")[2]

    def lines(self, name: bytes) -> list[bytes]:
        """Return the values of a field in the head of the one answer."""
        head = self.written.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
        return [value for found, _, value in (line.partition(b": ") for line in head) if found.lower() == name]


class Alone:
    """One exchange between a fake client and connections without a network, which `connected` hands out."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *,
        method: str = "POST",
        path: str = "",
        version: tuple[int, int] = (1, 1),
        chunked: bool = False,
        persistent: bool = True,
        fields: dict[bytes, bytes] | None = None,
        allow: tuple[str, ...] = (),
    ) -> None:
        framing = (b"Transfer-Encoding", b"chunked") if chunked else (b"Content-Length", b"4")
        path = path or ("/v1/chat/completions" if method == "POST" else "/v1/models")
        lines = ((b"Host", b"mac"), *([framing] if method == "POST" else []), *(fields or {}).items())
        self.request = Request(RequestHead(method, path, version, lines), last=False, persistent=True)
        self.client = Caller(chunked=chunked, persistent=persistent)
        self.pool = Pool()
        self.records: list[Record] = []
        self.notes: list[tuple[str, dict[str, Any]]] = []
        self.waiting: asyncio.Future[upstream.Upstream] = asyncio.get_running_loop().create_future()
        self.connects = 0

        async def connect(*_: object) -> upstream.Upstream:
            self.connects += 1
            return await self.waiting

        monkeypatch.setattr(pool, "connect", connect)
        self.gateway = Gateway(
            Policy.of(allow=allow, max_body=2**26),
            Target("127.0.0.1", 11434, 5.0),
            self.records.append,
            lambda event, **facts: self.notes.append((event, facts)),
            pool=self.pool,
        )
        self.ended: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self.life: Life

    async def _serve(self) -> None:
        self.ended.set_result(await self.gateway.serve(self.client, self.request, 0.0))  # type: ignore[arg-type]

    async def begin(self, content: bytes | None = None) -> None:
        """Serve the request, whose `content` has come whole if it is given."""
        if content is not None:
            self.client.upload.add(content)
            self.client.upload.done = True
        self.life = Life(self._serve(), asyncio.get_running_loop())
        self.life.start()

    async def end(self) -> tuple[str, Record]:
        """Return what the connection does next, and the one record."""
        ending = await within(self.ended)
        (record,) = self.records
        return ending.name, record

    def stop(self, party: Party, reason: Reason | None = None, refusal: Refusal | None = None) -> None:
        """End it before its time."""
        self.life.cancel(Stop(party, reason, refusal))

    @staticmethod
    def connection() -> tuple[upstream.Upstream, Line]:
        """Return a connection and its transport."""
        connection, line = upstream.Upstream(), Line()
        connection.connection_made(line)  # type: ignore[arg-type]
        return connection, line

    async def connected(self) -> tuple[upstream.Upstream, Line]:
        """Let the connection come about that the exchange waits for, and see it at work."""
        connection, line = self.connection()
        self.waiting.set_result(connection)
        await turns()
        self.waiting = asyncio.get_running_loop().create_future()
        return connection, line

    def kept(self) -> tuple[upstream.Upstream, Line]:
        """Put a connection that has served before into the pool."""
        connection, line = self.connection()
        connection.octets_in = 100
        self.pool.put(connection, 0.0)
        return connection, line


async def turns(count: int = 6) -> None:
    """Let the loop turn."""
    for _ in range(count):
        await asyncio.sleep(0)
