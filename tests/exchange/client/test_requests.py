"""What bytes become requests, what becomes of those that don't, and what of aiohttp this rests on."""

from __future__ import annotations

import asyncio
import inspect
import weakref
from typing import Any

import pytest
from aiohttp import http_exceptions
from aiohttp.http import HttpRequestParser
from aiohttp.web_protocol import RequestHandler

from proxy.exchange.client import requests
from proxy.exchange.client.connection import Connection
from proxy.exchange.client.downstream import C_PARSER, PIPELINE_LIMIT, new_parser
from proxy.exchange.client.requests import Counted, RequestParser
from proxy.policy import refusals
from proxy.policy.refusals import Reason

MAX_HEAD = 4096
GET = b"GET /api/version HTTP/1.1\r\nHost: mac\r\n\r\n"
POST = b"POST /api/show HTTP/1.1\r\nHost: mac\r\nContent-Length: 4\r\n\r\nbody"
CHUNKED = (
    b"POST /api/show HTTP/1.1\r\nHost: mac\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nbo\r\n2;x=y\r\ndy\r\n0\r\n\r\n"
)


@pytest.fixture
async def parser() -> RequestParser:
    """Give a parser that takes heads of 4 KiB."""
    return RequestParser(asyncio.get_running_loop(), MAX_HEAD)


def seen(parser: RequestParser) -> list[tuple[str, str, bytes | None]]:
    """Take every request that is there: method, target, and its content, None while that isn't whole."""
    found = []
    while parser.queue:
        request, content = parser.take()
        found.append((request.head.method, request.head.target, content if isinstance(content, bytes) else None))
    return found


def head_of(size: int) -> bytes:
    """Return a request whose head has exactly `size` bytes."""
    start, end = b"GET /api/version HTTP/1.1\r\nHost: mac\r\nX-Filler: ", b"\r\n\r\n"
    return start + b"x" * (size - len(start) - len(end)) + end


class Noted:
    """A parser that is there as long as someone refers to it."""

    def __init__(self, *args: Any) -> None:
        self._parser = new_parser(*args)

    def feed_data(self, data: bytes) -> Any:
        """Parse."""
        return self._parser.feed_data(data)

    def message_consumed(self) -> None:
        """Make room."""
        self._parser.message_consumed()


@pytest.mark.parametrize(
    ("reads", "later", "kept"),
    [
        pytest.param([GET], [], False, id="no_content"),
        pytest.param([POST], [], False, id="content"),
        pytest.param([POST[:-1]], [], True, id="content_to_come"),
        pytest.param([POST[:-1]], [POST[-1:]], False, id="content_that_came_later"),
        pytest.param([GET + POST[:9]], [], True, id="next_has_begun"),
        pytest.param([GET, POST], [], False, id="two_that_waited"),
        pytest.param([CHUNKED], [], True, id="chunks_that_may_leave_trailers"),
    ],
)
async def test_parser_is_dropped_between_requests(
    monkeypatch: pytest.MonkeyPatch, reads: list[bytes], later: list[bytes], kept: bool
) -> None:
    """The parser keeps the fields of its last head, so it goes with the request, unless something is left in it."""
    made: list[weakref.ref[Noted]] = []

    def noting(*args: Any) -> Noted:
        noted = Noted(*args)
        made.append(weakref.ref(noted))
        return noted

    monkeypatch.setattr(requests, "new_parser", noting)
    parser = RequestParser(asyncio.get_running_loop(), MAX_HEAD)
    for read in reads:
        parser.feed(read)
    seen(parser)
    for read in later:
        parser.feed(read)
    assert [noted() is not None for noted in made] == [kept]
    if not kept:
        parser.feed(GET.replace(b"mac", b"localhost"))
        assert seen(parser) == [("GET", "/api/version", b"")]


# --- requests ---------------------------------------------------------------------------------------------------------

