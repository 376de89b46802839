"""Where measurements take place: the upstream, the contenders, and the rounds in which they take turns."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from bench import accounting
from bench.contenders import DIRECT, OURS, Running, Site, Upstream
from bench.reporting.figures import Figures
from bench.wire import load

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from bench.contenders import Contender


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    name: str
    rounds: int  # of what the targets are about
    fewer: int  # rounds of what stands in a table
    least: int  # rounds of what only makes a curve
    seconds: float  # of one window
    streams: tuple[int, ...]  # at 5,000 chunks a second together, if they are at least 5
    lengths: tuple[int, ...]  # chunks of an answer
    connections: tuple[int, ...]
    idle: tuple[int, ...]  # idle streams
    bulk: int  # bytes
    first_bytes: int
    starts: int
    stalled: float  # seconds to send into an upstream that takes nothing


FULL = Scale(
    name="full",
    rounds=5,
    fewer=3,
    least=2,
    seconds=1,
    streams=(1, 5, 50, 500, 2000),
    lengths=(10, 100, 1000, 10_000),
    connections=(1, 16, 256, 2048, 8000),
    idle=(500, 2000, 8000),
    bulk=64 << 20,
    first_bytes=100,
    starts=5,
    stalled=0.7,
)
QUICK = Scale(
    name="quick",
    rounds=1,
    fewer=1,
    least=1,
    seconds=0.5,
    streams=(1, 50, 500),
    lengths=(100,),
    connections=(256,),
    idle=(500,),
    bulk=64 << 20,
    first_bytes=50,
    starts=1,
    stalled=0.5,
)
TINY = Scale(
    name="tiny",
    rounds=1,
    fewer=1,
    least=1,
    seconds=0.3,
    streams=(1, 50),
    lengths=(10,),
    connections=(16,),
    idle=(50,),
    bulk=1 << 20,
    first_bytes=5,
    starts=1,
    stalled=0.2,
)
SCALES = {scale.name: scale for scale in (FULL, QUICK, TINY)}


class Stage:
    """Everything that a measurement needs."""

    def __init__(self, scale: Scale, contenders: Sequence[Contender], folder: Path, *, wrk: bool) -> None:
        self.scale = scale
        self.figures = Figures()
        self.folder = folder
        self.places = accounting.Places()
        self.descriptors = accounting.raise_descriptor_limit()
        self.places.take_load_core()
        self.generator = load.generator(folder, wrk=wrk)
        self.contenders = (OURS, *contenders)
        self._running: list[Running] = []
        self._apart: list[Running] = []  # contenders that are measured by themselves
        self.upstream = Upstream(self.places)
        self._began = monotonic()

    def open(self) -> None:
        """Start the contenders."""
        for contender in self.contenders:
            self._running.append(self.start(contender))
        self._running.append(Running(DIRECT, Site(self.folder, self.upstream.port(), 0)))

    def start(self, contender: Contender, **settings: str) -> Running:
        """Start another instance of `contender`."""
        return Running.start(contender, self.folder, self.upstream.port(), self.places, **settings)

    @contextlib.contextmanager
    def running(self, contender: Contender, **settings: str) -> Iterator[Running]:
        """Start a contender that is measured by itself, and end it."""
        one = self.start(contender, **settings)
        self._apart.append(one)
        try:
            yield one
        finally:
            self._apart.remove(one)
            one.stop()

    def close(self) -> None:
        """End them all."""
        for running in self._running:
            running.stop()
        self.upstream.stop()

    def takers(self, measure: str, *, direct: bool = False) -> list[Running]:
        """Return the contenders that take part in `measure`."""
        return [
            running
            for running in self._running
            if running.contender.can(measure) and (direct or running.contender is not DIRECT)
        ]

    async def rounds(
        self, title: str, takers: Sequence[Running], times: int, one: Callable[[Running], Awaitable[None]]
    ) -> None:
        """Let `takers` take turns, in an order that changes each round. A peer that fails has no further turn."""
        self.say(title)
        going = [*takers]
        for number in range(times):
            first = number % max(1, len(going))
            for running in (*going[first:], *going[:first]):
                done = False
                with self.tolerating(running.contender):
                    await one(running)
                    done = True
                if not done:
                    going.remove(running)

    @contextlib.contextmanager
    def tolerating(self, contender: Contender) -> Iterator[None]:
        """Report that a peer failed, and continue. If the proxy itself fails, that ends the run."""
        try:
            yield
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            ended = "".join(each.ended() for each in (*self._running, *self._apart) if each.contender is contender)
            if contender is OURS:
                raise RuntimeError(f"{contender.name}: {ended or error}") from error
            self.say(f"{contender.name} is left out of this: {ended or error}")

    def say(self, title: str) -> None:
        """Report what is being measured."""
        sys.stderr.write(f"{monotonic() - self._began:5.0f} s  {title}\n")
        sys.stderr.flush()


@contextlib.contextmanager
def staged(scale: Scale, contenders: Sequence[Contender], *, wrk: bool) -> Iterator[Stage]:
    """Set the stage, and clear it away afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    stage = Stage(scale, contenders, folder, wrk=wrk)
    try:
        stage.open()
        yield stage
    finally:
        stage.close()
        shutil.rmtree(folder, ignore_errors=True)
