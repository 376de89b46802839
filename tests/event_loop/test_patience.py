"""A time limit that runs out when its time is over, and not because the machine slept."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from proxy.event_loop.patience import within
from proxy.exchange.upstream import pool
from proxy.exchange.upstream.upstream import State
from proxy.tailnet import localapi
from tests.support.raw_http import NEXT, ok

if TYPE_CHECKING:
    from tests.support.mac.darwin_kernel import Darwin
    from tests.support.raw_http import Proxy, Upstream, Wire


async def until_the_loop_has_passed(seconds: float) -> None:
    """Wait by the loop's own clock."""
    over = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, over.set)
    await over.wait()


async def test_over() -> None:
    """What takes too long is given up with a TimeoutError."""
    with pytest.raises(TimeoutError):
        async with within(0.02):
            await asyncio.Event().wait()


async def test_in_time() -> None:
    """What is done in time is let be, and nothing is left to run out."""
    async with within(0.02):
        await asyncio.sleep(0)
    await until_the_loop_has_passed(0.03)


async def test_error() -> None:
    """An error of the body is its own."""
    with pytest.raises(ZeroDivisionError):
        async with within(5.0):
            raise ZeroDivisionError


async def test_cancellation_from_outside() -> None:
    """A task that is cancelled within it is cancelled, not late."""

    async def wait() -> None:
        async with within(5.0):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_sleep(darwin: Darwin) -> None:
    """A machine that sleeps past the limit has used none of it up; afterwards the limit holds."""
    awake = asyncio.Event()

    async def wait() -> None:
        async with within(0.02):
            with darwin.asleep():
                await until_the_loop_has_passed(0.06)
            await until_the_loop_has_passed(0.001)  # the timers that were due at wake-up have run
            awake.set()
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await wait()
    assert awake.is_set()


class SlowLoop:
    """The running loop, but that a connection takes as long as a nap of the machine."""

    def __init__(self, darwin: Darwin) -> None:
        self.loop = asyncio.get_running_loop()
        self.darwin = darwin

    def __getattr__(self, name: str) -> Any:
        """Be the loop in all else."""
        return getattr(self.loop, name)

    async def create_connection(self, factory: Any, *where: Any) -> tuple[Any, Any]:
        """Connect after a nap."""
        with self.darwin.asleep():
            await until_the_loop_has_passed(0.06)
        return await self.loop.create_connection(factory, *where)


async def test_ollama_after_a_sleep(darwin: Darwin, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to Ollama that a sleep interrupts is not taken for one that Ollama doesn't accept."""
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as server:
        loop = SlowLoop(darwin)
        monkeypatch.setattr(pool.asyncio, "get_running_loop", lambda: loop)
        connection = await pool.connect("127.0.0.1", server.sockets[0].getsockname()[1], 0.02)
        assert connection.state is State.IDLE
        connection.close()


async def test_tailscale_after_a_sleep(darwin: Darwin, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question to Tailscale that a sleep interrupts is not taken for one without an answer."""
    monkeypatch.setattr(localapi, "LOCALAPI_TIMEOUT", 0.02)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        with darwin.asleep():
            await until_the_loop_has_passed(0.06)
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n{}")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        door = localapi.Door("", server.sockets[0].getsockname()[1], "")
        assert await localapi.get(door, "status") == (200, b"{}")


async def test_drain_after_a_sleep(darwin: Darwin, gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """A stream that a stop lets finish is not cut because the machine slept meanwhile."""
    upstream.answers(NEXT, ok())
    await wire.request("GET", "/api/version")
    await upstream.arrived.wait()
    draining = asyncio.create_task(gateway.clients.drain(0.05))
    with darwin.asleep():
        await until_the_loop_has_passed(0.15)
    upstream.proceed()
    assert (await wire.answer()).status == 200
    await draining
