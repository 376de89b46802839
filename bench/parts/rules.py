"""What access rules cost a small chat: the proxy with twenty of them, and without any, in the same rounds."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from bench.contenders import OURS
from bench.parts.requests import AT_ONCE
from bench.wire import traffic

if TYPE_CHECKING:
    from bench.contenders import Running
    from bench.stage import Stage

_OTHERS = """
[[access]]
who = ["user{0}@example.com", "tag:role{0}", "device{0}"]
models = ["qwen{0}:*", "gemma{0}:*"]
"""
_LAST = """
[[access]]
who = ["127.0.0.1"]
models = ["none*", "*"]
"""
TWENTY = "".join(_OTHERS.format(number) for number in range(19)) + _LAST
"""Rules of which the last counts for the benchmark's requests."""


async def measure(stage: Stage) -> None:
    """Compare the two."""
    settings = stage.folder / "twenty-rules.toml"
    settings.write_text(TWENTY)
    bare = replace(OURS, name="without rules")
    with stage.running(OURS, PROXY_CONFIG=str(settings)) as ruled, stage.running(bare) as free:

        async def one(running: Running) -> None:
            before = running.cpu()
            asked = await stage.generator.run(
                running.port, traffic.requests(running.port), AT_ONCE, stage.scale.seconds
            )
            stage.figures.note("ruled_cpu", running.name, (running.cpu() - before) / asked.requests * 1e6)

        await stage.rounds("small chats with twenty access rules", [ruled, free], stage.scale.rounds, one)
