"""The tables of the results: the figures of each table, and its text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.reporting.figures import Spread
from bench.reporting.plots import COLOURS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.reporting.figures import Figures

NONE = "–"


@dataclass(frozen=True)
class Column:
    """One measure in a table. With `added`, the difference to no proxy."""

    heading: str
    measure: str
    digits: int = 1
    added: bool = False

    def cell(self, figures: Figures, who: str) -> str:
        """Return the contender's figure."""
        if not self.added:
            found = figures.spread(self.measure, who)
            return found.text(self.digits) if found else NONE
        pairs = zip(figures.samples(self.measure, who), figures.samples(self.measure, "direct"), strict=False)
        more = [one - other for one, other in pairs]
        return Spread.of(more).text(self.digits) if more and who != "direct" else NONE


@dataclass(frozen=True)
class Section:
    """One table, with one column that is compared."""

    title: str
    text: str
    columns: tuple[Column, ...]
    compared: int = 0

    def rows(self, figures: Figures) -> Iterator[tuple[str, ...]]:
        """Yield the rows of the table, its header first."""
        yield ("", "ours ÷ it", *(column.heading for column in self.columns))
        for who in COLOURS:
            cells = [column.cell(figures, who) for column in self.columns]
            if set(cells) != {NONE}:
                ratio = figures.ratio(self.columns[self.compared].measure, "ours", who) if who != "ours" else None
                yield (who, ratio.text(2) if ratio else NONE, *cells)


def _delays(streams: int, text: str, how: str = "", suffix: str = "") -> Section:
    at = suffix or streams
    return Section(
        f"Streams: {streams:,}{how and ', '}{how}" if streams > 1 else "One stream alone",
        text,
        (
            Column("CPU per chunk, µs", f"chunk_cpu@{at}"),
            Column("delay p50, ms", f"delay_p50@{at}", 3),
            Column("added p50", f"delay_p50@{at}", 3, added=True),
            Column("p99", f"delay_p99@{at}", 2),
            Column("added p99", f"delay_p99@{at}", 2, added=True),
            Column("highest", f"delay_max@{at}", 1),
        ),
    )


SECTIONS = (
    Section(
        "Small chats",
        "Chats as the openai and anthropic SDKs send them. Each has a different length, text and ids, and its"
        " response a different Date and length. They are sent on 16 connections: first as fast as they are answered,"
        " then 1,000 a second, which is the same work for every proxy. Load and upstream may share a core, which then"
        " limits the rate of the faster proxies.",
        (
            Column("CPU per chat, µs", "chat_cpu"),
            Column("chats a second", "chat_rate", 0),
            Column("CPU at 1,000 a second", "chat_steady_cpu"),
        ),
    ),
    Section(
        "Long chats",
        "The same with 8 to 150 KB of messages, as coding tools send them.",
        (Column("CPU per chat, µs", "agent_cpu", 0), Column("chats a second", "agent_rate", 0)),
    ),
    Section(
        "One identical GET",
        "`GET /api/version` again and again, in the same bytes and with the same response, so that every cache helps."
        " No client does that. It shows the least that a request can cost.",
        (Column("CPU per request, µs", "get_cpu"), Column("requests a second", "get_rate", 0)),
    ),
    Section(
        "First byte, and connections",
        "The time from the last byte of a request to the first byte of its stream, one request at a time. And the CPU"
        " if each request has a connection of its own.",
        (
            Column("first byte, ms", "first_byte", 3),
            Column("CPU per connection with one request, µs", "connection_cpu"),
        ),
    ),
    _delays(50, "100 chunks a second each, no two of them the same. LiteLLM gets a tenth of that, here and below."),
    _delays(50, "The same, but all streams send in the same half millisecond, as fast as they can.", "in step", "step"),
    _delays(
        50,
        "The same, but a tenth of a millisecond apart, all in the same 10 ms.",
        "in step, one after another",
        "paced",
    ),
    _delays(1, "100 chunks a second."),
    _delays(500, "10 chunks a second each."),
    Section(
        "Length of the answer",
        "CPU per chunk in µs, with five streams of 1,000 chunks a second. Each stream is one answer after another.",
        tuple(Column(f"{length:,} chunks", f"length_cpu@{length}") for length in (10, 100, 1000, 10_000)),
    ),
    Section(
        "64 MiB",
        "64 MiB in one request, as JSON with one long text, or in one response. Growth is the most additional memory"
        " that the proxy took meanwhile.",
        (
            Column("up, MiB/s", "up_rate", 0),
            Column("CPU, ms", "up_cpu", 0),
            Column("growth, MiB", "up_growth"),
            Column("down, MiB/s", "down_rate", 0),
            Column("CPU, ms", "down_cpu", 0),
            Column("growth, MiB", "down_growth"),
            Column("growth into a stalled upstream, MiB", "stalled_growth"),
        ),
    ),
    Section(
        "Memory",
        "The memory of a stream that waits for its next token, in KiB, without the kernel's. And the memory of the"
        " whole program after all of the above. HAProxy as it was replaced accepts 4,096 connections.",
        (
            Column("each of 500", "idle_memory@500"),
            Column("of 2,000", "idle_memory@2000"),
            Column("of 8,000", "idle_memory@8000"),
            Column("program, MiB", "resident"),
        ),
        compared=1,
    ),
    Section(
        "Start",
        "From exec until a connection is accepted. `imports` is the time that the same Python takes only to import"
        " aiohttp, uvloop, httptools, orjson, structlog and pydantic-settings.",
        (Column("seconds", "start", 3),),
    ),
    Section(
        "Many connections",
        "CPU per request in µs, by the number of open connections. 16 requests are under way at a time, on each"
        " connection in turn.",
        tuple(Column(f"{number:,}", f"connections_cpu@{number}") for number in (1, 16, 256, 2048, 8000)),
    ),
)
