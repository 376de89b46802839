"""How `logs --summary` looks on a terminal: the tables of the totals that `summary` counts. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from proxy.manage.logs.lines import brief, local, per_second
from proxy.terminal.console import table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import RenderableType

ROWS = 20
"""Rows of a table that are shown; `--json` has all."""

BAR = 24
"""Cells that a bar takes at most."""

LEAST_SHARE = 0.05
"""The least that a bar shows: whatever is more than nothing can be seen."""

_KINDS = {  # of the summary -> what it is called, and how it is shown
    "complete": ("answered", ""),
    "refused": ("refused", "red"),
    "cut": ("cut off", "yellow"),
    "cancelled": ("cancelled", "yellow"),
    "failed": ("failed", "yellow"),
    "redirected": ("redirected", "dim"),
    "preflight": ("preflights", "dim"),
    "broken_off": ("no request", "dim"),
}


_TALLIES = (  # titles, and keys of the totals and of their rows
    ("denied by the access rules", "denied", "reason"),
    ("may have left the Mac", "egress", "model"),
    ("options that were dropped", "dropped", "option"),
)


def report(totals: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield the parts of a report, one below the other."""
    yield Text(f"{_span(totals)}\n", "bold")
    yield _totals(totals)
    if totals["refusals"]:
        yield from titled("refused", totals["refusals"], table([*map(_refusal, totals["refusals"][:ROWS])], right={1}))
    for title, key, what in _TALLIES:
        if rows := totals[key]:
            yield from titled(title, rows, table([_tally(row, what) for row in rows[:ROWS]], right={3}))
    if totals["first_seen"]:
        title = "first seen" if totals["since"] else "first seen, in all kept lines"
        yield from titled(title, totals["first_seen"], table([*map(_first_seen, totals["first_seen"][:ROWS])]))
    for what in ("device", "model"):
        if rows := totals[f"{what}s"]:
            yield from titled(f"by {what}", rows, _shares(what, rows[:ROWS]))


def titled(title: str, rows: Sequence[object], shown: Table) -> Iterator[RenderableType]:
    """Yield a table below its title, and how many rows it leaves out."""
    yield Text(f"\n{title}", "bold")
    yield Padding(shown, (0, 0, 0, 2), expand=False)
    if len(rows) > ROWS:
        yield Text(f"  and {len(rows) - ROWS:,} more", "dim")


def _span(totals: Mapping[str, Any]) -> str:
    """Return of which time it is."""
    if totals["from"] is None:
        return f"no requests since {when(totals['since'])}" if totals["since"] else "no requests"
    since = f" (asked for since {when(totals['since'])})" if totals["since"] else " (all kept lines)"
    return f"{when(totals['from'])} to {when(totals['to'])}{since}"


def when(time: str) -> str:
    """Return a time as one says it here, to the minute."""
    date, clock = local(time)
    return f"{date} {clock[:5]}" if date else clock


def _totals(totals: Mapping[str, Any]) -> Table:
    """Return the figures of all of it."""
    figures = Table.grid("", Column(justify="right"), "", padding=(0, 2, 0, 0))
    whole = totals["requests"]
    figures.add_row("requests", f"{whole:,}")
    for kind, (name, style) in _KINDS.items():
        if totals[kind]:
            figures.add_row(f"  {name}", f"{totals[kind]:,}", f"{totals[kind] / whole:>4.0%}", style=style)
    if totals["context_full"]:
        note = "Ollama cut the prompt or the answer; see docs/clients.md"
        figures.add_row("  context full", f"{totals['context_full']:,}", note, style="yellow")
    if totals["missing_lines"]:
        note = "more: the log could not be written"
        figures.add_row("  not logged", f"{totals['missing_lines']:,}", note, style="bold magenta")
    if totals["verify"]["requests"]:
        devices = totals["verify"]["devices"]
        shown = ", ".join(f"{each['device']} {each['requests']:,}" for each in devices[:ROWS])
        more = f" and {len(devices) - ROWS:,} more" if len(devices) > ROWS else ""
        note = f"counted here only, by their user_agent: {shown}{more}"
        figures.add_row("verify's", f"{totals['verify']['requests']:,}", Text(note), style="dim")
    figures.add_row("tokens in", f"{totals['tokens_in']:,}")
    figures.add_row("tokens out", f"{totals['tokens_out']:,}")
    if totals["tokens_per_second"] is not None:
        figures.add_row("tok/s", per_second(totals["tokens_per_second"]), "median of streams")
    if totals["first_token_ms"] is not None:
        most = brief(totals["first_token_ms_p90"])
        figures.add_row("first token", brief(totals["first_token_ms"]), f"median; nine of ten within {most}")
    if totals["busiest_hour"]:
        hour = totals["busiest_hour"]
        figures.add_row("busiest hour", f"{hour['requests']:,}", f"requests from {when(hour['begins'])} on")
    return figures


def _refusal(each: Mapping[str, Any]) -> tuple[str, ...]:
    return each["reason"], f"{each['requests']:,}", f"last {when(each['last'])}", f"by {each['device']}"


def _tally(row: Mapping[str, Any], what: str) -> tuple[str, ...]:
    models = "" if what == "model" else ", ".join(row["models"])
    return row["device"], row["user"] or "", row[what], f"{row['requests']:,}", f"last {when(row['last'])}", models


def _first_seen(each: Mapping[str, Any]) -> tuple[str, ...]:
    return when(each["time"]), each["device"], each["user"] or ""


_FIGURES = ("requests", "in", "out", "tok/s", "first", "")


def _shares(what: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table of devices or models, with a bar for the share of each; bars only if there is room."""
    return table(
        [(row[what], *_figures(row), _bar(row["share"])) for row in rows],
        heading=("", *_FIGURES, ""),
        right=range(1, 1 + len(_FIGURES)),
    )


def _bar(share: float) -> ProgressBar:
    return ProgressBar(1, max(share, LEAST_SHARE), width=BAR, complete_style="cyan", finished_style="cyan")


def _figures(row: Mapping[str, Any]) -> tuple[str, ...]:
    rate = "" if row["tokens_per_second"] is None else per_second(row["tokens_per_second"])
    counts = (f"{row[key]:,}" for key in ("requests", "tokens_in", "tokens_out"))
    return *counts, rate, brief(row["first_token_ms"]), f"{row['share']:.0%}"
