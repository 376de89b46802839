"""Findings about Tailscale: facts in, findings out. `--check`, install, `status` and `verify` all use these."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from proxy.serving.serve_port import why_closed
from proxy.tailnet.concerns import Topic, concerns
from proxy.tailnet.serve_rules import Kind, Ports
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from proxy.settings.settings import Settings
    from proxy.tailnet.concerns import Concern
    from proxy.tailnet.interfaces import Interface
    from proxy.tailnet.serve_rules import Serving
    from proxy.tailnet.tailscale import Tailnet, Tailscale


class Facts(NamedTuple):
    """What Tailscale and the interfaces show of this machine."""

    tailnet: Tailnet
    interfaces: tuple[Interface, ...]
    serving: Serving | None
    concerns: tuple[Concern, ...]
    hint: Callable[[str], str]  # makes a `tailscale` command one that works on this machine

    @property
    def held(self) -> tuple[str, ...]:
        """Tailscale's addresses that this machine has."""
        gone = absent(self.tailnet, self.interfaces)
        return tuple(each for each in self.tailnet.addresses if each not in gone)


async def look(tailscale: Tailscale, settings: Settings) -> Facts:
    """Return the facts. Takes some seconds if Tailscale doesn't answer."""
    tailnet = await tailscale.look()
    serving = await tailscale.serving(Ports.of(settings))
    return Facts(tailnet, await tailscale.interfaces(), serving, await concerns(tailscale, tailnet), tailscale.hint)


ADDRESS, SERVE, SERVE_PORT = "tailscale", "tailscale serve", "serve port"


def address(tailnet: Tailnet, waiting: Outcome = Outcome.FAIL) -> Finding:
    """Return whether Tailscale gives this machine an address; `waiting` is how bad it is that it gives none yet."""
    if tailnet.problem is not None:  # the proxy would wait for all but userspace networking, which only the owner ends
        outcome = Outcome.FAIL if tailnet.tun is False else waiting
        return Finding(ADDRESS, outcome, tailnet.problem, tailnet.hint)
    name = f" ({tailnet.name})" if tailnet.name else ""
    return Finding(ADDRESS, Outcome.PASS, f"up: {', '.join(tailnet.addresses)}{name}")


def userspace(tailnet: Tailnet) -> Iterator[Finding]:
    """Find userspace networking, which leads past the proxy wherever that listens."""
    if tailnet.tun is False:
        yield address(tailnet)


def absent(tailnet: Tailnet, interfaces: Iterable[Interface]) -> tuple[str, ...]:
    """Return those of Tailscale's IPv6 addresses that this machine doesn't have, as where IPv6 is switched off.

    Without any of its addresses on an interface the list isn't believed, or Tailscale is only coming up.
    """
    held = {str(each.ip) for interface in interfaces for each in interface.addresses}
    if held.isdisjoint(tailnet.addresses):
        return ()
    return tuple(each for each in tailnet.addresses if ":" in each and each not in held)


def absence(facts: Facts) -> Iterator[Finding]:
    """Find addresses that Tailscale reports and this machine doesn't have. Nothing is lost: IPv4 is there."""
    for each in absent(facts.tailnet, facts.interfaces):
        detail = f"Tailscale reports {each}, which this machine doesn't have: IPv6 is off here. IPv4 is served"
        yield Finding(ADDRESS, Outcome.SKIP, detail)


def serve(serving: Serving | None) -> Iterator[Finding]:
    """Find rules of `tailscale serve` and `funnel` that lead past the proxy, or take its port: none, if all is well."""
    if serving is None:
        yield Finding(SERVE, Outcome.SKIP, "its rules can't be read: Tailscale doesn't answer")
        return
    for rule in serving.rules:
        if rule.kind is Kind.BLIND:  # see serve_port
            continue
        yield Finding(SERVE, Outcome.FAIL, rule.problem, rule.hint)


def serve_port(facts: Facts, settings: Settings) -> Iterator[Finding]:
    """Find whether what comes by `tailscale serve` is served, where the settings name a port for that."""
    where = f"127.0.0.1:{settings.serve_port}"
    if not settings.serve_port:
        return
    if (found := why_closed(facts.tailnet, facts.serving)) is not None:
        yield Finding(SERVE_PORT, Outcome.FAIL, found[0], facts.hint(found[1]))
    elif facts.serving is not None and facts.serving.urls:
        yield Finding(
            SERVE_PORT, Outcome.PASS, f"`tailscale serve` leads from {', '.join(facts.serving.urls)} to {where}"
        )
    else:
        detail = f"no rule of `tailscale serve` leads to {where}, so that nobody comes by it"
        yield Finding(SERVE_PORT, Outcome.WARN, detail, facts.hint(f"tailscale serve --bg http://{where}"))


def amiss(concerns: Iterable[Concern], shut: Outcome = Outcome.FAIL) -> Iterator[Finding]:
    """Find what else is amiss: shields that are up, a key that expires soon, what Tailscale reports.

    `shut` is how bad it is that no device is let in.
    """
    for each in concerns:
        outcome = shut if each.topic is Topic.SHIELDS else Outcome.WARN
        yield Finding(each.topic.value, outcome, each.problem, each.hint)
