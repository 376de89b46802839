"""Content that is too large to hold: it is sent while it is read, up to the byte that makes Ollama act.

Go decodes a body as soon as its first JSON value is closed, wherever that is. The byte that closes it, and all that
follows, is held back until `open`. Imports nothing that does I/O.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from proxy.event_loop.life import Signal
from proxy.exchange.message.plain_chunks import LAST_CHUNK, chunk

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.exchange.message.upload import Upload

A_TURN = 64 * 1024
"""Bytes that are read in one turn of the loop, at most."""

STEP = 16 * 1024
"""Bytes that are read at once. They have as many tokens at most: 16 ms (CPython 3.11)."""

TOKENS_A_TURN = 8 * 1024
"""Tokens after which the next bytes are left for another turn."""

Found = TypeVar("Found")


class Reader(Protocol[Found]):
    """Finds out what content asks for."""

    asked: Found | None  # once that is known; earlier than at its end only if it can't be read

    @property
    def tokens(self) -> int:
        """How many tokens it has read: what reading cost."""

    @property
    def held(self) -> bytes:
        """What it held back."""

    def feed(self, data: bytes) -> bytes:
        """Take content; return what of it may be sent."""

    def end(self) -> Found:
        """Take the end of the content; return what it asks for."""


class Passage(Generic[Found]):
    """The content of one request on its way to Ollama, through a reader."""

    __slots__ = (
        *("_at", "_backlog", "_changed", "_chunked", "_ended", "_hold", "_later", "_new_reader", "_reader", "_ready"),
        *("_scheduled", "_send", "_sent", "asked", "known", "opened", "unread"),
    )

    def __init__(
        self,
        new_reader: Callable[[], Reader[Found]],
        *,
        chunked: bool,
        later: Callable[[Callable[[], object]], object],
        changed: Callable[[], object],
    ) -> None:
        """`later` makes a call in another turn of the loop. `changed` is called when more or less is held."""
        self._new_reader = new_reader
        self._chunked = chunked
        self._later = later
        self._changed = changed
        self._scheduled = False
        self._send: Callable[[bytes], object] | None = None  # None: nothing is sent now
        self._clear()

    def __repr__(self) -> str:
        state = "open" if self.opened else "known" if self.known.done else f"{self.unread} unread"
        return f"<Passage {state}>"

    def _clear(self) -> None:
        self._reader = self._new_reader()
        self._backlog: deque[bytes] = deque()  # what wasn't read yet
        self._at = 0  # bytes of its first piece that were
        self._ended = False
        self.unread = 0  # bytes
        self.opened = False  # nothing is held back any more
        self.asked: Found | None = None  # what the content asks for, once that is known
        self.known: Signal[Exception | None] = Signal()  # set then, or with a mistake of ours

    def begin(
        self,
        upload: Upload,
        send: Callable[[bytes], object],
        sent: Callable[[], object],
        hold: Callable[[], object],
        ready: Callable[[], object],
        now: float,
    ) -> None:
        """Read and send an upload from its beginning; `sent` is called once all of it is sent.

        `hold` is called if more of it comes than is read, and `ready` when that is over.
        """
        self._clear()
        self._send, self._sent, self._hold, self._ready = send, sent, hold, ready
        self.add(upload.flow(self.add, self.end, now, framed=False))
        if upload.done:
            self.end()

    def stop(self) -> None:
        """Send no more, and hold nothing."""
        self._send = None
        self._backlog.clear()
        self.unread = 0

    @property
    def full(self) -> bool:
        """Whether as much as is read in one turn waits to be read."""
        return self.unread >= A_TURN

    @property
    def held(self) -> int:
        """How many bytes are held."""
        return 0 if self.opened else self.unread + len(self._reader.held)

    def add(self, data: bytes) -> None:
        """Take content that has come."""
        if self.opened:
            self._pass(data)
        elif data and self._send is not None:
            self._backlog.append(data)
            self.unread += len(data)
            self._schedule()
            if self.full:
                self._hold()
            self._changed()

    def end(self) -> None:
        """Take the end of the content."""
        self._ended = True
        if self.opened:
            self._finish(b"")
        else:
            self._schedule()

    def open(self) -> None:
        """Send what was held back; from now on, hold nothing back."""
        self.opened = True
        left = b"".join(self._backlog)[self._at :]
        self._backlog.clear()
        self.unread = 0
        rest = self._reader.held + left
        octets = self._framed(rest) if rest else b""
        if self._ended:
            self._finish(octets)
        elif octets and self._send is not None:
            self._send(octets)
        self._changed()
        self._ready()

    def _finish(self, octets: bytes) -> None:
        if self._send is not None:
            octets += LAST_CHUNK if self._chunked else b""
            if octets:
                self._send(octets)
            self._sent()

    def _pass(self, data: bytes) -> None:
        if data and self._send is not None:
            self._send(self._framed(data))

    def _framed(self, data: bytes) -> bytes:
        return chunk(data) if self._chunked else data

    def _schedule(self) -> None:
        if not self._scheduled and not self.known.done:
            self._scheduled = True
            self._later(self._read)

    def _read(self) -> None:
        """Read as much as one turn of the loop may take."""
        self._scheduled = False
        if self._send is None or self.known.done:
            return
        try:
            on = self._read_a_turn()
            if self._reader.asked is None and self._ended and not self._backlog:
                self._reader.end()
        except Exception as mistake:  # it ends the exchange, which waits for it
            self.known.set(mistake)
            return
        self._pass(on)
        self._changed()
        if not self.full:
            self._ready()
        self.asked = self._reader.asked
        if self.asked is not None:
            self.known.set(None)
        elif self._backlog:
            self._schedule()

    def _read_a_turn(self) -> bytes:
        """Read on within the bounds of one turn; return what may be sent."""
        reader, passed, left = self._reader, [], A_TURN
        tokens = reader.tokens + TOKENS_A_TURN
        while self._backlog and left and reader.tokens < tokens and reader.asked is None:
            piece = self._take(min(STEP, left))
            left -= len(piece)
            passed.append(reader.feed(piece))
        return b"".join(passed)

    def _take(self, size: int) -> bytes:
        first = self._backlog[0]
        piece = first[self._at : self._at + size]
        self._at += len(piece)
        self.unread -= len(piece)
        if self._at == len(first):
            self._backlog.popleft()
            self._at = 0
        return piece
