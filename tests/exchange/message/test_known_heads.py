"""Heads that are known: the fast way and the slow way agree byte for byte, and nothing outlives its connection."""

from __future__ import annotations

import asyncio
import gc
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.exchange.client.requests import RequestParser
from proxy.exchange.message.known_heads import (
    KNOWN_HEADS,
    KNOWN_LENGTH,
    KnownAnswer,
    Request,
    ResponseHead,
    answer_heads,
)
from proxy.exchange.upstream.target import Target
from proxy.policy.gate import Policy, decide
from proxy.policy.heads import RequestHead
from tests.support.examples import examples
from tests.support.raw_http import Upstream, ok, until

if TYPE_CHECKING:
    from tests.support.raw_http import Proxy, Wire

POLICY = Policy.of(max_body=10_000)
TARGET = Target("127.0.0.1", 11434, 5.0)

OPENAI = (
    "POST /v1/chat/completions HTTP/1.1\r\nHost: mac:11434\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive"
    "\r\nAccept: application/json\r\nContent-Type: application/json\r\nUser-Agent: OpenAI/Python 1.99.1\r\n"
    "X-Stainless-Lang: python\r\nX-Stainless-Package-Version: 1.99.1\r\nX-Stainless-OS: MacOS\r\n"
    "X-Stainless-Arch: arm64\r\nX-Stainless-Runtime: CPython\r\nX-Stainless-Runtime-Version: 3.13.5\r\n"
    "Authorization: Bearer %s\r\nX-Stainless-Async: false\r\nx-stainless-retry-count: %d\r\n"
    "x-stainless-read-timeout: 600\r\nContent-Length: %d\r\n\r\n"
)
ANTHROPIC = (
    "POST /v1/messages?beta=true HTTP/1.1\r\nAccept: application/json\r\nX-Stainless-Retry-Count: %d\r\n"
    "X-Stainless-Timeout: 600\r\nX-Stainless-Lang: js\r\nX-Stainless-Package-Version: 0.74.0\r\n"
    "X-Stainless-OS: MacOS\r\nX-Stainless-Arch: arm64\r\nX-Stainless-Runtime: node\r\n"
    "X-Stainless-Runtime-Version: v24.3.0\r\n"
    "anthropic-version: 2023-06-01\r\nx-api-key: %s\r\nx-app: cli\r\n"
    "User-Agent: claude-cli/2.1.332 (external, cli)\r\n"
    "content-type: application/json\r\nanthropic-beta: claude-code-20250219\r\nConnection: keep-alive\r\n"
    "Host: mac:11434\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nContent-Length: %d\r\n\r\n"
)


def openai(length: int, *, key: str = "sk", retry: int = 0) -> bytes:
    """Return the head of a chat as the openai SDK sends it."""
    return (OPENAI % (key, retry, length)).encode()


def anthropic(length: int, *, key: str = "sk", retry: int = 0) -> bytes:
    """Return the head of a chat as Claude Code sends it."""
    return (ANTHROPIC % (retry, key, length)).encode()


class Read(NamedTuple):
    """What a connection makes of reads."""

    found: list[tuple[object, ...]]  # requests with verdict and head for Ollama, then its own state, and all content
    parser: RequestParser
    known: int  # requests that no parser saw


def read(pieces: list[bytes], *, knows: bool, limit: int = 65536) -> Read:
    """Return what a connection makes of reads. One that `knows` nothing parses everything."""
    loop = asyncio.new_event_loop()
    parser = RequestParser(loop, limit)
    found: list[tuple[object, ...]] = []
    contents: list[Any] = []
    known = 0
    for piece in pieces:
        if parser.fault is not None:
            break
        if knows and parser.take_known(piece):
            known += 1
        else:
            parser.feed(piece)
        while parser.queue:
            request, content = parser.take()
            contents.append(content)
            found.append(seen(request))
        found.append((parser.fault, parser.stopped))
    found += [
        (content, True) if isinstance(content, bytes) else (content.read_nowait(-1), content.is_eof())
        for content in contents
    ]
    loop.close()
    return Read(found, parser, known)


