"""Start the process that keeps the index, ask it to catch up, and follow its progress."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import proxy
from proxy import PROGRAM
from proxy.dashboard.index.builder import AGAIN

if TYPE_CHECKING:
    from collections.abc import Callable

MODULE = "proxy.dashboard.index.builder"

CATCHES_UP_WITHIN = 0.25
"""Seconds that an answer waits for the newest lines. After that, it goes without them."""

FINDS_OUT_WITHIN = 2.0
"""Seconds that the first answer waits for the process to begin. If nothing is new, the index is ready by then."""

STARTS_AGAIN = 5.0
"""Seconds after a start before a process that ended by itself is started again."""

ENDS_WITHIN = 3.0
"""Seconds that the process has to finish a block of the log."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the index is."""

    state: str  # `building`, `ready`, `none` (there is no log) or `failed`
    lines: int = 0
    done: int = 0  # bytes of the log
    total: int = 0
    problem: str | None = None
    hint: str | None = None

    def shown(self, log: str | None) -> dict[str, Any]:
        """Return it in the form of the page."""
        counts = {"lines": self.lines, "done": self.done, "total": self.total}
        return {"state": self.state, **counts, "log": log, "problem": self.problem, "hint": self.hint}


NO_LOG = Progress(
    "none",
    problem="the access log goes to standard output (access_log is `-`), so nothing is kept",
    hint=f"{PROGRAM} dashboard --access-log FILE",
)


class Keeper:
    """One log's process."""

    def __init__(self, log: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.log = log
        self.progress = Progress("building")
        self._clock = clock
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._begun = asyncio.Event()  # the process has reported once
        self._settled = asyncio.Event()  # nothing is left to do
        self._started = 0.0

    async def start(self) -> None:
        """Start it, and ask it to catch up."""
        self._started = self._clock()
        # A session of its own, so that Ctrl-C doesn't reach it: it ends when its standard input does. `-P` keeps Python
        # from taking a folder called `proxy`, where the command happened to be typed, for this package.
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", MODULE, self.log),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=_environment(),
            start_new_session=True,
        )
        self._reading = asyncio.create_task(self._read(self._process))
        self._ask()

    async def catch_up(self) -> Progress:
        """Ask for the newest lines, wait briefly for them, and return the progress."""
        if self._process is None or self._process.returncode is not None:
            if self._clock() - self._started >= STARTS_AGAIN:
                await self.start()
        elif self._settled.is_set():
            self._ask()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._begun.wait(), FINDS_OUT_WITHIN)
            await asyncio.wait_for(self._settled.wait(), CATCHES_UP_WITHIN)
        return self.progress

    def again(self) -> None:
        """Ask for a new index, because the present one is broken."""
        self.progress = Progress("building")
        self._ask(AGAIN + b"\n")

    async def settled(self, shown: Callable[[Progress], object] = lambda _: None) -> Progress:
        """Wait until the index is up to date or has failed. `shown` gets each step."""
        while not self._settled.is_set():
            shown(self.progress)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._settled.wait(), 0.1)
        shown(self.progress)
        return self.progress

    async def stop(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is None or process.stdin is None or self._reading is None:
            return
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), ENDS_WITHIN)
        except TimeoutError:
            process.kill()
            await process.wait()
        await self._reading

    def _ask(self, what: bytes = b"\n") -> None:
        if self._process is not None and self._process.stdin is not None:
            self._settled.clear()
            with suppress(ConnectionError):
                self._process.stdin.write(what)

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None  # noqa: S101 - it was asked for
        async for line in process.stdout:
            found = Progress(**json.loads(line))
            if found.state != "building" or self.progress.state != "ready":
                self.progress = found
            self._begun.set()
            if found.state != "building":
                self._settled.set()
        await process.wait()
        if process is self._process:
            problem = f"the process that keeps the index ended with code {process.returncode}"
            self.progress = Progress("failed", problem=problem, hint=f"{PROGRAM} dashboard")
            self._begun.set()
            self._settled.set()


def _environment() -> dict[str, str]:
    """Return the environment of the process: ours, and the location of this package."""
    paths = [str(Path(proxy.__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
