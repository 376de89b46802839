"""What it costs to be looked at: the proxy while its socket is read each second, and the proxy alone, in turns.

The dashboard and `top` read it that often while someone looks.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from bench.contenders import OURS
from bench.parts.requests import AT_ONCE
from bench.parts.streaming import ENDLESS, interval
from bench.wire import traffic
from bench.wire.streams import watch
from proxy.manage.machine.live_client import Live

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.contenders import Running
    from bench.stage import Stage

EACH = 1.0
"""Seconds between two looks."""

STREAMS = 50
"""Streams, each of which is in every answer of the socket."""


async def measure(stage: Stage) -> None:
    """Compare the two."""
    with stage.running(OURS) as seen, stage.running(replace(OURS, name="not looked at")) as unseen:

        async def chats(running: Running) -> None:
            with _looking_at(running) if running is seen else nullcontext():
                before = running.cpu()
                asked = await stage.generator.run(
                    running.port, traffic.requests(running.port), AT_ONCE, stage.scale.seconds
                )
                stage.figures.note("watched_cpu", running.name, (running.cpu() - before) / asked.requests * 1e6)

        async def streams(running: Running) -> None:
            order = f"chunks={ENDLESS}&every={interval(STREAMS)}"
            with _looking_at(running) if running is seen else nullcontext():
                window = await watch(running, order, STREAMS, stage.scale.seconds)
            stage.figures.note("watched_chunk_cpu", running.name, window.cpu_per_chunk)
            stage.figures.note("watched_delay", running.name, window.delay(0.99))

        takers = [seen, unseen]
        await stage.rounds("small chats while someone looks", takers, stage.scale.rounds, chats)
        await stage.rounds(f"{STREAMS} streams while someone looks", takers, stage.scale.rounds, streams)


@contextmanager
def _looking_at(running: Running) -> Iterator[None]:
    """Read the socket each second, from now on."""
    live = Live(running.port, {**os.environ, "HOME": str(running.folder)})
    live.state()  # an error ends the run
    over = threading.Event()

    def look() -> None:
        while not over.wait(EACH):
            live.state()

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield
    finally:
        over.set()
        looking.join()
