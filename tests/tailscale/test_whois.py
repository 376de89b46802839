"""Who is asking: asked before a request is judged, kept for a minute, and shared by all who wait."""

from __future__ import annotations

import asyncio
import sys
import time

import pytest

from proxy.policy import refusals
from proxy.policy.identity import Standing
from proxy.tailnet.device import Who
from proxy.tailnet.localapi import SilentError
from proxy.tailnet.tailscale import UnreadableError
from proxy.tailnet.whois import (
    COMPLAIN_EACH,
    FAILURE_LIFETIME,
    IN_FLIGHT,
    LIFETIME,
    PEERS_KEPT,
    RENEWED_AFTER,
    RULES_FAILURE_LIFETIME,
    RULES_LIFETIME,
    RULES_RENEWED_AFTER,
    UNKNOWN_LIFETIME,
    WAITING,
    Whois,
    clock,
)
from tests.support.asked_tailscale import (
    ALICE,
    LAPTOP,
    LAPTOP6,
    NOBODY,
    ROBOT,
    AskedTailscale,
    Clock,
    Reports,
    SlowTailscale,
)

OWN = "100.64.0.1"
SILENT = SilentError("nobody answers", "tailscale up")
KNOWN = Standing(ALICE)
UNKNOWN = Standing(unknown=True)


class Stage:
    """A Whois whose Tailscale, clock and patience a test sets."""

    def __init__(self, patience=3600.0):
        self.tailscale = AskedTailscale()
        self.clock = Clock()
        self.reports = Reports()
        self.own = {OWN}
        self.whois = Whois(
            self.tailscale.who, self.reports, self.clock, patience=patience, own=lambda address: address in self.own
        )

    async def ask(self, ip):
        """Return what a request of `ip` gets, and whether it had to wait."""
        return self.whois.known(ip, 1) or await self.whois.ask(ip, 1)

    async def settle(self):
        """Let what runs in the background end."""
        while "0 asking" not in repr(self.whois):
            await asyncio.sleep(0)


@pytest.fixture
async def stage():
    stage = Stage()
    yield stage
    await stage.whois.close()


# --- an answer --------------------------------------------------------------------------------------------------------


async def test_first_request_waits_and_the_next_does_not(stage):
    """The first request of a peer waits for its name; those of the next minute get it at once."""
    assert stage.whois.known(LAPTOP, 1) is None
    assert (await stage.whois.ask(LAPTOP, 1)).who == ALICE
    assert stage.whois.known(LAPTOP, 1) == KNOWN
    assert stage.tailscale.asked == [LAPTOP]


async def test_one_answer_serves_all_addresses(stage):
    """A device that was named by its IPv4 address isn't asked about by its IPv6 address."""
    await stage.ask(LAPTOP)
    assert stage.whois.known(LAPTOP6, 1) == KNOWN
    assert stage.tailscale.asked == [LAPTOP]


async def test_addresses_that_no_device_has_are_not_taken(stage):
    """An answer is kept for addresses that devices can have, and for no others that it may list."""
    stage.tailscale.join(Who("odd", None, (ROBOT, "192.168.1.1", "127.0.0.1", "", "100.100.100.100")))
    await stage.ask(ROBOT)
    assert repr(stage.whois) == "<Whois 1 known, 0 not, 0 asking>"


async def test_thousand_requests_of_one_device_cause_one_lookup(stage):
    """Everyone who waits for the same peer gets the answer to one question."""
    stage.tailscale.hang()
    waiting = [asyncio.create_task(stage.ask(LAPTOP)) for _ in range(1000)]
    await asyncio.sleep(0)
    stage.tailscale.answer()
    assert await asyncio.gather(*waiting) == [KNOWN] * 1000
    assert stage.tailscale.asked == [LAPTOP]


async def test_one_who_leaves_ends_nobody_elses_lookup(stage):
    """A request that is cancelled while it waits doesn't cancel the lookup of the others."""
    stage.tailscale.hang()
    leaves, stays = (asyncio.create_task(stage.ask(LAPTOP)) for _ in range(2))
    await asyncio.sleep(0)
    leaves.cancel()
    await asyncio.sleep(0)
    stage.tailscale.answer()
    assert (await stays).who == ALICE
    assert leaves.cancelled()


