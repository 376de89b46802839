"""A client that goes away, in every phase and every way: Ollama stops at once, but never so soon that it leaks."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from proxy.exchange.client.connection import PIPELINE_OCTETS
from proxy.exchange.upstream.upstream import GRACE
from tests.support.raw_http import HANG, NEXT, Proxy, Wire, chunk, ok, stream_head, until, within

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.raw_http import Upstream

GET = b"GET /api/version HTTP/1.1\r\nHost: mac\r\n\r\n"
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: mac\r\nContent-Length: %d\r\n\r\n"

# Seconds by which a timer of uvloop may be early: its clock counts milliseconds.
TIMER = 0.001

LEAVING = ["fin", "reset", "half_close"]


def leave(wire: Wire, how: str) -> None:
    """Go away."""
    if how == "half_close":
        wire.half_close()
    else:
        wire.close(reset=how == "reset")


async def drained(wire: Wire) -> None:
    """Read all there is, up to the end."""
    while await wire.read():
        pass


async def gone(gateway: Proxy, upstream: Upstream, ended: str) -> float:
    """Wait until both sides have closed; return when Ollama's side did. Check the one line."""
    await within(upstream.peers[0].closed.wait())
    closed = monotonic()
    await until(lambda: not gateway.clients.connections)
    assert [line["ended"] for line in await gateway.lines()] == [ended]
    assert "reason" not in gateway.audit[0]
    return closed


