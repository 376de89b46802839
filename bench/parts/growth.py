"""Whether a request costs the same with more open connections, and how long a program takes to start."""

from __future__ import annotations

import subprocess
import sys
from time import monotonic
from typing import TYPE_CHECKING

from bench.parts.requests import AT_ONCE
from bench.wire import traffic
from bench.wire.load import crowd

if TYPE_CHECKING:
    from bench.contenders import Running
    from bench.stage import Stage

NEEDED = ("aiohttp.web", "uvloop", "httptools", "orjson", "msgspec", "structlog", "pydantic_settings")
"""The packages that the proxy imports."""

_COMPARED = ("ours", "haproxy-tuned")
_OTHER_DESCRIPTORS = 200


async def connections(stage: Stage) -> None:
    """Send requests with more and more connections open."""
    takers = [running for running in stage.takers("connections") if running.name in _COMPARED]
    for number in stage.scale.connections:
        if number > stage.descriptors - _OTHER_DESCRIPTORS:
            break

        async def one(running: Running, number: int = number) -> None:
            async with crowd(running.port, traffic.requests(running.port), number) as found:
                before = running.cpu()
                asked = await found.run(min(number, AT_ONCE), stage.scale.seconds)
                used = running.cpu() - before
            stage.figures.note(f"connections_cpu@{number}", running.name, used / asked.requests * 1e6)

        await stage.rounds(f"requests over {number:,} connections", takers, stage.scale.least, one)


async def starts(stage: Stage) -> None:
    """Start each program a few times, after one start that isn't counted, and time the imports before each of ours."""
    stage.say("from exec to listening")
    for number in range(stage.scale.starts + 1):
        for contender in stage.contenders:
            if contender.can("start"):
                with stage.running(contender) as running:
                    if number:
                        stage.figures.note("start", contender.name, running.took)
        if number:
            stage.figures.note("start", "imports", _imports(stage))


def _imports(stage: Stage) -> float:
    """Return the seconds from exec to the end of a Python that imports the proxy's packages and does nothing."""
    with stage.places.on(stage.places.proxy):
        began = monotonic()
        subprocess.run((sys.executable, "-c", f"import {', '.join(NEEDED)}"), check=True)
        return monotonic() - began