@pytest.mark.parametrize(
    ("idle", "who"),
    [
        pytest.param(LIFETIME - 0.1, ALICE, id="just_before_its_end"),
        pytest.param(LIFETIME, None, id="at_its_end"),
        pytest.param(180.0, None, id="after_three_minutes"),
        pytest.param(30 * 86400.0, None, id="after_a_month"),
    ],
)
@pytest.mark.parametrize("address", [LAPTOP, LAPTOP6])
async def test_expired_answer_is_never_used(stage, idle, who, address):
    """The address may have passed to another device meanwhile, so that is asked first, for each of its addresses."""
    await stage.ask(LAPTOP)
    stage.tailscale.join(Who("stranger", "bob@example.com", (LAPTOP, LAPTOP6)))
    stage.clock.now += idle
    standing = stage.whois.known(address, 1)
    assert (standing and standing.who) == who
    await stage.settle()
    assert (await stage.ask(address)).who.device == "stranger"


async def test_expired_answer_is_not_used_while_tailscale_hangs(stage):
    """Without a new answer a peer has no name after a minute, rather than its former one."""
    await stage.ask(LAPTOP)
    stage.clock.now += LIFETIME
    stage.tailscale.failure = SILENT
    assert await stage.ask(LAPTOP) == UNKNOWN


async def test_renewal_runs_in_the_background(stage):
    """A device that asks at least every half minute never waits: it is looked up while the old answer is valid."""
    await stage.ask(LAPTOP)
    for _ in range(5):
        stage.clock.now += RENEWED_AFTER
        assert stage.whois.known(LAPTOP, 1) == KNOWN
        await stage.settle()
    assert len(stage.tailscale.asked) == 6


async def test_failed_renewal_leaves_a_valid_answer(stage):
    """A Tailscale that doesn't answer for a moment makes nobody nameless before the answer expires."""
    await stage.ask(LAPTOP)
    stage.tailscale.failure = SILENT
    stage.clock.now += RENEWED_AFTER
    for _ in range(3):
        assert stage.whois.known(LAPTOP, 1) == KNOWN
        await stage.settle()
    assert len(stage.tailscale.asked) == 2
    stage.clock.now += LIFETIME - RENEWED_AFTER
    assert stage.whois.known(LAPTOP, 1) is None


async def test_late_failure_doesnt_prolong_an_answer(stage):
    """A renewal that fails shortly before the answer expires doesn't put that off."""
    await stage.ask(LAPTOP)
    stage.tailscale.failure = SILENT
    stage.clock.now += LIFETIME - 1.0
    assert stage.whois.known(LAPTOP, 1) == KNOWN
    await stage.settle()
    stage.clock.now += 1.0
    assert stage.whois.known(LAPTOP, 1) is None


@pytest.mark.parametrize(
    ("peer", "is_self"),
    [
        pytest.param("127.0.0.1", True, id="loopback"),
        pytest.param("127.8.8.8", True, id="all_of_loopback"),
        pytest.param("::1", True, id="ipv6_loopback"),
        pytest.param("::ffff:127.0.0.1", True, id="wrapped_loopback"),
        pytest.param("192.168.1.5", False, id="lan"),
        pytest.param("203.0.113.9", False, id="internet"),
        pytest.param("100.128.0.1", False, id="next_to_the_tailnets_range"),
        pytest.param("100.115.92.7", False, id="chromeos"),
        pytest.param("100.100.100.100", False, id="resolver"),
        pytest.param("@", False, id="no_address"),
        pytest.param("", False, id="nothing"),
    ],
)
async def test_addresses_outside_the_tailnet_are_not_asked_about(stage, peer, is_self):
    """Loopback is this machine; the LAN and the internet have no device of the tailnet. Neither costs a lookup."""
    assert stage.whois.known(peer, 1) == Standing(is_self=is_self)
    stage.whois.expect(peer, 1)
    assert stage.tailscale.asked == []


# --- nobody -----------------------------------------------------------------------------------------------------------


async def test_unknown_peer_is_refused_and_asked_about_seldom(stage):
    """A peer that Tailscale doesn't know is refused, and costs one lookup in five seconds, however often it asks."""
    for moment, times in ((0.0, 1), (UNKNOWN_LIFETIME - 0.1, 1), (UNKNOWN_LIFETIME, 2)):
        stage.clock.now = 1000.0 + moment
        for _ in range(3):
            stage.whois.expect(NOBODY, 1)
            assert (await stage.ask(NOBODY)).refusal is refusals.PEER_UNKNOWN
        assert len(stage.tailscale.asked) == times


