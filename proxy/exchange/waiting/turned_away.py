"""Refuse requests that waited without success. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.exchange.message.exchange import Party, Stop
from proxy.exchange.waiting.pings import failure_of
from proxy.policy.refusals import Reason, Refusal
from proxy.policy.routes import Dialect

if TYPE_CHECKING:
    from proxy.exchange.waiting.loads import FailedLoad

QUEUE_FULL = Refusal(
    Reason.OVERLOADED,
    503,
    "Too many requests wait for a model (`max_waiting`), and this device has the most; try again in a moment",
    ((b"retry-after", b"10"),),
)

TOO_MUCH_HELD = Refusal(
    Reason.OVERLOADED,
    503,
    "The bodies of waiting requests fill the memory that is reserved for them, or this device's half of it; "
    "try again in a moment",
    ((b"retry-after", b"10"),),
)

CANCELLED = Refusal(
    Reason.CANCELLED,
    403,
    "The server's owner ended this request (`cancel`); ask them before you send it again",
    ((b"x-should-retry", b"false"),),
)
"""403, because SDKs and tools send a request that got 409 or 5xx again by themselves."""

_KEPT = frozenset({500, 503})
"""The statuses of Ollama's failed loads that are passed on. Another one becomes 500, or 502 if Ollama gave none."""


def load_failed(status: int, words: str) -> Refusal:
    """Return the refusal of a request whose model can't be loaded, in Ollama's words and, if kept, with its status."""
    passed_on = status if status in _KEPT else 500 if status else 502
    return Refusal(Reason.LOAD_FAILED, passed_on, words)


def stop_of(failure: FailedLoad) -> Stop:
    """Return the end of an exchange whose model can't be loaded, in Ollama's words."""
    said = failure_of(Dialect.NDJSON, failure.status, failure.body)
    refusal = load_failed(failure.status, said.message)
    return Stop(Party.UPSTREAM, refusal.reason, refusal)
