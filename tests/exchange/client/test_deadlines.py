"""How long a client may take for what, and that the wait for Ollama has no limit."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from proxy.exchange.client.deadlines import CONTENT_STEP, HELD_FACTOR, IDLE_FOR, LINGER_FOR
from tests.support.raw_http import CUT, HANG, chunk, ok, stream_head, until, within

if TYPE_CHECKING:
    from proxy.exchange.client.connection import Connection
    from tests.support.raw_http import Proxy, Upstream, Wire

GET = b"GET /api/version HTTP/1.1\r\nHost: mac\r\n\r\n"
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: mac\r\nContent-Length: 2\r\n\r\n{}"
POST = b"POST /api/show HTTP/1.1\r\nHost: mac\r\nContent-Length: %d\r\n\r\n"

EVENT = chunk(b'data: {"model":"m","t":"%b"}\n\n' % (b"x" * 100_000))

# Seconds by which a moment that must not count yet is before the limit: what a busy machine may take for a test.
EARLY = 2.0
# Seconds by which one that must is behind it.
OVER = 0.5


@pytest.fixture(params=["as_here", "darwin"], autouse=True)
def system(request: pytest.FixtureRequest) -> None:
    """Run each test by the rules of this kernel, and by those of macOS."""
    if request.param == "darwin":
        request.getfixturevalue("darwin")


def only(gateway: Proxy) -> Connection:
    """Return the one connection there is."""
    (client,) = gateway.clients.connections
    return client


async def stalled(gateway: Proxy, upstream: Upstream, wire: Wire) -> Connection:
    """Bring a client that reads nothing to where bytes wait for it in our memory."""
    upstream.answers(stream_head(), *[EVENT] * 120, HANG)
    wire.stop_reading()
    await wire.send(CHAT)
    await until(lambda: gateway.clients.connections and only(gateway).blocked)
    return only(gateway)


async def was_reset(wire: Wire) -> bool:
    """Read on, and return whether a reset ends the connection. After an ordinary end the kernel would still send."""
    wire.read_on()
    return await wire.ends_by_a_reset()


# --- heads ------------------------------------------------------------------------------------------------------------


async def test_head_timeout(gateway: Proxy, wire: Wire) -> None:
    """A head has 10 s from its first byte, even if it dribbles. Then it gets 408 and a line, and the client is cut."""
    await wire.send(GET[:5])
    await until(lambda: only(gateway).mode.name == "HEAD")
    gateway.pass_time(10 - EARLY)
    await wire.send(GET[5:20])
    assert not gateway.audit
    gateway.pass_time(10 + OVER)
    answer = await wire.answer()
    assert (answer.status, answer.fields["connection"]) == (408, "close")
    assert await wire.read() == b""
    assert [(line["reason"], line["ended"]) for line in gateway.audit] == [("head_timeout", "proxy/head")]


async def test_second_head_has_its_own_time(
    gateway: Proxy, upstream: Upstream, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time of a head counts from its first byte, not from the connection's."""
    upstream.answers(ok())
    await wire.send(GET)
    await wire.answer()
    monkeypatch.setattr("proxy.exchange.client.connection.monotonic", lambda: time.monotonic() + 60)
    await wire.send(GET[:5])
    await until(lambda: only(gateway).mode.name == "HEAD")
    gateway.pass_time(60 + 10 - EARLY)
    await wire.send(GET[5:])
    assert (await wire.answer()).status == 200
    assert len(upstream.requests) == 2


