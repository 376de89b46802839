"""What a slow side costs: little memory of the real process, the other side held, and not one byte lost."""

from __future__ import annotations

import asyncio
import hashlib
import resource
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.support.linux.kernel_sockets import queues
from tests.support.patience import PATIENCE
from tests.support.raw_http import HANG, chunk, ok, stream_head, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from tests.support.proxy_process import Process
    from tests.support.raw_http import Upstream, Wire

    Program = Callable[..., Awaitable[Process]]

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's memory so")

MIB = 2**20
GROWTH = 4 * MIB
"""Bytes that the process may grow by, whatever the size of the content."""

SOCKETS = 24 * MIB
"""Bytes that the system's buffers between client and upstream take at most: 4 to send and 6 to receive, twice."""

PIECE = bytes(range(256)) * 256


async def held(process: Process, *, reads: dict[str, int], writes: dict[str, int]) -> None:
    """Wait until a process has stopped reading one connection because another takes no more.

    It sleeps, though bytes wait to be read: it would be running, or wait for its turn, if it still asked for them.
    """
    seen = psutil.Process(process.pid)

    def sleeps() -> tuple[bool, object]:
        return seen.status() == psutil.STATUS_SLEEPING, seen.num_ctx_switches()

    def holds() -> bool:
        before = sleeps()
        blocked = queues(**reads).unread > 0 and queues(**writes).unsent > 0
        return before[0] and blocked and sleeps() == before

    await until(holds)


class Gauge:
    """An upstream that takes uploads, or sends a download, only when it is let, and counts and hashes the bytes."""

    def __init__(self, download: int = 0) -> None:
        self.octets = 0
        self.sum = hashlib.blake2b()
        self.go = asyncio.Event()
        self.begun = asyncio.Event()
        self.port = 0
        self._download = download

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one exchange."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.begun.set()
            if self._download:
                await self._send(writer)
            else:
                await self.go.wait()
                await (self._take_chunks(reader) if b"chunked" in head else self._take(reader, 64 * MIB))
                writer.write(ok())
            await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        writer.write(ok(b"")[:-4].replace(b": 0", b": %d" % self._download) + b"\r\n\r\n")
        while self.octets < self._download:
            writer.write(PIECE)
            await writer.drain()
            self._note(PIECE)

    async def _take(self, reader: asyncio.StreamReader, count: int) -> None:
        while count and (data := await reader.read(min(count, MIB))):
            count -= len(data)
            self._note(data)

    async def _take_chunks(self, reader: asyncio.StreamReader) -> None:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            await self._take(reader, size)
            await reader.readexactly(2)

    def _note(self, data: bytes) -> None:
        self.octets += len(data)
        self.sum.update(data)


@pytest.fixture
async def gauge(request: pytest.FixtureRequest) -> AsyncIterator[Gauge]:
    """Give an upstream that sends as many bytes as the test's parameter says; none: that takes uploads."""
    gauge = Gauge(getattr(request, "param", 0))
    server = await asyncio.start_server(gauge.serve, "127.0.0.1")
    gauge.port = server.sockets[0].getsockname()[1]
    yield gauge
    server.close()


@pytest.fixture
def client() -> Iterator[socket.socket]:
    """Give a socket of a client, which reads and writes nothing by itself."""
    with socket.socket() as sock:
        sock.setblocking(False)
        yield sock


async def settled(process: Process, client: socket.socket, head: str) -> int:
    """Send a request's head from `client`, after a first request; return the process's memory between the two."""
    await process.says("listening")
    await process.ask("GET", "/warm")
    memory = process.memory()
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", process.port))
    await loop.sock_sendall(client, f"{head}\r\nHost: mac\r\n\r\n".replace("\n\r\n\r\n", "\r\n\r\n").encode())
    return memory


