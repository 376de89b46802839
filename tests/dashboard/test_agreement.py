"""The page and `logs --summary` never contradict each other: both say the same of the same log."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.dashboard.indexed import Indexed, line
from tests.dashboard.random_log import BEGINS, DAY, random_lines

if TYPE_CHECKING:
    from pathlib import Path

SAME = (
    *("requests", "tokens_in", "tokens_out", "from", "to", "complete", "cut", "cancelled", "failed", "refused"),
    *("redirected", "preflight", "broken_off", "context_full", "missing_lines", "busiest_hour"),
)
"""Totals that are equal."""

NEARLY = ("tokens_per_second", "first_token_ms", "first_token_ms_p90")
"""Totals that the summary keeps with seven digits."""

FILES = 4


@pytest.fixture(params=[1, 2, 3], ids="seed_{}".format)
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Indexed:
    """Give a random log of nine days in several files, of which some lines name no device."""
    made = Indexed(tmp_path, now=BEGINS + 9 * DAY)
    lines = list(random_lines(6000, seed=request.param, days=9.0))
    size = len(lines) // FILES
    for number in range(FILES):
        made.append(*lines[number * size : (number + 1) * size], number=FILES - 1 - number)
    return made


def agrees(found: dict[str, Any], summary: dict[str, Any]) -> None:
    """Check that an answer and a summary say the same."""
    totals = found["totals"]
    assert {key: totals[key] for key in SAME} == {key: summary[key] for key in SAME}
    assert [totals[key] for key in NEARLY] == [pytest.approx(summary[key], rel=1e-5) for key in NEARLY]
    assert totals["verify"] == summary["verify"]["requests"]
    for table, name in (("devices", "device"), ("models", "model")):
        keys = ("requests", "tokens_in", "tokens_out", "share")
        shown = [(each["name"], *(each[key] for key in keys)) for each in found[table]]
        assert shown == [(each[name], *(each[key] for key in keys)) for each in summary[table]]
        for row, other in zip(found[table], summary[table], strict=True):
            is_between(row["first_token_ms"], other["first_token_ms"])
            is_between(row["tokens_per_second"], other["tokens_per_second"])
    assert {each["reason"]: (each["requests"], each["last"]) for each in found["reasons"]} == {
        each["reason"]: (each["requests"], each["last"]) for each in summary["refusals"]
    }
    assert found["first_seen"] == summary["first_seen"]


def is_between(bounds: tuple[float, float] | None, median: float | None) -> None:
    """Check that a median is where a table says."""
    assert (bounds is None) == (median is None)
    if bounds is not None and median is not None:
        assert bounds[0] <= median <= bounds[1]


@pytest.mark.parametrize("period", ["all", "week", "day", "hour"])
def test_of_a_random_log(log: Indexed, period: str) -> None:
    """Totals, tables and medians of each period are those of a summary since the same time."""
    found = log.history(period)
    agrees(found, log.summary(found["period"]["since"]))


def test_after_files_are_gone(log: Indexed) -> None:
    """What was only in a removed file isn't counted any more, nor does it name devices."""
    log.history()
    log.rotated(FILES - 1).unlink()
    agrees(log.history(), log.summary())


def test_while_the_log_grows(log: Indexed) -> None:
    """Lines that come in any portions, with a rotation between them, are counted once."""
    chance = random.Random(7)
    lines = list(random_lines(300, seed=9, begins=BEGINS + 8 * DAY, days=1.0))
    while lines:
        count = chance.randrange(1, 60)
        log.append(*lines[:count])
        del lines[:count]
        if chance.random() < 0.2:
            log.rotate()
        log.update()
    agrees(log.history(), log.summary())


ODD = st.sampled_from([None, True, 7, -3, 2.5, "7", "x", [], {}, [1], 2**70, "a\u202eb", ""])
KEYS = (
    *("peer", "device", "user", "reason", "ended", "model", "user_agent"),
    *("stream", "first_byte_ms", "total_ms", "tokens_in", "tokens_out", "events", "waited_ms", "context_full"),
)


@given(st.lists(st.dictionaries(st.sampled_from(KEYS), ODD, max_size=5), min_size=1, max_size=6))
def test_of_lines_with_odd_values(tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]]) -> None:
    """A key of another type than the proxy writes means the same to both."""
    log = Indexed(tmp_path_factory.mktemp("odd"))
    log.append(*(line(**record) for record in records))
    found, summary = log.history(), log.summary()
    keys = ("requests", "complete", "cut", "cancelled", "failed", "context_full")
    assert {key: found["totals"][key] for key in keys} == {key: summary[key] for key in keys}
    assert [each["name"] for each in found["devices"]] == [each["device"] for each in summary["devices"]]
    assert [each["name"] for each in found["models"]] == [each["model"] for each in summary["models"]]
