"""How many examples a property is tried with: in `make quick` a tenth of those of `make test`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Sequence

Case = TypeVar("Case")

SCALE = float(os.environ.get("EXAMPLES") or 1)


def examples(count: float) -> settings:
    """Return the settings for `count` examples, each of which may take as long as the machine needs."""
    return settings(max_examples=max(1, int(count * SCALE)), deadline=None)


def some(cases: Sequence[Case]) -> Sequence[Case]:
    """Return the cases of a large corpus: all of them, or every tenth."""
    return cases[:: max(1, round(1 / SCALE))]
