"""Which connection to Ollama serves next.

Decides synchronously and opens or closes nothing itself: what is to be closed is returned. Busy connections belong to
their exchange; the pool knows the idle ones only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.upstream import Upstream

# Idle connections kept: each is a descriptor here and one in Ollama, which has 256 under launchd unless told otherwise.
MAX_IDLE = 64
# Seconds after which an idle one is closed. Ollama never closes any by itself.
IDLE_FOR = 60.0


class Pool:
    """The idle connections, the one used last on top: the rest may grow old and go."""

    def __init__(self) -> None:
        self._idle: list[Upstream] = []

    def __len__(self) -> int:
        return len(self._idle)

    def take(self) -> Upstream | None:
        """Return the connection that was used last and still stands, or None."""
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
        return None

    def put(self, connection: Upstream, now: float) -> Upstream | None:
        """Keep `connection`, which is idle, for later; return one that is to be closed instead, if any."""
        connection.owner = None
        connection.idle_since = now
        self._idle.append(connection)
        return self._idle.pop(0) if len(self._idle) > MAX_IDLE else None

    def expired(self, now: float) -> list[Upstream]:
        """Return, and forget, those that have been idle for too long by `now`, and those that went away."""
        old = [each for each in self._idle if not each.reusable or now - each.idle_since > IDLE_FOR]
        if old:
            self._idle = [each for each in self._idle if each not in old]
        return old
