"""The bars of days are the days of the place where the Mac is, also where clocks change or midnight is at half past."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from tests.dashboard.indexed import NOW, Indexed, in_zone, line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ZONES = {
    "UTC": "UTC0",
    "changes_at_two": "CET-1CEST,M3.5.0,M10.5.0/3",
    "behind_utc": "EST5EDT,M3.2.0,M11.1.0",
    "changes_at_midnight": "EET-2EEST,M4.5.5/0,M10.5.4/24",
    "half_past": "IST-5:30",
    "half_past_behind_utc": "NST3:30NDT,M3.2.0,M11.1.0",
    "changes_by_half_an_hour": "<+1030>-10:30<+11>-11,M10.1.0,M4.1.0",
    "quarter_to": "<+0545>-5:45",
}
"""As POSIX writes them, so that no database of zones is needed."""


@pytest.fixture(params=ZONES.values(), ids=ZONES)
def zone(request: pytest.FixtureRequest) -> Iterator[None]:
    """Be in a zone."""
    with in_zone(request.param):
        yield


@pytest.mark.usefixtures("zone")
def test_each_day_has_one_bar(tmp_path: Path) -> None:
    """A bar has all requests of its date, and no others; a page shows the date of the moment at which it begins."""
    log, dates = Indexed(tmp_path), Counter[str]()
    moment = datetime.fromtimestamp(NOW // 3600 * 3600, UTC) - timedelta(days=280)
    while moment.timestamp() < NOW:
        log.append(line(time=moment.strftime("%Y-%m-%dT%H:%M:%S.000Z")))
        dates[moment.astimezone().strftime("%Y-%m-%d")] += 1
        moment += timedelta(hours=1)
    series = log.history()["series"]
    (band,) = series["devices"]
    shown = [time.strftime("%Y-%m-%d", time.localtime(each)) for each in series["times"]]
    assert list(zip(shown, band["requests"], strict=True)) == sorted(dates.items())
