"""How long a client may take: when its head, its body, a stall or an idle connection is over its limit.

`settings` has the limits that an owner can change. Pure: the caller supplies the time, in seconds of one monotonic
clock, and acts on the result. 0.0 means never.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxy.policy import refusals

if TYPE_CHECKING:
    from proxy.policy.refusals import Refusal

# Seconds that a connection may be without a byte, when new or between requests.
IDLE_FOR = 75.0
# Seconds for which the rest of a refused request is read and discarded, so that no reset overtakes the response; also
# for delivering the last bytes of a broken response.
LINGER_FOR = 5.0
# Bytes of content that must arrive within each `body_timeout`.
CONTENT_STEP = 16 * 1024
# A held upload may wait this many times `stall_timeout`.
HELD_FACTOR = 5


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may use: bytes, seconds, connections."""

    max_head: int
    max_body: int
    head_timeout: float
    body_timeout: float
    stall_timeout: float
    max_connections: int
    max_connections_per_client: int  # 0: as many as there are


class Deadlines:
    """How long one connection has been in its state."""

    __slots__ = ("_content_mark", "_stalled_since", "_taken", "content_at", "end_by", "held_since", "since")

    def __init__(self, now: float) -> None:
        self.since = now  # when the connection became idle, or a head began
        self.end_by = 0.0  # when a connection that lingers or flushes is cut
        self.held_since = 0.0  # when the upload was held back
        self.content_at = 0.0  # when the current step of content began
        self._content_mark = 0  # bytes of content that had come by then
        self._stalled_since = now
        self._taken = 0  # bytes that the client had taken by then

    def begin_content(self, now: float) -> None:
        """Begin the first step of a request's content."""
        self.content_at = now
        self.held_since = 0.0
        self._content_mark = 0

    def release(self, now: float) -> None:
        """Begin the step again, because the client isn't to blame for the time in which content was held."""
        self.content_at = now
        self.held_since = 0.0

    def head_too_slow(self, now: float, head_timeout: float) -> bool:
        """Return whether a head that began hasn't ended in time."""
        return now - self.since > head_timeout

    def idle_too_long(self, now: float) -> bool:
        """Return whether a connection has been without a byte for too long."""
        return now - self.since > IDLE_FOR

    def content_overdue(self, now: float, octets: int, limits: Limits) -> Refusal | None:
        """Return why the wait for the rest of content that has `octets` by now is over, or None."""
        if self.held_since:
            held_too_long = now - self.held_since > HELD_FACTOR * limits.stall_timeout
            return refusals.HELD_UPLOAD if held_too_long else None
        if now - self.content_at <= limits.body_timeout:
            return None
        brought = octets - self._content_mark
        self.content_at = now
        self._content_mark = octets
        return refusals.content_timeout(limits.body_timeout) if brought < CONTENT_STEP else None

    def stalled(self, now: float, written: int, waiting: int, stall_timeout: float) -> bool:
        """Return whether the client has taken nothing for too long, while `waiting` of `written` bytes are left."""
        taken = written - waiting
        if not waiting or taken != self._taken:
            self._taken = taken
            self._stalled_since = now
        return now - self._stalled_since > stall_timeout

    def overdue(self, now: float) -> bool:
        """Return whether a connection that lingers or flushes has used up its time."""
        return 0.0 < self.end_by < now
