"""One connection to Ollama, alone: what is a response, where it ends, and what spoils the connection for another."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from dataclasses import dataclass, field
from itertools import pairwise, product
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.exchange.message.failures import ClosedEarly, Malformed, OutOfFiles, Unreachable, UpstreamFailure
from proxy.exchange.message.forwarding import response_head
from proxy.exchange.message.known_heads import KNOWN_LENGTH, Heads, ResponseHead
from proxy.exchange.message.plain_chunks import LAST_CHUNK, chunk
from proxy.exchange.upstream import upstream
from proxy.exchange.upstream.pool import Pool, connect
from proxy.exchange.upstream.upstream import GRACE, MAX_HEAD, MAX_INTERIM, TRANSITIONS, Event, State, Upstream
from tests.support.examples import examples
from tests.support.ports import free_port
from tests.support.raw_http import Line, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

REQUEST = b"GET /api/version HTTP/1.1\r\nHost: 127.0.0.1:11434\r\n\r\n"


@dataclass
class Listener:
    """An exchange that records each call, and gives its connection back like the relay."""

    connection: Upstream
    pool: Pool = field(default_factory=Pool)
    head: ResponseHead | None = None
    content: bytes = b""
    ended: bool = False
    failure: UpstreamFailure | None = None
    blocked: list[bool] = field(default_factory=list)
    taken: tuple[bytes, ...] = ()  # what passes for a chunk with a token
    tokens: int = 0

    def response(self, head: ResponseHead | None, content: bytes, ended: bool) -> None:
        assert not self.ended, "an exchange has one end"
        assert self.failure is None, "nothing comes after a failure"
        assert (self.head is None) == (head is not None) or head is None, "one head"
        self.head = head or self.head
        self.content += content
        self.ended = ended
        if ended and self.connection.state is State.IDLE:
            self.pool.put(self.connection, 0.0)
        elif ended:
            self.connection.close()

    def token(self, octets: bytes) -> bool:
        assert self.head is not None, "a chunk has a head before it"
        self.tokens += octets in self.taken
        return octets in self.taken

    def chunk(self, octets: bytes, content: bytes) -> None:
        assert octets == b"%x\r\n%b\r\n" % (len(content), content)
        assert self.head is not None, "a chunk has a head before it"
        self.response(None, content, False)

    def failed(self, failure: UpstreamFailure) -> None:
        assert not self.ended, "what has ended well does not fail"
        assert self.failure is None, "an exchange fails once"
        self.failure = failure
        self.connection.close()

    def upstream_blocked(self) -> None:
        self.blocked.append(True)

    def upstream_ready(self) -> None:
        self.blocked.append(False)


def asked(*, head_only: bool = False) -> tuple[Upstream, Line, Listener]:
    """Return a connection that has been sent a request, its transport, and the exchange that waits."""
    connection, line = Upstream(), Line()
    connection.connection_made(line)  # type: ignore[arg-type]
    listener = Listener(connection)
    connection.owner = listener
    connection.send(REQUEST, head_only=head_only)
    return connection, line, listener


def lost(connection: Upstream, error: Exception | None = None) -> None:
    """End the connection: with an error as a reset does, otherwise as a FIN does."""
    if error is None:
        connection.eof_received()
    connection.connection_lost(error)


def octetwise(octets: bytes) -> list[bytes]:
    """Return every byte alone."""
    return [octets[at : at + 1] for at in range(len(octets))]


def told(pieces: Iterable[bytes], *, head_only: bool = False) -> tuple[Upstream, Listener]:
    """Return the connection, and the calls that the exchange got when these pieces arrived as its response."""
    connection, line, listener = asked(head_only=head_only)
    for piece in pieces:
        if piece and not line.gone:
            connection.data_received(piece)
    return connection, listener


def head(*lines: bytes, status: bytes = b"HTTP/1.1 200 OK") -> bytes:
    """Return a response head."""
    return b"\r\n".join((status, *lines, b"", b""))


def chunked(content: bytes) -> bytes:
    """Return a whole response whose content is framed as given."""
    return head(b"Transfer-Encoding: chunked") + content


SPLITS: list[Any] = [
    pytest.param(lambda octets: [octets], id="whole"),
    pytest.param(octetwise, id="octet_by_octet"),
]

# --- answers that are whole -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Whole:
    """A response that ends by itself, and the calls to expect."""

    octets: bytes
    status: int = 200
    content: bytes = b""
    length: int | None = None
    fields: tuple[tuple[bytes, bytes], ...] | None = None
    head_only: bool = False
    kept: bool = True  # the connection may serve another request
    encoded: bool = False
    streams: bool = False


OK2 = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
FIELDS2 = ((b"Content-Length", b"2"),)

WHOLE = {
    "length": Whole(OK2 + b"hi", content=b"hi", length=2, fields=FIELDS2),
    "length_zero": Whole(head(b"Content-Length: 0"), length=0),
    "length_with_spaces": Whole(head(b"Content-Length: \t 2 \t") + b"hi", content=b"hi", length=2, fields=FIELDS2),
    "chunks": Whole(chunked(b"2\r\nhi\r\n3\r\n ho\r\n0\r\n\r\n"), content=b"hi ho"),
    "chunked_in_capitals": Whole(head(b"Transfer-Encoding: CHUNKED") + b"1\r\nx\r\n0\r\n\r\n", content=b"x"),
    "chunks_with_leading_zeros": Whole(chunked(b"0002\r\nhi\r\n000\r\n\r\n"), content=b"hi"),
    "chunk_extension": Whole(chunked(b"2;name=value\r\nhi\r\n0\r\n\r\n"), content=b"hi"),
    "long_chunk_extension": Whole(chunked(b"2;x=" + b"y" * 5000 + b"\r\nhi\r\n0\r\n\r\n"), content=b"hi"),
    "trailers_are_dropped": Whole(
        chunked(b"2\r\nhi\r\n0\r\nX-Late: 1\r\nContent-Type: evil\r\n\r\n"),
        content=b"hi",
        fields=((b"Transfer-Encoding", b"chunked"),),
    ),
    "spaces_behind_a_value": Whole(
        head(b"X-A: y \t ", b"Content-Length: 0"), length=0, fields=((b"X-A", b"y"), (b"Content-Length", b"0"))
    ),
    "spaces_before_a_value": Whole(
        head(b"X-A: \t y", b"Content-Length: 0"), length=0, fields=((b"X-A", b"y"), (b"Content-Length", b"0"))
    ),
    "nothing_else_is_cut_from_a_value": Whole(
        head(b"X-A: XyX", b"Content-Length: 0"), length=0, fields=((b"X-A", b"XyX"), (b"Content-Length", b"0"))
    ),
    "empty_value": Whole(
        head(b"X-A:", b"Content-Length: 0"), length=0, fields=((b"X-A", b""), (b"Content-Length", b"0"))
    ),
    "blank_value": Whole(
        head(b"X-A: \t ", b"Content-Length: 0"), length=0, fields=((b"X-A", b""), (b"Content-Length", b"0"))
    ),
    "octets_above_ascii_in_a_value": Whole(
        head(b"X-A: \xe9\xff", b"Content-Length: 0"),
        length=0,
        fields=((b"X-A", b"\xe9\xff"), (b"Content-Length", b"0")),
    ),
    "repeated_field": Whole(
        head(b"X-A: 1", b"x-a: 2", b"Content-Length: 0"),
        length=0,
        fields=((b"X-A", b"1"), (b"x-a", b"2"), (b"Content-Length", b"0")),
    ),
    "tab_and_latin_1_in_the_reason": Whole(head(b"Content-Length: 0", status=b"HTTP/1.1 200 a\tb \xe9"), length=0),
    "no_reason": Whole(head(b"Content-Length: 0", status=b"HTTP/1.1 200"), length=0),
    "100_first": Whole(head(status=b"HTTP/1.1 100 Continue") + OK2 + b"hi", content=b"hi", length=2, fields=FIELDS2),
    "103_first": Whole(
        head(b"Link: x", status=b"HTTP/1.1 103 Early Hints") + OK2 + b"hi", content=b"hi", length=2, fields=FIELDS2
    ),
    "as_many_interim_as_allowed": Whole(
        head(status=b"HTTP/1.1 102 Processing") * MAX_INTERIM + OK2 + b"hi", content=b"hi", length=2
    ),
    "204": Whole(head(status=b"HTTP/1.1 204 No Content"), status=204, length=0),
    "204_with_a_length_of_0": Whole(
        head(b"Content-Length: 0", status=b"HTTP/1.1 204 No Content"), status=204, length=0
    ),
    "304_with_the_length_of_what_it_stands_for": Whole(
        head(b"Content-Length: 9", status=b"HTTP/1.1 304 Not Modified"), status=304, length=9
    ),
    "304": Whole(head(status=b"HTTP/1.1 304 Not Modified"), status=304),
    "599": Whole(head(b"Content-Length: 0", status=b"HTTP/1.1 599 Odd"), status=599, length=0),
    "upgrade_offered": Whole(
        head(b"Upgrade: h2c", b"Connection: upgrade", b"Content-Length: 2") + b"hi", content=b"hi", length=2
    ),
    "connection_close": Whole(
        head(b"Connection: close", b"Content-Length: 2") + b"hi", content=b"hi", length=2, kept=False
    ),
    "http_1_0": Whole(
        head(b"Content-Length: 2", status=b"HTTP/1.0 200 OK") + b"hi", content=b"hi", length=2, kept=False
    ),
    "http_1_0_keep_alive": Whole(
        head(b"Connection: keep-alive", b"Content-Length: 2", status=b"HTTP/1.0 200 OK") + b"hi",
        content=b"hi",
        length=2,
    ),
    "encoded": Whole(
        head(b"Content-Encoding: gzip", b"Content-Length: 2") + b"\x1f\x8b", content=b"\x1f\x8b", length=2, encoded=True
    ),
    "events": Whole(head(b"content-TYPE: Text/Event-stream", b"Content-Length: 0"), length=0, streams=True),
    "lines": Whole(head(b"Content-Type: application/x-ndjson", b"Content-Length: 0"), length=0, streams=True),
    "no_stream": Whole(head(b"Content-Type: application/json", b"Content-Length: 0"), length=0),
    "head_with_a_length": Whole(head(b"Content-Length: 21"), length=21, head_only=True, kept=False),
    "head_chunked": Whole(head(b"Transfer-Encoding: chunked"), head_only=True, kept=False),
    "head_without_framing": Whole(head(b"X-A: 1"), head_only=True, kept=False),
}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in WHOLE.items()])
def test_whole_answers(case: Whole, split: Callable[[bytes], list[bytes]]) -> None:
    """A response that HTTP delimits is reported with its head, content and end, in whatever reads it arrives."""
    connection, listener = told(split(case.octets), head_only=case.head_only)
    assert listener.failure is None
    assert listener.ended
    assert listener.head is not None
    got = listener.head
    assert (got.status, listener.content, got.length) == (case.status, case.content, case.length)
    assert (got.encoded, got.streams) == (case.encoded, case.streams)
    assert case.fields is None or got.forwarded == response_head(case.status, case.fields)
    assert (connection.reusable, len(listener.pool)) == (case.kept, int(case.kept))


# --- what is known without parsing it ---------------------------------------------------------------------------------

CHUNKED = head(b"Transfer-Encoding: chunked")
TEXT = b'data: {"choices": [], "a":1}\n\n'
EVENT = b"%x\r\n%b\r\n" % (len(TEXT), TEXT)
# Heads that are known and not, chunks in their plainest form and in all others, and what makes none.
PIECES = (
    *(CHUNKED + b"e\r\n", b"e\r\n", b"2\r\nhi\r\r", b"2\r\nhixx", b"3\r\nhi\r\n\n"),
    *(OK2 + b"hi", OK2, OK2[:-3], OK2[-3:] + b"h", OK2 + b"hi\r\n", b"hi", b"h", b"i", OK2 + b"hi" + OK2, OK2 + b"hij"),
    *(CHUNKED, CHUNKED + EVENT, CHUNKED + EVENT + EVENT, CHUNKED + EVENT[:9], CHUNKED + EVENT + b"1", EVENT, EVENT * 2),
    *(EVENT[:1], EVENT[1:], EVENT[:4], EVENT[4:], EVENT[:-1], EVENT[-1:], EVENT[:-2], b"\r\n", b"\r", b"\n", b"1", b""),
    *(
        b"2\r\nhi\r\n",
        b"02\r\nhi\r\n",
        b"A\r\n0123456789\r\n",
        b"2;x=y\r\nhi\r\n",
        b"2 \r\nhi\r\n",
        b"2\nhi\n",
        b"+2\r\nhi\r\n",
    ),
    *(
        b"3\r\nhi\r\n",
        b"1\r\nhi\r\n",
        b"6\r\n2\r\nhi\r\n\r\n",
        b"0\r\n\r\n",
        EVENT + b"0\r\n\r\n",
        b"0\r\nX: y\r\n\r\n",
        b"0\r\n",
    ),
    *(
        head(b"Connection: close") + b"hi",
        head(b"Content-Length: 7") + b"2\r\nhi",
        head(),
        head(status=b"HTTP/1.1 304 Not"),
    ),
    *(head(status=b"HTTP/1.1 100 Continue") + CHUNKED + EVENT, head(b"Content-Length: 5") + b"2\r\nhi\r\n"),
    *(
        head(b"Content-Length: 2", status=b"HTTP/1.0 200 OK") + b"hi",
        head(b"Content-Length: 2", b"Connection: close") + b"hi",
    ),
)


@examples(500)
@given(st.lists(st.sampled_from(PIECES), max_size=6), st.booleans(), st.booleans())
@example([CHUNKED + b"e\r\n", b"2\r\nhi\r\n", b"2\r\nhi\r\n", b"\r\n"], False, False)
@example([CHUNKED + b"2\r\nhi\r\n1", b"2\r\nhi\r\n"], False, False)
@example([CHUNKED + EVENT, b"2\r\nhixx"], False, False)
def test_known_or_not(pieces: list[bytes], head_only: bool, joined: bool) -> None:
    """Whatever the bytes and the reads, a known head gives the same result as the parser."""

    def outcome() -> list[object]:
        found: list[object] = []
        connection, line, _ = asked()
        for _ in range(2):  # the same again on the same connection: the parser is where it should be
            listener = Listener(connection)
            connection.owner = listener
            for piece in [b"".join(pieces)] if joined else pieces:
                if piece and not line.gone:
                    connection.data_received(piece)
            found += [
                listener.head,
                listener.content,
                listener.ended,
                str(listener.failure),
                connection.state,
                line.gone,
            ]
            if connection.state is not State.IDLE or line.gone:
                break
            connection.send(REQUEST, head_only=head_only)
        return found

    known = outcome()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Heads, "find", lambda *_: None)
        patch.setattr(upstream, "plain", lambda _: None)
        assert known == outcome()


def test_known_head_is_not_parsed_again() -> None:
    """An answer whose head differs from the one before in Date and length only is read without the parser."""
    connection, _, first = asked()
    connection.data_received(head(b"Date: 1", b"Content-Length: 2") + b"hi")
    second = Listener(connection)
    connection.owner = second
    connection.send(REQUEST, head_only=False)
    connection.data_received(head(b"Date: 2", b"Content-Length: 3") + b"hoo")
    assert repr(connection.heads) == "<Heads 1 known, 1 found, 1 missed>"
    assert first.head is not None
    assert second.head is not None
    assert (second.head.forwarded, second.head.length) == (first.head.forwarded.replace(b"Date: 1", b"Date: 2"), 3)
    assert (second.content, second.ended, connection.reusable) == (b"hoo", True, True)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Give a list of all bytes that a parser sees."""
    seen: list[bytes] = []

    class Seeing(upstream.httptools.HttpResponseParser):  # type: ignore[misc]
        def feed_data(self, data: bytes) -> None:
            seen.append(data)
            super().feed_data(data)

    monkeypatch.setattr(upstream.httptools, "HttpResponseParser", Seeing)
    return seen