async def test_device_that_has_just_joined_is_served(stage):
    """A refusal isn't kept: a device that joins the tailnet is served five seconds after it was refused."""
    await stage.ask(NOBODY)
    stage.tailscale.join(newcomer := Who("new", "bob@example.com", (NOBODY,)))
    stage.clock.now += UNKNOWN_LIFETIME
    assert await stage.ask(NOBODY) == Standing(newcomer)


async def test_address_of_a_device_that_joins_by_another_one(stage):
    """An answer that names a device lifts the refusal of its other addresses at once."""
    stage.tailscale.remove(ALICE)
    assert (await stage.ask(LAPTOP6)).refusal is refusals.PEER_UNKNOWN
    stage.tailscale.join(ALICE)
    await stage.ask(LAPTOP)
    assert await stage.ask(LAPTOP6) == KNOWN


@pytest.mark.parametrize("address", [LAPTOP, LAPTOP6])
async def test_removed_device_is_refused_on_all_addresses(stage, address):
    """A device that was removed is refused as soon as one of its addresses is looked up again."""
    await stage.ask(LAPTOP)
    stage.tailscale.remove(ALICE)
    stage.clock.now += RENEWED_AFTER
    assert stage.whois.known(LAPTOP, 1) == KNOWN  # and begins the lookup
    await stage.settle()
    assert (await stage.ask(address)).refusal is refusals.PEER_UNKNOWN


async def test_this_machine_is_not_refused(stage):
    """While tailscaled starts it knows nobody, this machine included, which may use its own proxy."""
    assert await stage.ask(OWN) == Standing(unknown=True, is_self=True)


async def test_this_machine(stage):
    """The machine itself is known by the addresses that it has, and has a device's name like others."""
    stage.tailscale.join(mac := Who("mac", "alice@example.com", (OWN,)))
    assert await stage.ask(OWN) == Standing(mac, is_self=True)
    assert not (await stage.ask(LAPTOP)).is_self


# --- no answer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure",
    [SILENT, UnreadableError("it has no name"), RecursionError(), OSError()],
    ids=lambda error: type(error).__name__,
)
async def test_failed_lookup_leaves_it_to_the_address(stage, failure):
    """If Tailscale doesn't answer, nobody knows who a peer is, and it is asked about again after ten seconds."""
    stage.tailscale.failure = failure
    for moment, times in ((0.0, 1), (FAILURE_LIFETIME - 0.1, 1), (FAILURE_LIFETIME, 2)):
        stage.clock.now = 1000.0 + moment
        assert await stage.ask(LAPTOP) == UNKNOWN
        assert len(stage.tailscale.asked) == times
    stage.tailscale.failure = None
    stage.clock.now += FAILURE_LIFETIME
    assert await stage.ask(LAPTOP) == KNOWN


async def test_silence_is_reported_once_a_minute(stage):
    """The log reports a Tailscale that doesn't answer once a minute, with the cause, and not for each request."""
    stage.tailscale.failure = SILENT
    for moment, times in ((0.0, 1), (30.0, 1), (COMPLAIN_EACH, 2)):
        stage.clock.now = 1000.0 + moment
        for peer in range(5):
            await stage.ask(f"100.64.1.{peer}")
        assert len(stage.reports.events) == times
    event, fields = stage.reports.events[0]
    assert event == "peers_not_identified"
    assert "nobody answers" in str(fields["problem"])
    assert fields["hint"] == "tailscale up"


async def test_hung_tailscale_holds_nobody_for_longer_than_patience():
    """A request waits for `patience`, then the peer is unknown; those that come later don't wait at all."""
    stage = Stage(patience=0.01)
    stage.tailscale.hang()
    assert await stage.ask(LAPTOP) == UNKNOWN
    assert stage.tailscale.asked == [LAPTOP]
    assert [event for event, _ in stage.reports.events] == ["peers_not_identified"]
    again = asyncio.create_task(stage.ask(LAPTOP))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert again.done()
    stage.tailscale.answer()  # late: it serves the next request
    await stage.settle()
    assert stage.whois.known(LAPTOP, 1) == KNOWN
    await stage.whois.close()


