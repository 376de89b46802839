"""The server and its process: its settings, and what it has counted."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import ipaddress
import signal
import sys
from typing import TYPE_CHECKING, Self

from proxy.reading.names import normal_name
from proxy.settings.addresses import joined
from proxy.simulated_ollama.go.http import Connection, Reply
from proxy.simulated_ollama.go.json import dump
from proxy.simulated_ollama.models import DEFAULT_MODELS, Model
from proxy.simulated_ollama.router import route
from proxy.simulated_ollama.runner import Failed
from proxy.simulated_ollama.scheduler import Scheduler
from proxy.simulated_ollama.voices import NATIVE_JSON, native_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from proxy.simulated_ollama.go.head import Head


class SimulatedOllama:
    """One server. Counters are plain attributes; `until` waits for one to change."""

    show_requests = False  # whether each request is printed as it arrives

    def __init__(
        self,
        models: Iterable[Model] = DEFAULT_MODELS,
        version: str = "0.32.15",
        *,
        tokens_per_second: float = 50.0,
        load_seconds: float = 0.0,
        speed: float = 1.0,
        parallel: int = 1,
        max_queue: int = 512,
        max_loaded: int = 3,
        keep_alive: float = 300.0,
        leak_window: float = 0.001,
        cloud: bool = False,
        registry: Iterable[Model] = (),
        pull_rate: float = 0.0,
    ) -> None:
        """Make a server that is not started yet.

        `tokens_per_second`: 0 is as fast as can be. `speed`: how many times faster all speech and loading runs.
        `parallel`, `max_queue`, `max_loaded`, `keep_alive` (seconds): OLLAMA_NUM_PARALLEL, _MAX_QUEUE,
        _MAX_LOADED_MODELS, _KEEP_ALIVE. `leak_window`: seconds in which a caller that leaves is overlooked, its
        connection kept forever. `cloud`: whether names that run elsewhere are tried at all (nobody is signed in).
        `registry`: what can be pulled, at `pull_rate` bytes a second; 0 brings each layer in four reports.
        """
        self.models = {model.name: model for model in models}
        self.registry = {model.name: model for model in registry}
        self.blobs: set[str] = set()
        self.pull_rate = pull_rate
        self.pulled: dict[str, int] = {}  # digest of a layer -> bytes of it that are here
        self.version = version
        self.release = tuple(int(part) for part in version.partition("-")[0].split("."))
        if not any(self.release):
            self.release = (sys.maxsize,)  # a source build calls itself 0.0.0 and is the newest
        self.tokens_per_second = tokens_per_second
        self.speed = speed
        self.leak_window = leak_window
        self.cloud = cloud
        self.signed_out = False
        self.scheduler = Scheduler(
            parallel=parallel,
            max_queue=max_queue,
            max_loaded=max_loaded,
            load_seconds=load_seconds,
            keep_alive=keep_alive,
            speed=speed,
            changed=self.changed,
        )
        self.host = ""
        self.port = 0
        self.open_connections: set[Connection] = set()
        self.seen: list[tuple[str, str]] = []  # method and target of each request, as sent
        self.heads: list[Head] = []  # the same requests whole
        self.connections = 0  # opened ever
        self.disconnects = 0  # callers that left inside an answer
        self.leaked = 0  # callers that left so early that their connection stays forever
        self.stopped = 0  # generations ended by their caller's leaving
        self._server: asyncio.Server | None = None
        self._check_host = True
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    def __repr__(self) -> str:
        return f"<SimulatedOllama {self.version} port={self.port} connections={len(self.open_connections)}>"

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{joined(self.host, self.port)}"

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen; `port` 0 takes a free one. Bound to more than loopback, Ollama checks no Host."""
        self.host = host
        self._check_host = ipaddress.ip_address(host).is_loopback
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connected, host, port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    def _connected(self) -> Connection:
        self.connections += 1
        return Connection(self)

    async def close(self) -> None:
        """End every connection at once and unload everything, as Ollama does on SIGTERM."""
        if self._server is not None:
            self._server.close()
        tasks = [connection.task for connection in self.open_connections]
        for connection in list(self.open_connections):
            connection.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.scheduler.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def changed(self) -> None:
        """Wake those whose condition holds now."""
        for condition, future in self._waiting:
            if not future.done() and condition():
                future.set_result(None)
        self._waiting = [waiting for waiting in self._waiting if not waiting[1].done()]

    async def until(self, condition: Callable[[], bool], seconds: float = 5.0) -> None:
        """Wait for a condition on this server's counters. Raises TimeoutError."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((condition, future))
        self.changed()
        await asyncio.wait_for(future, seconds)

    async def handle(self, request: Head, reply: Reply, connection: Connection) -> None:
        """Answer one request; a mistake in a handler is Go's panic: 500 without content."""
        self.seen.append((request.method, request.target))
        self.heads.append(request)
        if self.show_requests:
            print(f"received {request.method} {request.target}", flush=True)
        self.changed()
        answer = await route(request, reply, self.release, check_host=self._check_host)
        if answer is None:
            return
        try:
            await answer(self, request, reply, connection)
        except Failed as failure:  # in native form on every surface
            await reply.whole(failure.status, dump(native_error(failure.status, failure.text)), NATIVE_JSON)
        except (TypeError, ValueError, KeyError, AttributeError):  # a body of a shape that no reader looked for
            if not reply.begun:
                await reply.whole(500)
            else:
                connection.finish()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one as a process until SIGTERM or SIGINT; returns 0, as Ollama does."""
    parser = argparse.ArgumentParser(prog="python -m proxy.simulated_ollama", description="A simulated Ollama.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=11434, help="port, 0 for a free one (%(default)s)")
    parser.add_argument("--tokens-per-second", type=float, default=50.0, help="pace of speech (%(default)s)")
    parser.add_argument("--load-seconds", type=float, default=0.0, help="time to load a model (%(default)s)")
    parser.add_argument("--version", default="0.32.15", help="Ollama version to be (%(default)s)")
    parser.add_argument("--parallel", type=int, default=1, help="requests that a model answers at once (%(default)s)")
    parser.add_argument("--max-queue", type=int, default=512, help="requests that may wait for a load (%(default)s)")
    parser.add_argument("--max-loaded", type=int, default=3, help="models that are loaded at once (%(default)s)")
    parser.add_argument(
        "--registry", type=_pullable, action="append", default=[], metavar="NAME[=SIZE]", help="a model to be pulled"
    )
    parser.add_argument("--pull-rate", type=float, default=0.0, help="bytes a second, 0 for four reports (%(default)s)")
    parser.add_argument("--speed", type=float, default=1.0, help="make all of it so many times faster (%(default)s)")
    parser.add_argument("--show-requests", action="store_true", help="print each request as it arrives")
    options = vars(parser.parse_args(arguments))
    host, port, shown = (options.pop(name) for name in ("host", "port", "show_requests"))
    ollama = SimulatedOllama(**options)
    ollama.show_requests = shown
    asyncio.run(_run(host, port, ollama))
    return 0


def _pullable(text: str) -> Model:
    """Return the model that an argument asks for: one large layer and a few small ones, and all of it in the GPU."""
    name, _, size = text.partition("=")
    octets, digest = int(size or 2_000_000_000), hashlib.sha256(name.encode()).hexdigest()
    layers = (octets, 1_429, 11_357, 486)  # weights, template, licence, configuration
    memory = octets * 6 // 5
    return Model(normal_name(name), sum(layers), digest, digest, layers=layers, memory=memory, gpu_share=1.0)


async def _run(host: str, port: int, ollama: SimulatedOllama) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await ollama.start(host, port)
    print(f"listening on {ollama.url}", flush=True)
    await stopped.wait()
    await ollama.close()
