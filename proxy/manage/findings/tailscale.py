"""What can be wrong with Tailscale: no address, rules that lead past the proxy, shields up, an expiring key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.manage.facts.tailscale import absent
from proxy.serving.serve_port import why_closed
from proxy.settings.addresses import TAILSCALE
from proxy.tailnet.concerns import Topic
from proxy.tailnet.serve_rules import Kind
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.manage.facts.facts import Facts

ADDRESS, SERVE, SERVE_PORT = "Tailscale address", "tailscale serve", "serve port"


def userspace(facts: Facts) -> Iterator[Finding]:
    """Find userspace networking, which leads past the proxy wherever that listens. Only the owner ends it."""
    if facts.asks_tailscale and facts.tailscale.tailnet.tun is False:
        tailnet = facts.tailscale.tailnet
        yield Finding(ADDRESS, Outcome.FAIL, tailnet.problem or "", tailnet.hint)


def address(facts: Facts) -> Iterator[Finding]:
    """Report whether Tailscale gives this machine an address."""
    if TAILSCALE not in facts.settings.listen:
        listen = ", ".join(facts.settings.listen)
        yield Finding(
            ADDRESS, Outcome.SKIP, f"the proxy listens on {listen}, and isn't set to listen on Tailscale's address"
        )
        return
    tailnet = facts.tailscale.tailnet
    if tailnet.problem is None:
        name = f" ({tailnet.name})" if tailnet.name else ""
        yield Finding(ADDRESS, Outcome.PASS, f"up: {', '.join(tailnet.addresses)}{name}")
    elif tailnet.tun is not False:
        yield Finding(ADDRESS, Outcome.FAIL, tailnet.problem, tailnet.hint)


def absence(facts: Facts) -> Iterator[Finding]:
    """Find addresses that Tailscale reports and this machine doesn't have. Nothing is lost, because IPv4 works."""
    if TAILSCALE in facts.settings.listen:
        for each in absent(facts.tailscale.tailnet, facts.tailscale.interfaces):
            detail = f"Tailscale reports {each}, which this machine doesn't have: IPv6 is off here. IPv4 is served"
            yield Finding(ADDRESS, Outcome.SKIP, detail)


def serve(facts: Facts) -> Iterator[Finding]:
    """Report whether rules of `tailscale serve` and `funnel` lead past the proxy, or use its port."""
    if not facts.asks_tailscale:
        return
    serving = facts.tailscale.serving
    if serving is None:
        yield Finding(SERVE, Outcome.SKIP, "its rules can't be read: Tailscale doesn't answer")
        return
    rules = [rule for rule in serving.rules if rule.kind is not Kind.BLIND]  # for these see serve_port
    for rule in rules:
        yield Finding(SERVE, Outcome.FAIL, rule.problem, rule.hint)
    if not rules:
        yield Finding(SERVE, Outcome.PASS, "no rule leads past the proxy, or takes its port")


def serve_port(facts: Facts) -> Iterator[Finding]:
    """Report whether requests through `tailscale serve` are served, if the settings name a port for that."""
    if not facts.settings.serve_port:
        return
    seen, where = facts.tailscale, f"127.0.0.1:{facts.settings.serve_port}"
    if (found := why_closed(seen.tailnet, seen.serving)) is not None:
        yield Finding(SERVE_PORT, Outcome.FAIL, found[0], seen.hint(found[1]))
    elif seen.serving is not None and seen.serving.urls:
        detail = f"`tailscale serve` leads from {', '.join(seen.serving.urls)} to {where}"
        yield Finding(SERVE_PORT, Outcome.PASS, detail)
    else:
        detail = f"no rule of `tailscale serve` leads to {where}, so it can't be used"
        yield Finding(SERVE_PORT, Outcome.WARN, detail, seen.hint(f"tailscale serve --bg http://{where}"))


def concerns(facts: Facts) -> Iterator[Finding]:
    """Find other problems: shields that are up, a key that expires soon, what Tailscale reports."""
    if TAILSCALE in facts.settings.listen:
        for each in facts.tailscale.concerns:
            outcome = Outcome.FAIL if each.topic is Topic.SHIELDS else Outcome.WARN
            yield Finding(each.topic.value, outcome, each.problem, each.hint)
