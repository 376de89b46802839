"""Bodies that are held until their exchange may go to Ollama: how much of them, and what they ask for."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from proxy.event_loop.life import Signal
from proxy.event_loop.one_a_turn import OneATurn
from proxy.exchange.message.exchange import Party, Stop
from proxy.exchange.message.passage import A_TURN, STEP, TOKENS_A_TURN, Passage
from proxy.exchange.waiting.turned_away import TOO_MUCH_HELD
from proxy.policy.native import judge_native
from proxy.reading.body import WHOLE, read_at_once
from proxy.reading.native import Cutter, NativeOptions
from proxy.reading.reader import FORM, read_whole, reader_of
from proxy.reading.unpacking import NotUnpackedError, Unpacker

if TYPE_CHECKING:
    from proxy.exchange.message.upload import Upload
    from proxy.exchange.waiting.visit import Visit
    from proxy.policy.heads import RequestHead
    from proxy.reading.asked import Asked

HELD_AT_MOST = 64 * 1024 * 1024
"""Bytes of all bodies in the room. One device may have half of them."""

UNPACKED_AT_MOST = 8 * 1024 * 1024
"""Bytes of one body that was packed. A larger one goes on packed and unread."""

_NOT_PACKED = b"identity"
_A_TURN = 1024 * 1024  # bytes that are unpacked in one turn of the loop: 2 ms


class Bodies:
    """Counts what is held, and reads it."""

    def __init__(self) -> None:
        self._whole: Counter[str] = Counter()  # bytes of bodies that are all there, by device
        self._arriving: dict[Upload, str] = {}  # whose each is
        self._passages: dict[Passage[Asked], str] = {}
        self._in_turn = OneATurn()  # when they are read
        self.refused = 0  # exchanges that were turned away because too much was held

    def __repr__(self) -> str:
        return f"<Bodies {self.held} bytes held>"

    @property
    def held(self) -> int:
        """How many bytes are held, those of bodies that still arrive included."""
        return self._by_device().total()

    def _by_device(self) -> Counter[str]:
        found = self._whole.copy()
        for passage, device in self._passages.items():
            found[device] += passage.held
        for upload, device in self._arriving.items():
            found[device] += upload.size
        return found

    async def take(
        self, head: RequestHead, upload: Upload, device: str, asked: Asked | None
    ) -> tuple[Asked | None, int]:
        """Wait for a body; return what it asks for, and how many bytes are held from now on. Give those back later.

        `asked` is what it asks for, if it was read already.
        Without what it asks for nothing is held: it names no model on this route, is too large, or can't be unpacked.
        Raises CancelledError if too much is held, or too much of it for this device.
        """
        if not upload.done:
            await self._arrival(upload, device)
        body = upload.content()
        if body is None:
            return None, 0
        reserved = self._reserve(len(body), device)
        try:
            if head.read.get(b"content-encoding") == b"zstd":
                reserved += self._reserve(UNPACKED_AT_MOST, device)
                body = await _unpacked(body)
                if body is None:
                    return None, 0
                upload.replace(body)
            asked = asked or await self._read(head, body)
        finally:
            self.give_back(reserved, device)
        held = 0 if asked is None else len(body)
        self._whole[device] += held
        return asked, held

    async def lighten(self, visit: Visit, asked: Asked, setting: NativeOptions) -> Asked:
        """Return what a request asks for once it goes on without what would load its model in another way.

        Raises CancelledError if it must not go on.
        """
        upload = visit.client.upload
        body = None if visit.passage is not None else upload.content()
        refusal = judge_native(visit.route.path, asked, setting, held=body is not None)
        if refusal is not None:
            raise asyncio.CancelledError(Stop(Party.PROXY, refusal.reason, refusal))
        if body is None or setting is NativeOptions.PASS or not asked.reloads:
            return asked
        cutter = Cutter(body)
        while (left := cutter.run(TOKENS_A_TURN)) is None:
            await self._in_turn.turn()
        upload.replace(left)
        visit.exchange.dropped = asked.reloads
        return replace(asked, keep_alive=None, options={})

    def give_back(self, held: int, device: str) -> None:
        """Hold so many bytes less of a device."""
        self._whole[device] -= held
        if not self._whole[device]:
            del self._whole[device]

    def passage(self, head: RequestHead, upload: Upload, device: str) -> Passage[Asked] | None:
        """Return what a body goes through that is too large to hold, until `forget`; None if it can't be read."""
        new_reader = partial(reader_of, head.path, *_form_of(head))
        if head.read.get(b"content-encoding", _NOT_PACKED) != _NOT_PACKED or new_reader() is None:
            return None
        passage: Passage[Asked] = Passage(new_reader, chunked=upload.chunked, later=self._in_turn)  # type: ignore[arg-type]
        self._passages[passage] = device
        return passage

    def forget(self, passage: Passage[Asked]) -> None:
        """Count a passage no longer."""
        self._passages.pop(passage, None)

    def greediest(self) -> str | None:
        """Return the device that holds the most, if bodies that still arrive have grown beyond a bound; else None."""
        held = self._by_device() if self._arriving or self._passages else Counter()
        device = max(held, key=held.__getitem__, default="")
        return device if held[device] > HELD_AT_MOST // 2 or held.total() > HELD_AT_MOST else None

    async def _arrival(self, upload: Upload, device: str) -> None:
        """Wait until all of a body is there, or more than is held."""
        all_there: Signal[None] = Signal()
        self._arriving[upload] = device
        try:
            upload.gather(WHOLE, all_there.set)
            await all_there
        finally:
            del self._arriving[upload]

    async def _read(self, head: RequestHead, body: bytes) -> Asked | None:
        """Return what a body asks for. If reading it takes long, that is spread over turns of the loop."""
        if len(body) <= WHOLE:
            asked = read_whole(head.path, *_form_of(head), body)
            if asked is not None:
                return asked
        reader = reader_of(head.path, *_form_of(head))
        if reader is None:
            return None
        begun, tokens = -A_TURN, 0
        for at in range(0, len(body), STEP):
            if at - begun >= A_TURN or reader.tokens - tokens >= TOKENS_A_TURN:
                begun, tokens = at, reader.tokens
                await self._in_turn.turn()
            reader.feed(body[at : at + STEP])
            if reader.asked is not None:
                break
        return reader.end()

    def _reserve(self, size: int, device: str) -> int:
        held = self._by_device()
        if held.total() + size > HELD_AT_MOST or held[device] + size > HELD_AT_MOST // 2:
            self.refused += 1
            raise asyncio.CancelledError(Stop(Party.PROXY, TOO_MUCH_HELD.reason, TOO_MUCH_HELD))
        self._whole[device] += size
        return size


def read_now(head: RequestHead, upload: Upload) -> Asked | None:
    """Return what a body asks for if it is all there, not packed and quick to read; None otherwise."""
    if not upload.done or upload.size > WHOLE or b"content-encoding" in head.read:
        return None
    body = upload.content()
    return None if body is None else read_at_once(head.path, body)


def is_too_large(upload: Upload) -> bool:
    """Return whether a body is announced as larger than what is held whole."""
    return upload.announced > WHOLE


def _form_of(head: RequestHead) -> tuple[str, str]:
    """Return what else the reader of a form needs: its content type and the query."""
    if head.path != FORM:
        return "", ""
    kind = next((value for name, value in head.fields if name.lower() == b"content-type"), b"")
    return kind.decode("latin-1"), head.target.partition("?")[2]


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
