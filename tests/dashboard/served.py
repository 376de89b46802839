"""A dashboard that is served on loopback in this process, and a client that sends whatever a test wants."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING, Any, NamedTuple

from aiohttp import web

from proxy.dashboard.guard import TOKEN_FIELD, Guard
from proxy.dashboard.past import Past
from proxy.dashboard.server import Dashboard, application, runner
from proxy.manage.machine.live_client import NotThereError
from proxy.manage.machine.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TOKEN = "t" * 43
NOW = 1_795_464_000.0  # 2026-11-23T20:00:00Z


def request(which: str, **given: Any) -> dict[str, Any]:
    """Return one request as the proxy's socket shows it."""
    usual = {"id": which, "peer": "100.64.0.7", "device": "laptop", "user": None, "path": "/v1/chat/completions"}
    rest = {"model": "tiny", "phase": "content", "seconds": 7.0, "waited": None, "position": None}
    return {**usual, **rest, "events": 4, "pings": 0, "held": 90, "first": 0.5, **given}


def state(*requests: dict[str, Any], models: tuple[dict[str, Any], ...] = (), **more: Any) -> dict[str, Any]:
    """Return what the socket shows of these requests."""
    exchanges = [request(f"a{number}", **each) for number, each in enumerate(requests)]
    totals = {"now": NOW, "started": NOW - 60, "version": "1", "pid": 7, "connections": 2, "counters": {}, "held": 0}
    return {**totals, "exchanges": exchanges, "models": list(models), "looked": 1.0, "troubles": [], **more}


def model(name: str = "registry.ollama.ai/library/tiny:latest", **given: Any) -> dict[str, Any]:
    """Return one model as the socket shows it."""
    usual = {"name": name, "options": {}, "state": "loaded", "seconds": None, "waiting": 0, "sent": 1}
    return {**usual, "memory": 700, "context": 4096, "unloads": None, **given}


class Got(NamedTuple):
    """An answer."""

    status: int
    fields: Mapping[str, str]  # names in lower case
    content: bytes

    @property
    def data(self) -> Any:
        """Its JSON."""
        return json.loads(self.content)


class ScriptedProxy:
    """A running proxy, as its socket shows it; None: no proxy runs."""

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        self.shown = state
        self.asked = 0
        self.cancelled: list[str] = []

    def state(self) -> dict[str, Any]:
        """Return the state, and count who asks."""
        self.asked += 1
        if self.shown is None:
            raise NotThereError("no proxy of this user serves on port 1")
        return self.shown

    def cancel(self, which: str) -> int:
        """End nothing, and say that one was ended."""
        if self.shown is None:
            raise NotThereError("no proxy of this user serves on port 1")
        self.cancelled.append(which)
        return 1


class Served:
    """A dashboard."""

    def __init__(self, folder: Path, log: str | None = None) -> None:
        self.proxy = ScriptedProxy()
        self.past = Past(log)
        machine = Machine(folder, 0, "linux", environ={"HOME": str(folder)})
        flags = {"listen": "127.0.0.1", "access_log": log or "-"}
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        dashboard = Dashboard(machine, flags, self.proxy, self.past)  # type: ignore[arg-type]
        self._runner = runner(application(dashboard, Guard(TOKEN, self.port)))

    async def start(self) -> None:
        """Serve."""
        await self._runner.setup()
        await web.SockSite(self._runner, self._socket).start()

    async def stop(self) -> None:
        """End that."""
        await self._runner.cleanup()
        await self.past.stop()

    @property
    def usual(self) -> list[tuple[str, str]]:
        """The fields that the page sends."""
        return [("Host", f"127.0.0.1:{self.port}"), (TOKEN_FIELD, TOKEN)]

    async def ask(
        self, target: str, method: str = "GET", content: bytes = b"", fields: list[tuple[str, str]] | None = None
    ) -> Got:
        """Send a request with exactly these fields (default: those of the page), and return the answer."""
        lines = [f"{method} {target} HTTP/1.1", "Connection: close", f"Content-Length: {len(content)}"]
        lines += [f"{name}: {value}" for name, value in (self.usual if fields is None else fields)]
        return await self.send("\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + content)

    async def send(self, content: bytes) -> Got:
        """Send any bytes, and return the answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(content)
        head, _, answered = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        status, *others = head.decode("latin-1").split("\r\n")
        named = (line.partition(":") for line in others)
        return Got(int(status.split(" ")[1]), {name.lower(): value.strip() for name, _, value in named}, answered)