WELL_FORMED = [
    pytest.param(GET, [("GET", "/api/version", b"")], id="no_content"),
    pytest.param(POST, [("POST", "/api/show", b"body")], id="length"),
    pytest.param(CHUNKED, [("POST", "/api/show", b"body")], id="chunks"),
    pytest.param(
        GET + POST + CHUNKED + GET,
        [("GET", "/api/version", b""), *2 * [("POST", "/api/show", b"body")], ("GET", "/api/version", b"")],
        id="pipelined",
    ),
    pytest.param(b"\r\n\r\n" + GET + b"\r\n" + GET, 2 * [("GET", "/api/version", b"")], id="empty_lines_between"),
    pytest.param(GET.replace(b"/api/version", b"/%zz?a#b;c"), [("GET", "/%zz?a#b;c", b"")], id="target_as_sent"),
    pytest.param(
        POST.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n"),
        [("POST", "/api/show", b"body")],
        id="packed_content",
    ),
]


@pytest.mark.parametrize(
    ("octets", "last", "persistent"),
    [
        pytest.param(GET, False, True, id="keep_alive"),
        pytest.param(POST, False, True, id="content"),
        pytest.param(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), True, False, id="close"),
        pytest.param(GET.replace(b"1.1", b"1.0"), True, False, id="http_1_0"),
        pytest.param(GET.replace(b"1.1", b"2.0"), False, False, id="http_2_is_refused_anyway"),
        pytest.param(CHUNKED, False, False, id="chunks_may_leave_trailers"),
        pytest.param(
            GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"), False, False, id="upgrade"
        ),
    ],
)
async def test_whether_another_request_may_follow(
    parser: RequestParser, octets: bytes, last: bool, persistent: bool
) -> None:
    """A request is the last if the client says so, and nothing may follow one that the parser doesn't end cleanly."""
    parser.feed(octets)
    request, _ = parser.take()
    assert (request.last, request.persistent) == (last, persistent)


async def test_nothing_is_known_after_a_fault(parser: RequestParser) -> None:
    """Once bytes could not be parsed, a request that was known is not taken either."""
    parser.feed(GET)
    seen(parser)
    parser.feed(b"\0")
    assert parser.fault is refusals.MALFORMED
    assert not parser.take_known(GET)


def test_counted_content() -> None:
    """Content of a known length is all that comes up to it, however often it is read; the rest is left."""
    content = Counted(6, b"a")
    assert (content.read_nowait(), content.read_nowait(), content.is_eof()) == (b"a", b"", False)
    assert (content.feed(b"bc"), content.feed(b"d"), content.is_eof()) == (b"", b"", False)
    assert (content.feed(b"efGET"), content.is_eof(), content.total_bytes) == (b"GET", True, 6)
    assert (content.read_nowait(), content.read_nowait()) == (b"bcdef", b"")


@pytest.mark.parametrize(("octets", "requests"), WELL_FORMED)
async def test_whole(parser: RequestParser, octets: bytes, requests: list[tuple[str, str, bytes]]) -> None:
    """Requests that come in one read are there in order, with their content."""
    parser.feed(octets)
    assert (seen(parser), parser.fault, parser.head_octets) == (requests, None, 0)


@pytest.mark.parametrize(("octets", "requests"), WELL_FORMED)
async def test_octet_by_octet(parser: RequestParser, octets: bytes, requests: list[tuple[str, str, bytes]]) -> None:
    """Where reads begin and end makes no difference."""
    for octet in octets:
        parser.feed(bytes([octet]))
    assert (seen(parser), parser.fault, parser.head_octets) == (requests, None, 0)


async def test_new(parser: RequestParser) -> None:
    """Nothing has begun, waits or is wrong before the first byte."""
    assert (len(parser.queue), parser.head_octets, parser.stopped, parser.fault) == (0, 0, False, None)


@pytest.mark.parametrize("name", ["whole", "pieces"])
async def test_names_and_values_as_sent(parser: RequestParser, name: str) -> None:
    """Field lines keep case, order and repeats; only the whitespace around a value goes."""
    octets = b"GET / HTTP/1.1\r\nHost: mac\r\nx-A:1 \r\nX-a:\t2\xff\r\nAccept:\r\naccept: 3\r\n\r\n"
    for piece in [octets] if name == "whole" else [octets[i : i + 1] for i in range(len(octets))]:
        parser.feed(piece)
    request, _ = parser.take()
    assert request.head.fields == (
        (b"Host", b"mac"),
        (b"x-A", b"1"),
        (b"X-a", b"2\xff"),
        (b"Accept", b""),
        (b"accept", b"3"),
    )


