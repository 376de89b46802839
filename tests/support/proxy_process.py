"""The program as a person starts it: a separate process, configured by its environment."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.patience import PATIENCE
from tests.support.ports import free_port
from tests.support.raw_http import Wire

if TYPE_CHECKING:
    from collections.abc import Callable
    from signal import Signals

    from tests.support.raw_http import Answer

ROOT = Path(__file__).parent.parent.parent


class Process:
    """One `python -m proxy` on loopback, its files in a folder of its own."""

    def __init__(self, folder: Path, upstream_port: int, **given: object) -> None:
        """Set variables of its environment; None takes one away. `upstream_port` is where Ollama would be."""
        self.port = free_port()
        self.access_log = folder / "access.log"
        self.config = folder / "config.toml"
        self.said: list[str] = []  # lines on standard error
        self.config.touch()
        own = {
            "PROXY_LISTEN": "127.0.0.1",
            "PROXY_PORT": self.port,
            "PROXY_UPSTREAM": f"http://127.0.0.1:{upstream_port}",
            "PROXY_ACCESS_LOG": self.access_log,
            "PROXY_CONFIG": self.config,
        }
        others = {name: value for name, value in os.environ.items() if not name.startswith("PROXY_")}
        every = others | own | given
        self._environment = {name: str(value) for name, value in every.items() if value is not None}
        self._more = asyncio.Event()
        self._process: asyncio.subprocess.Process
        self._reading: asyncio.Task[None]

    @classmethod
    async def start(
        cls,
        folder: Path,
        upstream_port: int,
        before: Callable[[], None] | None = None,
        first: str = "",
        **given: object,
    ) -> Process:
        """Start one; it listens once it `says` so.

        `before` runs in the new process, ahead of the program. So does `first`, which is Python as a text: later, when
        the process has its standard streams.
        """
        process = cls(folder, upstream_port, **given)
        await process.launch(before, first)
        return process

    async def launch(self, before: Callable[[], None] | None = None, first: str = "") -> None:
        """Start it."""
        words = [sys.executable, "-m", "proxy"]
        if first:
            words[1:] = ["-c", f"import os; {first}; os.execv({sys.executable!r}, {words!r})"]
        self._process = await asyncio.create_subprocess_exec(
            *words,
            cwd=ROOT,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            preexec_fn=before,
        )
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            self.said.append(line.decode().rstrip("\n"))
            self._more.set()
        self._more.set()

    @property
    def pid(self) -> int:
        """Its id."""
        return self._process.pid

    async def says(self, text: str, *, count: int = 1) -> str:
        """Wait until `text` has come `count` times on standard error; return the last line with it."""
        try:
            async with asyncio.timeout(PATIENCE):
                while len(found := [line for line in self.said if text in line]) < count:
                    assert not self._reading.done(), f"ended without `{text}`: {self.said}"
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            raise AssertionError(f"never said `{text}`: {self.said}") from None
        return found[-1]

    def signal(self, number: Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    async def exit(self) -> tuple[int, str]:
        """Wait for its end; return the exit code and what it said on standard error."""
        async with asyncio.timeout(PATIENCE):
            code = await self._process.wait()
            await self._reading
        return code, "\n".join(self.said)

    async def kill(self) -> None:
        """End it, however it stands."""
        if self._process.returncode is None:
            self._process.kill()
            await self.exit()

    async def connect(self) -> Wire:
        """Return a raw client of it."""
        return await Wire.open(self.port)

    async def ask(self, method: str, target: str, content: bytes | None = None, **fields: str) -> Answer:
        """Return the answer to one request on a connection of its own."""
        client = await self.connect()
        try:
            await client.request(method, target, content, **fields)
            return await client.answer()
        finally:
            client.close()

    def lines(self) -> list[dict[str, Any]]:
        """Return the access log."""
        return [json.loads(line) for line in self.access_log.read_text().splitlines()]

    def lines_of(self, **wanted: object) -> int:
        """Return how many lines of the access log, whole ones, have these values."""
        lines = map(json.loads, self.access_log.read_text().split("\n")[:-1])
        return sum(all(line.get(key) == value for key, value in wanted.items()) for line in lines)

    def descriptors(self) -> int:
        """Return how many files it has open. Linux only."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def memory(self) -> int:
        """Return how many bytes of its memory are in RAM. Linux only."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024
