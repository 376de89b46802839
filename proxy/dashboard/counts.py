"""The index's counts for one period and filter, which can be added up by device, model or anything else."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from proxy.dashboard.filters import Known
from proxy.dashboard.index.intake import BETWEEN, GAP, HOUR, VERIFY

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from proxy.dashboard.filters import Filter, Period
    from proxy.dashboard.index.intake import Combination
    from proxy.dashboard.index.measures import Measure
    from proxy.dashboard.index.reader import Reader, Total


class Sum:
    """The totals of some requests."""

    def __init__(self, total: Total | None = None) -> None:
        self.requests, self.tokens_in, self.tokens_out = total[1:4] if total else (0, 0, 0)
        self.first, self.last = total[4:6] if total else (0, 0)  # milliseconds since 1970; 0 if no line has a time
        self.refused = 0
        self.bins: dict[Measure, dict[int, int]] = {}  # only measures that some request has

    def add(self, other: Sum) -> None:
        """Add the totals of other requests."""
        self.requests += other.requests
        self.tokens_in += other.tokens_in
        self.tokens_out += other.tokens_out
        self.refused += other.refused
        self.first = min(self.first or other.first, other.first or self.first)
        self.last = max(self.last, other.last)
        for measure, counted in other.bins.items():
            bins = self.bins.setdefault(measure, {})
            for which, count in counted.items():
                bins[which] = bins.get(which, 0) + count

    def count(self, measure: Measure) -> int:
        """Return how many requests have a measure."""
        return sum(self.bins.get(measure, {}).values())


def known_combinations(reader: Reader) -> dict[int, Known]:
    """Return all combinations by their numbers, as the page has them."""
    names = reader.names()

    def known(each: Combination) -> Known:
        device = each.name or names.get(each.peer, each.peer)
        dropped = tuple(each.dropped.split(BETWEEN)) if each.dropped else ()
        return Known(device, *each[2:6], bool(each.context_full), bool(each.egress), dropped)

    return {number: known(each) for number, each in reader.combinations().items()}


class Counts:
    """What was counted."""

    def __init__(self, reader: Reader, period: Period, wanted: Filter) -> None:
        self._reader = reader
        self.span = reader.span(period.name, period.since, period.now)
        self.reach = reader.reach()  # the times of the first and the last line in the log
        self._names = reader.names()
        self.all = known_combinations(reader)
        found = {number for number, each in self.all.items() if wanted.takes(each)}
        self.numbers = {number for number in found if self.all[number].kind not in {VERIFY, GAP}}
        # Without a filter, every row that has a measure counts. Checking the combination of each row would take time.
        self._measured = None if wanted.is_empty else self.numbers
        self.cells = reader.cells(self.span, self._measured)
        if wanted.is_empty:
            self.cells = [cell for cell in self.cells if cell[1] in self.numbers]
        totals = reader.totals(self.span, None if wanted.is_empty else found)
        self.sums = {total.combination: Sum(total) for total in totals}
        for combination, measure, which, count in reader.bins(self.span, self._measured):
            bins = self.sums[combination].bins.setdefault(measure, {})
            bins[which] = bins.get(which, 0) + count
        self.kinds = Counter[str]()
        for number, each in self.sums.items():
            self.kinds[self.all[number].kind] += each.requests
            each.refused = each.requests if self.all[number].kind == "refused" else 0
        self.whole = Sum()
        for _, each in self.counted():
            self.whole.add(each)
        self.first_seen, self.users = self._seen()

    def counted(self) -> Iterator[tuple[int, Sum]]:
        """Yield the combinations of ordinary requests with their totals."""
        return ((number, each) for number, each in self.sums.items() if number in self.numbers)

    def by(
        self,
        key: Callable[[Known], tuple[str, ...] | None],
        *,
        kinds: Collection[str] = (),
        of_models: bool = False,
    ) -> dict[tuple[str, ...], Sum]:
        """Return totals by key, leaving out requests whose key is None.

        If `kinds` are given, only these count. `of_models` leaves out requests that name no model.
        """
        found: dict[tuple[str, ...], Sum] = {}
        for number, each in self.counted():
            known = self.all[number]
            if (kinds and known.kind not in kinds) or (of_models and not known.model):
                continue
            if (which := key(known)) is not None:
                if which not in found:
                    found[which] = Sum()
                found[which].add(each)
        return found

    def value(self, measure: Measure, numbers: Collection[int]) -> float:
        """Return the mean of the values at these places in ascending order."""
        return round(self._reader.quantile(measure, self.span, self._measured, self.whole.bins[measure], numbers), 3)

    def hours(self) -> dict[int, int]:
        """Return the requests of each hour since 1970."""
        if self.span.table == "days":
            return self._reader.hours(self.span, self.numbers)
        found = Counter[int]()
        for begins, _, requests, *_ in self.cells:
            found[begins * 1000 // HOUR] += requests
        return found

    def devices_met(self) -> set[str]:
        """Return the devices of all requests, including those of `verify`."""
        return {self.all[number].device for number in self.sums if self.all[number].kind != GAP}

    def _seen(self) -> tuple[dict[str, int], dict[str, str]]:
        """Return when the log first names each device, and the user of each."""
        first: dict[str, int] = {}
        users: dict[str, str] = {}
        for name, peer, time, user in self._reader.seen():
            known = name or self._names.get(peer, peer)
            first[known] = min(first.get(known, time), time)
            if user:
                users.setdefault(known, user)
        return first, users
