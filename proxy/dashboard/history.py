"""The history of a period as the page shows it: totals, bars, distributions and tables, all for one filter.

Totals have the names and the meaning of `logs --summary --json`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from proxy.dashboard.counts import Counts, Sum
from proxy.dashboard.index.intake import HOUR, VERIFY
from proxy.dashboard.index.measures import Measure, distribution, place, shown_bounds
from proxy.dashboard.index.reader import bars
from proxy.logs.logfile import utc
from proxy.manage.logs.tallies import DENIED

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from proxy.dashboard.filters import Filter, Period
    from proxy.dashboard.index.reader import Reader

ROWS = 100
"""Rows of a table."""

BANDS = 7
"""Devices or models with bars of their own. The others share one."""

KINDS = ("complete", "cut", "cancelled", "failed", "refused", "redirected", "preflight", "broken_off")

_PARTIES = {"downstream": "the client", "upstream": "Ollama", "proxy": "the proxy", "cancelled": "the owner"}


def history(reader: Reader, period: Period, wanted: Filter) -> dict[str, Any]:
    """Return the whole answer, except for the state of the index. `reader` must stay at one moment meanwhile."""
    counts = Counts(reader, period, wanted)
    devices, models = counts.by(lambda each: (each.device,)), counts.by(lambda each: (each.model,), of_models=True)
    refusals = counts.by(lambda each: (each.reason, each.device), kinds={"refused"})
    reasons = counts.by(lambda each: (each.reason,), kinds={"refused"})
    return {
        "period": _period(counts, period),
        "filter": asdict(wanted),
        "reaches": utc(counts.reach[0] / 1000) if counts.reach else None,
        "totals": _totals(counts),
        "series": _series(counts, devices, models, period.now),
        "distributions": {each.name.lower(): distribution(counts.whole.bins.get(each, {})) for each in Measure},
        "devices": [{**row, "user": counts.users.get(row["name"])} for row in _rows(devices)],
        "models": _rows(models),
        "refusals": _listed(refusals, "reason", "device"),
        "reasons": _listed(reasons, "reason"),
        "first_seen": _first_seen(counts, period.since),
        "ended": _ended(counts),
        "context_full": _listed(
            counts.by(lambda each: (each.device, each.model) if each.context_full else None), *_BOTH
        ),
        "egress": _listed(counts.by(lambda each: (each.device, each.model) if each.egress else None), *_BOTH),
        "denied": _denied(refusals),
        "dropped": _dropped(counts),
        "more": {
            name: max(0, len(table) - ROWS)
            for name, table in (("devices", devices), ("models", models), ("refusals", refusals))
        },
    }


_BOTH = ("device", "model")

Table = dict[tuple[str, ...], Sum]


def _period(counts: Counts, period: Period) -> dict[str, Any]:
    shown = {"name": period.name, "since": utc(period.since / 1000) if period.since else None}
    return {**shown, "now": utc(period.now / 1000), "step": counts.span.step}


def _totals(counts: Counts) -> dict[str, Any]:
    kinds, whole = counts.kinds, counts.whole
    spans = [each for each in counts.sums.values() if each.first]
    return {
        "requests": whole.requests,
        "tokens_in": whole.tokens_in,
        "tokens_out": whole.tokens_out,
        "from": utc(min(each.first for each in spans) / 1000) if spans else None,
        "to": utc(max(each.last for each in spans) / 1000) if spans else None,
        **{kind: kinds[kind] for kind in KINDS},
        "context_full": sum(each.requests for number, each in counts.counted() if counts.all[number].context_full),
        "egress": sum(each.requests for number, each in counts.counted() if counts.all[number].egress),
        "missing_lines": kinds["missing"],
        "verify": kinds[VERIFY],
        **_quantiles(counts, Measure.TOKENS_PER_SECOND, "tokens_per_second"),
        **_quantiles(counts, Measure.FIRST_TOKEN_MS, "first_token_ms"),
        "waited": counts.whole.count(Measure.WAITED_MS),
        **_quantiles(counts, Measure.WAITED_MS, "waited_ms"),
        "busiest_hour": _busiest(counts),
    }


def _quantiles(counts: Counts, measure: Measure, name: str) -> dict[str, float | None]:
    """Return the median and the 90th percentile, as `logs --summary` defines them."""
    count = counts.whole.count(measure)
    if not count:
        return {name: None, f"{name}_p90": None}
    middle = {(count - 1) // 2, count // 2}
    return {name: counts.value(measure, middle), f"{name}_p90": counts.value(measure, {math.ceil(count * 0.9) - 1})}


def _busiest(counts: Counts) -> dict[str, Any] | None:
    hour, requests = max(counts.hours().items(), key=lambda each: (each[1], each[0]), default=(0, 0))
    return {"begins": f"{utc(hour * HOUR / 1000)[:19]}Z", "requests": requests} if requests else None


def _series(counts: Counts, devices: Table, models: Table, now: int) -> dict[str, Any]:
    """Return the requests and tokens of each bar, by device, by model and by kind."""
    times = bars(counts.span, counts.reach[0] if counts.reach else now, now)
    of_devices = _Bands(_largest(devices), len(times))
    of_models = _Bands(_largest(models), len(times))
    kinds = {kind: [0] * len(times) for kind in KINDS if counts.kinds[kind]}
    rows: dict[int, tuple[list[list[list[int]]], list[int]]] = {}  # the bars that a combination counts in
    for number, _ in counts.counted():
        each = counts.all[number]
        bands = [of_devices.of(each.device), *([of_models.of(each.model)] if each.model else [])]
        rows[number] = bands, kinds[each.kind]
    at = {time: bar for bar, time in enumerate(times)}
    for begins, combination, requests, tokens_in, tokens_out in counts.cells:
        bar = at.get(begins, -1)
        if bar < 0:  # the time zone has changed since, or the clock was wrong
            bar = bisect_right(times, begins) - 1
        if bar < 0:
            continue
        bands, of_kind = rows[combination]
        of_kind[bar] += requests
        for of_requests, of_tokens_in, of_tokens_out in bands:
            of_requests[bar] += requests
            of_tokens_in[bar] += tokens_in
            of_tokens_out[bar] += tokens_out
    in_order = [{"name": kind, "requests": row} for kind, row in kinds.items()]
    return {"times": times, "devices": of_devices.shown(), "models": of_models.shown(), "kinds": in_order}


class _Bands:
    """Bars for each of the largest devices or models, and for all others together."""

    def __init__(self, largest: Sequence[tuple[tuple[str, ...], Sum]], length: int) -> None:
        names: list[str | None] = [key[0] for key, _ in largest[:BANDS]]
        self._others = [None] if len(largest) > BANDS else []
        self._bars = {name: [[0] * length for _ in range(3)] for name in [*names, *self._others]}

    def of(self, name: str) -> list[list[int]]:
        """Return the bars of a name: requests, tokens read, tokens written."""
        return self._bars.get(name) or self._bars[None]

    def shown(self) -> list[dict[str, Any]]:
        """Return the bands, the largest first."""
        keys = ("requests", "tokens_in", "tokens_out")
        return [{"name": name, **dict(zip(keys, rows, strict=True))} for name, rows in self._bars.items()]


def _largest(table: Table) -> list[tuple[tuple[str, ...], Sum]]:
    return sorted(table.items(), key=lambda each: (-each[1].requests, each[0]))


def _rows(table: Table) -> list[dict[str, Any]]:
    """Return a row for each device or model."""
    whole = sum(each.requests for each in table.values())
    return [
        {
            "name": key[0],
            "requests": each.requests,
            "share": round(each.requests / whole, 4) if whole else 0.0,
            "tokens_in": each.tokens_in,
            "tokens_out": each.tokens_out,
            "refused": each.refused,
            "first": utc(each.first / 1000),
            "last": utc(each.last / 1000),
            "first_token_ms": _middle(each, Measure.FIRST_TOKEN_MS),
            "tokens_per_second": _middle(each, Measure.TOKENS_PER_SECOND),
        }
        for key, each in _largest(table)[:ROWS]
    ]


def _middle(of: Sum, measure: Measure) -> tuple[float, float] | None:
    """Return two values that the median is between. With an even count, these are around the two middle values."""
    count = of.count(measure)
    if not count:
        return None
    lower, upper = (place(of.bins[measure], number)[0] for number in ((count - 1) // 2, count // 2))
    return shown_bounds(lower)[0], shown_bounds(upper)[1]


def _listed(table: Table, *names: str) -> list[dict[str, Any]]:
    """Return the rows of a table, the largest first, with the parts of each key by name."""
    return [
        {**dict(zip(names, key, strict=True)), "requests": each.requests, "last": utc(each.last / 1000)}
        for key, each in _largest(table)[:ROWS]
    ]


def _ended(counts: Counts) -> list[dict[str, Any]]:
    """Return the requests that ended early, by who ended them and why."""
    table = counts.by(lambda each: (each.ended, each.reason), kinds={"cut", "cancelled", "failed"})
    return [
        {
            **row,
            "reason": row["reason"] or None,
            "party": _PARTIES.get(row["ended"].partition("/")[0], "Ollama"),
            "phase": row["ended"].partition("/")[2] or None,
        }
        for row in _listed(table, "ended", "reason")
    ]


def _denied(refusals: Table) -> list[dict[str, Any]]:
    return _listed({key: each for key, each in refusals.items() if key[0] in DENIED}, "reason", "device")


def _dropped(counts: Counts) -> list[dict[str, Any]]:
    """Return the options that the proxy removed. A request that lost several is counted with each."""
    table: Table = {}
    for number, each in counts.counted():
        for option in counts.all[number].dropped:
            table.setdefault((counts.all[number].device, option), Sum()).add(each)
    return _listed(table, "device", "option")


def _first_seen(counts: Counts, since: int) -> list[dict[str, Any]]:
    """Return the devices whose first line in the log is in the period, the latest first."""
    seen: Iterable[tuple[str, int]] = sorted(counts.first_seen.items(), key=lambda each: each[1], reverse=True)
    devices = counts.devices_met()
    return [
        {"device": name, "user": counts.users.get(name), "time": utc(time / 1000)}
        for name, time in seen
        if time >= since and name in devices
    ][:ROWS]
