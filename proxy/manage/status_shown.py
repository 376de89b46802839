"""How `status` looks on a terminal: the two services as tables, then what was found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxy import PROGRAM
from proxy.manage.status import status
from proxy.terminal.result import Exit, Result

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

    from proxy.manage.machine.machine import Machine
    from proxy.manage.status import Service, Status
    from proxy.terminal.printer import Printer


def run(flags: Mapping[str, str], args: argparse.Namespace, machine: Machine, out: Printer) -> Result:  # noqa: ARG001
    """Look at both services, and print how they are."""
    found = status(machine, flags)
    print_status(found, out)
    return Result(Exit.of(found.findings), found)


def print_status(found: Status, out: Printer) -> None:
    """Print the two services as tables, the findings, and the commands that show more."""
    out.tables((service.name, list(_facts(service))) for service in (found.proxy, found.ollama))
    out.findings(found.findings)
    if found.well:
        out.say(f"  hint: {PROGRAM} verify (proves what it promises)")
    if found.proxy.refusals:
        out.say(f"  hint: {PROGRAM} logs --refused (all of them)")


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
    if service.refusals is not None:
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
