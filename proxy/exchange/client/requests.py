"""Turn a client's bytes into requests, with aiohttp's C parser and the limits and caution that it needs.

The parser itself is in `downstream`, with everything that touches aiohttp. It refuses a bare CR or LF in a head, and
`_fault_of` turns its error into a refusal.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Protocol

from proxy.exchange.client.downstream import PIPELINE_LIMIT, LineTooLong, NotHttp, TooManyFields, kind_of, new_parser
from proxy.exchange.message.known_heads import KnownRequest, Request, request_heads
from proxy.policy import refusals
from proxy.policy.heads import RequestHead

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from proxy.exchange.client.downstream import Message, Parser
    from proxy.policy.refusals import Refusal

    Messages = Sequence[tuple[Message, "Content"]]

_HTTP = re.compile(rb" *HTTP/").match


def _request(message: Message) -> Request:
    return Request(
        RequestHead(message.method, message.path, message.version, message.raw_headers),
        last=message.should_close and message.version[0] == 1,
        # aiohttp adds the last trailer of chunked content to the next request's fields.
        persistent=not (message.should_close or message.chunked or message.upgrade),
    )


class Content(Protocol):
    """The content of a request, as aiohttp's parser or `Counted` brings it."""

    total_bytes: int  # bytes that have come so far, without framing

    def is_eof(self) -> bool:
        """Return whether it is complete."""

    def read_nowait(self, n: int = -1) -> bytes:
        """Return what has arrived since the last call."""


class Counted:
    """The content of a request with a known head: a number of bytes that no parser sees."""

    __slots__ = ("_length", "_unread", "total_bytes")

    def __init__(self, length: int, data: bytes) -> None:
        """Expect `length` bytes, of which `data` has arrived."""
        self._length = length
        self._unread = data
        self.total_bytes = len(data)

    def is_eof(self) -> bool:
        """Return whether it is complete."""
        return self.total_bytes == self._length

    def feed(self, data: bytes) -> bytes:
        """Take the part of `data` that belongs to it; return the rest."""
        room = self._length - self.total_bytes
        rest = data[room:]
        if rest:
            data = data[:room]
        self._unread = self._unread + data if self._unread else data
        self.total_bytes += len(data)
        return rest

    def read_nowait(self, n: int = -1) -> bytes:  # noqa: ARG002 - as aiohttp has it
        """Return what has arrived since the last call."""
        data, self._unread = self._unread, b""
        return data