class Upload:
    """A client's upload of 64 MiB on its way; `octets` of it are out of its hands."""

    def __init__(self, client: socket.socket, *, chunked: bool) -> None:
        self.octets = 0
        self.sum = hashlib.blake2b()
        self._client = client
        self._chunked = chunked

    async def send(self) -> None:
        """Send all of it."""
        loop = asyncio.get_running_loop()
        while self.octets < 64 * MIB:
            await loop.sock_sendall(self._client, chunk(PIECE) if self._chunked else PIECE)
            self.sum.update(PIECE)
            self.octets += len(PIECE)
        if self._chunked:
            await loop.sock_sendall(self._client, b"0\r\n\r\n")


@pytest.mark.parametrize("framing", ["Content-Length: 67108864", "Transfer-Encoding: chunked"])
async def test_upload(program: Program, gauge: Gauge, client: socket.socket, framing: str) -> None:
    """A stalled Ollama holds the client at little cost; when it goes on, it gets every byte of the upload."""
    process = await program(PROXY_UPSTREAM=f"http://127.0.0.1:{gauge.port}", PROXY_LOCAL_ONLY="false")
    memory = await settled(process, client, f"POST /api/show HTTP/1.1\r\n{framing}")
    upload = Upload(client, chunked="chunked" in framing)
    sending = asyncio.create_task(upload.send())
    await gauge.begun.wait()
    await held(process, reads={"local": process.port}, writes={"remote": gauge.port})
    assert upload.octets < SOCKETS
    assert process.memory() - memory < GROWTH
    gauge.go.set()
    async with asyncio.timeout(PATIENCE):
        await sending
        answer = await asyncio.get_running_loop().sock_recv(client, 65536)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert (gauge.octets, gauge.sum.digest()) == (64 * MIB, upload.sum.digest())
    assert process.memory() - memory < GROWTH


async def read(client: socket.socket, count: int) -> bytes:
    """Return the hash of the next `count` bytes of content, the head before them left out."""
    loop = asyncio.get_running_loop()
    taken, total = hashlib.blake2b(), 0
    head, _, data = (await loop.sock_recv(client, 65536)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    while True:
        taken.update(data)
        total += len(data)
        if total >= count:
            return taken.digest()
        data = await loop.sock_recv(client, 2**18)
        assert data, f"the content broke off at {total}"


@pytest.mark.parametrize("gauge", [256 * MIB], indirect=True)
async def test_download(program: Program, gauge: Gauge, client: socket.socket) -> None:
    """A client that reads nothing holds Ollama at little cost; when it reads, it gets every byte of the answer."""
    process = await program(PROXY_UPSTREAM=f"http://127.0.0.1:{gauge.port}", PROXY_LOCAL_ONLY="false")
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    memory = await settled(process, client, "GET /api/tags HTTP/1.1")
    await gauge.begun.wait()
    await held(process, reads={"remote": gauge.port}, writes={"local": process.port})
    assert gauge.octets < SOCKETS
    assert process.memory() - memory < GROWTH
    async with asyncio.timeout(PATIENCE):
        digest = await read(client, 256 * MIB)
    assert digest == gauge.sum.digest()
    assert process.memory() - memory < GROWTH


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Raise the limit of open files for both ends of some hundred streams."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_idle_streams(program: Program, upstream: Upstream, descriptors: None) -> None:
    """A stream that waits for its next token costs 16 KiB of memory, give or take what the system rounds up."""
    count, token = 500, chunk(b'data: {"model":"m"}\n\n')
    upstream.answers(stream_head(), token, HANG)
    process = await program()
    await process.says("listening")

    clients: list[Wire] = []

    async def begin() -> None:
        client = await process.connect()
        clients.append(client)
        await client.request("POST", "/v1/chat/completions", b'{"model":"m"}')
        await client.read_until(token)

    for _ in range(100):
        await begin()
    memory = process.memory()
    for _ in range(count):
        await begin()
    assert (process.memory() - memory) / count < 1.5 * 16 * 1024
    for client in clients:
        client.close()
