"""What may stand between a client and the proxy, or in its place: something that holds streams back, or lets things by.

Each connection is a pipe to another port of this machine. Nothing here understands more of HTTP than its first line.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

HELD = 0.15
"""Seconds for which `Between` holds what it is to hold: as HAProxy does without `http-no-delay`."""


class Between:
    """Pipes to `port`, or, for heads that `leaks` says so of, to `beyond`, whose answers then have the request's id.

    With `holds`, streams of events are collected for a while, and sent in one piece.
    """

    def __init__(
        self,
        port: int,
        *,
        holds: bool = False,
        beyond: int = 0,
        leaks: Callable[[bytes], bool] = lambda _: False,
    ) -> None:
        self._to, self._holds, self._beyond, self._leaks = port, holds, beyond, leaks
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def __aenter__(self) -> Self:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """End listening and every connection."""
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._pipe(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        leaked = self._leaks(head)
        back, forth = await asyncio.open_connection("127.0.0.1", self._beyond if leaked else self._to)
        forth.write(head)
        holding = False
        up = asyncio.create_task(_copy(reader, forth))
        try:
            if leaked and (identity := re.search(rb"(?i)\r\nx-request-id: (\S+)", head)):
                writer.write(await back.readuntil(b"\r\n") + b"x-request-id: " + identity[1] + b"\r\n")
            while data := await back.read(65536):
                holding = holding or (self._holds and b"text/event-stream" in data)
                if holding:
                    await asyncio.sleep(HELD)
                    data += await _there(back)
                writer.write(data)
                await writer.drain()
        finally:
            up.cancel()
            forth.close()


async def _there(reader: asyncio.StreamReader) -> bytes:
    """Return what can be read at once."""
    try:
        return await asyncio.wait_for(reader.read(2**20), 0.01)
    except TimeoutError:
        return b""


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass everything on; the end of it ends the connection."""
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()
