"""Octets of a client to requests: aiohttp's C parser, with the limits and the caution that it needs.

Everything that touches aiohttp is here and nowhere else. Only its parser is used, not its RequestHandler: a connection
that is nothing but callbacks needs neither task nor future for a request (2 µs of 26, 5 KiB of 13 per idle stream), and
none of the traps of the handler's own error, lingering and shutdown paths can bite.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, cast

from aiohttp.http import HttpRequestParser
from aiohttp.http_exceptions import BadHttpMethod, LineTooLong

from proxy import refusals
from proxy.exchange import RequestHead

if TYPE_CHECKING:
    import asyncio

    from aiohttp.base_protocol import BaseProtocol

    from proxy.exchange import FieldLines
    from proxy.refusals import Refusal

C_PARSER = HttpRequestParser.__module__ == "aiohttp._http_parser"
"""Whether aiohttp's C parser is loaded. Its Python fallback is more lenient, and has had smuggling bugs of its own."""

# Parsed requests that may wait on a connection; aiohttp parses no further until one is taken.
PIPELINE_LIMIT = 32
_HTTP = re.compile(rb" *HTTP/").match
# Where aiohttp would begin to hold back content: more than one read brings, and each read's is taken out at once.
_NEVER = 2**20
# Requests that are known by the octets of their heads, and the most octets that one of these may have: 1 MiB in all.
KNOWN_LIMIT = 256
KNOWN_LENGTH = 4096


class Request:
    """What one request's head says, and what it means for the connection. Its values are never changed."""

    __slots__ = ("head", "last", "length", "persistent")

    def __init__(self, message: Message) -> None:
        self.head = head = RequestHead(message.method, message.path, message.version, message.raw_headers)
        self.last = message.should_close and message.version[0] == 1  # the client has said that it sends no other
        # aiohttp carries the last trailer of chunked content over to the next request's fields.
        self.persistent = not (message.should_close or message.chunked or message.upgrade)  # another may follow it
        length = head.read.get(b"content-length", b"0")
        self.length = int(length) if length.isdigit() and len(length) < 16 else -1  # octets of content that it tells


class Message(Protocol):
    """What aiohttp makes of a request head."""

    method: str
    path: str  # the target, octet for octet
    version: tuple[int, int]
    raw_headers: FieldLines
    should_close: bool
    upgrade: bool
    chunked: bool


class Content(Protocol):
    """What aiohttp makes of a request's content."""

    total_bytes: int  # octets that have come so far, framing excluded

    def is_eof(self) -> bool:
        """Say whether all of it has come."""

    def read_nowait(self, n: int = -1) -> bytes:
        """Return what has come since the last call."""


