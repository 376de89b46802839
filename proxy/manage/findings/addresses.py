"""Check the proxy's addresses: whether each can be bound, is free, and is the one that the proxy listens on."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from proxy import PROGRAM
from proxy.manage.facts.listeners import NO_LSOF, in_use, who_listens
from proxy.manage.facts.mac import HAPROXY
from proxy.settings.addresses import TAILSCALE, is_loop, joined
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.manage.facts.facts import Facts
    from proxy.manage.facts.listeners import Listener

_ANY = ("0.0.0.0", "::", "*")
_ANOTHER_PORT = "; or another port in config.toml"


def hidden(facts: Facts, name: str, address: str, port: int, outcome: Outcome = Outcome.FAIL) -> Finding | None:
    """Return the finding of an address that is in use while lsof shows nobody there: another user's process has it.

    None where it is free, lsof shows who it is, or there is no lsof.
    """
    address = "127.0.0.1" if address == "localhost" else address
    if facts.listening is None or facts.holder(address, port) or not in_use(facts.machine, address, port):
        return None
    detail = (
        f"{joined(address, port)} is in use, but by no process of yours: by another user's or root's, which lsof shows "
        "to root only"
    )
    return Finding(name, outcome, detail, who_listens(port))


# --- before serving ---------------------------------------------------------------------------------------------------


def bindable(facts: Facts) -> Iterator[Finding]:
    """Bind each address for a moment; one that is taken may well be taken by the proxy that runs already."""
    settings = facts.settings
    for entry in settings.listen:
        for address in facts.tailscale.held if entry == TAILSCALE else (entry,):
            if entry == TAILSCALE and is_loop(settings.upstream, (address,), settings.port):
                detail = "upstream is an address on which the proxy itself would listen"
                hint = f"{PROGRAM} --check --upstream http://127.0.0.1:11434"
                yield Finding("address", Outcome.FAIL, detail, hint)
            else:
                yield _bindable(facts, address, settings.port)
    if settings.serve_port:
        yield _bindable(facts, "127.0.0.1", settings.serve_port)


def _bindable(facts: Facts, address: str, port: int) -> Finding:
    """Report whether an address can be bound; if not, why, in passing or for good."""
    shown, error = joined(address, port), facts.machine.bind(address, port)
    if error is None:
        return Finding("address", Outcome.PASS, f"{shown} would be bound")
    if error.errno == errno.EADDRINUSE:
        if (foreign := hidden(facts, "address", address, port)) is not None:
            return foreign
        detail = f"{shown} is in use, by a running proxy or another program"
        if (holder := facts.holder(address, port)) is not None:
            detail = f"{shown} is in use by {holder.who}: a running proxy, or another program"
        return Finding("address", Outcome.WARN, detail, who_listens(port))
    if error.errno == errno.EADDRNOTAVAIL:
        return Finding("address", Outcome.WARN, f"{shown} is currently not an address of this machine", "ifconfig -a")
    if error.errno == errno.EACCES:
        detail = f"{shown} can't be bound by this user"
        return Finding("address", Outcome.FAIL, detail, f"{PROGRAM} --check --port 11434")
    return Finding("address", Outcome.FAIL, f"{shown} can't be bound: {error.strerror}", f"{PROGRAM} --help")


# --- before an install ------------------------------------------------------------------------------------------------


def free(facts: Facts) -> Iterator[Finding]:
    """Report whether the port is free on the addresses that the proxy listens on, or will be."""
    found = tuple(_taken(facts))
    yield from found
    if not found:
        where = ", ".join(facts.expected) or "it"
        yield Finding("port", Outcome.PASS, f"{facts.settings.port} is free, or will be, on {where}")


def _taken(facts: Facts) -> Iterator[Finding]:
    port, job = facts.settings.port, facts.jobs.get("proxy")
    ours = {job and job.pid, None if facts.options.keep_haproxy else facts.other_job(HAPROXY).pid}
    for each in facts.listening or ():
        if each.port == port and not each.is_ollama and each.pid not in ours:
            wild = each.address == "*"
            if each.address in facts.expected or (
                wild and any(in_use(facts.machine, at, port) for at in facts.expected)
            ):
                yield taken(each)
            elif wild:
                detail = f"{each.where} is held by {each.who}, which would answer whenever the proxy is down"
                yield Finding("port", Outcome.WARN, detail, _end(each))
    for address in facts.expected:
        if (foreign := hidden(facts, "port", address, port)) is not None:
            yield Finding("port", Outcome.FAIL, foreign.detail, foreign.hint + _ANOTHER_PORT)


def taken(listener: Listener) -> Finding:
    """Return the finding of a port that another program has."""
    detail = f"{listener.where} is taken by process {listener.pid}, {listener.program or 'of another user'}"
    return Finding("port", Outcome.FAIL, detail, _end(listener) + _ANOTHER_PORT)


def _end(listener: Listener) -> str:
    return "brew services stop haproxy" if "haproxy" in listener.program else f"kill {listener.pid}"


# --- while it runs ----------------------------------------------------------------------------------------------------


def binding(facts: Facts) -> Iterator[Finding]:
    """Report whether a proxy that runs listens on each address that its settings name, and on no other."""
    name, port, pid, expected = "binding", facts.settings.port, facts.pid("proxy"), facts.expected
    if facts.listening is None or pid is None:
        yield Finding(name, Outcome.SKIP, NO_LSOF if facts.listening is None else "no proxy runs")
        return
    bound = [each.address for each in facts.listening if each.pid == pid and each.port == port]
    wild = [each for each in bound if each in _ANY]
    missing = [each for each in expected if each not in bound and not (each in _ANY and wild)]
    more = [each for each in bound if each not in expected and each not in wild]
    if wild and not set(_ANY) & set(expected):
        detail = f"it listens on every address of this machine, and its settings say {', '.join(expected) or 'none'}"
        yield Finding(name, Outcome.FAIL, detail, facts.start("proxy", "restart"))
    elif not expected:
        still = (
            f"it still listens on {', '.join(bound)}, where no device can reach it" if bound else "it listens nowhere"
        )
        tailnet = facts.tailscale.tailnet
        why = tailnet.problem or "its settings name no address"
        yield Finding(name, Outcome.FAIL, f"{still}: {why}", tailnet.hint or facts.log)
    elif missing:
        detail = f"it doesn't listen on {', '.join(missing)}, port {port}"
        yield Finding(name, Outcome.FAIL, detail, facts.log)
    elif more:
        detail = f"it listens on {', '.join(more)} too, which its settings don't name"
        yield Finding(name, Outcome.FAIL, detail, facts.start("proxy", "restart"))
    else:
        yield Finding(name, Outcome.PASS, f"exactly as its settings say: {', '.join(expected)}, port {port}")
