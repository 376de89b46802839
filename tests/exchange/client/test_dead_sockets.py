"""A client whose socket takes no more calls costs nobody but itself: no other client, no stop, no line of the log.

public source: xnu `bsd/kern/uipc_socket.c`, sosetoptlock: after a reset by the peer every `setsockopt` is EINVAL.
"""

from __future__ import annotations

import asyncio
import errno
import json
import socket
import struct
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from proxy.event_loop import sockets
from proxy.exchange.client.connection import Connection
from proxy.exchange.message.exchange import Record
from proxy.logs.audit import AuditLog
from proxy.policy.refusals import MALFORMED
from tests.support.raw_http import CUT, HANG, NEXT, chunk, stream_head, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.mac.darwin_kernel import Darwin
    from tests.support.raw_http import Proxy, Upstream, Wire

CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: mac\r\nContent-Length: 2\r\n\r\n{}"
GET = b"GET /api/version HTTP/1.1\r\nHost: mac\r\n\r\n"
EVENT = chunk(b'data: {"model":"m","t":"%b"}\n\n' % (b"x" * 100_000))


def invalid(*_given: object) -> NoReturn:
    """Refuse as macOS does."""
    raise OSError(errno.EINVAL, "Invalid argument")


class Dead:
    """The transport of a connection that is over in both directions."""

    family = socket.AF_INET

    def __init__(self) -> None:
        self.aborted = False

    setsockopt = getsockopt = getpeername = getsockname = staticmethod(invalid)

    def get_extra_info(self, name: str) -> Any:
        """Return the socket; raise for an address, as uvloop does for any error but ENOTCONN."""
        return self if name == "socket" else invalid()

    def fileno(self) -> int:
        """Return that of a closed socket."""
        return -1

    def get_write_buffer_size(self) -> int:
        """Say that nothing waits."""
        return 0

    def abort(self) -> None:
        """Note it."""
        self.aborted = True


# --- the calls --------------------------------------------------------------------------------------------------------


def test_reset() -> None:
    """A connection that can't be reset is aborted all the same."""
    transport = Dead()
    sockets.reset(transport)  # type: ignore[arg-type]
    assert transport.aborted


def test_was_reset() -> None:
    """A socket that answers no question was reset."""
    assert sockets.was_reset(Dead())  # type: ignore[arg-type]


def test_unacknowledged() -> None:
    """A socket that is over holds nothing."""
    assert sockets.unacknowledged(Dead()) == 0  # type: ignore[arg-type]


def test_unacknowledged_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS an option of the socket has the bytes in its send buffer."""

    class Filled(Dead):
        @staticmethod
        def getsockopt(*option: int) -> int:  # type: ignore[override]
            return {(socket.SOL_SOCKET, 0x1024): 7}[option]  # type: ignore[index]

    monkeypatch.setattr(sockets, "IN_SEND_BUFFER", 0x1024)
    assert sockets.unacknowledged(Filled()) == 7  # type: ignore[arg-type]


def test_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that takes no idle time is left without one."""
    monkeypatch.setattr(sockets, "IDLE_INHERITED", False)
    sockets.accepted(Dead())  # type: ignore[arg-type]


async def test_connection_that_is_over_when_it_comes(gateway: Proxy) -> None:
    """A connection without an address is closed; it takes no place and has no line."""
    transport = Dead()
    gateway.clients().connection_made(transport)  # type: ignore[arg-type]
    assert transport.aborted
    assert not gateway.clients.connections
    assert not gateway.audit


# --- on the wire ------------------------------------------------------------------------------------------------------


async def stalled(gateway: Proxy) -> Wire:
    """Return a client that reads nothing, for which bytes wait in our memory."""
    wire = await gateway.connect()
    wire.stop_reading()
    before = {client for client in gateway.clients.connections if client.blocked}
    await wire.send(CHAT)
    await until(lambda: {client for client in gateway.clients.connections if client.blocked} > before)
    return wire