async def test_head_alone_is_there_at_once(parser: RequestParser) -> None:
    """A request is judged when its head is whole, not its content."""
    parser.feed(POST[:-4])
    assert seen(parser) == [("POST", "/api/show", None)]
    parser.feed(b"body")
    assert (parser.head_octets, parser.fault) == (0, None)


async def test_stops_at_its_limit_and_goes_on(parser: RequestParser) -> None:
    """No more than 32 requests wait parsed; the others are parsed as those are taken, none is lost."""
    parser.feed(GET * 100)
    counts = []
    while parser.queue:
        counts.append(len(parser.queue))
        for _ in range(len(parser.queue)):
            parser.take()
        if parser.stopped:
            parser.feed(b"")
    assert counts == [PIPELINE_LIMIT, PIPELINE_LIMIT, PIPELINE_LIMIT, 100 - 3 * PIPELINE_LIMIT]


async def test_stops_at_its_limit_however_they_come(parser: RequestParser) -> None:
    """No more than 32 requests wait parsed, whether they come in a read each or many in one."""
    for _ in range(PIPELINE_LIMIT // 2):
        parser.feed(GET)
    parser.feed(GET * PIPELINE_LIMIT)
    assert (len(parser.queue), parser.stopped) == (PIPELINE_LIMIT, True)


def taken(parser: RequestParser) -> int:
    """Take every request that a parser has, also those inside that it stopped before; return how many."""
    count = 0
    while parser.queue or parser.stopped:
        if parser.queue:
            parser.take()
            count += 1
        else:
            parser.feed(b"")
    return count


@pytest.mark.parametrize("behind", [PIPELINE_LIMIT - 2, PIPELINE_LIMIT - 1, PIPELINE_LIMIT, PIPELINE_LIMIT + 1])
async def test_stops_behind_content(parser: RequestParser, behind: int) -> None:
    """A request whose content ends in a read takes a place in it, although it was taken before."""
    parser.feed(POST[:-2])
    parser.take()
    parser.feed(POST[-2:] + GET * behind)
    assert parser.stopped is (behind + 1 >= PIPELINE_LIMIT)
    assert taken(parser) == behind


@pytest.mark.parametrize("before", [PIPELINE_LIMIT - 2, PIPELINE_LIMIT - 1, PIPELINE_LIMIT])
async def test_stops_within_content(parser: RequestParser, before: int) -> None:
    """It is known that bytes wait inside, also when the end of content was what made it stop."""
    parser.feed(GET * before + POST[:-2])
    parser.feed(POST[-2:] + GET)
    assert taken(parser) == before + 2


async def test_content_that_comes_later_takes_no_place_in_the_queue(parser: RequestParser) -> None:
    """However many requests were taken before their content came, the limit stays what it is."""
    for _ in range(2 * PIPELINE_LIMIT):
        parser.feed(POST[:-4])
        parser.take()
        for octet in (b"b", b"o", b"d", b"y"):
            parser.feed(octet)
    parser.feed(GET * (PIPELINE_LIMIT + 8))
    assert len(parser.queue) == PIPELINE_LIMIT


async def test_content_that_comes_before_its_request_is_taken(parser: RequestParser) -> None:
    """A request keeps its place while its content comes in many reads, until it is taken."""
    parser.feed(POST[:-4])
    for octet in (b"b", b"o", b"d", b"y"):
        parser.feed(octet)
    parser.feed(GET * (PIPELINE_LIMIT + 8))
    assert len(parser.queue) == PIPELINE_LIMIT


@pytest.mark.parametrize(
    ("reads", "octets"),
    [
        pytest.param([b"G"], 1, id="one_octet"),
        pytest.param([b"\r\n\r\n", b"\r\n"], 0, id="empty_lines_begin_nothing"),
        pytest.param([b"\r\nGET", b" /"], 5, id="after_an_empty_line"),
        pytest.param([GET + b"GE"], 2, id="after_a_whole_one"),
        pytest.param([GET[:-1], b"\nGE"], 2, id="after_the_last_octet_of_one"),
        pytest.param([GET[:-2], b"\r\n"], 0, id="last_line_in_a_read_of_its_own"),
        pytest.param([POST[:-4], b"bo", b"dy"], 0, id="content_is_no_head"),
        pytest.param([POST], 0, id="content_in_the_same_read"),
        pytest.param([CHUNKED[:-12]], 0, id="chunks_not_whole"),
    ],
)
async def test_begun_head(parser: RequestParser, reads: list[bytes], octets: int) -> None:
    """It is known whether a head has begun, for that is when its deadline does."""
    for read in reads:
        parser.feed(read)
        while parser.queue:
            parser.take()
    assert (parser.head_octets, parser.fault) == (octets, None)


# --- what is no request -----------------------------------------------------------------------------------------------

HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200)
CRASH = b"GET http://[fe80::1%25eth0]@ HTTP/1.1\r\nHost: mac\r\n\r\n"  # yarl, which aiohttp calls, raises IndexError


