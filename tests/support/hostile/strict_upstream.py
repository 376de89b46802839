"""An upstream that writes down every byte it is given, and reads requests by the letter of RFC 9112.

What it can't read so is a fault, never a guess: two parsers that guess differently are what smuggling is. Where the
RFC leaves a recipient a choice (bare LF, folded lines, lists of lengths, targets of other forms), it is a fault too.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field

import h11

# Request line and field line, in origin-form and visible bytes only; no folding, no other end than CRLF.
_REQUEST_LINE = re.compile(rb"([A-Z]+) (/[!-~]*) HTTP/1\.([01])").fullmatch
_FIELD_LINE = re.compile(
    rb"([A-Za-z0-9!#$%&'*+\-.^_`|~]+):[ \t]*((?:[!-~\x80-\xff](?:[ \t!-~\x80-\xff]*[!-~\x80-\xff])?)?)[ \t]*"
).fullmatch
_LINE_BEGUN = re.compile(rb"[\t -~\x80-\xff]*\r?").fullmatch
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,17}").fullmatch
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}").fullmatch


Fields = tuple[tuple[str, str], ...]
"""Names in lower case, and values."""


class NotStrictError(ValueError):
    """Bytes that a strict reader takes for no request."""


@dataclass(frozen=True)
class Seen:
    """One request that came whole."""

    method: str
    target: str
    fields: Fields
    content: bytes
    trailers: Fields = ()

    @property
    def path(self) -> str:
        """The target up to its first `?`."""
        return self.target.partition("?")[0]

    def values(self, name: str) -> list[str]:
        """Return the values of every field line of that name."""
        return [value for each, value in self.fields if each == name]


class Reader:
    """Bytes to requests, by rules that leave nothing to guess."""

    def __init__(self) -> None:
        self._octets = b""

    @property
    def rest(self) -> bytes:
        """What has come of a request that isn't whole."""
        return self._octets

    def feed(self, octets: bytes) -> list[Seen]:
        """Return the requests that are whole now. NotStrictError for what never will be one."""
        self._octets += octets
        found = []
        while (taken := _request(self._octets)) is not None:
            request, self._octets = taken
            found.append(request)
        return found


def _request(octets: bytes) -> tuple[Seen, bytes] | None:
    """Return the first request and what follows it; None while there is more to come."""
    head, whole, rest = octets.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    if not whole:
        unfinished = lines.pop()
        if not _LINE_BEGUN(unfinished):
            raise NotStrictError(f"line {unfinished[:80]!r}")
        if lines:
            _head(lines)
        return None
    method, target, fields = _head(lines)
    framed = _content(fields, rest)
    if framed is None:
        return None
    content, trailers, rest = framed
    return Seen(method, target, fields, content, trailers), rest


def _head(lines: list[bytes]) -> tuple[str, str, Fields]:
    start = _REQUEST_LINE(lines[0])
    if start is None:
        raise NotStrictError(f"request line {lines[0][:80]!r}")
    return start[1].decode(), start[2].decode(), _fields(lines[1:])


def _fields(lines: list[bytes]) -> Fields:
    fields = []
    for line in lines:
        found = _FIELD_LINE(line)
        if found is None:
            raise NotStrictError(f"field line {line[:80]!r}")
        fields.append((found[1].decode().lower(), found[2].decode("latin-1")))
    return tuple(fields)


def _content(fields: Fields, octets: bytes) -> tuple[bytes, Fields, bytes] | None:
    """Return the content, its trailers and what follows them; None while there is more to come."""
    said = {name: [value for each, value in fields if each == name] for name in _ONCE}
    if many := [name for name, values in said.items() if len(values) > 1]:
        raise NotStrictError(f"{many[0]} more than once")
    if not said["host"]:
        raise NotStrictError("no host")
    lengths, codings = said["content-length"], said["transfer-encoding"]
    if lengths and codings:
        raise NotStrictError("content-length and transfer-encoding")
    if codings:
        if codings[0].lower() != "chunked":
            raise NotStrictError(f"transfer-encoding {codings[0]!r}")
        return _chunks(octets)
    if lengths and not _LENGTH(lengths[0].encode("latin-1")):
        raise NotStrictError(f"content-length {lengths[0]!r}")
    size = int(lengths[0]) if lengths else 0
    return None if len(octets) < size else (octets[:size], (), octets[size:])


_ONCE = ("host", "content-length", "transfer-encoding")


def _chunks(octets: bytes) -> tuple[bytes, Fields, bytes] | None:
    content = []
    while True:
        line, found, rest = octets.partition(b"\r\n")
        if found and not _CHUNK_SIZE(line):
            raise NotStrictError(f"chunk size {line[:80]!r}")
        size = int(line, 16) if found else 0
        if found and not size:
            break
        if not found or len(rest) < size + 2:
            return None
        if rest[size : size + 2] != b"\r\n":
            raise NotStrictError("a chunk that doesn't end where it said")
        content.append(rest[:size])
        octets = rest[size + 2 :]
    if rest.startswith(b"\r\n"):
        return b"".join(content), (), rest[2:]
    lines, whole, rest = rest.partition(b"\r\n\r\n")
    return (b"".join(content), _fields(lines.split(b"\r\n")), rest) if whole else None


def read_by_h11(octets: bytes) -> list[tuple[str, str, bytes]]:
    """Return method, target and content of each whole request in `octets`, as another strict parser reads them."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=2**20)
    connection.receive_data(octets)
    found = []
    while True:
        method, target, content = "", "", b""
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            if not isinstance(event, h11.Request | h11.Data):
                return found
            if isinstance(event, h11.Request):
                method, target = event.method.decode(), event.target.decode()
            else:
                content += bytes(event.data)
        found.append((method, target, content))
        connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
        connection.send(h11.EndOfMessage())
        if connection.our_state is h11.MUST_CLOSE:
            return found
        connection.start_next_cycle()


@dataclass
class Record:
    """What has come since a certain moment."""

    requests: list[Seen] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)  # what no strict reader would have accepted
    connections: list[Connection] = field(default_factory=list)  # those on which something came

    @property
    def unfinished(self) -> list[bytes]:
        """What came of requests that never became whole."""
        return [connection.reader.rest for connection in self.connections if connection.reader.rest]


class Connection(asyncio.Protocol):
    """One connection: reads, writes down, answers."""

    def __init__(self, recorder: Recorder) -> None:
        self.octets = bytearray()
        self.requests: list[Seen] = []
        self.reader = Reader()
        self._recorder = recorder
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._recorder.open.add(self)
        self._recorder.connections.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._recorder.open.discard(self)

    def data_received(self, data: bytes) -> None:
        self.octets += data
        record = self._recorder.record
        if self not in record.connections:
            record.connections.append(self)
        try:
            found = self.reader.feed(data)
        except NotStrictError as error:
            record.faults.append(str(error))
            self._transport.close()
            return
        for request in found:
            record.requests.append(request)
            self.requests.append(request)
            self._transport.write(_HEAD if request.method == "HEAD" else _HEAD + b"{}")

    def abort(self) -> None:
        self._transport.abort()


_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n"


class Recorder:
    """The upstream: listens on loopback, answers every whole request with `{}`, and keeps what came."""

    def __init__(self) -> None:
        self.record = Record()
        self.connections: list[Connection] = []
        self.open: set[Connection] = set()
        self.port = 0
        self._server: asyncio.Server

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.get_running_loop().create_server(lambda: Connection(self), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """End listening and every connection."""
        self._server.close()
        for connection in tuple(self.open):
            connection.abort()

    def restart(self) -> Record:
        """Begin a new record and return it."""
        self.record = Record()
        return self.record
