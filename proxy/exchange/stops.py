"""Why an exchange ended early, from the exception that ended it: whose fault it is, and what a client reads."""

from __future__ import annotations

from asyncio import CancelledError

from proxy.exchange.message.exchange import Party, Stop
from proxy.exchange.message.failures import Malformed, OutOfFiles, Stale, Unfinished, Unlisted, Unreachable
from proxy.policy import refusals
from proxy.policy.refusals import Reason, Refusal

_REFUSALS: dict[type[BaseException], Refusal] = {
    Malformed: refusals.UPSTREAM_MALFORMED,
    Stale: refusals.UPSTREAM_STALE,
    Unlisted: refusals.LIST_UNREADABLE,
}
INTERNAL = Stop(Party.PROXY, Reason.INTERNAL, refusals.INTERNAL)


def stop_of(cause: BaseException) -> Stop:
    """Return who ended an exchange early and why, from the exception."""
    if isinstance(cause, CancelledError):
        stop = cause.args[0] if cause.args else None
        return stop if isinstance(stop, Stop) else Stop(Party.PROXY, Reason.DRAINING, refusals.DRAINING)
    if isinstance(cause, OutOfFiles):
        return Stop(Party.PROXY, Reason.OVERLOADED, refusals.OUT_OF_FILES)
    if isinstance(cause, Unfinished):  # the head has gone out, so the refusal's words have no use
        return Stop(Party.UPSTREAM, Reason.MISSING_TERMINATOR, refusals.UPSTREAM_CLOSED)
    if isinstance(cause, Unreachable):
        refusal = refusals.UPSTREAM_UNREACHABLE if cause.refused else refusals.UPSTREAM_TIMEOUT
    else:
        refusal = _REFUSALS.get(type(cause), refusals.UPSTREAM_CLOSED)
    return Stop(Party.UPSTREAM, refusal.reason, refusal)
