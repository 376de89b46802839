"""Count requests by who asked and by something else: why they were denied, where they went, what was dropped. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from proxy.manage.logs.lines import dropped, egress, text
from proxy.policy.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.manage.logs.lines import Record

DENIED = frozenset({Reason.ASKER_NOT_ALLOWED, Reason.IDENTITY_NEEDED, Reason.MODEL_NOT_ALLOWED})
"""The reasons for which the access rules refuse someone."""

MODELS = 10
"""Different models of one row that are kept: a client may ask for any name."""


@dataclass(slots=True)
class _Row:
    requests: int = 0
    user: str = ""  # the latest
    last: str = ""
    models: dict[str, None] = field(default_factory=dict)

    def join(self, other: _Row) -> None:
        self.requests += other.requests
        if other.last >= self.last:
            self.last, self.user = other.last, other.user or self.user
        self.models |= other.models


class Tallies:
    """The requests that the access rules denied, that may have left the Mac, and that lost options."""

    def __init__(self) -> None:
        self._denied, self._egress, self._dropped = _Tally("reason"), _Tally("model"), _Tally("option")

    def add(self, key: tuple[str, str], record: Record) -> None:
        """Take a line of the device `key`, which is its name, or nothing and its address."""
        if (reason := text(record, "reason")) in DENIED:
            self._denied.add(key, reason, record)
        if egress(record):
            self._egress.add(key, text(record, "model").removesuffix(":latest"), record)
        for option in dropped(record):
            self._dropped.add(key, option, record)

    def tables(self, names: Mapping[str, str]) -> dict[str, list[dict[str, Any]]]:
        """Return the tables; `names` are those of addresses, from other lines."""
        tallies = {"denied": self._denied, "egress": self._egress, "dropped": self._dropped}
        return {key: tally.rows(names) for key, tally in tallies.items()}


class _Tally:
    """The requests of each device, by `what`."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._rows: dict[tuple[str, str, str], _Row] = {}  # by device, its address if it has no name, and `what`

    def add(self, key: tuple[str, str], value: str, record: Record) -> None:
        row = self._rows.setdefault((*key, value), _Row())
        model = text(record, "model")
        row.join(_Row(1, text(record, "user"), text(record, "time"), {model: None} if model else {}))
        while len(row.models) > MODELS:
            row.models.popitem()

    def rows(self, names: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return a row for each device and value, the largest first."""
        found: dict[tuple[str, str], _Row] = {}
        for (name, peer, value), row in self._rows.items():
            found.setdefault((name or names.get(peer, peer), value), _Row()).join(row)
        ordered = sorted(found.items(), key=lambda each: (-each[1].requests, each[0]))
        return [
            {"device": device, "user": row.user or None, self._what: value}
            | {"requests": row.requests, "last": row.last, "models": [*row.models][:MODELS]}
            for (device, value), row in ordered
        ]
