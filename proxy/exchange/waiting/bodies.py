"""Hold bodies until their exchanges may go to Ollama, within limits, and read what they ask for."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from proxy.event_loop.life import Signal
from proxy.event_loop.one_a_turn import OneATurn
from proxy.exchange.message.exchange import Party, Phase, Stop
from proxy.exchange.message.passage import A_TURN, STEP, TOKENS_A_TURN, Passage
from proxy.exchange.message.upload import WINDOW
from proxy.exchange.waiting.turned_away import TOO_MUCH_HELD
from proxy.policy.native import judge_native
from proxy.reading.body import WHOLE, read_at_once
from proxy.reading.native import Cutter, NativeOptions
from proxy.reading.reader import FORM, read_whole, reader_of
from proxy.reading.unpacking import NotUnpackedError, Unpacker

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.exchange.message.upload import Upload
    from proxy.exchange.waiting.visit import Visit
    from proxy.policy.heads import RequestHead
    from proxy.reading.asked import Asked

HELD_AT_MOST = 64 * 1024 * 1024
"""Most bytes of all bodies in the room. One device may have half of them."""

UNPACKED_AT_MOST = 8 * 1024 * 1024
"""Most bytes of one body after unpacking. A larger one goes on packed and unread."""

_NOT_PACKED = b"identity"
_A_TURN = 1024 * 1024  # bytes that are unpacked in one turn of the loop: 2 ms
_TURNED_AWAY = Stop(Party.PROXY, TOO_MUCH_HELD.reason, TOO_MUCH_HELD)


class Bodies:
    """Counts the bytes that are held, also while they arrive, and reads them.

    Beyond the limit, the device that holds the most gives up its newest body that is still arriving, or else its newest
    one that waits. If it is that device's own body that goes beyond the limit, that one goes instead of one that waits.
    """

    def __init__(self) -> None:
        self.held = 0  # bytes, including those of bodies that are still arriving
        self.refused = 0  # exchanges that were turned away because too much was held
        self._by_device: Counter[str] = Counter()  # the same bytes
        self._holders: dict[Visit, None] = {}  # those whose bodies count, the oldest first
        self._in_turn = OneATurn()  # when bodies are read

    def __repr__(self) -> str:
        return f"<Bodies {self.held} bytes held>"

    async def take(self, visit: Visit, head: RequestHead) -> Asked | None:
        """Wait for a body; return what it asks for. Its bytes count as held from now on, until `release`.

        Returns None if it names no model on this route, is too large, or can't be unpacked.
        Raises CancelledError if too much is held.
        """
        upload, packed = visit.client.upload, b"content-encoding" in head.read
        tried = upload.done and not packed  # by `read_now`
        self._holders[visit] = None
        if not upload.done:
            await self._arrival(visit, upload)
        body = upload.content()
        if body is None:
            return None
        self._hold(visit, len(body))
        if packed and head.read[b"content-encoding"] == b"zstd":
            self._hold(visit, len(body) + UNPACKED_AT_MOST)
            body = await _unpacked(body)
            if body is None:
                return None
            upload.replace(body)
            self._count(visit, len(body))
        return visit.asked or await self._read(head, body, tried=tried)

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

    def pass_on(self, visit: Visit, head: RequestHead) -> None:
        """Give a visit the passage that its body goes through, which is too large to hold, unless it can't be read.

        Raises CancelledError if too much is held.
        """
        new_reader = partial(reader_of, head.path, *_form_of(head))
        if head.read.get(b"content-encoding", _NOT_PACKED) != _NOT_PACKED or new_reader() is None:
            self.release(visit)
            return
        upload, changed = visit.client.upload, partial(self._passed, visit)
        self._holders[visit] = None
        self._hold(visit, upload.held)
        visit.passage = Passage(new_reader, chunked=upload.chunked, later=self._in_turn, changed=changed)  # type: ignore[arg-type]
        upload.gather(WINDOW, changed)

    def release(self, visit: Visit) -> None:
        """Count a body no longer."""
        self._holders.pop(visit, None)
        self._count(visit, 0)

    async def _arrival(self, visit: Visit, upload: Upload) -> None:
        """Wait until all of a body is there, or more than is held."""
        all_there: Signal[None] = Signal()

        def came() -> None:
            if all_there.done:
                return
            if not self._has_room(visit, upload.held):
                visit.client.stop(_TURNED_AWAY)
            elif upload.done or upload.full:
                all_there.set(None)

        upload.gather(WHOLE, came)
        await all_there

    def _passed(self, visit: Visit) -> None:
        """Count what is held of a body that goes through a passage."""
        passage, upload = visit.passage, visit.client.upload
        if passage is None:
            return
        held = 0 if passage.opened else passage.held + upload.held
        if visit.exchange.phase is Phase.CONTENT:  # nobody is turned away any more
            self._count(visit, held)
        elif not self._has_room(visit, held):
            visit.client.stop(_TURNED_AWAY)

    def _hold(self, visit: Visit, size: int) -> None:
        """Count so many bytes of a body as held; raise CancelledError if it is turned away."""
        if not self._has_room(visit, size):
            raise asyncio.CancelledError(_TURNED_AWAY)

    def _has_room(self, visit: Visit, size: int) -> bool:
        """Count so many bytes of a body as held, and turn others away if that is too much; False: it must go itself."""
        grows = size > visit.held
        self._count(visit, size)
        while grows and (self.held > HELD_AT_MOST or self._by_device[visit.device] > HELD_AT_MOST // 2):
            most = max(self._by_device, key=self._by_device.__getitem__)
            others = most != visit.device
            turned_away = self._newest(most, _arrives) or (self._newest(most, _waits) if others else None) or visit
            self.refused += 1
            self.release(turned_away)
            if turned_away is visit:
                return False
            turned_away.client.stop(_TURNED_AWAY)
        return True

    def _newest(self, device: str, may_go: Callable[[Visit], bool]) -> Visit | None:
        """Return the newest of a device's requests that may be turned away."""
        return next((each for each in reversed(self._holders) if each.device == device and may_go(each)), None)

    def _count(self, visit: Visit, size: int) -> None:
        grown, visit.held = size - visit.held, size
        self.held += grown
        self._by_device[visit.device] += grown
        if not self._by_device[visit.device]:
            del self._by_device[visit.device]

    async def _read(self, head: RequestHead, body: bytes, *, tried: bool) -> Asked | None:
        """Return what a body asks for. If reading it takes long, that is spread over turns of the loop.

        `tried`: `read_now` has tried it without success.
        """
        if len(body) <= WHOLE and (not tried or head.path == FORM):
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


def read_now(head: RequestHead, upload: Upload) -> Asked | None:
    """Return what a body asks for if it is all there, not packed and quick to read; None otherwise."""
    if not upload.done or upload.size > WHOLE or b"content-encoding" in head.read:
        return None
    body = upload.content()
    return None if body is None else read_at_once(head.path, body)


def _arrives(visit: Visit) -> bool:
    """Return whether a request may be turned away because its body still arrives."""
    return not visit.client.upload.done and visit.exchange.phase is not Phase.CONTENT


def _waits(visit: Visit) -> bool:
    """Return whether a request may be turned away because Ollama got nothing of it yet."""
    return visit.exchange.phase is Phase.QUEUE


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
