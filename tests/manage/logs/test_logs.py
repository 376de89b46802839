"""`logs`: every line once whatever becomes of the files, shown so that one sees at a glance who asked what."""

from __future__ import annotations

import fcntl
import io
import itertools
import json
import os
import plistlib
import select
import struct
import subprocess
import sys
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from proxy.command_line import cli
from proxy.logs.logfile import LogFile, json_line
from proxy.manage.facts import log_end
from proxy.manage.logs import command as logs
from proxy.manage.logs import files as log_files
from proxy.manage.logs import lines as log_lines
from proxy.manage.logs.files import Log, LogError
from proxy.manage.logs.lines import Grid, Wanted, brief, cells, diagnostic, gap, speed, style
from proxy.manage.logs.summary import Summary
from proxy.manage.logs.summary_shown import report
from proxy.manage.machine.launchd import OLLAMA, PROXY
from proxy.manage.machine.machine import Machine
from tests.support.patience import PATIENCE

ROOT = Path(__file__).parent.parent.parent.parent

STREAM = {
    "time": "2026-11-23T20:00:00.123Z",
    "id": "5d1c",
    "peer": "100.64.0.9",
    "device": "macbook",
    "user": "a@b.example",
    "method": "POST",
    "path": "/v1/chat/completions",
    "route": "POST /v1/chat/completions",
    "verdict": "allowed",
    "status": 200,
    "ended": "complete",
    "model": "qwen3:8b",
    "stream": True,
    "first_byte_ms": 800,
    "total_ms": 1800.0,
    "tokens_in": 12,
    "tokens_out": 34,
    "events": 37,
    "user_agent": "OpenAI/Python 3.54.0",
}
REFUSED = {
    "time": "2026-11-23T20:00:05.000Z",
    "peer": "100.64.0.7",
    "method": "POST",
    "path": "/api/pull",
    "verdict": "refused",
    "reason": "path_not_served",
    "status": 403,
    "ended": "complete",
    "total_ms": 0.15,
}
CUT = {**STREAM, "ended": "proxy/content", "reason": "draining", "tokens_out": None}
FAILED = {**STREAM, "ended": "upstream/connect", "reason": "upstream_unreachable", "status": 502, "model": None}
GAP = {"time": "2026-11-23T20:05:00.000Z", "audit_gap": 42}


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    """Give every test an environment that sets no option, a home of its own, and a place with a time of its own."""
    for name in [
        name for name in os.environ if name.startswith(("PROXY_", "XDG_", "FORCE_COLOR", "NO_COLOR", "COLUMNS"))
    ]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TZ", "CET-1")
    time.tzset()
    log_lines.local.cache_clear()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def path(tmp_path):
    """Give the path of an access log that isn't there yet."""
    return tmp_path / "access.log"


@pytest.fixture
def run(capfdbinary):
    """Return a function that runs the command in this process: exit code, standard output, standard error."""

    def call(*words):
        try:
            code = cli.main(["logs", *map(str, words)])
        except SystemExit as stopped:
            code = stopped.code
        out, err = capfdbinary.readouterr()
        return code, out.decode(), err.decode()

    return call


def write(path, *records, mode="wb"):
    """Write records as the proxy does; what is no record is written as it is."""
    with path.open(mode) as file:
        for each in records:
            file.write(each if isinstance(each, bytes) else json_line(each))


def numbered(number, **more):
    """Return a record that differs from others."""
    return {**STREAM, "id": str(number), "path": f"/{number}", **more}


# --- what a line shows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "wanted"),
    [
        pytest.param(
            STREAM,
            {
                "date": "2026-11-23",
                "time": "21:00:00",
                "device": "macbook",
                "status": "200",
                "model": "qwen3:8b",
                "request": "POST /v1/chat/completions",
                "in": "12",
                "out": "34",
                "tok/s": "34.0",
                "first": "800ms",
                "total": "1.8s",
                "ended": "",
                "agent": "OpenAI/Python 3.54.0",
            },
            id="stream",
        ),
        pytest.param({**STREAM, "stream": False}, {"tok/s": "", "first": "", "total": "1.8s"}, id="no_stream"),
        pytest.param(
            REFUSED,
            {"device": "100.64.0.7", "status": "403", "model": "", "total": "<1ms", "ended": "path_not_served"},
            id="refused",
        ),
        pytest.param(CUT, {"ended": "draining proxy/content", "out": "", "tok/s": ""}, id="cut"),
        pytest.param({**STREAM, "ended": "downstream/wait"}, {"ended": "downstream/wait"}, id="client_left"),
        pytest.param(
            {"time": "2026-11-23T20:00:00.123Z", "peer": "::1", "ended": "downstream/head"},
            {"request": "(no request)", "status": "", "device": "::1", "total": ""},
            id="no_request",
        ),
        pytest.param({"time": "whenever"}, {"date": "", "time": "whenever"}, id="time_is_none"),
        pytest.param(
            {"time": 5, "path": ["/"], "status": "200", "tokens_out": "34", "stream": 1, "total_ms": {}, "model": True},
            {"time": "5", "request": "(no request)", "status": "200", "out": "34", "total": "", "model": "True"},
            id="other_types",
        ),
        pytest.param(
            {"path": "/\x1b[31m", "method": "\u202eX", "model": "\x9b1m", "user_agent": "\x07", "device": "a\nb"},
            {"request": r"\u202eX /\x1b[31m", "model": r"\x9b1m", "agent": r"\x07", "device": r"a\nb"},
            id="nothing_steers_the_terminal",
        ),
    ],
)
def test_cells(record, wanted):
    """A line's cells show its values, in local time and short units, and are empty where it has none."""
    found = cells(record)
    assert {name: found[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        pytest.param({}, 34.0, id="known"),
        pytest.param({"stream": False}, None, id="no_stream"),
        pytest.param({"tokens_out": None}, None, id="not_told"),
        pytest.param({"first_byte_ms": None}, None, id="no_answer"),
        pytest.param({"total_ms": 800}, None, id="no_time"),
        pytest.param({"tokens_out": 9}, None, id="too_few"),
        pytest.param({"tokens_out": 10}, 10.0, id="just_enough"),
        pytest.param({"events": 16}, None, id="in_lumps"),
        pytest.param({"events": 17}, 34.0, id="two_tokens_an_event"),
    ],
)
def test_speed(changes, wanted):
    """Tokens a second are shown for streams only, from the first token on, and not where they would be a guess."""
    assert speed({**STREAM, **changes}) == wanted


