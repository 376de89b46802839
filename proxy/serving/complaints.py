"""When a lasting problem is logged: at once, and then at intervals."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

COMPLAIN_EACH = 60.0
"""Seconds between two lines about the same problem."""


class Complaints:
    """Logs a problem. Call it whenever the problem is seen; it logs the first time in each `again` seconds."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._until: dict[str, float] = {}  # problem -> when it is logged again

    def __repr__(self) -> str:
        """Show what was logged, and isn't logged again yet."""
        return f"<Complaints {sorted(self._until)}>"

    def __call__(
        self, event: str, *, problem: str, hint: str, again: float = COMPLAIN_EACH, error: bool = False, **more: str
    ) -> None:
        """Log a problem, unless that happened in the last `again` seconds."""
        now = monotonic()
        self._until = {said: until for said, until in self._until.items() if now < until}
        if problem not in self._until:
            self._until[problem] = now + again
            (self._log.error if error else self._log.warning)(event, problem=problem, hint=hint, **more)
