"""The samples of each measure and contender: their medians, spreads and ratios, and the targets.

A ratio is taken within each round, because a disturbance affects both sides of a round. The result is the median of
these ratios.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Spread:
    """A summary of samples."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Summarise `samples`, of which there must be at least one."""
        return cls(median(samples), min(samples), max(samples))

    def text(self, digits: int) -> str:
        """Return it as text: the median, and the spread if there is one."""
        text = f"{self.median:,.{digits}f}"
        if self.least == self.most:
            return text
        return f"{text} ({self.least:,.{digits}f}–{self.most:,.{digits}f})"


class Figures:
    """All samples of a run, with the facts about the machine and the contenders."""

    def __init__(self, about: dict[str, Any] | None = None, samples: dict[str, dict[str, list[float]]] | None = None):
        self.about: dict[str, Any] = {} if about is None else about
        self._samples: dict[str, dict[str, list[float]]] = {} if samples is None else samples

    @classmethod
    def read(cls, path: Path) -> Figures:
        """Return the figures that `write` wrote."""
        found = json.loads(path.read_text())
        return cls(found["about"], found["samples"])

    def write(self, path: Path) -> None:
        """Write all samples to a file."""
        samples = {
            measure: {who: [float(f"{value:.6g}") for value in values] for who, values in by.items()}
            for measure, by in self._samples.items()
        }
        path.write_text(json.dumps({"about": self.about, "samples": samples}, indent=1) + "\n")

    def note(self, measure: str, who: str, *values: float) -> None:
        """Add samples."""
        self._samples.setdefault(measure, {}).setdefault(who, []).extend(values)

    def samples(self, measure: str, who: str) -> list[float]:
        """Return the samples, in the order of rounds."""
        return self._samples.get(measure, {}).get(who, [])

    def spread(self, measure: str, who: str) -> Spread | None:
        """Return a summary of the samples, if there are any."""
        samples = self.samples(measure, who)
        return Spread.of(samples) if samples else None

    def ratio(self, measure: str, who: str, peer: str) -> Spread | None:
        """Return the ratios of `who` to `peer`, round by round."""
        pairs = zip(self.samples(measure, who), self.samples(measure, peer), strict=False)
        ratios = [one / other for one, other in pairs if other]
        return Spread.of(ratios) if ratios else None

    def measures(self, beginning: str = "") -> list[str]:
        """Return the measures that were taken, or only those whose name starts with `beginning`."""
        return [measure for measure in self._samples if measure.startswith(beginning)]

    def curve(self, kind: str, who: str) -> list[tuple[float, float]]:
        """Return the medians of the measures `kind@NUMBER`, by number."""
        points = []
        for measure in self.measures(f"{kind}@"):
            number, spread = measure.partition("@")[2], self.spread(measure, who)
            if spread is not None and number.isdecimal():
                points.append((float(number), spread.median))
        return sorted(points)


# --- what they should be ---


@dataclass(frozen=True)
class Target:
    """Ours may take at most `limit` times as much as `peer`, or at most `limit` if there is no peer."""

    text: str
    measure: str
    limit: float
    peer: str = ""
    unit: str = "×"
    of: str = "µs"  # the unit of the figures that are compared

    def judge(self, figures: Figures) -> Judged | None:
        """Return the result, or None if it wasn't measured."""
        peer = self.peer
        found = figures.ratio(self.measure, "ours", peer) if peer else figures.spread(self.measure, "ours")
        return None if found is None else Judged(self, found, held=found.median <= self.limit)


@dataclass(frozen=True)
class Judged:
    """A target, its result, and whether the result meets it."""

    target: Target
    found: Spread
    held: bool


_TUNED = "haproxy-tuned"
_REPLACED = "haproxy-replaced"

TARGETS = (
    Target("CPU of a small chat, each different, against HAProxy, tuned", "chat_cpu", 3.3, _TUNED),
    Target("CPU of a small chat, each different, against plain aiohttp", "chat_cpu", 0.4, "aiohttp"),
    Target("CPU of a small chat with twenty access rules, against none", "ruled_cpu", 1.15, "without rules"),
    Target(
        "CPU of a small chat while the socket is read each second, against not", "watched_cpu", 1.05, "not looked at"
    ),
    Target(
        "CPU of a chunk while the socket is read each second, against not", "watched_chunk_cpu", 1.05, "not looked at"
    ),
    Target("99th percentile of the delay meanwhile, against not", "watched_delay", 1.1, "not looked at", of="ms"),
    Target("CPU of one identical GET against HAProxy, tuned", "get_cpu", 1.9, _TUNED),
    Target("CPU of a chunk of one stream alone against HAProxy, tuned", "chunk_cpu@1", 1.6, _TUNED),
    Target("CPU of a streamed chunk against HAProxy, tuned", "chunk_cpu@50", 1.25, _TUNED),
    Target("CPU of a streamed chunk against Caddy", "chunk_cpu@50", 0.85, "caddy"),
    Target("median delay of a chunk against HAProxy, tuned", "delay_p50@50", 1.1, _TUNED, of="ms"),
    Target("99th percentile of the delay against HAProxy, tuned", "delay_p99@50", 1.1, _TUNED, of="ms"),
    Target("median delay, streams in step, against HAProxy, tuned", "delay_p50@paced", 1.1, _TUNED, of="ms"),
    Target("99th percentile, streams in step, against HAProxy, tuned", "delay_p99@paced", 1.1, _TUNED, of="ms"),
    Target(
        "median delay, streams in step, all at once, against HAProxy, tuned", "delay_p50@step", 1.1, _TUNED, of="ms"
    ),
    Target("median delay of a chunk against the HAProxy that was replaced", "delay_p50@50", 0.01, _REPLACED, of="ms"),
    Target("memory of an idle stream, with 2,000 of them", "idle_memory@2000", 16, unit="KiB"),
    Target("growth of memory while 64 MiB go to an upstream that reads nothing", "stalled_growth", 4, unit="MiB"),
    Target("time for 64 MiB up against HAProxy, tuned", "up_time", 2.0, _TUNED, of="s"),
    Target(
        "CPU that a chat of 300 KiB takes more because it is read, against orjson", "reading_cpu", 2.0, "orjson.loads"
    ),
    Target("longest delay of a chunk next to hostile bodies", "hostile_delay", 100, unit="ms", of="ms"),
    Target("start, against importing the same libraries", "start", 1.2, "imports", of="s"),
)