@pytest.mark.parametrize(
    ("record", "wanted"),
    [
        pytest.param(STREAM, "", id="well"),
        pytest.param(REFUSED, "red", id="refused"),
        pytest.param({**REFUSED, "ended": "proxy/head"}, "red", id="refused_in_the_head"),
        pytest.param(CUT, "yellow", id="cut"),
        pytest.param(FAILED, "yellow", id="failed"),
        pytest.param({**STREAM, "status": 500}, "yellow", id="ollama_failed"),
        pytest.param({**STREAM, "status": 404}, "", id="no_such_model"),
        pytest.param({"ended": "downstream/head"}, "yellow", id="no_request"),
        pytest.param({"verdict": "preflight", "status": 204, "ended": "complete"}, "dim", id="preflight"),
        pytest.param({"verdict": "redirected", "status": 308, "ended": "complete"}, "dim", id="redirected"),
    ],
)
def test_style(record, wanted):
    """What is refused is red, what was cut or failed is yellow."""
    assert style(record) == wanted


def test_brief():
    """A time has at most six characters, and never rounds up into a unit that isn't there."""
    times = (0.2, 1, 999.4, 999.6, 9876.5, 59940, 59960, 185000, 3599600, 3720000, 360000000)
    assert [brief(each) for each in times] == [
        *("<1ms", "1ms", "999ms", "1.0s", "9.9s", "59.9s", "1m00s", "3m05s", "1h00m", "1h02m", "100h00m")
    ]
    assert brief(None) == ""


# --- which lines ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "record", "is_wanted"),
    [
        pytest.param(Wanted(), STREAM, True, id="all"),
        pytest.param(Wanted(since="2026-11-23T20:00:00.123Z"), STREAM, True, id="since"),
        pytest.param(Wanted(since="2026-11-23T20:00:00.124Z"), STREAM, False, id="before"),
        pytest.param(Wanted(since="2026"), {}, False, id="no_time"),
        pytest.param(Wanted(device="MacBook"), STREAM, True, id="device"),
        pytest.param(Wanted(device="macbook"), {"device": "macbook.tail1.ts.net"}, True, id="without_the_tailnet"),
        pytest.param(Wanted(device="macbook.tail1.ts.net."), {"device": "macbook.tail1.ts.net"}, True, id="whole"),
        pytest.param(Wanted(device="mac"), STREAM, False, id="half_a_name"),
        pytest.param(Wanted(device="A@b.example"), STREAM, True, id="user"),
        pytest.param(Wanted(device="100.64.0.9"), STREAM, True, id="address"),
        pytest.param(Wanted(device="100.64.0.9"), REFUSED, False, id="other_address"),
        pytest.param(Wanted(device="."), {}, False, id="no_device"),
        pytest.param(Wanted(model="QWEN3"), STREAM, True, id="model"),
        pytest.param(Wanted(model="qwen3:8b"), STREAM, True, id="model_and_tag"),
        pytest.param(Wanted(model="qwen3:4b"), STREAM, False, id="other_tag"),
        pytest.param(Wanted(model="tiny:latest"), {"model": "tiny"}, True, id="latest_is_none"),
        pytest.param(Wanted(model="tiny"), {"model": "tiny:latest"}, True, id="none_is_latest"),
        pytest.param(Wanted(model="qwen"), STREAM, False, id="half_a_model"),
        pytest.param(Wanted(model="x"), REFUSED, False, id="no_model"),
        pytest.param(Wanted(refused=True), REFUSED, True, id="refused"),
        pytest.param(Wanted(refused=True), FAILED, False, id="failed_is_not_refused"),
        pytest.param(Wanted(refused=True, device="100.64.0.9"), REFUSED, False, id="both_must_hold"),
        pytest.param(Wanted(refused=True), GAP, True, id="gap"),
        pytest.param(Wanted(refused=True, gaps=False), GAP, False, id="no_gaps"),
        pytest.param(Wanted(since="2027"), GAP, False, id="gap_before"),
    ],
)
def test_wanted(wanted, record, is_wanted):
    """Lines are picked by time, device, model and verdict, in any letter case; all that is given must hold."""
    assert wanted(record) is is_wanted


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("90", "2026-11-23T19:58:30.000Z"),
        ("90s", "2026-11-23T19:58:30.000Z"),
        ("1.5h", "2026-11-23T18:30:00.000Z"),
        ("7d", "2026-11-16T20:00:00.000Z"),
        ("2026-11-23", "2026-11-22T23:00:00.000Z"),
        ("2026-11-23T20:30", "2026-11-23T19:30:00.000Z"),
        ("2026-11-23T20:30Z", "2026-11-23T20:30:00.000Z"),
        (None, ""),
    ],
)
def test_since(given, wanted):
    """How far back is a duration or a date, which is one of this place unless it says otherwise."""
    assert logs._since(given, 1795464000.0) == wanted


# --- how it fits ------------------------------------------------------------------------------------------------------

WIDE = cells({**STREAM, "device": "電腦" * 9, "path": "/v1/模型/" + "x" * 300, "model": "m" * 40, "tokens_in": 10**9})


@pytest.mark.parametrize("row", [WIDE, cells(CUT), cells(REFUSED), cells({})], ids=["wide", "cut", "refused", "empty"])
def test_rows_fit(row):
    """No row is wider than the terminal, whatever it holds, and characters of two cells count as such."""
    for width in (1, 5, 20, *range(40, 260)):
        grid = Grid(width)
        assert cell_len(grid.row(row)) <= width
        assert cell_len(grid.heading()) <= width


def test_rows_are_aligned():
    """Columns begin below their heading, numbers end below it; where there isn't room for all the least needed go."""
    lines = [Grid(width).heading() for width in (200, 120, 100, 80)]
    assert [" ".join(line.split()) for line in lines] == [
        "time device request model in out tok/s first total ended agent",
        "time device request model in out tok/s first total ended",
        "time device request model in out tok/s first total",
        "time device request model out tok/s first total",
    ]
    grid = Grid(80)
    assert [grid.heading(), *(grid.row(cells(each)) for each in (STREAM, REFUSED, CUT, FAILED))] == [
        "time     device     request                model         out tok/s  first  total",
        "21:00:00 macbook    POST /v1/chat/com… 200 qwen3:8b       34  34.0  800ms   1.8s",
        "21:00:05 100.64.0.7 POST /api/pull     403            path_not_served",
        "21:00:00 macbook    POST /v1/chat/com… 200 qwen3:8b   draining proxy/content",
        "21:00:00 macbook    POST /v1/chat/com… 502            upstream_unreachable upst…",
    ]


def test_rows_without_a_terminal():
    """Without a terminal nothing is cut, and the date is whole."""
    row = Grid(None).row(cells({**CUT, "path": "/" + "x" * 300}))
    assert row.startswith("2026-11-23 21:00:00 macbook ")
    assert "/" + "x" * 300 in row
    assert row.endswith("draining proxy/content         OpenAI/Python 3.54.0")


def test_gap():
    """Missing lines are described in words."""
    assert gap(GAP) == "2026-11-23 21:05:00  42 lines are missing here: the log could not be written"


