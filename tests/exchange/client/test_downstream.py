"""A client's connection: requests answered in order, and how a connection is kept, refused, lingered on and closed."""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import struct
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from proxy.exchange.client.client_socket import PIECE
from proxy.exchange.client.connection import FRAMING_LIMIT
from proxy.exchange.client.downstream import PIPELINE_LIMIT
from proxy.exchange.client.requests import RequestParser
from tests.support.ports import free_port
from tests.support.raw_http import CUT, HANG, LAST_CHUNK, NEXT, Proxy, Wire, chunk, ok, stream_head, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from proxy.exchange.client.connection import Connection
    from tests.support.raw_http import Answer, Upstream

GET = b"GET /api/version HTTP/1.1\r\nHost: mac\r\n\r\n"
FORBIDDEN = b"GET /api/ps HTTP/1.1\r\nHost: mac\r\n\r\n"
CHUNKED = b"POST /api/show HTTP/1.1\r\nHost: mac\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(params=["as_here", "darwin"], autouse=True)
def system(request: pytest.FixtureRequest) -> None:
    """Run each test by the rules of this kernel, and by those of macOS."""
    if request.param == "darwin":
        request.getfixturevalue("darwin")


def post(content: bytes, target: str = "/api/show") -> bytes:
    """Return a request with content."""
    return b"POST %b HTTP/1.1\r\nHost: mac\r\nContent-Length: %d\r\n\r\n%b" % (target.encode(), len(content), content)


def outcomes(gateway: Proxy) -> list[tuple[str, str | None, str]]:
    """Return verdict, reason and end of every audit line."""
    return [(line["verdict"], line.get("reason"), line["ended"]) for line in gateway.audit]


def waiting(client: Connection) -> int:
    """Return how many bytes of content the last request that waits for its turn has here."""
    found = re.search(r"the last with (\d+) bytes", repr(client))
    assert found
    return int(found[1])


# --- pipelining -------------------------------------------------------------------------------------------------------


