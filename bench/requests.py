"""What a request costs: small ones, one with much content, the first byte of a stream, and a connection for each."""

from __future__ import annotations

import asyncio
import socket
import struct
from time import monotonic
from typing import TYPE_CHECKING

from bench.load import chat, crowd, request, whole

if TYPE_CHECKING:
    from bench.contenders import Running
    from bench.stage import Stage

AT_ONCE = 16
"""Connections that are kept busy."""

RATE = 2000
"""Requests a second, where all get the same to do."""

VERSION = ("GET", "/api/version", b"")
CHAT = ("POST", "/v1/chat/completions", chat())
LONG_CHAT = ("POST", "/v1/chat/completions", chat(padding=76 * 1024))
"""As large as what a coding tool sends with its instructions and tools."""

_PATIENCE = 30.0

_RESET = struct.pack("ii", 1, 0)
"""Closes without a word, or the ports that wait would soon be all there are."""


async def measure(stage: Stage) -> None:
    """Take all of them."""
    scale = stage.scale
    stage.say("a first answer of each, which isn't counted")
    for running in stage.takers("post"):
        async with crowd(running.port, request(*CHAT), 1) as first:
            await first.run(1, 0.5 * running.contender.pace)
    await _busy(stage, "get", VERSION, scale.rounds)
    await stage.rounds(
        f"GET /api/version, {RATE:,} times a second",
        [running for running in stage.takers("steady") if running.contender.pace == 1],
        scale.fewer,
        lambda running: _steady(stage, running),
    )
    await _busy(stage, "post", CHAT, scale.fewer)
    await _busy(stage, "long", LONG_CHAT, scale.fewer)
    await stage.rounds(
        "a stream's first byte",
        stage.takers("first_byte", direct=True),
        scale.fewer,
        lambda running: _first_bytes(stage, running),
    )
    await stage.rounds(
        "a connection for each request",
        stage.takers("connection"),
        scale.fewer,
        lambda running: _connections(stage, running),
    )


async def _busy(stage: Stage, measure: str, ask: tuple[str, str, bytes], times: int) -> None:
    async def one(running: Running) -> None:
        before = running.cpu()
        seconds = stage.scale.seconds * (1 if running.contender.pace == 1 else 3)
        asked = await stage.generator.run(running.port, ask, AT_ONCE, seconds)
        used = running.cpu() - before
        if not asked.requests:
            raise RuntimeError(f"{running.name} answers nothing within {seconds:g} s")
        if running.pids:
            stage.figures.note(f"{measure}_cpu", running.name, used / asked.requests * 1e6)
        stage.figures.note(f"{measure}_rate", running.name, asked.requests / asked.seconds)

    title = f"{ask[0]} {ask[1]}" + (f" with {len(ask[2]):,} octets" if ask[2] else "")
    await stage.rounds(title, stage.takers(measure, direct=True), times, one)


async def _steady(stage: Stage, running: Running) -> None:
    async with crowd(running.port, request(*VERSION), AT_ONCE) as found:
        before = running.cpu()
        asked = await found.steady(RATE, stage.scale.seconds)
        stage.figures.note("steady_cpu", running.name, (running.cpu() - before) / asked.requests * 1e6)


async def _first_bytes(stage: Stage, running: Running) -> None:
    """Ask for one stream after the other on one connection, and take the median time to the first octet."""
    octets = request("POST", "/v1/chat/completions", chat("chunks=1"))
    times = []
    with socket.create_connection(("127.0.0.1", running.port), _PATIENCE) as sock:
        for _ in range(stage.scale.first_bytes):
            began = monotonic()
            sock.sendall(octets)
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
    """Ask once on each connection, eight at a time."""
    octets = request(*VERSION)
    loop = asyncio.get_running_loop()
    done = 0
    until = monotonic() + stage.scale.seconds

    async def ask() -> None:
        nonlocal done
        while monotonic() < until:
            with socket.socket() as sock:
                sock.setblocking(False)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                await loop.sock_connect(sock, ("127.0.0.1", running.port))
                await loop.sock_sendall(sock, octets)
                answer = b""
                while not whole(answer):
                    answer += _more(await loop.sock_recv(sock, 65536))
            done += 1

    before = running.cpu()
    await asyncio.gather(*(ask() for _ in range(8)))
    stage.figures.note("connection_cpu", running.name, (running.cpu() - before) / done * 1e6)
