"""What the page gets of the past: each table obeys the filter, each period has its bars, and each line is found."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from proxy.dashboard.filters import AskedWronglyError
from proxy.dashboard.history import BANDS, ROWS
from proxy.dashboard.index import reader
from proxy.dashboard.index.database import opened_to_read
from proxy.dashboard.index.reader import BARS
from proxy.logs.logfile import utc
from proxy.manage.verify.asking.asking import USER_AGENT
from tests.dashboard.indexed import NOW, Indexed, line, names, total
from tests.dashboard.random_log import DAY

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

HOUR = 3600.0

STEPS = 12
"""Steps of SQLite's machine for each line. To look once at each line takes about ten, and an answer has many tables."""


@pytest.fixture
def log(tmp_path: Path) -> Indexed:
    """Give a log without lines."""
    return Indexed(tmp_path)


def ago(seconds: float, **given: Any) -> bytes:
    """Return a line of a request that arrived so long ago."""
    return line(time=utc(NOW - seconds), **given)


def refused(reason: str, **given: Any) -> bytes:
    """Return a line of a refusal."""
    return line(verdict="refused", reason=reason, status=403, model=None, **given)


STREAM = {"stream": True, "first_byte_ms": 100.0, "total_ms": 1100.0, "tokens_in": 9, "tokens_out": 50, "events": 52}


def test_empty_log(log: Indexed) -> None:
    """A log without lines has an answer too, and it says that the log reaches nowhere."""
    log.append(b"")
    found = log.history()
    assert (found["reaches"], found["totals"]["requests"], found["devices"]) == (None, 0, [])
    assert found["distributions"]["first_token_ms"] == {"edges": [], "counts": []}


@pytest.mark.parametrize(
    ("period", "counted", "step"),
    [("hour", 1, 60), ("day", 2, 3600), ("week", 3, 3600), ("all", 4, 86400)],
)
def test_periods(log: Indexed, period: str, counted: int, step: int) -> None:
    """Each period counts what arrived since its beginning, and its bars follow each other without a hole."""
    log.append(*(ago(back) for back in (0.5 * HOUR, 20 * HOUR, 6 * DAY, 60 * DAY)))
    found = log.history(period)
    times = found["series"]["times"]
    assert (found["totals"]["requests"], found["period"]["step"]) == (counted, step)
    assert sum(found["series"]["kinds"][0]["requests"]) == counted
    assert all(abs(after - before - step) <= 3600 * (step == 86400) for before, after in pairwise(times))
    assert times[-1] <= NOW
    assert found["reaches"] == utc(NOW - 60 * DAY)


def test_young_log_has_bars_of_hours(log: Indexed) -> None:
    """If all of the log is a few days, its bars are hours."""
    log.append(ago(3 * DAY), ago(HOUR))
    assert log.history()["period"]["step"] == 3600


@pytest.mark.parametrize(
    "time", ["1970-01-01T00:00:00.001Z", "2001-01-01T00:00:00.000Z", "2999-01-01T00:00:00.000Z", "x"]
)
def test_times_that_cannot_be_right(log: Indexed, time: str) -> None:
    """A line with an odd time counts in the totals, and doesn't make more bars than a page can show."""
    log.append(ago(30 * DAY), line(time=time), ago(5.0))
    found = log.history()
    assert total(found, "requests") == (3,)
    assert len(found["series"]["times"]) <= BARS
    assert sum(found["series"]["kinds"][0]["requests"]) >= 2


def test_old_log_has_bars_of_days(log: Indexed) -> None:
    """A log whose last line is long ago has bars of days up to now, however short it is."""
    log.append(ago(300 * DAY), ago(299 * DAY))
    assert len(log.history()["series"]["times"]) in range(300, 303)


