"""How many requests of all askers of one access rule Ollama may have at once: `max_active`. Pure."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from proxy.policy.rule_keys import Entry

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from proxy.policy.access import Rule
    from proxy.policy.rule_keys import RuleSpec

Key = tuple[str, ...]
"""What makes a rule the same one after a reload: its `who`. A grant has none, so for a grant it is all that it says."""


class Limit(NamedTuple):
    """The rule that a request counts for."""

    key: Key
    at_most: int | None  # None: no limit
    title: str = ""


@lru_cache(maxsize=256)
def limit_of(rule: Rule) -> Limit:
    """Return what the requests of a rule's askers count for. Each asker sends many: 2 us without the cache."""
    granted = (*sorted(pattern.completed for pattern in rule.models), *sorted(rule.also), f"{rule.max_active}")
    return Limit(_key(rule.who) or granted, rule.max_active, rule.title)


def active_limits(specs: Sequence[RuleSpec]) -> dict[Key, int | None]:
    """Return the limits that the settings give now, for requests that came under earlier ones."""
    return {_key(map(Entry.read, spec.who)): spec.max_active for spec in reversed(specs)}


def _key(who: Iterable[Entry]) -> Key:
    return tuple(f"{entry.kind}:{entry.text}" for entry in who)


def places_left(
    waiting: Iterable[Limit | None], sent: Iterable[Limit | None], now: Mapping[Key, int | None]
) -> dict[Key, int]:
    """Return how many more requests Ollama may have, for each rule with a limit that one of `waiting` counts for.

    `sent` are the limits of what Ollama has, and `now` are limits that a reload changed.
    """
    limits = {each.key: each.at_most for each in waiting if each is not None}
    if not limits:
        return {}
    counts = Counter(each.key for each in sent if each is not None)
    most = {key: now.get(key, at_most) for key, at_most in limits.items()}
    return {key: at_most - counts[key] for key, at_most in most.items() if at_most is not None}


class Wish(NamedTuple):
    """A request that waits, as far as the limits need to know it."""

    number: int
    limit: Limit | None
    ready: bool  # it needs no load
    late: bool  # it has waited long


def held_back(wishes: Iterable[Wish], left: Mapping[Key, int]) -> set[int]:
    """Return which of these their rules hold back; the ones that are to be served first come first.

    A late request for which a model must be loaded is passed by no later one of its rule, or they could take its place
    without end. So that its load serves it, it doesn't pass an earlier one either.
    """
    held: set[int] = set()
    ready: Counter[Key] = Counter()  # those before
    late: Counter[Key] = Counter()  # those before that need a load
    for each in wishes:
        if each.limit is None or each.limit.key not in left:
            continue
        key = each.limit.key
        before = late[key] if each.ready else ready[key] + late[key] if each.late else 0
        if before >= left[key]:
            held.add(each.number)
        ready[key] += each.ready
        late[key] += each.late and not each.ready
    return held