LINES = b"8\r\na\r\n\r\nbcd\r\n"


@pytest.mark.parametrize(
    "first",
    [
        pytest.param([CHUNKED], id="head"),
        pytest.param([CHUNKED + EVENT], id="head_with_a_chunk"),
        pytest.param([CHUNKED + EVENT * 2], id="head_with_two"),
        pytest.param([CHUNKED + LINES], id="empty_line_in_content"),
        pytest.param([CHUNKED + EVENT, EVENT * 2], id="two_in_a_read"),
        pytest.param([CHUNKED + EVENT, EVENT, EVENT * 2, EVENT * 3], id="many"),
    ],
)
def test_plain_chunk_is_not_parsed(parsed: list[bytes], first: list[bytes]) -> None:
    """A chunk that comes whole and alone is handed on as it is, if nothing but such chunks came before it."""
    connection, listener = told(first)
    parsed.clear()
    connection.data_received(EVENT)
    assert parsed == []
    for piece in (EVENT[:5], EVENT[5:], EVENT, b"0\r\n\r\n"):
        connection.data_received(piece)
    assert listener.content.endswith(TEXT * 3)
    assert listener.ended
    assert connection.reusable


def test_token_is_handed_on_once() -> None:
    """A chunk that the exchange takes for a token isn't handed on as content as well; any other still is."""
    connection, listener = told([CHUNKED + EVENT])
    listener.taken = (EVENT,)
    for piece in (EVENT, EVENT, chunk(b"x"), EVENT[:5], EVENT[5:], EVENT, LAST_CHUNK):
        connection.data_received(piece)
    assert listener.tokens == 2
    assert listener.content == TEXT + b"x" + TEXT + TEXT
    assert listener.ended


