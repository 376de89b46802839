"""What is amiss with Tailscale although this machine has its address."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from proxy.tailnet.concerns import Topic, concerns, health, key_expiry, shields_up, silence
from proxy.tailnet.tailscale import Tailnet
from tests.fakes.scripted_tailscale import STOPPED, ScriptedTailscale

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
UP = Tailnet("Running", ("100.64.0.1",), tun=True)


@pytest.mark.parametrize(
    ("left", "words"),
    [
        pytest.param(None, None, id="never"),
        pytest.param(timedelta(days=180), None, id="half_a_year"),
        pytest.param(timedelta(days=30), None, id="thirty_days"),
        pytest.param(timedelta(days=30, seconds=-1), "on 2026-12-01, in 29 days", id="just_below_thirty_days"),
        pytest.param(timedelta(days=2), "on 2026-11-03, in 2 days", id="two_days"),
        pytest.param(timedelta(hours=5), "on 2026-11-01, in a day or less", id="today"),
        pytest.param(timedelta(hours=-5), "expires on 2026-11-01:", id="over"),
    ],
)
def test_key_expiry(left, words):
    """In the last thirty days before this machine's key expires that is a concern, with the day."""
    found = list(key_expiry(replace(UP, key_expiry=left and NOW + left), NOW))
    assert [each.topic for each in found] == ([Topic.KEY] if words else [])
    assert all(words in each.problem and "--force-reauth" in each.hint for each in found)


@pytest.mark.parametrize("up", [True, False, None])
def test_shields(up):
    """Shields that are up are a concern; that it can't be read is none."""
    assert [each.topic for each in shields_up(up)] == ([Topic.SHIELDS] if up else [])


@pytest.mark.parametrize(
    ("tailnet", "problems"),
    [
        pytest.param(UP, [], id="nothing"),
        pytest.param(
            replace(UP, health=("clock is wrong", "no DNS")),
            ["Tailscale reports: clock is wrong", "Tailscale reports: no DNS"],
            id="two",
        ),
        pytest.param(replace(UP, state="Starting", health=("no DNS",)), [], id="the_state_says_more"),
    ],
)
def test_health(tailnet, problems):
    """What Tailscale itself reports while it runs is passed on, each thing on its own."""
    assert [each.problem for each in health(tailnet)] == problems


def test_silence():
    """That only the interface shows the address is a concern, with why Tailscale doesn't answer."""
    tailnet = replace(UP, source="interface", silence="Tailscale does not answer: hung", hint="start it")
    ((topic, problem, hint),) = silence(tailnet)
    assert (topic, hint) == (Topic.SILENT, "start it")
    assert problem == "Tailscale does not answer: hung. Its interface still has 100.64.0.1"


async def test_one_problem_is_enough():
    """Of a machine without an address nothing else is said."""
    assert await concerns(ScriptedTailscale(shields=True), replace(STOPPED, health=("no DNS",))) == ()


async def test_all_at_once():
    """What lets nobody in comes first."""
    tailnet = replace(UP, health=("no DNS",), key_expiry=datetime.now(UTC) + timedelta(days=1))
    found = await concerns(ScriptedTailscale(shields=True), tailnet)
    assert [each.topic for each in found] == [Topic.SHIELDS, Topic.KEY, Topic.HEALTH]
