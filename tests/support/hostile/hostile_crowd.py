"""Thousands of hostile clients: raw sockets on a few addresses, and what became of each.

They use no streams and no tasks, which would slow down the client that is measured next to them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import select
import socket
from collections import Counter
from time import monotonic
from typing import TYPE_CHECKING

from tests.support.linux.kernel_sockets import unaccepted

if TYPE_CHECKING:
    from collections.abc import Callable

# Bytes of a client's receive buffer who reads nothing: the less it is, the sooner the proxy notices.
RECEIVE = 4096
# Connections that are made at a time, and how many may wait to be accepted before more are made. Where 1024 wait the
# kernel forgets further ones, which their clients take for made: those who send nothing would wait forever.
BATCH = 50
WAITING = 256


class Crowd:
    """Connections from one address to one port that all do the same. `ends` counts their final responses."""

    def __init__(self, port: int, source: str, *, reads: bool = True) -> None:
        self.ends: Counter[str] = Counter()  # first lines of what they read; "" for none; "reset" for a reset
        self.received: list[bytes] = []  # all that each of those read
        self._port = port
        self._source = source
        self._reads = reads
        self._poll = select.poll()
        self._there: dict[int, socket.socket] = {}
        self._read: dict[int, bytes] = {}
        self.joined = 0  # connections made ever

    def __len__(self) -> int:
        """Return how many are still connected, as far as it was looked."""
        return len(self._there)

    async def join(self, count: int, octets: bytes) -> None:
        """Connect `count` more, each of which sends `octets`."""
        for done in range(0, count, BATCH):
            socks = await asyncio.gather(*(self._connect() for _ in range(min(BATCH, count - done))))
            self.joined += len(socks)
            for sock in socks:
                self._send(sock, octets)
                self._there[sock.fileno()] = sock
                self._poll.register(sock, select.POLLIN if self._reads else 0)
            while unaccepted(self._port) > WAITING:
                await asyncio.sleep(0.01)

    async def _connect(self) -> socket.socket:
        sock = socket.socket()
        if not self._reads:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE)
        sock.setblocking(False)
        sock.bind((self._source, 0))
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self._port))
        return sock

    @staticmethod
    def _send(sock: socket.socket, octets: bytes) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):  # its end is seen when it is looked at
            sock.send(octets)

    async def dribble(self, octets: bytes) -> None:
        """Let each send `octets`, and others have a turn in between."""
        for number, sock in enumerate([*self._there.values()]):
            if sock.fileno() >= 0:
                self._send(sock, octets)
            if number % 100 == 0:
                await asyncio.sleep(0)

    def look(self) -> None:
        """Take what has come, and note whose connection has ended. Who reads nothing only learns of a reset."""
        for fd, events in self._poll.poll(0):
            sock = self._there[fd]
            try:
                while data := self._take(sock, events):
                    self._read[fd] = self._read.get(fd, b"") + data
            except BlockingIOError:
                continue
            except ConnectionError:
                self._end(fd, self._read.pop(fd, b""), "reset")
            else:
                self._end(fd, self._read.pop(fd, b""), "")

    def _take(self, sock: socket.socket, events: int) -> bytes:
        if self._reads:
            return sock.recv(65536)
        if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise ConnectionResetError(error, errno.errorcode[error])
        if events & (select.POLLHUP | select.POLLERR):
            return b""
        raise BlockingIOError

    def _end(self, fd: int, read: bytes, otherwise: str) -> None:
        self.received.append(read)
        self.ends[read.partition(b"\r\n")[0].decode() or otherwise] += 1
        self._poll.unregister(fd)
        self._there.pop(fd).close()

    async def until(self, condition: Callable[[], bool], patience: float, dribble: bytes = b"") -> None:
        """Go on as before, each sending `dribble` twice a second, until `condition` holds."""
        async with asyncio.timeout(patience):
            sent = monotonic()
            self.look()
            while not condition():
                await asyncio.sleep(0.02)
                if dribble and monotonic() - sent > 0.5:
                    sent = monotonic()
                    await self.dribble(dribble)
                self.look()

    def leave(self) -> None:
        """Close what is still there."""
        for sock in self._there.values():
            self._poll.unregister(sock)
            sock.close()
        self._there.clear()