async def test_slow_answers_of_a_living_tailscale_open_no_door():
    """A crowd of unknown peers slows down lookups. While Tailscale answers others, who waits too long is refused."""
    stage = Stage(patience=0.05)
    stage.tailscale.hang()
    waiting = [asyncio.create_task(stage.ask(peer)) for peer in (LAPTOP, NOBODY)]
    await asyncio.sleep(0)
    stage.tailscale.peers.clear()

    async def who(ip, port, _):
        return ALICE if ip == LAPTOP else await AskedTailscale.who(stage.tailscale, ip, port)

    other = Whois(who, stage.reports, stage.clock, patience=0.05, own=lambda _: False)
    asks = asyncio.create_task(other.ask(NOBODY, 1))
    await asyncio.sleep(0)
    await other.ask(LAPTOP, 1)
    assert await asks == Standing(refusal=refusals.IDENTITY_LATE, unknown=True)
    assert await asyncio.gather(*waiting) == [UNKNOWN, UNKNOWN]  # nobody was answered
    await other.close()
    await stage.whois.close()


# --- with access rules ------------------------------------------------------------------------------------------------


@pytest.fixture
async def ruled(stage):
    """Give a stage with access rules."""
    stage.whois.apply(rules=True)
    return stage


@pytest.mark.parametrize(
    ("age", "valid", "lookups"),
    [
        pytest.param(RULES_RENEWED_AFTER - 0.1, True, 1, id="young"),
        pytest.param(RULES_RENEWED_AFTER, True, 2, id="renewed_in_the_background"),
        pytest.param(RULES_LIFETIME - 0.1, True, 2, id="just_before_its_end"),
        pytest.param(RULES_LIFETIME, False, 1, id="at_its_end"),
    ],
)
async def test_answer_lives_ten_seconds(ruled, age, valid, lookups):
    """With rules an answer is renewed after five seconds, and never used for longer than ten."""
    await ruled.ask(LAPTOP)
    ruled.clock.now += age
    assert (ruled.whois.known(LAPTOP, 1) == KNOWN) is valid
    await ruled.settle()
    assert len(ruled.tailscale.asked) == lookups


async def test_answer_is_as_old_as_its_question():
    """What Tailscale says may have been so when it was asked, so a slow answer lives no longer than a quick one."""
    clock = Clock()
    tailscale = SlowTailscale(clock, 3.0)
    whois = Whois(tailscale.who, Reports(), clock, patience=3600.0, own=lambda _: False)
    whois.apply(rules=True)
    whois.expect(LAPTOP, 1)
    await asyncio.sleep(0)
    await tailscale.pass_time(3.0)
    clock.now += RULES_LIFETIME - 3.0 - 0.1
    assert whois.known(LAPTOP, 1) == KNOWN
    clock.now += 0.1
    assert whois.known(LAPTOP, 1) is None
    await whois.close()


@pytest.mark.parametrize("seconds", [0.0, 0.9, 3.0])
async def test_lost_tag_of_a_busy_device(seconds):
    """A device that asks all the time loses a tag within ten seconds, and waits for no lookup, however slow it is."""
    clock = Clock()
    tailscale = SlowTailscale(clock, seconds)
    whois = Whois(tailscale.who, Reports(), clock, patience=3600.0, own=lambda _: False)
    whois.apply(rules=True)
    whois.expect(ROBOT, 1)
    await asyncio.sleep(0)
    await tailscale.pass_time(seconds)
    tags = []
    for step in range(400):  # tenths of a second
        if step == 170:
            tailscale.join(Who("robot", "bob@example.com", (ROBOT,), "bob@example.com"))
        standing = whois.known(ROBOT, 1)
        assert standing is not None
        tags.append(standing.who.tags)
        await tailscale.pass_time(0.1)
    lost = tags.index(())
    assert 170 <= lost <= 270
    assert set(tags[:170]) == {("tag:robot",)}
    assert set(tags[lost:]) == {()}
    await whois.close()


async def test_silence_ends_with_the_answer(ruled):
    """If Tailscale falls silent, a device is known for ten seconds more, and again as soon as Tailscale is back."""
    await ruled.ask(LAPTOP)
    ruled.tailscale.failure = SILENT
    found, moments = [], []
    for second in range(1, 21):
        ruled.clock.now += 1.0
        ruled.tailscale.asked.clear()
        found.append(await ruled.ask(LAPTOP))
        await ruled.settle()
        moments += [second] * len(ruled.tailscale.asked)
    assert found == [KNOWN] * 9 + [UNKNOWN] * 11
    assert moments == [5, 7, 9, *range(10, 21, 2)]
    ruled.tailscale.failure = None
    ruled.clock.now += RULES_FAILURE_LIFETIME
    assert await ruled.ask(LAPTOP) == KNOWN