@pytest.mark.parametrize(
    "first",
    [
        pytest.param([CHUNKED[:-2], CHUNKED[-2:] + EVENT], id="head_in_two_reads"),
        pytest.param([CHUNKED + EVENT[:5], EVENT[5:]], id="chunk_in_two_reads"),
        pytest.param([CHUNKED + EVENT, b"02\r\nhi\r\n"], id="odd_chunk"),
        pytest.param([CHUNKED + b"2;x\r\nhi\r\n"], id="extension"),
        pytest.param([head(status=b"HTTP/1.1 100 Continue") + CHUNKED + EVENT], id="interim_response"),
        pytest.param([head(b"Content-Length: 99") + EVENT], id="length"),
        pytest.param([head() + EVENT], id="until_close"),
    ],
)
def test_chunk_is_parsed(parsed: list[bytes], first: list[bytes]) -> None:
    """After anything else than plain chunks, the parser sees all that comes."""
    connection, _ = told(first)
    parsed.clear()
    connection.data_received(EVENT)
    assert b"".join(parsed) == EVENT


def again(connection: Upstream, *pieces: bytes) -> Listener:
    """Send another request on a connection, and return the calls that its exchange got for these pieces."""
    listener = Listener(connection)
    connection.owner = listener
    connection.send(REQUEST, head_only=False)
    for piece in pieces:
        connection.data_received(piece)
    return listener


