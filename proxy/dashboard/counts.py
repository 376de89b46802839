"""All that the index counted of one period and filter, ready to be added up in any way."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from proxy.dashboard.filters import Known
from proxy.dashboard.index.intake import GAP, HOUR, VERIFY
from proxy.dashboard.index.measures import Measure

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from proxy.dashboard.filters import Filter, Period
    from proxy.dashboard.index.intake import Combination
    from proxy.dashboard.index.reader import Cell, Reader


@dataclass(slots=True)
class Sum:
    """What some cells add up to."""

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    refused: int = 0
    first: int = 0  # milliseconds since 1970; 0: nothing yet
    last: int = 0
    bins: dict[Measure, Counter[int]] = field(default_factory=lambda: {measure: Counter() for measure in Measure})

    def add(self, other: Cell | Sum) -> None:
        """Add a cell, or what cells add up to."""
        self.requests += other.requests
        self.tokens_in += other.tokens_in
        self.tokens_out += other.tokens_out
        self.first = min(self.first or other.first, other.first)
        self.last = max(self.last, other.last)
        if isinstance(other, Sum):
            self.refused += other.refused
            for measure, counted in other.bins.items():
                if counted:
                    self.bins[measure].update(counted)


def known_combinations(reader: Reader) -> dict[int, Known]:
    """Return all combinations by their numbers, as the page has them."""
    names = reader.names()

    def known(each: Combination) -> Known:
        device = each.name or names.get(each.peer, each.peer)
        return Known(device, *each[2:6], bool(each.context_full), bool(each.egress))

    return {number: known(each) for number, each in reader.combinations().items()}


class Counts:
    """What was counted."""

    def __init__(self, reader: Reader, period: Period, wanted: Filter) -> None:
        self._reader = reader
        self.span = reader.span(period.name, period.since, period.now)
        self.reach = reader.reach()  # times of the first and the last line of all
        self._names = reader.names()
        self.all = known_combinations(reader)
        found = {number for number, each in self.all.items() if wanted.takes(each)}
        self.numbers = {number for number in found if self.all[number].kind not in {VERIFY, GAP}}
        self.cells = list(reader.cells(self.span, None if wanted.is_empty else found))
        self.sums: dict[int, Sum] = {}  # by combinations
        for cell in self.cells:
            self.sums.setdefault(cell.combination, Sum()).add(cell)
        for combination, measure, which, count in reader.bins(self.span, self.numbers):
            self.sums[combination].bins[measure][which] += count
        self.kinds = Counter[str]()
        for number, each in self.sums.items():
            self.kinds[self.all[number].kind] += each.requests
            each.refused = each.requests if self.all[number].kind == "refused" else 0
        self.whole = Sum()
        for _, each in self.counted():
            self.whole.add(each)
        self.bins = self.whole.bins
        self.first_seen, self.users = self._seen()

    def counted(self) -> Iterator[tuple[int, Sum]]:
        """Yield the combinations of ordinary requests, and what each adds up to."""
        return ((number, each) for number, each in self.sums.items() if number in self.numbers)

    def by(
        self,
        key: Callable[[Known], tuple[str, ...] | None],
        *,
        kinds: Collection[str] = (),
        of_models: bool = False,
    ) -> dict[tuple[str, ...], Sum]:
        """Return what requests with the same key add up to; without those whose key is None.

        `kinds` are all that count, `of_models` leaves out requests that name no model.
        """
        found: dict[tuple[str, ...], Sum] = {}
        for number, each in self.counted():
            known = self.all[number]
            if (kinds and known.kind not in kinds) or (of_models and not known.model):
                continue
            if (which := key(known)) is not None:
                found.setdefault(which, Sum()).add(each)
        return found

    def value(self, measure: Measure, numbers: Collection[int]) -> float:
        """Return the mean of the values with these numbers in ascending order."""
        return round(self._reader.quantile(measure, self.span, self.numbers, self.bins[measure], numbers), 3)

    def hours(self) -> dict[int, int]:
        """Return the requests of each hour since 1970."""
        if self.span.table == "days":
            return self._reader.hours(self.span, self.numbers)
        found = Counter[int]()
        for cell in self.cells:
            if cell.combination in self.numbers:
                found[cell.begins * 1000 // HOUR] += cell.requests
        return found

    def devices_met(self) -> set[str]:
        """Return the devices of all requests, also of `verify`'s."""
        return {self.all[number].device for number in self.sums if self.all[number].kind != GAP}

    def _seen(self) -> tuple[dict[str, int], dict[str, str]]:
        """Return when each device was first seen, in all of the log, and whose it is."""
        first: dict[str, int] = {}
        users: dict[str, str] = {}
        for name, peer, time, user in self._reader.seen():
            known = name or self._names.get(peer, peer)
            first[known] = min(first.get(known, time), time)
            if user:
                users.setdefault(known, user)
        return first, users
