"""How results look on a terminal: lines, tables, findings.

Colours on a terminal only, and none if NO_COLOR is set. rich is loaded by the first line, not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.settings.kinds import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from proxy.terminal.finding import Finding

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
