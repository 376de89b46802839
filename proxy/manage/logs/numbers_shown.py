"""How `logs --verify` looks on a terminal: the runs, and what is wrong with their numbers. Pure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from proxy.manage.logs.numbers import Kind
from proxy.manage.logs.summary_shown import ROWS, titled, when
from proxy.terminal.console import table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.console import RenderableType

_MEANINGS = {
    Kind.MISSING: "no line has these numbers, and the proxy reports no loss: lines or files were removed",
    Kind.LOST: "the proxy reports that it couldn't write these lines",
    Kind.TORN: "only a part of the line is there: a crash, a power failure or an edit cut it",
    Kind.TWICE: "an earlier line has the same number: lines or files were copied",
    Kind.MOVED: "earlier lines have later numbers: lines or files were moved",
    Kind.UNNUMBERED: "the line has no number: an older version wrote it, or it was written or edited by hand",
}


def report(totals: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield the parts of a report, one below the other."""
    runs, faults = totals["runs"], totals["findings"]
    counts = (_count(len(totals["files"]), "file"), _count(totals["lines"], "line"), _count(len(runs), "run"))
    yield Text(", ".join(counts), "bold")
    if runs:
        heading = ("", "numbers", "lines", "lost", "from", "to")
        yield from titled("runs", runs, table([*map(_run, runs[-ROWS:])], heading=heading, right={2, 3}))
    for one, other in totals["together"]:
        yield Text(f"\nruns {one} and {other} took turns: two proxies write to this log", "yellow")
    if not faults:
        yield Text("\nno number is missing" if runs else "\nno line has a number", "green" if runs else "yellow")
        return
    yield from titled("findings", faults, table([*map(_fault, faults[:ROWS])], right={2}))
    kinds = dict.fromkeys(fault["kind"] for fault in faults)
    meanings = "\n".join(f"{kind}: {_MEANINGS[Kind(kind)]}" for kind in kinds)
    yield Text(f"\n{meanings}", "yellow")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _run(run: Mapping[str, Any]) -> tuple[str, ...]:
    times = (when(run[key]) if run[key] else "" for key in ("from", "to"))
    return run["run"], _numbers(run), f"{run['lines']:,}", f"{run['lost']:,}" if run["lost"] else "", *times


def _fault(fault: Mapping[str, Any]) -> tuple[str, ...]:
    numbers = f"{fault['run']} {_numbers(fault)}" if fault["first"] else "number unknown"
    place = f"{Path(fault['file']).name} line {fault['line']:,}"
    return fault["kind"], numbers, _count(fault["lines"], "line"), place


def _numbers(each: Mapping[str, Any]) -> str:
    first, last = each["first"], each["last"]
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"
