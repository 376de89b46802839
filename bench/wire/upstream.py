"""Plays Ollama as cheaply as possible, because the proxy in front of it is to be measured.

An order at the beginning of the request's message says what to answer, because every proxy passes the message on:
`<chunks=100&every=10>`

chunks  events of the stream, each with the time at which it was sent
    every   milliseconds between two of them; 0: as fast as they are read
    step    1: together with all other streams that say so, one right after the other
    gap     with `step`: at least this many microseconds between two of these streams
    idle    1: nothing more comes after the chunks, not even an end
    size    this many bytes instead of a stream
    stall   1: the content is not read further, and there is no answer

python -m bench.wire.upstream PORTS    listens on this many ports, and prints them in one line
"""

from __future__ import annotations

import asyncio
import gc
import re
import sys
from functools import lru_cache
from time import sleep, time_ns

import uvloop

from bench.wire.answers import CHAT, LISTS, MESSAGES, RESPONSES, STAMP_DIGITS, VERSION, Surface, date

_ORDER = re.compile(rb'"<([a-z0-9=&]*)>')
_LENGTH = re.compile(rb"\r\ncontent-length: ?(\d+)", re.IGNORECASE)
_LOOKED_AT = 4096  # bytes of a request that are searched for its order
_BLOCK = b"a" * 65536
_SURFACES = {b"POST /v1/mes": MESSAGES, b"POST /v1/res": RESPONSES}
_TICK = 0.001


@lru_cache(maxsize=256)
def _order(text: bytes) -> dict[str, int]:
    pairs = (pair.partition("=") for pair in text.decode().split("&") if pair)
    return {name: int(value or 1) for name, _, value in pairs}


class Wheel:
    """Lets each stream send when it is due, evenly spread. It stops while there is none."""

    def __init__(self) -> None:
        self._turning = False
        self._now = 0  # ticks since it turns
        self._began = 0.0
        self._streams: dict[int, list[dict[Ollama, None]]] = {}  # interval in ticks -> phase -> streams
        self._added = 0
        self._size = 0

    def add(self, stream: Ollama, every: int, *, in_step: bool = False) -> dict[Ollama, None]:
        """Let `stream` send a chunk every `every` ticks, together with all others that are `in_step`.

        Return the slot from which `remove` takes it.
        """
        phases = self._streams.setdefault(every, [{} for _ in range(every)])
        place = phases[0 if in_step else self._added % every]
        place[stream] = None
        self._added += 1
        self._size += 1
        if not self._turning:
            self._turning = True
            loop = asyncio.get_running_loop()
            self._now, self._began = 0, loop.time()
            loop.call_soon(self._turn)
        return place

    def remove(self, stream: Ollama, place: dict[Ollama, None]) -> None:
        """Let `stream` send no more."""
        if place.pop(stream, self) is None:
            self._size -= 1

    def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        while self._now < round((loop.time() - self._began) / _TICK):  # a sum of ticks would drift, and be early
            self._now += 1
            for every, phases in self._streams.items():
                for stream in (*phases[self._now % every],):
                    stream.send_chunk()
                    if stream.gap:
                        sleep(stream.gap)  # no timer of the loop is as fine, and nothing else is to be done
        if self._size:
            loop.call_later(_TICK, self._turn)
        else:
            self._turning = False


