"""A client's socket: what is written to it and how it ends, whether it is read, and whether the client is there.

`connection` handles what comes from it.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING, cast

from proxy.event_loop import sockets
from proxy.event_loop.life import Bell
from proxy.exchange.client.deadlines import LINGER_FOR, Deadlines
from proxy.exchange.client.downstream import Handler
from proxy.exchange.message.exchange import Party, Stop

if TYPE_CHECKING:
    import select

    from aiohttp import web

    from proxy.exchange.upstream.upstream import Upstream

PIECE = 64 * 1024
"""Bytes of a read that are parsed at once.

uvloop reads up to 256 KiB, and the parser copies its input. The allocator returns blocks of that size to the kernel, so
they are mapped again for each read. In pieces, 64 MiB up take 74 ms of CPU instead of 145.
"""


class Mode(Enum):
    """What a connection is doing."""

    IDLE = "idle"  # no byte of a next request yet
    HEAD = "head"  # a head has begun
    BUSY = "busy"  # an exchange is under way
    LINGER = "linger"  # the last response is written, further input is discarded
    FLUSH = "flush"  # nothing more will be read, the last writes are on their way
    GONE = "gone"


OVER = (Mode.LINGER, Mode.FLUSH, Mode.GONE)
"""The modes in which no further request is served."""


class Ending(Enum):
    """What a connection does after an exchange."""

    KEEP = "keep"  # serve the next
    CLOSE = "close"  # close when the response was read
    CUT = "cut"  # flush what is written, and close so that the client sees that content is missing
    RESET = "reset"  # close at once, by a reset
    LEFT = "left"  # nothing: the client is gone


class ClientSocket(Handler):
    """One connection of a client, as bytes."""

    __slots__ = (
        *("blocked", "by_serve", "delimits", "mode", "peer", "peer_port", "pinged", "source"),
        *("_deadlines", "_half_closed", "_reading_stopped", "_waiting", "_work", "_written"),
    )

    def __init__(self, server: web.Server, loop: asyncio.AbstractEventLoop, max_head: int) -> None:
        super().__init__(server, loop, max_head)
        self.mode = Mode.IDLE
        self.peer = ""
        self.peer_port = 0
        self.by_serve = False  # whether it came to the port for `tailscale serve`
        self.blocked = False  # the client takes less than was written
        self.source: Upstream | None = None  # what the answer comes from; the relay's to set
        self.delimits = False  # the end of this connection is the end of the answer's content; likewise
        self.pinged = False  # the running exchange has sent pings; the wait's to set
        self._deadlines = Deadlines(monotonic())
        self._half_closed = False  # the client has ended its side after requests that wait
        self._reading_stopped = False
        self._waiting: select.poll | None = None  # reports whether anything waits to be read
        self._work = Bell()  # rung when the coroutine that serves the requests has something to do
        self._written = 0  # bytes of all responses

    def __repr__(self) -> str:
        unread = ", not read" if self._reading_stopped else ""
        return f"<{type(self).__name__} {self.mode.name} {self.peer}:{self.peer_port}{unread}>"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the peer's address. `web.Server.connection_made` accepts or rejects it."""
        peer = sockets.address(transport, "peername")
        if peer is not None:  # otherwise the connection was reset before it was accepted
            self.peer, self.peer_port = peer
            sockets.accepted(transport)
            self._waiting = sockets.watch(cast("asyncio.Transport", transport))
            cast("asyncio.Transport", transport).set_write_buffer_limits(high=sockets.WRITE_BUFFER)
        super().connection_made(transport)

    @property
    def local(self) -> str:
        """Our address, which the client connected to; "" if that is lost."""
        address = None if self.transport is None else sockets.address(self.transport, "sockname")
        return "" if address is None else address[0]

    def may_have_left(self) -> bool:
        """Return whether bytes, or the end of the connection, wait to be read."""
        transport, waiting = self.transport, self._waiting
        if self._half_closed or transport is None or transport.is_closing() or waiting is None:
            return True
        return bool(waiting.poll(0))

    @property
    def has_left(self) -> bool:
        """Whether the client no longer waits for a response."""
        return self._half_closed or self.transport is None or self.transport.is_closing()

    async def settle(self) -> None:
        """Return if the client is still there: a request whose client has left leaks a connection inside Ollama."""
        # Two turns of the loop: the first may run before the sockets are read again, the second after.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if self.has_left:
            raise asyncio.CancelledError(Stop(Party.DOWNSTREAM))

    @property
    def unread(self) -> bool:
        """Whether reading is paused, because enough input is waiting here."""
        return self._reading_stopped

    @property
    def held(self) -> bool:
        """Whether its content is held back, because Ollama is slower."""
        return self._deadlines.held_since > 0.0

    # --- writing ---

    @property
    def written(self) -> int:
        """Bytes of all responses so far."""
        return self._written

    @property
    def unsent(self) -> int:
        """Bytes that were written and that the client's machine hasn't acknowledged."""
        transport = self.transport
        return 0 if transport is None else transport.get_write_buffer_size() + sockets.unacknowledged(transport)

    def write(self, octets: bytes) -> None:
        """Send bytes of a response."""
        transport = self.transport
        if transport is not None and not transport.is_closing():
            self._written += len(octets)
            transport.write(octets)

    def pause_writing(self) -> None:
        """Pause reading from Ollama for this client."""
        super().pause_writing()
        self.blocked = True
        if self.source is not None:
            self.source.pause()

    def resume_writing(self) -> None:
        """Read from Ollama again, or serve the requests that wait."""
        super().resume_writing()
        self.blocked = False
        if self.source is not None:
            self.source.resume()
        else:
            self._work.ring()

    # --- reading ---

    def _receive_in_pieces(self, data: bytes) -> None:
        """Handle a large read as if it were several."""
        for at in range(0, len(data), PIECE):
            self.data_received(data[at : at + PIECE])

    def _stop_reading(self, stopped: bool) -> None:
        if stopped is not self._reading_stopped:
            self._reading_stopped = stopped
            if self.transport is not None and not self.transport.is_closing():
                (self.transport.pause_reading if stopped else self.transport.resume_reading)()

    def release(self) -> None:
        """Read content again."""
        if self._deadlines.held_since:
            self._deadlines.release(monotonic())
            self._stop_reading(False)

    # --- ends ---

    def cut(self, *, reset: bool) -> None:
        """Close at once; with a reset if an ordinary close would look like the end of incomplete content."""
        self.mode = Mode.FLUSH
        if self.transport is not None:
            if reset or self.transport.get_write_buffer_size():  # unread bytes there are lost
                sockets.reset(self.transport)
            else:
                self.transport.abort()

    def _end(self, *, linger: bool, flush: bool = False) -> None:
        """Close when everything is written. With `linger`, read on: a reset for unread bytes destroys the response.

        Lingering has a time limit. So has what is written with `flush`, because a broken response isn't worth a long
        wait.
        """
        self._deadlines.end_by = monotonic() + LINGER_FOR if linger or flush else 0.0
        self.mode = Mode.LINGER if linger else Mode.FLUSH
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if linger:
            self._stop_reading(False)
            transport.write_eof()
        else:
            transport.close()
