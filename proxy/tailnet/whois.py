"""Who is asking: the device and user of each peer, and whether Tailscale knows the peer at all.

whois = Whois(Tailscale().who, warn)
whois.known(peer, port) or await whois.ask(peer, port)  # a peer that was asked about in the last minute costs no await

A request waits for the answer, for at most `PATIENCE`. If Tailscale answers nobody, the address alone decides.
"""

from __future__ import annotations

import asyncio
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from proxy.exchange.message.exchange import Standing
from proxy.policy import refusals
from proxy.tailnet.interfaces import is_held
from proxy.tailnet.localapi import SilentError
from proxy.tailnet.tailscale import Who, is_device

if TYPE_CHECKING:
    from asyncio import Future, Task
    from collections.abc import Awaitable, Callable

PATIENCE = 1.0
"""Seconds that requests wait for a lookup. The LocalAPI takes 2 to 6 ms; for a peer it doesn't know, 364 ms."""

LIFETIME = 60.0
"""Seconds for which an answer is valid: an address may pass to another device, and a device to another owner."""

RENEWED_AFTER = 30.0
"""Seconds after which a valid answer is looked up again, so that a frequent client never waits.

Each lookup may start a program, if Tailscale's LocalAPI can't be read.
"""

UNKNOWN_LIFETIME = 5.0
"""Seconds until a peer that Tailscale doesn't know is looked up again: it may just have joined the tailnet.

Each such lookup keeps tailscaled's lock for 0.36 s.
"""

FAILURE_LIFETIME = 10.0
"""Seconds until a peer is looked up again after a failed lookup: Tailscale may only be starting."""

PEERS_KEPT = 256
"""Addresses whose answer is kept, and as many without one; beyond that, the oldest goes."""

IN_FLIGHT = 4
"""Lookups at once. Each may start a program."""

WAITING = 64
"""Lookups of new peers that may wait for their turn.

If Tailscale knows none of them, all take 23 s: renewals, which take their turn behind them, still come in time.
"""

COMPLAIN_EACH = 60.0
"""Seconds between two diagnostics about a Tailscale that doesn't say who peers are."""

_ADDRESSES = 8
"""Addresses of one device that its answer is kept for; a device has two."""

_UNASKED = Standing()
_STRANGER = Standing(refusal=refusals.PEER_UNKNOWN)
_LATE = Standing(refusal=refusals.IDENTITY_LATE)


class _Answer(NamedTuple):
    standing: Standing
    until: float  # it is valid
    renew: float  # when it is looked up again
    addresses: tuple[str, ...] = ()  # of the device