async def test_head_behind_a_whole_request(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """A head that began in one read with the request before it has its deadline too."""
    upstream.answers(ok())
    await wire.send(GET + GET[:5])
    await wire.answer()
    await until(lambda: only(gateway).mode.name == "HEAD")
    gateway.pass_time(10 + OVER)
    assert (await wire.answer()).status == 408


async def test_new_limits_hold_for_connections_there_are(gateway: Proxy, wire: Wire) -> None:
    """A reload's limits hold from the next look on."""
    await wire.send(GET[:5])
    await until(lambda: gateway.clients.connections and only(gateway).mode.name == "HEAD")
    gateway.limit(head_timeout=1000)
    gateway.pass_time(900)
    assert not gateway.audit
    gateway.limit(head_timeout=3)
    gateway.pass_time(3 + OVER)
    assert b"within 3 s" in (await wire.answer()).content


@pytest.mark.parametrize("after", ["nothing", "an_answer", "empty_lines"])
async def test_idle(gateway: Proxy, upstream: Upstream, wire: Wire, after: str) -> None:
    """A connection without a byte, new or between requests, is closed silently after 75 s, without a line."""
    upstream.answers(ok())
    if after == "an_answer":
        await wire.send(GET)
        await wire.answer()
    elif after == "empty_lines":
        await wire.send(b"\r\n\r\n")
    await until(lambda: gateway.clients.connections)
    lines = len(gateway.audit)
    gateway.pass_time(IDLE_FOR - EARLY)
    assert only(gateway).mode.name == "IDLE"
    gateway.pass_time(IDLE_FOR + OVER)
    assert await wire.read_until_closed() == b""
    assert len(gateway.audit) == lines


# --- content ----------------------------------------------------------------------------------------------------------


async def test_body_timeout(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """Content that stops for 60 s is given up: the client gets 408, and Ollama sees no complete request."""
    await wire.send(POST % 1000 + b"{")
    await until(lambda: upstream.peers and upstream.peers[0].octets.endswith(b"{"))
    gateway.pass_time(60 - EARLY)
    assert not gateway.audit
    gateway.pass_time(60 + OVER)
    answer = await wire.answer()
    assert (answer.status, answer.fields["connection"]) == (408, "close")
    assert [(line["reason"], line["ended"]) for line in gateway.audit] == [("content_timeout", "proxy/request")]
    await within(upstream.peers[0].closed.wait())
    assert not upstream.requests


@pytest.mark.parametrize(
    ("brought", "status"), [(CONTENT_STEP, None), (CONTENT_STEP - 1, 408)], ids=["a_step", "one_octet_less"]
)
async def test_dribbling_content(
    gateway: Proxy, upstream: Upstream, wire: Wire, brought: int, status: int | None
) -> None:
    """Each 60 s must bring 16 KiB, or the end: a dribbling sender is as bad as a silent one."""
    await wire.send(POST % 10**6 + bytes(brought))
    await until(lambda: upstream.peers and upstream.peers[0].octets.endswith(bytes(brought)))
    gateway.pass_time(60 + OVER)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [line.get("status") for line in gateway.audit] == ([] if status is None else [status])
    if status is None:  # and the next 60 s again
        gateway.pass_time(2 * (60 + OVER) + OVER)
        assert (await wire.answer()).status == 408


async def test_end_of_content_is_in_time(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """Less than a step is enough when it is the end; from there on only Ollama is waited for, without limit."""
    upstream.answers(HANG)
    await wire.send(POST % 2 + b"{")
    await until(lambda: upstream.peers and upstream.peers[0].octets.endswith(b"{"))
    gateway.pass_time(60 - EARLY)
    await wire.send(b"}")
    await within(upstream.arrived.wait())
    gateway.pass_time(24 * 3600)
    assert only(gateway).mode.name == "BUSY"
    assert not gateway.audit


# --- Ollama doesn't take it -------------------------------------------------------------------------------------------


async def test_held_upload(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """An upload that Ollama holds back isn't slow; it is given up after 5 x `stall_timeout`."""
    upstream.read = False
    sending = asyncio.create_task(wire.send(POST % 2**26 + bytes(2**26)))
    await until(lambda: upstream.requests and only(gateway).held)
    gateway.pass_time(HELD_FACTOR * 60 - EARLY)
    assert not gateway.audit
    gateway.pass_time(HELD_FACTOR * 60 + OVER)
    answer = await wire.answer()
    assert (answer.status, answer.fields["x-should-retry"]) == (504, "false")
    assert [(line["reason"], line["ended"]) for line in gateway.audit] == [("held_upload", "proxy/request")]
    await sending


async def test_time_that_content_was_held_does_not_count(
    gateway: Proxy, upstream: Upstream, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After Ollama has held an upload back, its sender has all of `body_timeout` again."""
    await wire.send(POST % 1000 + b"{")
    await until(lambda: upstream.peers and upstream.peers[0].octets.endswith(b"{"))
    client = only(gateway)
    for room in ("connection", "client_socket"):
        monkeypatch.setattr(f"proxy.exchange.client.{room}.monotonic", lambda: time.monotonic() + 200)
    client.hold()
    client.release()
    gateway.pass_time(200 + 60 - EARLY)
    await asyncio.sleep(0)
    assert not gateway.audit


async def test_a_held_upload_is_forgotten_with_its_exchange(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """That one upload was held for a while is no fault of the next on the same connection."""
    upstream.answers(ok())
    await wire.send(POST % 300_000 + bytes(300_000))
    await wire.answer()
    await wire.send(POST % 1000 + b"{")
    await until(lambda: upstream.peers[0].octets.endswith(b"{"))
    client = only(gateway)
    assert not client.held
    gateway.pass_time(60 - EARLY)
    assert len(gateway.audit) == 1


# --- the client doesn't take it ---------------------------------------------------------------------------------------


async def test_stalled_client(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """A client that takes nothing for 60 s while bytes wait for it is reset, and Ollama is free again."""
    await stalled(gateway, upstream, wire)
    gateway.pass_time(60 - EARLY)
    assert not gateway.audit
    gateway.pass_time(60 + OVER)
    assert [(line["reason"], line["ended"]) for line in await gateway.lines()] == [("stalled", "proxy/content")]
    await until(lambda: not gateway.clients.connections)
    await within(upstream.peers[0].closed.wait())
    assert await was_reset(wire)


async def test_slow_client_is_not_stalled(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """Whatever the client takes, the time begins again."""
    client = await stalled(gateway, upstream, wire)
    start = time.monotonic()
    gateway.clients.tick(start)
    assert client.transport is not None
    waiting = client.transport.get_write_buffer_size()
    wire.read_on()
    await until(lambda: client.transport.get_write_buffer_size() != waiting)  # type: ignore[union-attr]
    wire.stop_reading()
    await until(lambda: client.blocked)
    gateway.clients.tick(start + 61)
    gateway.clients.tick(start + 61 + 59)
    assert not gateway.audit
    gateway.clients.tick(start + 61 + 61)
    assert [line["reason"] for line in await gateway.lines()] == ["stalled"]


async def written_to_nobody(gateway: Proxy, wire: Wire, request: bytes) -> None:
    """Bring an exchange to its end on our side, while its client takes nothing and all of the answer waits here."""
    await until(lambda: gateway.clients.connections)
    client = only(gateway)
    assert client.transport is not None
    client.transport.set_write_buffer_limits(high=2**30)
    wire.stop_reading()
    await wire.send(request)
    await gateway.lines()
    assert client.mode.name == "FLUSH"
    assert client.transport.get_write_buffer_size()


async def test_last_answer_that_nobody_takes(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """An answer behind which the connection ends is flushed as long as the client takes of it, and no longer."""
    upstream.answers(ok(bytes(2**24)))
    await written_to_nobody(gateway, wire, GET[:-2] + b"Connection: close\r\n\r\n")
    gateway.pass_time(60 - EARLY)
    assert gateway.clients.connections
    gateway.pass_time(60 + OVER)
    await until(lambda: not gateway.clients.connections)
    assert await was_reset(wire)


async def test_broken_answer_that_nobody_takes(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """What is written of an answer that broke off has 5 s to go out."""
    upstream.answers(stream_head(), *[EVENT] * 200, CUT)
    await written_to_nobody(gateway, wire, CHAT)
    gateway.pass_time(LINGER_FOR - EARLY)
    assert gateway.clients.connections
    gateway.pass_time(LINGER_FOR + OVER)
    await until(lambda: not gateway.clients.connections)
    assert await was_reset(wire)


async def test_lingering(gateway: Proxy, wire: Wire) -> None:
    """The rest of a refused request is read and thrown away for 5 s, then the connection is cut."""
    await wire.send(POST.replace(b"show", b"push") % 10**9)
    await wire.answer()
    await wire.send(bytes(10**6))
    assert only(gateway).mode.name == "LINGER"
    gateway.pass_time(LINGER_FOR - EARLY)
    assert gateway.clients.connections
    gateway.pass_time(LINGER_FOR + OVER)
    await until(lambda: not gateway.clients.connections)
