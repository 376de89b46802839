"""One exchange through the whole gateway: what goes up, what comes down, byte for byte, and what the audit says."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from contextlib import asynccontextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
from orjson import dumps

from proxy.exchange.message.exchange import Outcome, Party
from proxy.exchange.message.failures import Unreachable, UpstreamFailure
from proxy.exchange.message.upload import HELD_FOR, WINDOW
from proxy.exchange.relay import Relay
from proxy.exchange.streams import Answer, Events
from proxy.exchange.upstream.target import Target
from proxy.exchange.upstream.upstream import GRACE
from proxy.policy.refusals import DRAINING, INTERNAL, MALFORMED, Reason
from proxy.policy.replies import STREAM_FAILURES, cors_fields, error_event
from proxy.policy.routes import ROUTES, Dialect
from tests.support.ollama_recordings import recording
from tests.support.one_exchange import Alone, turns
from tests.support.ports import free_port
from tests.support.raw_http import (
    CLOSE,
    CUT,
    HANG,
    LAST_CHUNK,
    NEXT,
    Proxy,
    Upstream,
    Wire,
    chunk,
    ok,
    stream_head,
    until,
    within,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.raw_http import Step

CHAT = b'{"model":"m","messages":[]}'
STREAM = (stream_head(), chunk(b'data: {"model":"m"}\n\n'), chunk(b"data: [DONE]\n\n"), LAST_CHUNK)
STREAMED = b'data: {"model":"m"}\n\ndata: [DONE]\n\n'
EVERYTHING = tuple(route.name for route in ROUTES if route.opt_in)


@asynccontextmanager
async def serving(upstream: Upstream | int, **options: Any) -> AsyncIterator[tuple[Proxy, Wire]]:
    """Give a gateway of these settings before an upstream or a port, and a client of it."""
    proxy = Proxy(upstream if isinstance(upstream, int) else upstream.port, **options)
    await proxy.start()
    client = await proxy.connect()
    try:
        yield proxy, client
    finally:
        client.close()
        await proxy.stop()


def ended(line: dict[str, Any]) -> tuple[str | None, str | None]:
    """Return how an exchange ended, and why."""
    return line.get("ended"), line.get("reason")


async def test_small_answer(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """An allowed request reaches Ollama with a Host of its own, and the answer comes back whole."""
    upstream.answers(ok(b'{"version":"1"}'))
    await wire.request("GET", "/api/version")
    answer = await wire.answer()
    assert (answer.status, answer.content, answer.whole) == (200, b'{"version":"1"}', True)
    assert b"\r\nHost: 127.0.0.1:%d\r\n" % upstream.port in upstream.requests[0]
    (line,) = await gateway.lines()
    assert line["ended"] == "complete"


async def test_cut_upstream_is_not_a_clean_end(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """When the upstream dies inside a stream, the client gets the reason and no clean end."""
    upstream.answers(stream_head(), chunk(b'data: {"model":"m"}\n\n'), CUT)
    await wire.request("POST", "/v1/chat/completions", b"{}")
    answer = await wire.answer()
    assert not answer.whole
    assert answer.content.startswith(b'data: {"model":"m"}\n\ndata: {"error":{"message":"Ollama stopped')
    (line,) = await gateway.lines()
    assert (line["ended"], line["reason"], line["model"]) == ("upstream/content", "upstream_closed", "m")


async def test_keep_alive(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """One connection on either side serves one exchange after the other."""
    upstream.answers_in_turn((ok(b"1"),), (stream_head(), chunk(b"data: [DONE]\n\n"), LAST_CHUNK), (ok(b"3"),))
    contents = []
    for method, target, content in (
        ("GET", "/api/tags", None),
        ("POST", "/v1/chat/completions", b"{}"),
        ("GET", "/v1/models", None),
    ):
        await wire.request(method, target, content)
        contents.append((await wire.answer()).content)
    assert contents == [b"1", b"data: [DONE]\n\n", b"3"]
    assert len(upstream.peers) == 1


# --- framing ----------------------------------------------------------------------------------------------------------

HEAD_1_1 = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


@pytest.mark.parametrize(
    ("script", "expected", "framing"),
    [
        pytest.param((HEAD_1_1 + b"Content-Length: 5\r\n\r\nhello",), b"hello", "content-length", id="length"),
        pytest.param((HEAD_1_1 + b"Content-Length: 0\r\n\r\n",), b"", "content-length", id="length_zero"),
        pytest.param(
            (stream_head(b"text/plain"), chunk(b"he"), chunk(b"llo"), LAST_CHUNK),
            b"hello",
            "transfer-encoding",
            id="chunks",
        ),
        pytest.param((stream_head(b"text/plain"), LAST_CHUNK), b"", "transfer-encoding", id="no_chunk"),
        pytest.param(
            (stream_head(b"text/plain"), b"5;a=b\r\nhello\r\n0\r\nX-Late: 1\r\n\r\n"),
            b"hello",
            "transfer-encoding",
            id="extension_and_trailer",
        ),
        pytest.param((HEAD_1_1 + b"\r\n", b"hello", CLOSE), b"hello", "transfer-encoding", id="until_the_end"),
        pytest.param(
            (HEAD_1_1.replace(b"1.1", b"1.0") + b"\r\nhello", CLOSE), b"hello", "transfer-encoding", id="http_1_0"
        ),
        pytest.param(
            (HEAD_1_1.replace(b"1.1", b"1.0") + b"Content-Length: 5\r\n\r\nhello", CLOSE),
            b"hello",
            "content-length",
            id="http_1_0_length",
        ),
        pytest.param(
            (HEAD_1_1 + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello", CLOSE),
            b"hello",
            "content-length",
            id="close",
        ),
        pytest.param(
            (b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD_1_1 + b"Content-Length: 5\r\n\r\nhello",),
            b"hello",
            "content-length",
            id="interim",
        ),
    ],
)
async def test_framing(
    gateway: Proxy, upstream: Upstream, wire: Wire, script: tuple[bytes | Step, ...], expected: bytes, framing: str
) -> None:
    """A length stays a length, all else becomes chunks; either way the client's connection serves on."""
    upstream.answers_in_turn(script, (ok(b"next"),))
    await wire.request("GET", "/api/tags")
    answer = await wire.answer()
    assert (answer.content, answer.whole) == (expected, True)
    assert [name for name in ("content-length", "transfer-encoding") if name in answer.fields] == [framing]
    assert "connection" not in answer.fields
    await wire.request("GET", "/api/tags")
    assert (await wire.answer()).content == b"next"
    assert [ended(line) for line in await gateway.lines(2)] == [("complete", None)] * 2


