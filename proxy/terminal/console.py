"""How results look on a terminal: lines, tables, findings.

Colours appear only on a terminal, and not if NO_COLOR is set. The first printed line imports rich.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from proxy.settings.kinds import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Sequence

    from rich.console import Console, RenderableType
    from rich.table import Table

_ENDLESS = 2**16  # cells of a line without a terminal: more than any line has


def console(*, stderr: bool = False) -> Callable[..., None]:
    """Return a function that prints a line in a style, never wrapped, with terminal control characters escaped."""
    from rich.text import Text  # noqa: PLC0415

    out = _terminal(stderr=stderr)

    def say(line: str, style: str = "") -> None:
        out.print(Text(printable(line), style), soft_wrap=True)

    return say


def _terminal(*, stderr: bool = False) -> Console:
    """Return rich's console, which with NO_COLOR shows no bold either."""
    from rich.console import Console  # noqa: PLC0415

    return Console(stderr=stderr, color_system=None if os.environ.get("NO_COLOR") else "auto")


def painter() -> Callable[[str, str], str]:
    """Return a function that styles a text for standard output. For thousands of lines, `console` would be too slow."""
    from rich.color import ColorSystem  # noqa: PLC0415
    from rich.style import Style  # noqa: PLC0415

    if _terminal().color_system is None:
        return lambda text, _: text
    return lambda text, style: Style.parse(style).render(text, color_system=ColorSystem.STANDARD) if style else text


def complain(errors: Iterable[str], hint: str) -> None:
    """Print errors, and a command that helps if there is one, on standard error."""
    say = console(stderr=True)
    for error in errors:
        say(f"error: {error}", "red")
    if hint:
        say(f"hint: {hint}")


def table(
    rows: Sequence[Sequence[str | RenderableType]], *, heading: Sequence[str] = (), right: Container[int] = ()
) -> Table:
    """Return a rich table with columns two cells apart; the columns in `right` are right-aligned.

    If the terminal is too narrow, columns of text are folded.
    """
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=bool(heading), header_style="dim")
    for number, title in enumerate(heading or [""] * len(rows[0])):
        made.add_column(title, justify="right" if number in right else "left", no_wrap=number in right, overflow="fold")
    for row in rows:
        made.add_row(*(Text(printable(cell)) if isinstance(cell, str) else cell for cell in row))
    return made


def show(part: RenderableType, *, indent: int = 0) -> None:
    """Print a rich object as wide as the terminal. Without a terminal nothing is cut, and no line ends in blanks."""
    from rich.padding import Padding  # noqa: PLC0415

    out = _terminal()
    if not sys.stdout.isatty():
        out.width = _ENDLESS
    with out.capture() as drawn:
        out.print(Padding(part, (0, 0, 0, indent), expand=False))
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in drawn.get().splitlines())


def print_tables(tables: Iterable[tuple[str, Sequence[Sequence[str]]]]) -> None:
    """Print tables, each under its title, with an empty line after it."""
    say = console()
    for title, rows in tables:
        say(title, "bold")
        show(table(rows), indent=2)
        say("")