@pytest.mark.parametrize(
    ("octets", "refusal"),
    [
        pytest.param(b"garbage\r\n\r\n", refusals.MALFORMED, id="garbage"),
        pytest.param(GET.replace(b"version", b"\xff"), refusals.MALFORMED, id="octet_above_ascii_in_the_target"),
        pytest.param(GET.replace(b"version", "é".encode()), refusals.MALFORMED, id="utf8_in_the_target"),
        pytest.param(GET.replace(b"version", b"?\xff"), refusals.MALFORMED, id="octet_above_ascii_in_the_query"),
        pytest.param(b"get / HTTP/1.1\r\nHost: a\r\n\r\n", refusals.MALFORMED, id="lower_case_method"),
        pytest.param(HELLO, refusals.TLS, id="tls"),
        pytest.param(CRASH, refusals.MALFORMED, id="crash_in_yarl"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", refusals.MALFORMED, id="http_2_preface"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", refusals.MALFORMED, id="no_host"),
        pytest.param(GET[:-2] + b"a b: c\r\n\r\n", refusals.MALFORMED, id="bad_name"),
    ],
)
@pytest.mark.parametrize("pieces", [False, True], ids=["whole", "octet_by_octet"])
async def test_fault(parser: RequestParser, octets: bytes, refusal: refusals.Refusal, pieces: bool) -> None:
    """What isn't HTTP/1 is a fault, never an exception, and makes no request."""
    for piece in (octets[i : i + 1] for i in range(len(octets))) if pieces else [octets]:
        if parser.fault is None:
            parser.feed(piece)
    if not (pieces and refusal is refusals.TLS):  # one byte of a hello looks like any other garbage
        assert parser.fault is refusal
    assert parser.fault is not None
    assert not parser.queue


@pytest.mark.parametrize("apart", [False, True], ids=["whole", "octet_by_octet"])
@pytest.mark.parametrize(
    "start", [b"GET / RTSP/1.0", b"GET / RTSP/1.1", b"POST / RTSP/1.1", b"OPTIONS / RTSP/1.0", b"SOURCE / ICE/1.0"]
)
async def test_other_protocol(parser: RequestParser, start: bytes, apart: bool) -> None:
    """A start-line of another protocol, which llhttp takes for HTTP of the same version, makes no request."""
    octets = start + b"\r\nHost: mac\r\nReferer: / HTTP/1.1\r\n\r\n"
    for piece in [octets[i : i + 1] for i in range(len(octets))] if apart else [octets]:
        parser.feed(piece)
    assert (seen(parser), parser.fault) == ([], refusals.MALFORMED)


@pytest.mark.parametrize("step", [10**6, 1], ids=["whole", "octet_by_octet"])
async def test_good_ones_before_another_protocol(parser: RequestParser, step: int) -> None:
    """Those before it are served, and nothing behind it."""
    octets = GET + POST + GET.replace(b"HTTP", b"RTSP") + GET
    for start in range(0, len(octets), step):
        if parser.fault is None:
            parser.feed(octets[start : start + step])
    assert seen(parser) == [("GET", "/api/version", b""), ("POST", "/api/show", b"body")]
    assert parser.fault is refusals.MALFORMED


async def test_other_protocol_behind_one_that_is_not_looked_for(parser: RequestParser) -> None:
    """A request whose start-line came behind content, in the read before, keeps none of those after it from a look."""
    parser.feed(POST + GET[:10])
    parser.feed(GET[10:] + GET.replace(b"/api/version HTTP", b"/other RTSP"))
    assert [target for _, target, _ in seen(parser)] == ["/api/show", "/api/version"]
    assert parser.fault is refusals.MALFORMED


