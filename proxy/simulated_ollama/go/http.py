"""Go's net/http server, as far as its habits show on the wire: one connection, its requests, their answers.

`Connection` reads request after request and hands each to `App.handle`; `Reply` is what a handler answers with. A
handler that is cancelled by its caller's leaving asks for that with `Connection.watch`.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol, cast

from proxy.simulated_ollama.go.head import HEAD_LIMIT, Head, Refused, parse, request_line

if TYPE_CHECKING:
    from collections.abc import Callable

# net/http holds back this much of an answer; what fits in is sent with a Content-Length.
HELD_BACK = 2048
# What net/http reads of an unread request body before it answers; a longer one costs the connection.
DISCARDED = 256 << 10
# Seconds that net/http waits after its FIN before it closes, so that a reset doesn't overtake the answer.
LINGER = 0.5

_HEAD_END = re.compile(rb"\r?\n\r?\n")


class BodyError(ValueError):
    """The content broke off, or its chunks were malformed; the text is Go's error."""


class App(Protocol):
    """Who answers."""

    open_connections: set[Connection]

    async def handle(self, request: Head, reply: Reply, connection: Connection) -> None:
        """Answer one request."""

    def changed(self) -> None:
        """Take note that a connection changed."""


class Connection(asyncio.Protocol):
    """One client connection."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.transport: asyncio.Transport
        self.task: asyncio.Task[None]
        self.left = False  # the caller is gone, or has shut its writing side: the same thing for Ollama
        self.kept = False  # leaked: stays open, half closed, forever
        self._on_left: Callable[[], object] | None = None
        self._lost = False
        self._ending = False
        self._buffer = bytearray()
        self._arrival = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    def __repr__(self) -> str:
        state = "KEPT" if self.kept else "LEFT" if self.left else "OPEN"
        return f"<Connection {state}>"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to serve."""
        self.transport = cast("asyncio.Transport", transport)
        self.app.open_connections.add(self)
        self.task = asyncio.get_running_loop().create_task(self._serve())

    def data_received(self, data: bytes) -> None:
        """Take in bytes, or drop them once the last answer is out."""
        if not self._ending:
            self._buffer += data
            self._arrival.set()

    def eof_received(self) -> bool:
        """Keep the connection open: net/http answers what it has, but the request's context is cancelled."""
        self._leave()
        return True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Wake the task that waits for this client."""
        self._lost = True
        self.app.open_connections.discard(self)
        self._writable.set()
        self._leave()
        self.app.changed()

    def pause_writing(self) -> None:
        """The client doesn't read, so writing waits, and its task keeps what it holds."""
        self._writable.clear()
        self.app.changed()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._writable.set()

    def _leave(self) -> None:
        self.left = True
        self._arrival.set()
        if self._on_left is not None:
            on_left, self._on_left = self._on_left, None  # once: FIN and the end of the connection are one leaving
            on_left()

    @property
    def stalled(self) -> bool:
        """Whether bytes wait for a client that doesn't read."""
        return not self._writable.is_set()

    def watch(self, on_left: Callable[[], object] | None) -> None:
        """Have `on_left` called as soon as the caller leaves, or now if it has; None ends the watch."""
        self._on_left = on_left
        if self.left:
            self._leave()

    def keep(self) -> None:
        """Leak: leave the connection open and unanswered until the server exits."""
        self.kept = True

    async def write(self, octets: bytes) -> None:
        """Send `octets`; wait while the client doesn't read."""
        if not self._lost and not self._ending:
            self.transport.write(octets)
            await self._writable.wait()

    async def take(self, size: int) -> bytes:
        """Return the next `size` bytes. Raises BodyError if the client stops before."""
        while len(self._buffer) < size:
            await self._more()
        octets = bytes(self._buffer[:size])
        del self._buffer[:size]
        return octets

    async def take_line(self) -> bytes:
        """Return the next line of chunked framing: CRLF only, and 4096 bytes at most. Raises BodyError."""
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > 4096:
                raise BodyError("header line too long")
            await self._more()
        line = await self.take(end + 1)
        if not line.endswith(b"\r\n"):
            raise BodyError("chunked line ends with bare LF")
        return line.rstrip(b"\r\n \t")

    async def _more(self) -> None:
        if self.left:
            raise BodyError("unexpected EOF")
        self._arrival.clear()
        await self._arrival.wait()

    async def _head(self) -> Head | None:
        """Return the next request's head; None when the client is done. Raises Refused."""
        searched = 0
        judged = False
        while (end := _HEAD_END.search(self._buffer, searched)) is None:
            searched = max(0, len(self._buffer) - 3)
            if len(self._buffer) > HEAD_LIMIT:
                raise Refused("431 Request Header Fields Too Large")
            line, feed, _ = self._buffer[:8192].partition(b"\n") if not judged else (b"", b"", b"")
            if feed:  # net/http answers a bad request line without waiting for the fields
                request_line(bytes(line))
                judged = True
            try:
                await self._more()
            except BodyError:
                return None
        if end.end() > HEAD_LIMIT:
            raise Refused("431 Request Header Fields Too Large")
        return parse(await self.take(end.end()))

    async def _serve(self) -> None:
        try:
            while not self._ending and (head := await self._head()) is not None:
                reply = Reply(self, head)
                await self.app.handle(head, reply, self)
                if self.kept:
                    return
                if reply.closes:
                    self.finish(linger=reply.body_unread)
            if not self._ending:
                self.finish()
        except Refused as refusal:
            await self.write(refusal.octets)
            self.finish(linger=True)

    def finish(self, *, linger: bool = False) -> None:
        """End the connection after what is written, with a pause between FIN and close if the client may still send."""
        self._ending = True
        self._buffer.clear()
        if linger and not self._lost:
            with suppress(OSError):  # the client has reset it, which isn't reported yet
                self.transport.write_eof()
            asyncio.get_running_loop().call_later(LINGER, self.transport.abort)
        else:
            self.transport.close()

    def abort(self) -> None:
        """End the connection at once, as a process that exits does."""
        self._on_left = None
        self.task.cancel()
        if not self._lost:
            self.transport.abort()


