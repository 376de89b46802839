"""Who is asking: the device and user of each peer, and whether Tailscale knows the peer at all.

whois = Whois(Tailscale().who, warn)
whois.apply(rules=True)  # whenever the settings change
whois.known(peer, port) or await whois.ask(peer, port)  # a peer that was asked about just before costs no await

A request waits for the answer, for at most `PATIENCE`. If Tailscale answers nobody, the peer counts as unknown: without
access rules its address alone decides, and a rule that needs a name refuses it.
"""

from __future__ import annotations

import asyncio
import time
from functools import lru_cache, partial
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from proxy.policy import refusals
from proxy.policy.identity import Standing
from proxy.policy.peers import as_address
from proxy.tailnet.device import is_device
from proxy.tailnet.interfaces import is_held
from proxy.tailnet.localapi import SilentError
from proxy.tailnet.tailscale import UnreadableError

if TYPE_CHECKING:
    from asyncio import Future, Task
    from collections.abc import Awaitable, Callable

    from proxy.tailnet.device import Who

PATIENCE = 1.0
"""Seconds that requests wait for a lookup. The LocalAPI takes 2 to 6 ms; for a peer it doesn't know, 364 ms."""

LIFETIME = 60.0
"""Seconds for which an answer is valid: an address may pass to another device, and a device to another owner."""

RENEWED_AFTER = 30.0
"""Seconds after which a valid answer is looked up again, so that a frequent client never waits.

Each lookup may start a program, if Tailscale's LocalAPI can't be read.
"""

RULES_LIFETIME = 10.0
"""The same as LIFETIME while there are access rules: a device that has lost a tag must not keep what it allowed."""

RULES_RENEWED_AFTER = 5.0
"""The same as RENEWED_AFTER while there are access rules."""

UNKNOWN_LIFETIME = 5.0
"""Seconds until a peer that Tailscale doesn't know is looked up again: it may just have joined the tailnet.

Each such lookup keeps tailscaled's lock for 0.36 s.
"""

FAILURE_LIFETIME = 10.0
"""Seconds until a peer is looked up again after a failed lookup: Tailscale may only be starting."""

RULES_FAILURE_LIFETIME = 2.0
"""The same while there are access rules, because without an answer the peer may be refused."""

PEERS_KEPT = 256
"""Addresses whose answer is kept, and as many without one; beyond that, the oldest goes."""

IN_FLIGHT = 4
"""Lookups of new peers at once, and as many of devices that are known already. Each may start a program."""

WAITING = 64
"""Lookups of new peers that may wait for their turn. If Tailscale knows none of them, all take 23 s."""

COMPLAIN_EACH = 60.0
"""Seconds between two diagnostics about a Tailscale that doesn't say who peers are."""

_OUTSIDE = Standing()
_LOOPBACK = Standing(is_self=True)
_STRANGER = Standing(refusal=refusals.PEER_UNKNOWN)
_LATE = Standing(refusal=refusals.IDENTITY_LATE, unknown=True)

