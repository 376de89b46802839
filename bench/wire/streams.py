"""Clients of streams: how many chunks arrived, and how long each was under way.

The upstream writes the time into each event. The monotonic clock is the same for all processes, so the difference at
arrival is the delay. It includes the delay of both sockets and of this client, which `direct` shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
from array import array
from dataclasses import dataclass
from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING

from bench.wire.answers import STAMP
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
        self.closing = False
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


class Stream(asyncio.Protocol):
    """One client, which sends one request, or another after each answer."""

    __slots__ = ("_again", "_headed", "_messages", "_tail", "_tally", "_waits", "transport")

    def __init__(self, tally: Tally, messages: Iterator[bytes], *, again: bool) -> None:
        self._tally = tally
        self._messages = messages
        self._again = again
        self._headed = False  # the head has come
        self._waits = True  # for its first chunk
        self._tail = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        self.transport = transport  # type: ignore[assignment]
        self.transport.write(next(self._messages))

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the end, unless we closed the connection."""
        if not self._tally.closing:
            self._tally.lost = f"a stream was closed: {exc}"
            self._tally.heard.set()

    def data_received(self, data: bytes) -> None:
        """Record how long each chunk took."""
        now = monotonic_ns()
        tally = self._tally
        stamps = STAMP.findall(data)
        for stamp in stamps:
            tally.delays.append(now - int(stamp))
        if self._waits:
            self._begin(data, bool(stamps))
        if self._again:
            self._tail = (self._tail + data)[-7:]
            if self._tail.endswith(b"\r\n0\r\n\r\n"):
                tally.answers += 1
                self.transport.write(next(self._messages))

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
    loop = asyncio.get_running_loop()
    tally = Tally()
    opened: list[Stream] = []
    try:
        for begin in range(0, streams, _AT_ONCE):
            size = min(_AT_ONCE, streams - begin)
            made = await asyncio.gather(
                *(
                    loop.create_connection(lambda: Stream(tally, messages, again=again), "127.0.0.1", port)
                    for _ in range(size)
                )
            )
            opened += [stream for _, stream in made]
        await tally.until(streams)
        yield tally
    finally:
        tally.closing = True
        for stream in opened:
            stream.transport.abort()
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
