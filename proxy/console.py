"""How results look on a terminal: lines, tables, findings, the two services.

Colours on a terminal only, and none if NO_COLOR is set. rich is loaded by the first line, not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxy import PROGRAM
from proxy.kinds import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from proxy.ops.finding import Finding
    from proxy.ops.status import Service, Status

STYLES = {"pass": "green", "warn": "yellow", "fail": "red", "skip": "dim"}
"""Outcome of a finding -> how it is shown."""


def console(*, stderr: bool = False) -> Callable[..., None]:
    """Return what prints a line in a style, never wrapped, with all that could steer a terminal escaped."""
    from rich.console import Console  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    out = Console(stderr=stderr)

    def say(line: str, style: str = "") -> None:
        out.print(Text(printable(line), style), soft_wrap=True)

    return say


def painter() -> Callable[[str, str], str]:
    """Return what puts a text in a style for standard output: for lines by the thousand, which `console` is slow at."""
    from rich.color import ColorSystem  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415
    from rich.style import Style  # noqa: PLC0415

    out = Console()
    if not out.is_terminal or out.no_color or out.color_system is None:
        return lambda text, _: text
    return lambda text, style: Style.parse(style).render(text, color_system=ColorSystem.STANDARD) if style else text


def complain(errors: Iterable[str], hint: str) -> None:
    """Print errors, and a command that helps if there is one, on standard error."""
    say = console(stderr=True)
    for error in errors:
        say(f"error: {error}", "red")
    if hint:
        say(f"hint: {hint}")


def print_tables(tables: Iterable[tuple[str, Sequence[Sequence[str]]]]) -> None:
    """Print tables, each under its title, with an empty line after it."""
    say = console()
    for title, table in tables:
        say(title, "bold")
        for row in _aligned(table):
            say(f"  {row}")
        say("")


def _aligned(table: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def print_findings(findings: Iterable[Finding], title: str = "findings", above: Iterable[str] = ()) -> None:
    """Print findings and their hints; the details of those that are named in `above` were printed there."""
    say = console()
    say(title, "bold")
    for finding in findings:
        detail = "as above" if finding.name in above else finding.detail
        say(f"  {finding.outcome}  {finding.name}: {detail}", STYLES[finding.outcome])
        if finding.hint:
            say(f"        hint: {finding.hint}")


def print_status(status: Status) -> None:
    """Print how both services are, what was found, and what tells more."""
    print_tables((service.name, list(_facts(service))) for service in (status.proxy, status.ollama))
    print_findings(status.findings)
    say = console()
    if status.well:
        say(f"  hint: {PROGRAM} verify (proves what it promises)")
    if status.proxy.refusals:
        say(f"  hint: {PROGRAM} logs --refused (all of them)")


def _facts(service: Service) -> Iterator[tuple[str, str]]:
    """Yield what is known of a service: what, and its value."""
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
        yield "refused", "nothing of late" if not service.refusals else f"the last {len(service.refusals)}:"
        for line in service.refusals:
            yield "", _refusal(line)


def _model(model: Any) -> str:
    size = f", {model['size'] / 1e9:.1f} GB" if isinstance(model["size"], int | float) else ""
    until = f", until {model['expires_at']}" if isinstance(model["expires_at"], str) else ""
    return f"{model['name']}{size}{until}"


def _refusal(line: Any) -> str:
    told = (line.get(key) for key in ("time", "device", "peer", "method", "path", "reason"))
    return "  ".join(str(each) for each in told if each is not None)
