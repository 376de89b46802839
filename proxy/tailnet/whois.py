"""Who is asking: device and user of each peer, looked up while its exchanges run and kept for a minute.

whois = Whois(Tailscale().who)
whois.wanted(peer, port)  # when a request comes, and when its line is written; returns at once what is known
"""

from __future__ import annotations

import asyncio
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from proxy.tailnet.tailscale import Who, is_device

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LIFETIME = 60.0
"""Seconds for which an answer is valid: an address may pass to another device, and a device to another owner."""

RENEWED_AFTER = 30.0
"""Seconds after which a valid answer is looked up again, so that a frequent client is always known.

Each lookup may start a program, if Tailscale's LocalAPI can't be read.
"""

UNKNOWN_LIFETIME = 30.0
"""Seconds until a peer that Tailscale doesn't know is looked up again:

each such lookup keeps tailscaled's lock for 0.4 s.
"""

FAILURE_LIFETIME = 10.0
"""Seconds until a peer is looked up again after a failed lookup: Tailscale may only be starting."""

PEERS_KEPT = 256
"""Peers whose answer is kept; beyond that, the oldest answer goes."""

IN_FLIGHT = 4
"""Lookups at once. Each may start a program. A peer beyond that is looked up at its next request."""


class _Answer(NamedTuple):
    who: Who | None
    until: float  # it is valid
    renew: float  # when it is looked up again


class Whois:
    """The answers of `ask`, which is `Tailscale.who`. Never raises, whatever `ask` does."""

    def __init__(
        self, ask: Callable[[str, int], Awaitable[Who | None]], clock: Callable[[], float] = monotonic
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._answers: dict[str, _Answer] = {}  # the least recently used first
        self._asking: dict[str, asyncio.Task[Who | None]] = {}
        self._places = asyncio.Semaphore(IN_FLIGHT)

    def __repr__(self) -> str:
        """Show how many answers are kept, and how many lookups run."""
        return f"<Whois {len(self._answers)} known, {len(self._asking)} asking>"

    def wanted(self, ip: str, port: int, arrived: float = inf) -> Who | None:
        """Return who the peer is, if that is known. Also starts a lookup if there is no answer, or an old one.

        For an exchange that `arrived` a while ago, it returns the answer that was valid then; an expired one is never
        taken for the present identity. Addresses that no device has are never looked up.
        """
        answer, now = self._answers.get(ip), self._clock()
        if (answer is None or now >= answer.renew) and is_device(ip) and len(self._asking) < IN_FLIGHT:
            self._begin(ip, port)
        return answer.who if answer is not None and min(now, arrived) < answer.until else None

    async def lookup(self, ip: str, port: int) -> Who | None:
        """Return who the peer is, asking if necessary; None if it is unknown, or its address is no device's."""
        if not is_device(ip):
            return None
        answer = self._answers.get(ip)
        if answer is not None and self._clock() < answer.until:
            return answer.who
        return await asyncio.shield(self._begin(ip, port))

    async def close(self) -> None:
        """Give up the running lookups."""
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
        failed = False
        async with self._places:
            try:
                who = await self._ask(ip, port)
            except Exception:  # whatever it is: it costs no exchange anything, and is tried again
                who, failed = None, True
        now, before = self._clock(), self._answers.pop(ip, None)
        if failed and before is not None and now < before.until:
            answer = before._replace(renew=now + FAILURE_LIFETIME)  # Tailscale's last answer is still valid
        elif who is None:
            lifetime = FAILURE_LIFETIME if failed else UNKNOWN_LIFETIME
            answer = _Answer(None, now + lifetime, now + lifetime)
        else:
            answer = _Answer(who, now + LIFETIME, now + RENEWED_AFTER)
        self._answers[ip] = answer
        if len(self._answers) > PEERS_KEPT:
            del self._answers[next(iter(self._answers))]
        return answer.who
