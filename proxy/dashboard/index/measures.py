"""The measures whose distributions the page shows, and the bins that they are counted in. Pure."""

from __future__ import annotations

from bisect import bisect_right
from enum import IntEnum
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

EDGES = tuple(step * 10.0**power / 10 for power in range(-1, 8) for step in (10, 15, 20, 30, 50, 70))
"""Where bins begin: six per decade, at round numbers, from 0.1 to 70 million."""


class Measure(IntEnum):
    """What is measured. The index uses the number, and the page the name in lower case."""

    FIRST_TOKEN_MS = 0
    TOKENS_PER_SECOND = 1
    WAITED_MS = 2


def bin_of(value: float) -> int:
    """Return the bin of a value: 0 is below the first edge, the last one has no end."""
    return bisect_right(EDGES, value)


def bounds(number: int) -> tuple[float, float]:
    """Return where a bin begins and ends."""
    return (EDGES[number - 1] if number else -inf), (EDGES[number] if number < len(EDGES) else inf)


def shown_bounds(number: int) -> tuple[float, float]:
    """Return the bounds of a bin as the page writes them. An open bin ends at 0, or where the next bin would end."""
    low, high = bounds(number)
    return max(low, 0.0), (high if high < inf else EDGES[-1] * 10)


def place(counts: Mapping[int, int], number: int) -> tuple[int, int]:
    """Return the bin of the value at this place in ascending order, and the value's place within the bin."""
    for each in sorted(counts):
        if number < counts[each]:
            return each, number
        number -= counts[each]
    raise IndexError(number)


def distribution(counts: Mapping[int, int]) -> dict[str, list[float]]:
    """Return edges and counts, from the first to the last bin that isn't empty."""
    if not counts:
        return {"edges": [], "counts": []}
    span = range(min(counts), max(counts) + 1)
    edges = [shown_bounds(span[0])[0], *(shown_bounds(each)[1] for each in span)]
    return {"edges": edges, "counts": [counts.get(each, 0) for each in span]}
