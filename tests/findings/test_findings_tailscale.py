"""Findings about Tailscale: facts in, findings out."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_interface

import pytest

from proxy.manage.facts.facts import Facts
from proxy.manage.facts.tailscale import absent, look
from proxy.manage.findings import tailscale as findings_tailscale
from proxy.manage.machine.machine import Machine
from proxy.settings.settings import load
from proxy.tailnet.interfaces import Interface
from proxy.tailnet.serve_rules import Kind, Ports, Rule
from proxy.tailnet.tailscale import Tailnet
from proxy.terminal.finding import Outcome
from tests.fakes.scripted_tailscale import STOPPED, ScriptedTailscale

V4, V6 = "100.64.0.1", "fd7a:115c:a1e0::1"
UP = Tailnet("Running", (V4, V6), tun=True, name="mac.tail1234.ts.net")
USERSPACE = Tailnet("Running", tun=False, problem="userspace networking", hint="restart it")


def facts_of(tailscale, **flags):
    """Return the facts of a machine with that Tailscale."""
    return Facts(Machine.here(), load(flags, {"HOME": "/nowhere"}), tailscale=tailscale)


@pytest.mark.parametrize(
    ("tailnet", "outcome", "detail"),
    [
        pytest.param(UP, Outcome.PASS, f"up: {V4}, {V6} (mac.tail1234.ts.net)", id="up"),
        pytest.param(replace(UP, name=None), Outcome.PASS, f"up: {V4}, {V6}", id="up_without_a_name"),
        pytest.param(STOPPED, Outcome.FAIL, "Tailscale is stopped", id="stopped"),
        pytest.param(USERSPACE, Outcome.FAIL, "userspace networking", id="userspace"),
    ],
)
def test_address(tailnet, outcome, detail):
    """A missing address is one failure, and so is userspace networking, which leads past the proxy."""
    facts = facts_of(ScriptedTailscale(tailnet))
    (finding,) = [*findings_tailscale.userspace(facts), *findings_tailscale.address(facts)]
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
    tailscale = ScriptedTailscale(UP, shields=True, held=(V4,))
    settings = load({"port": "21500", "upstream": "http://127.0.0.1:7777"}, {"HOME": "/nowhere"}).settings
    facts = await look(tailscale, settings)
    assert (facts.tailnet, facts.held, len(facts.concerns)) == (UP, (V4,), 1)
    assert (tailscale.looks, tailscale.asked) == (1, [Ports(7777, 21500, None, 21500)])


BLIND = Rule("passes on bytes", "tailscale serve --tcp=443 off", Kind.BLIND)
URL = "https://mac.tail1234.ts.net"


@pytest.mark.parametrize(
    ("tailscale", "outcome", "words", "hint"),
    [
        pytest.param(ScriptedTailscale(UP, urls=(URL,)), "pass", f"leads from {URL} to 127.0.0.1:11435", "", id="well"),
        pytest.param(
            *(ScriptedTailscale(UP), "warn", "no rule of `tailscale serve` leads to 127.0.0.1:11435"),
            "tailscale serve --bg http://127.0.0.1:11435",
            id="no_rule",
        ),
        pytest.param(
            *(ScriptedTailscale(UP, (BLIND,), urls=(URL,)), "fail", "nothing is served on serve_port: passes on bytes"),
            BLIND.hint,
            id="blind_rule",
        ),
        pytest.param(
            *(ScriptedTailscale(USERSPACE), "fail", "nothing is served on serve_port: userspace", "restart it"),
            id="userspace",
        ),
        pytest.param(
            ScriptedTailscale(UP, None), "fail", "can't be read", "tailscale serve status", id="rules_unknown"
        ),
    ],
)
def test_serve_port(tailscale, outcome, words, hint):
    """Where the settings name a port for serve, its state is one finding, with what helps."""
    facts = facts_of(tailscale, serve_port="11435")
    (finding,) = findings_tailscale.serve_port(facts)
    assert (finding.name, str(finding.outcome), finding.hint) == ("serve port", outcome, hint)
    assert words in finding.detail
    assert [each for each in findings_tailscale.serve(facts) if "passes on" in each.detail] == []


def test_no_serve_port():
    """Without the setting nothing is said of it."""
    assert list(findings_tailscale.serve_port(facts_of(ScriptedTailscale(UP, (BLIND,))))) == []


def test_hints_can_be_followed():
    """A command that helps with the port is put into the form that works on this machine."""

    class Mac(ScriptedTailscale):
        def hint(self, advice):
            return advice.replace("tailscale ", "/Applications/Tailscale ")

    for tailscale in (Mac(UP), Mac(UP, None)):
        (finding,) = findings_tailscale.serve_port(facts_of(tailscale, serve_port="11435"))
        assert finding.hint.startswith("/Applications/Tailscale serve ")