def seen(request: Request) -> tuple[object, ...]:
    """Return everything that a user of a request may read."""
    head, known = request.exact_head(), request.known
    verdict = decide(head, POLICY) if known is None else known.verdict(request, POLICY)
    forwarded = b""
    if head.version in ((1, 0), (1, 1)):
        forwarded = TARGET.head_of(request, None)
    return (
        *(head.method, head.target, head.path, head.version, head.fields, head.read, head.repeated, head.framing),
        *(head.chunked, request.last, request.persistent, request.length, request.asked_id, verdict, forwarded),
    )


LINES = st.sampled_from(
    [
        *(b"Authorization: Bearer a", b"Authorization: Bearer b", b"authorization: c", b"X-Api-Key: 1", b"X-Id: 1"),
        *(b"X-Id: 2", b"X-Id:2", b"X-Id:  2", b"X-Id: 2 ", b"X-Id: ", b"X-Id: \xff", b"X-Id: a: b", b"X-Id:a: b"),
        *(b"X-Id:a: c", b"X-Id: \t1", b"Connection: keep-alive", b"Connection: X-Id", b"Connection: close"),
        *(b"Expect: 100-continue", b"Content-Encoding: gzip", b"Via: 1.1 other", b"X-Request-Id: one", b"Upgrade: h2c"),
        *(b"X-Request-Id: two", b"Origin: http://localhost", b"User-Agent: a", b"User-Agent: b", b"X-Forwarded-For: 1"),
        *(b"Cookie: a", b"Cookie: b", b"Accept: a", b"Accept: b", b"Content_Length: 3", b"Transfer_Encoding: chunked"),
        *(b"traceparent: a", b"traceparent: b", b"Traceparent: a", b"traceparent:b", b"Idempotency-Key: a"),
        *(b"Idempotency-Key: b", b"X-Stainless-Retry-Count: 0", b"X-Stainless-Retry-Count: 1", b"Connection: a, b"),
        *(b"Sec-WebSocket-Key1: a", b"Sec-WebSocket-Key1: b", b"Content-Type: a", b"Content-Type: b"),
    ]
)
LENGTHS = st.sampled_from([None, b"0", b"2", b"4", b"02", b"+2", b"2 ", b"20000", b"999999999999999999", b"chunked"])
STARTS = st.sampled_from([b"POST /api/show HTTP/1.1", b"GET /api/tags HTTP/1.1", b"GET /api/tags HTTP/1.0"])
HOSTS = st.sampled_from([b"Host: mac", b"Host: mac", b"Host: evil.com"])


@st.composite
def conversations(draw: st.DrawFn) -> list[bytes]:
    """Return the reads of a connection whose requests differ in a few lines."""
    start, host, lines = draw(STARTS), draw(HOSTS), draw(st.lists(LINES, max_size=5))
    octets = b""
    for _ in range(draw(st.integers(3, 5))):
        length = draw(LENGTHS)
        mine = list(lines)
        if mine and draw(st.booleans()):
            mine[draw(st.integers(0, len(mine) - 1))] = draw(LINES)
        mine += (
            []
            if length is None
            else [b"Transfer-Encoding: chunked" if length == b"chunked" else b"Content-Length: " + length]
        )
        content = (
            b"2\r\n{}\r\n0\r\n\r\n"
            if length == b"chunked"
            else b"{}{}"[: int(length or 0)]
            if (length or b"0").isdigit()
            else b""
        )
        octets += b"\r\n".join((start, host, *mine, b"", b"")) + content + b"\0"
    reads = []
    for request in octets.split(b"\0")[:-1]:
        at = draw(st.integers(0, len(request)))
        reads += [request[:at], request[at:]] if draw(st.booleans()) else [request]
    return [read for read in reads if read]


ODD_LENGTH = b"POST /api/show HTTP/1.1\r\nHost: mac\r\nContent-Length: 02\r\n\r\n{}"


