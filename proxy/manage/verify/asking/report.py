"""How results are printed: numbered and in groups as they come, a hint under each failure, and the totals at the end.

With `--json` it only collects them, and its caller prints the array. Colours appear only on a terminal, and not if
NO_COLOR is set.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.manage.verify.asking.asking import Asked
    from proxy.manage.verify.asking.session import Result

_COLOURS = {"pass": "32", "warn": "33", "fail": "31", "skip": "2"}
_BOLD, _DIM = "1", "2"
_COUNTED = {"pass": "passed", "warn": "warned", "fail": "failed", "skip": "skipped"}

PER_LINE = 10
"""How many request ids share a line."""


def plain(text: str) -> str:
    """Return `text` with all that could steer a terminal escaped: answers hold what servers and models say."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class Report:
    """Prints results to `out`, and the conversation to `talk`, if that is wanted."""

    def __init__(self, *, as_json: bool = False, verbose: bool = False, out: TextIO | None = None) -> None:
        self.as_json, self.verbose = as_json, verbose
        self.out = out or sys.stdout
        self.results: list[Result] = []
        self._group = ""
        self._skipped: list[Result] = []  # several in a row for one reason, not printed yet
        self._asking = ""
        self._interrupted = False
        self._terminal = self.out.isatty() and os.environ.get("TERM") != "dumb"
        self._colours = self._terminal and "NO_COLOR" not in os.environ

    @property
    def failed(self) -> bool:
        """Whether anything failed, or was not asked because of a Ctrl-C."""
        return self._interrupted or any(result.outcome == "fail" for result in self.results)

    def asking(self, name: str) -> None:
        """Show on a terminal the current question, until its result comes: loading a model takes minutes."""
        if self._terminal and not self.as_json:
            wiped = self._wiped()
            self._asking = f"{len(self.results) + 1:>7}  ....  {plain(name)}"
            print(f"{wiped}{self._asking}", end="\r", file=self.out, flush=True)

    def add(self, result: Result, talk: Iterable[str] = ()) -> None:
        """Print a result, and its conversation."""
        if self._skipped and not _alike(self._skipped[-1], result):
            self._print_skipped()
        self.results.append(result)
        if not self.as_json:
            self._write_result(result)
        for line in talk if self.verbose else ():
            if self.as_json:
                print(f"  {plain(line)}", file=sys.stderr, flush=True)
            else:
                self._say(self._styled(f"               {plain(line)}".rstrip(), _DIM))

    def _write_result(self, result: Result) -> None:
        if result.group != self._group:
            if self._group:
                self._say("")
            self._say(self._styled(result.group, _BOLD))
            self._group = result.group
        if result.outcome == "skip" and not result.hint:
            self._skipped.append(result)
            return
        self._line(str(len(self.results)), result, result.name)

    def _line(self, numbers: str, result: Result, name: str) -> None:
        outcome = self._styled(result.outcome.upper(), _COLOURS[result.outcome])
        took = self._styled(f"  ({result.seconds:.2f} s)", _DIM) if result.seconds >= 0.005 else ""
        self._say(f"{numbers:>7}  {outcome}  {plain(name)}: {plain(result.detail)}{took}")
        if result.hint:
            self._say(f"               hint: {plain(result.hint)}")

    def _print_skipped(self) -> None:
        """Print several skipped results with one reason as one line."""
        skipped, last = self._skipped, len(self.results)
        self._skipped = []
        if len(skipped) == 1:
            self._line(str(last), skipped[0], skipped[0].name)
        else:
            self._line(f"{last - len(skipped) + 1}-{last}", skipped[0], f"{skipped[0].name} ... {skipped[-1].name}")

    def end(self, asked: Iterable[Asked] = (), note: str = "") -> None:
        """Print the totals, a `note`, and the ids of the requests."""
        if self.as_json:
            return
        if self._skipped:
            self._print_skipped()
        counts = {word: [result.outcome for result in self.results].count(each) for each, word in _COUNTED.items()}
        seconds = sum(result.seconds for result in self.results)
        said = ", ".join(f"{count} {word}" for word, count in counts.items() if count or word in ("passed", "failed"))
        self._say("")
        self._say(self._styled(f"{said} in {seconds:.1f} s", _COLOURS["fail" if self.failed else "pass"]))
        for number, result in enumerate(self.results, 1):
            if result.outcome == "fail":
                self._say(f"{number:>7}  {plain(result.group)}: {plain(result.name)}")
        if note:
            self._say("")
            for line in note.split("\n"):
                self._say(plain(line))
        self._ids(list(asked))

    def interrupted(self) -> None:
        """Print the totals of what came before a Ctrl-C."""
        self._interrupted = True
        print("interrupted", file=sys.stderr)
        self.end()

    def _ids(self, asked: list[Asked]) -> None:
        """Print the requests, several on a line."""
        if not asked:
            return
        name = asked[0].id.rpartition("-")[0]
        entries = [
            f"{each.id.rpartition('-')[2]:>4} {each.status or '---'}{' ' if each.known else '*'}" for each in asked
        ]
        self._say("")
        self._say(
            f"{len(asked)} requests, in the Mac's access log as `{name}-NUMBER`: number, and status of the answer;"
        )
        self._say("those with * have an id of the proxy's own there, or none:")
        for start in range(0, len(entries), PER_LINE):
            self._say("  " + " ".join(entries[start : start + PER_LINE]).rstrip())

    def _styled(self, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colours else text

    def _wiped(self) -> str:
        """Return what wipes the current question from the terminal."""
        length, self._asking = len(self._asking), ""
        return " " * length + "\r" if length else ""

    def _say(self, line: str) -> None:
        print(self._wiped() + line, file=self.out, flush=True)


def _alike(one: Result, other: Result) -> bool:
    """Return whether two results were skipped for one reason."""
    return (one.group, one.outcome, one.detail, one.hint) == (other.group, other.outcome, other.detail, other.hint)
