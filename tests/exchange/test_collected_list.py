"""A list of models between Ollama's connection and the relay: collected whole, and passed on at once or not at all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from proxy.exchange.listing import LIST_AT_MOST, Listing
from proxy.exchange.message.failures import ClosedEarly, Unlisted
from proxy.exchange.message.known_heads import ResponseHead
from proxy.exchange.message.lists import Shown
from proxy.exchange.message.plain_chunks import LAST_CHUNK, chunk
from proxy.exchange.upstream.upstream import Upstream
from proxy.policy.routes import ROUTES
from tests.exchange.message.test_lists import OPENAI, TAGS, rule
from tests.support.raw_http import Line

if TYPE_CHECKING:
    from proxy.exchange.message.failures import UpstreamFailure

ALL = b'{"models":[{"name":"secret"},{"name":"qwen3:8b"}]}'
MINE = b'{"models":[{"name":"qwen3:8b"}]}'
FIELDS = ((b"Content-Type", b"application/json"), (b"ETag", b'"x"'))
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
(HEAD_TAGS,) = (route for route in ROUTES if route.name == "HEAD /api/tags")


@dataclass
class Relay:
    """The owner of a listing, which keeps what reaches it."""

    heads: list[ResponseHead] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)
    ended: bool = False
    failures: list[UpstreamFailure] = field(default_factory=list)
    blocked: list[bool] = field(default_factory=list)

    def response(self, head: ResponseHead | None, content: bytes, ended: bool) -> None:
        assert not self.ended, "a response has one end"
        assert not self.failures, "nothing comes after a failure"
        self.heads += [] if head is None else [head]
        self.contents.append(content)
        self.ended = ended

    def token(self, octets: bytes) -> bool:
        raise AssertionError("no list is a stream of tokens")

    def chunk(self, octets: bytes, content: bytes) -> None:
        assert octets == chunk(content)
        self.response(None, content, False)

    def failed(self, failure: UpstreamFailure) -> None:
        assert not self.ended, "what has ended well does not fail"
        self.failures.append(failure)

    def upstream_blocked(self) -> None:
        self.blocked.append(True)

    def upstream_ready(self) -> None:
        self.blocked.append(False)


def collected(shown: Shown | None = None) -> tuple[Relay, Listing]:
    """Return a relay, and what collects a list for it."""
    relay = Relay()
    return relay, Listing(relay, shown or Shown(TAGS, rule("qwen3:*")))


def head(status: int = 200, *more: tuple[bytes, bytes]) -> ResponseHead:
    """Return a response's head."""
    return ResponseHead.of(status, "1.1", (*FIELDS, *more))


@pytest.mark.parametrize("size", [1, 7, 4000], ids=["byte by byte", "in pieces", "whole"])
@pytest.mark.parametrize("chunks", [False, True], ids=["content", "chunks"])
def test_list_goes_on_at_its_end(size: int, chunks: bool) -> None:
    """Nothing of a list reaches the relay before all of it is judged; then the rest goes on with its own length."""
    relay, listing = collected()
    listing.response(head(), b"", False)
    for at in range(0, len(ALL), size):
        piece = ALL[at : at + size]
        if chunks:
            assert not listing.token(chunk(piece))
            listing.chunk(chunk(piece), piece)
        else:
            listing.response(None, piece, False)
    assert relay == Relay()
    listing.response(None, b"", True)
    bare = ResponseHead.of(200, "1.1", FIELDS[:1])  # without the validator of the whole list
    assert relay == Relay([bare.resized(bare.forwarded, len(MINE))], [MINE], True)


@pytest.mark.parametrize("size", [1, 20, 4000], ids=["bytes", "pieces", "one chunk"])
def test_list_is_judged_in_plain_chunks(size: int) -> None:
    """Chunks that come one by one, which the connection passes on without its parser, are judged like any list."""
    relay, listing = collected()
    connection = Upstream()
    connection.connection_made(Line())  # type: ignore[arg-type]
    connection.owner = listing
    connection.send(b"GET /api/tags HTTP/1.1\r\nHost: a\r\n\r\n", head_only=False)
    first, *others = (chunk(ALL[at : at + size]) for at in range(0, len(ALL), size))
    for octets in (CHUNKED + first, *others):
        connection.data_received(octets)
        assert relay == Relay()
    connection.data_received(LAST_CHUNK)
    assert (relay.contents, relay.ended, relay.failures) == ([MINE], True, [])


@pytest.mark.parametrize("status", [300, 304, 404, 500])
def test_other_response_passes_as_it_comes(status: int) -> None:
    """A response that has no list is passed on piece by piece, with all of its head."""
    relay, listing = collected()
    listing.response(head(status), b"ab", False)
    listing.chunk(b"2\r\ncd\r\n", b"cd")
    listing.response(None, b"ef", True)
    assert relay == Relay([head(status)], [b"ab", b"cd", b"ef"], True)


def test_list_without_content_has_no_length() -> None:
    """A HEAD request's response passes without the length and the validators of the whole list."""
    relay, listing = collected(Shown(HEAD_TAGS, rule("qwen3:*")))
    listing.response(head(200, (b"Content-Length", b"9999")), b"", True)
    ((found,), contents, *others) = (relay.heads, relay.contents, relay.ended, relay.failures)
    assert (found.length, b"ETag" in found.forwarded, contents, others) == (None, False, [b""], [True, []])


def test_list_may_have_the_greatest_size() -> None:
    """A list of exactly as many bytes as are collected is passed on; one byte more is a failure, and reported once."""
    relay, listing = collected()
    listing.response(head(), ALL + b" " * (LIST_AT_MOST - len(ALL)), True)
    assert (len(relay.contents[0]), relay.failures) == (LIST_AT_MOST - len(ALL) + len(MINE), [])
    relay, listing = collected()
    listing.response(head(), ALL + b" " * (LIST_AT_MOST - len(ALL) + 1), True)
    assert (relay.contents, [*map(str, relay.failures)]) == ([], [f"more than {LIST_AT_MOST} bytes"])


@pytest.mark.parametrize(
    ("more", "content", "why"),
    [
        pytest.param([(b"Content-Encoding", b"gzip")], ALL, "it is encoded", id="encoded"),
        pytest.param([], b"[]", "no object", id="unreadable"),
    ],
)
def test_list_that_cannot_be_judged_is_a_failure(more: list[tuple[bytes, bytes]], content: bytes, why: str) -> None:
    """Nothing of a list that can't be judged reaches the relay; it gets a failure that says why."""
    relay, listing = collected()
    listing.response(head(200, *more), content, True)
    assert (relay.heads, relay.contents) == ([], [])
    (failure,) = relay.failures
    assert isinstance(failure, Unlisted)
    assert str(failure) == why


def test_connection_speaks_to_the_relay() -> None:
    """A lost connection and its flow control concern the relay."""
    relay, listing = collected()
    listing.upstream_blocked()
    listing.upstream_ready()
    lost = ClosedEarly("gone")
    listing.failed(lost)
    assert (relay.blocked, relay.failures) == ([True, False], [lost])


def test_listing_shows_itself_by_its_route() -> None:
    """In the log of a fault, a listing says which list it collects and how much of it."""
    _, listing = collected(Shown(OPENAI, rule("qwen3:*")))
    listing.response(head(), ALL, False)
    assert repr(listing) == f"<Listing of GET /v1/models, {len(ALL)} bytes>"
