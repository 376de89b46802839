"""`python -m bench.dashboard`: how long the dashboard takes to read a long log, and to answer from its index.

A log is written once: `--log FILE` keeps it for the next run.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from proxy.dashboard.filters import PERIODS
from proxy.dashboard.index.database import remove
from proxy.dashboard.past import Past
from tests.dashboard.random_log import BEGINS, DAY, DEVICES, MODELS, random_lines

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

DAYS = 90.0
TIMES = 3


async def timed(ask: Callable[[], Awaitable[object]]) -> float:
    """Return the seconds that an answer takes."""
    begun = time.perf_counter()
    await ask()
    return time.perf_counter() - begun


async def measure(log: Path) -> None:
    """Build the index of a log, and ask it; print how long each takes."""
    remove(str(log))
    for title in ("build the index of {:,} lines", "start again, and show the first page"):
        past = Past(str(log), clock=lambda: BEGINS + DAYS * DAY)
        begun = time.perf_counter()
        await past.start()
        assert past.keeper is not None
        progress = await past.keeper.settled()
        if "first" in title:
            await past.history({"period": "all"})
        print(f"{time.perf_counter() - begun:8.2f} s  {title.format(progress.lines)}")
        if "first" in title:
            await answers(past)
        await past.stop()


async def answers(past: Past) -> None:
    """Ask for each period, with and without a filter."""
    filters = ({}, {"device": DEVICES[0]}, {"model": MODELS[0]}, {"reason": "path_not_served"}, {"kind": "cut"})
    for period in reversed(PERIODS):
        for wanted in filters:
            query = {"period": period, **wanted}
            seconds = median([await timed(lambda query=query: past.history(query)) for _ in range(TIMES)])
            print(f"{seconds:8.3f} s  {' '.join(f'{name}={value}' for name, value in query.items())}")
            seconds = median([await timed(lambda query=query: past.lines(query)) for _ in range(TIMES)])
            print(f"{seconds:8.3f} s    its newest lines")


def main() -> None:
    """Write the log, unless it is there, and measure."""
    parser = argparse.ArgumentParser(prog="python -m bench.dashboard", description=__doc__)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--log", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = given.log or Path(folder) / "access.log"
        if not log.exists():
            with log.open("wb") as file:
                file.writelines(random_lines(given.lines, days=DAYS))
        asyncio.run(measure(log))


if __name__ == "__main__":
    main()