def test_diagnostic():
    """A diagnostic is shown with time, level, event and fields, quoted where needed, and its hint on a line below."""
    record = {
        "time": "2026-11-23T20:00:00.123Z",
        "level": "warning",
        "event": "waiting_for_tailscale",
        "problem": "Tailscale \x1b[31m is stopped",
        "tries": 3,
        "on": True,
        "empty": "",
        "a b": None,
        "hint": "tailscale up",
    }
    painted = []
    assert list(diagnostic(record, lambda text, how: painted.append((text, how)) or text)) == [
        r'2026-11-23 21:00:00 warning waiting_for_tailscale problem="Tailscale \u001b[31m is stopped" '
        'tries=3 on=true empty="" a b=null',
        "                    hint: tailscale up",
    ]
    assert painted == [("warning", "yellow"), ("waiting_for_tailscale", "bold")]
    assert [*diagnostic({"a": 1}, lambda text, _: text)] == ["          a=1"]


# --- the files --------------------------------------------------------------------------------------------------------


def ids(lines):
    """Return the ids of lines."""
    return [int(orjson.loads(line)["id"]) for line in lines]


@pytest.fixture
def opened(path):
    """Return a function that opens the log as the proxy does; `told` is what it complained of."""
    files = []

    def make(**options):
        file = LogFile(str(path), lambda event, **_: pytest.fail(event), **options)
        file.open()
        files.append(file)
        return file

    yield make
    for file in files:
        file.close()


def test_all_files_the_oldest_first(path):
    """What is read begins with the oldest rotated file, and half a last line is kept apart."""
    for number, name in enumerate(("access.log.10", "access.log.2", "access.log.1", "access.log")):
        write(path.with_name(name), numbered(number))
    write(path.with_name("access.log.100"), numbered(98))
    write(path.with_name("access.log.old"), numbered(99))
    write(path, b'{"half', mode="ab")
    with Log(str(path)) as log:
        assert ids(log.read()) == [0, 1, 2, 3]
        assert log.half() == b'{"half'


@pytest.mark.parametrize(("between", "kept"), [(1, 1), (5, 1), (8, 1), (1, 5), (7, 5), (11, 5), (29, 5), (40, 5)])
def test_every_line_once_over_rotations(path, opened, between, kept):
    """While the proxy rotates its log, up to `log_keep` times between two looks, each line is read once, in order."""
    file = opened(max_size=8 * len(json_line(numbered(100))), kept=kept)
    found = []
    with Log(str(path)) as log:
        for number in range(100, 420):
            file.append(json_line(numbered(number)))
            if number % between == 0:
                found += ids(log.read())
        assert found + ids(log.read()) == list(range(100, 420))
    assert len(list(path.parent.glob("access.log*"))) == kept + 1


def test_two_rotations_between_two_looks(path, opened):
    """Files that came and went on to other names between two looks are read, in their order."""
    file = opened(max_size=2 * len(json_line(numbered(0))), kept=5)
    with Log(str(path)) as log:
        assert ids(log.read()) == []
        file.append(json_line(numbered(0)))
        assert ids(log.read()) == [0]
        for number in range(1, 7):
            file.append(json_line(numbered(number)))
        assert max(each.name for each in path.parent.glob("access.log*")) == "access.log.3"
        assert ids(log.read()) == list(range(1, 7))
        assert ids(log.read()) == []


def test_read_while_it_is_rotated_away(path, opened):
    """A file that is removed by a rotation, while it is read or before, is read to its end."""
    file = opened(max_size=1, kept=1)
    file.append(json_line(numbered(0)))
    with Log(str(path)) as log:
        for number in (1, 2):
            file.append(json_line(numbered(number)))
        assert not any(b'"0"' in each.read_bytes() for each in path.parent.glob("access.log*"))
        assert ids(log.read()) == [0, 1, 2]


@pytest.mark.parametrize("rotations", [1, 2, 3])
def test_rotated_while_files_are_looked_for(path, opened, monkeypatch, rotations):
    """Files that get other names between two that are opened are read once, in their order."""
    file = opened(max_size=1, kept=99)
    lines = iter(json_line(numbered(number)) for number in range(40))
    there = log_files._File.at

    def at(name):
        found = there(name)
        for line in itertools.islice(lines, rotations):
            file.append(line)
        return found

    for line in itertools.islice(lines, 3):
        file.append(line)
    monkeypatch.setattr(log_files._File, "at", at)
    with Log(str(path)) as log:
        found = ids(log.read())
        while more := ids(log.read()):
            found += more
    assert found == list(range(40))


def test_read_beside_a_writer(path, opened):
    """A reader that begins while lines are written and files renamed finds all lines so far, each once."""
    file = opened(max_size=20 * len(json_line(numbered(1000))), kept=99)
    written = []

    def write_all():
        for number in range(1000, 2500):
            file.append(json_line(numbered(number)))
            written.append(number)

    with ThreadPoolExecutor(1) as pool, Log(str(path)) as log:
        done = pool.submit(write_all)
        followed = []
        while not done.done():
            before = len(written)
            followed += ids(log.read())
            assert len(followed) >= before
            before = len(written)
            with Log(str(path)) as other:
                found = ids(other.read())
            assert found == list(range(1000, 1000 + len(found)))
            assert len(found) >= before
        done.result()
        assert followed + ids(log.read()) == list(range(1000, 2500))


def test_truncated(path):
    """A log that became shorter is read from its beginning; what was read of a line goes with it."""
    write(path, numbered(0), numbered(1), b'{"half')
    with Log(str(path)) as log:
        assert ids(log.read()) == [0, 1]
        os.truncate(path, 0)
        assert ids(log.read()) == []
        write(path, numbered(2), mode="ab")
        assert ids(log.read()) == [2]


def test_half_a_line_is_waited_for(path):
    """A line comes when its end does."""
    line = json_line(numbered(0))
    with Log(str(path)) as log:
        for octet in line[:-1]:
            write(path, bytes([octet]), mode="ab")
            assert list(log.read()) == []
        write(path, b"\n", mode="ab")
        assert list(log.read()) == [line[:-1]]


def test_not_there_yet(path):
    """A log that isn't there is looked for again."""
    with Log(str(path)) as log:
        assert (log.found, list(log.read())) == (False, [])
        write(path, numbered(0))
        assert (ids(log.read()), log.found) == ([0], True)


def test_made_anew(path):
    """A log that was removed and made again is read on, and older files are not read again."""
    write(path.with_name("access.log.1"), numbered(0))
    write(path, numbered(1))
    with Log(str(path)) as log:
        assert ids(log.read()) == [0, 1]
        path.unlink()
        assert ids(log.read()) == []
        write(path, numbered(2))
        assert ids(log.read()) == [2]


