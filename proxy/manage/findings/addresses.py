"""Check the proxy's addresses: whether each can be bound, is free, and is the one that the proxy listens on."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import TYPE_CHECKING

from proxy import PROGRAM
from proxy.manage.facts.listeners import NO_LSOF, in_use, listeners, who_listens
from proxy.manage.facts.mac import HAPROXY
from proxy.settings.addresses import TAILSCALE, is_loop, joined
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from proxy.manage.facts.facts import Facts
    from proxy.manage.facts.listeners import Listener
    from proxy.manage.machine.machine import Machine

_ANY = ("0.0.0.0", "::", "*")


def unseen(
    name: str, address: str, port: int, seen: Iterable[Listener] | None, outcome: Outcome = Outcome.FAIL
) -> Finding | None:
    """Return the finding of an address that is in use while lsof shows nobody there: another user's process has it.

    None where lsof shows who it is, or there is no lsof (`seen` is None).
    """
    if seen is None or any(each.port == port and each.address in {address, "*"} for each in seen):
        return None
    detail = (
        f"{joined(address, port)} is in use, but by no process of yours: by another user's or root's, which lsof shows "
        "to root only"
    )
    return Finding(name, outcome, detail, who_listens(port))


def stranger(facts: Facts, name: str) -> Finding | None:
    """Return the finding of a service's port that another user's process has; None where that isn't so."""
    if name == "proxy":
        port = facts.settings.port
        taken = (each for each in facts.expected if in_use(facts.machine, each, port))
        found = (unseen(name, each, port, facts.listening) for each in taken)
        return next((each for each in found if each is not None), None)
    if facts.ollama_version is None or not facts.local_upstream:
        return None
    outcome = Outcome.FAIL if facts.installed(name) else Outcome.WARN
    return unseen(name, *facts.upstream, facts.of(name) if facts.listening is not None else None, outcome)


# --- before serving ---------------------------------------------------------------------------------------------------


def bindable(facts: Facts) -> Iterator[Finding]:
    """Bind each address for a moment; one that is taken may well be taken by the proxy that runs already."""
    settings, machine = facts.settings, facts.machine
    for entry in settings.listen:
        for address in facts.tailscale.held if entry == TAILSCALE else (entry,):
            if entry == TAILSCALE and is_loop(settings.upstream, (address,), settings.port):
                detail = "upstream is where the proxy itself would listen"
                hint = f"{PROGRAM} --check --upstream http://127.0.0.1:11434"
                yield Finding("address", Outcome.FAIL, detail, hint)
            else:
                yield _bindable(machine, address, settings.port)
    if settings.serve_port:
        yield _bindable(machine, "127.0.0.1", settings.serve_port)


def _bindable(machine: Machine, address: str, port: int) -> Finding:
    """Bind an address for a moment; if it is in use, find out who has it."""
    error = machine.bind(address, port)
    if error is None:
        return Finding("address", Outcome.PASS, f"{joined(address, port)} would be bound")
    seen = listeners(machine, [port]) if error.errno == errno.EADDRINUSE else None
    return unbound(address, port, error, seen)


def unbound(address: str, port: int, error: OSError, seen: Sequence[Listener] | None = None) -> Finding:
    """Report why an address could not be bound: in passing, or for good; `seen` is who listens on the port."""
    shown = joined(address, port)
    if error.errno == errno.EADDRINUSE:
        if (hidden := unseen("address", address, port, seen)) is not None:
            return hidden
        detail = f"{shown} is in use, by a proxy that runs already or by another program"
        holder = next((each for each in seen or () if each.port == port and each.address in {address, "*"}), None)
        if holder is not None:
            detail = f"{shown} is in use by {holder.who}: a proxy that runs already, or another program"
        return Finding("address", Outcome.WARN, detail, who_listens(port))
    if error.errno == errno.EADDRNOTAVAIL:
        return Finding("address", Outcome.WARN, f"{shown} is not an address of this machine now", "ifconfig -a")
    if error.errno == errno.EACCES:
        detail = f"{shown} may not be bound by this user"
        return Finding("address", Outcome.FAIL, detail, f"{PROGRAM} --check --port 11434")
    return Finding("address", Outcome.FAIL, f"{shown} can't be bound: {error.strerror}", f"{PROGRAM} --help")


# --- before an install ------------------------------------------------------------------------------------------------


def free(facts: Facts) -> Iterator[Finding]:
    """Report whether the port is free on the addresses that the proxy listens on, or will be."""
    wanted, is_free = facts.settings.port, True
    held = [address for address in facts.expected if in_use(facts.machine, address, wanted)]
    ours = {job.pid for name, job in facts.jobs.items() if name == "proxy"} - {None}
    if not facts.keeps_haproxy:
        ours.add(facts.other_job(HAPROXY).pid)
    for listener in facts.listening or ():
        if listener.port != wanted or listener.is_ollama or listener.pid in ours:
            continue
        if listener.address in facts.expected or (listener.address == "*" and held):
            is_free = False
            yield taken(listener)
        elif listener.address == "*":
            is_free = False
            detail = f"{listener.where} is held by {listener.who}, which would answer whenever the proxy is down"
            yield Finding("port", Outcome.WARN, detail, _end(listener))
    for address in held:
        if (hidden := unseen("port", address, wanted, facts.listening)) is not None:
            is_free = False
            yield replace(hidden, hint=f"{hidden.hint}; or another port in config.toml")
    if is_free:
        yield Finding("port", Outcome.PASS, f"{wanted} is free, or will be, on {', '.join(facts.expected) or 'it'}")


def taken(listener: Listener) -> Finding:
    """Return the finding of a port that another program has."""
    detail = f"{listener.where} is taken by process {listener.pid}, {listener.program or 'of another user'}"
    return Finding("port", Outcome.FAIL, detail, f"{_end(listener)}; or another port in config.toml")


def _end(listener: Listener) -> str:
    return "brew services stop haproxy" if "haproxy" in listener.program else f"kill {listener.pid}"


# --- while it runs ----------------------------------------------------------------------------------------------------


def binding(facts: Facts) -> Iterator[Finding]:
    """Report whether the proxy listens on each address that its settings name, and on no other."""
    name, port = "binding", facts.settings.port
    if facts.listening is None:
        yield Finding(name, Outcome.SKIP, NO_LSOF)
        return
    pid, expected = facts.pid("proxy"), facts.expected
    bound = [each.address for each in facts.listening if each.pid == pid and each.port == port]
    wild = [each for each in bound if each in _ANY]
    if wild and not set(_ANY) & set(expected):
        detail = f"it listens on every address of this machine, and its settings say {', '.join(expected) or 'none'}"
        yield Finding(name, Outcome.FAIL, detail, facts.start("proxy", "restart"))
        return
    missing = [each for each in expected if each not in bound and not (each in _ANY and wild)]
    more = [each for each in bound if each not in expected and each not in wild]
    if not expected:
        still = f"it still listens on {', '.join(bound)}, where no device reaches it" if bound else "it listens nowhere"
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
