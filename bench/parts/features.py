"""The cost of each feature of the proxy for a request and a chunk: the same without it, in the same rounds."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from bench.contenders import Contender
from bench.parts.requests import AT_ONCE, VERSION
from bench.parts.streaming import ENDLESS
from bench.wire import traffic
from bench.wire.streams import watch
from bench.without import FEATURES

if TYPE_CHECKING:
    from bench.contenders import Running
    from bench.stage import Stage


def contender(feature: str) -> Contender:
    """Return the proxy without `feature`."""
    return Contender(f"without {feature}", sys.executable, lambda _: (sys.executable, "-m", "bench.without", feature))


async def measure(stage: Stage) -> None:
    """Compare all variants."""
    with contextlib.ExitStack() as stack:
        variants = [stack.enter_context(stage.running(contender(each))) for each in ("nothing", *FEATURES)]

        async def one(running: Running) -> None:
            for kind, asking in (("get", [VERSION]), ("chat", traffic.requests(running.port))):
                before = running.cpu()
                asked = await stage.generator.run(running.port, asking, AT_ONCE, stage.scale.seconds)
                stage.figures.note(f"feature_{kind}_cpu", running.name, (running.cpu() - before) / asked.requests * 1e6)
            window = await watch(running, f"chunks={ENDLESS}&every=10", 50, stage.scale.seconds)
            stage.figures.note("feature_chunk_cpu", running.name, window.cpu_per_chunk)

        await stage.rounds("the proxy without one of its features", variants, stage.scale.rounds, one)
