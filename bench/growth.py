"""Whether a request costs the same however many connections are open, and how long it takes until one can be made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.load import crowd, request
from bench.requests import AT_ONCE, VERSION

if TYPE_CHECKING:
    from bench.contenders import Running
    from bench.stage import Stage

_COMPARED = ("ours", "haproxy-tuned")
_OTHER_DESCRIPTORS = 200


async def connections(stage: Stage) -> None:
    """Ask over ever more connections in turn."""
    takers = [running for running in stage.takers("connections") if running.name in _COMPARED]
    for number in stage.scale.connections:
        if number > stage.descriptors - _OTHER_DESCRIPTORS:
            break

        async def one(running: Running, number: int = number) -> None:
            async with crowd(running.port, request(*VERSION), number) as found:
                before = running.cpu()
                asked = await found.run(min(number, AT_ONCE), stage.scale.seconds)
                used = running.cpu() - before
            stage.figures.note(f"connections_cpu@{number}", running.name, used / asked.requests * 1e6)

        await stage.rounds(f"requests over {number:,} connections", takers, stage.scale.least, one)


async def starts(stage: Stage) -> None:
    """Start each a few times, after a first time that isn't counted."""
    stage.say("from exec to listening")
    for number in range(stage.scale.starts + 1):
        for contender in stage.contenders:
            if contender.can("start"):
                with stage.running(contender) as running:
                    if number:
                        stage.figures.note("start", contender.name, running.took)
