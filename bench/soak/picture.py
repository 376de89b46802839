"""A run's samples as a picture for a terminal, and whether they stayed flat. Pure."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WIDTH = 72
HEIGHT = 4
WARM_UP = 0.25
"""The share of a run that is not judged, because caches fill and the allocator finds its size."""

_BLOCKS = " ▁▂▃▄▅▆▇█"
_ASCII = "  ..::###"


@dataclass(frozen=True, slots=True)
class Sample:
    """The proxy at one moment, and the times to response heads since the sample before."""

    at: float  # seconds since the start
    memory: float  # MiB
    descriptors: int
    requests: float  # a second
    median: float  # ms
    slowest: float  # ms: the 99th of 100


def growth(values: Sequence[float]) -> float | None:
    """Return by how much `values` are higher at the end than after the warm-up; None if there are too few.

    It compares medians of thirds, because a single sample during a large answer means nothing.
    """
    judged = values[int(len(values) * WARM_UP) :]
    third = len(judged) // 3
    if third < 5:
        return None
    return statistics.median(judged[-third:]) - statistics.median(judged[:third])


def columns(values: Sequence[float], width: int) -> list[float]:
    """Return at most `width` values: the highest of those that share a column."""
    if len(values) <= width:
        return [*values]
    edges = [round(number * len(values) / width) for number in range(width + 1)]
    return [max(values[begin:end]) for begin, end in pairwise(edges)]


def chart(title: str, values: Sequence[float], *, unicode: bool, floor: float = 0.0) -> list[str]:
    """Return the lines of a chart from `floor` to the highest value."""
    steps = _BLOCKS if unicode else _ASCII
    top = max([*values, floor + 1e-9])
    levels = [round((value - floor) / (top - floor) * HEIGHT * 8) for value in columns(values, WIDTH)]
    lines = [title]
    for row in reversed(range(HEIGHT)):
        label = f"{top:8.0f}" if row == HEIGHT - 1 else f"{floor:8.0f}" if row == 0 else " " * 8
        bar = "".join(steps[min(8, max(level - row * 8, 0))] for level in levels)
        lines.append(f"{label} {'┤' if unicode else '|'}{bar}")
    return lines


def marks(moments: dict[str, list[float]], seconds: float, width: int) -> str:
    """Return a line with a letter for each event; several in one place make a `*`."""
    line = [" "] * width
    for letter, when in moments.items():
        for moment in when:
            place = min(int(moment / seconds * width), width - 1)
            line[place] = letter if line[place] in (" ", letter) else "*"
    return "".join(line)


def picture(samples: Sequence[Sample], moments: dict[str, list[float]], legend: str, *, unicode: bool) -> str:
    """Return all charts, one below the other, with the same time axis."""

    def series(of: Callable[[Sample], float]) -> list[float]:
        return [of(sample) for sample in samples]

    memory = series(lambda sample: sample.memory)
    blocks = [
        chart("memory, MiB", memory, unicode=unicode, floor=min(memory) * 0.9),
        chart("open files", series(lambda sample: sample.descriptors), unicode=unicode),
        chart("requests a second", series(lambda sample: sample.requests), unicode=unicode),
        chart("head of the answer, ms: median", series(lambda sample: sample.median), unicode=unicode),
        chart("head of the answer, ms: 99 of 100", series(lambda sample: sample.slowest), unicode=unicode),
    ]
    seconds = samples[-1].at
    width = min(WIDTH, len(samples))
    below = [f"{'':9} {marks(moments, seconds, width)}".rstrip(), f"{'':10}0 to {seconds:.0f} s; {legend}"]
    return "\n".join("\n".join(block) for block in [*blocks, below])
