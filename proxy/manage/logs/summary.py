"""Totals of an access log: requests, tokens, speed, refusals, devices and models.

It keeps only numbers of a line, about 20 bytes for each, whatever the log's size.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from proxy.manage.logs.lines import cancelled, context_full, cut, device, failed, first_token, number, speed, text
from proxy.manage.logs.tallies import Tallies
from proxy.manage.verify.asking.asking import USER_AGENT
from proxy.policy.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from proxy.manage.logs.lines import Record, Wanted

NO_REQUEST = "none"
"""The reason given for what was refused without one, which no line of ours is."""

PROVOKED = frozenset({
    Reason.CONTENT_TOO_LARGE,
    Reason.HOST_NOT_ALLOWED,
    Reason.LEAVES_THE_MAC,
    Reason.METHOD_NOT_SERVED,
    Reason.MODEL_NOT_ALLOWED,
    Reason.MODEL_UNREADABLE,
    Reason.ORIGIN_NOT_ALLOWED,
    Reason.PATH_NOT_SERVED,
    Reason.TARGET_FORM,
    Reason.TARGET_NOT_PLAIN,
    Reason.WEB_SEARCH,
})  # fmt: skip
"""The reasons for which `verify` gets itself refused. A refusal for any other is counted, whatever the request says.

`asker_not_allowed` isn't one: a device that no access rule names is what the owner wants to see, whatever it runs.
"""


def is_verifys(record: Record) -> bool:
    """Return whether a request says that it is one of `verify`'s, and may be: any client can send its User-Agent."""
    if text(record, "user_agent") != USER_AGENT:
        return False
    return record.get("verdict") != "refused" or text(record, "reason") in PROVOKED


@dataclass(slots=True)
class _Group:
    """The requests of one device or model."""

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    speeds: array[float] = field(default_factory=lambda: array("f"))  # tokens a second
    firsts: array[float] = field(default_factory=lambda: array("f"))  # milliseconds to the first token

    def add(self, record: Record, rate: float | None, first: float | None) -> None:
        self.requests += 1
        self.tokens_in += int(number(record, "tokens_in") or 0)
        self.tokens_out += int(number(record, "tokens_out") or 0)
        if rate is not None:
            self.speeds.append(rate)
        if first is not None:
            self.firsts.append(first)

    def join(self, other: _Group) -> None:
        self.requests += other.requests
        self.tokens_in += other.tokens_in
        self.tokens_out += other.tokens_out
        self.speeds.extend(other.speeds)
        self.firsts.extend(other.firsts)

    def totals(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "tokens_per_second": _median(self.speeds),
            "first_token_ms": _median(self.firsts),
        }


@dataclass(slots=True)
class _Refused:
    """The refusals for one reason."""

    requests: int = 0
    device: str = ""  # the last one's
    peer: str = ""
    last: str = ""


