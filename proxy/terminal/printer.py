"""The printer of all commands: what they print as it happens, and their result at the end.

Without `--json`, standard output shows it as people read it. With `--json`, standard output gets the data of the result
and nothing else, as one JSON document, and what a command does meanwhile goes to standard error.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

from proxy.terminal.console import complain, console, print_tables, show
from proxy.terminal.result import CommandError, Exit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rich.console import RenderableType

    from proxy.terminal.finding import Finding
    from proxy.terminal.result import Result


STYLES = {"pass": "green", "warn": "yellow", "fail": "red", "skip": "dim"}
"""Outcome of a finding -> how it is shown."""


class Printer:
    """Prints for one run of a command."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self._document = as_json

    @cached_property
    def _out(self) -> Callable[..., None]:
        return console()

    @cached_property
    def _err(self) -> Callable[..., None]:
        return console(stderr=True)

    # --- the result, as people read it --------------------------------------------------------------------------------

    def say(self, line: str = "", style: str = "") -> None:
        """Print a line that shows data of the result."""
        if not self.as_json:
            self._out(line, style)

    def text(self, text: str) -> None:
        """Print text that shows data of the result, exactly as it is."""
        if not self.as_json:
            sys.stdout.write(text)
            sys.stdout.flush()

    def tables(self, tables: Iterable[tuple[str, Sequence[Sequence[str]]]]) -> None:
        """Print tables, each under its title."""
        if not self.as_json:
            print_tables(tables)

    def line(self, line: str) -> None:
        """Print a line of one's own style, among thousands."""
        print(line)

    def octets(self, line: bytes) -> None:
        """Print a line as it is kept."""
        sys.stdout.buffer.write(line + b"\n")

    def parts(self, parts: Iterable[RenderableType]) -> None:
        """Print rich objects."""
        for part in () if self.as_json else parts:
            show(part)

    def findings(self, findings: Iterable[Finding], title: str = "findings", above: Iterable[str] = ()) -> None:
        """Print findings and their hints. The details of those named in `above` were printed earlier."""
        self.say(title, "bold")
        for finding in findings:
            detail = "as above" if finding.name in above else finding.detail
            self.say(f"  {finding.outcome}  {finding.name}: {detail}", STYLES[finding.outcome])
            if finding.hint:
                self.say(f"        hint: {finding.hint}")

    # --- what happens meanwhile ---------------------------------------------------------------------------------------

    def step(self, line: str, style: str = "") -> None:
        """Print what the command does now."""
        (self._err if self.as_json else self._out)(line, style)

    def note(self, line: str, style: str = "") -> None:
        """Print a message on standard error."""
        self._err(line, style)

    def complain(self, error: str, hint: str = "") -> None:
        """Print an error on standard error."""
        complain([error], hint)

    def agree(self, question: str, otherwise: str) -> bool:
        """Ask a yes-or-no question at the terminal. Without one, raise CommandError with `otherwise` as its hint."""
        if sys.stdin is None or not sys.stdin.isatty():  # None if it was closed
            raise CommandError("there is no terminal to ask on", otherwise, Exit.WRONG)
        print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in {"y", "yes"}

    def lines_only(self) -> None:
        """Expect lines, each a JSON document of its own with `--json`, so no other document follows them."""
        self._document = False

    # --- the end ------------------------------------------------------------------------------------------------------

    def end(self, result: Result) -> int:
        """Print the data or the errors of a result; return the exit code."""
        if result.errors:
            complain(result.errors, result.hint)
        if self._document and (document := _document(result)) is not None:
            print(json.dumps(document, indent=2, default=asdict))
        return int(result.code)


def _document(result: Result) -> Any:
    """Return what `--json` prints: the data, with the errors if it is an object, or the errors alone."""
    if not result.errors or isinstance(result.data, list):
        return result.data
    return {**(result.data if isinstance(result.data, dict) else {}), "errors": result.errors, "hint": result.hint}
