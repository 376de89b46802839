"""A summary of the access log as lines to read, in the width there is. Pure: what it says is `log_summary`'s."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, set_cell_size

from proxy.manage.logs.lines import brief, local, per_second

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROWS = 20
"""Rows of a table that are shown; `--json` has all."""

BAR, LEAST_BAR = 24, 4
"""Cells that a bar takes at most, and those without which there is none."""

_KINDS = {  # of the summary -> what it is called, and how it is shown
    "complete": ("answered", ""),
    "refused": ("refused", "red"),
    "cut": ("cut off", "yellow"),
    "failed": ("failed", "yellow"),
    "redirected": ("redirected", "dim"),
    "preflight": ("preflights", "dim"),
    "broken_off": ("no request", "dim"),
}

Line = tuple[str, str]
"""A text and its style."""


def report(told: Mapping[str, Any], width: int, *, blocks: bool = True) -> Iterator[Line]:
    """Yield the lines; `blocks`: bars may be drawn with block elements."""
    yield f"{_span(told)}", "bold"
    yield "", ""
    yield from _totals(told)
    if told["refusals"]:
        yield from _titled("refused", [list(_refusal(each)) for each in told["refusals"]], width)
    if told["first_seen"]:
        title = "first seen" if told["since"] else "first seen, in all that is kept"
        yield from _titled(title, [list(_first_seen(each)) for each in told["first_seen"]], width)
    for what in ("device", "model"):
        if told[f"{what}s"]:
            yield from _table(f"by {what}", what, told[f"{what}s"], width, blocks=blocks)


def _span(told: Mapping[str, Any]) -> str:
    """Return of which time it is."""
    if told["from"] is None:
        return f"no requests since {_when(told['since'])}" if told["since"] else "no requests"
    since = f" (asked for since {_when(told['since'])})" if told["since"] else " (all that is kept)"
    return f"{_when(told['from'])} to {_when(told['to'])}{since}"


def _when(time: str) -> str:
    """Return a time as one says it here, to the minute."""
    date, clock = local(time)
    return f"{date} {clock[:5]}" if date else clock


def _totals(told: Mapping[str, Any]) -> Iterator[Line]:
    """Yield the figures of all of it."""
    whole = told["requests"]
    yield f"requests     {whole:>9,}", ""
    for kind, (name, style) in _KINDS.items():
        if told[kind]:
            yield f"  {name:<11}{told[kind]:>9,}  {told[kind] / whole:>4.0%}", style
    if told["missing_lines"]:
        yield f"  not logged {told['missing_lines']:>9,}  more: the log could not be written", "bold magenta"
    if told["verify"]["requests"]:
        devices = told["verify"]["devices"]
        shown = ", ".join(f"{each['device']} {each['requests']:,}" for each in devices[:ROWS])
        more = f" and {len(devices) - ROWS:,} more" if len(devices) > ROWS else ""
        yield f"verify's     {told['verify']['requests']:>9,}  counted here only, as they say so: {shown}{more}", "dim"
    yield f"tokens in    {told['tokens_in']:>9,}", ""
    yield f"tokens out   {told['tokens_out']:>9,}", ""
    if told["tokens_per_second"] is not None:
        yield f"tok/s        {per_second(told['tokens_per_second']):>9}  median of streams", ""
    if told["first_token_ms"] is not None:
        most = brief(told["first_token_ms_p90"])
        yield f"first token  {brief(told['first_token_ms']):>9}  median; nine of ten within {most}", ""
    if told["busiest_hour"]:
        hour = told["busiest_hour"]
        yield f"busiest hour {hour['requests']:>9,}  requests from {_when(hour['begins'])} on", ""


def _refusal(each: Mapping[str, Any]) -> Iterator[str]:
    yield from (each["reason"], f"{each['requests']:>6,}", f"last {_when(each['last'])}", f"by {each['device']}")


def _first_seen(each: Mapping[str, Any]) -> Iterator[str]:
    yield from (_when(each["time"]), each["device"], each["user"] or "")


def _titled(title: str, rows: Sequence[Sequence[str]], width: int) -> Iterator[Line]:
    """Yield rows with their columns aligned, below a title."""
    yield "", ""
    yield title, "bold"
    shown = rows[:ROWS]
    widths = [max(map(cell_len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        padded = [_fit(cell, most) for cell, most in zip(row, widths, strict=True)]
        yield _fit(f"  {'  '.join(padded)}", width).rstrip(), ""
    if len(rows) > ROWS:
        yield f"  and {len(rows) - ROWS:,} more", "dim"


def _table(title: str, what: str, rows: Sequence[Mapping[str, Any]], width: int, *, blocks: bool) -> Iterator[Line]:
    """Yield a table of devices or models, with a bar for the share of each if there is room."""
    yield "", ""
    yield title, "bold"
    lines = [("", "requests", "in", "out", "tok/s", "first"), *(_figures(what, row) for row in rows[:ROWS])]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    widths[0] = max(6, min(widths[0], width - 2 - sum(widths[1:]) - 2 * len(widths)))
    bar = min(BAR, width - sum(widths) - 2 * len(widths) - 8)
    for number, (name, *figures) in enumerate(lines):
        cells = [_fit(name, widths[0]), *(cell.rjust(most) for cell, most in zip(figures, widths[1:], strict=True))]
        if number and bar >= LEAST_BAR:
            share = rows[number - 1]["share"]
            cells.append(f"{share:>4.0%}  {_bar(share, bar, blocks=blocks)}")
        yield _fit(f"  {'  '.join(cells)}", width).rstrip(), "" if number else "dim"
    if len(rows) > ROWS:
        yield f"  and {len(rows) - ROWS:,} more", "dim"


def _figures(what: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    rate = "" if row["tokens_per_second"] is None else per_second(row["tokens_per_second"])
    counts = (f"{row[key]:,}" for key in ("requests", "tokens_in", "tokens_out"))
    return row[what], *counts, rate, brief(row["first_token_ms"])


def _bar(share: float, width: int, *, blocks: bool) -> str:
    """Return a bar of that part of `width`; whatever is more than nothing can be seen."""
    if not blocks:
        return "#" * max(1, round(share * width))
    whole, eighths = divmod(max(1, round(share * width * 8)), 8)
    return "█" * whole + " ▏▎▍▌▋▊▉"[eighths].strip()


def _fit(cell: str, width: int) -> str:
    """Return a text in exactly so many cells."""
    return set_cell_size(cell, width)
