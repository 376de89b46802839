"""Network: who can reach what, and that nobody gets past the proxy, as `verify` checks it from the Mac itself."""

from __future__ import annotations

import http.client
from dataclasses import replace
from typing import TYPE_CHECKING

from proxy import PROGRAM
from proxy.manage.findings import firewall as findings_firewall
from proxy.manage.findings import proof
from proxy.manage.findings import tailscale as findings_tailscale
from proxy.manage.findings.ports import NO_LSOF, who_listens
from proxy.manage.findings.running import looks_like
from proxy.settings.addresses import TAILSCALE, joined, parse
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from proxy.manage.findings.running import Running

REACH_TIME = 2.0
"""Seconds for a connection to an address of this machine itself: it is taken or refused at once, or dropped."""


def ollama_binding(running: Running) -> Iterator[Finding]:
    """Report whether lsof shows Ollama on loopback only."""
    name = "Ollama's address"
    if not running.local_upstream:
        yield Finding(name, Outcome.SKIP, f"Ollama is on another machine, at {running.settings.upstream}")
        return
    if running.listening is None:
        yield Finding(name, Outcome.SKIP, NO_LSOF)
        return
    there = running.of("ollama")
    for each in there:
        if not each.on_loopback:
            detail = f"{each.who} listens on {each.where}: whoever reaches that gets past the proxy"
            hint = f"{PROGRAM} install"
            if not running.installed("ollama") and running.machine.is_mac:
                hint = "launchctl unsetenv OLLAMA_HOST; in Ollama.app: Settings, Expose Ollama to the network: off"
            yield Finding(name, Outcome.FAIL, detail, hint)
    if not there:
        yield Finding(name, Outcome.SKIP, "no process of yours listens there")
    elif all(each.on_loopback for each in there):
        yield Finding(name, Outcome.PASS, f"loopback only: {', '.join(each.where for each in there)}")


def localhost(running: Running) -> Iterator[Finding]:
    """Report whether Ollama answers on loopback, where the proxy and this user's own tools ask it."""
    url = running.settings.upstream
    if running.ollama_version is None:
        detail, hint = f"nothing answers as Ollama does at {url}", running.start("ollama", "restart")
        job = running.jobs.get("ollama")
        for each in running.of("ollama"):
            if (job is None or each.pid != job.pid) and not looks_like("ollama", each):
                detail += f": {each.where} is held by {each.who}"
                hint = who_listens(each.port)
        yield Finding("localhost", Outcome.FAIL, detail, hint)
    else:
        yield Finding("localhost", Outcome.PASS, f"{url} answers")


def tailscale(running: Running) -> Iterator[Finding]:
    """Check that Tailscale gives this machine an address, lets devices in, and leads none of them past the proxy."""
    name = "Tailscale address"
    if TAILSCALE in running.settings.listen:
        yield replace(findings_tailscale.address(running.tailnet), name=name)
        for each in findings_tailscale.absence(running.facts):
            yield replace(each, name=name)
        yield from findings_tailscale.amiss(running.facts.concerns)
    else:
        detail = f"the proxy listens on {', '.join(running.settings.listen)}, and isn't told to on Tailscale's address"
        yield Finding(name, Outcome.SKIP, detail)
        for each in findings_tailscale.userspace(running.tailnet):
            yield replace(each, name=name)
    yield from findings_tailscale.serve_port(running.facts, running.settings)
    faults = [*findings_tailscale.serve(running.facts.serving)]
    yield from faults
    if not faults:
        yield Finding("tailscale serve", Outcome.PASS, "no rule leads past the proxy, or takes its port")


def proxy_reachable(running: Running) -> Iterator[Finding]:
    """Report whether the proxy serves and blocks at each address that it should listen on."""

    def suspect(error: BaseException) -> Finding | None:
        return proof.suspect_firewall(running.machine, error) if running.ollama_version is not None else None

    for address in running.reachable:
        cause = None if parse(address).is_loopback else suspect
        for finding in proof.served(address, running.settings.port, running.ask, cause):
            yield replace(finding, hint=running.log) if finding.hint.startswith("tail") else finding


def ollama_unreachable(running: Running) -> Iterator[Finding]:
    """Report whether Ollama's port is shut at every address of this machine beyond loopback, but for the proxy's."""
    name, port = "Ollama directly", running.upstream[1]
    if not running.local_upstream:
        yield Finding(name, Outcome.SKIP, f"Ollama is on another machine, at {running.settings.upstream}")
        return
    shut = []
    addresses = _addresses(running)
    for address in addresses:
        by_proxy = _taken(running, address, port)
        if by_proxy is None or (by_proxy and port == running.settings.port):
            shut.append(address)
        else:
            detail = f"{joined(address, port)} takes connections past the proxy"
            yield Finding(name, Outcome.FAIL, detail, who_listens(port))
    if not addresses:
        yield Finding(name, Outcome.SKIP, "this machine has no address beyond loopback that could be seen")
    elif len(shut) == len(addresses):
        yield Finding(name, Outcome.PASS, f"out of reach at {', '.join(shut)}, port {port}")


def _addresses(running: Running) -> tuple[str, ...]:
    """Return this machine's addresses beyond loopback, without IPv6 link-local ones, which need an interface."""
    held = [each.ip for interface in running.facts.interfaces for each in interface.addresses]
    own = [str(ip) for ip in held if not ip.is_loopback and not (ip.version == 6 and ip.is_link_local)]
    return tuple(dict.fromkeys([*own, *(running.facts.held if TAILSCALE in running.settings.listen else ())]))


def _taken(running: Running, address: str, port: int) -> bool | None:
    """Return whether the proxy answers there; None if nobody accepts the connection."""
    try:
        return bool(running.ask(address, port, "GET", "/api/version", timeout=REACH_TIME).id)
    except http.client.HTTPException:
        return False
    except OSError:
        return None


def firewall(running: Running) -> Iterator[Finding]:
    """Return whether the firewall of macOS lets the proxy be reached.

    What was asked at the Tailscale address has passed it too: macOS sends that through the tunnel.
    """
    machine = running.machine
    if not machine.is_mac:
        yield Finding("firewall", Outcome.SKIP, f"the application firewall is macOS', and this is {machine.system}")
        return
    program = running.program("proxy")
    if program is None:
        detail = "the proxy isn't installed: which Python the firewall must let through isn't known"
        yield Finding("firewall", Outcome.SKIP, detail)
        return
    yield findings_firewall.of_program(machine, program)


def opened(running: Running) -> Iterator[Finding]:
    """Report which of the two settings that open the proxy wider than it is meant to be are on."""
    settings = running.settings
    for option, on, then in (
        ("allow_any_address", settings.allow_any_address, f"{', '.join(settings.listen)} serves whoever reaches it"),
        ("allow_any_upstream", settings.allow_any_upstream, f"what clients send goes to {settings.upstream}"),
    ):
        if on and running.loaded is not None:
            detail = f"is on ({running.loaded.sources[option]}): {then}"
            yield Finding(option, Outcome.WARN, detail, f"{PROGRAM} --no-{option.replace('_', '-')} --check")


CHECKS: tuple[Callable[[Running], Iterator[Finding]], ...] = (
    ollama_binding,
    localhost,
    tailscale,
    proxy_reachable,
    ollama_unreachable,
    firewall,
    opened,
)
