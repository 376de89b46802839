"""The progress of pulls and loads: bars on a terminal, otherwise a few lines.

It goes to standard error. On a terminal nothing of it stays afterwards.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich import progress
from rich.console import Console
from rich.filesize import decimal

from proxy.settings.kinds import printable
from proxy.terminal.console import console

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from proxy.manage.ollama.api import Pulling


def display() -> Bars | Lines:
    """Return bars if someone watches, otherwise lines."""
    terminal = Console(stderr=True)
    if sys.stderr.isatty() and terminal.is_interactive:
        return Bars(terminal)
    return Lines(console(stderr=True))


class Lines:
    """A line at each beginning, at each tenth of a pull, and now and then while a model is loaded."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    @contextmanager
    def pulling(self, name: str) -> Iterator[Callable[[Pulling], None]]:
        """Print each tenth, and that the download is being verified, which takes minutes."""
        self._say(f"{name}: pulling")
        reported = 0
        verified = False

        def report(now: Pulling) -> None:
            nonlocal reported, verified
            tenths = 10 * now.done // now.total if now.total else 0
            if tenths < reported - 1:  # a layer as large as those before has begun
                reported = tenths
            elif reported < tenths < 10:
                reported = tenths
                self._say(f"{name}: {tenths}0 %, {decimal(now.done)} of {decimal(now.total)}")
            if now.phase.startswith("verifying") and not verified:
                verified = True
                self._say(f"{name}: {now.phase}")

        yield report

    @contextmanager
    def loading(self, name: str) -> Iterator[Callable[[float], None]]:
        """Print that it continues."""
        self._say(f"{name}: loading")
        yield lambda passed: self._say(f"{name}: still loading, after {duration(passed)}")


class Bars:
    """A bar with bytes, speed and time left; for a load, which reports nothing, the time that has passed."""

    def __init__(self, terminal: Console) -> None:
        self._terminal = terminal

    @contextmanager
    def pulling(self, name: str) -> Iterator[Callable[[Pulling], None]]:
        """Show a bar; while there is nothing to measure, what Ollama is at."""
        columns = (
            progress.BarColumn(bar_width=20),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(compact=True),
            progress.TextColumn("{task.fields[phase]}", markup=False),
        )
        with self._live(*columns) as live:
            task = live.add_task(f"pulling {name}", total=None, phase="")

            def report(now: Pulling) -> None:
                # Speed is measured again when the total changes, so that data that was here already doesn't count.
                live.update(task, completed=now.done, total=now.total or None, phase=printable(now.phase))

            yield report

    @contextmanager
    def loading(self, name: str) -> Iterator[Callable[[float], None]]:
        """Show that it goes on; the time is the terminal's own."""
        with self._live(progress.SpinnerColumn(), progress.TimeElapsedColumn()) as live:
            live.add_task(f"loading {name}", total=None)
            yield lambda _: None

    def _live(self, *columns: progress.ProgressColumn) -> progress.Progress:
        title = progress.TextColumn("{task.description}", markup=False)
        return progress.Progress(title, *columns, console=self._terminal, transient=True)


def duration(seconds: float) -> str:
    """Return a time as one says it: two units at most."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, name, smaller, its_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            rest = whole % unit // smaller
            return f"{whole // unit} {name}" + (f" {rest} {its_name}" if rest else "")
    return f"{whole} s"