def _phrase(status: int) -> str:
    """The reason phrase, or what net/http makes up for a status that has none, such as 499."""
    return HTTPStatus(status).phrase if status in HTTPStatus.__members__.values() else f"status code {status}"


class Reply:
    """The answer to one request, sent as net/http sends what a handler writes."""

    def __init__(self, connection: Connection, head: Head) -> None:
        self._connection = connection
        self._head = head
        self.fields: list[tuple[str, str]] = []  # set by handlers; go out in alphabetical order
        self.closes = head.closes
        self.begun = False
        self.ended = False
        self.body_unread = head.length != 0
        self._expecting = head.has_token("expect", "100-continue") and head.version >= (1, 1) and self.body_unread

    def set(self, name: str, value: str) -> None:
        """Set a field, in place of an earlier one of that name."""
        self.fields = [(found, kept) for found, kept in self.fields if found != name] + [(name, value)]

    async def body(self) -> bytes:
        """Return the request's content, asking for it first where the client waits to be asked. Raises BodyError."""
        if self._expecting:
            self._expecting = False
            await self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            content = await self._content(None)
        except BodyError:
            self.closes = True
            raise
        self.body_unread = False
        return content

    async def _content(self, limit: int | None) -> bytes:
        if self._head.length is not None:
            return await self._connection.take(self._head.length)
        content = bytearray()
        while True:
            size = (await self._connection.take_line()).partition(b";")[0].strip()
            if not re.fullmatch(rb"[0-9A-Fa-f]{1,16}", size):
                raise BodyError("invalid byte in chunk length")
            if int(size, 16) == 0:
                break
            content += await self._connection.take(int(size, 16))
            if await self._connection.take(2) != b"\r\n":
                raise BodyError("malformed chunked encoding")
            if limit is not None and len(content) > limit:
                raise BodyError("more than net/http would discard")
        while await self._connection.take_line():
            pass  # trailer fields
        return bytes(content)

    async def _discard_body(self) -> None:
        """Read the rest of the request before answering, if that is little; else close after the answer."""
        if not self.body_unread or self.closes:
            return
        self.closes = self._expecting or (self._head.length or 0) >= DISCARDED
        if not self.closes:
            try:
                await self._content(DISCARDED)
                self.body_unread = False
            except BodyError:
                self.closes = True

    def _head_octets(self, status: int, length: int | None) -> bytes:
        bodiless = status in (204, 304)
        unframed = length is None and not bodiless and self._head.method != "HEAD"
        chunked = unframed and self._head.version >= (1, 1)
        if unframed and not chunked:
            self.closes = True  # only the end of the connection ends the content
        lines = sorted(self.fields, key=lambda field: field[0])
        if self.closes and ("Connection", "close") not in lines:
            lines = [line for line in lines if line[0] != "Connection"]
        if not any(name == "Date" for name, _ in lines):
            lines.append(("Date", f"{datetime.now(UTC):%a, %d %b %Y %H:%M:%S GMT}"))
        if length is not None and not any(name == "Content-Length" for name, _ in lines):
            lines.append(("Content-Length", str(length)))
        if self.closes and self._head.version >= (1, 1) and ("Connection", "close") not in lines:
            lines.append(("Connection", "close"))
        elif self._head.version == (1, 0) and not self.closes:
            lines.append(("Connection", "keep-alive"))
        if chunked:
            lines.append(("Transfer-Encoding", "chunked"))
        self.begun = True
        version = "HTTP/1.1" if self._head.version >= (1, 1) else "HTTP/1.0"
        text = "".join(f"{name}: {value}\r\n" for name, value in lines)
        return f"{version} {status} {_phrase(status)}\r\n{text}\r\n".encode("latin-1", "replace")

    async def whole(self, status: int, body: bytes = b"", content_type: str | None = None) -> None:
        """Answer at once: with a Content-Length if the content is small, else as one chunk."""
        if content_type is not None:
            self.set("Content-Type", content_type)
        await self._discard_body()
        bodiless = self._head.method == "HEAD" or status in (204, 304)
        length = len(body) if len(body) <= HELD_BACK else None
        if bodiless and not (body and status not in (204, 304)):
            length = None  # nothing was written, so net/http has nothing to count
        octets = self._head_octets(status, length)
        if not bodiless:
            chunked = length is None and self._head.version >= (1, 1)
            octets += b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
        self.ended = True
        await self._connection.write(octets)

    async def chunk(self, data: bytes, status: int = 200) -> None:
        """Send a piece of a stream now; the first brings the head."""
        octets = b""
        if not self.begun:
            await self._discard_body()
            octets = self._head_octets(status, None)
        framed = b"%x\r\n%b\r\n" % (len(data), data) if self._head.version >= (1, 1) else data
        await self._connection.write(octets + framed)

    async def end(self) -> None:
        """End a stream."""
        self.ended = True
        await self._connection.write(b"0\r\n\r\n" if self._head.version >= (1, 1) else b"")