def test_rotated_by_another_program(path, opened):
    """Until the proxy follows a log that was moved away, lines come from where it is; then from the new one."""
    file = opened()
    with Log(str(path)) as log:
        file.append(json_line(numbered(0)))
        assert ids(log.read()) == [0]
        path.rename(path.with_name("access.log.0.gone"))
        path.touch(0o600)  # as newsyslog does, before it sends SIGHUP
        file.append(json_line(numbered(1)))
        assert ids(log.read()) == [1]
        file.append(json_line(numbered(2)))
        file.reopen()
        file.append(json_line(numbered(3)))
        assert ids(log.read()) == [2, 3]


def test_torn_line_of_a_file_that_is_over(path):
    """Half a line at the end of a file that is over is a line of its own, not the beginning of the next file's."""
    write(path, numbered(0), b'{"half')
    with Log(str(path)) as log:
        assert ids(log.read()) == [0]
        path.rename(path.with_name("access.log.1"))
        write(path, numbered(1))
        assert list(log.read()) == [b'{"half', json_line(numbered(1))[:-1]]


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "fifo"])
def test_no_file(path, make):
    """A path that isn't a file is reported, and not waited for."""
    make(path)
    with pytest.raises(LogError, match="is not a regular file"):
        Log(str(path))


def test_unreadable(path):
    """A log that belongs to someone else is reported, with a command that shows its owner."""
    write(path, STREAM)
    path.chmod(0o000 if os.geteuid() else 0o600)
    others = 65534 if os.geteuid() == 0 else os.geteuid()
    before = os.geteuid()
    os.seteuid(others)
    try:
        with pytest.raises(LogError, match="can't be read: Permission denied") as caught:
            Log(str(path))
    finally:
        os.seteuid(before)
    assert caught.value.hint == f"ls -ld '{path}'"


@given(
    st.lists(st.lists(st.binary(max_size=6).map(lambda line: line.replace(b"\n", b"x")), max_size=8), max_size=4),
    st.binary(max_size=4).map(lambda half: half.replace(b"\n", b"x")),
    st.integers(0, 9),
    st.integers(1, 5),
)
def test_last_lines(tmp_path_factory, files, half, count, block):
    """The last lines are those at the end of all, whatever the borders of files and blocks; what comes is read on."""
    path = tmp_path_factory.mktemp("last") / "access.log"
    names = ["access.log", *(f"access.log.{number}" for number in range(1, len(files)))]
    for name, lines in zip(names, reversed(files), strict=False):
        write(path.with_name(name), *(line + b"\n" for line in lines))
    write(path, half, mode="ab")
    every = [line for lines in files for line in lines if line]
    before, log_end.BLOCK = log_end.BLOCK, block
    try:
        with Log(str(path)) as log:
            assert log.last(count, bool) == every[len(every) - min(count, len(every)) :]
            write(path, b"!\n", mode="ab")
            assert list(log.read()) == [half + b"!"]
    finally:
        log_end.BLOCK = before


# --- sums -------------------------------------------------------------------------------------------------------------


def summary(records, **wanted):
    """Return what records add up to."""
    adding = Summary(Wanted(**wanted))
    for each in records:
        adding.add(each)
    return adding.totals()


def at(clock, **more):
    """Return a stream of that time on a certain day, without the keys that are None."""
    record = {**STREAM, "time": f"2026-11-23T{clock}:00.000Z", **more}
    return {key: value for key, value in record.items() if value is not None}


UNKNOWN = dict.fromkeys(("model", "stream", "tokens_in", "tokens_out", "events"))  # where Ollama didn't answer

DAY = (
    # 34 tokens in 1 s, after 800 ms
    at("08:00", device=None, user=None),
    at("09:00"),
    # 40 tokens in 2 s, after 100 ms
    at("09:10", model="tiny:latest", tokens_out=40, first_byte_ms=100, total_ms=2100),
    at("09:20", model="tiny", stream=False, tokens_out=100),
    at("10:00", peer="100.64.0.8", device="ipad", tokens_out=20, first_byte_ms=400, total_ms=1400),
    at("10:10", peer="100.64.0.8", device="ipad", ended="downstream/content", tokens_in=None, tokens_out=None),
    at("10:20", peer="100.64.0.8", device="ipad", status=502, ended="upstream/connect", **UNKNOWN),
    {**REFUSED, "time": "2026-11-23T10:30:00.000Z"},
    {**REFUSED, "time": "2026-11-23T10:40:00.000Z", "peer": "100.64.0.9"},
    {**REFUSED, "time": "2026-11-23T10:35:00.000Z", "reason": "host_not_allowed"},
    {"time": "2026-11-23T11:00:00.000Z", "peer": "100.64.0.7", "ended": "downstream/head"},
    {"time": "2026-11-23T11:05:00.000Z", "peer": "100.64.0.7", "verdict": "preflight", "ended": "complete"},
    {"time": "2026-11-23T11:10:00.000Z", "audit_gap": 3},
)


def test_summary():
    """The sums of a day are those that one finds by hand."""
    told = summary(DAY)
    tables = {key: told.pop(key) for key in ("refusals", "first_seen", "devices", "models")}
    assert told == {
        "from": "2026-11-23T08:00:00.000Z",
        "to": "2026-11-23T11:10:00.000Z",
        "since": None,
        "requests": 12,
        "complete": 5,
        "cut": 1,
        "failed": 1,
        "refused": 3,
        "redirected": 0,
        "preflight": 1,
        "broken_off": 1,
        "cancelled": 0,
        "context_full": 0,
        "missing_lines": 3,
        "verify": {"requests": 0, "devices": []},
        "denied": [],
        "egress": [],
        "dropped": [],
        "tokens_in": 5 * 12,
        "tokens_out": 34 + 34 + 40 + 100 + 20,
        # of 20, 20, 34 and 34; of 100, 400, 800 (three times)
        "tokens_per_second": 27.0,
        "first_token_ms": 800,
        "first_token_ms_p90": 800,
        "busiest_hour": {"begins": "2026-11-23T10:00:00Z", "requests": 6},
    }
    assert tables["refusals"] == [
        {"reason": "path_not_served", "requests": 2, "last": "2026-11-23T10:40:00.000Z", "device": "macbook"},
        {"reason": "host_not_allowed", "requests": 1, "last": "2026-11-23T10:35:00.000Z", "device": "100.64.0.7"},
    ]
    assert [each["device"] for each in tables["first_seen"]] == ["100.64.0.7", "ipad", "macbook"]
    assert tables["first_seen"][2] == {"device": "macbook", "user": "a@b.example", "time": "2026-11-23T08:00:00.000Z"}
    assert [(each["device"], each["requests"], each["share"]) for each in tables["devices"]] == [
        ("macbook", 5, 0.4167),
        ("100.64.0.7", 4, 0.3333),
        ("ipad", 3, 0.25),
    ]
    assert tables["models"] == [
        {
            "model": "qwen3:8b",
            "share": 0.6667,
            "requests": 4,
            "tokens_in": 36,
            "tokens_out": 88,
            "tokens_per_second": 34.0,
            "first_token_ms": 800,
        },
        {
            "model": "tiny",
            "share": 0.3333,
            "requests": 2,
            "tokens_in": 24,
            "tokens_out": 140,
            "tokens_per_second": 20.0,
            "first_token_ms": 100,
        },
    ]