@examples(600)
@given(conversations())
@example([ODD_LENGTH, ODD_LENGTH, ODD_LENGTH[:-2].replace(b"02", b"0"), ODD_LENGTH])
@example(
    [b"GET /api/tags HTTP/1.1\r\nHost: mac\r\nX-Id:a: b\r\n\r\n"] * 2
    + [b"GET /api/tags HTTP/1.1\r\nHost: mac\r\nX-Id:a: c\r\n\r\n"]
)
@example([openai(2) + b"{}", openai(2) + b"{}", openai(4), b"{}{}", openai(20_000)])
@example([openai(2) + b"{}", openai(2) + b"{}", openai(2, key="b") + b"{}" + openai(2) + b"{}"])
@example([b"GET /api/tags HTTP/1.1\r\nHost: mac\r\nX-Id: XaX\r\nX-Request-Id: %d\r\n\r\n" % at for at in range(3)])
def test_known_requests_are_read_as_the_parser_reads_them(reads: list[bytes]) -> None:
    """Whatever differs between a connection's heads, knowing them changes neither a request nor what Ollama gets."""
    assert read(reads, knows=True).found == read(reads, knows=False).found


GET = b"GET /api/version HTTP/1.1\r\nHost: mac\r\n\r\n"
POST = b"POST /api/show HTTP/1.1\r\nHost: mac\r\nContent-Length: 4\r\n\r\nbody"
CHUNKED = b"POST /api/show HTTP/1.1\r\nHost: mac\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
CLOSING = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
UPGRADING = GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
NO_CONTENT = POST[:-4].replace(b" 4", b" 0")
HOLDING = POST[:-4].replace(b" 4", b" %d" % (2 * len(GET)))  # content that may be two requests
# Heads, pieces of them, and what may stand between two requests or hide as content.
PIECES = (
    *(HOLDING, HOLDING + GET, POST[:-4], b"bodyG", b"bodyGE", b"body\r\n", GET * 3, POST * 3),
    *(GET, POST, CHUNKED, CLOSING, UPGRADING, NO_CONTENT, POST[:-4], POST[:-2], b"body", b"dy", b"b", GET + GET),
    *(POST + GET, POST[:-4] + GET, GET[:-2], GET[:-1], GET[:5], GET[5:], b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"G"),
    *(b"\0", b"\r\n" + GET, GET + b"\r\n", GET + b"G", POST + b"G", CHUNKED + b"G", GET.replace(b"\r\n", b"\n")),
    *(b"dy" + GET, POST[:-2] + b"dy" + GET, b"dy" + POST),
    *(CHUNKED[:-5], CHUNKED[-5:], b"0\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", b"RTSP", b"x: y\r\n\r\n"),
)


@examples(1000)
@given(st.lists(st.sampled_from(PIECES), max_size=9))
@example([GET, GET, POST[:-4], b"bodyG", GET])
@example([POST, POST, POST[:-4], b"bodyG", GET[1:], POST])
@example([HOLDING, GET, GET, HOLDING, GET, GET, GET])
@example([GET, GET, GET[:5], GET[5:], GET])
@example([b"\r\n" + GET, b"\r\n" + GET])
@example([GET, GET[:-4], b"\r\n\r\n"])
@example([GET, GET[:5], GET])
@example([POST, POST[:-4] + b"bo", b"dy", POST])
@example([POST, POST[:-4], b"b", b"o", b"dy" + GET])
# The end of content is no part of the head behind it: one that begins so is malformed.
@example([POST[:-2], b"dy" + GET, b"dy" + GET])
def test_known_or_not(reads: list[bytes]) -> None:
    """However the bytes of a connection are cut, and whatever hides in them, known heads are the parser's."""
    assert read(reads, knows=True).found == read(reads, knows=False).found


def lower(length: int) -> bytes:
    """Return the head of a chat from a program that writes all names in lower case."""
    return b"POST /v1/messages HTTP/1.1\r\nhost: mac\r\ncontent-length: %d\r\n\r\n" % length