def test_known_answer_is_not_parsed(parsed: list[bytes]) -> None:
    """No parser sees a whole answer whose head is known, even if its content has an empty line."""
    connection, _ = told([head(b"Content-Length: 6") + b"a\r\n\r\nb"])
    parsed.clear()
    listener = again(connection, head(b"Content-Length: 6") + b"c\r\n\r\nd")
    assert (listener.content, listener.ended, parsed) == (b"c\r\n\r\nd", True, [])


@pytest.mark.parametrize(
    ("pieces", "content"),
    [
        pytest.param([OK2 + b"h", b"i"], b"hi", id="content_in_two_reads"),
        pytest.param([OK2, b"hi"], b"hi", id="content_later"),
        pytest.param(
            [head(b"Content-Length: %d" % len(OK2 + b"hi")), OK2 + b"hi"], OK2 + b"hi", id="content_is_a_known_answer"
        ),
    ],
)
def test_known_head_with_content_later(pieces: list[bytes], content: bytes) -> None:
    """Only a whole answer is taken for known, and only where an answer begins."""
    connection, _ = told([OK2 + b"hi"])
    listener = again(connection, *pieces)
    assert (listener.content, listener.ended, connection.reusable) == (content, True, True)


def test_known_head_without_its_end() -> None:
    """A head that is known but for its empty line isn't whole yet."""
    empty = head(b"Content-Length: 0")
    connection, _ = told([empty])
    listener = again(connection, empty[:-4])
    assert (listener.head, listener.ended) == (None, False)
    connection.data_received(empty[-4:])
    assert listener.ended


@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(chunked(b"2\r\nhi\r\n0\r\n\r\n"), id="chunked"),
        pytest.param(OK2.replace(b"200 OK", b"404 Not Found") + b"hi", id="no_success"),
        pytest.param(head(b"Content-Length: 2", b"Connection: close") + b"hi", id="closing"),
        pytest.param(head(b"Content-Length: 2", b"X: " + b"x" * KNOWN_LENGTH) + b"hi", id="long"),
    ],
)
def test_what_is_not_remembered(octets: bytes) -> None:
    """A head is only remembered for content that has a length, on a connection that goes on."""
    connection, _ = told([octets])
    assert repr(connection.heads).startswith("<Heads 0 known")


BEHIND: list[Any] = [
    pytest.param(b"garbage", id="garbage"),
    pytest.param(b"\x00", id="nul"),
    pytest.param(OK2 + b"ho", id="second_response"),
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Le", id="begun_response"),
    pytest.param(head(status=b"HTTP/1.1 100 Continue"), id="interim_response"),
    pytest.param(head(b"Connection: close", status=b"HTTP/1.1 408 Request Timeout"), id="timeout_response"),
]


@pytest.mark.parametrize("split", [*SPLITS, pytest.param(lambda octets: [octets[:-8], octets[-8:]], id="in_two")])
@pytest.mark.parametrize("behind", BEHIND)
@pytest.mark.parametrize("answer", [OK2 + b"hi", chunked(b"2\r\nhi\r\n0\r\n\r\n")], ids=["length", "chunked"])
def test_octets_behind_an_answer(answer: bytes, behind: bytes, split: Callable[[bytes], list[bytes]]) -> None:
    """A whole answer stays whole, but what follows it unasked spoils the connection for the next request."""
    connection, listener = told(split(answer + behind))
    assert (listener.ended, listener.content, listener.failure) == (True, b"hi", None)
    assert not connection.reusable
    assert listener.pool.take() is None


def test_line_ends_behind_an_answer() -> None:
    """An empty line behind an answer, in the same read, is no response and harms nothing."""
    connection, listener = told([OK2 + b"hi\r\n"])
    assert (listener.ended, listener.content, connection.reusable) == (True, b"hi", True)


@pytest.mark.parametrize("split", SPLITS)
def test_content_that_ends_with_the_connection(split: Callable[[bytes], list[bytes]]) -> None:
    """Content without any length is whole when the connection ends in order, and only then (RFC 9112, 6.3)."""
    connection, listener = told(split(head(b"Content-Type: text/plain") + b"so far"))
    assert (listener.content, listener.ended) == (b"so far", False)
    lost(connection)
    assert (listener.ended, listener.failure, connection.reusable) == (True, None, False)
    assert listener.content == b"so far"


def test_content_that_ends_with_a_reset() -> None:
    """Content without any length is cut when the connection is reset."""
    connection, listener = told([head() + b"so far"])
    lost(connection, ConnectionResetError())
    assert isinstance(listener.failure, ClosedEarly)
    assert not listener.ended


# --- what is no answer ------------------------------------------------------------------------------------------------

