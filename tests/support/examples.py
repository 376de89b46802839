"""How many random examples a property is tried with: in `make quick` a tenth of those of `make test`."""

import os

from hypothesis import settings

SCALE = float(os.environ.get("EXAMPLES") or 1)


def examples(count: float) -> settings:
    """Return the settings for `count` examples, each of which may take as long as the machine needs."""
    return settings(max_examples=max(1, int(count * SCALE)), deadline=None)
