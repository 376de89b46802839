"""Fixtures: a scripted upstream, the whole gateway before it, and raw clients of it."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
import uvloop
from hypothesis import settings

from tests.support.examples import examples, left_out
from tests.support.mac.darwin_kernel import Darwin, install
from tests.support.mac.installed_mac import Installed
from tests.support.patience import PATIENCE
from tests.support.process_marker import Watch, starts_processes
from tests.support.proxy_process import Process
from tests.support.raw_http import Proxy, Upstream, Wire

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path


settings.register_profile("ours", examples(100))
settings.load_profile("ours")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Give each test the time for several waits that fail, unless the command line says otherwise."""
    if config.option.timeout is None:
        config.option.timeout = 5 * PATIENCE
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a script's background jobs; children would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "not process" in config.option.markexpr:
        config.pluginmanager.register(Watch())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that start processes, before -m picks some out, and leave out what `make quick` doesn't play."""
    unwanted = dict.fromkeys(left_out(items))
    config.hook.pytest_deselected(items=[*unwanted])
    items[:] = [item for item in items if item not in unwanted]
    for item in items:
        if isinstance(item, pytest.Function) and starts_processes(item):
            item.add_marker("process")


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run tests on the loop that the program runs on: it closes, buffers and reports in ways of its own."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session", autouse=True)
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the sockets of proxies that serve out of the user's home."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    """Give an upstream that answers as a test scripts it."""
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


@pytest.fixture
async def program(tmp_path: Path, upstream: Upstream) -> AsyncIterator[Callable[..., Awaitable[Process]]]:
    """Give a function that starts the program in a process of its own, before `upstream`; see `Process.start`."""
    started: list[Process] = []

    async def start(before: Callable[[], None] | None = None, first: str = "", **environ: object) -> Process:
        started.append(await Process.start(tmp_path, upstream.port, before, first, **environ))
        return started[-1]

    yield start
    for process in started:
        await process.kill()


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Installed]:
    """Give a Mac on which both services are installed and all is well."""
    mac = Installed(tmp_path)
    yield mac
    mac.close()


@pytest.fixture
def darwin(monkeypatch: pytest.MonkeyPatch) -> Darwin:
    """Let the rules of macOS's kernel hold for sockets and clocks."""
    return install(monkeypatch)
