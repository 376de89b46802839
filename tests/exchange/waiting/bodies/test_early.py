"""Bodies that come before it is known who asks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from proxy.exchange.upstream.asking import Ollama
from proxy.exchange.waiting.room import Room
from proxy.exchange.waiting.rules import Rules
from proxy.policy.identity import Standing
from tests.exchange.waiting.asking import PATHS, body
from tests.support.raw_http import Proxy, until, within

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from proxy.simulated_ollama.server import SimulatedOllama


class Slow:
    """A Tailscale that answers when a test lets it."""

    def __init__(self) -> None:
        self.answer = asyncio.Event()

    def known(self, ip: str, port: int) -> None:
        """Return that a peer must be asked about."""

    def expect(self, ip: str, port: int) -> None:
        """Take the news of a peer."""

    async def ask(self, ip: str, port: int) -> Standing:
        """Return that a peer is served, once the test allows it."""
        await asyncio.ensure_future(self.answer.wait())
        return Standing()


@pytest.fixture
def slow() -> Slow:
    """Give a Tailscale that takes its time."""
    return Slow()


@pytest.fixture
async def house(ollama: SimulatedOllama, slow: Slow) -> AsyncIterator[Proxy]:
    """Give the gateway with a room, which asks `slow` about each peer."""
    proxy = Proxy(ollama.port, identities=slow)
    await proxy.start()
    proxy.gateway.room = Room(Ollama(proxy.pool, proxy.gateway.target), Rules(parallel=1))
    yield proxy
    await proxy.stop()
    await proxy.gateway.room.loads.close()


@pytest.mark.parametrize("size", [300_000, 2_000_000], ids=["an_agents", "with_images"])
async def test_a_body_is_read_on_after_the_identity(
    house: Proxy, slow: Slow, ollama: SimulatedOllama, size: int
) -> None:
    """A body that came as far as nobody holds more, while Tailscale was asked, still comes whole afterwards."""
    content = body(messages=[{"role": "user", "content": "why " * (size // 4)}])
    wire = await house.connect()
    sending = asyncio.ensure_future(wire.request("POST", PATHS[0], content))
    await until(lambda: any(client.held for client in house.clients.connections))
    slow.answer.set()
    await within(sending)
    assert (await within(wire.answer())).status == 200