# A clock that goes on while the machine sleeps, because tags and owners change meanwhile. On macOS CLOCK_MONOTONIC is
# one, and `time.monotonic` isn't (public sources: macOS `man clock_gettime`; CPython `Python/pytime.c`).
clock = partial(time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class _Answer(NamedTuple):
    standing: Standing
    until: float  # it is valid
    renew: float  # when it is looked up again
    addresses: tuple[str, ...] = ()  # of the device


class Whois:
    """The answers of `ask`, which is `Tailscale.who`. Never raises, whatever `ask` does."""

    def __init__(
        self,
        ask: Callable[[str, int, str | None], Awaitable[Who | None]],
        warn: Callable[..., object],
        clock: Callable[[], float] = clock,
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
        self._renewals = asyncio.Semaphore(IN_FLIGHT)  # of their own: a crowd of new peers must not hold them up
        self._answered = 0  # answers of Tailscale, whatever they said
        self._complained_at = -inf
        self._applied = 0  # how often settings were applied
        self.apply(rules=False)

    def __repr__(self) -> str:
        """Show how many answers are kept, and how many lookups run."""
        return f"<Whois {len(self._known)} known, {len(self._nameless)} not, {len(self._asking)} asking>"

    def apply(self, *, rules: bool, capability: str | None = None) -> None:
        """Follow the settings: whether there are access rules, and which app capability is asked about.

        Everyone is asked about again, so that it counts from the next request on.
        """
        self._lifetime = RULES_LIFETIME if rules else LIFETIME
        self._renewed_after = RULES_RENEWED_AFTER if rules else RENEWED_AFTER
        self._failure_lifetime = RULES_FAILURE_LIFETIME if rules else FAILURE_LIFETIME
        self._capability = capability
        self._applied += 1
        self._asking = {}
        self._nameless.clear()
        for ip, answer in self._known.items():  # they stay known devices, whose lookups no crowd can hold up
            self._known[ip] = answer._replace(until=-inf, renew=-inf)

    def known(self, ip: str, port: int) -> Standing | None:
        """Return who the peer is and whether it is served; None if Tailscale has to be asked first.

        Renews an old answer in the background. Addresses that no device has are never asked about.
        """
        answer = self._known.get(ip)
        if answer is None:
            return None if is_device(ip) else _outside(ip)
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
        applied, asked = self._applied, self._asked(ip, port)
        standing = asked if isinstance(asked, Standing) else await asyncio.shield(asked)
        return standing if applied == self._applied else await self.ask(ip, port)

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
        timer = asyncio.get_running_loop().call_later(self._patience, self._give_up, ip, decided, self._answered)
        try:
            async with self._renewals if ip in self._known else self._places:
                standing = await self._answer(ip, port)
            if not decided.done():
                decided.set_result(standing)
        finally:
            timer.cancel()
            decided.cancel()  # the process ends
            if self._asking.get(ip) is decided:
                del self._asking[ip]

    def _give_up(self, ip: str, decided: Future[Standing], answered: int) -> None:
        """Decide without the answer. Tailscale that answers about others isn't silent: a crowd must not open the door.

        `answered` is how many answers there were when the lookup was begun.
        """
        if not decided.done():
            if self._answered == answered:
                self._complain(f"Tailscale does not say within {self._patience:g} s who a peer is", "tailscale status")
            decided.set_result(self._unknown(ip) if self._answered == answered else _LATE)

    async def _answer(self, ip: str, port: int) -> Standing:
        """Ask, and keep the answer unless other settings were applied meanwhile."""
        applied, asked_at = self._applied, self._clock()
        try:
            who = await self._ask(ip, port, self._capability)
            if who is not None and ip not in who.addresses:
                raise UnreadableError("it is about another device")
        except SilentError as error:
            self._complain(f"Tailscale does not say who a peer is: {error}", error.hint)
            return self._failed(ip, applied)
        except Exception as error:  # whatever it is: it costs no exchange anything, and is tried again
            why = error if isinstance(error, UnreadableError) else type(error).__name__
            self._complain(f"Tailscale's answer about a peer can't be used: {why}", "tailscale status")
            return self._failed(ip, applied)
        self._answered += 1
        if applied != self._applied:
            return self._unknown(ip)
        before = self._known.pop(ip, None)
        for address in () if before is None else before.addresses:
            self._known.pop(address, None)  # they are the same device's
        if who is None:
            standing = self._unknown(ip) if self._own(ip) else _STRANGER
            _keep(self._nameless, ip, _Answer(standing, asked_at + UNKNOWN_LIFETIME, inf))
            return standing
        # What Tailscale said may have been so when it was asked, so the answer is as old as the question.
        addresses = (ip, *(each for each in who.addresses if each != ip and is_device(each)))
        standing = Standing(who, is_self=self._own(ip))
        answer = _Answer(standing, asked_at + self._lifetime, asked_at + self._renewed_after, addresses)
        for address in addresses:
            self._nameless.pop(address, None)
            _keep(self._known, address, answer)
        return standing

    def _failed(self, ip: str, applied: int) -> Standing:
        """Return Tailscale's last answer if that is still valid. Otherwise nobody knows for a while who the peer is."""
        now, before, standing = self._clock(), self._known.get(ip), self._unknown(ip)
        if applied != self._applied:
            return standing
        if before is not None and now < before.until:
            _keep(self._known, ip, before._replace(renew=min(now + self._failure_lifetime, before.until)))
            return before.standing
        _keep(self._nameless, ip, _Answer(standing, now + self._failure_lifetime, inf))
        return standing

    def _unknown(self, ip: str) -> Standing:
        return Standing(unknown=True, is_self=self._own(ip))

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


@lru_cache(maxsize=512)  # asked once per request
def _outside(ip: str) -> Standing:
    """Return the standing of an address that no device of the tailnet has, which Tailscale isn't asked about."""
    address = as_address(ip)
    return _LOOPBACK if address is not None and address.is_loopback else _OUTSIDE