def test_bars(log: Indexed) -> None:
    """A bar has the requests and tokens of its time, by device, by model and by kind."""
    log.append(ago(90.0, tokens_in=5, tokens_out=7), ago(80.0, tokens_in=1, device="phone"), ago(3000.0))
    series = log.history("hour")["series"]
    bar = max(at for at, time in enumerate(series["times"]) if time <= NOW - 85.0)
    (laptop, phone), (model,) = series["devices"], series["models"]
    assert (laptop["name"], phone["name"], model["name"]) == ("laptop", "phone", "qwen3:8b")
    assert (laptop["requests"][bar], laptop["tokens_in"][bar], laptop["tokens_out"][bar]) == (1, 5, 7)
    assert (model["requests"][bar], model["tokens_in"][bar], sum(model["requests"])) == (2, 6, 3)
    assert names(series["kinds"]) == ["complete"]


def test_small_bands_are_together(log: Indexed) -> None:
    """Devices beyond the largest share a band, so that all bands add up to all requests."""
    log.append(*(ago(9.0, device=f"d{number}") for number in range(BANDS + 3) for _ in range(20 - number)))
    series = log.history("hour")["series"]
    assert names(series["devices"]) == [*(f"d{number}" for number in range(BANDS)), None]
    assert sum(sum(each["requests"]) for each in series["devices"]) == total(log.history("hour"), "requests")[0]


def test_measures(log: Indexed) -> None:
    """Distributions count streams, and medians are exact."""
    for first in (100.0, 120.0, 250.0, 900.0):
        log.append(line(**{**STREAM, "first_byte_ms": first, "total_ms": first + 1000}))
    log.append(line(stream=False, first_byte_ms=5.0, total_ms=5.0), line(waited_ms=2500.0))
    found = log.history()
    assert found["distributions"]["first_token_ms"] == {
        "edges": [100, 150, 200, 300, 500, 700, 1000],
        "counts": [2, 0, 1, 0, 0, 1],
    }
    assert found["distributions"]["tokens_per_second"] == {"edges": [50, 70], "counts": [4]}
    assert total(found, "first_token_ms", "first_token_ms_p90", "tokens_per_second") == (185.0, 900.0, 50.0)
    assert total(found, "waited", "waited_ms", "waited_ms_p90") == (1, 2500.0, 2500.0)
    assert found["devices"][0]["first_token_ms"] == (100, 300)


def test_who_ended_it(log: Indexed) -> None:
    """Requests that didn't end well are counted by who ended them, in which phase and why."""
    log.append(
        *(line(ended="downstream/content") for _ in range(3)),
        *(line(ended="upstream/wait", reason="upstream_closed", status=502) for _ in range(2)),
        line(ended="proxy/queue", reason="draining"),
        line(ended="cancelled", reason="cancelled"),
        line(status=500),
        line(),
    )
    found = log.history()["ended"]
    assert [(each["party"], each["phase"], each["reason"], each["requests"]) for each in found] == [
        ("the client", "content", None, 3),
        ("Ollama", "wait", "upstream_closed", 2),
        ("the owner", None, "cancelled", 1),
        ("Ollama", None, None, 1),
        ("the proxy", "queue", "draining", 1),
    ]


def test_refusals(log: Indexed) -> None:
    """Refusals are counted by rule and by device, and those of access rules also on their own."""
    log.append(*(refused("path_not_served") for _ in range(2)), refused("path_not_served", device="phone"))
    log.append(refused("asker_not_allowed", device="phone"), refused("host_not_allowed"))
    found = log.history()
    assert [(each["reason"], each["device"], each["requests"]) for each in found["refusals"]] == [
        ("path_not_served", "laptop", 2),
        ("asker_not_allowed", "phone", 1),
        ("host_not_allowed", "laptop", 1),
        ("path_not_served", "phone", 1),
    ]
    assert [(each["reason"], each["device"]) for each in found["denied"]] == [("asker_not_allowed", "phone")]