class Summary:
    """Takes lines one by one; `totals` returns the totals. It needs all lines, in their order."""

    def __init__(self, wanted: Wanted) -> None:
        """Count the lines that are wanted; of the others it is only noted which devices they are of."""
        self._wanted = wanted
        self._kinds = Counter[str]()
        self._hours = Counter[str]()
        self._refused: dict[str, _Refused] = {}
        self._tallies = Tallies()
        self._models: dict[str, _Group] = {}
        self._devices: dict[tuple[str, str], _Group] = {}  # by name, or by "" and the address
        self._seen: dict[tuple[str, str], tuple[str, str]] = {}  # when first, and whose it is
        self._names: dict[str, str] = {}  # of addresses, from later lines
        self._verifys = Counter[tuple[str, str]]()  # requests that say they are `verify`'s, by device as above
        self._from = self._to = ""

    def add(self, record: Record) -> None:
        """Take a line."""
        time, peer, name = text(record, "time"), text(record, "peer"), text(record, "device")
        key = (name, "" if name else peer)
        if name:
            self._names[peer] = name
        if "audit_gap" not in record and (key not in self._seen or time < self._seen[key][0]):
            self._seen[key] = (time, text(record, "user"))
        if not self._wanted(record):
            return
        self._from, self._to = min(self._from or time, time), max(self._to, time)
        if "audit_gap" in record:
            self._kinds["missing"] += int(number(record, "audit_gap") or 0)
            return
        if is_verifys(record):
            self._verifys[key] += 1
            return
        rate, first = speed(record), first_token(record)
        self._devices.setdefault(key, _Group()).add(record, rate, first)
        if model := text(record, "model").removesuffix(":latest"):
            self._models.setdefault(model, _Group()).add(record, rate, first)
        self._hours[time[:13]] += 1
        kind = kind_of(record)
        self._kinds[kind] += 1
        self._kinds["context_full"] += context_full(record)
        if kind == "refused":
            self._refuse(record, time)
        self._tallies.add(key, record)

    def _refuse(self, record: Record, time: str) -> None:
        refused = self._refused.setdefault(text(record, "reason") or NO_REQUEST, _Refused())
        refused.requests += 1
        if time >= refused.last:
            refused.last, refused.device, refused.peer = time, device(record), text(record, "peer")

    def totals(self) -> dict[str, Any]:
        """Return all totals, as `logs --summary --json` prints them. An unknown value is None."""
        devices = self._named()
        whole = _Group()
        for group in devices.values():
            whole.join(group)
        verifys = self._named_verifys()
        hour, busiest = max(self._hours.items(), key=lambda each: (each[1], each[0]), default=("", 0))
        kinds = ("complete", "cut", "cancelled", "failed", "refused", "redirected", "preflight", "broken_off")
        return {
            "from": self._from or None,
            "to": self._to or None,
            "since": self._wanted.since or None,
            **whole.totals(),
            **{kind: self._kinds[kind] for kind in kinds},
            "context_full": self._kinds["context_full"],
            "missing_lines": self._kinds["missing"],
            "verify": {
                "requests": verifys.total(),
                "devices": [{"device": name, "requests": count} for name, count in verifys.most_common()],
            },
            "first_token_ms_p90": _nine_of_ten(whole.firsts),
            "busiest_hour": {"begins": f"{hour}:00:00Z", "requests": busiest} if hour else None,
            "refusals": [
                {"reason": reason, "requests": each.requests, "last": each.last, "device": self._name(each)}
                for reason, each in sorted(self._refused.items(), key=lambda one: -one[1].requests)
            ],
            **self._tallies.tables(self._names),
            "first_seen": list(self._first_seen(devices.keys() | verifys.keys())),
            "devices": list(_table("device", devices)),
            "models": list(_table("model", self._models)),
        }

    def _name(self, refused: _Refused) -> str:
        return self._names.get(refused.peer, refused.device) if refused.device == refused.peer else refused.device

    def _named(self) -> dict[str, _Group]:
        """Return the devices by name; a line without one belongs to the device that has its address in others."""
        found: dict[str, _Group] = {}
        for (name, peer), group in self._devices.items():
            found.setdefault(name or self._names.get(peer, peer), _Group()).join(group)
        return found

    def _named_verifys(self) -> Counter[str]:
        """Return how many requests of each device say they are `verify`'s."""
        found = Counter[str]()
        for (name, peer), count in self._verifys.items():
            found[name or self._names.get(peer, peer)] += count
        return found

    def _first_seen(self, devices: Collection[str]) -> Iterator[dict[str, str | None]]:
        """Yield the devices whose first line in all that is kept is one of the wanted span, the latest first."""
        first: dict[str, tuple[str, str]] = {}
        for (name, peer), (time, user) in self._seen.items():
            known = name or self._names.get(peer, peer)
            before, owner = first.get(known, (time, ""))
            first[known] = (min(before, time), owner or user)
        for name, (time, user) in sorted(first.items(), key=lambda each: each[1][0], reverse=True):
            if name in devices and time >= self._wanted.since:
                yield {"device": name, "user": user or None, "time": time}


def kind_of(record: Record) -> str:
    """Return what became of a request. Each is of one kind."""
    verdict = record.get("verdict")
    if verdict in {"refused", "redirected", "preflight"}:
        return str(verdict)
    if verdict is None:
        return "broken_off"
    if cancelled(record):
        return "cancelled"
    if failed(record):
        return "failed"
    return "cut" if cut(record) else "complete"


def _table(what: str, groups: Mapping[str, _Group]) -> Iterator[dict[str, Any]]:
    """Yield a row for each group, the largest first, with its share of their requests."""
    whole = sum(group.requests for group in groups.values())
    for name, group in sorted(groups.items(), key=lambda each: (-each[1].requests, each[0])):
        yield {what: name, "share": round(group.requests / whole, 4), **group.totals()}


def _median(values: array[float]) -> float | None:
    return round(median(values), 3) if values else None


def _nine_of_ten(values: Iterable[float]) -> float | None:
    """Return the least value that nine tenths of them don't exceed."""
    ordered = sorted(values)
    return round(ordered[math.ceil(len(ordered) * 0.9) - 1], 3) if ordered else None