BROKEN_HEADS = {
    **{
        f"reason_with_{octet:02x}": head(b"Content-Length: 0", status=b"HTTP/1.1 200 O%cK" % octet)
        for octet in (0x00, 0x01, 0x08, 0x0B, 0x1B, 0x1F, 0x7F)
    },
    "reason_of_an_interim_with_00": b"HTTP/1.1 103 a\x00b\r\n\r\n" + head(b"Content-Length: 0"),
    "two_equal_lengths": head(b"Content-Length: 2", b"Content-Length: 2") + b"hi",
    "two_lengths": head(b"Content-Length: 2", b"Content-Length: 3") + b"hi",
    "length_list": head(b"Content-Length: 2, 2") + b"hi",
    "length_plus": head(b"Content-Length: +2") + b"hi",
    "length_minus": head(b"Content-Length: -2") + b"hi",
    "length_hex": head(b"Content-Length: 0x2") + b"hi",
    "length_two_words": head(b"Content-Length: 1 1") + b"hi",
    "length_text": head(b"Content-Length: two") + b"hi",
    "length_empty": head(b"Content-Length:") + b"hi",
    "length_2_to_the_64": head(b"Content-Length: 18446744073709551616") + b"hi",
    "length_then_chunked": head(b"Content-Length: 2", b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "chunked_then_length": head(b"Transfer-Encoding: chunked", b"Content-Length: 2") + b"0\r\n\r\n",
    "gzip": head(b"Transfer-Encoding: gzip") + b"hi",
    "identity": head(b"Transfer-Encoding: identity") + b"hi",
    "xchunked": head(b"Transfer-Encoding: xchunked") + b"0\r\n\r\n",
    "gzip_chunked": head(b"Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n",
    "chunked_gzip": head(b"Transfer-Encoding: chunked, gzip") + b"0\r\n\r\n",
    "chunked_twice": head(b"Transfer-Encoding: chunked, chunked") + b"0\r\n\r\n",
    "two_codings": head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "coding_empty": head(b"Transfer-Encoding:") + b"hi",
    "coding_with_parameter": head(b"Transfer-Encoding: chunked;q=1") + b"0\r\n\r\n",
    "chunked_http_1_0": head(b"Transfer-Encoding: chunked", status=b"HTTP/1.0 200 OK") + b"0\r\n\r\n",
    "bare_lf": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "bare_cr": b"HTTP/1.1 200 OK\rContent-Length: 0\r\r",
    "bare_cr_in_a_value": head(b"X-A: a\rb", b"Content-Length: 0"),
    "bare_lf_in_a_value": head(b"X-A: a\nX-B: b", b"Content-Length: 0"),
    "folded_line": head(b"X-A: a", b" b", b"Content-Length: 0"),
    "nul_in_a_value": head(b"X-A: a\x00b", b"Content-Length: 0"),
    "control_in_a_value": head(b"X-A: a\x01b", b"Content-Length: 0"),
    "delete_in_a_value": head(b"X-A: a\x7fb", b"Content-Length: 0"),
    "space_before_colon": head(b"X-A : a", b"Content-Length: 0"),
    "space_in_a_name": head(b"X A: a", b"Content-Length: 0"),
    "no_name": head(b": a", b"Content-Length: 0"),
    "no_colon": head(b"X-A", b"Content-Length: 0"),
    "odd_octet_in_a_name": head(b"X\xe9: a", b"Content-Length: 0"),
    "garbage": b"what is this?\r\n\r\n",
    "garbage_before_it": b"xx" + head(b"Content-Length: 0"),
    "empty_line_before_it": b"\r\n" + head(b"Content-Length: 0"),
    "a_request": b"GET / HTTP/1.1\r\n\r\n",
    "tls": b"\x15\x03\x01\x00\x02\x02\x46",
    "nul": b"\x00" * 64,
    "http_1_2": head(b"Content-Length: 0", status=b"HTTP/1.2 200 OK"),
    "http_0_9": head(b"Content-Length: 0", status=b"HTTP/0.9 200 OK"),
    "http_2_0": head(b"Content-Length: 0", status=b"HTTP/2.0 200 OK"),
    "http_2": head(b"Content-Length: 0", status=b"HTTP/2 200 OK"),
    "http_lower_case": head(b"Content-Length: 0", status=b"http/1.1 200 OK"),
    "ice": head(b"Content-Length: 0", status=b"ICE/1.0 200 OK"),
    "rtsp": head(b"Content-Length: 0", status=b"RTSP/1.0 200 OK"),
    "status_of_1_digit": head(b"Content-Length: 0", status=b"HTTP/1.1 2 OK"),
    "status_of_4_digits": head(b"Content-Length: 0", status=b"HTTP/1.1 2000 OK"),
    "status_no_number": head(b"Content-Length: 0", status=b"HTTP/1.1 abc OK"),
    "status_000": head(b"Content-Length: 0", status=b"HTTP/1.1 000 OK"),
    "status_600": head(b"Content-Length: 0", status=b"HTTP/1.1 600 OK"),
    "status_999": head(b"Content-Length: 0", status=b"HTTP/1.1 999 OK"),
    "101_with_upgrade": head(b"Upgrade: h2c", b"Connection: upgrade", status=b"HTTP/1.1 101 Switching Protocols"),
    "101_alone": head(status=b"HTTP/1.1 101 Switching Protocols"),
    "101_then_an_answer": head(b"Upgrade: x", status=b"HTTP/1.1 101 Switching Protocols") + OK2 + b"hi",
    "too_many_interim": head(status=b"HTTP/1.1 102 Processing") * (MAX_INTERIM + 1) + OK2 + b"hi",
}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("octets", [pytest.param(octets, id=name) for name, octets in BROKEN_HEADS.items()])
def test_broken_heads(octets: bytes, split: Callable[[bytes], list[bytes]]) -> None:
    """Bytes that aren't an HTTP/1 response, or that two parsers could read differently, are reported, not begun."""
    connection, listener = told(split(octets))
    if listener.failure is None:  # only its end shows that it isn't whole
        lost(connection)
    assert isinstance(listener.failure, Malformed)
    assert (listener.head, listener.content, listener.ended) == (None, b"", False)
    assert not connection.reusable


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("garbage", "not an HTTP/1 response"),
        ("http_1_2", "HttpParserError"),
        ("status_600", "not an HTTP/1 response"),
        ("gzip", "a transfer-coding other than chunked"),
        ("101_alone", "an unexpected interim response"),
        ("too_many_interim", "an unexpected interim response"),
        ("length_text", "HttpParserError"),
        ("reason_with_00", "a control byte in the reason phrase"),
    ],
)
def test_words_for_broken_heads(name: str, text: str) -> None:
    """A failure says what was wrong, in our own words, without a byte of the response."""
    _, listener = told([BROKEN_HEADS[name]])
    assert str(listener.failure) == text


