"""What came of one attack on one proxy, judged by what its upstream saw."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from proxy.policy.routes import ROUTES
from tests.support.hostile.attacker import MARK
from tests.support.ollama_routes import ollama_routes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.support.hostile.attack_corpus import Attack, Reached
    from tests.support.hostile.strict_upstream import Record, Seen

TABLE = {row.name for row in ROUTES if not row.opt_in}

# Field names that this proxy keeps from Ollama by its own choice: another may pass them on.
_OWN_CHOICE = re.compile(r"accept-encoding|referer|origin|expect|sec-fetch-.*|access-control-request-.*").fullmatch


class Kind(StrEnum):
    """In which way something got through, or went wrong; the worst first."""

    SMUGGLED = "smuggled"  # the forbidden request that was hidden in another
    OFF_TABLE = "off the table"  # a request that Ollama may take for something that isn't a row
    GARBLED = "garbled"  # bytes that no strict reader takes for a request
    SERVED = "served"  # a row that must not have been served to this request
    FIELD = "field"  # one that is forged, a credential, or for one hop only
    BROKE = "broke down"  # ended, restarted, or answered 500
    TRACEBACK = "traceback"  # shown in its log
    WAITED = "left waiting"  # no answer to what is answered here


LET_THROUGH = (Kind.SMUGGLED, Kind.OFF_TABLE, Kind.GARBLED, Kind.SERVED, Kind.FIELD)


@dataclass
class Finding:
    """What came of one attack on one proxy."""

    kinds: list[Kind] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    stricter: bool = False  # refused, although it may be let through


def _counted(requests: Iterable[Reached | Seen]) -> Counter[tuple[str, bytes, bytes]]:
    """Count requests by what they mean: another proxy may undo an escape, or make one."""
    return Counter((each.method, unquote_to_bytes(each.target), each.content) for each in requests)


def _attackers(record: Record) -> list[Seen]:
    return [request for request in record.requests if request.values("user-agent") != [MARK]]


def reached(attack: Attack, record: Record) -> bool:
    """Return whether all arrived that may."""
    return _counted(attack.whole.reaches) <= _counted(_attackers(record))


def let_through(attack: Attack, record: Record) -> list[Kind]:
    """Return in which ways something arrived that mustn't."""
    left = _counted(attack.elsewhere)
    kinds = {Kind.GARBLED} if record.faults else set()
    for request in _attackers(record):
        (key,) = _counted([request])
        if not left[key]:
            kinds.add(_kind(request))
        left[key] -= 1
        names = {name for name, _ in (*request.fields, *request.trailers) if not _OWN_CHOICE(name)}
        if names & set(attack.absent):
            kinds.add(Kind.FIELD)
    return sorted(kinds, key=list(Kind).index)


def _kind(request: Seen) -> Kind:
    readings = ollama_routes(request.method, request.target)
    if "DELETE /api/delete" in readings:
        return Kind.SMUGGLED
    return Kind.SERVED if readings and readings <= TABLE else Kind.OFF_TABLE
