"""The cost of a request: small ones, large ones, the first byte of a stream, and a new connection for each."""

from __future__ import annotations

import asyncio
import socket
import struct
from time import monotonic
from typing import TYPE_CHECKING

from bench.wire import traffic
from bench.wire.load import crowd, request, whole
from bench.wire.traffic import LONG

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.contenders import Running
    from bench.stage import Stage

AT_ONCE = 16
"""Connections that are kept busy."""

RATE = 1000
"""Requests a second, where all contenders get the same load."""

VERSION = request("GET", "/api/version")
"""The one request that is always the same: every cache of a proxy holds it."""

_FEW = 512
"""Long chats that differ."""

_PATIENCE = 30.0

_RESET = struct.pack("ii", 1, 0)
"""Closes its sockets with a reset, because sockets in TIME_WAIT would soon use up all ports."""


async def measure(stage: Stage) -> None:
    """Measure all of them."""
    scale = stage.scale
    stage.say("one answer of each first, which isn't counted")
    for running in stage.takers("chat"):
        async with crowd(running.port, traffic.requests(running.port, count=16), 1) as first:
            await first.run(1, 0.5 * running.contender.pace)
    await _busy(stage, "chat", "small chats, each different", traffic.requests, scale.rounds)
    await stage.rounds(
        f"small chats, {RATE:,} a second",
        [running for running in stage.takers("steady") if running.contender.pace == 1],
        scale.fewer,
        lambda running: _steady(stage, running),
    )
    await _busy(stage, "agent", "long chats", lambda port: traffic.requests(port, LONG, count=_FEW), scale.fewer)
    await _busy(stage, "get", "one identical GET", lambda _: [VERSION], scale.rounds)
    await stage.rounds(
        "a stream's first byte",
        stage.takers("first_byte", direct=True),
        scale.fewer,
        lambda running: _first_bytes(stage, running),
    )
    await stage.rounds(
        "a new connection for each request",
        stage.takers("connection"),
        scale.fewer,
        lambda running: _connections(stage, running),
    )


async def _busy(stage: Stage, measure: str, title: str, make: Callable[[int], list[bytes]], times: int) -> None:
    async def one(running: Running) -> None:
        asking = make(running.port)
        seconds = stage.scale.seconds * (1 if running.contender.pace == 1 else 3)
        for window in (seconds, 10 * seconds, 100 * seconds):  # a short window on a busy machine may have no response
            before = running.cpu()
            asked = await stage.generator.run(running.port, asking, AT_ONCE, window)
            used = running.cpu() - before
            if asked.requests:
                break
        else:
            raise RuntimeError(f"{running.name} answers nothing within {window:g} s")
        if running.pids:
            stage.figures.note(f"{measure}_cpu", running.name, used / asked.requests * 1e6)
        stage.figures.note(f"{measure}_rate", running.name, asked.requests / asked.seconds)

    await stage.rounds(title, stage.takers(measure, direct=True), times, one)


async def _steady(stage: Stage, running: Running) -> None:
    async with crowd(running.port, traffic.requests(running.port), AT_ONCE) as found:
        before = running.cpu()
        asked = await found.steady(RATE, stage.scale.seconds)
        stage.figures.note("chat_steady_cpu", running.name, (running.cpu() - before) / asked.requests * 1e6)


async def _first_bytes(stage: Stage, running: Running) -> None:
    """Request one stream after the other on one connection, and take the median time to the first byte."""
    asking = traffic.requests(running.port, order="chunks=1", count=stage.scale.first_bytes)
    times = []
    with socket.create_connection(("127.0.0.1", running.port), _PATIENCE) as sock:
        for message in asking:
            began = monotonic()
            sock.sendall(message)
            answer = sock.recv(65536)
            times.append(monotonic() - began)
            while not whole(answer):
                answer += _more(sock.recv(65536))
    stage.figures.note("first_byte", running.name, sorted(times)[len(times) // 2] * 1e3)


def _more(data: bytes) -> bytes:
    if not data:
        raise RuntimeError("a connection was closed before its answer was whole")
    return data


async def _connections(stage: Stage, running: Running) -> None:
    """Send one request on each connection, eight at a time."""
    asking = traffic.cycle(traffic.requests(running.port))
    loop = asyncio.get_running_loop()
    done = 0
    until = monotonic() + stage.scale.seconds

    async def ask() -> None:
        nonlocal done
        while monotonic() < until or not done:
            with socket.socket() as sock:
                sock.setblocking(False)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                await loop.sock_connect(sock, ("127.0.0.1", running.port))
                await loop.sock_sendall(sock, next(asking))
                answer = b""
                while not whole(answer):
                    answer += _more(await loop.sock_recv(sock, 65536))
            done += 1

    before = running.cpu()
    await asyncio.gather(*(ask() for _ in range(8)))
    stage.figures.note("connection_cpu", running.name, (running.cpu() - before) / done * 1e6)
