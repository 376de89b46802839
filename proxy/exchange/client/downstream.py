"""A client's connection as part of aiohttp's server. All non-public names of aiohttp are used here.

aiohttp brings the C parser and the list of connections. It is pinned exactly, and a test checks each name. Behaviour
that doesn't fit here (answering in its own words, lingering, its drain, decompressing content, its keep-alive timer)
is switched off or overridden.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from aiohttp.http import HttpRequestParser
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.http_exceptions import BadHttpMethod as NotHttp
from aiohttp.web_protocol import MAX_MSG_QUEUE_SIZE as PIPELINE_LIMIT
from aiohttp.web_protocol import RequestHandler

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from aiohttp import web

    from proxy.policy.heads import FieldLines

__all__ = ["C_PARSER", "PIPELINE_LIMIT", "Handler", "LineTooLong", "NotHttp", "TooManyFields", "kind_of", "new_parser"]

C_PARSER = HttpRequestParser.__module__ == "aiohttp._http_parser"
"""Whether aiohttp's C parser is loaded. Its Python fallback is more lenient, and has had smuggling bugs of its own."""

# Where aiohttp would begin to hold back content: more than one read brings, and each read is taken out at once.
_NEVER = 2**20


class TooManyFields(Exception):  # noqa: N818 - named as aiohttp names its kin
    """A head has more field lines than aiohttp takes."""


class Message(Protocol):
    """aiohttp's view of a request head."""

    method: str
    path: str  # the target, byte for byte
    version: tuple[int, int]
    raw_headers: FieldLines
    should_close: bool
    upgrade: bool
    chunked: bool


class Parser(Protocol):
    """The interface of aiohttp's C parser."""

    def feed_data(self, data: bytes) -> tuple[Sequence[tuple[Message, Any]], bool, bytes]:
        """Return the requests that `data` completes, whether another protocol is asked for, and the rest."""

    def message_consumed(self) -> None:
        """Make room for another request; it parses no more than PIPELINE_LIMIT."""


class _Flow:
    """The object that aiohttp's content would ask to hold the socket back. It never does, because it holds nothing."""

    connected = True
    _reading_paused = False

    def pause_reading(self) -> None:
        """Leave the socket alone."""

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Leave the socket alone."""


def new_parser(loop: asyncio.AbstractEventLoop, max_head: int) -> Parser:
    """Return a parser that belongs to no connection."""
    flow: Any = _Flow()
    parser: Any = HttpRequestParser(
        flow,
        loop,
        _NEVER,
        max_line_size=max_head,
        max_field_size=max_head,
        max_msg_queue_size=PIPELINE_LIMIT,
        auto_decompress=False,
    )
    return parser  # type: ignore[no-any-return]


def kind_of(error: Exception) -> Exception:
    """Return `error`, or TooManyFields, which aiohttp distinguishes by its text only."""
    if isinstance(error, BadHttpMessage) and "Too many headers" in str(error):
        return TooManyFields()
    return error


_NO_MESSAGES: Any = deque()  # nothing is ever put in; sharing one saves 0.7 KiB per connection


class Handler(RequestHandler):
    """One connection of aiohttp's server, with everything removed that it would do by itself."""

    __slots__ = ()

    def __init__(self, server: web.Server, loop: asyncio.AbstractEventLoop, max_head: int) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=0,  # a wheel checks all deadlines
            tcp_keepalive=False,  # the listening socket's is inherited
            access_log=None,  # type: ignore[arg-type]
            max_line_size=max_head,
            max_field_size=max_head,
            lingering_time=0,
            read_bufsize=_NEVER,
            auto_decompress=False,
        )
        self._parser = None  # `requests` makes its own
        self._messages = _NO_MESSAGES

    async def start(self) -> None:
        """Do nothing in the task that aiohttp makes for each connection: `life` runs the coroutine that serves it."""

    def pause_reading(self) -> None:
        """Leave the socket alone: aiohttp would pause it for data that is taken out at once."""

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Leave the socket alone. aiohttp's own method would feed the parser again, and undo our pause."""