@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(GET.replace(b" ", b"   "), id="many_spaces"),
        pytest.param(GET.replace(b" HTTP", b"  HTTP"), id="two_spaces_before_the_version"),
        pytest.param(b"\r\n" + GET, id="empty_line_before"),
        pytest.param(GET[:-2] + b"X: GET /api/version RTSP/1.0\r\n\r\n", id="in_a_field"),
        pytest.param(POST[:-4].replace(b": 4", b": 30") + b"POST /api/show RTSP/1.0 \r\n\r\n..", id="in_content"),
    ],
)
@pytest.mark.parametrize("step", [10**6, 7, 1], ids=["whole", "sevens", "octet_by_octet"])
async def test_no_other_protocol(parser: RequestParser, octets: bytes, step: int) -> None:
    """What only looks like such a start-line is no fault."""
    for start in range(0, len(octets), step):
        parser.feed(octets[start : start + step])
    assert (len(seen(parser)), parser.fault) == (1, None)


async def test_garbage_in_a_later_read(parser: RequestParser) -> None:
    """Garbage spoils nothing that was whole before it came."""
    parser.feed(GET)
    parser.feed(b"\x00\x00")
    assert seen(parser) == [("GET", "/api/version", b"")]
    assert parser.fault is refusals.MALFORMED


@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(b"2\nbo\r\n", id="bare_lf"),
        pytest.param(b"2\r\nboX", id="too_much"),
        pytest.param(b"-1\r\n", id="sign"),
        pytest.param(b"fffffffffffffffff\r\n", id="overflow"),
        pytest.param(b"0\r\nContent-Length: 1\r\n\r\n", id="length_trailer"),
    ],
)
async def test_broken_chunk(parser: RequestParser, octets: bytes) -> None:
    """A chunk that breaks off its content is a fault, and the content never looks whole."""
    parser.feed(CHUNKED[: CHUNKED.index(b"\r\n\r\n") + 4])
    _, content = parser.take()
    parser.feed(octets)
    assert parser.fault is refusals.MALFORMED
    assert not content.is_eof()


@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(b"CONNECT mac:80 HTTP/1.1\r\nHost: mac\r\n\r\n", id="connect"),
        pytest.param(GET[:-2] + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n", id="websocket"),
    ],
)
async def test_what_follows_another_protocol(parser: RequestParser, octets: bytes) -> None:
    """After a request to switch protocols come no further requests: its bytes aren't HTTP."""
    parser.feed(octets + GET)
    assert len(seen(parser)) == 1
    assert parser.fault is refusals.MALFORMED


@pytest.mark.parametrize("start", [b"CONNECT \r\n", b"CONNECT \r\n127.0.0.1:11434 HTTP/1.1\r\n"])
async def test_no_target_at_all(parser: RequestParser, start: bytes) -> None:
    """A request without a target, which aiohttp takes for one of HTTP/0.9, is a fault; what was before it is served."""
    parser.feed(GET + start + b"Host: mac\r\n\r\n" + GET)
    assert len(seen(parser)) == 1
    assert parser.fault is refusals.MALFORMED


# --- sizes ------------------------------------------------------------------------------------------------------------

LONG = b"x" * MAX_HEAD
TOO_LARGE = [
    pytest.param(b"GET /%b HTTP/1.1\r\nHost: mac\r\n\r\n" % LONG, Reason.TARGET_TOO_LONG, 414, id="one_long_target"),
    pytest.param(b"GET /%b" % LONG, Reason.TARGET_TOO_LONG, 414, id="target_without_end"),
    pytest.param(b"\r\n\r\nGET /%b HTTP/1.1\r\n" % LONG, Reason.TARGET_TOO_LONG, 414, id="target_after_empty_lines"),
    pytest.param(GET[:-2] + b"A: %b\r\n\r\n" % LONG, Reason.HEAD_TOO_LARGE, 431, id="one_long_field"),
    pytest.param(
        b"GET /%b HTTP/1.1\r\nA: %b\r\n\r\n" % (LONG[15:], LONG + LONG), Reason.HEAD_TOO_LARGE, 431, id="longest_line"
    ),
    pytest.param(GET[:-2] + b"A: %b" % LONG, Reason.HEAD_TOO_LARGE, 431, id="field_without_end"),
    pytest.param(GET[:-2] + LONG + b": a\r\n\r\n", Reason.HEAD_TOO_LARGE, 431, id="one_long_name"),
    pytest.param(GET[:-2] + b"A: b\r\n" * 200 + b"\r\n", Reason.HEAD_TOO_LARGE, 431, id="many_fields"),
    pytest.param(GET[:-2] + b"A: %b\r\n" % LONG[:99] * 50 + b"\r\n", Reason.HEAD_TOO_LARGE, 431, id="whole_head"),
]