BROKEN_CONTENT = {
    "chunk_size_text": (b"2\r\nhi\r\nxyz\r\n", b"hi"),
    "chunk_size_minus": (b"2\r\nhi\r\n-1\r\n", b"hi"),
    "chunk_size_plus": (b"2\r\nhi\r\n+1\r\n", b"hi"),
    "chunk_size_0x": (b"2\r\nhi\r\n0x1\r\n", b"hi"),
    "chunk_size_empty": (b"2\r\nhi\r\n\r\n", b"hi"),
    "chunk_size_after_space": (b"2\r\nhi\r\n 1\r\n", b"hi"),
    "chunk_size_of_17_digits": (b"2\r\nhi\r\nfffffffffffffffff\r\n", b"hi"),
    "chunk_line_ended_by_lf": (b"2\r\nhi\r\n1\nx", b"hi"),
    "chunk_longer_than_its_size": (b"2\r\nhiho\r\n0\r\n\r\n", b"hi"),
    "chunk_ended_by_lf": (b"2\r\nhi\n0\r\n\r\n", b"hi"),
    "trailer_without_a_colon": (b"2\r\nhi\r\n0\r\nX\r\n\r\n", b"hi"),
    "trailer_with_control": (b"2\r\nhi\r\n0\r\nX: \x01\r\n\r\n", b"hi"),
    "trailer_with_a_length": (b"2\r\nhi\r\n0\r\nContent-Length: 2\r\n\r\n", b"hi"),
}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in BROKEN_CONTENT.items()])
def test_broken_content(case: tuple[bytes, bytes], split: Callable[[bytes], list[bytes]]) -> None:
    """Chunks that break RFC 9112, 7.1 fail the answer, after the content that came before them."""
    octets, content = case
    connection, listener = told(split(chunked(octets)))
    assert isinstance(listener.failure, Malformed)
    assert listener.head is not None
    assert (listener.content, listener.ended, connection.reusable) == (content, False, False)


TRUNCATED = {
    "nothing": b"",
    "one_octet": b"H",
    "status_line": b"HTTP/1.1 200 OK\r\n",
    "field_line": b"HTTP/1.1 200 OK\r\nContent-Le",
    "before_the_empty_line": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n",
    "interim_only": head(status=b"HTTP/1.1 100 Continue"),
    "no_content": OK2,
    "half_the_content": OK2 + b"h",
    "no_chunk": chunked(b""),
    "chunk_size": chunked(b"2"),
    "chunk_line": chunked(b"2\r\n"),
    "chunk_data": chunked(b"2\r\nh"),
    "chunk_end": chunked(b"2\r\nhi"),
    "between_chunks": chunked(b"2\r\nhi\r\n"),
    "last_chunk": chunked(b"2\r\nhi\r\n0\r\n"),
    "trailer": chunked(b"2\r\nhi\r\n0\r\nX-A: 1\r\n"),
}


@pytest.mark.parametrize("error", [None, ConnectionResetError()], ids=["fin", "reset"])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("octets", [pytest.param(octets, id=name) for name, octets in TRUNCATED.items()])
def test_truncated_answers(octets: bytes, split: Callable[[bytes], list[bytes]], error: Exception | None) -> None:
    """A response that ends before HTTP says so is reported as closed early, never as complete."""
    connection, listener = told(split(octets))
    assert (listener.ended, listener.failure) == (False, None)
    lost(connection, error)
    assert isinstance(listener.failure, ClosedEarly)
    assert str(listener.failure) == ("the connection was reset" if error else "the connection was closed")
    assert not listener.ended
    assert repr(connection) == "<Upstream CLOSED #1>"


@pytest.mark.parametrize("step", [1024, 65536, 2**20], ids=["1k", "64k", "in_one_read"])
@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 2 * MAX_HEAD + b"\r\nContent-Length: 0\r\n\r\n", id="value"),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"X-A: abcdefgh\r\n" * (MAX_HEAD // 8) + b"\r\n", id="lines"),
        pytest.param(b"HTTP/1.1 200 " + b"O" * 2 * MAX_HEAD + b"\r\nContent-Length: 0\r\n\r\n", id="reason"),
        pytest.param(head(b"X-A: " + b"a" * 30000, status=b"HTTP/1.1 103 Early Hints") * 6 + OK2 + b"hi", id="interim"),
    ],
)
def test_long_heads(octets: bytes, step: int) -> None:
    """A head of more than `MAX_HEAD` bytes is refused, before the parser could spend quadratic time on it."""
    connection, listener = told(octets[at : at + step] for at in range(0, len(octets), step))
    assert isinstance(listener.failure, Malformed)
    assert str(listener.failure) == "too many bytes that aren't content"
    assert (listener.head, connection.reusable) == (None, False)


def test_head_up_to_the_limit() -> None:
    """A head of just under `MAX_HEAD` bytes is read, and content in the same read does not count."""
    start = b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\nX-A: "
    octets = start + b"a" * (MAX_HEAD - len(start) - 4) + b"\r\n\r\n"
    assert len(octets) == MAX_HEAD
    _, begun = told([octets[:-4] + b"aaaa"])
    assert begun.failure is None
    connection, listener = told([octets + b"x" * 200000])
    assert (listener.failure, listener.ended, len(listener.content)) == (None, True, 200000)
    assert connection.reusable


