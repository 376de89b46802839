"""Who is asking: device and user of each peer, looked up beside its exchanges and kept for a while.

whois = Whois(Tailscale().who)
whois.wanted(peer, port)  # when a connection comes, and when a line is written; returns at once what is known
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from proxy.tailscale import Who, is_device

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LIFETIME = 60.0
"""Seconds after which a peer is asked for anew: devices change their owner or tags, though not often."""

FAILURE_LIFETIME = 10.0
"""The same after a lookup that told nothing: Tailscale may only be starting."""

PEERS_KEPT = 256
"""Peers whose answer is kept; beyond, the one asked for longest ago goes."""

IN_FLIGHT = 4
"""Lookups at once. Each may start a program; a peer that finds no place is asked for at its next request."""


class _Answer(NamedTuple):
    who: Who | None
    until: float


class Whois:
    """The answers of `ask`, which is `Tailscale.who`. Never raises, whatever becomes of that."""

    def __init__(
        self, ask: Callable[[str, int], Awaitable[Who | None]], clock: Callable[[], float] = monotonic
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._answers: dict[str, _Answer] = {}  # the one asked for longest ago first
        self._asking: dict[str, asyncio.Task[Who | None]] = {}
        self._places = asyncio.Semaphore(IN_FLIGHT)

    def __repr__(self) -> str:
        """Tell how many are kept, and how many asked for."""
        return f"<Whois {len(self._answers)} known, {len(self._asking)} asking>"

    def wanted(self, ip: str, port: int) -> Who | None:
        """Return who the peer is as far as is known, and see to it that there is a new answer, without waiting for it.

        An old answer stands until its successor is there. Others than devices are never asked for.
        """
        answer = self._answers.get(ip)
        if answer is not None and self._clock() < answer.until:
            return answer.who
        if is_device(ip) and len(self._asking) < IN_FLIGHT:
            self._begin(ip, port)
        return None if answer is None else answer.who

    async def lookup(self, ip: str, port: int) -> Who | None:
        """Return who the peer is, asking if need be; None for an unknown one, and for others than devices."""
        if not is_device(ip):
            return None
        answer = self._answers.get(ip)
        if answer is not None and self._clock() < answer.until:
            return answer.who
        return await asyncio.shield(self._begin(ip, port))

    async def close(self) -> None:
        """Give up what is being asked."""
        asking = [*self._asking.values()]
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    def _begin(self, ip: str, port: int) -> asyncio.Task[Who | None]:
        task = self._asking.get(ip)
        if task is None:
            task = self._asking[ip] = asyncio.get_running_loop().create_task(self._look_up(ip, port))
            task.add_done_callback(lambda _: self._asking.pop(ip, None))
        return task

    async def _look_up(self, ip: str, port: int) -> Who | None:
        async with self._places:
            try:
                who = await self._ask(ip, port)
            except Exception:  # whatever it is: it costs no exchange anything, and is tried again
                who = None
        self._answers.pop(ip, None)
        self._answers[ip] = _Answer(who, self._clock() + (FAILURE_LIFETIME if who is None else LIFETIME))
        if len(self._answers) > PEERS_KEPT:
            del self._answers[next(iter(self._answers))]
        return who