async def test_slow_lookup_holds_up_nobody_else():
    """While Tailscale takes too long about one device, the others are served at once by what is known about them."""
    stage = Stage(patience=0.01)
    stage.whois.apply(rules=True)
    await stage.ask(ROBOT)
    stage.tailscale.hang()
    assert await stage.ask(LAPTOP) == UNKNOWN
    assert stage.whois.known(ROBOT, 1).who.tags == ("tag:robot",)
    stage.tailscale.answer()
    await stage.settle()
    assert stage.whois.known(LAPTOP, 1) == KNOWN
    await stage.whois.close()


async def test_crowd_holds_up_no_renewal(ruled):
    """A known device is looked up at once, whatever number of new peers Tailscale is still busy with."""
    await ruled.ask(LAPTOP)
    ruled.tailscale.hang()
    crowd = [asyncio.create_task(ruled.ask(f"100.71.0.{number}")) for number in range(WAITING)]
    await asyncio.sleep(0)
    ruled.clock.now += RULES_RENEWED_AFTER
    assert ruled.whois.known(LAPTOP, 1) == KNOWN
    await asyncio.sleep(0)
    assert ruled.tailscale.asked[-1] == LAPTOP
    ruled.tailscale.answer()
    await asyncio.gather(*crowd)


@pytest.mark.parametrize("before", [False, True], ids=["first_answer", "renewal"])
async def test_answer_about_another_device(ruled, before):
    """An answer whose addresses don't include the peer's is no answer: neither of the two is known by it."""
    if before:
        await ruled.ask(ROBOT)
        ruled.clock.now += RULES_LIFETIME
    ruled.tailscale.peers[ROBOT] = ALICE
    assert await ruled.ask(ROBOT) == UNKNOWN
    assert ruled.whois.known(LAPTOP, 1) is None
    ((event, fields),) = ruled.reports.events
    assert event == "peers_not_identified"
    assert "about another device" in str(fields["problem"])


async def test_new_settings_count_from_the_next_request(ruled):
    """When settings are applied, each device is asked about again, with the capability that they name."""
    await ruled.ask(LAPTOP)
    ruled.whois.apply(rules=True, capability="example.com/cap/ollama")
    for address in (LAPTOP, LAPTOP6):
        assert ruled.whois.known(address, 1) is None
    await ruled.ask(LAPTOP)
    assert ruled.tailscale.capabilities == [None, "example.com/cap/ollama"]


async def test_refusals_end_with_new_settings(ruled):
    """A peer that Tailscale didn't know, or said nothing about, is asked about again too."""
    await ruled.ask(NOBODY)
    ruled.tailscale.failure = SILENT
    await ruled.ask(LAPTOP)
    ruled.tailscale.failure = None
    ruled.tailscale.join(newcomer := Who("new", "bob@example.com", (NOBODY,)))
    ruled.whois.apply(rules=True)
    assert [await ruled.ask(peer) for peer in (NOBODY, LAPTOP)] == [Standing(newcomer), KNOWN]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["old_first", "new_first"])