class Ollama(asyncio.Protocol):
    """One connection. Requests come one after another, with Content-Length or without content."""

    __slots__ = (
        *("_blocked", "_chunks", "_event", "_left", "_order", "_owed", "_place", "_seen", "_surface"),
        *("_transport", "_wheel", "gap"),
    )

    def __init__(self, wheel: Wheel) -> None:
        self._wheel = wheel
        self._seen = b""  # the beginning of the request
        self._left = -1  # bytes of content to come; -1: the head isn't whole
        self._place: dict[Ollama, None] | None = None
        self._chunks = 0  # still to be sent
        self._owed = 0  # bytes still to be sent
        self._blocked = False
        self._order: dict[str, int] = {}
        self.gap = 0.0  # seconds between its chunk and that of the next stream in step
        self._surface = CHAT
        self._event = b""  # the beginning of each event of the stream that is being sent
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Forget its stream."""
        self._chunks = self._owed = 0
        self._leave()

    def data_received(self, data: bytes) -> None:
        """Read requests, and answer each when it is complete."""
        if self._left < 0:
            if not self._seen and data.startswith(b"GET ") and data.endswith(b"\r\n\r\n"):
                self._transport.write(LISTS if data.startswith((b"GET /api/tags ", b"GET /api/ps ")) else VERSION)
                return
            self._seen += data
            end = self._seen.find(b"\r\n\r\n")
            if end < 0:
                return
            found = _LENGTH.search(self._seen, 0, end)
            self._left = (int(found[1]) if found else 0) - (len(self._seen) - end - 4)
        else:
            self._left -= len(data)
            if len(self._seen) < _LOOKED_AT:
                self._seen += data[:_LOOKED_AT]
        if self._left <= 0:
            self._answer(self._find_order())
        elif b"stall" in self._find_order():
            self._transport.pause_reading()

    def _find_order(self) -> dict[str, int]:
        found = _ORDER.search(self._seen)
        return _order(found[1]) if found else {}

    def _answer(self, order: dict[str, int]) -> None:
        get = self._seen.startswith(b"GET ")
        surface = _SURFACES.get(self._seen[:12], CHAT)
        self._seen, self._left = b"", -1
        if "chunks" in order:
            self._begin_stream(surface, order)
        elif "size" in order:
            self._owed = order["size"]
            self._transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n%bContent-Length: %d\r\n\r\n"
                % (date(), self._owed)
            )
            self.resume_writing()
        else:
            self._transport.write(VERSION if get else surface.answer())

    def _begin_stream(self, surface: Surface, order: dict[str, int]) -> None:
        self._surface = surface
        self._order = order
        self._event = surface.event()
        self._chunks = order["chunks"]
        self.gap = order.get("gap", 0) / 1e6
        every = order.get("every", 0)
        self._transport.write(surface.stream_head())
        if every:
            self._place = self._wheel.add(self, every, in_step="step" in order)
        else:
            self.resume_writing()

    @property
    def streams(self) -> bool:
        """Whether it has chunks to send."""
        return self._chunks > 0

    def send_chunk(self) -> None:
        """Send the next event, and the end after the last."""
        if self._transport.is_closing():  # and writing would be an error, which stops the wheel
            return
        if self._chunks > 0:
            event, after = self._event, next(self._surface.tails)
            size = len(event) + STAMP_DIGITS + len(after)
            self._transport.write(b"%x\r\n%b%019d%b\r\n" % (size, event, time_ns(), after))
            self._chunks -= 1
        if not self._chunks and "idle" not in self._order:
            self._transport.write(self._surface.end)
            self._leave()

    def _leave(self) -> None:
        if self._place is not None:
            self._wheel.remove(self, self._place)
            self._place = None

    def pause_writing(self) -> None:
        """Send no more than is read."""
        self._blocked = True

    def resume_writing(self) -> None:
        """Send the rest."""
        self._blocked = False
        while self._owed and not self._blocked and not self._transport.is_closing():
            size = min(self._owed, len(_BLOCK))
            self._owed -= size
            self._transport.write(_BLOCK if size == len(_BLOCK) else _BLOCK[:size])
        while self._place is None and self._chunks and not self._blocked and not self._transport.is_closing():
            self.send_chunk()


async def serve(ports: int) -> None:
    """Serve until the end of standard input, so that no upstream outlives its measurement."""
    loop = asyncio.get_running_loop()
    wheel = Wheel()
    servers = [await loop.create_server(lambda: Ollama(wheel), "127.0.0.1", 0, backlog=8192) for _ in range(ports)]
    print(*(server.sockets[0].getsockname()[1] for server in servers), flush=True)
    gc.freeze()
    gc.disable()
    ended = asyncio.Event()
    loop.add_reader(sys.stdin, ended.set)
    await ended.wait()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
