"""What is found about Tailscale, whoever asks: facts in, findings out."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_interface

import pytest

from proxy.interfaces import Interface
from proxy.ops import findings_tailscale
from proxy.ops.finding import Outcome
from proxy.ops.findings_tailscale import absent, look
from proxy.serve_rules import Ports
from proxy.settings import load
from proxy.tailscale import Tailnet
from tests.fakes.told import STOPPED, ToldTailscale

V4, V6 = "100.64.0.1", "fd7a:115c:a1e0::1"
UP = Tailnet("Running", (V4, V6), tun=True, name="mac.tail1234.ts.net")
USERSPACE = Tailnet("Running", tun=False, problem="userspace networking", hint="restart it")


@pytest.mark.parametrize(
    ("tailnet", "outcome", "detail"),
    [
        pytest.param(UP, Outcome.PASS, f"up: {V4}, {V6} (mac.tail1234.ts.net)", id="up"),
        pytest.param(replace(UP, name=None), Outcome.PASS, f"up: {V4}, {V6}", id="up_without_a_name"),
        pytest.param(STOPPED, Outcome.WARN, "Tailscale is stopped", id="stopped"),
        pytest.param(USERSPACE, Outcome.FAIL, "userspace networking", id="userspace"),
    ],
)
def test_address(tailnet, outcome, detail):
    """A missing address is as bad as the caller says; userspace networking, which leads past the proxy, fails."""
    finding = findings_tailscale.address(tailnet, Outcome.WARN)
    assert (finding.outcome, finding.detail) == (outcome, detail)
    assert bool(finding.hint) is (outcome is not Outcome.PASS)


@pytest.mark.parametrize(
    ("held", "gone"),
    [
        pytest.param((V4, V6), (), id="both_there"),
        pytest.param((V4, "192.168.1.5"), (V6,), id="ipv6_off"),
        pytest.param((V6,), (), id="ipv4_is_never_given_up"),
        pytest.param((), (), id="no_list"),
        pytest.param(("192.168.1.5",), (), id="neither_there_yet"),
    ],
)
def test_absent(held, gone):
    """An IPv6 address counts as absent only if another of Tailscale's addresses is seen on an interface."""
    assert absent(UP, [Interface("en0", False, tuple(map(ip_interface, held)))]) == gone


async def test_look():
    """All facts are asked for once, with the ports of the settings."""
    tailscale = ToldTailscale(UP, shields=True, held=(V4,))
    settings = load({"port": "21500", "upstream": "http://127.0.0.1:7777"}, {"HOME": "/nowhere"}).settings
    facts = await look(tailscale, settings)
    assert (facts.tailnet, facts.held, len(facts.concerns)) == (UP, (V4,), 1)
    assert (tailscale.looks, tailscale.asked) == (1, [Ports(7777, 21500)])
