"""Which models are loaded, which request loads one, which requests wait, and when a model is unloaded.

A model is loaded once. A request whose load-time options differ from those in force has it loaded again, when its
requests are done (`needsReload` in Ollama's server/sched.go).

One load at a time; `max_queue` counts only those who wait for a load of another model than the one being loaded. With
`max_loaded` models there, a load first unloads the one that was to stay for the shortest time, an idle one if there is.
Requests for a loaded model wait without limit, first come first served, for one of its `parallel` slots.
"""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from proxy.simulated_ollama.runner import Failed, Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.simulated_ollama.models import Model
    from proxy.simulated_ollama.runner import Ask, Form

# Go's value of "forever": the longest duration that it can count, in seconds.
_FOREVER = (2**63 - 1) / 1e9
_BUSY = "server busy, please try again.  maximum pending requests exceeded"
_LOAD_FAILED = "llama-server process has terminated: exit status 1: error: stand-in was told to fail the load"


class Runner:
    """A loaded model."""

    def __init__(self, model: Model, load: Form, slots: int, keep_alive: float) -> None:
        self.model = model
        self.load = load
        self.slots = asyncio.Semaphore(slots)
        self.keep_alive = keep_alive
        self.users = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.expires_at = datetime.now(UTC)
        self.timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Runner {self.model.name} users={self.users}>"


class Scheduler:
    """Loads on demand, unloads when a model has been idle for its keep_alive."""

    def __init__(
        self,
        *,
        parallel: int,
        max_queue: int,
        max_loaded: int,
        load_seconds: float,
        keep_alive: float,
        speed: float,
        changed: Callable[[], None],
    ) -> None:
        self.parallel = parallel
        self.max_queue = max_queue
        self.max_loaded = max_loaded
        self.load_seconds = load_seconds
        self.keep_alive = keep_alive
        self.speed = speed
        self.changed = changed
        self.runners: dict[str, Runner] = {}
        self.loads = 0  # begun
        self.loads_aborted = 0
        self.queued = 0
        self._turn = asyncio.Lock()
        self._loading: tuple[str, asyncio.Event] | None = None

    async def runner(self, model: Model, ask: Ask) -> Runner:
        """Return the loaded `model`, loading it first if need be. Raises Failed; cancelling aborts its own load."""
        while (runner := self.runners.get(model.name)) is None or runner.load != ask.load:
            if self._loading is not None and self._loading[0] == model.name:
                ask.stage = Stage.WAITING
                await self._loading[1].wait()
                continue
            if self._turn.locked():
                if self.queued >= self.max_queue:
                    raise Failed(503, _BUSY)
                ask.stage = Stage.QUEUED
            self.queued += 1
            self.changed()
            try:
                await self._turn.acquire()
            finally:
                self.queued -= 1
            try:
                loaded = self.runners.get(model.name)
                if loaded is not None and loaded.load != ask.load:
                    await self._retire(loaded)
                if model.name not in self.runners:
                    await self._make_room()
                    await self._load(model, ask)
            finally:
                self._turn.release()
        runner.keep_alive = runner.keep_alive if ask.keep_alive is None else ask.keep_alive
        ask.stage = Stage.WAITING
        return runner

    async def _make_room(self) -> None:
        """Unload what has to go for one more model, when its requests are done."""
        while len(self.runners) >= self.max_loaded:
            by_age = sorted(self.runners.values(), key=lambda runner: (runner.keep_alive, runner.model.name))
            runner = next((runner for runner in by_age if not runner.users), by_age[0])
            await self._retire(runner)

    async def _retire(self, runner: Runner) -> None:
        """Unload a model when its requests are done."""
        while runner.users:
            await runner.idle.wait()
        self.unload(runner)

    async def _load(self, model: Model, ask: Ask) -> None:
        order = ask.orders.get("load", "")
        seconds = self.load_seconds if model.load_seconds is None else model.load_seconds
        if order not in ("", "fail"):
            seconds = float(order)
        ask.stage = Stage.LOADING
        self._loading = (model.name, asyncio.Event())
        self.loads += 1
        self.changed()
        try:
            await asyncio.sleep(seconds / self.speed)
            if model.load_fails or order == "fail":
                raise Failed(500, _LOAD_FAILED)
            self.runners[model.name] = Runner(model, ask.load, self.parallel, self.keep_alive)
        except asyncio.CancelledError:
            self.loads_aborted += 1
            raise
        finally:
            self._loading[1].set()
            self._loading = None
            self.changed()

    def begin(self, runner: Runner) -> None:
        """Note that a request uses `runner`, which therefore stays."""
        runner.users += 1
        runner.idle.clear()
        self.changed()
        if runner.timer is not None:
            runner.timer.cancel()

    def end(self, runner: Runner) -> None:
        """Note that a request is done; the last one starts the clock of keep_alive."""
        runner.users -= 1
        seconds = min(runner.keep_alive, _FOREVER)
        runner.expires_at = datetime.now(UTC) + timedelta(seconds=seconds)
        if runner.users:
            return
        runner.idle.set()
        if not math.isinf(runner.keep_alive):
            runner.timer = asyncio.get_running_loop().call_later(max(0.0, seconds), self.unload, runner)

    def unload(self, runner: Runner) -> None:
        """Throw a runner away."""
        if runner.timer is not None:
            runner.timer.cancel()
        if self.runners.get(runner.model.name) is runner:
            del self.runners[runner.model.name]
        self.changed()

    def close(self) -> None:
        """Unload everything."""
        for runner in list(self.runners.values()):
            self.unload(runner)
