"""The tables of the results: which figures stand together, and what they are about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.figures import Spread
from bench.plots import COLOURS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.figures import Figures

NONE = "–"


@dataclass(frozen=True)
class Column:
    """One measure in a table; `added`: what it is more than without a proxy."""

    heading: str
    measure: str
    digits: int = 1
    added: bool = False

    def cell(self, figures: Figures, who: str) -> str:
        """Return the contender's figure."""
        if not self.added:
            found = figures.spread(self.measure, who)
            return found.told(self.digits) if found else NONE
        pairs = zip(figures.samples(self.measure, who), figures.samples(self.measure, "direct"), strict=False)
        more = [one - other for one, other in pairs]
        return Spread.of(more).told(self.digits) if more and who != "direct" else NONE


@dataclass(frozen=True)
class Section:
    """One table, of which one column is compared."""

    title: str
    text: str
    columns: tuple[Column, ...]
    compared: int = 0

    def rows(self, figures: Figures) -> Iterator[tuple[str, ...]]:
        """Yield the table, what heads it first."""
        yield ("", "ours ÷ it", *(column.heading for column in self.columns))
        for who in COLOURS:
            cells = [column.cell(figures, who) for column in self.columns]
            if set(cells) != {NONE}:
                ratio = figures.ratio(self.columns[self.compared].measure, "ours", who) if who != "ours" else None
                yield (who, ratio.told(2) if ratio else NONE, *cells)


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
            Column("greatest", f"delay_max@{at}", 1),
        ),
    )


SECTIONS = (
    Section(
        "Small chats",
        "What the openai and anthropic SDKs send, each with another length, other words and ids, answered with another"
        " Date and length each time; on 16 connections: as fast as they are answered, and 1,000 a second, the same work"
        " for all. Load and upstream may share a core, which then bounds the rate of the faster ones.",
        (
            Column("CPU per chat, µs", "chat_cpu"),
            Column("chats a second", "chat_rate", 0),
            Column("CPU at 1,000 a second", "chat_steady_cpu"),
        ),
    ),
    Section(
        "Long chats",
        "The same with 8 to 150 KB of messages, as coding tools send.",
        (Column("CPU per chat, µs", "agent_cpu", 0), Column("chats a second", "agent_rate", 0)),
    ),
    Section(
        "One identical GET",
        "`GET /api/version` again and again, in the same octets, with the same answer: what every cache holds. No"
        " client asks like that; it shows the least that a request takes.",
        (Column("CPU per request, µs", "get_cpu"), Column("requests a second", "get_rate", 0)),
    ),
    Section(
        "First byte, and connections",
        "From a request's last octet to the first of its stream, one at a time; and a connection for each request.",
        (
            Column("first byte, ms", "first_byte", 3),
            Column("CPU per connection with one request, µs", "connection_cpu"),
        ),
    ),
    _delays(50, "100 chunks a second each, no two alike. LiteLLM gets a tenth of that, here and below."),
    _delays(50, "The same, all in the same millisecond of each 10.", "in step", "step"),
    _delays(1, "100 chunks a second."),
    _delays(500, "10 chunks a second each."),
    Section(
        "Length of the answer",
        "CPU per chunk in µs, five streams of 1,000 chunks a second, each answer after the other.",
        tuple(Column(f"{length:,} chunks", f"length_cpu@{length}") for length in (10, 100, 1000, 10_000)),
    ),
    Section(
        "64 MiB",
        "In one request or one answer. Growth is the most memory that it took beyond what there was.",
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
        "Of a stream that waits for its next token, in KiB, the kernel's own apart; and of the whole program after"
        " all that is above. HAProxy as it was replaced takes 4,096 connections.",
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
        "From exec until a connection is taken. The imports are those of aiohttp, uvloop, httptools, orjson, structlog"
        " and pydantic-settings alone, by the same Python.",
        (Column("seconds", "start", 3),),
    ),
    Section(
        "Many connections",
        "CPU per request in µs, 16 requests at a time over so many connections in turn.",
        tuple(Column(f"{number:,}", f"connections_cpu@{number}") for number in (1, 16, 256, 2048, 8000)),
    ),
)