def test_summary_of_some():
    """Only wanted lines are counted; first seen is who has no line before, wanted or not."""
    told = summary(DAY, since="2026-11-23T09:00:00.000Z", device="ipad")
    assert (told["requests"], told["since"], told["from"]) == (
        *(3, "2026-11-23T09:00:00.000Z"),
        "2026-11-23T10:00:00.000Z",
    )
    assert [each["device"] for each in told["first_seen"]] == ["ipad"]
    told = summary(DAY, since="2026-11-23T08:30:00.000Z")
    assert [each["device"] for each in told["first_seen"]] == ["100.64.0.7", "ipad"]


def test_summary_of_nothing():
    """Nothing adds up to zeros, and to no medians."""
    told = summary([])
    assert (told["requests"], told["tokens_per_second"], told["first_token_ms_p90"]) == (0, None, None)
    assert shown(told)[0] == "no requests"
    assert shown(summary([], since="2026-11-23T08:30:00.000Z"))[0] == "no requests since 2026-11-23 09:30"


def shown(told, width=200, **more):
    """Return the lines of a report."""
    out = Console(file=io.StringIO(), width=width, **more)
    for part in report(told):
        out.print(part)
    return [line.rstrip() for line in out.file.getvalue().splitlines()]


def test_nine_of_ten():
    """Nine tenths of the first tokens came within the time that is shown."""
    told = summary([at("08:00", first_byte_ms=number) for number in range(1, 11)])
    assert (told["first_token_ms"], told["first_token_ms_p90"]) == (5.5, 9)


def test_redirects_are_a_kind_of_their_own():
    """A request that was sent to the right path is neither answered nor refused."""
    told = summary([at("09:00"), at("09:01", verdict="redirected", reason="slashes", status=308, **UNKNOWN)])
    assert {kind for kind in ("complete", "refused", "redirected") if told[kind] == 1} == {"complete", "redirected"}
    assert "  redirected      1   50%" in shown(told)


def test_full_contexts_are_counted():
    """Requests whose context was full are counted apart, and still among the answered ones; `true` alone counts."""
    told = summary([at("09:00", context_full=True), at("09:01"), at("09:02", context_full="true")])
    assert (told["context_full"], told["complete"]) == (1, 3)
    assert "  context full      1  Ollama cut the prompt or the answer; see docs/clients.md" in shown(told)
    assert not [line for line in shown(summary([at("09:00")])) if "context" in line]


def test_a_full_context_is_seen():
    """A line with a full context is yellow, and says so behind how it ended; a refusal stays red."""
    full = at("09:00", context_full=True)
    assert (style(full), cells(full)["ended"]) == ("yellow", "context_full")
    cut = {**full, "ended": "downstream/content"}
    assert cells(cut)["ended"] == "downstream/content context_full"
    assert style({**full, "verdict": "refused"}) == "red"


DENIED = at("12:00", verdict="refused", reason="model_not_allowed", status=403, **UNKNOWN | {"model": "llama3:70b"})
STRANGER = {**DENIED, "time": "2026-11-23T12:10:00.000Z", "reason": "asker_not_allowed", "device": "ipad"}
NAMELESS = at("12:05", device=None, user=None, peer="100.64.0.5", verdict="refused", **UNKNOWN)
CLOUD = at("12:20", model="gpt-oss:120b-cloud", egress=True)
LIGHTER = at("12:30", dropped=["keep_alive", "num_ctx"])


def test_denied_askers_are_named():
    """Whoever the access rules denied something is named with device, user, reason and the models that they wanted."""
    nameless, others = {**NAMELESS, "reason": "identity_needed"}, {**DENIED, "reason": "path_not_served"}
    stranger = {**STRANGER, "user": "b@c.example"}
    told = summary([DENIED, {**DENIED, "model": "qwen3:32b"}, stranger, nameless, others])
    assert [tuple(each.values()) for each in told["denied"]] == [
        ("macbook", "a@b.example", "model_not_allowed", 2, "2026-11-23T12:00:00.000Z", ["llama3:70b", "qwen3:32b"]),
        ("100.64.0.5", None, "identity_needed", 1, "2026-11-23T12:05:00.000Z", []),
        ("ipad", "b@c.example", "asker_not_allowed", 1, "2026-11-23T12:10:00.000Z", ["llama3:70b"]),
    ]
    assert [*told["denied"][0]] == ["device", "user", "reason", "requests", "last", "models"]
    lines = shown(told)
    assert lines[lines.index("denied by the access rules") + 1] == (
        "  macbook     a@b.example  model_not_allowed  2  last 2026-11-23 13:00  llama3:70b, qwen3:32b"
    )


def test_denied_askers_have_their_name_from_other_lines():
    """A refusal without a name belongs to the device that has the address in other lines."""
    early = {**DENIED, "device": None, "user": None, "time": "2026-11-23T11:00:00.000Z"}
    (row,) = summary([early, DENIED])["denied"]
    assert (row["device"], row["user"], row["requests"]) == ("macbook", "a@b.example", 2)


def test_wanted_models_are_bounded():
    """However many models a device asks for, a row keeps a few of them."""
    (row,) = summary([{**DENIED, "model": f"m{number}"} for number in range(100)])["denied"]
    assert (row["requests"], len(row["models"])) == (100, 10)


def test_egress_is_counted_by_device_and_model():
    """Requests that may have left the Mac are counted for each device and model."""
    others = [at("12:00"), at("12:00", egress="yes")]
    told = summary([CLOUD, CLOUD, {**CLOUD, "device": "ipad", "model": "x:latest"}, *others])
    assert [(each["device"], each["model"], each["requests"]) for each in told["egress"]] == [
        ("macbook", "gpt-oss:120b-cloud", 2),
        ("ipad", "x", 1),
    ]
    assert "may have left the Mac" in shown(told)


def test_dropped_options_are_counted():
    """Options that the proxy dropped are counted for each device, and what is no list of names is left out."""
    told = summary([LIGHTER, {**LIGHTER, "dropped": ["num_ctx", 7]}, at("12:00", dropped="x"), at("12:00", dropped=[])])
    assert [(each["option"], each["requests"], each["models"]) for each in told["dropped"]] == [
        ("num_ctx", 2, ["qwen3:8b"]),
        ("keep_alive", 1, ["qwen3:8b"]),
    ]
    assert "options that were dropped" in shown(told)


