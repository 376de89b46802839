"""Stopping politely: what is under way may finish, what isn't goes at once, and nothing is cut cleanly."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from proxy.serving import clients
from tests.support.raw_http import HANG, LAST_CHUNK, NEXT, chunk, ok, stream_head, until, within

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.raw_http import Proxy, Upstream, Wire

    Drain = Callable[[float], asyncio.Task[None]]

GET = b"GET /api/version HTTP/1.1\r\nHost: mac\r\n\r\n"
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: mac\r\nContent-Length: 2\r\n\r\n"
EVENT = b'data: {"model":"m"}\n\n'

LONG = 1000.0
"""Seconds that no test waits."""


@pytest.fixture(params=["as_here", "darwin"], autouse=True)
def system(request: pytest.FixtureRequest) -> None:
    """Run each test by the rules of this kernel, and by those of macOS."""
    if request.param == "darwin":
        request.getfixturevalue("darwin")


@pytest.fixture
def drain(gateway: Proxy) -> Callable[[float], asyncio.Task[None]]:
    """Give what begins a drain as the listener does."""

    def begin(seconds: float) -> asyncio.Task[None]:
        gateway.server.close()
        return asyncio.create_task(gateway.clients.drain(seconds))

    return begin


async def test_nothing_to_wait_for(drain: Drain, gateway: Proxy) -> None:
    """Without connections a drain is over at once."""
    await within(drain(LONG))


async def test_idle_connections_go_at_once(drain: Drain, gateway: Proxy, upstream: Upstream) -> None:
    """Connections without an exchange, new or kept, end silently, and the drain is over."""
    upstream.answers(ok())
    fresh, kept = await gateway.connect(), await gateway.connect()
    await kept.send(GET)
    await kept.answer()
    await until(lambda: len(gateway.clients.connections) == 2)
    await within(drain(LONG))
    assert await fresh.read() == await kept.read() == b""
    assert len(gateway.audit) == 1


async def test_begun_head_is_refused(drain: Drain, gateway: Proxy, wire: Wire) -> None:
    """A client with an incomplete head gets 503 with Retry-After: a retry is served sooner than this request."""
    await wire.send(GET[:10])
    await until(lambda: [client.mode.name for client in gateway.clients.connections] == ["HEAD"])
    draining = drain(LONG)
    answer = await wire.answer()
    assert (answer.status, answer.fields["retry-after"]) == (503, "1")
    wire.close()
    await within(draining)
    assert [line["reason"] for line in gateway.audit] == ["draining"]


async def test_stream_and_upload_finish(drain: Drain, gateway: Proxy, upstream: Upstream) -> None:
    """A stream and an upload that are under way come to their true end, and their connections end with them."""
    upstream.answers_in_turn(
        (stream_head(), chunk(EVENT), NEXT, chunk(b"data: [DONE]\n\n"), LAST_CHUNK), (ok(b"uploaded"),)
    )
    stream, upload = await gateway.connect(), await gateway.connect()
    await stream.send(CHAT + b"{}")
    await stream.read_until(EVENT)
    await upload.send(CHAT + b"{")
    await until(lambda: len(upstream.peers) == 2 and upstream.peers[1].octets.endswith(b"{"))
    draining = drain(LONG)
    await until(lambda: gateway.clients.draining)
    await upload.send(b"}")
    answer = await upload.answer()
    assert (answer.status, answer.content, answer.fields["connection"]) == (200, b"uploaded", "close")
    assert not draining.done()
    upstream.proceed()
    rest = await stream.read_until_closed()
    assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    await within(draining)
    assert [line["ended"] for line in gateway.audit] == ["complete", "complete"]


async def test_no_further_request(drain: Drain, gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """A request behind the one under way is not begun any more."""
    upstream.answers(stream_head(b"application/json"), chunk(b"{"), NEXT, chunk(b"}"), LAST_CHUNK)
    await wire.send(GET + GET)
    await wire.read_until(b"{\r\n")
    draining = drain(LONG)
    await until(lambda: gateway.clients.draining)
    upstream.proceed()
    assert await wire.read_until_closed() == b"1\r\n}\r\n0\r\n\r\n"
    wire.close()
    await within(draining)
    assert len(upstream.requests) == 1


async def test_hanging_stream_is_cut(drain: Drain, gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """When the time is up, a stream gets an error event in its own form, and no clean end."""
    upstream.answers(stream_head(), chunk(EVENT), HANG)
    await wire.send(CHAT + b"{}")
    await wire.read_until(EVENT)
    draining = drain(0.01)
    rest = await wire.read_until_closed()
    assert b'data: {"error":{"message":"The proxy stopped before the answer was complete' in rest
    assert not rest.endswith(LAST_CHUNK)
    await within(draining)
    assert [(line["ended"], line["reason"], line["status"]) for line in gateway.audit] == [
        ("proxy/content", "draining", 200)
    ]
    await within(upstream.peers[0].closed.wait())


@pytest.mark.parametrize(("content", "ended"), [(b"{}", "proxy/wait"), (b"{", "proxy/request")], ids=["wait", "upload"])
async def test_hanging_request_is_answered(
    drain: Drain, gateway: Proxy, upstream: Upstream, wire: Wire, content: bytes, ended: str
) -> None:
    """When the time is up a client that has had no answer yet gets one, which asks for a repetition."""
    upstream.answers(HANG)
    await wire.send(CHAT + content)
    await until(lambda: upstream.peers and upstream.peers[0].octets.endswith(content))
    draining = drain(0.01)
    answer = await wire.answer()
    assert (answer.status, answer.fields["retry-after"], answer.fields["connection"]) == (503, "1", "close")
    wire.close()
    await within(draining)
    assert [(line["ended"], line["reason"]) for line in gateway.audit] == [(ended, "draining")]
    await within(upstream.peers[0].closed.wait())


async def test_hurry(drain: Drain, gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """A second signal ends the patience: what is under way is cut at once, as visibly."""
    upstream.answers(stream_head(), chunk(EVENT), HANG)
    await wire.send(CHAT + b"{}")
    await wire.read_until(EVENT)
    draining = drain(LONG)
    await until(lambda: gateway.clients.draining)
    gateway.clients.hurry()
    assert b'"error"' in await wire.read_until_closed()
    await within(draining)
    assert [line["reason"] for line in gateway.audit] == ["draining"]


@pytest.mark.parametrize("reads", [False, True], ids=["reads_nothing", "stays"])
async def test_client_that_does_not_go(
    drain: Drain, gateway: Proxy, upstream: Upstream, wire: Wire, monkeypatch: pytest.MonkeyPatch, reads: bool
) -> None:
    """A client that doesn't take its farewell, or doesn't end its side, holds nobody up for long."""
    monkeypatch.setattr(clients, "FAREWELL", 0.02)
    monkeypatch.setattr("proxy.exchange.client.client_socket.LINGER_FOR", LONG)
    if reads:
        await wire.send(CHAT.replace(b"chat", b"cat").replace(b": 2", b": 9"))
        await wire.answer()
        assert [client.mode.name for client in gateway.clients.connections] == ["LINGER"]
    else:
        upstream.answers(stream_head(), *[chunk(EVENT * 10_000)] * 100, HANG)
        wire.stop_reading()
        await wire.send(CHAT + b"{}")
        await until(lambda: any(client.blocked for client in gateway.clients.connections))
    await within(drain(0.01))
    assert not gateway.clients.connections


async def test_turned_away_connections_go_too(drain: Drain, gateway: Proxy) -> None:
    """Connections that were over the limit, and still linger, end with the process."""
    gateway.limit(max_connections=0)
    wire = await gateway.connect()
    await wire.answer()
    assert "1 turned away" in repr(gateway.clients)
    await within(drain(LONG))
    await until(lambda: "0 turned away" in repr(gateway.clients))
