"""Who is asking: looked up next to the exchange, kept for a while, and never at a request's cost."""

from __future__ import annotations

import asyncio

import pytest

from proxy.tailnet.localapi import SilentError
from proxy.tailnet.tailscale import Who
from proxy.tailnet.whois import (
    FAILURE_LIFETIME,
    IN_FLIGHT,
    LIFETIME,
    PEERS_KEPT,
    RENEWED_AFTER,
    UNKNOWN_LIFETIME,
    Whois,
)

LAPTOP = "100.64.0.7"
ALICE = Who("laptop", "alice@example.com")


class Asked:
    """A Tailscale that answers when a test says so; counts who was asked for."""

    def __init__(self, answer=ALICE):
        self.answer = answer
        self.addresses = []
        self.open = asyncio.Event()
        self.open.set()

    async def __call__(self, ip, port):
        self.addresses.append((ip, port))
        await self.open.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Clock:
    """A clock that a test moves."""

    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


async def test_wanted_then_known(clock):
    """A lookup is begun without waiting; its answer is there for the line at the exchange's end."""
    asked = Asked()
    whois = Whois(asked, clock)
    assert whois.wanted(LAPTOP, 51000) is None
    await whois.lookup(LAPTOP, 51001)  # which shares the one that was begun
    assert whois.wanted(LAPTOP, 1) == ALICE
    assert asked.addresses == [(LAPTOP, 51000)]


@pytest.mark.parametrize(
    ("answer", "lifetime"),
    [
        pytest.param(None, UNKNOWN_LIFETIME, id="unknown_peer"),
        pytest.param(SilentError("no", "hint"), FAILURE_LIFETIME, id="no_tailscale"),
        pytest.param(RecursionError(), FAILURE_LIFETIME, id="whatever_else"),
    ],
)
async def test_no_answer_has_a_lifetime(clock, answer, lifetime):
    """A peer is looked up again a while after a lookup without an answer, and no failure gets out."""
    asked = Asked(answer)
    whois = Whois(asked, clock)
    for moment, times in ((0, 1), (lifetime - 0.1, 1), (lifetime, 2)):
        clock.now = 1000.0 + moment
        assert await whois.lookup(LAPTOP, 1) is None
        whois.wanted(LAPTOP, 1)
        assert len(asked.addresses) == times


async def known(clock, asked):
    """Return a Whois that knows the laptop as of now."""
    whois = Whois(asked, clock)
    await whois.lookup(LAPTOP, 1)
    return whois


@pytest.mark.parametrize(
    ("idle", "who"),
    [
        pytest.param(LIFETIME - 0.1, ALICE, id="just_before_its_end"),
        pytest.param(LIFETIME, None, id="at_its_end"),
        pytest.param(180.0, None, id="after_three_minutes"),
        pytest.param(30 * 86400.0, None, id="after_a_month"),
    ],
)
async def test_expired_identity_is_never_the_present_one(clock, idle, who):
    """The address may have passed to another device meanwhile: nobody is named rather than its former owner."""
    asked = Asked()
    whois = await known(clock, asked)
    clock.now += idle
    asked.answer = Who("stranger", "bob@example.com")
    assert whois.wanted(LAPTOP, 1) == who
    await whois.lookup(LAPTOP, 1)
    while whois.wanted(LAPTOP, 1) in (None, ALICE):
        await asyncio.sleep(0)
    assert whois.wanted(LAPTOP, 1) == asked.answer


async def test_long_exchange_keeps_its_identity(clock):
    """For an exchange that took longer than an answer holds, the answer counts that held when it arrived."""
    asked = Asked()
    whois = await known(clock, asked)
    arrived = clock.now + LIFETIME - 1
    asked.open.clear()
    clock.now += 10 * LIFETIME
    assert whois.wanted(LAPTOP, 1, arrived) == ALICE
    assert whois.wanted(LAPTOP, 1, arrived + 1) is None
    await whois.close()