def test_keys_that_later_versions_write(log: Indexed) -> None:
    """Lines that say what left the Mac, and which options were removed, are counted by device."""
    log.append(
        line(egress=True, run="c41f7a90", seq=3, after="c41f7a8f/7"),
        line(dropped=["num_ctx", "keep_alive"]),
        line(dropped=["num_ctx"]),
    )
    found = log.history()
    assert [(each["device"], each["model"], each["requests"]) for each in found["egress"]] == [
        ("laptop", "qwen3:8b", 1)
    ]
    assert [(each["option"], each["requests"]) for each in found["dropped"]] == [("num_ctx", 2), ("keep_alive", 1)]
    assert total(log.history(egress="1"), "requests", "egress") == (1, 1)


def test_full_contexts(log: Indexed) -> None:
    """Requests whose context was full are counted by device and model."""
    log.append(line(context_full=True), line(context_full=True, device="phone"), line())
    found = log.history()["context_full"]
    assert [(each["device"], each["requests"]) for each in found] == [("laptop", 1), ("phone", 1)]


def test_verify_is_counted_by_itself(log: Indexed) -> None:
    """Requests of `verify` are counted in one total, and nowhere else."""
    log.append(line(user_agent=USER_AGENT, device="tester"), line())
    found = log.history()
    assert total(found, "requests", "verify") == (1, 1)
    assert names(found["devices"]) == ["laptop"]
    assert names(found["first_seen"], "device") == ["laptop", "tester"]


def test_line_without_a_name(log: Indexed) -> None:
    """A line without a device belongs to the one that has its address in other lines."""
    log.append(line(device=None, user=None), line(), line(device=None, peer="127.0.0.1", user=None))
    assert names(log.history()["devices"]) == ["laptop", "127.0.0.1"]
    assert total(log.history(device="laptop"), "requests") == (2,)


FILTERS = {
    "device": ({"device": "laptop"}, {"device": "phone"}),
    "model": ({"model": "a:1b"}, {"model": "b:1b"}),
    "reason": ({"verdict": "refused", "reason": "path_not_served"}, {"verdict": "refused", "reason": "host_missing"}),
    "ended": ({"ended": "downstream/content"}, {"ended": "proxy/queue"}),
    "kind": ({"verdict": "redirected"}, {}),
    "full": ({"context_full": True}, {}),
    "egress": ({"egress": True}, {}),
    "dropped": ({"dropped": ["keep_alive", "num_ctx"]}, {"dropped": ["keep_alive"]}),
}
VALUES = {
    "device": "laptop",
    "model": "a:1b",
    "reason": "path_not_served",
    "ended": "downstream/content",
    "kind": "redirected",
    "dropped": "num_ctx",
}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("period", ["hour", "day", "all"])
def test_filters(log: Indexed, name: str, period: str) -> None:
    """A filter counts what it names, in all parts of the answer, and finds the same lines."""
    wanted, other = FILTERS[name]
    log.append(ago(60.0, id="w1", **wanted), ago(50.0, id="o1", **other), ago(40.0, id="w2", **wanted))
    query = {name: VALUES.get(name, "1")}
    found = log.history(period, **query)
    assert total(found, "requests") == (2,)
    assert sum(sum(each["requests"]) for each in found["series"]["kinds"]) == 2
    assert sum(each["requests"] for each in found["devices"]) == 2
    assert [each["record"]["id"] for each in log.lines(period, **query)["lines"]] == ["w2", "w1"]


def test_filters_together(log: Indexed) -> None:
    """Several filters take what all of them take."""
    log.append(line(), line(device="phone"), line(model="b:1b"))
    assert total(log.history(device="laptop", model="qwen3:8b"), "requests") == (1,)
    assert total(log.history(device="tablet"), "requests") == (0,)


@pytest.mark.parametrize(
    "query",
    [{"period": "year"}, {"full": "yes"}, {"egress": "0"}],
    ids=["period", "full", "egress"],
)
def test_wrong_questions(log: Indexed, query: dict[str, str]) -> None:
    """A parameter that means nothing is an error, not a filter that takes everything."""
    log.append(line())
    with pytest.raises(AskedWronglyError):
        log.history(**query)


