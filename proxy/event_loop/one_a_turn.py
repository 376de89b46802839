"""Spread work over turns of the loop, so that what else is due runs in between."""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from proxy.event_loop.life import Signal

if TYPE_CHECKING:
    from collections.abc import Callable


class OneATurn:
    """Makes calls in the order in which they were asked for, one in each turn of the loop."""

    def __init__(self) -> None:
        self._calls: deque[Callable[[], object]] = deque()

    def __repr__(self) -> str:
        return f"<OneATurn {len(self._calls)} calls>"

    def __call__(self, call: Callable[[], object]) -> None:
        """Make `call` in a later turn."""
        if not self._calls:
            asyncio.get_running_loop().call_soon(self._next)
        self._calls.append(call)

    async def turn(self) -> None:
        """Return in a later turn that no other call shares."""
        come: Signal[None] = Signal()
        self(partial(come.set, None))
        await come

    def _next(self) -> None:
        call = self._calls.popleft()
        if self._calls:
            asyncio.get_running_loop().call_soon(self._next)
        call()
