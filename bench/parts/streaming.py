"""The cost and the delay of a streamed chunk: with more streams, longer answers, rotating logs and reloads."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from bench.contenders import OURS
from bench.wire.load import crowd
from bench.wire.streams import watch

if TYPE_CHECKING:
    from bench.contenders import Running
    from bench.stage import Stage
    from bench.wire.streams import Window

RATE = 5000
"""Chunks a second, of all streams together."""

SHARES = {"p50": 0.5, "p99": 0.99, "max": 1.0}

DISTRIBUTION = (0.01, *(step / 20 for step in range(1, 20)), 0.98, 0.99, 0.995, 0.999, 1.0)
"""The percentiles of the delay that the plot shows."""

IN_STEP = {"step": "", "paced": "&gap=50"}
"""How 50 streams in step send: at once, or with time between two of them, as from Ollama.

Its runner samples a token of one sequence, passes it on, and only then samples that of the next one (`processBatch` in
runner/ollamarunner/runner.go of ollama/ollama).
"""

ENDLESS = 10**9


def interval(streams: int, pace: int = 1) -> int:
    """Return the milliseconds between two chunks of one of this many streams; 10 for a single stream."""
    return pace * (10 if streams < 5 else streams * 1000 // RATE)


async def measure(stage: Stage) -> None:
    """Measure all of them."""
    for streams in stage.scale.streams:
        await _streams(stage, streams)
    for suffix, gap in IN_STEP.items():
        await _in_step(stage, suffix, gap)
    for length in stage.scale.lengths:
        await _length(stage, length)


async def _streams(stage: Stage, streams: int) -> None:
    # 50 streams have goals as close as 1.1, and rounds differ by more: many short ones make the median steady.
    scale = stage.scale
    seconds = scale.seconds / 2 if streams == 50 else scale.seconds

    async def one(running: Running) -> None:
        order = f"chunks={ENDLESS}&every={interval(streams, running.contender.pace)}"
        window = await watch(running, order, streams, seconds)
        _note(stage, running, window, f"@{streams}")
        if streams == 50:
            for share in DISTRIBUTION:
                stage.figures.note(f"distribution@{share}", running.name, window.delay(share))

    takers = stage.takers("streams" if streams == 50 else "many_streams", direct=True)
    times = {50: 3 * scale.rounds, 1: scale.rounds, 500: scale.fewer}.get(streams, scale.least)
    await stage.rounds(f"{streams:,} streams", takers, times, one)


async def _in_step(stage: Stage, suffix: str, gap: str) -> None:
    """Measure 50 streams that send one right after the other, or with a gap between them."""

    async def one(running: Running) -> None:
        order = f"chunks={ENDLESS}&step{gap}&every={interval(50, running.contender.pace)}"
        _note(stage, running, await watch(running, order, 50, stage.scale.seconds / 2), f"@{suffix}")

    title = f"50 streams in step{', one after another' if gap else ''}"
    await stage.rounds(title, stage.takers("streams", direct=True), 2 * stage.scale.rounds, one)


def _note(stage: Stage, running: Running, window: Window, suffix: str) -> None:
    if running.pids:
        stage.figures.note(f"chunk_cpu{suffix}", running.name, window.cpu_per_chunk)
    for name, share in SHARES.items():
        stage.figures.note(f"delay_{name}{suffix}", running.name, window.delay(share))


async def _length(stage: Stage, length: int) -> None:
    """Measure answers of this many chunks, five at a time one after the other; long ones only once."""
    seconds = max(stage.scale.seconds, length / 1000 + 0.5 if length >= 1000 else 0)

    async def one(running: Running) -> None:
        window = await watch(running, f"chunks={length}&every=1", 5, seconds, again=True)
        stage.figures.note(f"length_cpu@{length}", running.name, window.cpu_per_chunk)

    chosen = ("ours", "haproxy-tuned", "nginx", "caddy", "aiohttp") if length < 1000 else ("ours", "haproxy-tuned")
    takers = [running for running in stage.takers("length") if running.name in chosen]
    await stage.rounds(f"answers of {length:,} chunks", takers, 1 if length >= 1000 else stage.scale.least, one)


# --- while logs are set aside and settings are read again ---

_NOISE = b"GET /%b HTTP/1.1\r\nHost: localhost\r\nUser-Agent: %b\r\n\r\n" % (b"p" * 256, b"u" * 256)
"""A request that is refused with the longest possible access line, to fill the logs quickly."""


async def moving(stage: Stage) -> None:
    """Compare the delays of 50 streams: undisturbed, while logs rotate, and while settings reload."""
    seconds = 2 * stage.scale.seconds
    stage.say("streams while logs rotate and settings reload")
    for _ in range(stage.scale.fewer):
        for name in ("quiet", "rotation", "reload"):
            size = "1MiB" if name == "rotation" else "1GiB"
            with stage.running(OURS, PROXY_LOG_MAX_SIZE=size, PROXY_LOG_KEEP="99") as running:
                async with crowd(running.port, _NOISE, 16, 403) as noise:
                    meanwhile = [asyncio.create_task(noise.steady(2000, ENDLESS))]
                    if name == "reload":
                        meanwhile.append(asyncio.create_task(_reload(running)))
                    try:
                        window = await watch(running, f"chunks={ENDLESS}&every=10", 50, seconds)
                    finally:
                        for task in meanwhile:
                            task.cancel()
                    await noise.watch(0)
                _note(stage, running, window, f"@{name}")
                stage.figures.note("set_aside", name, len([*running.folder.glob("access.log.*")]))


async def _reload(running: Running) -> None:
    """Reload the settings four times a second."""
    while True:
        await asyncio.sleep(0.25)
        running.signal(signal.SIGHUP)