@pytest.mark.parametrize(
    ("record", "colour", "noted"),
    [
        pytest.param(DENIED, "red", "model_not_allowed", id="denied"),
        pytest.param(CLOUD, "cyan", "egress", id="egress"),
        pytest.param({**CLOUD, "ended": "proxy/content"}, "yellow", "proxy/content egress", id="egress-cut"),
        pytest.param(LIGHTER, "", "dropped keep_alive,num_ctx", id="dropped"),
    ],
)
def test_lines_show_what_the_owner_should_know(record, colour, noted):
    """A line shows a denial, a request that may have left the Mac, and dropped options."""
    assert (style(record), cells(record)["ended"]) == (colour, noted)


@pytest.mark.parametrize("status", [403, 200, 500], ids=["before_the_head", "after_it", "with_a_failure_below"])
def test_a_cancelled_request(status):
    """A request that its owner ended is yellow and says so once, and is a kind of its own."""
    ended = at("09:00", ended="cancelled", reason="cancelled", status=status)
    assert (style(ended), cells(ended)["ended"]) == ("yellow", "cancelled")
    told = summary([ended, at("09:01")])
    assert (told["cancelled"], told["cut"], told["failed"], told["complete"]) == (1, 0, 0, 1)
    assert "  cancelled       1   50%" in shown(told)


VERIFYS = {"user_agent": "remote-ollama-proxy-verify", "user": None}
NEIGHBOURS = {"peer": "100.64.0.8", "device": "ipad"}


@pytest.mark.parametrize(
    ("more", "counted"),
    [
        pytest.param({}, False, id="answered"),
        pytest.param({"verdict": "refused", "reason": "path_not_served", "status": 403}, False, id="provoked"),
        pytest.param({"verdict": "preflight"}, False, id="preflight"),
        pytest.param({"ended": "downstream/content"}, False, id="cut"),
        pytest.param({"verdict": "refused", "reason": "peer_not_allowed"}, True, id="refused_as_verify_never_is"),
        pytest.param({"verdict": "refused", "reason": None}, True, id="refused_without_a_reason"),
        pytest.param({"user_agent": "remote-ollama-proxy-verify/2"}, True, id="another_agent"),
        pytest.param({"user_agent": "Remote-Ollama-Proxy-Verify"}, True, id="another_spelling"),
        pytest.param({"user_agent": None}, True, id="no_agent"),
    ],
)
def test_verifys_requests_are_counted_apart(more, counted):
    """A request that says it is `verify`'s counts on its own line only, but for refusals that it never provokes."""
    told = summary([at("08:00"), at("09:00", **{**VERIFYS, **NEIGHBOURS, **more})])
    assert told["requests"] == 1 + counted
    assert told["verify"]["requests"] == 1 - counted
    assert {each["device"] for each in told["devices"]} == {"macbook", *(["ipad"] if counted else [])}
    assert [each["device"] for each in told["first_seen"]] == ["ipad", "macbook"], "a new device is named in any case"
    assert (told["tokens_out"], told["models"][0]["requests"]) == (34 * (1 + counted), 1 + counted)
    assert bool(told["refusals"]) is (counted and more.get("verdict") == "refused")


def test_verifys_requests_are_told_by_device():
    """The line says how many of them each device sent; a line without a name belongs to the device of its address."""
    mine = [at(f"09:0{number}", **VERIFYS) for number in range(3)]
    told = summary(
        [at("08:00"), *mine, at("09:05", **{**VERIFYS, "device": None}), at("09:06", **VERIFYS, **NEIGHBOURS)]
    )
    assert told["verify"] == {
        "requests": 5,
        "devices": [{"device": "macbook", "requests": 4}, {"device": "ipad", "requests": 1}],
    }
    lines = shown(told)
    assert "verify's          5  counted here only, by their user_agent: macbook 4, ipad 1" in lines
    assert "requests          1" in lines


def test_report():
    """A summary is a few tables, with bars as long as the shares."""
    assert shown(summary(DAY, since="2026-11-23T08:30:00.000Z")) == [
        "2026-11-23 10:00 to 2026-11-23 12:10 (asked for since 2026-11-23 09:30)",
        "",
        "requests         11",
        "  answered        4   36%",
        "  refused         3   27%",
        "  cut off         1    9%",
        "  failed          1    9%",
        "  preflights      1    9%",
        "  no request      1    9%",
        "  not logged      3  more: the log could not be written",
        "tokens in        48",
        "tokens out      194",
        "tok/s          20.0  median of streams",
        "first token   600ms  median; nine of ten within 800ms",
        "busiest hour      6  requests from 2026-11-23 11:00 on",
        "",
        "refused",
        "  path_not_served   2  last 2026-11-23 11:40  by macbook",
        "  host_not_allowed  1  last 2026-11-23 11:35  by 100.64.0.7",
        "",
        "first seen",
        "  2026-11-23 11:30  100.64.0.7",
        "  2026-11-23 11:00  ipad        a@b.example",
        "",
        "by device",
        "              requests  in  out  tok/s  first",
        "  100.64.0.7         4   0    0                36%  ━━━━━━━━╸",
        "  macbook            4  36  174   27.0  450ms  36%  ━━━━━━━━╸",
        "  ipad               3  12   20   20.0  600ms  27%  ━━━━━━╸",
        "",
        "by model",
        "            requests  in  out  tok/s  first",
        "  qwen3:8b         3  24   54   27.0  800ms  60%  ━━━━━━━━━━━━━━",
        "  tiny             2  24  140   20.0  100ms  40%  ━━━━━━━━━╸",
    ]


def test_report_has_colours():
    """What was refused is red, as its lines are."""
    lines = shown(summary(DAY), force_terminal=True, color_system="standard")
    assert any(line.startswith("\x1b[31m  refused ") for line in lines)


def test_report_fits():
    """A report is no wider than the terminal, and its long tables end."""
    many = [at("08:00", device=f"device-{number}-{'x' * 60}", model=f"m{number}") for number in range(30)]
    for width in (30, 60, 100):
        assert max(map(cell_len, shown(summary(many), width))) <= width
    lines = shown(summary(many))
    assert lines.count("  and 10 more") == 3
    assert any(line.endswith("  3%  ━") for line in lines), "whatever is more than nothing has a bar"


# --- the command ------------------------------------------------------------------------------------------------------


def test_prints_and_ends(run, path):
    """Without a terminal all there is is printed in columns, without colour; lines that are none are counted."""
    write(path.with_name("access.log.1"), STREAM, b"oops\n", b"[1]\n", b"\n")
    write(path, REFUSED, GAP, b'{"half')
    code, out, err = run("--access-log", path)
    assert (code, err) == (0, "3 lines are no JSON object, and left out\n")
    assert [" ".join(line.split()) for line in out.splitlines()] == [
        "time device request model in out tok/s first total ended agent",
        "2026-11-23 21:00:00 macbook POST /v1/chat/completions 200 qwen3:8b 12 34 34.0 800ms 1.8s OpenAI/Python 3.54.0",
        "2026-11-23 21:00:05 100.64.0.7 POST /api/pull 403 <1ms path_not_served",
        "2026-11-23 21:05:00 42 lines are missing here: the log could not be written",
    ]


