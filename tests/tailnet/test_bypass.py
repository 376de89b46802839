"""Ways past the proxy that Tailscale itself opens: serve, funnel and userspace networking."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.support.mac.fake_launchd import until
from tests.tailnet.served import OLLAMA, PORT, Served, asks

if TYPE_CHECKING:
    from tests.tailnet.machines import Machine, Tailnet
    from tests.tailnet.served import Finding

HTTP = "http://127.0.0.1:11434"
TCP = "tcp://127.0.0.1:11434"

each_rule = pytest.mark.parametrize(
    ("rule", "verb", "kind"),
    [
        pytest.param(["serve", "--bg", "--https=443", HTTP], "serve", "https port 443", id="https"),
        pytest.param(["serve", "--bg", "--http=80", HTTP], "serve", "http port 80", id="http"),
        pytest.param(
            ["serve", "--bg", "--https=443", "--set-path=/ai", HTTP], "serve", "https port 443", id="set-path"
        ),
        pytest.param(["serve", "--bg", "--tcp=5000", TCP], "serve", "tcp port 5000", id="tcp"),
        pytest.param(
            ["serve", "--bg", "--tls-terminated-tcp=5001", TCP], "serve", "tls-terminated-tcp port 5001", id="tls-tcp"
        ),
        pytest.param(["funnel", "--bg", "--https=443", HTTP], "funnel", "https port 443", id="funnel"),
    ],
)


def of_serve(found: list[Finding]) -> list[Finding]:
    """Return what was found wrong with rules of serve."""
    return [each for each in found if each.outcome == "fail" and "tailscale" in f"{each.name} {each.detail}"]


@each_rule
def test_rule_past_the_proxy(mac: Served, rule: list[str], verb: str, kind: str) -> None:
    """Each kind of rule that leads to Ollama is reported by the log and each command; the hint removes it."""
    mac.machine.tailscale(*rule)
    mac.serve()
    until(lambda: mac.said("tailscale_serve_bypass"))
    hints = set()
    for command in (["--check"], ["status"], ["verify", "--skip-model-tests"]):
        (found,) = of_serve(mac.findings(*command))
        assert f"`tailscale {verb}`" in found.detail
        assert kind in found.detail
        hints.add(found.hint)
    (hint,) = hints
    mac.machine.must("sh", "-c", hint)
    assert not json.loads(mac.machine.tailscale("serve", "status", "--json")).get("TCP")
    assert not of_serve(mac.findings("--check"))


SPELLINGS = (
    ["--bg", "--https=443", "11434"],
    ["--bg", "--https=8443", "https+insecure://localhost:11434/api"],
    ["--bg", "--http=80", "http://0.0.0.0:11434"],
    ["--bg", "--http=8080", "--set-path=/a b", "http://127.1:11434"],
    ["--bg", "--tcp=5000", "localhost:11434"],
    ["--bg", "--tcp=5001", "--proxy-protocol=1", "tcp://127.0.0.1:11434"],
    ["--service=svc:ai", "--https=443", "11434"],
    ["--service=svc:ai", "--tcp=5000", "11434"],
)


def test_spellings_of_a_rule(tailnet: Tailnet) -> None:
    """However the CLI lets a rule be written, it is reported while it leads to Ollama, and its hint removes just it."""
    mac = Served(tailnet.join("mac", "--advertise-tags=tag:server"))  # only a tagged machine may have services
    mac.serve()
    for rule in SPELLINGS:
        mac.machine.tailscale("serve", *rule)
    for left in range(len(SPELLINGS), 0, -1):
        found = of_serve(mac.findings("status"))
        assert len(found) == left
        mac.machine.must("sh", "-c", found[0].hint)
    assert not of_serve(mac.findings("status"))


def test_rule_in_a_terminal(mac: Served) -> None:
    """A rule that lives as long as its command in a terminal is reported too, with the hint to end that."""
    command = mac.machine.start("tailscale", "serve", "--http=80", HTTP, said="serve")
    until(lambda: "Press Ctrl+C" in command.text())
    mac.serve()
    for each in (["--check"], ["status"]):
        (found,) = of_serve(mac.findings(*each))
        assert "http port 80" in found.detail
        assert "Ctrl-C" in found.hint
    command.signal(2)
    until(lambda: command.ended)
    assert not of_serve(mac.findings("--check"))


def test_rule_on_the_own_port(mac: Served, laptop: Machine) -> None:
    """A rule on the proxy's own port that leads elsewhere takes its clients away, and is an error everywhere."""
    mac.serve()
    mac.machine.tailscale("serve", "--bg", f"--tcp={PORT}", "tcp://127.0.0.1:9999")
    assert asks(laptop, mac.machine.ipv4) != 200
    for command in (["--check"], ["status"], ["verify", "--skip-model-tests"]):
        found = of_serve(mac.findings(*command))
        assert found, command
        assert str(PORT) in found[0].detail
    mac.machine.must("sh", "-c", found[0].hint)
    assert asks(laptop, mac.machine.ipv4) == 200


def test_rule_in_front_of_the_proxy(mac: Served, laptop: Machine) -> None:
    """A rule that leads to the proxy's own address is no way past it: it works, and nothing is reported."""
    mac.machine.tailscale("serve", "--bg", "--http=80", f"http://{mac.machine.ipv4}:{PORT}")
    mac.serve()
    assert asks(laptop, mac.machine.ipv4, port=80, Host="mac") == 200
    assert mac.line(status=200)["peer"] == mac.machine.ipv4
    for command in (["--check"], ["status"], ["verify", "--skip-model-tests"]):
        assert not of_serve(mac.findings(*command)), command
    assert not mac.said("tailscale_serve_bypass")


def test_userspace_networking(tailnet: Tailnet) -> None:
    """In userspace mode everything on loopback is open to the tailnet: the proxy listens nowhere, and all say so."""
    mac = Served(tailnet.join("mac", tun="userspace-networking"))
    laptop = tailnet.join("laptop")
    mac.start()
    until(lambda: mac.said("tailscale_unusable"))
    assert mac.machine.listens() == {OLLAMA}
    with laptop.request("DELETE", mac.machine.ipv4, "/api/delete", {"model": "plain"}, Host="localhost") as answer:
        assert answer.status == 200  # which is the hole
    for command in (["--check"], ["status"], ["verify", "--skip-model-tests"]):
        assert [each for each in mac.findings(*command) if each.outcome == "fail" and "userspace" in each.detail], (
            command
        )