async def test_two_lookups_around_a_change_of_settings(order):
    """A lookup that was begun before the change neither serves, nor is waited for, nor ends the one begun after it."""
    answers = [asyncio.Future(), asyncio.Future()]
    asked = iter(answers)
    whois = Whois(lambda *_: next(asked), Reports(), Clock(), patience=3600.0, own=lambda _: False)
    former = ALICE._replace(device="former")
    waiting = [asyncio.create_task(whois.ask(LAPTOP, 1))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    whois.apply(rules=True)
    waiting.append(asyncio.create_task(whois.ask(LAPTOP, 1)))
    for each in order:
        for _ in range(5):
            await asyncio.sleep(0)
        answers[each].set_result((former, ALICE)[each])
        waiting.append(asyncio.create_task(whois.ask(LAPTOP, 1)))
    assert await asyncio.gather(*waiting) == [KNOWN] * 4
    assert whois.known(LAPTOP, 1) == KNOWN
    await whois.close()


async def test_silence_after_new_settings(ruled):
    """Answers from before a change of the settings don't serve, even while Tailscale is silent."""
    await ruled.ask(LAPTOP)
    ruled.tailscale.failure = SILENT
    ruled.whois.apply(rules=True)
    assert await ruled.ask(LAPTOP) == UNKNOWN


@pytest.mark.parametrize("failure", [None, SILENT], ids=["answered", "silent"])
async def test_settings_change_during_a_lookup(stage, failure):
    """Who waits for a lookup that was begun before gets the answer of a new one, and the old one isn't kept."""
    stage.tailscale.hang()
    waiting = asyncio.create_task(stage.ask(LAPTOP))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    stage.whois.apply(rules=True, capability="example.com/cap/ollama")
    stage.tailscale.failure = failure
    stage.tailscale.answer()
    assert await waiting == (UNKNOWN if failure else KNOWN)
    await stage.settle()
    assert stage.tailscale.capabilities == [None, "example.com/cap/ollama"]
    assert repr(stage.whois) == f"<Whois {'0 known, 1' if failure else '2 known, 0'} not, 0 asking>"


async def test_without_rules_again(ruled):
    """When the rules are gone, answers live a minute again."""
    ruled.whois.apply(rules=False)
    await ruled.ask(LAPTOP)
    ruled.clock.now += RENEWED_AFTER - 0.1
    assert ruled.whois.known(LAPTOP, 1) == KNOWN
    assert len(ruled.tailscale.asked) == 1


def test_clock_that_runs_during_sleep():
    """Answers age while the machine sleeps, which Python's own monotonic clock doesn't count on macOS."""
    clocks = {"linux": "CLOCK_BOOTTIME", "darwin": "CLOCK_MONOTONIC"}
    assert clock.args == (getattr(time, clocks[sys.platform]),)


# --- bounds -----------------------------------------------------------------------------------------------------------


async def test_lookups_are_bounded(stage):
    """A few lookups run at once and some wait for their turn. A new peer beyond that is asked to come again."""
    stage.tailscale.hang()
    waiting = [asyncio.create_task(stage.ask(f"100.64.1.{number}")) for number in range(WAITING)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(stage.tailscale.asked) == IN_FLIGHT
    assert (await stage.ask("100.64.2.1")).refusal is refusals.IDENTITY_LATE
    stage.tailscale.answer()
    await asyncio.gather(*waiting)
    assert len(stage.tailscale.asked) == WAITING
    assert (await stage.ask("100.64.2.1")).refusal is refusals.PEER_UNKNOWN


async def test_crowd_keeps_no_known_device_out(stage):
    """Unknown peers in any number neither push out an answer nor keep a known device from being asked about again."""
    await stage.ask(LAPTOP)
    for number in range(PEERS_KEPT + 1):
        await stage.ask(f"100.70.{number // 256}.{number % 256}")
    assert repr(stage.whois) == f"<Whois 2 known, {PEERS_KEPT} not, 0 asking>"
    stage.tailscale.hang()
    waiting = [asyncio.create_task(stage.ask(f"100.71.0.{number}")) for number in range(WAITING)]
    await asyncio.sleep(0)
    stage.clock.now += LIFETIME
    again = asyncio.create_task(stage.ask(LAPTOP))
    await asyncio.sleep(0)
    stage.tailscale.answer()
    assert (await again).who == ALICE
    await asyncio.gather(*waiting)


async def test_answers_kept_are_bounded(stage):
    """Of more addresses than are kept, the one that was looked up longest ago goes."""
    for number in range(PEERS_KEPT + 1):
        address = f"100.70.{number // 256}.{number % 256}"
        stage.tailscale.join(Who("one", None, (address,)))
        await stage.ask(address)
    assert repr(stage.whois) == f"<Whois {PEERS_KEPT} known, 0 not, 0 asking>"
    assert stage.whois.known("100.70.0.0", 1) is None
    assert stage.whois.known("100.70.0.1", 1) is not None


async def test_close_gives_up(stage):
    """At the end of the process nothing is left that still asks, or waits."""
    stage.tailscale.hang()
    waiting = asyncio.create_task(stage.ask(LAPTOP))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await stage.whois.close()
    assert repr(stage.whois) == "<Whois 0 known, 0 not, 0 asking>"
    with pytest.raises(asyncio.CancelledError):
        await waiting