class Whois:
    """The answers of `ask`, which is `Tailscale.who`. Never raises, whatever `ask` does."""

    def __init__(
        self,
        ask: Callable[[str, int], Awaitable[Who | None]],
        warn: Callable[..., object],
        clock: Callable[[], float] = monotonic,
        *,
        patience: float = PATIENCE,
        own: Callable[[str], bool] = is_held,
    ) -> None:
        """Report trouble by `warn`, which takes an event and its fields. `own` finds this machine's own addresses."""
        self._ask = ask
        self._warn = warn
        self._clock = clock
        self._patience = patience
        self._own = own
        self._known: dict[str, _Answer] = {}  # who the peer is; the least recently used first
        self._nameless: dict[str, _Answer] = {}  # of peers that Tailscale doesn't know, or said nothing about
        self._asking: dict[str, Future[Standing]] = {}  # set when the lookup ends, or after `patience`
        self._tasks: set[Task[None]] = set()
        self._places = asyncio.Semaphore(IN_FLIGHT)
        self._answered = 0  # answers of Tailscale, whatever they said
        self._complained_at = -inf

    def __repr__(self) -> str:
        """Show how many answers are kept, and how many lookups run."""
        return f"<Whois {len(self._known)} known, {len(self._nameless)} not, {len(self._asking)} asking>"

    def known(self, ip: str, port: int) -> Standing | None:
        """Return who the peer is and whether it is served; None if Tailscale has to be asked first.

        Renews an old answer in the background. Addresses that no device has are never asked about.
        """
        answer = self._known.get(ip)
        if answer is None:
            return None if is_device(ip) else _UNASKED
        now = self._clock()
        if now >= answer.renew:
            if now >= answer.until:
                return None
            self._begin(ip, port)
        return answer.standing

    def expect(self, ip: str, port: int) -> None:
        """Begin to ask about a peer whose request will come soon."""
        if self.known(ip, port) is None:
            self._asked(ip, port)

    async def ask(self, ip: str, port: int) -> Standing:
        """Return who the peer is and whether it is served, after at most `PATIENCE`. All who wait share a lookup."""
        asked = self._asked(ip, port)
        return asked if isinstance(asked, Standing) else await asyncio.shield(asked)

    async def close(self) -> None:
        """Give up the running lookups."""
        for task in (tasks := [*self._tasks]):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _asked(self, ip: str, port: int) -> Standing | Future[Standing]:
        answer = self._nameless.get(ip)
        if answer is not None and self._clock() < answer.until:
            return answer.standing
        if len(self._asking) >= WAITING and ip not in self._known and ip not in self._asking:
            return _LATE
        return self._begin(ip, port)

    def _begin(self, ip: str, port: int) -> Future[Standing]:
        decided = self._asking.get(ip)
        if decided is None:
            loop = asyncio.get_running_loop()
            decided = self._asking[ip] = loop.create_future()
            task = loop.create_task(self._look_up(ip, port, decided))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return decided

    async def _look_up(self, ip: str, port: int, decided: Future[Standing]) -> None:
        timer = asyncio.get_running_loop().call_later(self._patience, self._give_up, decided, self._answered)
        try:
            async with self._places:
                standing = await self._answer(ip, port)
            if not decided.done():
                decided.set_result(standing)
        finally:
            timer.cancel()
            decided.cancel()  # the process ends
            del self._asking[ip]

    def _give_up(self, decided: Future[Standing], answered: int) -> None:
        """Decide without the answer. Tailscale that answers about others isn't silent: a crowd must not open the door.

        `answered` is how many answers there were when the lookup was begun.
        """
        if not decided.done():
            if self._answered == answered:
                self._complain(f"Tailscale does not say within {self._patience:g} s who a peer is", "tailscale status")
            decided.set_result(_UNASKED if self._answered == answered else _LATE)

    async def _answer(self, ip: str, port: int) -> Standing:
        """Ask, and keep the answer."""
        try:
            who = await self._ask(ip, port)
        except SilentError as error:
            self._complain(f"Tailscale does not say who a peer is: {error}", error.hint)
            return self._failed(ip)
        except Exception as error:  # whatever it is: it costs no exchange anything, and is tried again
            self._complain(f"Tailscale's answer about a peer can't be read: {type(error).__name__}", "tailscale status")
            return self._failed(ip)
        self._answered += 1
        now, before = self._clock(), self._known.pop(ip, None)
        for address in () if before is None else before.addresses:
            self._known.pop(address, None)  # they are the same device's
        if who is None:
            standing = _UNASKED if self._own(ip) else _STRANGER
            _keep(self._nameless, ip, _Answer(standing, now + UNKNOWN_LIFETIME, inf))
            return standing
        addresses = (ip, *(each for each in who.addresses[:_ADDRESSES] if each != ip and is_device(each)))
        answer = _Answer(Standing(who), now + LIFETIME, now + RENEWED_AFTER, addresses)
        for address in addresses:
            self._nameless.pop(address, None)
            _keep(self._known, address, answer)
        return answer.standing

    def _failed(self, ip: str) -> Standing:
        """Return Tailscale's last answer if that is still valid. Otherwise the address alone decides for a while."""
        now, before = self._clock(), self._known.get(ip)
        if before is not None and now < before.until:
            _keep(self._known, ip, before._replace(renew=now + FAILURE_LIFETIME))
            return before.standing
        _keep(self._nameless, ip, _Answer(_UNASKED, now + FAILURE_LIFETIME, inf))
        return _UNASKED

    def _complain(self, problem: str, hint: str) -> None:
        if self._clock() - self._complained_at >= COMPLAIN_EACH:
            self._complained_at = self._clock()
            self._warn("peers_not_identified", problem=problem, hint=hint)


def _keep(answers: dict[str, _Answer], address: str, answer: _Answer) -> None:
    """Keep an answer as the newest; the oldest goes if there are too many."""
    answers.pop(address, None)
    answers[address] = answer
    if len(answers) > PEERS_KEPT:
        del answers[next(iter(answers))]