HELD = {
    "trailer": (b"0\r\nX-A: ", b"a" * 2 * MAX_HEAD),
    "trailers": (b"0\r\n", b"X-A: abcdefgh\r\n" * (MAX_HEAD // 8)),
    "chunk_extension": (b"2;x=", b"y" * 2 * MAX_HEAD),
}


@pytest.mark.parametrize("step", [1024, 65536, 2**20], ids=["1k", "64k", "in_one_read"])
@pytest.mark.parametrize(("begun", "rest"), HELD.values(), ids=HELD)
def test_long_lines_behind_the_head(begun: bytes, rest: bytes, step: int) -> None:
    """More than `MAX_HEAD` bytes that bring no content, as trailers and chunk extensions are, fail an answer."""
    pieces = [chunked(b"2\r\nhi\r\n" + begun), *(rest[at : at + step] for at in range(0, len(rest), step))]
    connection, listener = told(pieces)
    assert str(listener.failure) == "too many bytes that aren't content"
    assert (listener.content, listener.ended, connection.reusable) == (b"hi", False, False)


def test_content_between_long_lines() -> None:
    """Content begins the count again: a stream may last as long as it likes."""
    extended = b"2;x=" + b"y" * (MAX_HEAD - 1024)
    connection, listener = told([chunked(b""), *3 * [extended, b"\r\nhi\r\n"], b"0\r\n\r\n"])
    assert (listener.failure, listener.content, listener.ended) == (None, b"hihihi", True)
    assert connection.reusable


@given(st.lists(st.integers(min_value=1, max_value=400), max_size=30))
def test_any_split(cuts: list[int]) -> None:
    """An answer reads the same in any pieces."""
    octets = head(status=b"HTTP/1.1 103 Early Hints") + chunked(b"2\r\nhi\r\n" * 20 + b"0\r\nX-Late: 1\r\n\r\n")
    points = sorted({0, len(octets), *(cut for cut in cuts if cut < len(octets))})
    connection, listener = told(octets[start:end] for start, end in pairwise(points))
    assert (listener.content, listener.ended, connection.reusable) == (b"hi" * 20, True, True)
    assert listener.head is not None
    assert (listener.head.chunked, listener.head.forwarded) == (True, b"HTTP/1.1 200 OK")


def test_one_call_per_read() -> None:
    """Everything from one read is passed on in one call: the client gets one write for each read from Ollama."""
    connection, _, listener = asked()
    calls: list[tuple[bool, bytes, bool]] = []
    tell = listener.response

    def response(head: ResponseHead | None, content: bytes, ended: bool) -> None:
        calls.append((head is not None, content, ended))
        tell(head, content, ended)

    listener.response = response  # type: ignore[method-assign]
    connection.data_received(chunked(b"2\r\nhi\r\n2\r\nho\r\n"))
    connection.data_received(b"3\r\n")  # brings nothing, so there is no call
    connection.data_received(b"abc\r\n0\r\n\r\n")
    assert calls == [(True, b"hiho", False), (False, b"abc", True)]


# --- one request after the other --------------------------------------------------------------------------------------


def test_one_parser_serves_all() -> None:
    """A connection serves one exchange after the other, and nothing of an answer is left for the next."""
    connection, line, listener = asked()
    connection.data_received(head(b"Content-Type: text/event-stream", b"Transfer-Encoding: chunked") + b"0\r\n\r\n")
    assert listener.pool.take() is connection
    assert repr(connection) == "<Upstream IDLE #1>"
    second = connection.owner = Listener(connection)
    connection.send(b"second", head_only=False)
    assert repr(connection) == "<Upstream AWAITING #2>"
    assert connection.octets_in == 0
    connection.data_received(OK2[:-2])
    connection.data_received(OK2[-2:] + b"h")
    assert repr(connection) == "<Upstream CONTENT #2>"
    connection.data_received(b"i")
    assert second.head is not None
    assert (second.head.streams, second.head.length, second.content) == (False, 2, b"hi")
    assert line.written == [REQUEST, b"second"]
    assert connection.octets_in == len(OK2) + 2


def test_octets_while_idle() -> None:
    """An idle connection on which something comes is closed: the next request would read it as its answer."""
    connection, line, listener = asked()
    connection.data_received(OK2 + b"hi")
    connection.data_received(OK2 + b"ho")
    assert (line.gone, connection.reusable, listener.pool.take()) == (True, False, None)


def test_octets_before_the_request() -> None:
    """What comes before a request is sent is no answer to it, although the exchange is there already."""
    connection, line = Upstream(), Line()
    connection.connection_made(line)  # type: ignore[arg-type]
    listener = connection.owner = Listener(connection)
    connection.data_received(OK2 + b"hi")
    assert (listener.head, listener.content, listener.ended) == (None, b"", False)
    assert (line.gone, connection.reusable) == (True, False)


def test_end_while_idle() -> None:
    """An idle connection that ends can't be reused, and no exchange is notified."""
    connection, _, listener = asked()
    connection.data_received(OK2 + b"hi")
    lost(connection)
    assert (connection.reusable, listener.failure, connection.state) == (False, None, State.CLOSED)


def test_end_with_octets_unsent() -> None:
    """The end of an answer that isn't whole ends the connection at once, although the upload isn't taken yet."""
    connection, line, _ = asked()
    connection.eof_received()
    assert line.gone


def test_fresh_connection() -> None:
    """A new connection is idle and may be used until it closes; its write buffer is bounded."""
    connection, line = Upstream(), Line()
    connection.connection_made(line)  # type: ignore[arg-type]
    assert (repr(connection), connection.reusable, line.high) == ("<Upstream IDLE #0>", True, 65536)
    line.gone = True
    assert not connection.reusable


def test_content_after_the_answer_to_head() -> None:
    """An answer to HEAD ends with its head, whatever follows: the client would take that for its next answer."""
    connection, listener = told([OK2 + b"hi"], head_only=True)
    assert (listener.ended, listener.content, connection.reusable) == (True, b"", False)


# --- the state table --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "event"), list(product(State, Event)), ids=str)
def test_transitions(state: State, event: Event) -> None:
    """At a message border a connection enters the state the table names; a missing pair closes it and names both."""
    connection, line, listener = asked()
    connection.state = state
    if event in TRANSITIONS[state]:
        connection.move(event)
        assert (connection.state, line.gone) == (TRANSITIONS[state][event], False)
        return
    assert not connection.move(event)
    assert line.gone
    connection.connection_lost(None)
    assert str(listener.failure) == f"{event} while {state}"
    assert connection.state is State.CLOSED


def test_every_state_can_be_closed() -> None:
    """From every state the connection can be closed, and a closed one never opens again."""
    assert {state for state in State if Event.CLOSE in TRANSITIONS[state]} == set(State)
    assert set(TRANSITIONS[State.CLOSED]) == {Event.CLOSE}


def test_send_while_busy() -> None:
    """A request on a connection that serves another is not sent; the connection is closed, and both are named."""
    connection, line, listener = asked()
    connection.send(b"another", head_only=False)
    assert line.written == [REQUEST]
    assert line.gone
    connection.connection_lost(None)
    assert str(listener.failure) == "send while awaiting"


# --- content of requests, and backpressure ----------------------------------------------------------------------------


def test_send_content() -> None:
    """Content goes out as it is given; none goes to a connection that is closing or gone."""
    connection, line, _ = asked()
    connection.send_content(b"a")
    line.gone = True
    connection.send_content(b"b")
    connection.connection_lost(None)
    connection.send_content(b"c")
    assert line.written == [REQUEST, b"a"]


def test_backpressure_on_the_upload() -> None:
    """The exchange is notified when Ollama stops reading its content, and when it reads again."""
    connection, _, listener = asked()
    connection.pause_writing()
    connection.resume_writing()
    connection.owner = None
    connection.pause_writing()
    connection.resume_writing()
    assert listener.blocked == [True, False]


def test_backpressure_on_the_answer() -> None:
    """Reading stops and goes on as the exchange asks; a connection that is closing or gone is left alone."""
    connection, line, _ = asked()
    assert not connection.paused
    connection.pause()
    assert (line.reading, connection.paused) == (False, True)
    connection.resume()
    assert (line.reading, connection.paused) == (True, False)
    connection.pause()
    line.gone, line.reading = True, True
    connection.pause()
    connection.resume()
    connection.connection_lost(None)
    connection.pause()
    connection.resume()
    assert line.reading


# --- giving up --------------------------------------------------------------------------------------------------------


class Clock:
    """A loop's timers, set off by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.now = 100.0
        monkeypatch.setattr(upstream, "monotonic", lambda: self.now)
        monkeypatch.setattr(upstream, "asyncio", SimpleNamespace(get_running_loop=lambda: self))

    def call_later(self, seconds: float, callback: Callable[[float], None], moment: float) -> None:
        self.timers.append((seconds, lambda: callback(moment)))


def test_abandon_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request just sent is left alone until `GRACE` is over, what still comes is discarded, then it is closed."""
    clock = Clock(monkeypatch)
    connection, line, listener = asked()
    connection.abandon(0.02)
    ((seconds, close),) = clock.timers
    assert seconds == pytest.approx(GRACE - 0.02)
    connection.data_received(OK2 + b"hi")
    assert (line.gone, listener.head, connection.reusable) == (False, None, False)
    clock.now += GRACE - 0.03
    close()
    assert not line.gone, "a timer may be early"
    clock.now += 0.02
    clock.timers[1][1]()
    assert (line.gone, connection.state) == (True, State.CLOSED)
    lost(connection)
    assert listener.failure is None


@pytest.mark.parametrize("quiet_for", [GRACE, 1.0])
def test_abandon_late(monkeypatch: pytest.MonkeyPatch, quiet_for: float) -> None:
    """A request that was sent `GRACE` ago is closed at once: that is what makes Ollama stop generating."""
    clock = Clock(monkeypatch)
    connection, line, listener = asked()
    connection.abandon(quiet_for)
    assert (line.gone, clock.timers, listener.failure) == (True, [], None)


def test_abandon_while_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection whose answer is whole needs no time to be closed."""
    clock = Clock(monkeypatch)
    connection, line, _ = asked()
    connection.data_received(OK2 + b"hi")
    connection.abandon(0.0)
    assert (line.gone, connection.state, clock.timers) == (True, State.CLOSED, [])


def test_abandon_what_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that ends while it is abandoned may be closed again without harm, and no exchange is notified."""
    clock = Clock(monkeypatch)
    connection, _, listener = asked()
    connection.abandon(0.0)
    lost(connection)
    clock.now += 1
    clock.timers[0][1]()
    assert (connection.state, listener.failure) == (State.CLOSED, None)


# --- connecting -------------------------------------------------------------------------------------------------------


async def test_connect() -> None:
    """A connection to what listens is made, and may be used."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        connection = await connect("127.0.0.1", server.getsockname()[1], 5.0)
        assert connection.reusable
        connection.close()
        assert not connection.reusable


@pytest.mark.parametrize("octets", [b"", b"HTTP/1.1 408 Request Timeout\r\n"], ids=["end", "octets"])
async def test_what_waits_unread_on_an_idle_connection(octets: bytes) -> None:
    """A connection that has ended, or on which something has come, isn't used again, even before the loop reads it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        connection = await connect("127.0.0.1", server.getsockname()[1], 5.0)
        other, _ = server.accept()
        connection.pause()  # nothing is read: only the socket itself knows
        assert connection.reusable
        other.sendall(octets)
        if not octets:
            other.close()
        await until(lambda: not connection.reusable)
        assert connection.state is State.IDLE
        assert not connection.transport.is_closing()
        connection.close()
        other.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_connect_refused(host: str) -> None:
    """Where nothing listens the failure says that the connection was refused, by each address that a name has."""
    port = free_port()
    with pytest.raises(Unreachable, match=f"{host}:{port} refuses connections") as caught:
        await connect(host, port, 5.0)
    assert caught.value.refused


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (OSError("Multiple exceptions: [Errno 111] a ('::1', 1), [Errno 111] b ('127.0.0.1', 1)"), None),
        (OSError("Multiple exceptions: [Errno 111] a ('::1', 1), [Errno 101] b ('127.0.0.1', 1)"), "OSError"),
        (OSError(101, "Network is unreachable"), "Network is unreachable"),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (ConnectionAbortedError("no number"), "ConnectionAbortedError"),
    ],
    ids=["each_refused", "one_refused", "network", "name", "no_number"],
)
async def test_connect_fails(monkeypatch: pytest.MonkeyPatch, error: OSError, what: str | None) -> None:
    """Only where every address of a name refuses is Ollama not running; all else is another trouble, and named."""
    running = asyncio.get_running_loop()

    class Loop:
        def __getattr__(self, name: str) -> object:
            return getattr(running, name)

        async def create_connection(self, *asked: object) -> None:
            assert asked == (Upstream, "localhost", 1)
            raise error

    monkeypatch.setattr("proxy.exchange.upstream.pool.errno.ECONNREFUSED", 111)
    monkeypatch.setattr("proxy.exchange.upstream.pool.asyncio.get_running_loop", Loop)
    with monkeypatch.context(), pytest.raises(Unreachable) as caught:
        await connect("localhost", 1, 5.0)
    assert caught.value.refused is (what is None)
    assert str(caught.value) == "localhost:1 " + (f"can't be reached ({what})" if what else "refuses connections")


async def test_connect_takes_too_long() -> None:
    """A connection that isn't there within the timeout is given up."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        sock.setblocking(False)
        address = sock.getsockname()
        fillers = []
        for _ in range(4):  # the queue of connections that wait to be accepted is full; further ones get no answer
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(address)
            fillers.append(filler)
        with pytest.raises(Unreachable, match=r"within 0\.05 s") as caught:
            await connect("127.0.0.1", address[1], 0.05)
        for filler in fillers:
            filler.close()
    assert not caught.value.refused


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
async def test_no_descriptor_is_left(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A connection for which there is no descriptor fails as that, not as an Ollama that is down."""

    async def none_left(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", none_left, raising=False)
    with pytest.raises(OutOfFiles) as told:
        await connect("127.0.0.1", 1, 1.0)
    assert str(told.value) == "no file descriptor is left for a connection to Ollama"