class RequestParser:
    """The requests that one connection brings, in order."""

    __slots__ = (
        *("_content", "_limit", "_line", "_loop", "_parser"),
        *("exact", "fault", "head_octets", "heads", "queue", "stopped"),
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, max_head: int) -> None:
        """Accept heads of at most `max_head` bytes."""
        self.queue: list[tuple[Request, Content | bytes]] = []  # a deque has room for 64: 0.7 KiB for each connection
        self.fault: Refusal | None = None  # what ends the connection once everything in the queue is answered
        self.head_octets = 0  # of a head that isn't whole yet
        self.stopped = False  # at its limit: bytes wait inside, for a `feed(b"")` once the queue is empty
        self.heads = request_heads()
        self._line = b""  # what is known of the start-line of a head that isn't whole yet
        self._limit = max_head
        self._content: Content | None = None  # of the last request, while it isn't whole
        self.exact = True  # every byte so far belongs to a complete request: nothing else has begun
        self._loop = loop
        # None between two requests: a parser keeps the fields of its last head, about 4 KiB. A new one takes 0.4 us.
        self._parser: Parser | None = None

    def __repr__(self) -> str:
        bytes_waiting = self.waiting() if self.queue else 0
        fault = "" if self.fault is None else f", then {self.fault.reason}"
        return f"<RequestParser {len(self.queue)} waiting, the last with {bytes_waiting} bytes of content{fault}>"

    def take_known(self, data: bytes) -> bool:
        """Put the request of one read into the queue, if its head is known; return whether it was.

        This works only if the parser is between two requests, and `data` contains no more than that one.
        """
        if not self.exact or self._content is not None or self.queue:
            return False
        head, end, content = data.partition(b"\r\n\r\n")
        if not end or len(head) + 4 > self._limit:
            return False
        request = self.heads.find(head)
        if request is None or not 0 <= request.length >= len(content):
            return False
        if request.length > len(content):
            self._content = Counted(request.length, content)
        self.queue.append((request, content if self._content is None else self._content))
        return True

    def feed(self, data: bytes) -> None:
        """Parse one read: requests go to `queue`, content to theirs, and unparsable bytes set `fault`."""
        if type(self._content) is not Counted:
            self._parse(data)
            return
        rest = self._content.feed(data)
        if self._content.is_eof():
            self._content = None
        if rest:
            self._parse(rest)

    def _parse(self, data: bytes) -> None:
        content, taken, resumed = self._content, not self.queue, self.stopped
        before = 0 if content is None else content.total_bytes
        if self._parser is None:
            self._parser = new_parser(self._loop, self._limit)
        try:
            messages, upgraded, _ = self._parser.feed_data(data)
        except Exception as error:  # yarl, which aiohttp calls, raises IndexError for some targets
            self.fault = self._fault_of(kind_of(error), data, content is not None)
            self.exact = False
            return
        ended = content is not None and content.is_eof()
        if messages:
            if resumed or self.head_octets + len(data) > self._limit:
                messages = self._judge_sizes(messages)
            messages = self._judge_protocol(messages, self._line + data)
            found = [(_request(message), its) for message, its in messages]
            self.queue.extend(found)
            alone = content is None and len(found) == 1 and not upgraded  # nothing comes before its head
            self.exact = self.exact and alone and self._is_all(*found[0], data)
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
            # aiohttp counts a request when it is complete, which this one was only after `take`.
            self._consumed()
            counted += 1
        self.stopped = counted >= PIPELINE_LIMIT
        if messages and not self.stopped and not data.endswith(b"\r\n\r\n"):
            self._count_next(messages[-1][1], data)
        if upgraded:  # CONNECT, or a switch of protocols that won't happen: what follows is no request
            self.fault = self.fault or refusals.MALFORMED

    def take(self) -> tuple[Request, Content | bytes]:
        """Return the next request and its content (bytes if it is complete), and make room for another."""
        request, content = self.queue.pop(0)
        if isinstance(content, bytes) or not content.is_eof():
            return request, content
        if type(content) is not Counted:
            self._consumed()
        return request, content.read_nowait(-1) if content.total_bytes else b""

    def _consumed(self) -> None:
        """Make room in the parser for another request, or drop the parser if nothing is left in it."""
        if self._parser is not None:
            self._parser.message_consumed()
        if self.exact and not self.queue and self._content is None:
            self._parser = None

    def _count_head(self, data: bytes) -> None:
        """Count an incomplete head. Line ends before a request don't begin one (RFC 9112, 2.2)."""
        if not self.head_octets:
            data = data.lstrip(b"\r\n")
        self.head_octets += len(data)
        if not self._line.endswith(b"\n"):
            self._line += data[: data.find(b"\n") + 1 or len(data)]
        if self.head_octets > self._limit:
            self.fault = self._too_large(self._line.endswith(b"\n"))

    def _count_next(self, content: Content, data: bytes) -> None:
        """Count what follows the last request in its read. After content, the next read shows it."""
        if content.is_eof() and not content.total_bytes:
            self._count_head(data.rpartition(b"\r\n\r\n")[2])

    def _judge_sizes(self, messages: Messages) -> Messages:
        """Return the requests before the first whose head is too large; content may have come in the same read.

        A target that is too large isn't among them, because the parser has refused it.
        """
        for index, (message, _) in enumerate(messages):
            size = len(message.path) + sum(len(name) + len(value) + 4 for name, value in message.raw_headers)
            if size > self._limit:
                self.fault = refusals.head_too_large(self._limit)
                return messages[:index]
        return messages

    def _judge_protocol(
        self, messages: Sequence[tuple[Message, Content]], octets: bytes
    ) -> Sequence[tuple[Message, Content]]:
        """Return the requests before the first that isn't HTTP: llhttp accepts RTSP/1.1, ICE/1.0 and no target."""
        end = 0
        for index, (message, _) in enumerate(messages):
            if not message.path:  # a CONNECT without a target, for which aiohttp has None
                self.fault = refusals.MALFORMED
                return messages[:index]
            start = f"{message.method} {message.path} ".encode("utf-8", "surrogateescape")
            found = octets.find(start, end)
            if found < 0:  # its head began after content, in an earlier read, or has more spaces (RFC 9112, 3)
                continue
            end = found + len(start)
            if not _HTTP(octets, end):
                self.fault = refusals.MALFORMED
                return messages[:index]
        return messages

    def _too_large(self, past_target: bool) -> Refusal:
        return refusals.head_too_large(self._limit) if past_target else refusals.TARGET_TOO_LONG

    def _fault_of(self, error: Exception, data: bytes, within_content: bool) -> Refusal:
        if isinstance(error, TooManyFields):
            return self._too_large(past_target=True)
        if isinstance(error, LineTooLong):
            end = data.lstrip(b"\r\n").find(b"\n")
            line_seen = self._line.endswith(b"\n") or 0 <= end <= self._limit - self.head_octets
            return self._too_large(line_seen or within_content)  # within content it is a trailer
        if isinstance(error, NotHttp) and data.startswith(b"\x16\x03"):
            return refusals.TLS
        return refusals.MALFORMED

    def _is_all(self, request: Request, content: Content, data: bytes) -> bool:
        """Return whether another request may follow, and `data` is only this head and its content.

        If so, learn the head.
        """
        head, _, rest = data.partition(b"\r\n\r\n")
        if not request.persistent or len(rest) != content.total_bytes:
            return False
        if not request.head.repeated and b"expect" not in request.head.read:
            self.heads.learn(head, partial(KnownRequest, request))
        return True

    def waiting(self) -> int:
        """Return how many bytes of the last waiting request's content are here."""
        content = self.queue[-1][1]
        return len(content) if isinstance(content, bytes) else content.total_bytes

    def close(self) -> None:
        """Drop the parser."""
        self._parser = None
