"""What is said of a problem that lasts: once, and then at intervals."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

COMPLAIN_EACH = 60.0
"""Seconds between two lines about the same problem."""


class Complaints:
    """Call it with an event and a problem whenever that is seen; it logs the first of each `again` seconds."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._until: dict[str, float] = {}  # problem -> when it is said again

    def __repr__(self) -> str:
        """Show what was said, and isn't said again yet."""
        return f"<Complaints {sorted(self._until)}>"

    def __call__(
        self, event: str, *, problem: str, hint: str, again: float = COMPLAIN_EACH, error: bool = False, **more: str
    ) -> None:
        """Log a problem unless that was done in the last `again` seconds."""
        now = monotonic()
        self._until = {said: until for said, until in self._until.items() if now < until}
        if problem not in self._until:
            self._until[problem] = now + again
            (self._log.error if error else self._log.warning)(event, problem=problem, hint=hint, **more)
