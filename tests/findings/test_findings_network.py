"""Network: what is seen of who reaches what."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from proxy.manage.findings import firewall, ollama, proof, settings, tailscale
from proxy.manage.findings.table import NETWORK
from proxy.terminal.finding import Outcome
from tests.support.mac.fake_mac import FRAMEWORK
from tests.support.mac.installed_mac import ADDRESS, ADDRESS6, LAN, LSOF, PIDS, PORT, RUN, assert_told, case, wrong

TAILSCALE = (
    tailscale.userspace,
    tailscale.address,
    tailscale.absence,
    tailscale.serve,
    tailscale.serve_port,
    tailscale.concerns,
)

CASES = (
    case(
        "ollama_beyond_loopback",
        lambda mac: mac.listens(ollama=[("*", PORT)]),
        ollama.exposure,
        ("Ollama's address", "fail", f"ollama (pid {PIDS['ollama']}) listens on *:{PORT}"),
        f"{RUN} install",
    ),
    case(
        "ollama_talks_something_else",
        lambda mac: mac.network.at.update({("127.0.0.1", PORT): mac.network.nonsense}),
        ollama.answers,
        ("Ollama HTTP", "fail", "does not answer: BadStatusLine"),
        f"{RUN} restart ollama",
    ),
    case(
        "no_tailscale",
        lambda mac: mac.tailnet(state="NeedsLogin"),
        TAILSCALE,
        ("Tailscale address", "fail", "not logged in"),
        "tailscale up",
    ),
    case(
        "rule_past_the_proxy",
        lambda mac: mac.tailnet(serve={"TCP": {"443": {"TCPForward": f"127.0.0.1:{PORT}"}}}),
        TAILSCALE,
        ("tailscale serve", "fail", "past this proxy"),
        "tailscale serve --tcp=443 off",
    ),
    case(
        "rule_on_the_proxys_port",
        lambda mac: mac.tailnet(serve={"TCP": {str(PORT): {"TCPForward": "127.0.0.1:9999"}}}),
        TAILSCALE,
        ("tailscale serve", "fail", f"port {PORT}, where this proxy listens, to 127.0.0.1:9999"),
        f"tailscale serve --tcp={PORT} off",
    ),
    case(
        "userspace_networking",
        lambda mac: mac.tailnet(tun=False),
        TAILSCALE,
        ("Tailscale address", "fail", "userspace networking"),
        "restart tailscaled as root, without --tun=userspace-networking; on a Mac, use the Tailscale app",
    ),
    case(
        "shields_up",
        lambda mac: mac.tailnet(shields=True),
        TAILSCALE,
        ("tailscale shields", "fail", "blocks all other devices"),
        "tailscale set --shields-up=false",
    ),
    case(
        "key_expires",
        lambda mac: mac.tailnet(key_expiry=(datetime.now(UTC) + timedelta(days=20)).isoformat()),
        TAILSCALE,
        ("tailscale key", "warn", "this machine's key in its tailnet expires on"),
        "tailscale up --force-reauth, at this machine's screen; or disable its key expiry at"
        " https://login.tailscale.com/admin/machines",
    ),
    case(
        "own_key_expired",
        lambda mac: mac.tailnet(state="NeedsLogin", expired=True),
        TAILSCALE,
        ("Tailscale address", "fail", "key in its tailnet has expired"),
        "tailscale up",
    ),
    case(
        "health",
        lambda mac: mac.tailnet(health=["Tailscale can't reach the configured DNS servers."]),
        TAILSCALE,
        ("tailscale health", "warn", "Tailscale reports: Tailscale can't reach the configured DNS servers."),
        "tailscale status",
    ),
    case(
        "one_address_silent",
        lambda mac: mac.network.at.update({(ADDRESS6, PORT): mac.network.nonsense}),
        proof.ollama_directly,
        ("Ollama directly", "fail", f"[{ADDRESS6}]:{PORT} accepts connections"),
        LSOF,
    ),
    case(
        "ollama_in_the_lan",
        lambda mac: mac.network.at.update({(LAN, PORT): mac.network.ollama}),
        proof.ollama_directly,
        ("Ollama directly", "fail", f"{LAN}:{PORT} accepts connections past"),
        LSOF,
    ),
    case(
        "firewall_drops",
        lambda mac: mac.change(firewall=1, apps={}, allow_signed=False),
        firewall.check,
        ("firewall", "fail", "Python.app is unlisted: connections would be reset, or get no answer"),
        "sudo /usr/libexec/ApplicationFirewall/socketfilterfw --add 'APP' --unblockapp 'APP'",
    ),
    case(
        "firewall_blocks_all",
        lambda mac: mac.change(firewall=1, block_all=True),
        firewall.check,
        ("firewall", "fail", "blocks all incoming connections"),
        "sudo /usr/libexec/ApplicationFirewall/socketfilterfw --setblockall off",
    ),
    case(
        "any_address",
        lambda mac: mac.settings("allow_any_address = true"),
        settings.opened,
        ("allow_any_address", "warn", "tailscale serves anyone who can reach it"),
        f"{RUN} --no-allow-any-address --check",
    ),
    case(
        "any_upstream",
        lambda mac: mac.settings("allow_any_upstream = true"),
        settings.opened,
        ("allow_any_upstream", "warn", f"requests go to http://127.0.0.1:{PORT}"),
        f"{RUN} --no-allow-any-upstream --check",
    ),
)


def test_tailscale_does_not_answer(installed):
    """Where only the interface shows the address, that is said, with what the command wrote."""
    installed.tailnet(cli="dead")
    rules, silent = wrong(installed.found(*TAILSCALE))
    assert silent[:2] == ("tailscale", Outcome.WARN)
    assert "says: failed to connect to local tailscaled" in silent[2]
    assert rules == ("tailscale serve", Outcome.SKIP, "its rules can't be read: Tailscale doesn't answer", "")


def test_ipv6_that_only_tailscale_reports(installed):
    """An address that this machine lacks is asked for nothing, and nothing fails for it."""
    installed.tailnet(ips=[ADDRESS, "fd7a:115c:a1e0::7"])
    ((name, outcome, detail, _),) = wrong(installed.found(*TAILSCALE))
    assert (name, outcome) == ("Tailscale address", Outcome.SKIP)
    assert "fd7a:115c:a1e0::7, which this machine doesn't have" in detail
    assert wrong(installed.found(proof.reachable)) == []
    assert wrong(installed.found(proof.ollama_directly)) == []


@pytest.mark.parametrize(("change", "check", "finding", "hint"), CASES)
def test_one_thing_is_wrong(installed, change, check, finding, hint):
    """Each fault has one finding, with a command that helps."""
    assert_told(installed, change, check, finding, hint)


def test_proxy_silent_at_one_address(installed):
    """An address at which the proxy should answer and doesn't is named, with where the reason is."""
    del installed.network.at[ADDRESS6, PORT]
    found = wrong(installed.found(proof.reachable))
    assert [(name, outcome) for name, outcome, *_ in found] == [
        ("an allowed request", Outcome.FAIL),
        ("a blocked request", Outcome.FAIL),
    ]
    assert all(f"[{ADDRESS6}]:{PORT}: no answer" in detail for _, _, detail, _ in found)
    assert {hint for *_, hint in found} == {f"{RUN} logs --diagnostics"}


