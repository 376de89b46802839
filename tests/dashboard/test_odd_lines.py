"""A line that no proxy writes breaks nothing: all other lines are counted and shown as if it weren't there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from proxy.dashboard import live
from proxy.dashboard.filters import PERIODS
from proxy.dashboard.index.intake import LATEST, milliseconds
from tests.dashboard.indexed import USUAL, Indexed, in_zone, line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEYS = (
    "time",
    "peer",
    "device",
    "status",
    "tokens_in",
    "tokens_out",
    "first_byte_ms",
    "waited_ms",
    "audit_gap",
    "more",
)

VALUES = {
    "not_a_number": "NaN",
    "infinite": "1e999",
    "largest_float": "1e308",
    "smallest_float": "-1e308",
    "beyond_64_bits": "9" * 30,
    "beyond_64_bits_below_0": "-" + "9" * 30,
    "nul": r'"\u0000"',
    "half_a_character": r'"\ud800"',
    "deep": "[" * 900 + "]" * 900,
    "deeper": "[" * 100_000,
    "key_of_all_objects": '{"__proto__": {"constructor": 1}}',
}


@pytest.fixture(params=["XXX+12", "XXX-14"], ids=["west", "east"])
def far_zone(request: pytest.FixtureRequest) -> Iterator[None]:
    """Be at the edge of the map, where the first or the last day of the calendar has no beginning."""
    with in_zone(request.param):
        yield


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("key", KEYS)
def test_values(tmp_path: Path, key: str, value: str) -> None:
    """Whatever a value is, history and lines answer with JSON that a browser can read, and have the lines around it."""
    log = Indexed(tmp_path)
    odd = json.dumps({name: each for name, each in USUAL.items() if name != key})[:-1] + f', "{key}": {value}}}\n'
    log.append(line(), odd.encode(), odd.encode(), line())
    for period in PERIODS:
        json.dumps([log.history(period), log.lines(period)], allow_nan=False)
    assert log.history()["totals"]["requests"] >= 2
    assert len(log.lines()["lines"]) >= 2


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_refusals(tmp_path: Path, value: str) -> None:
    """The last refusals are those lines that are JSON."""
    log = Indexed(tmp_path)
    log.append(line(verdict="refused", reason="first"), f'{{"verdict": "refused", "count": {value}}}\n'.encode())
    found = live.last_refusals(str(log.path))
    json.dumps(found, allow_nan=False)
    assert found[-1]["reason"] == "first"


@pytest.mark.usefixtures("far_zone")
@pytest.mark.parametrize(
    "text",
    [
        "0001-01-01T00:00:00.000Z",
        "0001-01-01T00:00:00+23:59",
        "1970-01-01T00:00:-9.000Z",
        "9998-12-31T23:59:59.999Z",
        "9999-12-31T23:59:59.999Z",
        "9999-12-31T23:59:59-23:59",
    ],
)
def test_times_at_the_ends_of_the_calendar(tmp_path: Path, text: str) -> None:
    """A time outside of all that a calendar has in every zone is none."""
    log = Indexed(tmp_path)
    log.append(line(), line(time=text))
    assert log.history()["totals"]["requests"] == 2
    assert -10_000 < milliseconds(text) < LATEST


def test_user_is_escaped(tmp_path: Path) -> None:
    """The name of a user is shown as all other names are: with nothing in it that steers a reader."""
    log = Indexed(tmp_path)
    log.append(json.dumps(USUAL | {"user": "me\u202e\x1b[31m"}).encode() + b"\n")
    (device,) = log.history()["devices"]
    assert device["user"] == r"me\u202e\x1b[31m"
