"""What the owner wants to see: a period, and which of its requests. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

PERIODS = ("hour", "day", "week", "all")

MINUTE, HOUR, DAY = 60, 3600, 86400

_SPANS = {"hour": HOUR, "day": DAY, "week": 7 * DAY}

_TEXTS = ("device", "model", "reason", "ended", "kind", "dropped")
_SWITCHES = ("full", "egress")


class Known(NamedTuple):
    """A combination as the page has it."""

    device: str  # its name, or its address if no line has its name
    model: str
    kind: str
    reason: str
    ended: str
    context_full: bool
    egress: bool
    dropped: tuple[str, ...]  # options that the proxy removed


class AskedWronglyError(ValueError):
    """A parameter makes no sense; the text says which."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which requests are wanted. A field that is None excludes nothing."""

    device: str | None = None
    model: str | None = None
    reason: str | None = None
    ended: str | None = None
    kind: str | None = None
    full: bool | None = None  # only those with a full context
    egress: bool | None = None  # only those that may have left the Mac
    dropped: str | None = None  # only those from which the proxy removed this option

    @property
    def is_empty(self) -> bool:
        """Whether all requests are wanted."""
        return self == Filter()

    def takes(self, each: Known) -> bool:
        """Return whether requests of a combination are wanted."""
        wanted = (self.device, self.model, self.reason, self.ended, self.kind, self.full, self.egress)
        found = (each.device, each.model, each.reason, each.ended, each.kind, each.context_full, each.egress)
        is_option_wanted = self.dropped is None or self.dropped in each.dropped
        return is_option_wanted and all(value is None or value == has for value, has in zip(wanted, found, strict=True))


class Period(NamedTuple):
    """A span of time up to now."""

    name: str
    since: int  # milliseconds since 1970; 0 for the whole log
    now: int


def period_of(name: str, now: float) -> Period:
    """Return the period with this name. It begins with a whole minute or hour, as its bars do."""
    if name not in PERIODS:
        raise AskedWronglyError(f"period={name} is none of {', '.join(PERIODS)}")
    span = _SPANS.get(name)
    bar = MINUTE if name == "hour" else HOUR
    since = 0 if span is None else (int(now) // bar * bar - span) * 1000
    return Period(name, since, int(now * 1000))


def filter_of(query: Mapping[str, str]) -> Filter:
    """Return the filter that a query's parameters mean."""
    given: dict[str, Any] = {name: query[name] for name in _TEXTS if query.get(name)}
    for name in _SWITCHES:
        if query.get(name, "1") != "1":
            raise AskedWronglyError(f"{name}={query[name]} is not 1")
    return Filter(**given | {name: True for name in _SWITCHES if name in query})
