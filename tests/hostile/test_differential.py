"""Three readers, one reading: what the gateway lets through is the same to parsers that share nothing with its own.

h11 and httptools read each request as it is forwarded, h11 each answer that is passed on as whole; inputs are good
messages, changed at random, and what has gone wrong before.
"""

from __future__ import annotations

import asyncio
import os
import re
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import httptools
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.exchange.client.requests import RequestParser
from proxy.exchange.message.forwarding import request_head, response_head
from proxy.exchange.message.upload import Upload
from proxy.exchange.upstream.upstream import Upstream
from proxy.policy.gate import Policy, decide
from proxy.policy.routes import Route
from tests.hostile.test_smuggling import BROKEN, CODED, HEAD, PASSES, REFUSED
from tests.support.examples import examples
from tests.support.raw_http import Line
from tests.support.simulated_world import AUTHORITY, read_request, read_response

if TYPE_CHECKING:
    from proxy.policy.heads import RequestHead

MINUTES = float(os.environ.get("FUZZ_MINUTES") or 0)
BOUNDED = settings(examples(400 + 5_000 * MINUTES), derandomize=not MINUTES, database=None)
POLICY = Policy.of(allow=(), max_body=2**20)

# --- messages, and what may befall them -------------------------------------------------------------------------------

TOKENS = [
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b",", b";", b"0", b"1", b"a", b"\x0b", b"\x85", b"\xa0", b"\xff",
    b"Content-Length: 2\r\n", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"chunked", b"identity",
    b"Host: evil\r\n", b"Connection: Content-Length\r\n", b"Connection: close, Host\r\n", b"Upgrade: h2c\r\n",
    b"Expect: 100-continue\r\n", b"X-A: b\r\n", b" X-A: b\r\n", b"X-A : b\r\n", b"\r\n\r\n", b"0\r\n\r\n",
    b"2\r\n{}\r\n",
    b"DELETE /api/delete HTTP/1.1\r\nHost: mac\r\n\r\n", b"HTTP/1.1", b"HTTP/1.0", b"%2f", b"..", b"/", b"?",
]  # fmt: skip


