"""How many examples a property is tried with: in `make quick` a tenth of those of `make test`."""

from __future__ import annotations

import os
from collections import defaultdict
from typing import TYPE_CHECKING, TypeVar

from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

Case = TypeVar("Case")

SCALE = float(os.environ.get("EXAMPLES") or 1)
_STEP = max(1, round(1 / SCALE))

MANY = 10
"""Cases of one test from which on `make quick` takes a tenth of them."""


def examples(count: float) -> settings:
    """Return the settings for `count` examples, each of which may take as long as the machine needs."""
    return settings(max_examples=max(1, int(count * SCALE)), deadline=None)


def some(cases: Sequence[Case]) -> Sequence[Case]:
    """Return the cases of a large corpus: all of them, or every tenth."""
    return cases[::_STEP]


def left_out(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return the tests that `make quick` leaves out: nine of ten cases of each test that has many."""
    cases = defaultdict(list)
    for item in items:
        cases[item.nodeid.partition("[")[0]].append(item)
    return [each for found in cases.values() if len(found) >= MANY for n, each in enumerate(found) if n % _STEP]
