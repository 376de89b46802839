"""The forms in which a log is shown: columns, texts, unchanged, or totals. This module prints.

Lines go to standard output, notes about them to standard error.
"""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Any

import orjson

from proxy.manage.logs import numbers_shown
from proxy.manage.logs.lines import GAP, Grid, Wanted, cells, diagnostic, gap, style
from proxy.manage.logs.numbers import Numbers
from proxy.manage.logs.summary import Summary
from proxy.manage.logs.summary_shown import report
from proxy.settings.kinds import printable
from proxy.terminal.console import painter
from proxy.terminal.result import Exit

if TYPE_CHECKING:
    from proxy.manage.logs.files import Log
    from proxy.terminal.printer import Printer


class View:
    """A form. `begin` comes before lines that are followed, `end` after the last one."""

    data: object = None  # what the lines add up to, once they have ended
    code = Exit.WELL  # what is known then

    def __init__(self, out: Printer) -> None:
        self._out = out

    def begin(self) -> None:
        """Print what stands above the lines."""

    def wants(self, line: bytes) -> bool:
        """Return whether a line would be shown."""
        return bool(line)

    def show(self, line: bytes) -> None:
        """Show a line, if it is wanted."""
        raise NotImplementedError

    def end(self) -> None:
        """Print the notes at the end."""


class Texts(View):
    """Lines of plain text, each after the name of its source."""

    def __init__(self, out: Printer, name: str) -> None:
        super().__init__(out)
        self._name = painter()(name, "dim")

    def show(self, line: bytes) -> None:
        """Print a line."""
        self._out.line(self._name + printable(line.decode("utf-8", "replace").expandtabs()))


class Records(View):
    """Lines that are objects of JSON. The forms below are made of this."""

    def __init__(self, out: Printer, wanted: Wanted) -> None:
        super().__init__(out)
        self._wanted = wanted
        self._paint = painter()
        self._odd = 0

    def wants(self, line: bytes) -> bool:
        """Return whether a line would be shown."""
        found = _object(line)
        return found is not None and self._wanted(found)

    def show(self, line: bytes) -> None:
        """Show a line, if it is wanted. A line that isn't an object is counted."""
        found = _object(line)
        if found is None:
            self._odd += bool(line)
        elif self._wanted(found):
            self.show_record(found, line)

    def show_record(self, record: dict[str, Any], line: bytes) -> None:
        """Show the object in a line."""
        raise NotImplementedError

    def end(self) -> None:
        """Note how many lines weren't objects."""
        if self._odd:
            lines = "1 line is" if self._odd == 1 else f"{self._odd:,} lines are"
            self._out.note(f"{lines} no JSON object, and left out", "yellow")


def _object(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object in a line, or None."""
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


class Kept(Records):
    """Lines as they are kept."""

    def show_record(self, record: dict[str, Any], line: bytes) -> None:  # noqa: ARG002
        """Write the line's own bytes."""
        self._out.octets(line)


class Rows(Records):
    """The access log, in columns as wide as the terminal."""

    _grid: Grid | None = None

    def begin(self) -> None:
        """Print the heading."""
        self._out.line(self._paint(self._fitting().heading(), "dim"))

    def show_record(self, record: dict[str, Any], line: bytes) -> None:  # noqa: ARG002
        """Print a row."""
        if self._grid is None:
            self.begin()
        if "audit_gap" in record:
            self._out.line(self._paint(gap(record), GAP))
        else:
            self._out.line(self._paint(self._fitting().row(cells(record)), style(record)))

    def _fitting(self) -> Grid:
        """Return the columns for the terminal, which may have another width than before."""
        width = _width()
        if self._grid is None or self._grid.width != width:
            self._grid = Grid(width, "…" if _drawable("…") else "...")
        return self._grid

    def end(self) -> None:
        """Say so, if no line was wanted."""
        super().end()
        if self._grid is None:
            self._out.note("there is no such line" if self._wanted != Wanted() else "nothing is logged yet")


class Diagnostics(Records):
    """What the proxy says of itself."""

    def show_record(self, record: dict[str, Any], line: bytes) -> None:  # noqa: ARG002
        """Print a diagnostic, and its hint below."""
        for each in diagnostic(record, self._paint):
            self._out.line(each)


class Sum(Records):
    """What the lines of the access log add up to."""

    def __init__(self, out: Printer, wanted: Wanted) -> None:
        super().__init__(out, Wanted())  # for the summary is to see all lines
        self._summary = Summary(wanted)

    def show_record(self, record: dict[str, Any], line: bytes) -> None:  # noqa: ARG002
        """Take a line."""
        self._summary.add(record)

    def end(self) -> None:
        """Print the summary."""
        self.data = totals = self._summary.totals()
        self._out.parts(report(totals))
        super().end()


class Checked(View):
    """Whether lines of the access log are missing."""

    def __init__(self, out: Printer, log: Log) -> None:
        super().__init__(out)
        self._log = log
        self._numbers = Numbers()

    def show(self, line: bytes) -> None:
        """Take a line."""
        self._numbers.take(line, *self._log.place)

    def end(self) -> None:
        """Print what is missing."""
        self.data = totals = self._numbers.totals()
        self.code = Exit.FAILED if totals["findings"] else Exit.WELL
        self._out.parts(numbers_shown.report(totals))


def _width() -> int | None:
    """Return how wide the terminal is; None without one."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _drawable(text: str) -> bool:
    """Return whether standard output can show a text."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
