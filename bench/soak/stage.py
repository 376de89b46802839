"""The two processes, and what is done to them: Ollama ends and starts again, settings change, requests are ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from proxy.manage.machine.live_client import Live, LiveError

if TYPE_CHECKING:
    from random import Random

PATIENCE = 60.0
"""Seconds in which a process starts or ends, however busy the machine is."""

HOST = "127.0.0.1"

# Two settings files between which reloads alternate, and one that a reload must refuse.
_SETTINGS = (
    'allow = ["POST /api/chat"]\nparallel = 4\nswap_after = "2s"\nmax_waiting = 20\n',
    'allow = ["POST /api/chat", "POST /v1/embeddings"]\nmax_body = "1 MiB"\nstall_timeout = "30s"\nparallel = 2\n',
)
_WRONG = 'alow = ["POST /api/chat"]\nmax_body = "much"\n'


class Program:
    """A process `python -m module` that listens on a port of its own."""

    def __init__(self, folder: Path, module: str, *arguments: str, port: int, **environ: str) -> None:
        self.port = port
        self.printed = folder / f"{module}.txt"
        self._command = [sys.executable, "-m", module, *arguments]
        others = {name: value for name, value in os.environ.items() if not name.startswith("PROXY_")}
        self._environ = others | environ
        self._process: asyncio.subprocess.Process

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.returncode

    async def start(self) -> None:
        """Start it, and wait until it listens."""
        with self.printed.open("ab") as printed:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                env=self._environ,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,
                start_new_session=True,  # Ctrl-C is for the soak, which ends this process
            )
        async with asyncio.timeout(PATIENCE):
            while self.exit_code is None:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection(HOST, self.port)
                    writer.close()
                    return
                await asyncio.sleep(0.02)
        raise RuntimeError(f"{self.printed.stem} did not start: {self.printed.read_text()[-1000:]}")

    async def end(self, number: signal.Signals) -> int:
        """Send it a signal that ends it; return the exit code."""
        if self.exit_code is None:
            self._process.send_signal(number)
        async with asyncio.timeout(PATIENCE):
            return await self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def memory(self) -> float:
        """Return how much of its memory is in RAM, in MiB."""
        status = Path(f"/proc/{self.pid}/status")
        if status.exists():
            return int(status.read_text().partition("VmRSS:")[2].split()[0]) / 1024
        found = subprocess.run(["ps", "-o", "rss=", "-p", str(self.pid)], check=True, capture_output=True, text=True)
        return int(found.stdout) / 1024

    def descriptors(self) -> int:
        """Return how many files it has open."""
        folder = Path(f"/proc/{self.pid}/fd")
        if folder.exists():
            return len([*folder.iterdir()])
        found = subprocess.run(["lsof", "-p", str(self.pid), "-Ff"], check=True, capture_output=True, text=True)
        return sum(line[1:].isdigit() for line in found.stdout.splitlines() if line.startswith("f"))


class Stage:
    """The proxy in front of a simulated Ollama, and what is done to them.

    `moments` has each event's time, for the picture.
    """

    def __init__(self, folder: Path) -> None:
        with socket.create_server((HOST, 0)) as one, socket.create_server((HOST, 0)) as other:
            ports = one.getsockname()[1], other.getsockname()[1]
        self.access_log = folder / "access.log"
        self.moments: dict[str, list[float]] = {"R": [], "H": [], "C": []}
        self.begun = monotonic()
        self.reloads: list[bool] = []  # whether the settings of each were valid
        self._down: list[tuple[float, float]] = []  # when Ollama was not to be relied on
        self._config = folder / "config.toml"
        self._config.write_text(_SETTINGS[0])
        options = ("--port", str(ports[0]), "--tokens-per-second", "0", "--parallel", "256", "--max-queue", "4096")
        memory = ("--load-seconds", "1", "--max-loaded", "1")  # so that models evict each other
        self.ollama = Program(folder, "proxy.simulated_ollama", *options, *memory, port=ports[0])
        environ = {
            "LISTEN": HOST,
            "PORT": str(ports[1]),
            "UPSTREAM": f"http://{HOST}:{ports[0]}",
            "ACCESS_LOG": str(self.access_log),
            "CONFIG": str(self._config),
            "LOG_MAX_SIZE": "1 MiB",
            "LOG_KEEP": "99",
            "PING_AFTER": "0.3s",
            "PING_EVERY": "1s",
        }
        home = {"HOME": str(folder), "XDG_STATE_HOME": "", "XDG_CONFIG_HOME": ""}
        self._live = Live(ports[1], home)
        self.proxy = Program(
            folder, "proxy", port=ports[1], **home, **{f"PROXY_{name}": value for name, value in environ.items()}
        )

    @property
    def base(self) -> str:
        """The proxy's base URL."""
        return f"http://{HOST}:{self.proxy.port}"

    async def start(self) -> None:
        """Start both."""
        await self.ollama.start()
        await self.proxy.start()

    async def close(self) -> None:
        """End the processes that still run."""
        for program in (self.proxy, self.ollama):
            with contextlib.suppress(AttributeError, TimeoutError):  # one that was never started
                await program.end(signal.SIGKILL)

    def excused(self, begun: float, ended: float) -> bool:
        """Return whether Ollama was away at any moment between these two."""
        return any(begun <= until and ended >= since for since, until in self._down)

    async def trouble(self, random: Random, pause: float) -> None:
        """Make trouble about every `pause` seconds, until cancelled."""
        while True:
            await asyncio.sleep(pause * (0.5 + random.random()))
            await random.choice((self._restart, self._reload, self._cancel))(random)

    async def _restart(self, random: Random) -> None:
        self.moments["R"].append(monotonic() - self.begun)
        self._down.append((monotonic(), float("inf")))
        await self.ollama.end(random.choice((signal.SIGTERM, signal.SIGKILL)))
        await asyncio.sleep(random.random())
        await self.ollama.start()
        self._down[-1] = (self._down[-1][0], monotonic())

    async def _reload(self, random: Random) -> None:
        self.moments["H"].append(monotonic() - self.begun)
        settings = random.choice((*_SETTINGS, _WRONG))
        self._config.write_text(settings)
        self.proxy.signal(signal.SIGHUP)
        self.reloads.append(settings != _WRONG)
        await asyncio.sleep(0.2)  # a second signal that comes while one is pending would merge with it

    async def _cancel(self, random: Random) -> None:
        """End a few requests that wait or are with Ollama, as their owner may."""
        self.moments["C"].append(monotonic() - self.begun)
        for _ in range(5):
            there = [each["id"] for each in (await self.live()).get("exchanges", ())]
            if there:
                with contextlib.suppress(LiveError):
                    await asyncio.to_thread(self._live.cancel, random.choice(there))
            await asyncio.sleep(0.05)

    async def live(self) -> dict[str, Any]:
        """Return what the proxy says on its socket; nothing if it doesn't."""
        with contextlib.suppress(LiveError):
            return await asyncio.to_thread(self._live.state)
        return {}

    def said(self, event: str) -> int:
        """Return how many of the proxy's diagnostics are of that event."""
        lines = self.proxy.printed.read_text(errors="replace").splitlines()
        return sum(line.split()[2:3] == [event] for line in lines)
