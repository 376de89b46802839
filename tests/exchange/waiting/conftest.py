"""The gateway with a room, in front of a simulated Ollama."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from proxy.exchange.upstream.asking import Ollama
from proxy.exchange.waiting.room import Room
from proxy.exchange.waiting.rules import Rules
from proxy.simulated_ollama.models import DEFAULT_MODELS, EMBEDDER
from proxy.simulated_ollama.server import SimulatedOllama
from tests.support.raw_http import Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BROKEN = replace(DEFAULT_MODELS[-1], name="broken:latest", load_fails=True)


@pytest.fixture
async def ollama() -> AsyncIterator[SimulatedOllama]:
    """Give a simulated Ollama that loads at once."""
    async with SimulatedOllama([*DEFAULT_MODELS, EMBEDDER, BROKEN], tokens_per_second=0) as server:
        yield server


@pytest.fixture
async def house(ollama: SimulatedOllama) -> AsyncIterator[Proxy]:
    """Give the gateway with a room, before `ollama`."""
    proxy = Proxy(
        ollama.port, allow=("POST /api/chat", "POST /api/generate", "POST /api/embed", "POST /api/embeddings")
    )
    await proxy.start()
    proxy.gateway.room = Room(Ollama(proxy.pool, proxy.gateway.target), Rules(parallel=1))
    yield proxy
    await proxy.stop()
    await proxy.gateway.room.judge.close()
    await proxy.gateway.room.loads.close()
