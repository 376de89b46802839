"""Raw HTTP for tests, byte by byte: a client, a scripted upstream, and the proxy between them.

All of it is in one process and on loopback. Nothing here parses more than a test needs.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import re
import socket
import struct
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from proxy.exchange.client.deadlines import Limits
from proxy.exchange.gateway import Gateway
from proxy.exchange.upstream.pool import Pool
from proxy.exchange.upstream.target import Target
from proxy.exchange.upstream.upstream import GRACE
from proxy.logs.audit import line
from proxy.policy.gate import Policy
from proxy.serving.binding import bind
from proxy.serving.clients import Clients
from tests.support.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


# --- the upstream -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """Something that a scripted upstream does instead of sending bytes."""

    name: str


CUT = Step("cut")  # reset the connection
CLOSE = Step("close")  # end it with a FIN
HANG = Step("hang")  # go on no more, and keep the connection
NEXT = Step("next")  # wait until the test calls `proceed()`


class Peer:
    """One connection that the scripted upstream was given."""

    def __init__(self) -> None:
        self.octets = bytearray()  # requests as they come, framing included
        self.closed = asyncio.Event()
        self.reading = asyncio.Event()


class Upstream:
    """A server that reads requests by Content-Length or chunks, and answers each with the next script.

    A script is a tuple of bytes and Steps; the last one is used again and again. `read=False` reads nothing after the
    head, as a stalled Ollama does; `early=True` answers before it reads content. With `lists`, it says at once which
    `models` it has and that none is loaded, as a real Ollama would, and notes nothing. Nor does it note what the proxy
    asks about a single model, which it has not, or about the cloud, which is off, unless `told` is False.
    """

    def __init__(self) -> None:
        self.scripts: list[tuple[bytes | Step, ...]] = [()]
        self.peers: list[Peer] = []
        self.requests: list[bytes] = []  # as bytes: head and content, framing included
        self.arrived = asyncio.Event()
        self.read = True
        self.early = False
        self.lists = False
        self.told = True
        self.models: tuple[str, ...] = ()
        self.port = 0
        self._proceed = asyncio.Semaphore(0)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    def answers(self, *script: bytes | Step) -> None:
        """Answer every further request so."""
        self.scripts = [script]

    def answers_in_turn(self, *scripts: tuple[bytes | Step, ...]) -> None:
        """Answer one request after the other so."""
        self.scripts = list(scripts)

    def proceed(self) -> None:
        """Let a script that waits at NEXT go on."""
        self._proceed.release()

    async def start(self, port: int = 0) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """End every connection, and go on listening."""
        for writer in self._writers:
            writer.transport.abort()

    async def stop(self) -> None:
        """End listening and every connection, whatever is still to be sent: uvloop would wait for it forever."""
        if self._server is not None:
            self._server.close()
        stuck = [writer for writer in self._writers if writer.transport.get_write_buffer_size()]
        for writer in self._writers:
            writer.transport.abort()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if stuck:  # a proxy that reads nothing doesn't see the end, and closes its side when its time of grace is over
            await asyncio.sleep(2 * GRACE)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.append(writer)
        peer = Peer()
        self.peers.append(peer)
        try:
            while await self._one(reader, writer, peer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            peer.closed.set()
            self._tasks.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        if self.lists and head.startswith((b"GET /api/tags ", b"GET /api/ps ")):
            models = self.models if head.startswith(b"GET /api/tags ") else ()
            writer.write(ok(json.dumps({"models": [{"name": name} for name in models]}).encode()))
            return True
        own = b"\r\nvia:" not in head.lower()  # asked by the proxy itself, not by a client
        if self.told and own and head.startswith((b"POST /api/show ", b"GET /api/status ")):
            await self._content(head, reader, Peer())
            about_cloud = head.startswith(b"GET ")
            writer.write(ok(b'{"cloud":{"disabled":true}}') if about_cloud else NOT_FOUND)
            return True
        peer.octets += head
        if not self.read:
            self.requests.append(head)
            self.arrived.set()
            await asyncio.Event().wait()
        content = b"" if self.early else await self._content(head, reader, peer)
        self.requests.append(head + content)
        self.arrived.set()
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        for step in script:
            if isinstance(step, bytes):
                writer.write(step)
                await writer.drain()
            elif step is NEXT:
                await self._proceed.acquire()
            elif step is HANG:
                await reader.read()
                return False
            else:
                if step is CUT:
                    sock = writer.get_extra_info("socket")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    writer.transport.abort()
                return False
        return True

    async def _content(self, head: bytes, reader: asyncio.StreamReader, peer: Peer) -> bytes:
        start = len(peer.octets)
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if length is not None:
            await self._take(int(length[1]), reader, peer)
        elif re.search(rb"(?i)\r\ntransfer-encoding: *chunked", head):
            size = 1
            while size:
                line = await reader.readuntil(b"\r\n")
                peer.octets += line
                size = int(line, 16)
                await self._take(size + 2, reader, peer)
        return bytes(peer.octets[start:])

    async def _take(self, count: int, reader: asyncio.StreamReader, peer: Peer) -> None:
        while count:
            data = await reader.read(min(count, 2**16))
            if not data:
                raise ConnectionError("the content broke off")
            peer.octets += data
            count -= len(data)


# --- the proxy --------------------------------------------------------------------------------------------------------

LIMITS = Limits(
    max_head=65536,
    max_body=64 * 2**20,
    head_timeout=10.0,
    body_timeout=60.0,
    stall_timeout=60.0,
    max_connections=4096,
    max_connections_per_client=0,
)


@dataclass
class Proxy:
    """The whole gateway, from accept to audit line, on a port of 127.0.0.1 that the system chose."""

    upstream_port: int
    allow: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    forward_credentials: bool = False
    connect_timeout: float = 5.0
    limits: Limits = LIMITS
    identities: Any = None
    pool: Pool = field(default_factory=Pool)
    audit: list[dict[str, Any]] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    port: int = 0
    wires: list[Wire] = field(default_factory=list)

    async def start(self) -> None:
        """Listen; `port` is then known."""
        policy = Policy.of(
            allow=self.allow,
            allowed_hosts=self.allowed_hosts,
            allowed_origins=self.allowed_origins,
            max_body=self.limits.max_body,
        )
        target = Target("127.0.0.1", self.upstream_port, self.connect_timeout, self.forward_credentials)
        self.gateway = Gateway(policy, target, self._write, self._note, self.identities, self.pool)
        self.clients = Clients(self.gateway, self.limits)
        sock = bind("127.0.0.1", 0)
        self.server = await asyncio.get_running_loop().create_server(self.clients, sock=sock)
        self.port = sock.getsockname()[1]
        self._changed = asyncio.Event()

    async def stop(self) -> None:
        """End listening and every connection, the clients' ends too."""
        self.server.close()
        for wire in self.wires:
            wire.close()
        await self.clients.drain(0)
        self.gateway.close()

    def limit(self, **limits: Any) -> None:
        """Set limits for connections to come."""
        self.limits = self.clients.limits = replace(self.limits, **limits)

    def pass_time(self, seconds: float) -> None:
        """Turn the wheel as if `seconds` had gone by, after it has looked at things as they are."""
        now = time.monotonic()
        for moment in (now, now + seconds):
            self.clients.tick(moment)
            self.gateway.tick(moment)

    def _write(self, exchange: Any) -> None:
        self.audit.append(json.loads(line(exchange, "5d1c9a0e", len(self.audit) + 1)))
        self._changed.set()

    def _note(self, event: str, **fields: Any) -> None:
        self.notes.append({"event": event, **fields})

    async def lines(self, count: int = 1) -> list[dict[str, Any]]:
        """Return the audit lines once there are `count`."""
        async with asyncio.timeout(PATIENCE):
            while len(self.audit) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.audit

    async def connect(self, source: str = "") -> Wire:
        """Return a raw client of this proxy, from the address `source` if it matters."""
        self.wires.append(await Wire.open(self.port, source))
        return self.wires[-1]