@pytest.mark.parametrize(
    ("method", "target", "answer", "fields"),
    [
        pytest.param(
            "HEAD",
            "/api/version",
            b"HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\n",
            {"content-length": "21"},
            id="head",
        ),
        pytest.param("HEAD", "/", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", {}, id="head_chunked"),
        pytest.param("HEAD", "/api/tags", b"HTTP/1.1 200 OK\r\n\r\n", {}, id="head_without_framing"),
        pytest.param("GET", "/api/tags", b"HTTP/1.1 204 No Content\r\n\r\n", {}, id="204"),
        pytest.param("GET", "/api/tags", b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", {}, id="204_length"),
        pytest.param("GET", "/api/tags", b"HTTP/1.1 304 Not Modified\r\n\r\n", {}, id="304"),
        pytest.param(
            "GET",
            "/api/tags",
            b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
            {"content-length": "9"},
            id="304_length",
        ),
    ],
)
@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_without_content(
    upstream: Upstream, method: str, target: str, answer: bytes, fields: dict[str, str], version: str
) -> None:
    """An answer that has no content by definition ends with its head, and the connection serves on (RFC 9112, 6.3)."""
    upstream.answers_in_turn((answer,), (ok(b"next"),))
    async with serving(upstream, allow=EVERYTHING) as (proxy, wire):
        keep = "Connection: keep-alive\r\n" if version == "1.0" else ""
        for asked in (f"{method} {target}", "GET /api/version"):
            await wire.send(f"{asked} HTTP/{version}\r\nHost: mac\r\n{keep}\r\n".encode())
        got = await wire.answer(to_head=method == "HEAD")
        framing = {name: got.fields[name] for name in ("content-length", "transfer-encoding") if name in got.fields}
        assert (got.status, framing) == (int(answer[9:12]), fields)
        assert (await wire.answer()).content == b"next"
        lines = await proxy.lines(2)
        assert (ended(lines[0]), lines[0]["bytes_out"]) == (("complete", None), 0)


async def test_chunk_for_chunk(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """What one read from Ollama brings goes to the client at once, before Ollama says more."""
    upstream.answers(
        stream_head(),
        NEXT,
        chunk(b'data: {"model":"m"}\n\n'),
        NEXT,
        chunk(b"data: ["),
        NEXT,
        chunk(b"DONE]\n\n"),
        LAST_CHUNK,
    )
    await wire.request("POST", "/v1/chat/completions", CHAT)
    assert (await wire.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
    for expected in (chunk(b'data: {"model":"m"}\n\n'), chunk(b"data: ["), chunk(b"DONE]\n\n")):
        upstream.proceed()
        assert await wire.read(len(expected)) == expected
    assert await wire.read(5) == LAST_CHUNK


async def test_encoded_stream(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """An encoded stream can't be read in passing: it passes as it is, and no terminator is missed."""
    head = stream_head().replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
    upstream.answers(head, chunk(b"\x1f\x8b\x00"), LAST_CHUNK)
    await wire.request("POST", "/v1/chat/completions", CHAT)
    answer = await wire.answer()
    assert (answer.content, answer.whole, answer.fields["content-encoding"]) == (b"\x1f\x8b\x00", True, "gzip")
    (line,) = await gateway.lines()
    assert (ended(line), line["model"], line.get("events")) == (("complete", None), "m", None)


@pytest.mark.parametrize("keep", [True, False], ids=["keep_alive", "close"])
async def test_http_1_0_with_a_length(gateway: Proxy, upstream: Upstream, wire: Wire, keep: bool) -> None:
    """An HTTP/1.0 client keeps its connection if it asks for that and the content has a length (RFC 9112, C.2.2)."""
    upstream.answers(ok(b"hello"))
    for _ in range(2 if keep else 1):
        await wire.send(b"GET /api/tags HTTP/1.0\r\n" + (b"Connection: keep-alive\r\n" if keep else b"") + b"\r\n")
        answer = await wire.answer()
        assert (answer.content, answer.fields["connection"]) == (b"hello", "keep-alive" if keep else "close")
        assert answer.head.startswith(b"HTTP/1.1 200 OK\r\n")
    if not keep:
        assert await wire.read_until_closed() == b""


@pytest.mark.parametrize("keep", [True, False], ids=["keep_alive", "close"])
async def test_http_1_0_stream(gateway: Proxy, upstream: Upstream, wire: Wire, keep: bool) -> None:
    """An HTTP/1.0 client knows no chunks: a stream ends with its connection, even if that should be kept."""
    upstream.answers(*STREAM)
    lines = [b"POST /v1/chat/completions HTTP/1.0", b"Content-Length: %d" % len(CHAT)]
    await wire.send(b"\r\n".join(lines + [b"Connection: keep-alive"] * keep) + b"\r\n\r\n" + CHAT)
    answer = await wire.answer()
    assert (answer.content, answer.whole, answer.fields["connection"]) == (STREAMED, True, "close")
    assert not {"content-length", "transfer-encoding"} & set(answer.fields)
    assert b" HTTP/1.1\r\n" in upstream.requests[0]
    assert b"\r\nVia: 1.0 remote-ollama-proxy\r\n" in upstream.requests[0]


async def test_http_1_0_until_the_end(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """Content that ends with Ollama's connection ends with the client's too, where that knows no chunks."""
    upstream.answers(HEAD_1_1 + b"\r\nhello", NEXT, CLOSE)
    await wire.send(b"GET /api/tags HTTP/1.0\r\n\r\n")
    await wire.read_until(b"hello")
    upstream.proceed()
    assert await wire.read() == b""
    assert ended((await gateway.lines())[0]) == ("complete", None)


@pytest.mark.parametrize("script", [(CUT,), (CLOSE,), (LAST_CHUNK,)], ids=["reset", "fin", "no_terminator"])
async def test_http_1_0_cut_stream(
    gateway: Proxy, upstream: Upstream, wire: Wire, script: tuple[bytes | Step, ...]
) -> None:
    """Content that the connection's end delimits is cut with a reset: a mere end would read as its own."""
    upstream.answers(stream_head(), chunk(b'data: {"model":"m"}\n\n'), NEXT, *script)
    await wire.send(b"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (len(CHAT), CHAT))
    await wire.read_until(b"\n\n")
    upstream.proceed()
    with pytest.raises(ConnectionResetError):
        await wire.read()
    (line,) = await gateway.lines()
    assert line["ended"] == "upstream/content"


# --- fields -----------------------------------------------------------------------------------------------------------


async def test_cors_on_answers(upstream: Upstream) -> None:
    """A page of an allowed Origin may read forwarded answers; Ollama's own CORS fields never pass."""
    theirs = b"Access-Control-Allow-Origin: *\r\nAccess-Control-Allow-Credentials: true\r\nContent-Length: 2\r\n"
    upstream.answers(ok().replace(b"Content-Length: 2\r\n", theirs))
    async with serving(upstream, allowed_origins=("https://app.example",)) as (_, wire):
        await wire.request("GET", "/api/tags", Origin="https://app.example")
        answer = await wire.answer()
        assert answer.fields["access-control-allow-origin"] == "https://app.example"
        assert answer.fields["vary"] == "Origin"
        assert "x-request-id" in answer.fields["access-control-expose-headers"]
        assert answer.head.lower().count(b"access-control-") == 2
        assert answer.head.endswith(b"retry-after, x-should-retry\r\n\r\n")
        await wire.request("GET", "/api/tags")
        answer = await wire.answer()
        assert b"access-control-" not in answer.head.lower()
        assert "vary" not in answer.fields
    assert b"app.example" not in b"".join(upstream.requests)


@pytest.mark.parametrize(
    ("method", "target", "content", "names"),
    [
        ("GET", "/api/tags", None, ["x-request-id"]),
        ("POST", "/v1/chat/completions", b"{}", ["x-request-id"]),
        ("POST", "/v1/messages?beta=true", b"{}", ["x-request-id", "request-id"]),
    ],
)
async def test_request_ids(
    gateway: Proxy, upstream: Upstream, wire: Wire, method: str, target: str, content: bytes | None, names: list[str]
) -> None:
    """Every answer names its request in the field that its SDKs read, by the id that the audit has; Ollama's goes."""
    upstream.answers(ok().replace(b"\r\n\r\n", b"\r\nX-Request-Id: theirs\r\nRequest-Id: theirs\r\n\r\n"))
    seen = []
    for _ in range(2):
        await wire.request(method, target, content)
        answer = await wire.answer()
        assert [name for name in answer.fields if name.endswith("request-id")] == names
        seen.append({answer.fields[name] for name in names})
    assert seen == [{line["id"]} for line in await gateway.lines(2)]
    assert seen[0] != seen[1]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("abc-123.X~y", True),
        ("a" * 128, True),
        ("a" * 129, False),
        ("two words", False),
        ('"quoted"', False),
        ("a,b", False),
        ("\u00e9", False),
    ],
)
async def test_clients_request_id(gateway: Proxy, upstream: Upstream, wire: Wire, given: str, kept: bool) -> None:
    """A client's own request id is kept if it is a plain token of up to 128 characters."""
    upstream.answers(ok())
    await wire.request("GET", "/api/tags", X_Request_Id=given)
    answer = await wire.answer()
    assert (answer.fields["x-request-id"] == given) is kept
    assert (await gateway.lines())[0]["id"] == answer.fields["x-request-id"]


@pytest.mark.parametrize("forward", [False, True])
async def test_credentials(upstream: Upstream, forward: bool) -> None:
    """Credentials reach Ollama only if the owner wants them to."""
    upstream.answers(ok())
    async with serving(upstream, forward_credentials=forward) as (_, wire):
        await wire.request("GET", "/api/tags", Authorization="Bearer k", X_Api_Key="k", Cookie="k")
        await wire.answer()
    for line in (b"\r\nAuthorization: Bearer k\r\n", b"\r\nX-Api-Key: k\r\n", b"\r\nCookie: k\r\n"):
        assert (line in upstream.requests[0]) is forward


async def test_everything_else_passes(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """Target, query and end-to-end fields reach Ollama byte for byte."""
    upstream.answers(ok())
    line = b"GET /v1/models/a%3ab?x=%2F&&y HTTP/1.1\r\n"
    await wire.send(line + b"host: mac\r\nX-A:  1 \r\nx-a: \xff\r\nAnthropic-Beta: a,b\r\n\r\n")
    await wire.answer()
    fields = b"X-A: 1\r\nx-a: \xff\r\nAnthropic-Beta: a,b\r\nVia: 1.1 remote-ollama-proxy\r\n\r\n"
    assert upstream.requests[0] == line + b"Host: 127.0.0.1:%d\r\n" % upstream.port + fields


def test_authority() -> None:
    """An IPv6 address stands in brackets before its port (RFC 3986, 3.2.2)."""
    assert Target("::1", 11434, 5.0).authority == b"[::1]:11434"
    assert Target("127.0.0.1", 1, 5.0).authority == b"127.0.0.1:1"


# --- content of requests ----------------------------------------------------------------------------------------------


def dechunk(octets: bytes) -> bytes:
    """Return the content of whole chunks."""
    content = b""
    while size := int(octets[: octets.index(b"\r\n")], 16):
        start = octets.index(b"\r\n") + 2
        content += octets[start : start + size]
        octets = octets[start + size + 2 :]
    assert octets == LAST_CHUNK
    return content


@pytest.mark.parametrize("size", [0, 1, 1000, WINDOW, WINDOW + 1, 2**20])
async def test_content_with_a_length(gateway: Proxy, upstream: Upstream, wire: Wire, size: int) -> None:
    """Content of any size reaches Ollama byte for byte, with its length."""
    upstream.answers(ok(b"{}"))
    content = os.urandom(size)
    await wire.request("POST", "/v1/chat/completions", content)
    assert (await wire.answer()).status == 200
    head, _, got = upstream.requests[0].partition(b"\r\n\r\n")
    assert got == content
    assert b"\r\nContent-Length: %d" % size in head
    assert (await gateway.lines())[0]["bytes_in"] == size


@pytest.mark.parametrize("parts", [[], [b"a"], [b"ab", b"c" * 70000, b"\r\n0\r\n"], [b"x" * 50000] * 8])
async def test_chunked_content(gateway: Proxy, upstream: Upstream, wire: Wire, parts: list[bytes]) -> None:
    """Chunked content reaches Ollama in chunks of our own: same content, without extensions and trailers."""
    upstream.answers(ok(b"{}"))
    await wire.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: mac\r\nTransfer-Encoding: Chunked\r\n\r\n")
    for part in parts:
        await wire.send(b"%x;name=value\r\n%b\r\n" % (len(part), part))
    await wire.send(b"0\r\nX-Late: 1\r\n\r\n")
    answer = await wire.answer()
    assert (answer.status, answer.fields["connection"]) == (200, "close")
    head, _, got = upstream.requests[0].partition(b"\r\n\r\n")
    assert dechunk(got) == b"".join(parts)
    assert head.count(b"\r\nTransfer-Encoding: chunked") == 1
    assert b"content-length" not in head.lower()
    assert b"X-Late" not in upstream.requests[0]
    assert b"name=value" not in upstream.requests[0]
    assert await wire.read_until_closed() == b""


async def test_chunked_content_on_a_kept_connection(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """Chunks are sent on as they come, also where the connection to Ollama stands already."""
    upstream.answers(ok(b"{}"))
    await wire.request("GET", "/api/tags")
    await wire.answer()
    await wire.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: mac\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
    await until(lambda: len(gateway.audit) == 1)
    await wire.send(b"2\r\nbc\r\n")
    await wire.send(LAST_CHUNK)
    await wire.answer()
    assert dechunk(upstream.requests[1].partition(b"\r\n\r\n")[2]) == b"abc"
    assert len(upstream.peers) == 1


class Early:
    """An Ollama that answers as soon as it has a head, as it does where it refuses (wire facts 8.12)."""

    def __init__(self, answer: bytes, *, close: bool) -> None:
        self.answer = answer
        self.close = close
        self.connections = 0
        self.gone = asyncio.Event()

    async def start(self) -> int:
        """Listen; return the port."""
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self.server.sockets[0].getsockname()[1])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(self.answer)
        if not self.close:
            try:
                while await reader.read(65536):
                    pass
            except ConnectionError:
                pass
        self.gone.set()
        writer.close()


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("close", [False, True], ids=["stays_open", "closes"])
async def test_early_answer(chunked: bool, close: bool) -> None:
    """An answer that comes before all of the content is handed on; neither connection serves another request."""
    ollama = Early(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnope", close=close)
    async with serving(await ollama.start()) as (proxy, wire):
        framing = "Transfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n" if chunked else "Content-Length: 50\r\n\r\nfirst"
        await wire.send(f"POST /v1/chat/completions HTTP/1.1\r\nHost: mac\r\n{framing}".encode())
        answer = await wire.answer()
        assert (answer.status, answer.content, answer.fields["connection"]) == (404, b"nope", "close")
        await within(ollama.gone.wait())
        await wire.send(b"a\r\n0123456789\r\n" if chunked else b"0123456789")
        (line,) = await proxy.lines()
        assert (ended(line), line["status"], line["bytes_in"]) == (("complete", None), 404, 5)
        other = await proxy.connect()
        await other.request("GET", "/api/tags")
        assert (await other.answer()).status == 404
        other.close()
        assert ollama.connections == 2
    ollama.server.close()


# --- a kept connection that has gone stale ----------------------------------------------------------------------------


async def reused(wire: Wire) -> None:
    """Let one exchange pass, so that the next finds a connection that is kept."""
    await wire.request("GET", "/api/tags")
    assert (await wire.answer()).content == b"first"


@pytest.mark.parametrize("end", [CLOSE, CUT], ids=["fin", "reset"])
async def test_stale_connection(gateway: Proxy, upstream: Upstream, wire: Wire, end: Step) -> None:
    """A GET on a kept connection that Ollama closes without a byte is sent again, and the client doesn't notice."""
    upstream.answers_in_turn((ok(b"first"),), (end,), (ok(b"second"),))
    await reused(wire)
    await wire.request("GET", "/api/tags")
    answer = await wire.answer()
    assert (answer.status, answer.content, answer.whole) == (200, b"second", True)
    assert upstream.requests[1] == upstream.requests[2]
    assert len(upstream.peers) == 2
    assert ended((await gateway.lines(2))[1]) == ("complete", None)


@pytest.mark.parametrize("content", [b"", CHAT, b"x" * (WINDOW + 1)], ids=["empty", "small", "large"])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("end", [CLOSE, CUT], ids=["fin", "reset"])
async def test_a_post_is_never_sent_twice(
    gateway: Proxy, upstream: Upstream, wire: Wire, end: Step, chunked: bool, content: bytes
) -> None:
    """A POST that meets a closing connection fails (RFC 9110, 9.2.2), and its SDK is left free to ask again."""
    upstream.answers_in_turn((ok(b"first"),), (end,), (ok(b"repeated"),))
    await reused(wire)
    framing = b"Transfer-Encoding: chunked\r\n\r\n" + (chunk(content) if content else b"") + LAST_CHUNK
    if not chunked:
        framing = b"Content-Length: %d\r\n\r\n%b" % (len(content), content)
    await wire.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: mac\r\n" + framing)
    answer = await wire.answer()
    assert (answer.status, answer.whole) == (502, True)
    assert "x-should-retry" not in answer.fields
    assert b"try again" in answer.content
    assert len(upstream.requests) == 2
    assert ended((await gateway.lines(2))[1]) == ("upstream/wait", "upstream_closed")


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_never_repeated(gateway: Proxy, upstream: Upstream, wire: Wire, method: str) -> None:
    """A request is not sent again after a byte of a response, and the SDK is asked not to retry."""
    upstream.answers_in_turn((ok(b"first"),), (b"HTTP/1.1 2", CLOSE), (ok(b"repeated"),))
    await reused(wire)
    await wire.request(method, "/api/show" if method == "POST" else "/api/tags", b"{}" if method == "POST" else b"")
    answer = await wire.answer()
    assert (answer.status, answer.fields["x-should-retry"]) == (502, "false")
    assert len(upstream.requests) == 2
    assert ended((await gateway.lines(2))[1]) == ("upstream/wait", "upstream_closed")


async def test_a_fresh_connection_that_closes_is_no_reason_to_ask_again(
    gateway: Proxy, upstream: Upstream, wire: Wire
) -> None:
    """If Ollama closes a new connection without a byte, the request itself broke it."""
    upstream.answers(CLOSE)
    await wire.request("POST", "/v1/chat/completions", CHAT)
    answer = await wire.answer()
    assert (answer.status, answer.fields["x-should-retry"]) == (502, "false")


async def test_never_repeated_twice(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """A request is sent again once, never on a fresh connection that failed too."""
    upstream.answers_in_turn((ok(b"first"),), (CLOSE,), (CLOSE,), (ok(b"third"),))
    await reused(wire)
    await wire.request("GET", "/api/tags")
    assert (await wire.answer()).status == 502
    assert len(upstream.requests) == 3


async def test_never_repeated_late(
    gateway: Proxy, upstream: Upstream, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that was sent a while ago may have killed Ollama: it isn't sent again."""
    monkeypatch.setattr("proxy.exchange.relay.STALE_WITHIN", 0.0)
    upstream.answers_in_turn((ok(b"first"),), (CLOSE,), (ok(b"repeated"),))
    await reused(wire)
    await wire.request("GET", "/api/tags")
    assert (await wire.answer()).status == 502
    assert len(upstream.requests) == 2


async def test_never_repeated_when_let_go(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """A second after sending, the content is let go, the model it names remembered."""
    upstream.answers_in_turn((ok(b"first"),), (NEXT, CLOSE), (ok(b"repeated"),))
    await reused(wire)
    upstream.arrived.clear()
    await wire.request("POST", "/v1/chat/completions", CHAT)
    await within(upstream.arrived.wait())
    gateway.pass_time(1.5)
    upstream.proceed()
    assert (await wire.answer()).status == 502
    assert (await gateway.lines(2))[1]["model"] == "m"


async def test_idle_connection_that_ended(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """A kept connection that is seen to have ended isn't tried."""
    upstream.answers_in_turn((ok(b"first"), CLOSE), (ok(b"second"),))
    await reused(wire)
    await within(upstream.peers[0].closed.wait())
    await until(lambda: not len(gateway.pool))
    await wire.request("GET", "/api/tags")
    assert (await wire.answer()).content == b"second"
    assert len(upstream.requests) == 2


async def test_idle_connections_age(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """A connection to Ollama that nobody has used for a minute is closed."""
    upstream.answers(ok(b"first"))
    await reused(wire)
    gateway.pass_time(59)
    assert not upstream.peers[0].closed.is_set()
    gateway.pass_time(62)
    await within(upstream.peers[0].closed.wait())


async def test_surplus_connections(gateway: Proxy, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more idle connections are kept than the pool takes; the one idle for longest is closed."""
    monkeypatch.setattr("proxy.exchange.upstream.pool.MAX_IDLE", 1)
    upstream.answers(NEXT, ok(b"x"))
    clients = [await gateway.connect() for _ in range(2)]
    for number, client in enumerate(clients):
        await client.request("GET", "/api/tags")
        await until(lambda number=number: len(upstream.requests) == number + 1)
    upstream.proceed()
    upstream.proceed()
    for client in clients:
        assert (await client.answer()).content == b"x"
        client.close()
    await until(lambda: any(peer.closed.is_set() for peer in upstream.peers))
    assert len(gateway.pool) == 1


# --- Ollama is not there ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "content", "expected"),
    [
        ("/v1/chat/completions", CHAT, b'{"error":{"type":"api_error","message":"Ollama is not running'),
        ("/v1/messages", CHAT, b'{"type":"error","error":{"type":"api_error","message":"Ollama is not running'),
        ("/api/show", b"{}", b'{"error":"Ollama is not running'),
    ],
)
async def test_upstream_down(target: str, content: bytes, expected: bytes) -> None:
    """If nothing listens, the client gets a hint in its own format at once, and its SDK may retry."""
    port = free_port()
    async with serving(port) as (proxy, wire):
        await wire.request("POST", target, content)
        answer = await wire.answer()
        assert (answer.status, answer.whole) == (502, True)
        assert answer.content.startswith(expected)
        assert b"ollama serve" in answer.content
        assert "x-should-retry" not in answer.fields
        assert ended((await proxy.lines())[0]) == ("upstream/connect", "upstream_unreachable")
        ollama = Upstream()
        ollama.answers(ok(b"back"))
        await ollama.start(port)
        await wire.request("GET", "/api/tags")
        assert (await wire.answer()).content == b"back"
        await ollama.stop()


async def test_connect_timeout() -> None:
    """Where no connection comes about within `connect_timeout` the answer is 502, and asking again is no use."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        fillers = [socket.socket() for _ in range(4)]  # no connection more fits into the queue
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(sock.getsockname())
        async with serving(sock.getsockname()[1], connect_timeout=0.05) as (proxy, wire):
            await wire.request("POST", "/v1/chat/completions", CHAT)
            answer = await wire.answer()
            assert (answer.status, answer.fields["x-should-retry"]) == (502, "false")
            assert b"`connect_timeout`" in answer.content
            (line,) = await proxy.lines()
            assert ended(line) == ("upstream/connect", "upstream_timeout")
            assert line["model"] == "m"
        for filler in fillers:
            filler.close()


# --- what the audit says ----------------------------------------------------------------------------------------------

# target, recording, model, tokens in and out, events, whether it is a stream
TOLD: list[tuple[str, str, str, int | None, int | None, int | None, bool]] = [
    ("/v1/chat/completions", "chat-nonstream", "tiny", 4, 12, None, False),
    ("/v1/chat/completions", "chat-nonstream-large", "tiny", 7, 600, None, False),
    ("/v1/chat/completions", "chat-stream", "tiny", None, None, 14, True),
    ("/v1/chat/completions", "chat-stream-usage", "tiny", 4, 12, 15, True),
    ("/v1/responses", "responses-nonstream", "tiny", 4, 12, None, False),
    ("/v1/responses", "responses-stream", "tiny", 4, 12, 20, True),
    ("/v1/messages", "messages-nonstream", "tiny", 4, 12, None, False),
    ("/v1/messages", "messages-stream", "tiny", 4, 12, 17, True),
    ("/api/chat", "apichat-nonstream", "tiny", 4, 12, None, False),
    ("/api/chat", "apichat-stream", "tiny", 4, 12, 13, True),
    ("/api/generate", "generate-nonstream", "tiny", 4, 12, None, False),
    ("/api/generate", "generate-stream", "tiny", 4, 12, 13, True),
    ("/v1/completions", "completions-nonstream", "tiny", 3, 3, None, False),
    ("/v1/embeddings", "embeddings", "m", None, None, None, False),
    ("/api/embed", "apiembed", "m", None, None, None, False),
]


@pytest.mark.parametrize("case", [pytest.param(case, id=case[1]) for case in TOLD])
async def test_audit(upstream: Upstream, case: tuple[Any, ...]) -> None:
    """The audit line has the model and the counts of the answer, or else the model of the request."""
    target, name, model, tokens_in, tokens_out, events, stream = case
    upstream.answers(recording(name).octets)
    async with serving(upstream, allow=EVERYTHING) as (proxy, wire):
        await wire.request("POST", target, CHAT)
        answer = await wire.answer()
        assert (answer.content, answer.whole) == (recording(name).content, True)
        (line,) = await proxy.lines()
    assert (line["model"], line.get("tokens_in"), line.get("tokens_out")) == (model, tokens_in, tokens_out)
    assert (line.get("events"), line.get("stream", False)) == (events, stream)
    assert (line["bytes_in"], line["bytes_out"]) == (len(CHAT), len(answer.content))
    assert (line["status"], ended(line)) == (200, ("complete", None))
    assert 0 <= line["first_byte_ms"] <= line["total_ms"]


NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
PADDED = b'{"messages":["%b"],"model":"late"}' % (b"x" * 2 * WINDOW)


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize(
    ("content", "model"),
    [
        pytest.param(CHAT, "m", id="small"),
        pytest.param(PADDED, "late", id="large"),
        pytest.param(b"\x28\xb5\x2f\xfd packed", None, id="packed"),
        pytest.param(b"{}", None, id="untold"),
    ],
)
async def test_model_of_an_error(
    gateway: Proxy, upstream: Upstream, wire: Wire, content: bytes, model: str | None, chunked: bool
) -> None:
    """An error doesn't echo the model: it is taken from the request's content, as it passes."""
    upstream.answers(NOT_FOUND)
    if chunked:
        await wire.send(b"POST /v1/messages HTTP/1.1\r\nHost: mac\r\nTransfer-Encoding: chunked\r\n\r\n")
        await wire.send(b"".join(chunk(content[at : at + 9999]) for at in range(0, len(content), 9999)) + LAST_CHUNK)
    else:
        await wire.request("POST", "/v1/messages", content)
    assert (await wire.answer()).status == 404
    assert (await gateway.lines())[0].get("model") == model


@pytest.mark.parametrize(
    "script",
    [
        pytest.param((ok(b'{"model":"answer"}')[:-1], CLOSE), id="json"),
        pytest.param((stream_head(), CLOSE), id="stream"),
        pytest.param((CLOSE,), id="nothing"),
    ],
)
async def test_model_of_a_cut_answer(
    gateway: Proxy, upstream: Upstream, wire: Wire, script: tuple[bytes | Step, ...]
) -> None:
    """An answer that is cut before it names its model has the model of the request."""
    upstream.answers(*script)
    await wire.request("POST", "/v1/chat/completions", CHAT)
    await wire.answer()
    assert (await gateway.lines())[0]["model"] == "m"


@pytest.mark.parametrize("first", [b"", chunk(b'data: {"model":"answer"}\n\n')], ids=["model_unknown", "model_known"])
async def test_content_is_let_go(gateway: Proxy, upstream: Upstream, wire: Wire, first: bytes) -> None:
    """A request's content isn't kept for as long as its answer streams."""
    upstream.answers(stream_head() + first, NEXT, *STREAM[1:])
    await wire.request("POST", "/v1/chat/completions", CHAT)
    await wire.read_until(first or b"\r\n\r\n")
    (client,) = gateway.clients.connections
    upload = client.upload
    assert upload.whole
    gateway.pass_time(1.5)
    assert not upload.whole
    upstream.proceed()
    await wire.read_until(LAST_CHUNK)
    assert (await gateway.lines())[0]["model"] == ("answer" if first else "m")


# --- who left first, and backpressure ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, WINDOW + 50_000], ids=["small", "large"])
async def test_client_leaves_while_ollama_is_silent(gateway: Proxy, upstream: Upstream, wire: Wire, size: int) -> None:
    """A client that leaves while Ollama is silent is noticed, and Ollama's connection ends."""
    upstream.answers(HANG)
    await wire.request("POST", "/v1/chat/completions", b"x" * size)
    await within(upstream.arrived.wait())
    wire.close()
    assert ended((await gateway.lines())[0]) == ("downstream/wait", None)
    await within(upstream.peers[0].closed.wait())


async def test_next_upload_after_a_large_one(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """An upload that had to wait for its connection leaves nothing behind that the next could be refused for."""
    gateway.limit(stall_timeout=1)
    upstream.answers(ok(b"{}"))
    await wire.request("POST", "/v1/chat/completions", b"x" * (WINDOW + 50_000))
    await wire.answer()
    await wire.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: mac\r\nContent-Length: 4\r\n\r\nab")
    await until(lambda: len(upstream.peers[0].octets) > len(upstream.requests[0]))
    for client in gateway.clients.connections:
        client.tick(monotonic() + 6)
    await wire.send(b"cd")
    assert (await wire.answer()).status == 200


async def test_client_leaves_in_content(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """A client that leaves while a stream runs ends it for Ollama too; that is no failure of Ollama's."""
    upstream.answers(stream_head(), chunk(b'data: {"model":"m"}\n\n'), HANG)
    await wire.request("POST", "/v1/chat/completions", CHAT)
    await wire.read_until(b"\n\n")
    wire.half_close()
    line = (await gateway.lines())[0]
    assert (ended(line), line["events"]) == (("downstream/content", None), 1)
    await within(upstream.peers[0].closed.wait())


async def test_request_of_a_client_that_left(gateway: Proxy, upstream: Upstream) -> None:
    """A request whose client has left already is not sent: Ollama would keep its connection forever."""
    upstream.answers(ok(b"first"))
    wire = await gateway.connect()
    await reused(wire)
    with socket.create_connection(("127.0.0.1", gateway.port)) as other:
        other.sendall(b"GET /api/tags HTTP/1.1\r\nHost: mac\r\n\r\n")
    assert ended((await gateway.lines(2))[1]) == ("downstream/connect", None)
    await reused(wire)
    assert (len(upstream.requests), len(upstream.peers)) == (2, 1)
    wire.close()


async def test_slow_client(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """A client that reads nothing holds Ollama back; when it reads, everything is there."""
    content = os.urandom(2**24)
    upstream.answers(ok(content, b"application/octet-stream"))
    await wire.request("GET", "/api/tags")
    await wire.read_until(b"\r\n\r\n")
    (client,) = gateway.clients.connections
    await until(lambda: client.blocked)
    got = b"".join([await wire.read(2**20) for _ in range(1)])
    while len(got) < len(content):
        got += await wire.read(2**20)
    assert got == content
    assert not client.blocked
    await reused_after(wire, upstream)


async def reused_after(wire: Wire, upstream: Upstream) -> None:
    """Check that both connections serve on."""
    upstream.answers(ok(b"next"))
    await wire.request("GET", "/api/tags")
    assert (await wire.answer()).content == b"next"
    assert len(upstream.peers) == 1


async def test_stalled_client(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """A client that takes nothing for `stall_timeout` is cut, and Ollama's slot is free again."""
    upstream.answers(ok(b"x" * 2**24))
    await wire.request("GET", "/api/tags")
    (client,) = gateway.clients.connections
    await until(lambda: client.blocked)
    gateway.pass_time(61)
    assert ended((await gateway.lines())[0]) == ("proxy/content", "stalled")
    await within(upstream.peers[0].closed.wait())


async def test_slow_ollama(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """An upload that Ollama doesn't take is held at the client, and cut after five times `stall_timeout`."""
    upstream.read = False
    sending = asyncio.ensure_future(wire.request("POST", "/v1/chat/completions", b"x" * 2**24))
    (client,) = gateway.clients.connections
    await until(lambda: upstream.requests and client.held)
    gateway.pass_time(301)
    assert ended((await gateway.lines())[0]) == ("proxy/request", "held_upload")
    answer = await wire.answer()
    assert (answer.status, answer.fields["x-should-retry"]) == (504, "false")
    sending.cancel()


async def test_drain(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """A stream that outlasts the drain gets the reason, and is cut."""
    upstream.answers(stream_head(), chunk(b'data: {"model":"m"}\n\n'), HANG)
    await wire.request("POST", "/v1/chat/completions", CHAT)
    await wire.read_until(b"\n\n")
    await gateway.clients.drain(0)
    rest = await wire.read_until_closed()
    assert b"The proxy stopped before the answer was complete" in rest
    assert not rest.endswith(LAST_CHUNK)
    assert ended((await gateway.lines())[0]) == ("proxy/content", "draining")


async def test_drain_before_the_head(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """An exchange that outlasts the drain without an answer is refused."""
    upstream.answers(HANG)
    await wire.request("POST", "/v1/chat/completions", CHAT)
    await within(upstream.arrived.wait())
    await gateway.clients.drain(0)
    assert (await wire.answer()).status == 503
    assert ended((await gateway.lines())[0]) == ("proxy/wait", "draining")


# --- one exchange alone, for what no network shows at will ------------------------------------------------------------


@pytest.mark.parametrize("how", ["garbage", "end"])
async def test_gone_before_sending(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """A new connection that ends before the request could be sent is a failure, and isn't waited for."""
    alone = Alone(monkeypatch)
    await alone.begin(b"abcd")
    connection, line = alone.connection()
    if how == "garbage":
        connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    else:
        connection.eof_received()
    connection.connection_lost(None)
    alone.waiting.set_result(connection)
    ending, record = await alone.end()
    assert (ending, record.status, record.reason, line.written) == ("KEEP", 502, "upstream_closed", [])


async def test_held_while_sending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Content that waited for its connection and doesn't fit into it keeps the client's upload held."""
    alone = Alone(monkeypatch)
    alone.client.upload.add(b"x" * (WINDOW + 1))
    alone.client.held = True
    await alone.begin()
    connection, line = alone.connection()
    monkeypatch.setattr(line, "write", lambda _: connection.pause_writing())
    alone.waiting.set_result(connection)
    await turns()
    assert alone.client.held
    connection.resume_writing()
    assert not alone.client.held
    alone.stop(Party.DOWNSTREAM)


async def test_nothing_to_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once all of the content is there the client is read on, whatever Ollama takes: else it could leave unseen."""
    alone = Alone(monkeypatch)
    await alone.begin(b"x" * (WINDOW + 1))
    connection, _ = await alone.connected()
    connection.pause_writing()
    assert not alone.client.held
    alone.stop(Party.DOWNSTREAM)


@pytest.mark.parametrize("end", ["fin", "octets"])
async def test_stale_before_sending(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """A kept connection that ends while the relay looks for the client is replaced: nothing was sent on it."""
    alone = Alone(monkeypatch)
    stale, line = alone.kept()
    alone.client.unread = True  # a next request waits, or the end
    await alone.begin(b"abcd")
    if end == "fin":
        stale.eof_received()
        stale.connection_lost(None)
    else:
        stale.data_received(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
    await turns()
    assert (line.written, alone.connects, alone.records) == ([], 1, [])
    connection, line = await alone.connected()
    assert line.written[0].endswith(b"\r\n\r\nabcd")
    connection.data_received(ok(b"{}"))
    ending, record = await alone.end()
    assert (ending, record.ended_by) == ("KEEP", None)


async def test_fresh_connection_that_ends_before_sending(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh connection that is closed before the request could be sent is a failure of Ollama's."""
    alone = Alone(monkeypatch)
    alone.client.unread = True
    await alone.begin(b"")
    connection, line = alone.connection()
    alone.waiting.set_result(connection)
    while connection.owner is None:  # until the relay looks for the client
        await turns(1)
    line.abort()
    _, record = await alone.end()
    assert (record.reason, line.written) == ("upstream_closed", [])


@pytest.mark.parametrize("how", ["stopped", "seen"])
async def test_left_before_sending(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """A client that leaves before its request is sent leaves the connection to the next."""
    alone = Alone(monkeypatch)
    kept, line = alone.kept()
    alone.client.unread = True
    await alone.begin(b"")
    if how == "stopped":
        alone.stop(Party.DOWNSTREAM)
    else:
        alone.client.has_left = True
    ending, record = await alone.end()
    assert (line.written, line.gone, alone.pool.take()) == ([], False, kept)
    assert (ending, record.ended_by, record.phase) == ("LEFT", Party.DOWNSTREAM, "connect")


@pytest.mark.parametrize("comes", [True, False], ids=["it_comes", "it_fails"])
async def test_left_while_connecting(monkeypatch: pytest.MonkeyPatch, comes: bool) -> None:
    """A connection that opens after the client has left is kept for the next request; a failure isn't reported."""
    alone = Alone(monkeypatch)
    await alone.begin()
    await turns()
    alone.stop(Party.DOWNSTREAM)
    ending, record = await alone.end()
    if comes:
        connection, line = await alone.connected()
        assert (alone.pool.take(), line.written) == (connection, [])
    else:
        alone.waiting.set_exception(Unreachable("refused", refused=True))
        await turns()
    assert (ending, record.phase, alone.client.written) == ("LEFT", "connect", b"")


async def test_over_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exchange ends once: who leaves or drains after the last byte of the answer changes nothing."""
    alone = Alone(monkeypatch)
    await alone.begin(b"{}")
    connection, _ = await alone.connected()
    connection.data_received(ok(b"{}"))
    alone.stop(Party.PROXY, Reason.DRAINING, DRAINING)
    ending, record = await alone.end()
    assert (ending, record.status, record.ended_by, alone.pool.take()) == ("KEEP", 200, None, connection)


async def test_still_blocked_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the client hasn't taken the answer before, Ollama is not read until it has; kept connections are read."""
    alone = Alone(monkeypatch)
    alone.client.blocked = True
    await alone.begin(b"")
    connection, line = await alone.connected()
    assert alone.client.source is connection
    assert not line.reading
    connection.resume()
    connection.pause()
    connection.data_received(ok(b"{}"))
    await alone.end()
    assert (line.reading, alone.pool.take(), alone.client.source) == (True, connection, None)


@pytest.mark.parametrize("chunked", [False, True])
async def test_content_after_ollama_failed(monkeypatch: pytest.MonkeyPatch, chunked: bool) -> None:
    """Content that comes after Ollama's connection broke goes nowhere, in chunks or not."""
    alone = Alone(monkeypatch, chunked=chunked)
    await alone.begin()
    connection, line = await alone.connected()
    before = list(line.written)
    connection.connection_lost(ConnectionResetError())
    _, record = await alone.end()
    alone.client.upload.add(b"late")
    alone.client.upload.end()
    assert (line.written, record.reason) == (before, "upstream_closed")


@pytest.mark.parametrize("large", [False, True], ids=["held", "passing"])
async def test_model_of_content_that_follows_the_answer(monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    """The model is found in content that comes after an early error, too."""
    alone = Alone(monkeypatch)
    upload = alone.client.upload
    upload.add(b'{"messages":["' + b"x" * (2 * WINDOW if large else 1))
    await alone.begin()
    connection, _ = await alone.connected()
    connection.data_received(NOT_FOUND[:-1])
    upload.add(b'"],"model":"la')
    upload.add(b'te"}')
    connection.data_received(NOT_FOUND[-1:])
    _, record = await alone.end()
    assert record.model == "late"


@pytest.mark.parametrize(
    ("reader", "when", "answer"),
    [
        (Events, "feed", stream_head() + chunk(b"data: [DONE]\n\n") + LAST_CHUNK),
        (Events, "end", stream_head() + chunk(b"data: [DONE]\n\n") + LAST_CHUNK),
        (Answer, "feed", ok(b'{"model":"m"}')),
        (Answer, "end", ok(b'{"model":"m"}')),
    ],
)
async def test_mistake_in_reading(monkeypatch: pytest.MonkeyPatch, reader: Any, when: str, answer: bytes) -> None:
    """A bug in reading an answer costs facts, but neither the answer nor its line, which reports it."""

    def mistake(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(reader, when, mistake)
    alone = Alone(monkeypatch)
    await alone.begin(b"{}")
    connection, _ = await alone.connected()
    connection.data_received(answer)
    ending, record = await alone.end()
    assert ending == "KEEP"
    assert alone.client.written.endswith(answer.partition(b"\r\n\r\n")[2])
    assert (record.reason, record.ended_by, record.model) == ("internal", None, None)


async def test_mistake_in_reading_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake of ours in counting a token costs facts, but neither the token nor the line, which says so."""

    def mistake(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Events, "token", mistake)
    alone = Alone(monkeypatch)
    await alone.begin(b"{}")
    connection, _ = await alone.connected()
    token = chunk(b'data: {"model":"m"}\n\n')
    for piece in (stream_head() + token, token, token, chunk(b"data: [DONE]\n\n") + LAST_CHUNK):
        connection.data_received(piece)
    _, record = await alone.end()
    assert alone.client.written.endswith(token * 3 + chunk(b"data: [DONE]\n\n") + LAST_CHUNK)
    assert record.reason == "internal"


@pytest.mark.parametrize("answered", [False, True], ids=["before_the_head", "within_the_answer"])
async def test_stopped_by_us(monkeypatch: pytest.MonkeyPatch, answered: bool) -> None:
    """An exchange that we end says so: with a status while there is time for one, visibly cut otherwise."""
    alone = Alone(monkeypatch)
    await alone.begin(b"{}")
    connection, _ = await alone.connected()
    if answered:
        connection.data_received(stream_head() + chunk(b'data: {"model":"m"}\n\n'))
    alone.stop(Party.PROXY, Reason.INTERNAL, INTERNAL)
    ending, record = await alone.end()
    assert (ending, record.status) == (("CUT", 200) if answered else ("KEEP", 500))
    assert (record.ended_by, record.reason) == (Party.PROXY, "internal")


async def test_broken_off_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the client itself broke is cut in the middle of the answer, without an event that would blame another."""
    alone = Alone(monkeypatch)
    await alone.begin()
    connection, _ = await alone.connected()
    connection.data_received(stream_head() + chunk(b'data: {"model":"m"}\n\n'))
    alone.stop(Party.DOWNSTREAM, Reason.MALFORMED, MALFORMED)
    ending, record = await alone.end()
    assert re.search(rb'\r\n\r\n15\r\ndata: \{"model":"m"\}\n\n\r\n\Z', alone.client.written)
    assert (ending, record.status, record.reason, connection.owner) == ("CUT", 200, "malformed", None)


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("stale", "a kept connection was closed before it answered"),
        ("opened_dead", "closed before the request was sent"),
        ("ended_meanwhile", "closed before the request was sent"),
        ("unfinished", "the stream's terminator is missing"),
    ],
)
async def test_failure_says_how(monkeypatch: pytest.MonkeyPatch, how: str, text: str) -> None:
    """A failure that the relay finds itself says in words what happened."""
    said: list[str] = []
    run = Relay.run

    async def noting(relay: Relay) -> Outcome:
        try:
            return await run(relay)
        except UpstreamFailure as failure:
            said.append(str(failure))
            raise

    monkeypatch.setattr(Relay, "run", noting)
    alone = Alone(monkeypatch)
    if how == "stale":
        kept, _ = alone.kept()
        await alone.begin(b"{}")
        kept.connection_lost(None)
    else:
        alone.client.unread = how == "ended_meanwhile"
        await alone.begin(b"{}")
        connection, line = alone.connection()
        if how == "opened_dead":
            line.abort()
        alone.waiting.set_result(connection)
        if how == "ended_meanwhile":
            while connection.owner is None:  # until the relay looks for the client
                await turns(1)
            line.abort()
        elif how == "unfinished":
            await turns()
            connection.data_received(stream_head() + LAST_CHUNK)
    await alone.end()
    assert said == [text]


@pytest.mark.parametrize(
    ("late", "octets_in", "again"),
    [
        pytest.param(0.0, b"", True, id="at_once"),
        pytest.param(0.99, b"", True, id="soon"),
        pytest.param(1.0, b"", False, id="late"),
        pytest.param(0.0, b"H", False, id="within_the_answer"),
    ],
)
async def test_when_a_kept_connection_was_stale(
    monkeypatch: pytest.MonkeyPatch, late: float, octets_in: bytes, again: bool
) -> None:
    """A GET is sent again if its kept connection closed within a second, without a byte of a response."""
    now = 100.0
    monkeypatch.setattr("proxy.exchange.relay.monotonic", lambda: now)
    alone = Alone(monkeypatch, method="GET")
    kept, _ = alone.kept()
    await alone.begin(b"")
    if octets_in:
        kept.data_received(octets_in)
    now += late
    kept.connection_lost(None)
    await turns()
    assert alone.connects == int(again)
    if again:
        await alone.connected()
        alone.stop(Party.DOWNSTREAM)
    await alone.end()


@pytest.mark.parametrize(
    "framing", [(b"Content-Length", b"4"), (b"Transfer-Encoding", b"chunked")], ids=["length", "chunks"]
)
async def test_content_is_held_until_it_is_sent_again(
    monkeypatch: pytest.MonkeyPatch, framing: tuple[bytes, bytes]
) -> None:
    """A GET that is sent again has its content with it, however long the other connection takes to open."""
    chunked = framing[1] == b"chunked"
    alone = Alone(monkeypatch, method="GET", chunked=chunked, fields=dict([framing]))
    kept, _ = alone.kept()
    await alone.begin(b"abcd")
    kept.connection_lost(None)
    await turns()
    alone.client.upload.tick(monotonic() + 2 * HELD_FOR)
    _, line = await alone.connected()
    assert b"".join(line.written).partition(b"\r\n\r\n")[2] == (chunk(b"abcd") + LAST_CHUNK if chunked else b"abcd")
    alone.stop(Party.DOWNSTREAM)
    await alone.end()


@pytest.mark.parametrize("persistent", [True, False], ids=["persistent", "last"])
@pytest.mark.parametrize("origin", [b"", b"http://localhost:3000"], ids=["no_page", "page"])
@pytest.mark.parametrize(
    ("method", "path", "version", "head", "ours"),
    [
        pytest.param("POST", "/v1/chat/completions", (1, 1), b"Content-Length: 2", b"length", id="length"),
        pytest.param("POST", "/v1/chat/completions", (1, 0), b"Content-Length: 2", b"length", id="length_1.0"),
        pytest.param("POST", "/v1/messages", (1, 1), b"Content-Length: 2", b"length", id="anthropic"),
        pytest.param("GET", "/v1/models", (1, 1), b"Transfer-Encoding: chunked", b"chunked", id="chunks"),
        pytest.param("GET", "/v1/models", (1, 0), b"Transfer-Encoding: chunked", b"", id="chunks_1.0"),
        pytest.param("GET", "/v1/models", (1, 1), b"X: y", b"chunked", id="until_the_end"),
        pytest.param("HEAD", "/", (1, 1), b"X: y", b"", id="head"),
        pytest.param("HEAD", "/", (1, 0), b"X: y", b"", id="head_1.0"),
        pytest.param("HEAD", "/", (1, 1), b"Content-Length: 2", b"length", id="length_of_head"),
    ],
)
async def test_head_of_an_answer(
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    path: str,
    version: tuple[int, int],
    head: bytes,
    ours: bytes,
    origin: bytes,
    persistent: bool,
) -> None:
    """To Ollama's status and fields come ours: the framing, the ids, a page's Origin, and the connection's future."""
    fields = {b"Origin": origin} if origin else {}
    settings = {"method": method, "path": path, "version": version, "persistent": persistent, "fields": fields}
    alone = Alone(monkeypatch, **settings, allow=EVERYTHING)  # type: ignore[arg-type]
    await alone.begin(b"")
    connection, _ = await alone.connected()
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n" + head + b"\r\n\r\n")
    alone.stop(Party.DOWNSTREAM)
    _, record = await alone.end()
    identity, open_ended = record.id.encode(), not ours and method != "HEAD"
    lines = [b"HTTP/1.1 200 OK", b"Content-Type: text/plain", *([head] if head == b"X: y" else [])]
    lines += {b"length": [b"Content-Length: 2"], b"chunked": [b"Transfer-Encoding: chunked"], b"": []}[ours]
    lines.append(b"x-request-id: " + identity)
    if path == "/v1/messages":
        lines.append(b"request-id: " + identity)
    if origin:
        lines += cors_fields(origin).splitlines()
    if open_ended or not persistent:
        lines.append(b"Connection: close")
    elif version == (1, 0):
        lines.append(b"Connection: keep-alive")
    assert alone.client.written == b"\r\n".join(lines) + b"\r\n\r\n"
    assert alone.client.delimits is open_ended
    assert (record.stream, record.first_octet is None) == (False, False)


@pytest.mark.parametrize(
    ("version", "framed"), [pytest.param((1, 1), True, id="1.1"), pytest.param((1, 0), False, id="1.0")]
)
async def test_content_in_several_reads(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], framed: bool
) -> None:
    """All reads of an answer are framed as its head said, and counted as content."""
    alone = Alone(monkeypatch, version=version)
    await alone.begin(b"{}")
    connection, _ = await alone.connected()
    parts = [b'data: {"model":"m"}\n\n', b"data: {}\n\n", b"data: [DONE]\n\n"]
    connection.data_received(stream_head() + chunk(parts[0]))
    for part in (*parts[1:], b""):
        connection.data_received(chunk(part))
    ending, record = await alone.end()
    expected = b"".join(map(chunk, (*parts, b""))) if framed else b"".join(parts)
    assert (alone.client.content, record.response_octets) == (expected, len(b"".join(parts)))
    assert (ending, record.ended_by, record.stream) == ("KEEP" if framed else "CLOSE", None, True)


@pytest.mark.parametrize(
    ("reason", "version", "sent", "said"),
    [
        pytest.param(Reason.DRAINING, (1, 1), chunk(b"data: {}\n\n"), True, id="between_two_events"),
        pytest.param(Reason.DRAINING, (1, 1), chunk(b"data: {"), False, id="within_an_event"),
        pytest.param(Reason.DRAINING, (1, 1), chunk(b"data: [DONE]\n\n"), False, id="behind_the_last"),
        pytest.param(Reason.DRAINING, (1, 0), chunk(b"data: {}\n\n"), False, id="1.0"),
        pytest.param(Reason.MALFORMED, (1, 1), chunk(b"data: {}\n\n"), False, id="no_words_for_it"),
    ],
)
async def test_farewell(
    monkeypatch: pytest.MonkeyPatch, reason: Reason, version: tuple[int, int], sent: bytes, said: bool
) -> None:
    """A stream that we cut ends with an event that says why, where the client would read one as an event."""
    alone = Alone(monkeypatch, version=version)
    await alone.begin(b"{}")
    connection, _ = await alone.connected()
    connection.data_received(stream_head() + sent)
    before = alone.client.content
    alone.stop(Party.PROXY, reason, DRAINING)
    await alone.end()
    event = chunk(error_event(Dialect.CHAT, STREAM_FAILURES[Reason.DRAINING]))
    assert alone.client.content == before + (event if said else b"")


@pytest.mark.parametrize(
    ("events", "number", "response"),
    [
        pytest.param((), 0, "", id="none"),
        pytest.param(((4, "resp_1"),), 5, "resp_1", id="one"),
        pytest.param(((4, "resp_1"), (5, None)), 6, "resp_1", id="two"),
    ],
)
async def test_farewell_goes_on_counting(
    monkeypatch: pytest.MonkeyPatch, events: tuple[tuple[int, str | None], ...], number: int, response: str
) -> None:
    """The last event of a cut Responses stream has the next number, and the id of its response."""
    alone = Alone(monkeypatch, path="/v1/responses")
    await alone.begin(b"{}")
    connection, _ = await alone.connected()
    connection.data_received(stream_head())
    for sequence, identity in events:
        event = {"type": "response.created", "sequence_number": sequence, "response": {"id": identity}}
        if identity is None:
            event = {"type": "response.output_text.delta", "sequence_number": sequence}
        connection.data_received(chunk(b"event: %b\ndata: %b\n\n" % (str(event["type"]).encode(), dumps(event))))
    alone.stop(Party.PROXY, Reason.DRAINING, DRAINING)
    await alone.end()
    last = error_event(
        Dialect.RESPONSES, STREAM_FAILURES[Reason.DRAINING], sequence_number=number, response_id=response or None
    )
    assert alone.client.content.endswith(chunk(last))


@pytest.mark.parametrize(
    ("quiet", "content", "closed"),
    [
        pytest.param(GRACE / 2, b"", False, id="soon"),
        pytest.param(GRACE, b"", True, id="later"),
        pytest.param(GRACE, b"cd", False, id="soon_after_more_content"),
    ],
)
async def test_when_a_client_leaves(
    monkeypatch: pytest.MonkeyPatch, quiet: float, content: bytes, closed: bool
) -> None:
    """The connection of a client that leaves is closed, but not within the time that Ollama needs after each byte."""
    now = 100.0
    monkeypatch.setattr("proxy.exchange.relay.monotonic", lambda: now)
    alone = Alone(monkeypatch)
    alone.client.upload.add(b"ab")
    await alone.begin()
    connection, line = await alone.connected()
    now += quiet
    if content:
        alone.client.upload.add(content)
    alone.stop(Party.DOWNSTREAM)
    await alone.end()
    assert (line.gone, len(alone.pool), connection.owner) == (closed, 0, None)
    connection.close()


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
async def test_content_behind_the_head(monkeypatch: pytest.MonkeyPatch, chunked: bool) -> None:
    """Content that arrives after the request's head was sent goes to Ollama in the call that brings it."""
    alone = Alone(monkeypatch, chunked=chunked)
    await alone.begin()
    _, line = await alone.connected()
    alone.client.upload.add(b"abcd")
    assert line.written[-1] == (chunk(b"abcd") if chunked else b"abcd")
    alone.stop(Party.DOWNSTREAM)


@pytest.mark.parametrize("asked", [b"", b'{"model":"asked"}'], ids=["no_content", "content"])
async def test_contents_are_counted(monkeypatch: pytest.MonkeyPatch, asked: bytes) -> None:
    """The line has the sizes of both contents, and the request's model if the answer names none."""
    alone = Alone(monkeypatch)
    await alone.begin(asked)
    connection, _ = await alone.connected()
    connection.data_received(ok(b'{"a":1}'))
    _, record = await alone.end()
    assert (record.request_octets, record.response_octets) == (len(asked), 7)
    assert (record.model, record.reason) == ("asked" if asked else None, None)


async def test_content_of_tokens_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that pass unread count for the size of an answer like any other content."""
    alone = Alone(monkeypatch)
    await alone.begin(b"{}")
    connection, _ = await alone.connected()
    token = b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
    contents = [token, token, token, b"data: [DONE]\n\n"]
    connection.data_received(stream_head())
    for content in contents:
        connection.data_received(chunk(content))
    connection.data_received(LAST_CHUNK)
    _, record = await alone.end()
    assert (record.events, record.response_octets) == (4, sum(map(len, contents)))