def test_blocked_request_gets_through(installed):
    """If Ollama answers instead of the proxy, the blocked request gets through, and the way past the proxy is reported
    too.
    """
    installed.network.at[ADDRESS, PORT] = installed.network.ollama
    ((name, outcome, detail, hint),) = wrong(installed.found(proof.reachable))
    assert (name, outcome, hint) == ("a blocked request", Outcome.FAIL, f"curl -i http://{ADDRESS}:{PORT}/")
    assert f"POST /api/pull at {ADDRESS}:{PORT}: 404 instead of 403" in detail
    ((name, outcome, detail, _),) = wrong(installed.found(proof.ollama_directly))
    assert (name, outcome) == ("Ollama directly", Outcome.FAIL)
    assert detail == f"{ADDRESS}:{PORT} accepts connections past the proxy"


def test_ports_of_their_own(installed):
    """Where the proxy has another port than Ollama, nobody may answer at Ollama's beyond loopback, not even a proxy."""
    installed.settings("port = 8080")
    found = wrong(installed.found(proof.ollama_directly))
    assert [detail for _, _, detail, _ in found] == [
        f"{ADDRESS}:{PORT} accepts connections past the proxy",
        f"[{ADDRESS6}]:{PORT} accepts connections past the proxy",
    ]


def test_ollama_on_another_machine(installed):
    """Of an Ollama elsewhere it can't be seen who reaches it, which is said."""
    installed.settings('upstream = "http://10.0.0.5:11434"\nallow_any_upstream = true')
    installed.network.at["10.0.0.5", PORT] = installed.network.ollama
    found = installed.found(*installed.group(NETWORK))
    away = "Ollama is on another machine, at http://10.0.0.5:11434"
    line = installed.config.read_text().splitlines().index("allow_any_upstream = true") + 1
    sent = f"is on (file {installed.config}, line {line}): requests go to http://10.0.0.5:11434"
    assert wrong(found) == [
        ("Ollama's address", Outcome.SKIP, away, ""),
        ("Ollama directly", Outcome.SKIP, away, ""),
        ("allow_any_upstream", Outcome.WARN, sent, f"{RUN} --no-allow-any-upstream --check"),
    ]


def test_firewall_knows_the_python_behind_the_environment(installed):
    """The firewall is asked of the program that it knows, which is python.org's app, not the link to it."""
    app = str(installed.root / FRAMEWORK / "Resources" / "Python.app")
    installed.change(firewall=1, apps={app: "permitted"})
    (finding,) = installed.found(firewall.check)
    assert (finding.outcome, finding.hint) == (Outcome.PASS, "")
    assert finding.detail == "it is on, and allows this Python"


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        pytest.param(ConnectionResetError(54, "Connection reset by peer"), "the connection was reset", id="reset"),
        pytest.param(TimeoutError("timed out"), "the connection got no answer", id="silence"),
    ],
)
def test_firewall_is_named_where_it_refuses(installed, failure, words):
    """A connection that is reset or silent while Ollama answers on loopback is the firewall's doing, if it is on."""

    def fails(*_):
        raise failure

    installed.network.at[ADDRESS, PORT] = fails
    told = wrong(installed.found(proof.reachable))
    assert all(words not in detail and hint == f"{RUN} logs --diagnostics" for *_, detail, hint in told)
    installed.change(firewall=1, allow_signed=False)
    told = wrong(installed.found(proof.reachable))
    line = "sudo /usr/libexec/ApplicationFirewall/socketfilterfw --add 'APP' --unblockapp 'APP'"
    assert len(told) == 2
    assert all(words in detail and "Python.app is unlisted" in detail for *_, detail, _ in told)
    assert {hint for *_, hint in told} == {installed.spelled(line)}
    installed.network.at["127.0.0.1", PORT] = installed.network.nonsense
    told = wrong(installed.found(proof.reachable))
    assert all("firewall" not in detail for *_, detail, _ in told), "it is Ollama, then, or the whole Mac"