@pytest.mark.parametrize("head_of", [openai, anthropic, lower])
@pytest.mark.parametrize("split", [False, True], ids=["with_content", "content_later"])
def test_hit_rate_on_real_traffic(head_of: Any, split: bool) -> None:
    """Of ten chats of one SDK on a connection, each of another length, the parser sees the first."""
    reads: list[bytes] = []
    for number in range(10):
        content = b"x" * (100 + 7 * number)
        reads += [head_of(len(content)), content] if split else [head_of(len(content)) + content]
    _, parser, known = read(reads, knows=True)
    assert known == 9
    assert repr(parser.heads) == "<Heads 1 known, 9 found, 1 missed>"


def test_chats_and_polls_are_known_together() -> None:
    """A poll between two chats makes neither of them unknown."""
    poll = b"GET /api/tags HTTP/1.1\r\nHost: mac\r\n\r\n"
    assert read([openai(2) + b"{}", poll] * 10, knows=True).known == 18


def test_an_empty_line_in_content_ends_no_head() -> None:
    """A request whose content has an empty line is known too."""
    assert read([openai(6) + b"a\r\n\r\nb"] * 2, knows=True).known == 1


@pytest.mark.parametrize("line", [b"Expect: 100-continue", b"Via: 1.1 a\r\nVia: 1.1 b"], ids=["expects", "repeats"])
def test_requests_that_are_never_known(line: bytes) -> None:
    """A request is parsed each time if it waits for our 100, or has a field twice that is read here."""
    request = b"POST /api/show HTTP/1.1\r\nHost: mac\r\n%b\r\nContent-Length: 2\r\n\r\n{}" % line
    assert read([request] * 3, knows=True).known == 0


@pytest.mark.parametrize(
    "value",
    [b"", b" a", b"a ", b"\xff", b"a\tb", b"a\rb", b"a\nb", b"a\0b"],
    ids=["none", "space_ahead", "space_behind", "not_ascii", "tab", "cr", "lf", "nul"],
)
def test_a_value_that_parsers_may_read_differently_is_parsed(value: bytes) -> None:
    """A head that is like a known one, but for a value that isn't plainly visible, is left to the parser."""
    head = b"GET /api/tags HTTP/1.1\r\nHost: mac\r\nX-Request-Id: %b\r\n\r\n"
    assert read([head % b"a", head % value], knows=True).known == 0


@pytest.mark.parametrize("more", [0, 1, 100])
def test_a_known_head_may_be_no_larger_than_the_limit(more: int) -> None:
    """A head that is like a known one, and too large, is refused like any other."""
    head = b"GET /api/tags HTTP/1.1\r\nHost: mac\r\nX-Request-Id: %b\r\n\r\n"
    reads, limit = [head % b"a", head % b"a", head % (b"a" * (1 + more))], len(head % b"a")
    assert read(reads, knows=True, limit=limit).found == read(reads, knows=False, limit=limit).found


def test_few_heads_are_kept() -> None:
    """A client that sends ever new heads takes no more memory than one that doesn't."""
    reads = [b"GET /api/tags?%d HTTP/1.1\r\nHost: mac\r\n\r\n" % number for number in range(50)]
    parser = read(reads, knows=True).parser
    assert repr(parser.heads).startswith(f"<Heads {KNOWN_HEADS} known, 0 found")


@pytest.mark.parametrize(("beyond", "found"), [(0, 1), (1, 0)], ids=["longest", "too_long"])
def test_longest_known_head(beyond: int, found: int) -> None:
    """A head of `KNOWN_LENGTH` bytes, without its empty line, is kept, and a longer one is not."""
    start = b"GET /api/tags HTTP/1.1\r\nHost: mac\r\nX-Id: "
    head = start + b"a" * (KNOWN_LENGTH + beyond - len(start)) + b"\r\n\r\n"
    assert read([head, head], knows=True).known == found


@pytest.mark.parametrize(
    ("value", "length"),
    [
        (None, 0),
        (b"0", 0),
        (b"12", 12),
        (b"9" * 15, 10**15 - 1),
        (b"9" * 16, -1),
        (b"+2", -1),
        (b"x", -1),
        (b"", -1),
    ],
)
def test_announced_length(value: bytes | None, length: int) -> None:
    """A request announces the length that it names, none if it names none, and -1 if that is no length."""
    fields = () if value is None else ((b"Content-Length", value),)
    assert Request(RequestHead("POST", "/", (1, 1), fields), last=False, persistent=True).length == length