@st.composite
def changed(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Return one of `seeds`, changed in some places."""
    octets = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(octets)))
        upto = draw(st.integers(at, min(at + 12, len(octets))))
        new = draw(st.one_of(st.sampled_from(TOKENS), st.binary(max_size=2)))
        octets = octets[:at] + new + octets[upto:]
    return octets


def split(octets: bytes, at: list[int]) -> list[bytes]:
    """Return `octets` in pieces."""
    edges = sorted({0, len(octets), *(each for each in at if each < len(octets))})
    return [octets[start:end] for start, end in pairwise(edges)]


CUTS = st.lists(st.integers(0, 300), max_size=3)

# --- requests ---------------------------------------------------------------------------------------------------------

REQUESTS = [
    HEAD + b"Content-Length: 2\r\n\r\n{}",
    HEAD + CODED + b"\r\n2\r\n{}\r\n0\r\n\r\n",
    b"GET /api/tags HTTP/1.1\r\nHost: mac\r\nX-A: b\r\nConnection: keep-alive, X-A\r\n\r\n",
    b"GET /v1/models/a:b?x=%2f HTTP/1.0\r\nHost: mac\r\n\r\n",
    b"POST /v1/messages?beta=true HTTP/1.1\r\nHost: mac\r\nAuthorization: b\r\nContent-Length: 2\r\n\r\n{}",
    *(octets for octets, _ in PASSES.values()),
    *REFUSED.values(),
    *(HEAD + CODED + b"\r\n" + octets for octets in BROKEN.values()),
]


def forwarded(pieces: list[bytes]) -> list[tuple[RequestHead, bytes, bytes | None]]:
    """Return, for each request that is let through, its head, the bytes for Ollama, and its content if whole."""
    loop = asyncio.new_event_loop()
    try:
        parser = RequestParser(loop, 65536)
        for piece in pieces:
            if parser.fault is None:
                parser.feed(piece)
        found = []
        while parser.queue:
            request, content = parser.take()
            head = request.head
            if not isinstance(decide(head, POLICY), Route):
                continue
            upload = Upload(chunked=head.chunked)
            upload.done = isinstance(content, bytes)
            data = content if isinstance(content, bytes) else content.read_nowait(-1) if content.total_bytes else b""
            if data:
                upload.add(data)
            octets = request_head(head, AUTHORITY) + upload.flow(lambda _: None, lambda: None, 0.0)
            found.append((head, octets, data if upload.done else None))
        return found
    finally:
        loop.close()


class Strict:
    """What httptools reads in the same bytes."""

    def __init__(self, octets: bytes) -> None:
        self.target = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.content = b""
        self.whole = 0
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(octets)

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.content += body

    def on_message_complete(self) -> None:
        self.whole += 1


def judge_requests(octets: bytes, at: list[int]) -> int:
    """Hold what is forwarded of these bytes against the other two; return how many requests that were."""
    found = forwarded(split(octets, at))
    for head, sent, content in found:
        h11_read, strict = read_request(sent), Strict(sent)
        assert not h11_read.error, (h11_read.error, sent)
        assert h11_read.head.method == strict.parser.get_method() == head.method.encode()
        assert h11_read.head.target == strict.target == head.target.encode()
        assert list(h11_read.head.headers) == [(name, value.strip(b" \t")) for name, value in strict.fields]
        assert h11_read.content == strict.content
        assert not h11_read.rest
        assert [h11_read.whole, strict.whole] == [content is not None] * 2
        assert content is None or h11_read.content == content
        assert h11_read.field(b"host") == [AUTHORITY]
    return len(found)


@BOUNDED
@given(changed(REQUESTS), CUTS)
# A Connection field names the framing's: both are written again, and there is one of each.
@example(REQUESTS[0].replace(b"\r\n\r\n", b"\r\nConnection: Content-Length, Host\r\n\r\n"), [])
# Chunks that stand in one read with the request behind them.
@example(REQUESTS[1] + REQUESTS[2], [40, 70])
def test_requests_are_read_alike(octets: bytes, at: list[int]) -> None:
    """What reaches Ollama has one method, one target, the same fields and the same content to every reader."""
    judge_requests(octets, at)


@pytest.mark.parametrize("octets", [octets for octets, _ in PASSES.values()])
def test_good_requests_are_compared(octets: bytes) -> None:
    """Good requests do get as far as to be compared."""
    assert judge_requests(octets, []) == 1


# --- answers ----------------------------------------------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
ANSWERS = [
    OK + b"Content-Length: 2\r\n\r\n{}",
    OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    OK + b"Transfer-Encoding: chunked\r\n\r\n2;a=b\r\n{}\r\n00\r\nX: a\r\n\r\n",
    OK + b"Connection: close\r\n\r\n{}",
    OK.replace(b"200 OK", b"404 Not Found") + b"Content-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\n{}",
    b"HTTP/1.0 200 OK\r\n\r\n{}",
]


# What h11 says of a trailer's field about framing. The gateway discards trailers unread.
_ABOUT_FRAMING = re.compile("Transfer-Encoding|Content-Length").search


class Owner:
    """Who waits for an answer."""

    def __init__(self) -> None:
        self.head: Any = None
        self.content = b""
        self.whole = False

    def response(self, head: Any, content: bytes, ended: bool) -> None:
        self.head = head or self.head
        self.content += content
        self.whole = ended

    def token(self, octets: bytes) -> bool:
        return False

    def chunk(self, octets: bytes, content: bytes) -> None:
        assert octets == b"%x\r\n%b\r\n" % (len(content), content)
        self.content += content

    def failed(self, failure: Exception) -> None:
        assert not self.whole


def as_judged(octets: bytes) -> bytes:
    """Return an answer without what the gateway discards unread, and h11 judges: interim responses, the phrase."""
    while re.match(rb"HTTP/1\.[01] 1\d\d", octets):
        octets = octets.partition(b"\r\n\r\n")[2].lstrip(b"\r\n")
    return re.sub(rb"\A(HTTP/1\.[01] \d\d\d)[^\r\n]*", rb"\1", octets)


def judge_answer(octets: bytes, at: list[int]) -> bool:
    """Hold what the gateway makes of an answer against h11; return whether it takes it for whole."""
    connection, owner = Upstream(), Owner()
    connection.connection_made(Line())  # type: ignore[arg-type]
    connection.owner = owner
    connection.send(b"", head_only=False)
    for piece in split(octets, at):
        if connection.owner is not None and not owner.whole:
            connection.data_received(piece)
    if connection.owner is not None and not owner.whole:
        connection.eof_received()
    if owner.whole:
        reported = read_response(as_judged(octets), ended=True)
        about_a_trailer = reported.head is not None and _ABOUT_FRAMING(reported.error)
        assert reported.whole or about_a_trailer, (reported.error, octets)
        assert (reported.head.status_code, reported.content) == (owner.head.status, owner.content)
        theirs = response_head(owner.head.status, tuple(reported.head.headers))
        assert owner.head.forwarded.lower() == theirs.lower()
    return owner.whole


INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"


@BOUNDED
@given(changed(ANSWERS), CUTS)
# An empty line between an interim response and the final one is skipped: the answer behind it is read alike.
@example(INTERIM + b"\r\n" + ANSWERS[0], [])
# Control bytes in the reason phrase pass the parser, and never the gateway, whose phrases are its own.
@example(ANSWERS[0].replace(b"OK", b"O\0K"), [])
# Bytes beyond the announced length are no content.
@example(ANSWERS[0] + b"{}", [])
# Two heads in one read, with a content that reads like a third.
@example(INTERIM + OK + b"Content-Length: 17\r\n\r\nHTTP/1.1 200 OK\r\n" + ANSWERS[1], [])
# The gateway discards trailers, whatever their fields would say about framing.
@example(ANSWERS[2].replace(b"X: a", b"X: a\r\nTransfer-Encoding:: chunked"), [])
def test_answers_are_read_alike(octets: bytes, at: list[int]) -> None:
    """What is passed on as whole is whole, with the same status, fields and content, to another reader."""
    judge_answer(octets, at)


@pytest.mark.parametrize("octets", ANSWERS)
def test_good_answers_are_compared(octets: bytes) -> None:
    """Good answers do get as far as to be compared."""
    assert judge_answer(octets, [])