def test_nothing_wanted(run, path):
    """That nothing is there to be shown is said, and is no failure."""
    write(path)
    assert run("--access-log", path) == (0, "", "nothing is logged yet\n")
    write(path, STREAM)
    assert run("--access-log", path, "--device", "ipad") == (0, "", "there is no such line\n")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        pytest.param([], [STREAM, REFUSED, GAP], id="all"),
        pytest.param(["--refused"], [REFUSED], id="refused"),
        pytest.param(["--model", "qwen3", "--since", "2026-11-23"], [STREAM], id="model_since"),
        pytest.param(["--since", "2026-11-23T20:04Z"], [GAP], id="since"),
    ],
)
def test_json(run, path, words, wanted):
    """`--json` passes lines as they are kept, byte by byte, and nothing else; a filter lets no gap through."""
    odd = b' { "time" : "2026-11-22T00:00:00.000Z",  "x": "\\u009b" }\n'
    write(path, odd, STREAM, b"oops\n", REFUSED, GAP)
    code, out, err = run("--access-log", path, "--json", *words)
    assert code == 0
    assert out.encode() == (b"" if words else odd) + b"".join(map(json_line, wanted))
    assert err == "1 line is no JSON object, and left out\n"


def test_summary_is_printed(run, path):
    """`--summary` prints what lines add up to, with `--json` as one object."""
    write(path.with_name("access.log.1"), *DAY[:4])
    write(path, *DAY[4:])
    code, out, err = run("--access-log", path, "--summary")
    assert (code, err) == (0, "")
    assert out.splitlines() == shown(summary(DAY))
    code, out, _ = run("--access-log", path, "--summary", "--json", "--since", "2026-11-23T09:00Z")
    assert json.loads(out) == summary(DAY, since="2026-11-23T09:00:00.000Z")


def test_diagnostics(run, tmp_path):
    """`--diagnostics` shows the other log, with `--json` as it is kept."""
    path = tmp_path / "diagnostics.log"
    old = {"time": "2026-11-22T20:00:00.000Z", "level": "info", "event": "listening", "port": 11434}
    new = {"time": "2026-11-23T20:00:00.000Z", "level": "warning", "event": "not_listening", "hint": "lsof"}
    write(path, old, new)
    code, out, err = run("--diagnostics", "--diagnostics-log", path)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "2026-11-22 21:00:00 info    listening port=11434",
        "2026-11-23 21:00:00 warning not_listening",
        "                    hint: lsof",
    ]
    code, out, _ = run("--diagnostics", "--diagnostics-log", path, "--json", "--since", "2026-11-23")
    assert (code, out.encode()) == (0, json_line(new))


def install(home, label, **keys):
    """Write a plist."""
    path = home / "Library" / "LaunchAgents" / f"{label}.plist"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(plistlib.dumps({"Label": label, **keys}))


def test_log_of_the_service(run, tmp_path, monkeypatch):
    """The log is the one that the installed service writes, whatever this shell's settings are; flags win."""
    service, other = tmp_path / "service.log", tmp_path / "other.log"
    write(service, numbered(1))
    write(other, numbered(2))
    monkeypatch.setenv("PROXY_ACCESS_LOG", str(other))
    assert ids(run("--json")[1].encode().splitlines()) == [2]
    install(tmp_path, PROXY, EnvironmentVariables={"PROXY_ACCESS_LOG": str(service)})
    assert ids(run("--json")[1].encode().splitlines()) == [1]
    assert ids(run("--json", "--access-log", other)[1].encode().splitlines()) == [2]


def test_ollama(run, tmp_path):
    """`--ollama` shows the files that its plist names, each line with where it is from, and nothing that steers."""
    out, err = tmp_path / "out.log", tmp_path / "err.log"
    out.write_bytes(b"one\n")
    err.write_bytes(b"two\x1b[31m\tthree \xff\nhalf")
    install(tmp_path, OLLAMA, StandardOutPath=str(out), StandardErrorPath=str(err))
    assert run("--ollama") == (0, "stdout  one\nstderr  two\\x1b[31m        three �\nstderr  half\n", "")
    install(tmp_path, OLLAMA, StandardOutPath=os.devnull, StandardErrorPath=str(err))
    assert run("--ollama")[1].startswith("two")


@pytest.mark.parametrize(
    ("words", "code", "error", "hint"),
    [
        pytest.param([], 1, "there is no {home}/", "status", id="no_log"),
        pytest.param(["--summary"], 1, "there is no {home}/", "status", id="no_log_to_sum_up"),
        pytest.param(
            ["--access-log", "-"], 1, "the access log goes to standard output", "logs --access-log FILE", id="-"
        ),
        pytest.param(
            ["--diagnostics"],
            1,
            "diagnostics go to standard error",
            "logs --diagnostics --diagnostics-log FILE",
            id="no_diagnostics",
        ),
        pytest.param(["--since", "7x"], 2, '--since "7x" is not a duration: ', "logs --help", id="since"),
        pytest.param(["--since", "0s"], 2, '--since "0s" is out of range: ', "logs --help", id="since_now"),
        pytest.param(
            ["--since", "2026-13-01"], 2, '--since "2026-13-01" is not a date such as ', "logs --help", id="date"
        ),
        pytest.param(
            ["--diagnostics", "--refused", "--model", "x"],
            2,
            "--model and --refused can't be combined with --diagnostics: ",
            "logs --help",
            id="diagnostics_of_a_model",
        ),
        pytest.param(
            ["--ollama", "--json", "--summary"],
            2,
            "--summary and --json can't be combined with --ollama: ",
            "logs --help",
            id="ollama_as_json",
        ),
        pytest.param(["--ollama", "--diagnostics"], 2, "argument --diagnostics: not allowed", "logs --help", id="both"),
        pytest.param(["--refusd"], 2, '--refusd = "" (flag --refusd): no such option', "--help", id="unknown"),
    ],
)
def test_mistakes(run, tmp_path, words, code, error, hint):
    """An error has one line, with a command that helps."""
    found, out, err = run(*words)
    assert (found, out) == (code, "")
    said, helps = err.splitlines()
    assert said.startswith(f"error: {error}".format(home=tmp_path))
    assert helps == f"hint: python -m proxy {hint}"