def test_long_tables_are_cut(log: Indexed) -> None:
    """A table has so many rows, and the answer says how many it leaves out."""
    log.append(*(line(model=f"m{number}") for number in range(ROWS + 5)))
    found = log.history()
    assert (len(found["models"]), found["more"]["models"]) == (ROWS, 5)


# --- lines ------------------------------------------------------------------------------------------------------------


def test_pages_of_lines(log: Indexed) -> None:
    """Lines come page by page, the newest first, each exactly once, from all files."""
    lines = [line(id=f"n{number}", time=utc(NOW - 5 * DAY + number * 1000.0)) for number in range(90)]
    log.append(*lines[:50], number=1)
    log.append(*lines[50:])
    ids, before = [], None
    while True:
        page = log.lines(before=before, limit="40")
        ids += [each["record"]["id"] for each in page["lines"]]
        before = page["next"]
        if before is None:
            break
    assert ids == [f"n{number}" for number in reversed(range(90))]


def test_lines_of_one_moment(log: Indexed) -> None:
    """Lines with the same time are not lost between two pages."""
    log.append(*(line(id=f"n{number}") for number in range(5)))
    first = log.lines(limit="2")
    second = log.lines(limit="3", before=first["next"])
    assert [each["record"]["id"] for each in (*first["lines"], *second["lines"])] == ["n4", "n3", "n2", "n1", "n0"]


def test_lines_say_where_they_are(log: Indexed) -> None:
    """A line is the log's own, with the name that its file has now."""
    log.append(line(id="old", user_agent="<b>\u202e\x1b[31m"))
    log.update()
    log.rotate()
    log.append(line(id="new"))
    new, old = log.lines()["lines"]
    assert (new["file"], old["file"]) == ("access.log", "access.log.1")
    assert old["record"]["user_agent"] == "<b>\\u202e\\x1b[31m"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("before", "x"),
        ("before", "1"),
        ("before", "1.2.3"),
        ("before", "-1.2"),
        ("before", "٣.1"),
        ("limit", "0"),
        ("limit", "201"),
        ("limit", "x"),
        ("limit", ""),
    ],
)
def test_wrong_pages(log: Indexed, name: str, value: str) -> None:
    """A cursor or a limit that means nothing is an error."""
    log.append(line())
    with pytest.raises(AskedWronglyError):
        log.lines(**{name: value})


# --- how much work it is ----------------------------------------------------------------------------------------------


LINES = 30_000


@pytest.fixture(scope="module")
def long_log(tmp_path_factory: pytest.TempPathFactory) -> Indexed:
    """Give an index of many lines of twelve days."""
    made = Indexed(tmp_path_factory.mktemp("long"))
    chance = random.Random(1)
    for number in range(LINES):
        first = chance.lognormvariate(6.0, 1.0)
        stream = {**STREAM, "first_byte_ms": first, "total_ms": first + chance.lognormvariate(7.0, 1.0)}
        refusal = {"verdict": "refused", "reason": "path_not_served", "status": 403}
        which = {"device": f"d{chance.randrange(4)}", "model": f"m{chance.randrange(3)}"}
        made.append(ago(12 * DAY * number / LINES, **which, **(stream if number % 20 else refusal)))
    made.update()
    return made


@pytest.mark.parametrize(
    "query",
    [{}, {"device": "d1"}, {"model": "m1"}, {"reason": "path_not_served"}],
    ids=["all", "device", "model", "reason"],
)
def test_answers_read_few_rows(long_log: Indexed, query: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer reads what was counted of hours and days, not each line: SQLite takes few steps for each line."""
    steps = []

    def counting(log: str) -> sqlite3.Connection:
        connection = opened_to_read(log)
        connection.set_progress_handler(lambda: steps.append(100), 100)
        return connection

    monkeypatch.setattr(reader, "opened_to_read", counting)
    assert long_log.history(**query)["totals"]["requests"]
    assert sum(steps) < STEPS * LINES
