"""`status`: how the two services are, by what launchd, the ports, Ollama and the logs show, and what is wrong.

It changes nothing, and works wherever Python does: a value that can't be seen there is None, and a finding says so. It
asks the proxy over its Unix socket only, so it leaves no line in its access log.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy import PROGRAM
from proxy.manage.facts.facts import Facts
from proxy.manage.facts.log_end import last_records
from proxy.manage.findings.table import When, findings
from proxy.manage.machine import at_work
from proxy.manage.machine.services import LABELS
from proxy.terminal.finding import Finding, Outcome
from proxy.terminal.result import Exit, Result

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

    from proxy.manage.machine.machine import Machine
    from proxy.tailnet.tailscale import Tailscale
    from proxy.terminal.printer import Printer

REFUSALS = 5
"""How many of the last refusals are shown."""


@dataclass(frozen=True, slots=True)
class Service:
    """One service. None is what can't be seen, or what there is nothing to see of."""

    name: str
    label: str
    installed: bool
    loaded: bool | None
    running: bool | None
    disabled: bool | None
    pid: int | None
    since: str | None  # local time, ISO 8601
    last_exit: int | None
    program: str | None
    addresses: tuple[str, ...] | None
    version: str | None
    models: tuple[Mapping[str, Any], ...] | None = None  # Ollama's that are loaded: name, size in bytes, expires_at
    refusals: tuple[Mapping[str, Any], ...] | None = None  # the proxy's last ones, as the access log has them


@dataclass(frozen=True, slots=True)
class Status:
    """Both services, what was found, and what the proxy is doing now; `well` is whether no finding failed."""

    well: bool
    proxy: Service
    ollama: Service
    findings: tuple[Finding, ...]
    live: at_work.State | None = None  # what `top --json` prints; None if no proxy runs, or it doesn't say


def run(flags: Mapping[str, str], args: argparse.Namespace, machine: Machine, out: Printer) -> Result:  # noqa: ARG001
    """Look at both services, and print how they are."""
    found = status(machine, flags)
    print_status(found, out)
    return Result(Exit.of(found.findings), found)


def status(machine: Machine, flags: Mapping[str, str], tailscale: Tailscale | None = None) -> Status:
    """Return how the services are. Takes some seconds at most."""
    facts = Facts.of_services(machine, flags, tailscale=tailscale)
    found: list[Finding] = []
    for each in findings(facts, When.STATUS):
        # What keeps Tailscale down is reported with the proxy that it keeps from listening.
        if not any(other.outcome is Outcome.FAIL and other.detail.endswith(f": {each.detail}") for other in found):
            found.append(each)
    proxy = _service(facts, "proxy", facts.version, refusals=_refusals(facts.settings.access_log))
    ollama = _service(facts, "ollama", facts.ollama_version, models=_models(facts))
    return Status(Exit.of(found) is Exit.WELL, proxy, ollama, tuple(found), dict(facts.live) or None)


def _service(facts: Facts, name: str, version: str | None, **more: Any) -> Service:
    job = facts.jobs.get(name) if facts.installed(name) else None
    pid, seen = facts.pid(name), facts.listening is not None
    running = job.running if job else pid is not None if seen else None
    if job is None and name == "ollama":
        running = version is not None
    elif job is None and pid is None and facts.waits:
        running = None  # one in a terminal that waits for Tailscale can't be seen
    since = facts.since(pid)
    return Service(
        name,
        LABELS[name],
        installed=facts.plists[name] is not None,
        loaded=job.loaded if job else None,
        running=running,
        disabled=job.disabled if job else None,
        pid=pid,
        since=since.isoformat() if since else None,
        last_exit=job.last_exit if job else None,
        program=facts.program(name) or (job.program if job else None),
        addresses=tuple(each.where for each in facts.of(name) if each.pid == pid) if seen else None,
        version=version,
        **more,
    )


def _models(facts: Facts) -> tuple[Mapping[str, Any], ...] | None:
    """Return the models that Ollama has loaded, of its answer to /api/ps."""
    response = facts.of_ollama("/api/ps") if facts.ollama_version else None
    models = response.get("models") if isinstance(response, dict) else None
    if not isinstance(models, list):
        return None
    keys = ("name", "size", "expires_at")
    return tuple({key: each.get(key) for key in keys} for each in models if isinstance(each, dict))


def _refusals(log: str) -> tuple[Mapping[str, Any], ...] | None:
    """Return the last refusals, the newest first; None where there is no log to read."""
    if log == "-" or not Path(log).exists():
        return None
    found = [line for path in (log, f"{log}.1") for line in last_records(path) if line.get("verdict") == "refused"]
    return tuple(found[:REFUSALS])


# --- on a terminal ----------------------------------------------------------------------------------------------------


def print_status(found: Status, out: Printer) -> None:
    """Print the two services as tables, the findings, and the commands that show more."""
    proxy = [*_facts(found.proxy), *at_work.shown(found.live or {})]
    out.tables([(found.proxy.name, proxy), (found.ollama.name, list(_facts(found.ollama)))])
    out.findings(found.findings)
    if found.well:
        out.say(f"  hint: {PROGRAM} verify (proves what it promises)")
    if found.proxy.refusals:
        out.say(f"  hint: {PROGRAM} logs --refused (all of them)")
    if found.live and found.live["exchanges"]:
        out.say(f"  hint: {PROGRAM} top (each request, and why it waits)")
    if found.proxy.refusals is not None:
        out.say(f"  hint: {PROGRAM} dashboard (all of this and the access log, on a page)")


def _facts(service: Service) -> Iterator[tuple[str, str]]:
    """Yield what is known about a service: the name of a fact, and its value."""
    yes = {True: "yes", False: "no", None: "unknown"}
    yield "installed", f"yes, as {service.label}" if service.installed else "no"
    if service.loaded is not None:
        yield "loaded", yes[service.loaded] + (", and disabled" if service.disabled else "")
    pid = f" (pid {service.pid}{f', since {service.since}' if service.since else ''})" if service.pid else ""
    yield "running", yes[service.running] + pid
    if service.last_exit is not None:
        yield "last exit", str(service.last_exit)
    if service.addresses:
        yield "listens on", ", ".join(service.addresses)
    if service.version:
        yield "version", service.version
    if service.models is not None:
        yield "models", "; ".join(map(_model, service.models)) or "none loaded"
    if service.refusals is None and service.name == "proxy":
        yield "refused", "unknown: there is no access log to read"
    elif service.refusals is not None:
        yield "refused", "nothing recently" if not service.refusals else f"the last {len(service.refusals)}:"
        for line in service.refusals:
            yield "", _refusal(line)


def _model(model: Any) -> str:
    size = f", {model['size'] / 1e9:.1f} GB" if isinstance(model["size"], int | float) else ""
    until = f", until {model['expires_at']}" if isinstance(model["expires_at"], str) else ""
    return f"{model['name']}{size}{until}"


def _refusal(line: Any) -> str:
    values = (line.get(key) for key in ("time", "device", "peer", "method", "path", "reason"))
    return "  ".join(str(each) for each in values if each is not None)
