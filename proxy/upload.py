"""The content of one request on its way up: framed as it came, held until it can't be needed again.

Pure: octets in, octets out. Held are at most WINDOW octets and one read: until there is a connection, and then for the
one repetition on another.
"""

from __future__ import annotations

from proxy.exchange import RequestHead
from proxy.model_scan import ModelScan, model_in

# Octets of request content held per exchange.
WINDOW = 128 * 1024

LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """Return `data` as one chunk (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class Upload:
    """A request's content. `done` is set when all of it has come."""

    __slots__ = ("_held", "_scan", "chunked", "done", "size")

    def __init__(self, head: RequestHead) -> None:
        self.chunked = head.chunked
        self.done = False
        self._held: list[bytes] | None = []  # None once it was let go
        self.size = 0  # octets that have come
        self._scan: ModelScan | None = None

    def add(self, data: bytes) -> None:
        """Take content that has come."""
        self.size += len(data)
        if self._held is not None:
            self._held.append(data)
        elif self._scan is not None:
            self._scan.feed(data)

    @property
    def full(self) -> bool:
        """Whether more is held than may be."""
        return self._held is not None and self.size > WINDOW

    @property
    def whole(self) -> bool:
        """Whether all of the content is there to be sent, or sent again."""
        return self.done and self._held is not None

    def framed(self, data: bytes) -> bytes:
        """Return `data` as it goes on the wire."""
        return chunk(data) if self.chunked else data

    def octets(self) -> bytes:
        """Return what is held as it goes on the wire, with the end if it has come."""
        held = map(chunk, self._held or ()) if self.chunked else self._held or ()
        return b"".join(held) + (LAST_CHUNK if self.chunked and self.done else b"")

    def let_go(self) -> None:
        """Hold nothing any more; which model the content names is still looked for."""
        held, self._held = self._held, None
        if held:
            self._scan = ModelScan()
            if self.done and self.size <= WINDOW:
                self._scan.model = model_in(b"".join(held))
            else:
                for piece in held:
                    self._scan.feed(piece)

    def model(self) -> str | None:
        """Let go, and return the model that the content names, as far as can be told."""
        if self._held is not None:
            self.let_go()
        return None if self._scan is None else self._scan.model


NO_CONTENT = Upload(RequestHead("GET", "/", (1, 1), ()))
"""What all requests have that say nothing of content."""

NO_CONTENT.done = True
