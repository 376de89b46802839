"""The memory of a stream that waits for its next token, and of a program after much work."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from bench import accounting
from bench.wire import traffic
from bench.wire.load import crowd
from bench.wire.streams import streaming

if TYPE_CHECKING:
    from bench.contenders import Contender
    from bench.stage import Stage

KIB, MIB = 1 << 10, 1 << 20

_OTHER_DESCRIPTORS = 200
_SETTLED = 0.3  # seconds until memory is measured


async def measure(stage: Stage) -> None:
    """Measure the programs that did all earlier measurements, then idle streams through new ones."""
    for running in stage.takers("resident"):
        stage.figures.note("resident", running.name, accounting.memory(running.pids) / MIB)
    for contender in stage.contenders:
        if contender.can("memory"):
            stage.say(f"memory of idle streams: {contender.name}")
            with stage.tolerating(contender):
                await _one(stage, contender)


async def _one(stage: Stage, contender: Contender) -> None:
    most = min(contender.most_streams, (stage.descriptors - _OTHER_DESCRIPTORS) // 2)
    with stage.running(contender) as running:
        async with crowd(running.port, traffic.requests(running.port), 16) as warm:
            await warm.run(16, 0.3)
        before = accounting.memory(running.pids)
        open_streams = 0
        async with contextlib.AsyncExitStack() as stack:
            for number in stage.scale.idle:
                if number > most:
                    break
                await stack.enter_async_context(streaming(running.port, "chunks=1&idle", number - open_streams))
                open_streams = number
                await asyncio.sleep(_SETTLED)
                grown = accounting.memory(running.pids) - before
                stage.figures.note(f"idle_memory@{number}", contender.name, grown / number / KIB)
                stage.figures.note(f"idle_total@{number}", contender.name, grown / MIB)