# --- the client -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """A response as a strict reader sees it. `whole`: its framing says that nothing is missing."""

    status: int
    fields: dict[str, str]  # lower-cased names; a repeated one keeps its last value
    content: bytes
    whole: bool
    head: bytes


class Wire:
    """A raw client: sends bytes, reads bytes, and knows just enough HTTP to find the end of a response."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int, source: str = "") -> Wire:
        """Connect to `port` of 127.0.0.1, from the address `source` if it matters."""
        local = (source, 0) if source else None
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=2**26, local_addr=local))

    def begin_to_send(self, octets: bytes) -> None:
        """Send `octets` as they are taken."""
        self._writer.write(octets)

    async def send(self, octets: bytes) -> None:
        """Send `octets`."""
        self._writer.write(octets)
        await self._writer.drain()

    async def request(self, method: str, target: str, content: bytes | None = None, **fields: str) -> None:
        """Send a well-formed request; underscores in names of `fields` stand for hyphens."""
        lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
        if content is not None:
            lines.append(f"Content-Length: {len(content)}")
        await self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + (content or b""))

    async def answer(self, *, to_head: bool = False, patience: float = PATIENCE) -> Answer:
        """Read one response; `to_head` when it answers HEAD. A connection that ends too early makes it not `whole`."""
        async with asyncio.timeout(patience):
            head = await self._reader.readuntil(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            pairs = [line.split(": ", 1) for line in head.decode("latin-1").split("\r\n")[1:-2]]
            fields = {name.lower(): value for name, value in pairs}
            if to_head or status in (204, 304) or status < 200:
                return Answer(status, fields, b"", True, head)
            if fields.get("transfer-encoding") == "chunked":
                content, whole = await self._chunks()
            elif "content-length" in fields:
                length = int(fields["content-length"])
                content = await self._some(length)
                whole = len(content) == length
            else:
                content, whole = await self._to_the_end()
            return Answer(status, fields, content, whole, head)

    async def _some(self, length: int) -> bytes:
        try:
            return await self._reader.readexactly(length)
        except asyncio.IncompleteReadError as error:
            return error.partial
        except ConnectionError:
            return b""

    async def _chunks(self) -> tuple[bytes, bool]:
        content = b""
        try:
            while size := int(await self._reader.readuntil(b"\r\n"), 16):
                content += (await self._reader.readexactly(size + 2))[:-2]
            await self._reader.readexactly(2)
        except (asyncio.IncompleteReadError, ConnectionError):
            return content, False
        return content, True

    async def _to_the_end(self) -> tuple[bytes, bool]:
        content = b""
        try:
            while data := await self._reader.read(65536):
                content += data
        except ConnectionError:
            return content, False
        return content, True

    async def ends_by_a_reset(self) -> bool:
        """Read all there is, and return whether the connection ends by a reset."""
        async with asyncio.timeout(PATIENCE):
            return not (await self._to_the_end())[1]

    async def read(self, count: int = 65536) -> bytes:
        """Read what is there, at least one byte unless the connection has ended."""
        async with asyncio.timeout(PATIENCE):
            return await self._reader.read(count)

    async def read_until(self, end: bytes) -> bytes:
        """Read up to and with `end`."""
        async with asyncio.timeout(PATIENCE):
            return await self._reader.readuntil(end)

    async def read_until_closed(self) -> bytes:
        """Read all there is, up to the end or a reset of the connection."""
        async with asyncio.timeout(PATIENCE):
            return (await self._to_the_end())[0]

    @property
    def address(self) -> tuple[str, int]:
        """Where it connects from."""
        found: tuple[str, int] = self._writer.get_extra_info("sockname")
        return found

    def stop_reading(self) -> None:
        """Take nothing more off the connection."""
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]

    def read_on(self) -> None:
        """Take what comes again."""
        self._writer.transport.resume_reading()  # type: ignore[attr-defined]

    def vanish(self) -> None:
        """Take nothing more off the network, not even to acknowledge it, as a laptop whose lid is closed (Linux)."""
        drop = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF_RET with 0 bytes (linux/filter.h)
        program = struct.pack("HL", 1, ctypes.addressof(drop))
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, 26, program)  # SO_ATTACH_FILTER

    def half_close(self) -> None:
        """End the sending side."""
        self._writer.write_eof()

    def close(self, *, reset: bool = False) -> None:
        """Leave."""
        if reset:
            sock = self._writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._writer.transport.abort()
        else:
            self._writer.close()


async def until(condition: Callable[[], Any], *, patience: float = PATIENCE) -> None:
    """Wait until `condition` holds, looking each time the loop has turned."""
    async with asyncio.timeout(patience):
        while not condition():
            await asyncio.sleep(0.001)


async def within(awaitable: Awaitable[Any], *, patience: float = PATIENCE) -> Any:
    """Return what `awaitable` brings, in time."""
    async with asyncio.timeout(patience):
        return await awaitable


NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}"


def ok(content: bytes = b"{}", content_type: bytes = b"application/json") -> bytes:
    """Return a whole 200 response."""
    return b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b" % (
        content_type,
        len(content),
        content,
    )


def stream_head(content_type: bytes = b"text/event-stream") -> bytes:
    """Return the head of a chunked 200 response."""
    return b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % content_type


def chunk(content: bytes) -> bytes:
    """Return `content` as one chunk."""
    return b"%x\r\n%b\r\n" % (len(content), content)


LAST_CHUNK = b"0\r\n\r\n"


class Line:
    """A transport without a network: it remembers what was asked of it."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.reading = True
        self.gone = False
        self.high = 0

    def write(self, octets: bytes) -> None:
        """Take bytes, as long as there is a connection."""
        assert not self.gone, "uvloop raises when a closed connection is written to"
        self.written.append(octets)

    def is_closing(self) -> bool:
        """Return whether it was closed."""
        return self.gone

    def abort(self) -> None:
        """Close; the test notifies the owner."""
        self.gone = True

    def pause_reading(self) -> None:
        """Read no more."""
        assert not self.gone, "uvloop raises when a closed connection is paused"
        self.reading = False

    def resume_reading(self) -> None:
        """Read again."""
        assert not self.gone, "uvloop raises when a closed connection is resumed"
        self.reading = True

    def set_write_buffer_limits(self, high: int) -> None:
        """Note the limit."""
        self.high = high