@pytest.mark.parametrize("step", [1, 100, 10**6], ids=["octets", "pieces", "whole"])
@pytest.mark.parametrize(("octets", "reason", "status"), TOO_LARGE)
async def test_too_large(parser: RequestParser, octets: bytes, reason: Reason, status: int, step: int) -> None:
    """A head over the limit is refused however it comes: 414 for a target, 431 for field lines."""
    for start in range(0, len(octets), step):
        if parser.fault is None:
            parser.feed(octets[start : start + step])
    assert parser.fault is not None
    assert (parser.fault.reason, parser.fault.status) == (reason, status)
    assert not parser.queue


@pytest.mark.parametrize("step", [1, 100, 10**6], ids=["octets", "pieces", "whole"])
async def test_largest(parser: RequestParser, step: int) -> None:
    """A head of exactly the limit passes, and with much content behind it too."""
    octets = head_of(MAX_HEAD) + POST[:-4].replace(b" 4", b" 20000") + b"x" * 20000
    for start in range(0, len(octets), step):
        parser.feed(octets[start : start + step])
    assert parser.fault is None
    assert [method for method, _, _ in seen(parser)] == ["GET", "POST"]


async def test_no_octet_too_early(parser: RequestParser) -> None:
    """A head is refused by the byte that is one too many, not before."""
    octets = head_of(MAX_HEAD + 9)
    parser.feed(octets[:MAX_HEAD])
    assert (parser.fault, parser.head_octets) == (None, MAX_HEAD)
    parser.feed(octets[MAX_HEAD : MAX_HEAD + 1])
    assert parser.fault is not None
    assert "4096" in parser.fault.message


@pytest.mark.parametrize(("short", "passes"), [(b"A: b\r\n" * 90, True), (b"A: b\r\n" * 94, False)])
async def test_many_short_fields(parser: RequestParser, short: bytes, passes: bool) -> None:
    """The signs and line ends of a head with much content behind it count as well."""
    start = POST[:-4].replace(b" 4", b" 20000")[:-2]
    filler = b"X-Filler: %b\r\n" % (b"x" * (MAX_HEAD - len(start) - 90 * 6 - 14))
    octets = start + filler + short + b"\r\n"
    assert (len(octets) == MAX_HEAD) is passes
    parser.feed(octets + bytes(20000))
    assert (parser.fault is None, len(parser.queue)) == (passes, int(passes))


async def test_one_field_may_fill_the_head() -> None:
    """The limit of a head is the only one that a field has."""
    parser = RequestParser(asyncio.get_running_loop(), 65536)
    parser.feed(head_of(65536))
    assert (parser.fault, len(parser.queue)) == (None, 1)


async def test_long_field_in_the_next_read(parser: RequestParser) -> None:
    """Once a start-line was seen, what is too large is a field, in whichever read it comes."""
    parser.feed(GET[:-2])
    parser.feed(b"A: %b" % (LONG + LONG))
    assert parser.fault is not None
    assert parser.fault.reason is Reason.HEAD_TOO_LARGE


@pytest.mark.parametrize(("octets", "reason"), [(b"GET /%b" % LONG, 414), (GET[:-2] + b"A: %b" % LONG, 431)])
async def test_too_large_behind_another(parser: RequestParser, octets: bytes, reason: int) -> None:
    """What is too large about a second head has nothing to do with the first."""
    parser.feed(GET[:-10])
    parser.feed(GET[-10:])
    parser.feed(octets)
    assert parser.fault is not None
    assert parser.fault.status == reason


async def test_large_one_behind_the_limit(parser: RequestParser) -> None:
    """A head that waited inside, behind as many requests as are parsed ahead, is judged like any other."""
    parser.feed(GET * PIPELINE_LIMIT + GET[:-2] + b"A: %b\r\n" % LONG[:99] * 50 + b"\r\n")
    assert len(seen(parser)) == PIPELINE_LIMIT
    parser.feed(b"")
    assert not parser.queue
    assert parser.fault is not None
    assert parser.fault.status == 431


