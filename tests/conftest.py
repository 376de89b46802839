"""Fixtures: a scripted upstream, the whole gateway before it, and raw clients of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import uvloop
from tests.wire import Proxy, Upstream, Wire

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Callable


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run tests on the loop that the program runs on: it closes, buffers and reports in ways of its own."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    """Give an upstream that answers as a test tells it to."""
    server = Upstream()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def gateway(upstream: Upstream) -> AsyncIterator[Proxy]:
    """Give the gateway, before `upstream`."""
    proxy = Proxy(upstream.port)
    await proxy.start()
    yield proxy
    await proxy.stop()


@pytest.fixture
async def wire(gateway: Proxy) -> AsyncIterator[Wire]:
    """Give a client that is connected to `gateway`."""
    client = await gateway.connect()
    yield client
    client.close()