class _Flow:
    """What aiohttp's content asks to hold the socket back; it never has to, for it holds nothing."""

    connected = True

    def pause_reading(self) -> None:
        """Leave the socket alone."""

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Leave the socket alone."""


_FLOW = cast("BaseProtocol", _Flow())


class RequestParser:
    """The requests that one connection brings, in order."""

    __slots__ = ("_content", "_limit", "_line", "_parser", "exact", "fault", "head_octets", "queue", "stopped")

    def __init__(self, loop: asyncio.AbstractEventLoop, max_head: int) -> None:
        """Take heads of at most `max_head` octets."""
        self.queue: deque[tuple[Request, Content]] = deque()
        self.fault: Refusal | None = None  # what ends the connection once all in the queue is answered
        self.head_octets = 0  # of a head that isn't whole yet
        self.stopped = False  # at its limit: octets wait inside, for a `feed(b"")` once the queue is empty
        self._line = b""  # what is known of the start-line of a head that isn't whole yet
        self._limit = max_head
        self._content: Content | None = None  # of the last request, while it isn't whole
        self.exact = True  # each octet so far belongs to a request that has come: nothing else is begun, wrong or left
        self._parser: Any = HttpRequestParser(
            _FLOW,
            loop,
            _NEVER,
            max_line_size=max_head,
            max_field_size=max_head,
            max_msg_queue_size=PIPELINE_LIMIT,
            auto_decompress=False,
        )

    def known(self, data: bytes) -> tuple[Request, bytes] | None:
        """Return the request and its content that one read is, if that is known without parsing it.

        Clients send the same heads again and again. One that comes whole, where the parser stands between two requests,
        makes the request that the parser made of the same octets before.
        """
        if not self.exact or self._content is not None or self.queue:
            return None
        head, end, content = data.partition(b"\r\n\r\n")
        request = _known.get(head)
        if request is None or request.length != len(content) or not end or len(head) + 4 > self._limit:
            return None
        return request, content

    def feed(self, data: bytes) -> None:
        """Parse one read: requests go to `queue`, content to theirs, and what can't be parsed sets `fault`."""
        content, taken, resumed = self._content, not self.queue, self.stopped
        before = 0 if content is None else content.total_bytes
        try:
            messages, upgraded, _ = self._parser.feed_data(data)
        except Exception as error:  # yarl, which aiohttp calls, raises IndexError for some targets
            self.fault = self._fault_of(error, data, content is not None)
            self.exact = False
            return
        ended = content is not None and content.is_eof()
        if messages:
            if resumed or self.head_octets + len(data) > self._limit:
                messages = self._judge_sizes(messages)
            messages = self._judge_protocol(messages, self._line + data)
            found = [(Request(message), its) for message, its in messages]
            self.queue.extend(found)
            self.exact = self.exact and len(found) == 1 and not upgraded and _remember(*found[0], data)
            self._content = None if not found or found[-1][1].is_eof() else found[-1][1]
            self._line = b""
            self.head_octets = 0
        elif content is None:
            self.exact = False
            self._count_head(data)
        else:
            self.exact = self.exact and content.total_bytes - before == len(data)
            self._content = None if ended else content
        counted = len(self.queue)
        if taken and ended:
            # aiohttp counts a request when it is whole, which this one was only after `take`.
            self._parser.message_consumed()
            counted += 1
        self.stopped = counted >= PIPELINE_LIMIT
        if messages and not self.stopped and not data.endswith(b"\r\n\r\n"):
            self._count_next(messages[-1][1], data)
        if upgraded:  # CONNECT, or a switch of protocols that won't happen: what follows is no request
            self.fault = self.fault or refusals.MALFORMED

    def take(self) -> tuple[Request, Content | bytes]:
        """Return the next request, which makes room for another, with its content: octets if it is whole."""
        request, content = self.queue.popleft()
        if not content.is_eof():
            return request, content
        self._parser.message_consumed()
        return request, content.read_nowait(-1) if content.total_bytes else b""

    def _count_head(self, data: bytes) -> None:
        """Count a head that isn't whole. Line ends before a request don't begin one (RFC 9112, 2.2)."""
        if not self.head_octets:
            data = data.lstrip(b"\r\n")
        self.head_octets += len(data)
        if not self._line.endswith(b"\n"):
            self._line += data[: data.find(b"\n") + 1 or len(data)]
        if self.head_octets > self._limit:
            self.fault = self._too_large(self._line.endswith(b"\n"))

    def _count_next(self, content: Content, data: bytes) -> None:
        """Count what follows the last request in its read. Behind content it isn't looked for; the next read tells."""
        if content.is_eof() and not content.total_bytes:
            self._count_head(data.rpartition(b"\r\n\r\n")[2])

    def _judge_sizes(self, messages: list[tuple[Message, Content]]) -> list[tuple[Message, Content]]:
        """Return the requests before the first whose head is too large; content may have come in the same read.

        A target that is too large is none of them: the parser has refused it.
        """
        for index, (message, _) in enumerate(messages):
            size = len(message.path) + sum(len(name) + len(value) + 4 for name, value in message.raw_headers)
            if size > self._limit:
                self.fault = refusals.head_too_large(self._limit)
                return messages[:index]
        return messages

    def _judge_protocol(self, messages: list[tuple[Message, Content]], octets: bytes) -> list[tuple[Message, Content]]:
        """Return the requests before the first that isn't HTTP: llhttp takes RTSP/1.1 and ICE/1.0 for it."""
        end = 0
        for index, (message, _) in enumerate(messages):
            start = f"{message.method} {message.path} ".encode("utf-8", "surrogateescape")
            found = octets.find(start, end)
            if found < 0:  # its head began behind content, in an earlier read, or has more spaces (RFC 9112, 3)
                continue
            end = found + len(start)
            if not _HTTP(octets, end):
                self.fault = refusals.MALFORMED
                return messages[:index]
        return messages

    def _too_large(self, past_target: bool) -> Refusal:
        return refusals.head_too_large(self._limit) if past_target else refusals.TARGET_TOO_LONG

    def _fault_of(self, error: Exception, data: bytes, within_content: bool) -> Refusal:
        if isinstance(error, LineTooLong):
            end = data.lstrip(b"\r\n").find(b"\n")
            line_seen = self._line.endswith(b"\n") or 0 <= end <= self._limit - self.head_octets
            return self._too_large(line_seen or within_content)  # within content it is a trailer
        if "Too many headers" in str(error):
            return self._too_large(past_target=True)
        if isinstance(error, BadHttpMethod) and data.startswith(b"\x16\x03"):
            return refusals.TLS
        return refusals.MALFORMED


# Octets of a head, without its empty line -> what the parser makes of it. A hostile client that sends ever new ones
# empties it.
_known: dict[bytes, Request] = {}


def _remember(request: Request, content: Content, data: bytes) -> bool:
    """Say whether another request may follow, and `data` is exactly the head of this one and what has come of its
    `content`; if so, remember the head.
    """
    head, _, rest = data.partition(b"\r\n\r\n")
    if not request.persistent or len(rest) != content.total_bytes:
        return False
    if len(head) + 4 <= KNOWN_LENGTH:
        if len(_known) >= KNOWN_LIMIT:
            _known.clear()
        _known[head] = request
    return True