async def test_answer_is_renewed_before_it_expires(clock):
    """Whoever asks at least every half minute is always known: a lookup begins while the old answer still holds."""
    asked = Asked()
    whois = await known(clock, asked)
    for _ in range(5):
        clock.now += RENEWED_AFTER
        assert whois.wanted(LAPTOP, 1) == ALICE
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert len(asked.addresses) == 6


async def test_failed_renewal_leaves_what_still_holds(clock):
    """A Tailscale that doesn't answer for a moment makes nobody nameless before the answer expires."""
    asked = Asked()
    whois = await known(clock, asked)
    asked.answer = SilentError("no", "hint")
    clock.now += RENEWED_AFTER
    whois.wanted(LAPTOP, 1)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert whois.wanted(LAPTOP, 1) == ALICE
    assert len(asked.addresses) == 2
    clock.now += LIFETIME - RENEWED_AFTER
    assert whois.wanted(LAPTOP, 1) is None
    await whois.close()


async def test_peer_that_is_gone_is_nobody_at_once(clock):
    """That Tailscale no longer knows a peer is an answer, which ends the old one."""
    asked = Asked()
    whois = await known(clock, asked)
    asked.answer = None
    clock.now += RENEWED_AFTER
    whois.wanted(LAPTOP, 1)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert whois.wanted(LAPTOP, 1) is None


async def test_one_lookup_per_peer(clock):
    """All who want the same peer share one lookup, and one that stops waiting doesn't end it for the others."""
    asked = Asked()
    asked.open.clear()
    whois = Whois(asked, clock)
    whois.wanted(LAPTOP, 1)
    waiting = [asyncio.create_task(whois.lookup(LAPTOP, port)) for port in (2, 3)]
    whois.wanted(LAPTOP, 4)
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    asked.open.set()
    assert await waiting[1] == ALICE
    assert waiting[0].cancelled()
    assert asked.addresses == [(LAPTOP, 1)]


@pytest.mark.parametrize(
    "peer",
    ["127.0.0.1", "::1", "192.168.1.7", "2001:db8::1", "100.63.255.255", "100.115.92.7", "100.100.100.100", "@", ""],
)
async def test_others_than_devices_are_never_asked_for(clock, peer):
    """Loopback, LAN and the internet have no device in the tailnet, and cost no lookup."""
    asked = Asked()
    whois = Whois(asked, clock)
    assert whois.wanted(peer, 1) is None
    assert await whois.lookup(peer, 1) is None
    assert asked.addresses == []


async def test_lookups_at_once_are_bounded(clock):
    """No more than a few lookups run at once: beyond, `wanted` leaves it for later, and `lookup` waits."""
    asked = Asked()
    asked.open.clear()
    whois = Whois(asked, clock)
    for number in range(20):
        whois.wanted(f"100.64.1.{number}", 1)
    waiting = asyncio.create_task(whois.lookup("100.64.2.1", 1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert asked.addresses == [(f"100.64.1.{number}", 1) for number in range(IN_FLIGHT)]
    asked.open.set()
    assert await waiting == ALICE
    assert len(asked.addresses) == IN_FLIGHT + 1


async def test_peers_kept_are_bounded(clock):
    """Of more peers than are kept, the one that was asked for longest ago goes."""
    whois = Whois(Asked(), clock)
    for number in range(PEERS_KEPT):
        await whois.lookup(f"100.64.{number // 256}.{number % 256}", 1)
    clock.now += LIFETIME
    await whois.lookup("100.64.0.0", 1)
    await whois.lookup("100.70.0.1", 1)
    assert repr(whois) == f"<Whois {PEERS_KEPT} known, 0 asking>"
    assert (whois.wanted("100.64.0.0", 1), whois.wanted("100.64.0.1", 1)) == (ALICE, None)
    await whois.close()


async def test_close_gives_up(clock):
    """At the end of the process nothing is left that still asks."""
    asked = Asked()
    asked.open.clear()
    whois = Whois(asked, clock)
    whois.wanted(LAPTOP, 1)
    await asyncio.sleep(0)
    await whois.close()
    assert repr(whois) == "<Whois 0 known, 0 asking>"