async def test_what_waits_inside_is_no_head(parser: RequestParser) -> None:
    """Bytes behind as many requests as are parsed ahead are not counted as a head that has begun."""
    parser.feed(GET * PIPELINE_LIMIT)
    parser.take()
    parser.feed(GET + POST.replace(b" 4", b" 9000")[:-4] + bytes(9000))
    assert (parser.head_octets, parser.fault) == (0, None)


@pytest.mark.parametrize("apart", [False, True], ids=["whole", "in_two_reads"])
@pytest.mark.parametrize("trailers", [b"A: %b\r\n" % LONG, b"A: b\r\n" * 200], ids=["one_long", "many"])
async def test_large_trailers(parser: RequestParser, trailers: bytes, apart: bool) -> None:
    """Trailers that are too large are reported as fields, not as a target."""
    octets = CHUNKED[:-2] + trailers + b"\r\n"
    for piece in (octets[: -len(trailers)], octets[-len(trailers) :]) if apart else [octets]:
        parser.feed(piece)
    assert parser.fault is not None
    assert parser.fault.reason is Reason.HEAD_TOO_LARGE


async def test_the_good_ones_before_a_large_one(parser: RequestParser) -> None:
    """A request that is too large doesn't take those before it along."""
    parser.feed(GET + GET[:-2] + b"A: %b\r\n" % LONG[:99] * 50 + b"\r\n" + GET)
    assert seen(parser) == [("GET", "/api/version", b"")]
    assert parser.fault is not None
    assert parser.fault.status == 431


# --- aiohttp ----------------------------------------------------------------------------------------------------------


def test_the_c_parser_is_loaded() -> None:
    """The parser is the C one: aiohttp's Python fallback is more lenient, and serving on it is refused."""
    assert C_PARSER
    assert HttpRequestParser.__module__ == "aiohttp._http_parser"


async def test_aiohttp_is_as_relied_on() -> None:
    """Each name of aiohttp's parser that it promises nobody is what `downstream` takes it for."""
    parser = new_parser(asyncio.get_running_loop(), MAX_HEAD)
    ((message, content),), _, _ = parser.feed_data(POST)
    types = {"method": str, "path": str, "raw_headers": tuple, "should_close": bool, "upgrade": bool, "chunked": bool}
    assert {name: type(getattr(message, name)) for name in types} == types
    assert tuple(message.version) == (1, 1)
    assert inspect.signature(type(content).read_nowait).parameters["n"].default == -1
    assert (content.total_bytes, content.is_eof(), content.read_nowait(-1)) == (4, True, b"body")
    ((_, nothing),), _, _ = parser.feed_data(GET)
    assert (nothing.total_bytes, nothing.is_eof()) == (0, True)
    assert issubclass(http_exceptions.LineTooLong, http_exceptions.HttpProcessingError)
    assert issubclass(http_exceptions.BadHttpMethod, http_exceptions.HttpProcessingError)


def test_connection_hides_nothing_of_aiohttp() -> None:
    """No name in our code hides one of aiohttp's connection by mistake, and each that we rely on exists."""
    ours = {name for cls in Connection.__mro__ if cls.__module__.startswith("proxy.") for name in vars(cls)}
    theirs = {name for cls in RequestHandler.__mro__ for name in vars(cls)}
    meant = {"connection_lost", "connection_made", "data_received", "eof_received", "pause_reading", "pause_writing"}
    meant |= {"resume_reading", "resume_writing", "start"}
    assert {name for name in ours & theirs if not name.startswith("__")} == meant
    assert {"_messages", "_parser", "_manager", "_task_handler", "transport"} <= theirs
    assert inspect.iscoroutinefunction(RequestHandler.start)
    keywords = inspect.signature(RequestHandler.__init__).parameters
    assert {"keepalive_timeout", "tcp_keepalive", "access_log", "auto_decompress", "read_bufsize"} <= keywords.keys()


async def test_content_never_asks_to_hold_the_socket(parser: RequestParser) -> None:
    """However much content comes in one read, aiohttp takes all of it: backpressure is the relay's."""
    size = 4 * 2**20
    parser.feed(POST[:-4].replace(b" 4", b" %d" % size) + bytes(size))
    assert parser.take()[1] == bytes(size)
