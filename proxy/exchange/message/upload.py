"""The content of one request on its way up: framed as it arrived, and held until it can be sent.

At most WINDOW bytes and one read are held, until there is a connection, and then for `HELD_FOR` more, because the log
may still need the model's name. Imports nothing that does I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.exchange.message.model_scan import ModelScan, model_in
from proxy.exchange.message.plain_chunks import LAST_CHUNK, chunk

if TYPE_CHECKING:
    from collections.abc import Callable

WINDOW = 128 * 1024
"""Bytes of request content held per exchange."""

_SMALL = 1024
"""Bytes of a piece to which the next is added. Single pieces of 2 bytes would take 40 bytes of memory each."""

HELD_FOR = 1.0
"""Seconds after sending for which complete content is held. Most responses are there by then, with the model."""


class Upload:
    """A request's content. `done` is set when all of it has come."""

    __slots__ = (
        "_came",
        "_ended",
        "_framed",
        "_held",
        "_scan",
        "_send",
        "_sent_at",
        "_window",
        "chunked",
        "done",
        "size",
        "unpacked",
    )

    def __init__(self, *, chunked: bool) -> None:
        self.chunked = chunked
        self.done = False
        self.size = 0  # bytes that have come
        self.unpacked: int | None = None  # bytes of what is sent instead, which was packed in them
        self._held: list[bytes] | None = []  # None once it was dropped
        self._scan: ModelScan | None = None
        self._sent_at = 0.0  # when sending began
        self._send: Callable[[bytes], object] | None = None
        self._framed = chunked  # what is sent is framed here
        self._ended: Callable[[], object] | None = None
        self._window = WINDOW
        self._came: Callable[[], object] | None = None  # called when more of it has come, or its end

    def __repr__(self) -> str:
        state = "done" if self.done else "coming"
        return f"<Upload {self.size} {state}{'' if self._held is None else ', held'}>"

    def add(self, data: bytes) -> None:
        """Take content that has come: send it, or hold it."""
        self.size += len(data)
        if self._held is not None:
            if self._held and len(self._held[-1]) < _SMALL:
                self._held[-1] += data
            else:
                self._held.append(data)
        elif self._scan is not None:
            self._scan.feed(data)
        if self._send is not None:
            self._send(chunk(data) if self._framed else data)
            if self.full:
                self.let_go()
        elif self._came is not None:
            self._came()

    def gather(self, window: int, came: Callable[[], object]) -> None:
        """Hold up to `window` bytes before sending. Call `came` now, and when more or the end has come until then."""
        self._window, self._came = window, came
        came()

    def content(self) -> bytes | None:
        """Return all of the content, if it is held."""
        return b"".join(self._held) if self.done and self._held is not None else None

    def replace(self, content: bytes) -> None:
        """Send `content` instead of what has come, which is all there is: the same, but unpacked."""
        self._held, self.unpacked, self.chunked = [content], len(content), False
        self._window = max(self._window, self.size)

    def end(self) -> None:
        """Note the end of the content."""
        self.done = True
        if self._came is not None and self._send is None:
            self._came()  # which may begin to send: `flow` then sends the end as well
            return
        if self._send is not None and self._framed:
            self._send(LAST_CHUNK)
        if self._ended is not None:
            self._ended()

    def flow(
        self, send: Callable[[bytes], object], ended: Callable[[], object], now: float, *, framed: bool = True
    ) -> bytes:
        """Return what has arrived so far; later content goes to `send`, and its end calls `ended`.

        It is framed as it came, unless the caller does that.
        """
        self._send, self._ended, self._sent_at = send, ended, now
        self._framed = self.chunked and framed
        octets = b"".join(map(chunk, self._held or ()) if self._framed else self._held or ())
        if self._framed and self.done:
            octets += LAST_CHUNK
        if self.size > self._window:
            self.let_go()
        return octets

    def stop(self) -> None:
        """Send no more."""
        self._send = self._ended = None

    @property
    def held(self) -> int:
        """How many bytes of what has come are held."""
        return 0 if self._held is None else self.size

    @property
    def full(self) -> bool:
        """Whether more is held than allowed."""
        return self._held is not None and self.size > self._window

    @property
    def whole(self) -> bool:
        """Whether all of the content is there to be sent, or sent again."""
        return self.done and self._held is not None

    @property
    def kept(self) -> bool:
        """Whether all that has come is there to be sent, or sent again."""
        return self._held is not None

    def tick(self, now: float) -> None:
        """Drop content that is no longer needed. Call it each second."""
        if self.size and self.whole and self._send is not None and now - self._sent_at > HELD_FOR:
            self.let_go()

    def let_go(self) -> None:
        """Hold nothing any more, but still search the content for the model."""
        held, self._held = self._held, None
        if held:
            self._scan = ModelScan()
            if self.done and self.size <= self._window:
                self._scan.model = model_in(b"".join(held))
            else:
                for piece in held:
                    self._scan.feed(piece)

    def drop(self) -> None:
        """Hold nothing any more: the exchange is over."""
        self._held = self._scan = self._came = None

    def model(self) -> str | None:
        """Return the model that the content names, if that can be found; drops the content."""
        if self._held is not None:
            self.let_go()
        return None if self._scan is None else self._scan.model
