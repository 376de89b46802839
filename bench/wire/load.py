"""Small requests as fast as they are answered: sent by wrk if it is installed, otherwise by our own client."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import subprocess
from collections import deque
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from bench.wire.traffic import cycle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

_OPENED_AT_ONCE = 64

# Fields of the one request that is always the same.
FIELDS = {
    "User-Agent": "OpenAI/Python 3.54.0",
    "Accept": "application/json",
    "Accept-Encoding": "gzip, deflate",
    "Authorization": "Bearer unused",
    "Content-Type": "application/json",
    "X-Stainless-Lang": "python",
}


def request(method: str, path: str, content: bytes = b"") -> bytes:
    """Return the bytes of a request."""
    fields = "".join(f"{name}: {value}\r\n" for name, value in FIELDS.items())
    length = f"Content-Length: {len(content)}\r\n" if method == "POST" else ""
    return f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{fields}{length}\r\n".encode() + content


def chat(order: str = "", padding: int = 0) -> bytes:
    """Return a chat request whose answer follows `order` (see `upstream`), with this much more text in it."""
    stream = b"true" if "chunks" in order else b"false"
    return b'{"model":"tiny","stream":%b,"messages":[{"role":"user","content":"<%b>Say something.%b"}],"seed":7}' % (
        stream,
        order.encode(),
        b" and more" * (padding // 9),
    )


_SCRIPT = """
local requests, at = {}, 0
local file = io.open("@FILE@", "rb")
while true do
  local length = file:read("*n")
  if not length then break end
  file:read(1)
  requests[#requests + 1] = file:read(length)
end
file:close()
request = function()
  at = at % #requests + 1
  return requests[at]
end
"""
"""Reads requests, each preceded by its length, and sends them in turn."""


@dataclass(frozen=True)
class Asked:
    """The result of a run."""

    requests: int
    seconds: float


class Wrk:
    """The load generator wrk, with one thread."""

    name = "wrk"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def run(self, port: int, asked: Sequence[bytes], connections: int, seconds: float) -> Asked:
        """Keep `connections` busy with the requests `asked`, one after the other."""
        script, requests = self._folder / "request.lua", self._folder / "requests"
        requests.write_bytes(b"".join(b"%d\n%b" % (len(each), each) for each in asked))
        script.write_text(_SCRIPT.replace("@FILE@", str(requests)))
        url = f"http://127.0.0.1:{port}/"
        command = ("wrk", "-t1", f"-c{connections}", f"-d{max(1, int(seconds))}s", "-s", str(script), url)
        done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: ASYNC221 - nothing else runs
        counted = re.search(r"(\d+) requests in ([\d.]+)(m?s)", done.stdout)
        if counted is None or "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
            raise RuntimeError(f"port {port}: {done.stdout}")
        return Asked(int(counted[1]), float(counted[2]) / (1000 if counted[3] == "ms" else 1))


class Own:
    """Our own load generator. It uses more of its core, so the rate means less. The cost of a request is the same."""

    name = "our own client, because wrk is not on the PATH"

    async def run(self, port: int, asked: Sequence[bytes], connections: int, seconds: float) -> Asked:
        """Keep `connections` busy with the requests `asked`, one after the other."""
        async with crowd(port, asked, connections) as found:
            return await found.run(connections, seconds)


def generator(folder: Path, *, wrk: bool = True) -> Wrk | Own:
    """Return the load generator that is available."""
    return Wrk(folder) if wrk and shutil.which("wrk") else Own()


@contextlib.asynccontextmanager
async def crowd(
    port: int, messages: bytes | Sequence[bytes], connections: int, status: int = 200
) -> AsyncIterator[Crowd]:
    """Open this many connections, which send `messages` in turn and expect `status`."""
    loop = asyncio.get_running_loop()
    found = Crowd(cycle(messages), b"HTTP/1.1 %d" % status)
    try:
        for begin in range(0, connections, _OPENED_AT_ONCE):
            size = min(_OPENED_AT_ONCE, connections - begin)
            await asyncio.gather(
                *(loop.create_connection(lambda: _Asker(found), "127.0.0.1", port) for _ in range(size))
            )
        yield found
    finally:
        found.close()


class Crowd:
    """Connections that send requests in turn."""

    def __init__(self, messages: Iterator[bytes], expected: bytes) -> None:
        self.messages = messages
        self.expected = expected
        self.askers: list[_Asker] = []
        self.idle: deque[_Asker] = deque()  # the one that answered longest ago first
        self.done = 0
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._running = False

    async def run(self, at_once: int, seconds: float) -> Asked:
        """Keep this many requests under way for a while."""
        self._running = True
        self.done = 0
        began = monotonic()
        for _ in range(at_once):
            self.ask()
        await self.watch(seconds)
        self._running = False
        return Asked(self.done, monotonic() - began)

    async def steady(self, rate: int, seconds: float) -> Asked:
        """Send this many requests a second, evenly, for a while."""
        self.done = asked = 0
        began = monotonic()
        while (passed := monotonic() - began) < seconds:
            while asked < passed * rate:
                self.ask()
                asked += 1
            await self.watch(0.001)
        return Asked(self.done, passed)

    async def watch(self, seconds: float) -> None:
        """Wait, unless something fails."""
        await asyncio.wait((self._failed,), timeout=seconds)
        if self._failed.done():
            self._failed.result()

    def ask(self) -> None:
        """Send a request on the next connection, if one is idle."""
        if self.idle:
            self.idle.popleft().transport.write(next(self.messages))

    def answered(self, asker: _Asker, answer: bytes) -> None:
        """Take one answer."""
        self.idle.append(asker)
        if not answer.startswith(self.expected):
            self.fail(answer[:1000].decode(errors="replace"))
        self.done += 1
        if self._running:
            self.ask()

    def fail(self, why: str) -> None:
        """Give up."""
        if not self._failed.done():
            self._failed.set_exception(RuntimeError(why))

    def close(self) -> None:
        """Close all connections."""
        self._running = False
        self._failed.cancel()
        for asker in self.askers:
            asker.transport.abort()


class _Asker(asyncio.Protocol):
    """One connection: reports when an answer is complete."""

    __slots__ = ("_crowd", "_seen", "transport")

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self._seen = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Join the crowd."""
        self.transport = transport  # type: ignore[assignment]
        self._crowd.askers.append(self)
        self._crowd.idle.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the end to the crowd, if it still listens."""
        self._crowd.fail(f"a connection was closed: {exc}")

    def data_received(self, data: bytes) -> None:
        """Collect an answer."""
        self._seen += data
        if whole(self._seen):
            answer, self._seen = self._seen, b""
            self._crowd.answered(self, answer)


_LENGTH = re.compile(rb"\r\ncontent-length: ?(\d+)", re.IGNORECASE)


def whole(answer: bytes) -> bool:
    """Return whether `answer` is complete, with all its content."""
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return False
    length = _LENGTH.search(answer, 0, end + 2)
    if length is None:
        return answer.endswith(b"\r\n0\r\n\r\n")
    return len(answer) >= end + 4 + int(length[1])