async def begin(phase: str, gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """Bring one exchange into a phase."""
    if phase == "wait":
        upstream.answers(HANG)
        await wire.send(CHAT % 2 + b"{}")
        await within(upstream.arrived.wait())
    elif phase == "content":
        upstream.answers(stream_head(), chunk(b"data: {}\n\n"), HANG)
        await wire.send(CHAT % 2 + b"{}")
        await wire.read_until(b"data: {}\n\n\r\n")
    else:
        await wire.send(CHAT % 1000 + b"{")
        await until(lambda: upstream.peers and upstream.peers[0].octets.endswith(b"{"))


def make_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the last byte towards Ollama be long ago."""
    monkeypatch.setattr("proxy.exchange.relay.monotonic", lambda: monotonic() + 1)


@pytest.mark.parametrize("how", LEAVING)
@pytest.mark.parametrize("phase", ["wait", "content", "request"])
async def test_ollama_is_told_at_once(
    gateway: Proxy, upstream: Upstream, wire: Wire, monkeypatch: pytest.MonkeyPatch, phase: str, how: str
) -> None:
    """A client that leaves, or ends its side, closes the connection to Ollama, which makes it stop generating."""
    await begin(phase, gateway, upstream, wire)
    make_quiet(monkeypatch)
    before = upstream.peers[0].closed.is_set()
    leave(wire, how)
    await gone(gateway, upstream, f"downstream/{phase}")
    assert not before
    assert not len(gateway.pool)


@pytest.mark.parametrize("how", LEAVING)
@pytest.mark.parametrize("phase", ["wait", "content", "request"])
async def test_but_not_too_soon(
    gateway: Proxy, upstream: Upstream, wire: Wire, monkeypatch: pytest.MonkeyPatch, phase: str, how: str
) -> None:
    """Within 50 ms of the request's last byte the connection stays: closing it sooner leaks it inside Ollama."""
    begun = monotonic()
    monkeypatch.setattr("proxy.exchange.relay.monotonic", lambda: begun)  # the last byte is sent at this moment
    await begin(phase, gateway, upstream, wire)
    sent = monotonic()
    leave(wire, how)
    assert await gone(gateway, upstream, f"downstream/{phase}") - sent >= GRACE - TIMER


@pytest.mark.parametrize("how", LEAVING)
async def test_client_that_leaves_behind_the_terminator_has_its_answer(
    gateway: Proxy, upstream: Upstream, wire: Wire, how: str
) -> None:
    """SDKs close at the terminator, and don't wait for the last chunk: the exchange is complete."""
    upstream.answers(stream_head(), chunk(b"data: {}\n\n"), chunk(b"data: [DONE]\n\n"), HANG)
    await wire.send(CHAT % 2 + b"{}")
    await wire.read_until(b"data: [DONE]\n\n\r\n")
    leave(wire, how)
    await gone(gateway, upstream, "complete")


async def test_long_ago_needs_no_grace(
    gateway: Proxy, upstream: Upstream, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the request is older than that, the close comes in the next turn of the loop, without a timer."""
    await begin("wait", gateway, upstream, wire)
    make_quiet(monkeypatch)
    (client,) = gateway.clients.connections
    connection = client.source
    assert connection is not None
    client.eof_received()
    await asyncio.sleep(0)
    assert repr(connection) == "<Upstream CLOSED #1>"
    await gone(gateway, upstream, "downstream/wait")


@pytest.mark.parametrize("how", LEAVING)
async def test_answer_to_nobody_is_discarded(gateway: Proxy, upstream: Upstream, how: str) -> None:
    """What Ollama still sends when its client has left goes nowhere, and its connection serves nobody else."""
    upstream.answers_in_turn((NEXT, ok(b"for the one who left"), HANG), (ok(b"for the next"),))
    first = await gateway.connect()
    await first.send(GET)
    await within(upstream.arrived.wait())
    leave(first, how)
    await gateway.lines()
    upstream.proceed()
    second = await gateway.connect()
    await second.send(GET)
    assert (await second.answer()).content == b"for the next"
    await within(upstream.peers[0].closed.wait())
    assert len(upstream.peers) == 2
    assert [line["ended"] for line in gateway.audit] == ["downstream/wait", "complete"]
    second.close()


@pytest.mark.parametrize("pooled", [False, True], ids=["fresh", "kept"])
@pytest.mark.parametrize("how", ["fin", "half_close"])  # a reset takes the request along
async def test_left_before_it_was_sent(gateway: Proxy, upstream: Upstream, how: str, pooled: bool) -> None:
    """The request of a client that has left already is not sent at all."""
    upstream.answers(ok())
    if pooled:
        other = await gateway.connect()
        await other.send(GET)
        await other.answer()
        other.close()
        await until(lambda: not gateway.clients.connections)
    before = len(upstream.requests)
    with socket.create_connection(("127.0.0.1", gateway.port)) as sock:
        await until(lambda: gateway.clients.connections)
        sock.sendall(GET)
        if how == "half_close":
            sock.shutdown(socket.SHUT_WR)
        else:
            sock.close()
        lines = await gateway.lines(before + 1)
    assert lines[before]["ended"] == "downstream/connect"
    await until(lambda: not gateway.clients.connections)
    # The unused connection is kept for the next request: it serves that, and nothing came before.
    last = await gateway.connect()
    await last.send(GET.replace(b"version", b"tags"))
    await last.answer()
    assert [request.split(b" ")[1] for request in upstream.requests[before:]] == [b"/api/tags"]
    assert len(upstream.peers) == 1
    last.close()


@pytest.fixture
async def full() -> AsyncIterator[Proxy]:
    """Give a gateway whose upstream takes no connection: its backlog is full, as with a hanging Ollama."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            with suppress(BlockingIOError):
                filler.connect(sock.getsockname())
            fillers.append(filler)
        proxy = Proxy(sock.getsockname()[1])
        await proxy.start()
        yield proxy
        await proxy.stop()
        for filler in fillers:
            filler.close()


@pytest.mark.parametrize("how", LEAVING)
@pytest.mark.parametrize("size", [2, 500_000], ids=["small", "more_than_is_held"])
async def test_while_connecting(full: Proxy, how: str, size: int) -> None:
    """A client that leaves while Ollama takes no connection is noticed, however much content it has sent."""
    wire = await full.connect()
    wire.begin_to_send(CHAT % size + bytes(size))
    await until(lambda: any(client.mode.name == "BUSY" for client in full.clients.connections))
    (client,) = full.clients.connections
    await until(lambda: size < 1000 or client.held)
    leave(wire, how)
    if size > 1000:
        if how != "reset":  # a mere end behind unread bytes can't be seen
            wire.close(reset=True)
        await until(lambda: full.pass_time(0) or not full.clients.connections)
    (line,) = await full.lines()
    assert line["ended"] == "downstream/connect"
    await until(lambda: not full.clients.connections)


@pytest.mark.parametrize("how", LEAVING)
async def test_large_request_waiting_for_its_answer(gateway: Proxy, upstream: Upstream, wire: Wire, how: str) -> None:
    """A client whose content was more than is held while connecting is watched all the same while it waits."""
    upstream.answers(HANG)
    await wire.send(CHAT % 200_000 + bytes(200_000))
    await within(upstream.arrived.wait())
    leave(wire, how)
    await gone(gateway, upstream, "downstream/wait")


async def test_held_upload_that_is_reset(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """A client whose upload Ollama doesn't take is not read; a reset of its connection is seen by the wheel."""
    upstream.read = False
    sending = asyncio.create_task(wire.send(CHAT % 2**26 + bytes(2**26)))
    await until(lambda: upstream.peers and upstream.peers[0].octets)
    (client,) = gateway.clients.connections
    await until(lambda: client.held)
    upstream_side = client.source
    wire.close(reset=True)
    await asyncio.wait([sending])
    await until(lambda: gateway.pass_time(0) or not gateway.clients.connections)
    (line,) = await gateway.lines()
    assert line["ended"] == "downstream/request"
    await until(lambda: repr(upstream_side) == "<Upstream CLOSED #1>")


async def test_nothing_goes_to_who_has_gone(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """A connection that has ended takes whatever is still asked of it, and does nothing."""
    await begin("request", gateway, upstream, wire)
    (client,) = gateway.clients.connections
    wire.close(reset=True)
    await gone(gateway, upstream, "downstream/request")
    client.write(b"HTTP/1.1 200 OK\r\n\r\n")
    client.hold()
    client.release()
    client.cut(reset=True)
    client.tick(monotonic() + 1000)
    assert client.may_have_left()
    assert len(gateway.audit) == 1


async def test_pipelining_client_that_is_not_read(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """A client that has sent more than we read ahead, and is reset, is noticed by the wheel."""
    upstream.answers(HANG)
    await wire.send(GET * 40)
    await within(upstream.arrived.wait())
    (client,) = gateway.clients.connections
    await wire.send(GET * 40)
    await until(lambda: client.unread)
    wire.close(reset=True)
    await until(lambda: gateway.pass_time(0) or not gateway.clients.connections)
    await gone(gateway, upstream, "downstream/wait")


async def test_pipelining_client(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """When a client leaves, what it has pipelined behind the exchange under way is neither sent nor noted."""
    upstream.answers(HANG)
    await wire.send(GET * 5)
    await within(upstream.arrived.wait())
    wire.close()
    await gone(gateway, upstream, "downstream/wait")
    assert len(upstream.requests) == 1


async def test_pipelining_client_is_read_for_its_last_request(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """When a large request that waited is served, and none waits behind it, its client is noticed to leave."""
    upstream.answers_in_turn((NEXT, ok()), (HANG,))
    await wire.send(GET)
    await until(lambda: upstream.requests)
    size = PIPELINE_OCTETS + 1  # reading stops when the last byte is there
    await wire.send(CHAT % size + bytes(size))
    (client,) = gateway.clients.connections
    await until(lambda: client.unread)
    upstream.proceed()
    await until(lambda: len(upstream.requests) == 2)
    wire.close()
    await within(upstream.peers[0].closed.wait())
    assert [line["ended"] for line in await gateway.lines(2)] == ["complete", "downstream/wait"]


async def test_leaving_after_the_answer(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """A client that leaves between two exchanges leaves no line, and Ollama's connection stays for others."""
    upstream.answers(ok())
    await wire.send(GET)
    await wire.answer()
    wire.close()
    await until(lambda: not gateway.clients.connections)
    assert [line["ended"] for line in gateway.audit] == ["complete"]
    assert not upstream.peers[0].closed.is_set()


async def test_leaving_while_the_last_answer_goes_out(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """An answer that Ollama has finished is complete, even when its client doesn't wait for all of it."""
    upstream.answers(ok(bytes(8 * 2**20)))
    await wire.send(GET)
    await gateway.lines()
    wire.close(reset=True)
    await until(lambda: not gateway.clients.connections)
    assert [line["ended"] for line in gateway.audit] == ["complete"]


async def test_small_answer_that_a_half_close_cuts(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """Nothing waits in the proxy for the client, and still it sees a reset where an end would read as the content's."""
    upstream.answers(stream_head(), chunk(b"data: {}\n\n"), HANG)
    await wire.send(CHAT.replace(b"HTTP/1.1", b"HTTP/1.0") % 2 + b"{}")
    await wire.read_until(b"data: {}\n\n")
    wire.half_close()
    with pytest.raises(ConnectionResetError):
        await drained(wire)
    await until(lambda: not gateway.clients.connections)


@pytest.mark.parametrize("how", ["half_close", "stalls"])
async def test_end_of_the_connection_is_no_end_of_the_content(
    gateway: Proxy, upstream: Upstream, wire: Wire, how: str
) -> None:
    """A client whose content ends with its connection, and that is cut, may still read: it sees a reset, not an end."""
    upstream.answers(
        stream_head(), *[chunk(b"data: %b\n\n" % bytes(65536))] * (1 if how == "half_close" else 400), HANG
    )
    if how == "stalls":
        wire.stop_reading()
    await wire.send(CHAT.replace(b"HTTP/1.1", b"HTTP/1.0") % 2 + b"{}")
    await until(lambda: any(client.blocked for client in gateway.clients.connections) or how == "half_close")
    if how == "half_close":
        await wire.read_until(b"\r\n\r\n")
        wire.half_close()
    else:
        gateway.pass_time(61)
        wire.read_on()
    with pytest.raises(ConnectionResetError):
        await drained(wire)
    await until(lambda: not gateway.clients.connections)