async def test_answers_keep_the_order_of_requests(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """Pipelined requests are answered in their order, those we refuse among those that Ollama answers."""
    upstream.answers_in_turn((ok(b"one"),), (ok(b"two"),), (ok(b"three"),))
    await wire.send(GET + FORBIDDEN + post(b"{}") + FORBIDDEN + GET)
    answers = [await wire.answer() for _ in range(5)]
    assert [answer.status for answer in answers] == [200, 403, 200, 403, 200]
    assert [answers[index].content for index in (0, 2, 4)] == [b"one", b"two", b"three"]
    assert [line["status"] for line in gateway.audit] == [200, 403, 200, 403, 200]
    assert len(upstream.requests) == 3


@pytest.mark.parametrize("request_octets", [GET, FORBIDDEN, post(b"x" * 50)], ids=["served", "refused", "content"])
@pytest.mark.parametrize("count", [PIPELINE_LIMIT, PIPELINE_LIMIT + 1, 3 * PIPELINE_LIMIT + 5])
async def test_many_in_one_read(
    gateway: Proxy, upstream: Upstream, wire: Wire, request_octets: bytes, count: int
) -> None:
    """However many requests one read brings, each gets its answer, without another byte from the client."""
    upstream.answers(ok())
    await wire.send(request_octets * count)
    for _ in range(count):
        await wire.answer()
    assert len(gateway.audit) == count
    await wire.send(GET)
    assert (await wire.answer()).status == 200


async def test_many_while_one_waits(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """A client that goes on sending requests while one waits is read no further, and served all of them later."""
    upstream.answers_in_turn((NEXT, ok(b"first")), (ok(b"other"),))
    await wire.send(GET)
    await until(lambda: upstream.requests)
    for _ in range(10):
        await wire.send(post(b"x" * 20_000) * 5)
    (client,) = gateway.clients.connections
    await until(lambda: client.unread)
    upstream.proceed()
    contents = [(await wire.answer()).content for _ in range(51)]
    assert contents == [b"first", *50 * [b"other"]]


async def test_reading_goes_on_once_nothing_waits(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """A client that was read no further, for much of what it sent waited, is read again when that is served."""
    upstream.answers_in_turn((NEXT, ok(b"first")), (ok(b"other"),))
    await wire.send(GET)
    await until(lambda: upstream.requests)
    await wire.send(GET * PIPELINE_LIMIT)
    (client,) = gateway.clients.connections
    await until(lambda: client.unread)
    upstream.proceed()
    for _ in range(1 + PIPELINE_LIMIT):
        await wire.answer()
    assert not client.unread
    await wire.send(GET)
    assert (await wire.answer()).status == 200


async def test_pipelined_content_waits_for_its_turn(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """Of the content of a request that waits no more than a window is read."""
    upstream.answers_in_turn((NEXT, ok(b"first")), (ok(b"second"),))
    await wire.send(GET)
    await until(lambda: upstream.requests)
    content = b"x" * 8 * 2**20
    sending = asyncio.create_task(wire.send(post(content)))
    (client,) = gateway.clients.connections
    await until(lambda: client.unread)
    assert 64 * 1024 < waiting(client) < 1024 * 1024
    upstream.proceed()
    assert [(await wire.answer()).content, (await wire.answer()).content] == [b"first", b"second"]
    await sending
    assert upstream.requests[1].endswith(content)


@pytest.mark.parametrize("seed", [*range(10), 12, 26, 561, 576])
async def test_wherever_reads_begin_and_end(gateway: Proxy, upstream: Upstream, wire: Wire, seed: int) -> None:
    """However a client's bytes are cut into reads, the same requests get the same answers in the same order."""
    upstream.answers(ok())
    chance = random.Random(seed)
    kinds = [GET, FORBIDDEN, post(b"{}"), post(chance.randbytes(5_000)), post(chance.randbytes(150_000)), post(b"")]
    sent = chance.choices(kinds, weights=[5, 5, 5, 2, 1, 2], k=60)
    octets = b"".join(sent) + CHUNKED + chunk(b"{}") + LAST_CHUNK

    async def send() -> None:
        at = 0
        while at < len(octets):
            step = chance.choice([1, 2, 7, 40, 900, 70_000])
            await wire.send(octets[at : at + step])
            at += step
            await asyncio.sleep(0)

    sending = asyncio.create_task(send())
    statuses = [(await wire.answer()).status for _ in range(61)]
    await sending
    assert statuses == [403 if request is FORBIDDEN else 200 for request in sent] + [200]
    contents = [request.partition(b"\r\n\r\n")[2] for request in upstream.requests]
    expected = [request.partition(b"\r\n\r\n")[2] for request in sent if request is not FORBIDDEN]
    assert contents == [*expected, chunk(b"{}") + LAST_CHUNK]
    assert await wire.read() == b""
    assert len(gateway.audit) == 61


async def test_large_read_is_taken_in_pieces(
    gateway: Proxy, upstream: Upstream, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large read is parsed in pieces that the allocator keeps, and what they hold passes as it came."""
    fed: list[int] = []
    feed = RequestParser.feed

    def noting(parser: RequestParser, data: bytes) -> None:
        fed.append(len(data))
        feed(parser, data)

    monkeypatch.setattr(RequestParser, "feed", noting)
    upstream.answers(ok())
    contents = [random.Random(size).randbytes(size) for size in (3 * PIECE + 1, 5, PIECE)]
    await wire.send(GET)
    assert (await wire.answer()).status == 200
    (client,) = gateway.clients.connections
    client.data_received(b"".join(map(post, contents)))
    assert [(await wire.answer()).status for _ in contents] == [200] * 3
    assert max(fed) == PIECE
    assert [request.partition(b"\r\n\r\n")[2] for request in upstream.requests[1:]] == contents


@pytest.mark.parametrize("answered", [False, True], ids=["before_its_answer", "within_its_answer"])
async def test_garbage_behind_a_good_request(gateway: Proxy, upstream: Upstream, wire: Wire, answered: bool) -> None:
    """A good request is answered first; then the garbage behind it gets its 400, its line, and the connection's end."""
    upstream.answers(stream_head(b"application/json"), chunk(b"{"), NEXT, chunk(b"}"), LAST_CHUNK)
    await wire.send(GET)
    await until(lambda: upstream.requests)
    if answered:
        await wire.read_until(b"1\r\n{\r\n")
    await wire.send(b"\0garbage\r\n\r\n")
    (client,) = gateway.clients.connections
    await until(lambda: "then malformed" in repr(client))
    upstream.proceed()
    octets = await wire.read_until_closed()
    assert octets.count(b"HTTP/1.1 400 Bad Request") == 1
    assert octets.index(b"0\r\n\r\n") < octets.index(b"HTTP/1.1 400")
    assert outcomes(gateway) == [("allowed", None, "complete"), ("refused", "malformed", "proxy/head")]


async def test_answers_that_nobody_takes(gateway: Proxy) -> None:
    """A client that takes no answers is not served further requests: our own answers are held back as Ollama's are."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", gateway.port))
        sending = asyncio.create_task(loop.sock_sendall(sock, FORBIDDEN * 100_000))
        await until(lambda: [client for client in gateway.clients.connections if client.unread])
        (client,) = gateway.clients.connections
        served = len(gateway.audit)
        assert client.blocked
        assert client.transport is not None
        assert client.transport.get_write_buffer_size() < 100_000
        octets = 0
        while len(gateway.audit) < served + 100:
            octets += len(await loop.sock_recv(sock, 65536))
        assert octets
        sending.cancel()


async def test_slow_reader(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """A client that reads slowly pauses Ollama, whose connection is read on as the client is; no byte is lost."""
    pieces = [bytes([number]) * 2**17 for number in range(100)]
    upstream.answers(stream_head(b"application/json"), *map(chunk, pieces), LAST_CHUNK)
    wire.stop_reading()
    await wire.send(GET)
    await until(lambda: [client for client in gateway.clients.connections if client.blocked])
    (client,) = gateway.clients.connections
    assert client.source is not None
    upstream_side = client.source.transport
    assert not upstream_side.is_reading()
    assert client.transport is not None
    assert client.transport.get_write_buffer_size() < 64 * 1024 + 256_000 + 1000
    wire.read_on()
    answer = await wire.answer()
    assert (answer.whole, answer.content) == (True, b"".join(pieces))
    assert upstream_side.is_reading()


# --- keep-alive -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "field", "kept", "said"),
    [
        pytest.param("GET /api/version HTTP/1.1", "", True, None, id="1.1"),
        pytest.param("GET /api/version HTTP/1.1", "Connection: close", False, "close", id="1.1_close"),
        pytest.param("GET /api/version HTTP/1.1", "Connection: Foo, CLOSE", False, "close", id="1.1_close_in_a_list"),
        pytest.param("GET /api/version HTTP/1.0", "", False, "close", id="1.0"),
        pytest.param("GET /api/version HTTP/1.0", "Connection: keep-alive", True, "keep-alive", id="1.0_keep_alive"),
        pytest.param("GET /api/ps HTTP/1.1", "", True, None, id="refused_1.1"),
        pytest.param("GET /api/ps HTTP/1.1", "Connection: close", False, "close", id="refused_1.1_close"),
        pytest.param("GET /api/ps HTTP/1.0", "", False, "close", id="refused_1.0"),
        pytest.param("GET /api/ps HTTP/1.0", "Connection: keep-alive", True, "keep-alive", id="refused_1.0_keep_alive"),
        pytest.param("GET /api/version HTTP/2.0", "", False, "close", id="2.0"),
        pytest.param("GET /api/version HTTP/1.1", "Connection: upgrade\r\nUpgrade: h2c", False, "close", id="h2c"),
        pytest.param(
            "GET /api/version HTTP/1.1", "Connection: upgrade\r\nUpgrade: websocket", False, "upgrade, close", id="ws"
        ),
    ],
)
async def test_persistence(
    upstream: Upstream, wire: Wire, start: str, field: str, kept: bool, said: str | None
) -> None:
    """A connection stays as the client's version and Connection field have it (RFC 9112, 9.3); the answer says so."""
    upstream.answers(ok())
    lines = [start, "Host: mac", *([field] if field else []), "\r\n"]
    await wire.send("\r\n".join(lines).encode())
    answer = await wire.answer()
    assert answer.fields.get("connection") == said
    if kept:
        await wire.send(GET)
        assert (await wire.answer()).status == 200
    else:
        assert await wire.read() == b""


async def test_version_1_0_without_length_is_delimited_by_the_end(upstream: Upstream, wire: Wire) -> None:
    """An HTTP/1.0 client gets no chunks: if Ollama gives no length, the end of the connection ends the content."""
    upstream.answers(stream_head(b"application/json"), chunk(b"1"), chunk(b"2"), LAST_CHUNK)
    await wire.send(b"GET /api/version HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    answer = await wire.answer()
    assert (answer.fields.get("connection"), answer.content, answer.whole) == ("close", b"12", True)
    assert "transfer-encoding" not in answer.fields


async def test_cut_answer_of_version_1_0_is_a_reset(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """Where the end of the connection is the content's, content that broke off ends in a reset instead."""
    upstream.answers(stream_head(b"application/json"), chunk(b"1"), NEXT, CUT)
    await wire.send(b"GET /api/version HTTP/1.0\r\n\r\n")
    await wire.read_until(b"\r\n\r\n1")
    upstream.proceed()
    with pytest.raises(ConnectionResetError):
        await wire.read()
    assert outcomes(gateway) == [("allowed", "upstream_closed", "upstream/content")]


async def test_last_answer_survives_what_follows(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """A client that goes on sending behind its last request gets the whole answer, and no reset in its place."""
    upstream.answers(ok(bytes(300_000)))
    await wire.send(b"GET /api/version HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + CHUNKED + LAST_CHUNK + GET * 20)
    answers = [await wire.answer(), await wire.answer()]
    assert [len(answer.content) for answer in answers] == [300_000, 300_000]
    assert await wire.read() == b""
    assert [client.mode.name for client in gateway.clients.connections] == ["LINGER"]
    assert len(upstream.requests) == 2


@pytest.mark.parametrize(
    ("last", "status"),
    [
        pytest.param(CHUNKED + LAST_CHUNK, 200, id="served"),
        pytest.param(CHUNKED.replace(b"/api/show", b"/api/push") + LAST_CHUNK, 403, id="refused"),
        pytest.param(GET.replace(b"mac", b"a b"), 400, id="doubtful"),
        pytest.param(GET.replace(b"1.1", b"2.0"), 505, id="version"),
    ],
)
async def test_last_answer_survives_what_follows_later(
    gateway: Proxy, upstream: Upstream, wire: Wire, last: bytes, status: int
) -> None:
    """So does one whose next request comes when the connection has ended already: it couldn't know."""
    upstream.answers(ok())
    await wire.send(last)
    await gateway.lines(1)
    assert [client.mode.name for client in gateway.clients.connections] == ["LINGER"]
    await wire.send(GET)
    assert (await wire.answer()).status == status
    assert await wire.read() == b""
    assert len(gateway.audit) == 1


async def test_last_answer_survives_content_that_nobody_read(gateway: Proxy, wire: Wire) -> None:
    """So does one whose client has said that nothing follows, but whose refused content is still to come."""
    head = b"POST /api/push HTTP/1.1\r\nHost: mac\r\nConnection: close\r\nContent-Length: 9\r\n\r\n"
    await wire.send(head + b"{")
    assert (await wire.answer()).status == 403
    assert await wire.read() == b""
    assert [client.mode.name for client in gateway.clients.connections] == ["LINGER"]


async def test_mistake_of_ours_ends_an_exchange(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """A connection that fails over a mistake of ours is reset, and its exchange has a line that says so."""
    upstream.answers(HANG)
    await wire.send(GET)
    await until(lambda: upstream.requests)
    (client,) = gateway.clients.connections
    client.failed()
    with pytest.raises(ConnectionResetError):
        await wire.read()
    (line,) = await gateway.lines()
    assert (line["reason"], line["ended"]) == ("internal", "proxy/wait")


async def test_client_that_sends_no_more_is_not_waited_for(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """Behind a request that says `Connection: close` nothing follows, so its connection is closed at once."""
    upstream.answers(ok())
    await wire.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    await until(lambda: not gateway.clients.connections)
    assert (await wire.answer()).status == 200


async def test_chunked_request_closes(upstream: Upstream, wire: Wire) -> None:
    """After chunked content the connection ends: its trailer would become a field of the next request."""
    upstream.answers(ok())
    await wire.send(CHUNKED + b"2\r\n{}\r\n0\r\nOrigin: http://evil.example\r\n\r\n" + FORBIDDEN)
    answer = await wire.answer()
    assert (answer.status, answer.fields["connection"]) == (200, "close")
    assert await wire.read() == b""
    assert len(upstream.requests) == 1


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_octets", "status"),
    [
        pytest.param(b"POST /api/pull HTTP/1.1\r\nHost: mac\r\nContent-Length: 1000\r\n\r\n", 403, id="path"),
        pytest.param(b"POST /v1/models HTTP/1.1\r\nHost: mac\r\nContent-Length: 1000\r\n\r\n", 405, id="method"),
        pytest.param(b"POST /api/show HTTP/1.1\r\nHost: a.b\r\nContent-Length: 1000\r\n\r\n", 403, id="host"),
        pytest.param(b"POST /api/show HTTP/1.1\r\nHost: mac\r\nContent-Length: 99999999\r\n\r\n", 413, id="length"),
        pytest.param(CHUNKED.replace(b"/api/show", b"/api/push"), 403, id="chunked"),
        pytest.param(b"OPTIONS /api/show HTTP/1.1\r\nHost: mac\r\n\r\n", 405, id="options"),
    ],
)
async def test_refused_before_the_content(
    gateway: Proxy, upstream: Upstream, wire: Wire, request_octets: bytes, status: int
) -> None:
    """A refusal waits for no byte of content, and opens no connection to Ollama."""
    await wire.send(request_octets)
    answer = await wire.answer()
    assert (answer.status, answer.whole) == (status, True)
    assert ("allow" in answer.fields) is (status == 405)
    assert not upstream.peers
    (line,) = gateway.audit
    assert (line["status"], line["bytes_in"], line["verdict"]) == (status, 0, "refused")


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
async def test_refused_upload_gets_its_answer(gateway: Proxy, wire: Wire, chunked: bool) -> None:
    """A client that sends 16 MiB before it reads gets its refusal and a clean end, not a reset that eats it."""
    if chunked:
        octets = CHUNKED.replace(b"show", b"push") + chunk(bytes(2**20)) * 16 + LAST_CHUNK
    else:
        octets = post(bytes(16 * 2**20), "/api/push")
    await wire.send(octets)
    answer = await wire.answer()
    assert (answer.status, answer.whole, answer.fields["connection"]) == (403, True, "close")
    assert await wire.read() == b""
    wire.close()
    await until(lambda: not gateway.clients.connections)
    assert len(gateway.audit) == 1


async def test_refused_with_all_its_content_is_kept(upstream: Upstream, wire: Wire) -> None:
    """A refusal whose content came along costs the client no connection."""
    upstream.answers(ok())
    await wire.send(post(b"{}", "/api/pull"))
    assert (await wire.answer()).fields.get("connection") is None
    await wire.send(GET)
    assert (await wire.answer()).status == 200


async def test_what_follows_a_last_answer_is_not_served(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """What a client sends after the answer that ends its connection is thrown away."""
    await wire.send(post(b"", "/api/push").replace(b"Length: 0", b"Length: 9999"))
    await wire.answer()
    await wire.send(GET * 3)
    assert await wire.read() == b""
    wire.close()
    await until(lambda: not gateway.clients.connections)
    assert (len(upstream.peers), len(gateway.audit)) == (0, 1)


async def test_what_cannot_be_judged(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """A fault of our own over a request refuses it, with an answer, a line, and a word to the owner."""

    class Broken:
        def rows(self, path: str) -> None:
            raise RuntimeError("secret")

    gateway.gateway.policy = Broken()  # type: ignore[assignment]
    await wire.send(GET)
    answer = await wire.answer()
    assert (answer.status, answer.fields["x-should-retry"]) == (500, "false")
    assert b"secret" not in answer.content
    assert outcomes(gateway) == [("refused", "internal", "complete")]
    assert [note["event"] for note in gateway.notes] == ["internal"]
    assert not upstream.peers


# --- content ----------------------------------------------------------------------------------------------------------


async def test_chunks_are_counted(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """Chunked content over `max_body` is refused when it gets there, and Ollama sees no whole request."""
    gateway.limit(max_body=100_000)
    await wire.send(CHUNKED + chunk(bytes(50_000)))
    await until(lambda: upstream.peers and upstream.peers[0].octets)  # no sooner is the proxy's own side connected
    await wire.send(chunk(bytes(50_001)))
    answer = await wire.answer()
    assert (answer.status, answer.fields["connection"]) == (413, "close")
    assert not upstream.requests
    assert [(line["status"], line["reason"], line["ended"]) for line in await gateway.lines()] == [
        (413, "content_too_large", "downstream/request")
    ]
    await until(upstream.peers[0].closed.is_set)


async def test_chunks_of_exactly_the_limit(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """Content of `max_body` bytes passes, however it is framed."""
    gateway.limit(max_body=100_000)
    upstream.answers(ok())
    await wire.send(CHUNKED + chunk(bytes(50_000)) * 2 + LAST_CHUNK)
    assert (await wire.answer()).status == 200


@pytest.mark.parametrize(("size", "status"), [(10, 200), (11, 413)], ids=["largest", "too_large"])
async def test_chunks_that_come_with_their_head(
    gateway: Proxy, upstream: Upstream, wire: Wire, size: int, status: int
) -> None:
    """Chunked content is counted, too, where all of it is there before the request is admitted."""
    gateway.limit(max_body=10)
    upstream.answers(ok())
    await wire.send(CHUNKED + chunk(bytes(size)) + LAST_CHUNK)
    assert (await wire.answer()).status == status
    assert len(upstream.requests) == (status == 200)


@pytest.mark.parametrize(
    "flood",
    [
        pytest.param(b"1;" + b"x" * (FRAMING_LIMIT + 100), id="one_endless_extension"),
        pytest.param(b"1;%b\r\nx\r\n" % (b"x" * 4000) * 40, id="an_extension_to_each_chunk"),
        pytest.param(b"0" * (FRAMING_LIMIT + 100) + b"1", id="leading_zeros"),
    ],
)
async def test_chunk_framing_is_bounded(gateway: Proxy, upstream: Upstream, wire: Wire, flood: bytes) -> None:
    """Framing without content ends the request: chunk extensions can't occupy Ollama's slot."""
    await wire.send(CHUNKED)
    await until(lambda: upstream.peers and upstream.peers[0].octets)
    await wire.send(flood)
    assert (await wire.answer()).status == 400
    assert not upstream.requests
    (line,) = await gateway.lines()
    assert (line["reason"], line["ended"]) == ("malformed", "downstream/request")


async def test_small_chunks_pass(upstream: Upstream, wire: Wire) -> None:
    """Chunks of one byte, six of framing to each, are no flood."""
    upstream.answers(ok())
    await wire.send(CHUNKED + chunk(b"x") * 50_000 + LAST_CHUNK)
    assert (await wire.answer()).status == 200


@pytest.mark.parametrize("octets", [b"zz\r\n", b"2\r\n{}X", b"2\n{}\r\n"], ids=["size", "end", "bare_lf"])
async def test_broken_chunk(gateway: Proxy, upstream: Upstream, wire: Wire, octets: bytes) -> None:
    """When chunked content breaks, the client gets an error, and Ollama never sees a complete request."""
    await wire.send(CHUNKED + chunk(b"{"))
    await until(lambda: upstream.peers and upstream.peers[0].octets.endswith(b"{\r\n"))
    await wire.send(octets)
    answer = await wire.answer()
    assert (answer.status, answer.fields["connection"]) == (400, "close")
    await until(upstream.peers[0].closed.is_set)
    assert not upstream.requests
    assert outcomes(gateway) == [("allowed", "malformed", "downstream/request")]


async def test_broken_chunk_within_the_answer(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """When chunked content breaks after Ollama has begun to answer, the answer is visibly cut."""
    upstream.early = True
    upstream.answers(stream_head(), chunk(b"data: {}\n\n"), HANG)
    await wire.send(CHUNKED + chunk(b"{"))
    await wire.read_until(b"data: {}\n\n\r\n")
    await wire.send(b"zz\r\n")
    assert not (await wire.read_until_closed()).endswith(LAST_CHUNK)
    assert outcomes(gateway) == [("allowed", "malformed", "downstream/content")]


# --- Expect -----------------------------------------------------------------------------------------------------------

EXPECTING = b"POST /api/show HTTP/1.1\r\nHost: mac\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"


async def test_content_that_is_whole_is_never_held(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """Once all content has come there is nothing to hold back, and the client is read on, to see it leave."""
    upstream.answers(HANG)
    await wire.send(post(b"{}"))
    await until(lambda: upstream.requests)
    (client,) = gateway.clients.connections
    client.hold()
    assert not client.unread
    assert not client.held


async def test_expectation_is_met(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """A client that waits to be asked for its content is asked, by us and not by Ollama, which never hears of it."""
    upstream.answers(ok(b"!"))
    await wire.send(EXPECTING)
    assert await wire.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await wire.send(b"{}")
    answer = await wire.answer()
    assert (answer.status, answer.content) == (200, b"!")
    assert b"xpect" not in upstream.requests[0]
    assert [line["ended"] for line in gateway.audit] == ["complete"]


@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(EXPECTING + b"{}", id="content_came_along"),
        pytest.param(EXPECTING.replace(b"Length: 2", b"Length: 0"), id="no_content"),
        pytest.param(GET[:-2] + b"Expect: 100-continue\r\n\r\n", id="no_length"),
        pytest.param(EXPECTING.replace(b"1.1", b"1.0"), id="http_1_0"),
    ],
)
async def test_nobody_is_asked_in_vain(upstream: Upstream, wire: Wire, octets: bytes) -> None:
    """No 100 goes to a client that waits for none: its content is there, or it is too old (RFC 9110, 10.1.1)."""
    upstream.answers(ok())
    await wire.send(octets)
    await until(lambda: upstream.peers)
    await wire.send(b"{}" if b"1.0" in octets else b"")
    assert (await wire.answer()).status == 200


@pytest.mark.parametrize(
    ("octets", "status"),
    [
        pytest.param(EXPECTING.replace(b"100-continue", b"200-maybe"), 417, id="unknown"),
        pytest.param(EXPECTING.replace(b"/api/show", b"/api/pull"), 403, id="refused"),
        pytest.param(EXPECTING.replace(b": 2", b": 999999999"), 413, id="too_large"),
    ],
)
async def test_refused_expectation(upstream: Upstream, wire: Wire, octets: bytes, status: int) -> None:
    """A refusal is the answer to an expectation, and ends the connection: nobody knows whether content will come."""
    await wire.send(octets)
    answer = await wire.answer()
    assert (answer.status, answer.fields["connection"]) == (status, "close")
    assert await wire.read() == b""
    assert not upstream.peers


# --- what is no request -----------------------------------------------------------------------------------------------


def neutral(answer: Answer) -> bool:
    """Return whether `answer` reads as OpenAI's error and as Anthropic's."""
    content = json.loads(answer.content)
    return content["type"] == "error" and content["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("octets", "status", "reason"),
    [
        pytest.param(b"garbage\r\n\r\n", 400, "malformed", id="garbage"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), 400, "malformed", id="tls"),
        pytest.param(b"GET /%b HTTP/1.1\r\nHost: mac\r\n\r\n" % (b"x" * 70_000), 414, "target_too_long", id="target"),
        pytest.param(GET[:-2] + b"A: %b\r\n\r\n" % (b"x" * 70_000), 431, "head_too_large", id="field"),
        pytest.param(b"GET http://[fe80::1%25eth0]@ HTTP/1.1\r\nHost: mac\r\n\r\n", 400, "malformed", id="yarl"),
        pytest.param(GET + b"garbage\r\n\r\n", 400, "malformed", id="garbage_in_the_same_read"),
    ],
)
async def test_malformed(
    gateway: Proxy, upstream: Upstream, wire: Wire, octets: bytes, status: int, reason: str
) -> None:
    """What makes no request gets one answer, neutral in kind, one line and a clean end, whatever else it sends."""
    await wire.send(octets)
    await wire.send(b"more garbage\r\n\r\n" * 5)
    answer = await wire.answer()
    assert (answer.status, answer.fields["connection"], neutral(answer)) == (status, "close", True)
    assert "x-request-id" in answer.fields
    assert await wire.read() == b""
    wire.close()
    await until(lambda: not gateway.clients.connections)
    (line,) = gateway.audit
    assert (line["status"], line["reason"], line["ended"]) == (status, reason, "proxy/head")
    assert "path" not in line
    assert not upstream.peers


async def test_tls_is_told_to_the_owner(gateway: Proxy, wire: Wire) -> None:
    """A client that speaks TLS can't read our answer, so the diagnostics say what to change at it."""
    await wire.send(b"\x16\x03\x01\x00\x05hello")
    await gateway.lines()
    assert gateway.notes == [
        {
            "event": "tls_on_plain_port",
            "peer": "127.0.0.1",
            "hint": "use http:// instead of https:// in that client",
        }
    ]


async def test_time_of_a_malformed_request_is_its_own(
    gateway: Proxy, upstream: Upstream, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long a connection was idle doesn't count for what comes then."""
    upstream.answers(ok())
    await wire.send(GET)
    await wire.answer()
    start = monotonic()
    monkeypatch.setattr("proxy.exchange.client.connection.monotonic", lambda: start + 50)
    monkeypatch.setattr("proxy.exchange.message.exchange.monotonic", lambda: start + 50.5)
    await wire.send(b"garbage\r\n\r\n")
    await wire.answer()
    assert gateway.audit[1]["total_ms"] == pytest.approx(500)


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "reset"])
@pytest.mark.parametrize("octets", [b"G", GET[:-2], GET + GET[:-2]], ids=["octet", "head", "second_head"])
async def test_leaving_inside_a_head(
    gateway: Proxy, upstream: Upstream, wire: Wire, octets: bytes, reset: bool
) -> None:
    """A client that leaves inside a head leaves a line."""
    upstream.answers(ok())
    whole = octets.count(GET)
    await wire.send(octets)
    for _ in range(whole):
        await wire.answer()
    await until(lambda: [client.mode.name for client in gateway.clients.connections] == ["HEAD"])
    wire.close(reset=reset)
    await until(lambda: not gateway.clients.connections)
    assert outcomes(gateway)[whole:] == [("refused", "malformed", "downstream/head")]


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "reset"])
@pytest.mark.parametrize("octets", [b"", b"\r\n\r\n"], ids=["no_octet", "empty_lines"])
async def test_leaving_without_a_word(gateway: Proxy, wire: Wire, octets: bytes, reset: bool) -> None:
    """A connection that never began a request leaves no line."""
    await wire.send(octets)
    await until(lambda: gateway.clients.connections)
    wire.close(reset=reset)
    await until(lambda: not gateway.clients.connections)
    assert not gateway.audit


async def test_leaving_before_we_look(gateway: Proxy, upstream: Upstream) -> None:
    """A connection that is reset before it is taken in is nobody's fault, and leaves no line."""
    with socket.create_connection(("127.0.0.1", gateway.port)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    upstream.answers(ok())
    wire = await gateway.connect()
    await wire.send(GET)
    assert (await wire.answer()).status == 200
    await until(lambda: len(gateway.clients.connections) == 1)
    assert [line["verdict"] for line in gateway.audit] == ["allowed"]
    wire.close()


async def test_half_close_without_an_exchange(gateway: Proxy, wire: Wire) -> None:
    """A client that ends its side after it was answered gets all of what was written."""
    await wire.send(FORBIDDEN * 50)
    wire.half_close()
    assert (await wire.read_until_closed()).count(b"HTTP/1.1 403") == 50
    await until(lambda: not gateway.clients.connections)


# --- CORS -------------------------------------------------------------------------------------------------------------


async def test_preflight(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """A browser's preflight of an allowed Origin is answered here, and its request and refusals name the Origin too."""
    upstream.answers(ok())
    origin = "http://localhost:3000"
    await wire.request(
        "OPTIONS",
        "/v1/chat/completions",
        Origin=origin,
        Access_Control_Request_Method="POST",
        Access_Control_Request_Headers="x-api-key, content-type",
    )
    answer = await wire.answer()
    assert (answer.status, answer.fields["access-control-allow-headers"]) == (204, "x-api-key, content-type")
    assert not upstream.peers
    await wire.request("POST", "/v1/chat/completions", b"{}", Origin=origin)
    await wire.request("POST", "/api/pull", b"{}", Origin=origin)
    named = [(await wire.answer()).fields["access-control-allow-origin"] for _ in range(2)]
    assert [answer.fields["access-control-allow-origin"], *named] == [origin] * 3
    assert [line["verdict"] for line in gateway.audit] == ["preflight", "allowed", "refused"]
    assert b"rigin" not in upstream.requests[0]


@pytest.mark.parametrize(
    ("octets", "status"),
    [
        pytest.param(GET.replace(b"version", b"push"), 403, id="refusal"),
        pytest.param(
            b"OPTIONS /x HTTP/1.1\r\nHost: mac\r\nOrigin: http://localhost\r\n"
            b"Access-Control-Request-Method: GET\r\n\r\n",
            204,
            id="preflight",
        ),
    ],
)
async def test_line_of_an_answer_of_ours(gateway: Proxy, wire: Wire, octets: bytes, status: int) -> None:
    """The line of an answer that the proxy makes itself has its status, the size of its content, and its time."""
    await wire.send(octets)
    answer = await wire.answer()
    (line,) = await gateway.lines()
    assert (answer.status, line["status"], line["bytes_out"]) == (status, status, len(answer.content))
    assert "first_byte_ms" in line


async def test_foreign_preflight(upstream: Upstream, wire: Wire) -> None:
    """A page of another Origin learns nothing from its preflight."""
    await wire.request("OPTIONS", "/v1/models", Origin="http://evil.example", Access_Control_Request_Method="GET")
    answer = await wire.answer()
    assert answer.status == 403
    assert not [name for name in answer.fields if name.startswith("access-control")]
    assert not upstream.peers


async def test_repr_tells_the_state(gateway: Proxy, wire: Wire) -> None:
    """A connection shows what it is doing and whose it is."""
    await wire.send(b"GET")
    await until(lambda: [client.mode.name for client in gateway.clients.connections] == ["HEAD"])
    (client,) = gateway.clients.connections
    requests = "<RequestParser 0 waiting, the last with 0 bytes of content>"
    assert repr(client) == f"<Connection HEAD 127.0.0.1:{client.peer_port}, {requests}>"


async def test_lines_come_in_the_order_of_the_ends(wire_to_nothing: tuple[Proxy, Wire]) -> None:
    """Pipelined requests, of which Ollama fails some and the gate refuses some, have their lines in their order."""
    proxy, wire = wire_to_nothing
    await wire.send(GET + FORBIDDEN + GET)
    assert [(await wire.answer()).status for _ in range(3)] == [502, 403, 502]
    assert [line["status"] for line in await proxy.lines(3)] == [502, 403, 502]
    ids = [line["id"] for line in proxy.audit]
    assert ids == sorted(ids)


@pytest.fixture
async def wire_to_nothing() -> AsyncIterator[tuple[Proxy, Wire]]:
    """Give a gateway before an Ollama that isn't running, and a client of it."""
    proxy = Proxy(free_port())
    await proxy.start()
    yield proxy, await proxy.connect()
    await proxy.stop()
