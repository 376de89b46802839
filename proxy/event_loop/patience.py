"""A time limit that a sleeping machine doesn't use up.

On macOS the event loop's clock keeps running during sleep, and Python's monotonic clock stops (libuv
`src/unix/darwin.c`, uv__hrtime: mach_continuous_time; CPython `Python/pytime.c`: mach_absolute_time). So at wake-up
every timer of the loop is due at once, although nothing had a chance to happen meanwhile.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# Seconds by which the loop's timers may be early: its clock counts whole milliseconds.
_EARLY = 0.002


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Raise TimeoutError if the body takes longer than `seconds`, not counting sleep."""
    loop = asyncio.get_running_loop()
    began = monotonic()
    timer: asyncio.TimerHandle

    def due() -> None:
        nonlocal timer
        left = seconds - (monotonic() - began)
        if left > _EARLY:
            timer = loop.call_later(left, due)
        else:
            limit.reschedule(loop.time())

    timer = loop.call_later(seconds, due)
    try:
        async with asyncio.timeout(None) as limit:
            yield
    finally:
        timer.cancel()
