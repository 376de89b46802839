"""Which connection to Ollama serves next: the most recently used idle one, or a new one.

Busy connections belong to their exchange. The pool knows only the idle ones.
"""

from __future__ import annotations

import asyncio
import errno
from time import monotonic

from proxy.event_loop import sockets
from proxy.event_loop.patience import within
from proxy.exchange.message.failures import ClosedEarly, OutOfFiles, Unreachable
from proxy.exchange.upstream.upstream import Upstream

# Idle connections that are kept: each is a descriptor here and one in Ollama, which has 256 under launchd by default.
MAX_IDLE = 64
# Seconds after which an idle one is closed. Ollama itself never closes any.
IDLE_FOR = 60.0


class Pool:
    """The idle connections, with the last used on top, so that the others grow old and are closed."""

    def __init__(self) -> None:
        self._idle: list[Upstream] = []

    def __len__(self) -> int:
        return sum(connection.reusable for connection in self._idle)

    def __repr__(self) -> str:
        return f"<Pool {self._idle}>"

    def take(self) -> Upstream | None:
        """Return the connection that was used last and is still open, or None."""
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
        return None

    async def open(self, host: str, port: int, seconds: float) -> Upstream:
        """Return a new connection within `seconds`; raise Unreachable or OutOfFiles if there is none, or ClosedEarly.

        If the caller is cancelled, the connection is kept for the next exchange once it is open.
        """
        opening = asyncio.ensure_future(connect(host, port, seconds))
        try:
            connection = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(self._keep)
            raise
        if not connection.reusable:
            raise ClosedEarly("closed before the request was sent")
        return connection

    def _keep(self, opening: asyncio.Future[Upstream]) -> None:
        if not opening.cancelled() and opening.exception() is None:
            self.put(opening.result(), monotonic())

    def put(self, connection: Upstream, now: float) -> None:
        """Keep the idle `connection` for later; if there are many, the one that has been idle longest is closed."""
        connection.owner = None
        connection.idle_since = now
        self._idle.append(connection)
        if len(self._idle) > MAX_IDLE:
            self._idle.pop(0).close()

    def expire(self, now: float) -> None:
        """Close those that have been idle for too long by `now`, and forget those that have ended."""
        old = [each for each in self._idle if not each.reusable or now - each.idle_since > IDLE_FOR]
        if old:
            self._idle = [each for each in self._idle if each not in old]
        for connection in old:
            connection.close()

    def close(self) -> None:
        """Close all."""
        while self._idle:
            self._idle.pop().close()


async def connect(host: str, port: int, seconds: float) -> Upstream:
    """Open a connection within `seconds`, or raise Unreachable or OutOfFiles."""
    loop = asyncio.get_running_loop()
    try:
        async with within(seconds):
            _, connection = await loop.create_connection(Upstream, host, port)
    except TimeoutError:
        raise Unreachable(f"no connection to {host}:{port} within {seconds:g} s", refused=False) from None
    except OSError as error:
        if any(f"[Errno {number}]" in str(error) for number in (errno.EMFILE, errno.ENFILE)):
            raise OutOfFiles("no file descriptor is left for a connection to Ollama") from None
        # A name with several addresses, such as localhost, causes one error that lists the errors of all.
        refusals = str(error).count(f"[Errno {errno.ECONNREFUSED}]")
        refused = refusals > 0 and refusals == str(error).count("[Errno ")
        what = "refuses connections" if refused else f"can't be reached ({error.strerror or type(error).__name__})"
        raise Unreachable(f"{host}:{port} {what}", refused=refused) from None
    if not connection.transport.is_closing():
        connection.waiting = sockets.watch(connection.transport)
    return connection
