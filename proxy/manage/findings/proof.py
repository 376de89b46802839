"""Check a running proxy with one allowed and one blocked request, at each address that it listens on.

Harmless: nothing here loads a model, and the blocked request would change nothing even if it got through.
"""

from __future__ import annotations

import http.client
from typing import TYPE_CHECKING

from proxy import PROGRAM
from proxy.manage.facts.listeners import who_listens
from proxy.manage.facts.ruled import REFUSED, may_refuse, must_refuse, says_so
from proxy.manage.findings import firewall
from proxy.settings.addresses import TAILSCALE, joined, parse
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.manage.facts.facts import Facts

REACH_TIME = 2.0
"""Seconds for a connection to an address of this machine itself: it is taken or refused at once, or dropped."""


def reachable(facts: Facts) -> Iterator[Finding]:
    """Report whether the proxy serves and blocks at each address that it should listen on."""
    for address in facts.reachable:
        yield from _served(facts, address)


def _served(facts: Facts, address: str) -> Iterator[Finding]:
    """Yield whether an address answers an allowed request, and blocks a blocked one."""
    port = facts.settings.port
    where = joined(address, port)
    for name, request, wanted in (
        ("an allowed request", ("GET", "/api/version"), 200),
        ("a blocked request", ("POST", "/api/pull"), 403),
    ):
        shown = f"{' '.join(request)} at {where}"
        try:
            answer = facts.ask(address, port, *request)
        except (OSError, http.client.HTTPException) as error:
            detail = f"{shown}: no answer: {error or type(error).__name__}"
            hint = facts.log
            if not parse(address).is_loopback and (cause := _suspect(facts, error)) is not None:
                detail, hint = f"{detail}; {cause.detail}", cause.hint
            yield Finding(name, Outcome.FAIL, detail, hint)
            continue
        if says_so(answer.status, answer.content) and may_refuse(facts.settings, address):
            yield Finding(name, Outcome.PASS, f"{shown}: {answer.status}, because {REFUSED}")
        elif answer.status == wanted and (wanted != 403 or b"allowlist" in answer.content):
            yield _expected(name, f"{shown}: {answer.status}", refused=must_refuse(facts.settings, address))
        else:
            text = answer.content[:200].decode(errors="replace").strip()
            detail = f"{shown}: {answer.status} instead of {wanted}: {text}"
            yield Finding(name, Outcome.FAIL, detail, f"curl -i http://{where}/")


def _expected(name: str, detail: str, *, refused: bool) -> Finding:
    """Return that an answer is as it should be, unless the access rules should have `refused` this machine."""
    if refused:
        return Finding(name, Outcome.FAIL, f"{detail}, though {REFUSED}", f"{PROGRAM} restart proxy")
    return Finding(name, Outcome.PASS, detail)


def _suspect(facts: Facts, error: BaseException) -> Finding | None:
    """Return the firewall as the cause of a failed connection to the proxy; None where it can't be."""
    if not facts.machine.is_mac or firewall.symptom(error) is None or facts.python is None:
        return None
    return firewall.suspect(facts.firewall, facts.python, error) if facts.ollama_version is not None else None


def ollama_directly(facts: Facts) -> Iterator[Finding]:
    """Report whether Ollama's port is closed at every address of this machine beyond loopback, except the proxy's."""
    name, port = "Ollama directly", facts.upstream[1]
    if not facts.local_upstream:
        yield Finding(name, Outcome.SKIP, f"Ollama is on another machine, at {facts.settings.upstream}")
        return
    shut = []
    addresses = _addresses(facts)
    for address in addresses:
        by_proxy = _taken(facts, address, port)
        if by_proxy is None or (by_proxy and port == facts.settings.port):
            shut.append(address)
        else:
            detail = f"{joined(address, port)} accepts connections past the proxy"
            yield Finding(name, Outcome.FAIL, detail, who_listens(port))
    if not addresses:
        yield Finding(name, Outcome.SKIP, "no address of this machine beyond loopback was found")
    elif len(shut) == len(addresses):
        yield Finding(name, Outcome.PASS, f"can't be reached at {', '.join(shut)}, port {port}")


def _addresses(facts: Facts) -> tuple[str, ...]:
    """Return this machine's addresses beyond loopback, without link-local IPv6 ones, which also need an interface."""
    held = [each.ip for interface in facts.tailscale.interfaces for each in interface.addresses]
    own = [str(ip) for ip in held if not ip.is_loopback and not (ip.version == 6 and ip.is_link_local)]
    return tuple(dict.fromkeys([*own, *(facts.tailscale.held if TAILSCALE in facts.settings.listen else ())]))


def _taken(facts: Facts, address: str, port: int) -> bool | None:
    """Return whether the proxy answers there; None if no process accepts the connection."""
    try:
        return bool(facts.ask(address, port, "GET", "/api/version", timeout=REACH_TIME).id)
    except http.client.HTTPException:
        return False
    except OSError:
        return None
