"""Ways past the proxy that Tailscale itself opens: serve, funnel and userspace networking."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.tailnet.served import PORT, Served

if TYPE_CHECKING:
    from tests.tailnet.machines import Machine
    from tests.tailnet.served import Finding

HTTP = "http://127.0.0.1:11434"
TCP = "tcp://127.0.0.1:11434"


def of_serve(found: list[Finding]) -> list[Finding]:
    """Return what was found wrong with rules of serve."""
    return [each for each in found if each.outcome == "fail" and "tailscale" in f"{each.name} {each.detail}"]


def test_rule_in_front_of_the_proxy(mac: Served, laptop: Machine) -> None:
    """A rule that leads to the proxy is no way past it: nothing is reported."""
    mac.serve()
    mac.machine.tailscale("serve", "--bg", "--http=80", f"http://{mac.machine.ipv4}:{PORT}")
    for command in (["--check"], ["status"], ["verify", "--skip-model-tests"]):
        assert not of_serve(mac.findings(*command)), command
    assert not mac.said("tailscale_serve_bypass")