@pytest.mark.parametrize("call", ["setsockopt", "getsockopt", "getpeername"])
@pytest.mark.parametrize("end", ["tick", "drain"])
async def test_nobody_else_is_concerned(
    gateway: Proxy, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, call: str, end: str
) -> None:
    """Whatever a socket refuses, each client is judged, each is cut, and each exchange has its line."""
    upstream.answers(stream_head(), *[EVENT] * 120, HANG)
    for _ in range(3):
        await stalled(gateway)
    late = await gateway.connect()
    await late.send(GET[:9])
    await until(lambda: any("HEAD" in repr(client) for client in gateway.clients.connections))
    monkeypatch.setattr(socket.socket, call, invalid)
    if end == "tick":
        gateway.pass_time(61)
        assert [line["reason"] for line in gateway.audit if "stream" in line] == ["stalled"] * 3
        assert (await late.answer()).status == 408
    else:
        await gateway.clients.drain(0)
    await until(lambda: not [client for client in gateway.clients.connections if client.blocked])
    assert len(await gateway.lines(4)) == 4
    assert not gateway.notes


async def test_reset_races_with_ours(gateway: Proxy, upstream: Upstream, darwin: Darwin) -> None:
    """A client that resets the connection just before we do is gone like any other, on macOS too."""
    upstream.answers(stream_head(), *[EVENT] * 120, HANG)
    with socket.socket() as client:
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", gateway.port))
        await loop.sock_sendall(client, CHAT)
        await until(lambda: [each for each in gateway.clients.connections if each.blocked])
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    gateway.pass_time(61)
    assert [line["reason"] for line in gateway.audit] == ["stalled"]
    await until(lambda: not gateway.clients.connections)
    assert not gateway.notes


async def test_broken_answer_has_its_line(
    gateway: Proxy, upstream: Upstream, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that only a reset can break off has its line although the socket takes none."""
    upstream.answers(stream_head(b"application/json"), chunk(b"1"), NEXT, CUT)
    await wire.send(GET.replace(b"1.1", b"1.0"))
    await wire.read_until(b"\r\n\r\n1")
    monkeypatch.setattr(socket.socket, "setsockopt", invalid)
    upstream.proceed()
    (line,) = await gateway.lines(1)
    assert line["ended"] == "upstream/content"


# --- mistakes of ours -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tick", "drain", "drain_over"])
async def test_mistake_with_one(
    gateway: Proxy, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """A bug that shows with one client ends that client, with its line and a diagnostic. Others are still checked."""
    upstream.answers(HANG)
    wires = [await gateway.connect() for _ in range(3)]
    for wire in wires:
        await wire.send(GET)
    await until(lambda: len(upstream.requests) == 3)
    looked_at = []

    def act(client: Connection, *_now: float) -> None:
        looked_at.append(client)
        if len(looked_at) == 2:
            raise ZeroDivisionError

    monkeypatch.setattr(Connection, method, act)
    if method == "tick":
        gateway.clients.tick(0.0)
    else:
        await gateway.clients.drain(0)
    assert len(looked_at) >= 3
    assert [note["event"] for note in gateway.notes] == ["internal"]
    line = (await gateway.lines(1))[0]
    assert (line["ended"], line["reason"]) == ("proxy/wait", "internal")


async def test_line_that_cannot_be_made(tmp_path: Path) -> None:
    """An exchange whose line can't be made leaves a gap line in its place, and the others have theirs."""
    said = []
    log = AuditLog(str(tmp_path / "access.log"), lambda event, **_fields: said.append(event))
    log.open()
    for number in range(3):
        model: Any = 7 if number == 1 else None  # which is no text
        log.write(Record(str(number), "::1", 1, 0.0, 0.0, verdict=MALFORMED, model=model))
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "access.log").read_text().splitlines()]
    assert [line.get("id") or line["audit_gap"] for line in lines] == ["0", 1, "2"]
    assert said == ["internal"]