@pytest.mark.parametrize("forward", [False, True], ids=["kept_here", "forwarded"])
def test_known_requests_forward_credentials_only_when_asked(forward: bool) -> None:
    """The head of a known request has its credentials for Ollama if the owner wants that, and not otherwise."""
    loop = asyncio.new_event_loop()
    parser = RequestParser(loop, 65536)
    for _ in range(2):
        if not parser.take_known(openai(2, key="secret") + b"{}"):
            parser.feed(openai(2, key="secret") + b"{}")
        request, _ = parser.take()
    loop.close()
    assert request.known is not None
    octets = Target("127.0.0.1", 11434, 5.0, forward).head_of(request, None)
    assert (b"Authorization: Bearer secret" in octets) is forward


@pytest.mark.parametrize(
    ("status", "length"), [(204, 0), (200, None)], ids=["none_by_definition", "until_the_end_or_chunked"]
)
def test_known_answers_without_a_length(status: int, length: int | None) -> None:
    """An answer that names no length has the length of the one before it."""
    heads, lines = answer_heads(), b"HTTP/1.1 %d x\r\nDate: %s"
    head = ResponseHead.of(status, "1.1", ((b"Date", b"a"),))
    heads.learn(lines % (status, b"a"), partial(KnownAnswer, head))
    like = heads.find(lines % (status, b"b"))
    assert like is not None
    assert like.length == length


def test_no_answer_equals_what_is_none() -> None:
    """A response head is equal to one with the same values, and to nothing else."""
    head, other = (ResponseHead.of(200, "1.1", ((b"Date", date),)) for date in (b"a", b"b"))
    assert head == ResponseHead.of(200, "1.1", ((b"Date", b"a"),))
    assert head not in (other, None, b"")


def test_answers_that_differ_in_date_and_length() -> None:
    """Of an answer only Date and Content-Length may differ; anything else makes it unknown."""
    heads = answer_heads()
    lines = [b"HTTP/1.1 200 OK", b"Content-Type: application/json", b"Date: a", b"Content-Length: 2"]
    head = ResponseHead.of(
        200, "1.1", ((b"Content-Type", b"application/json"), (b"Date", b"a"), (b"Content-Length", b"2"))
    )
    heads.learn(b"\r\n".join(lines), partial(KnownAnswer, head))
    like = heads.find(b"\r\n".join([lines[0], lines[1], b"Date: b", b"Content-Length: 30"]))
    assert like is not None
    assert (like.length, like.forwarded) == (30, head.forwarded.replace(b"Date: a", b"Date: b"))
    for at, line in enumerate((b"HTTP/1.1 200 Fine", b"Content-Type: text/plain", b"Date:  b", b"Content-length : 1")):
        assert heads.find(b"\r\n".join([*lines[:at], line, *lines[at + 1 :]])) is None


async def test_no_credential_outlives_its_connection(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """After a client has left, no object that the collector or a cache can reach holds what it sent as a credential."""
    canary = "canary-" + "".join(map(chr, range(97, 120)))
    upstream.answers(ok(b'{"model":"m"}'))
    for number in range(4):
        await wire.send(openai(2 + number, key=canary) + b"{}" + b" " * number)
        await wire.answer()
    wire.close()
    await until(lambda: not gateway.clients.connections)
    upstream.requests.clear()
    for peer in upstream.peers:
        peer.octets.clear()
    await asyncio.sleep(0)
    gc.collect()
    assert [type(found).__name__ for found in holders(canary.encode())] == []


def holders(canary: bytes) -> list[object]:
    """Return every object that holds `canary` in bytes or text, directly."""

    def holds(value: object) -> bool:
        if type(value) is bytes:
            return canary in value and value != canary
        return type(value) is str and canary.decode() in value and value != canary.decode()

    return [each for each in gc.get_objects() if any(map(holds, gc.get_referents(each)))]
