"""Clients of streams: how many chunks arrived, and how long each was under way.

The upstream writes the time into each event. The difference at its arrival at the client's socket is the delay. It
includes the delay of both sockets, which `direct` shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import socket
from array import array
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from bench.wire.answers import STAMP
from bench.wire.arrival import arrived, stamp
from bench.wire.traffic import requests

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from bench.contenders import Running

_AT_ONCE = 64  # connections opened at a time
_PATIENCE = 30.0
_DIFFERENT = 1024  # requests that differ


class Tally:
    """What all streams together received since `begin`."""

    def __init__(self) -> None:
        self.delays = array("q")  # nanoseconds, one for each chunk
        self.answers = 0  # that ended
        self.begun = 0  # streams that had a first chunk
        self.lost: str = ""  # what became of a connection that was closed on us
        self.heard = asyncio.Event()

    def begin(self) -> None:
        """Count again from zero."""
        self.delays = array("q")
        self.answers = 0

    async def until(self, begun: int) -> None:
        """Wait until this many streams have begun."""
        try:
            async with asyncio.timeout(_PATIENCE):
                while self.begun < begun:
                    self.heard.clear()
                    await self.heard.wait()
                    if self.lost:
                        raise RuntimeError(self.lost)
        except TimeoutError:
            raise RuntimeError(f"only {self.begun} of {begun} streams began within {_PATIENCE:g} s") from None


class Stream:
    """One client, which sends one request, or another after each answer."""

    __slots__ = ("_again", "_headed", "_messages", "_socket", "_tail", "_tally", "_waits")

    def __init__(self, tally: Tally, messages: Iterator[bytes], *, again: bool) -> None:
        self._tally = tally
        self._messages = messages
        self._again = again
        self._headed = False  # the head has come
        self._waits = True  # for its first chunk
        self._tail = b""
        self._socket = socket.socket()
        self._socket.setblocking(False)
        stamp(self._socket)

    async def ask(self, port: int) -> None:
        """Connect, and send the request."""
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._socket, ("127.0.0.1", port))
        await loop.sock_sendall(self._socket, next(self._messages))
        loop.add_reader(self._socket, self._read)

    def close(self) -> None:
        """Close the connection, whatever has arrived."""
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def _read(self) -> None:
        """Record how long each chunk took."""
        tally = self._tally
        try:
            data, came = arrived(self._socket)
        except OSError as error:
            self._lose(f"a stream was closed: {error}")
            return
        if not data:
            self._lose("a stream was closed")
            return
        stamps = STAMP.findall(data)
        for sent in stamps:
            tally.delays.append(came - int(sent))
        if self._waits:
            self._begin(data, bool(stamps))
        if self._again:
            self._tail = (self._tail + data)[-7:]
            if self._tail.endswith(b"\r\n0\r\n\r\n"):
                tally.answers += 1
                self._socket.sendall(next(self._messages))

    def _lose(self, what: str) -> None:
        """Report that the connection was closed, but not by us."""
        asyncio.get_running_loop().remove_reader(self._socket)
        self._tally.lost = what
        self._tally.heard.set()

    def _begin(self, data: bytes, chunks: bool) -> None:
        """Check whether the answer is the expected one, and whether a chunk has arrived."""
        tally = self._tally
        if not self._headed:
            self._headed = True
            if not data.startswith(b"HTTP/1.1 200"):
                tally.lost = f"refused: {data[:200]!r}"
                tally.heard.set()
        if chunks:
            self._waits = False
            tally.begun += 1
            tally.heard.set()


@contextlib.asynccontextmanager
async def streaming(port: int, order: str, streams: int, *, again: bool = False) -> AsyncIterator[Tally]:
    """Keep this many streams open. All of them have begun."""
    messages = itertools.cycle(requests(port, order=order, count=_DIFFERENT))
    tally = Tally()
    opened = [Stream(tally, messages, again=again) for _ in range(streams)]
    try:
        await opened[0].ask(port)
        await tally.until(1)  # a load is over then: of more than 32 requests that wait for it, the proxy refuses some
        for begin in range(1, streams, _AT_ONCE):
            await asyncio.gather(*(stream.ask(port) for stream in opened[begin : begin + _AT_ONCE]))
        await tally.until(streams)
        yield tally
    finally:
        for stream in opened:
            stream.close()
        await asyncio.sleep(0.1)  # so that the connections to the upstream end as well


@dataclass(frozen=True)
class Window:
    """The cost and the chunks of a stretch of time."""

    cpu: float  # seconds, of the proxy
    seconds: float
    delays: array[int]
    answers: int

    @property
    def cpu_per_chunk(self) -> float:
        """Microseconds."""
        return self.cpu / len(self.delays) * 1e6

    def delay(self, share: float) -> float:
        """Return the delay in milliseconds that this share of the chunks doesn't exceed; 1: the greatest."""
        ordered = sorted(self.delays)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1e6


async def watch(running: Running, order: str, streams: int, seconds: float, *, again: bool = False) -> Window:
    """Keep streams open through `running`, and measure them for a while once all have begun."""
    async with streaming(running.port, order, streams, again=again) as tally:
        gc.collect()
        gc.disable()
        try:
            await asyncio.sleep(0.1)  # for what arrived meanwhile: its lateness is this process's fault
            tally.begin()
            before, began = running.cpu(), monotonic()
            await asyncio.sleep(seconds)
            cpu, took = running.cpu() - before, monotonic() - began
            delays, answers = tally.delays, tally.answers
        finally:
            gc.enable()
        if tally.lost or not delays:
            raise RuntimeError(f"{running.name}: {tally.lost or 'no chunk came'}")
        return Window(cpu, took, delays, answers)