@pytest.mark.parametrize(
    ("platform", "there", "hint"),
    [
        pytest.param("darwin", None, "tail -F '{home}/.ollama/logs/server.log'", id="mac"),
        pytest.param("darwin", "root/opt/homebrew/var/log/ollama.log", "tail -F '{home}/{there}'", id="homebrew"),
        pytest.param("darwin", ".ollama/logs/server.log", "tail -F '{home}/{there}'", id="app"),
        pytest.param("linux", None, "journalctl -u ollama -f", id="linux"),
    ],
)
def test_ollama_of_others(run, tmp_path, monkeypatch, platform, there, hint):
    """If Ollama isn't one of our services, the error says where its log is, and how to follow it."""
    machine = Machine(tmp_path, os.getuid(), platform, root=tmp_path / "root")
    monkeypatch.setattr(Machine, "here", lambda: machine)
    if there:
        (tmp_path / there).parent.mkdir(parents=True)
        (tmp_path / there).touch()
    code, out, err = run("--ollama")
    assert (code, out) == (1, "")
    assert "the app in ~/.ollama/logs/server.log, Homebrew in " in err
    assert err.splitlines()[1:] == [f"hint: {hint}".format(home=tmp_path, there=there)]


def test_ollama_without_files(run, tmp_path):
    """A plist that names no files for Ollama's output is reported."""
    install(tmp_path, OLLAMA)
    said = "error: the plist of com.ollama names no file for Ollama's output\nhint: python -m proxy install\n"
    assert run("--ollama") == (1, "", said)


# --- as a process -----------------------------------------------------------------------------------------------------


def process(*words, **more):
    """Run the command as its users do."""
    command = [sys.executable, "-m", "proxy", "logs", *map(str, words)]
    more.setdefault("stdout", subprocess.PIPE)
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, **more)


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_reader_that_has_enough(path, form):
    """A pipe that is closed early ends it silently."""
    write(path, *[STREAM] * 2000)
    with process("--access-log", path, *form) as running:
        assert running.stdout.readline()
        running.stdout.close()
        assert (running.wait(PATIENCE), running.stderr.read()) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_full_disk(path):
    """Lines that can't be written are an error; the exit code is 1."""
    write(path, STREAM)
    with open("/dev/full", "wb") as full, process("--access-log", path, "--json", stdout=full) as running:
        assert running.wait(PATIENCE) == 1
        assert running.stderr.read().startswith(b"error: standard output can't be written: No space left on device\n")


def test_ascii(path):
    """Where only ASCII can be shown, bars are made of it, and the rest is escaped."""
    write(path, {**STREAM, "model": "模型"})
    with process("--access-log", path, "--summary", env={**os.environ, "PYTHONIOENCODING": "ascii"}) as running:
        out = running.stdout.read()
        assert running.wait(PATIENCE) == 0
    assert b"--------" in out
    assert rb"\u6a21\u578b" in out


class Terminal:
    """The command on a terminal of its own, which shows what it prints and has a Ctrl-C."""

    def __init__(self, *words, columns=130, **environ):
        self._end, other = os.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.shown = ""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "proxy", "logs", *map(str, words)],
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm", **environ},
            preexec_fn=lambda: os.login_tty(other),  # noqa: PLW1509 - no threads here
        )
        os.close(other)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._end)

    def shows(self, text, count=1):
        """Wait until a text was shown so many times; return all that was."""
        deadline = time.monotonic() + PATIENCE
        while self.shown.count(text) < count:
            ready = select.select([self._end], [], [], max(0, deadline - time.monotonic()))[0]
            assert ready, f"never showed {text!r}: {self.shown}"
            octets = os.read(self._end, 65536)
            assert octets, f"ended without {text!r}: {self.shown}"
            self.shown += octets.decode()
        return self.shown

    def presses_ctrl_c(self):
        """Press Ctrl-C; return the exit code, and what was shown since."""
        before = len(self.shown)
        os.write(self._end, b"\x03")
        code = self._process.wait(PATIENCE)
        with suppress(OSError):  # how Linux says that the other end is closed
            while octets := os.read(self._end, 65536):
                self.shown += octets.decode()
        return code, self.shown[before:]


def test_follows_on_a_terminal(path, opened):
    """On a terminal the last lines are shown in colour, then each that comes, over rotations, until Ctrl-C."""
    file = opened(max_size=10 * len(json_line(numbered(100))))
    for number in range(100, 130):
        file.append(json_line(numbered(number)))
    for record in (REFUSED, CUT, GAP):
        file.append(json_line(record))
    with Terminal("--access-log", path) as terminal:
        shown = terminal.shows("lines are missing")
        assert [each for each in range(100, 130) if f"POST /{each} " in shown] == [*range(113, 130)]
        assert "\x1b[2m      time     device" in shown
        assert "\x1b[31m11-23 21:00:05 100.64.0.7" in shown
        assert "\x1b[33m11-23 21:00:00 macbook" in shown
        assert "\x1b[1;35m2026-11-23 21:05:00  42 lines are missing" in shown
        for number in range(130, 160):
            file.append(json_line(numbered(number)))
            if number in {136, 140}:
                terminal.shows(f"POST /{number} ")
        file.append(json_line(numbered(160))[:40])
        shown = terminal.shows("POST /159 ")
        code, rest = terminal.presses_ctrl_c()
    assert code == 0
    assert "Traceback" not in rest
    assert [shown.count(f"POST /{number} ") for number in range(130, 160)] == [1] * 30
    assert "POST /160 " not in shown + rest


def test_waits_for_a_log(path):
    """On a terminal a log that isn't there yet is waited for, which is said."""
    with Terminal("--access-log", path, "--json", NO_COLOR="1") as terminal:
        terminal.shows(f"there is no {path} yet; waiting for it\r\n")
        write(path, b"oops\n", numbered(1))
        terminal.shows(json_line(numbered(1)).decode().rstrip())
        code, rest = terminal.presses_ctrl_c()
    assert (code, "1 line is no JSON object" in rest) == (0, True)


@pytest.mark.parametrize("words", [["--no-follow"], ["--summary"]])
def test_ends_on_a_terminal(path, words):
    """On a terminal, too, one may ask for what there is."""
    write(path, *[STREAM] * 30)
    with Terminal("--access-log", path, *words, columns=80, NO_COLOR="1") as terminal:
        assert terminal._process.wait(PATIENCE) == 0
        shown = terminal.shows("30" if "--summary" in words else "21:00:00", 1 if "--summary" in words else 30)
        assert "\x1b" not in shown
        assert max(map(len, shown.splitlines())) <= 80


async def test_what_the_proxy_logged(program, upstream, path, capfdbinary):
    """What the running proxy refuses is shown as soon as its line is written, with `--since` all of it."""
    proxy = await program()
    await proxy.says("listening")
    for _ in range(25):
        await proxy.ask("POST", "/api/pull", b"{}")
    with Terminal("--access-log", proxy.access_log, "--since", "1h") as terminal:
        terminal.shows("path_not_served", 25)
        await proxy.ask("DELETE", "/api/delete", b"{}")
        assert "DELETE /api/delete" in terminal.shows("path_not_served", 26)
        assert terminal.presses_ctrl_c()[0] == 0
