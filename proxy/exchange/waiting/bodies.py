"""Bodies that are held until their exchange may go to Ollama: how much of them, and what they ask for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proxy.event_loop.life import Signal
from proxy.exchange.message.exchange import Party, Stop
from proxy.exchange.waiting.turned_away import TOO_MUCH_HELD
from proxy.reading.body import PIECE, WHOLE
from proxy.reading.reader import FORM, read_whole, reader_of
from proxy.reading.unpacking import NotUnpackedError, Unpacker

if TYPE_CHECKING:
    from proxy.exchange.message.upload import Upload
    from proxy.policy.heads import RequestHead
    from proxy.reading.asked import Asked

HELD_AT_MOST = 64 * 1024 * 1024
"""Bytes of all bodies in the room."""

UNPACKED_AT_MOST = 8 * 1024 * 1024
"""Bytes of one body that was packed. A larger one goes on packed and unread."""

_A_TURN = 1024 * 1024  # bytes that are unpacked in one turn of the loop: 2 ms


class Bodies:
    """Counts what is held, and reads it."""

    def __init__(self) -> None:
        self._whole = 0  # bytes of bodies that are all there
        self._arriving: dict[Upload, None] = {}
        self.refused = 0  # exchanges that were turned away because too much was held

    def __repr__(self) -> str:
        return f"<Bodies {self.held} bytes held>"

    @property
    def held(self) -> int:
        """How many bytes are held, those of bodies that still arrive included."""
        return self._whole + sum(upload.size for upload in self._arriving)

    async def take(self, head: RequestHead, upload: Upload) -> tuple[Asked | None, int]:
        """Wait for a body; return what it asks for, and how many bytes are held from now on. Give those back later.

        Without what it asks for nothing is held: it names no model on this route, is too large, or can't be unpacked.
        Raises CancelledError if too much is held.
        """
        if not upload.done:
            await self._arrival(upload)
        body = upload.content()
        if body is None:
            return None, 0
        reserved = self._reserve(len(body))
        asked: Asked | None = None
        try:
            if head.read.get(b"content-encoding") == b"zstd":
                reserved += self._reserve(UNPACKED_AT_MOST)
                body = await _unpacked(body)
                if body is None:
                    return None, 0
                upload.replace(body)
            asked = await _read(head, body)
        finally:
            self._whole -= reserved
        held = 0 if asked is None else len(body)
        self._whole += held
        return asked, held

    def give_back(self, held: int) -> None:
        """Hold so many bytes less."""
        self._whole -= held

    @property
    def excessive(self) -> bool:
        """Whether bodies that still arrive have grown beyond the bound."""
        return bool(self._arriving) and self.held > HELD_AT_MOST

    async def _arrival(self, upload: Upload) -> None:
        """Wait until all of a body is there, or more than is held."""
        all_there: Signal[None] = Signal()
        self._arriving[upload] = None
        try:
            upload.gather(WHOLE, all_there.set)
            await all_there
        finally:
            del self._arriving[upload]

    def _reserve(self, size: int) -> int:
        if self.held + size > HELD_AT_MOST:
            self.refused += 1
            raise asyncio.CancelledError(Stop(Party.PROXY, TOO_MUCH_HELD.reason, TOO_MUCH_HELD))
        self._whole += size
        return size


async def _unpacked(packed: bytes) -> bytes | None:
    """Return a zstd body unpacked, or None if it is too large, or nothing that Ollama would unpack."""
    unpacker = Unpacker()
    unpacker.feed(packed)
    pieces: list[bytes] = []
    turn = _A_TURN
    try:
        while piece := unpacker.take():
            pieces.append(piece)
            if unpacker.size > UNPACKED_AT_MOST:
                return None
            if unpacker.size >= turn:
                turn += _A_TURN
                await asyncio.sleep(0)
        unpacker.end()
    except NotUnpackedError:
        return None
    return b"".join(pieces)


async def _read(head: RequestHead, body: bytes) -> Asked | None:
    """Return what a body asks for. One larger than what is read at once is read in pieces, a turn of the loop each."""
    path = head.path
    if path == FORM:
        kind = next((value for name, value in head.fields if name.lower() == b"content-type"), b"")
        return read_whole(path, kind.decode("latin-1"), head.target.partition("?")[2], body)
    if len(body) <= WHOLE:
        return read_whole(path, "", "", body)
    reader = reader_of(path, "", "")
    if reader is None:
        return None
    for at in range(0, len(body), PIECE):
        reader.feed(body[at : at + PIECE])
        if reader.asked is not None:
            break
        await asyncio.sleep(0)
    return reader.end()
