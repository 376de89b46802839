"""How much is repeated: in `make quick` a tenth of the examples of `make test`, of which coverage traces a tenth.

Tracing doubles the time of a test or more. The tenth case of a test runs the lines that the first one ran.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from typing import TYPE_CHECKING, TypeVar

import pytest
from coverage import Coverage
from hypothesis import is_hypothesis_test, settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Case = TypeVar("Case")

SCALE = float(os.environ.get("EXAMPLES") or 1)
_STEP = max(1, round(1 / SCALE))
_TRACED_STEP = 10

MANY = 30
"""Cases of one test from which on `make quick` takes a tenth of them, and coverage traces a tenth."""


def examples(count: float) -> settings:
    """Return the settings for `count` examples, each of which may take as long as the machine needs."""
    return settings(max_examples=max(1, int(count * SCALE)), deadline=None)


def some(cases: Sequence[Case]) -> Sequence[Case]:
    """Return the cases of a large corpus: all of them, or every tenth."""
    return cases[::_STEP]


def left_out(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return the tests that `make quick` leaves out: nine of ten cases of each test that has many."""
    return [each for each, n in _cases_of_many(items) if n % _STEP]


def untraced(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return the tests that coverage need not trace: nine of ten of many cases, and what chance alone would reach."""
    random = [each for each in items if is_hypothesis_test(getattr(each, "obj", None))]
    return [*random, *(each for each, n in _cases_of_many(items) if n % _TRACED_STEP)]


def _cases_of_many(items: list[pytest.Item]) -> Iterator[tuple[pytest.Item, int]]:
    """Yield each case of a test that has many, with its number."""
    cases = defaultdict(list)
    for item in items:
        cases[item.nodeid.partition("[")[0]].append(item)
    for found in cases.values():
        if len(found) >= MANY:
            yield from ((each, n) for n, each in enumerate(found))


class Tracing:
    """Switches coverage off for tests that are marked `untraced`, if it slows them down.

    From Python 3.14 on it uses `sys.monitoring`, whose cost is small, and which is slow to switch.
    """

    def __init__(self) -> None:
        self._off: Coverage | None = None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Switch before the test's first fixture."""
        if item.get_closest_marker("untraced"):
            if self._off is None and sys.gettrace() is not None and (tracing := Coverage.current()) is not None:
                tracing.stop()
                self._off = tracing
        elif self._off is not None:
            self._off.start()
            self._off = None
        return (yield)
