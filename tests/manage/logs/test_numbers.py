"""`logs --verify` finds every number that is missing, double, torn or moved, and says which ones the proxy lost."""

from __future__ import annotations

import itertools
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from proxy.command_line import cli
from proxy.logs.logfile import json_line
from proxy.manage.logs import files
from proxy.manage.logs.lines import local
from proxy.manage.logs.numbers import Kind, Numbers
from proxy.manage.logs.numbers_shown import report

TIME = "2026-11-23T20:00:00.000Z"
FILE = "/logs/access.log"


def line(seq, run="a1", **more):
    """Return a line as the proxy writes it, without its newline."""
    return json_line({"time": TIME, "run": run, "seq": seq, "id": "x", **more})[:-1]


def lines(first, last, run="a1"):
    """Return the lines with these numbers."""
    return [line(seq, run) for seq in range(first, last + 1)]


def gap(seq, count, run="a1"):
    """Return the line that stands for `count` lost lines."""
    return json_line({"time": TIME, "run": run, "seq": seq, "audit_gap": count})[:-1]


def totals(*groups):
    """Return what lines add up to; a group is a line or a list of lines."""
    numbers = Numbers()
    flat = itertools.chain.from_iterable([each] if isinstance(each, bytes) else each for each in groups)
    for place, each in enumerate(flat, 1):
        numbers.take(each, FILE, place)
    return numbers.totals()


def found(*groups):
    """Return the findings, each as kind, run, first and last number, and the place at which it shows."""
    return [
        (each["kind"], each["run"], each["first"], each["last"], each["line"]) for each in totals(*groups)["findings"]
    ]


WELL = [
    pytest.param([], id="empty"),
    pytest.param([lines(1, 9)], id="one-run"),
    pytest.param([lines(1, 3), line(1, "b2", after="a1/3"), lines(2, 4, "b2")], id="two-runs"),
    pytest.param([lines(7, 9)], id="beginning-rotated-away"),
    pytest.param([lines(7, 9), line(1, "b2", after="a1/9")], id="beginning-rotated-away-then-a-start"),
    pytest.param([line(1, "b2", after="a1/9"), lines(2, 3, "b2")], id="rotated-away-up-to-a-start"),
    pytest.param([lines(1, 3), lines(1, 3, "b2")], id="start-that-found-an-empty-file"),
    pytest.param([b'{"id":"old"}', b'{"id":"old"}', lines(1, 3)], id="older-version-before"),
    pytest.param([lines(1, 3), b"", line(4)], id="empty-line"),
    pytest.param([lines(1, 2), lines(1, 2, "b2"), lines(3, 4), lines(3, 3, "b2")], id="two-processes"),
    pytest.param([lines(8, 9), lines(5, 6, "b2"), lines(10, 11)], id="two-processes-rotated"),
    pytest.param([lines(1, 3), line(1, "b2", after="a1/3"), line(4)], id="older-process-drains"),
]

FINDINGS = [
    pytest.param([lines(1, 3), lines(5, 6)], [("missing", "a1", 4, 4, 4)], id="removed-line"),
    pytest.param([lines(1, 3), lines(8, 9)], [("missing", "a1", 4, 7, 4)], id="removed-lines"),
    pytest.param(
        [lines(1, 3), lines(5, 6), lines(9, 9)],
        [("missing", "a1", 4, 4, 4), ("missing", "a1", 7, 8, 6)],
        id="two-holes",
    ),
    pytest.param([lines(1, 3), lines(4, 5, "b2")], [("missing", "b2", 1, 3, 4)], id="removed-beginning-of-a-later-run"),
    pytest.param([lines(1, 3), line(1, "b2", after="a1/5")], [("missing", "a1", 4, 5, 4)], id="removed-end-of-a-run"),
    pytest.param(
        [lines(1, 3), line(1, "c3", after="b2/7"), line(2, "c3")], [("missing", "b2", 1, 7, 4)], id="removed-run"
    ),
    pytest.param([b'{"id":"old"}', lines(2, 3)], [("missing", "a1", 1, 1, 2)], id="removed-after-an-older-version"),
    pytest.param([lines(1, 3), gap(4, 3), lines(7, 8)], [("lost", "a1", 4, 6, 4)], id="reported-gap"),
    pytest.param([gap(1, 3), lines(4, 5)], [("lost", "a1", 1, 3, 1)], id="gap-first"),
    pytest.param([lines(1, 3), gap(4, 1), gap(5, 1), line(6)], [("lost", "a1", 4, 5, 4)], id="gaps-in-a-row"),
    pytest.param([b'{"audit_gap":3}', line(1)], [("lost", None, None, None, 1)], id="gap-of-an-older-version"),
    pytest.param(
        [lines(1, 3), gap(4, 3), lines(8, 8)],
        [("lost", "a1", 4, 6, 4), ("missing", "a1", 7, 7, 5)],
        id="removed-after-a-gap",
    ),
    pytest.param(
        [lines(1, 3), gap(5, 2), line(7)],
        [("missing", "a1", 4, 4, 4), ("lost", "a1", 5, 6, 4)],
        id="removed-before-a-gap",
    ),
    pytest.param([lines(1, 3), lines(7, 8)], [("missing", "a1", 4, 6, 4)], id="removed-gap-line"),
    pytest.param(
        [lines(1, 3), gap(4, 3), lines(5, 8)],
        [("lost", "a1", 4, 6, 4), ("twice", "a1", 5, 6, 5)],
        id="gap-for-lines-that-are-there",
    ),
    pytest.param([lines(1, 3), lines(2, 3), line(4)], [("twice", "a1", 2, 3, 4)], id="copied-lines"),
    pytest.param([line(1), line(3), line(2), line(4)], [("moved", "a1", 2, 2, 3)], id="swapped"),
    pytest.param([lines(6, 9), lines(1, 5)], [("moved", "a1", 1, 5, 5)], id="files-swapped"),
    pytest.param(
        [lines(6, 9), lines(2, 3)],
        [("moved", "a1", 2, 3, 5), ("missing", "a1", 4, 5, 5)],
        id="files-swapped-and-a-hole",
    ),
    pytest.param(
        [lines(1, 3), line(5)[:-9], lines(1, 2, "b2")],
        [("missing", "a1", 4, 4, 4), ("torn", "a1", 5, 5, 4)],
        id="torn-after-a-hole",
    ),
    pytest.param(
        [lines(1, 3), line(4)[:-1], lines(1, 2, "b2")], [("torn", "a1", 4, 4, 4)], id="torn-at-the-end-of-a-run"
    ),
    pytest.param([lines(1, 3), line(4)[:60], line(4)], [("torn", "a1", 4, 4, 4)], id="torn-and-whole-in-the-next-file"),
    pytest.param(
        [lines(1, 3), line(4)[:30], lines(1, 2, "b2")], [("torn", None, None, None, 4)], id="torn-without-its-number"
    ),
    pytest.param(
        [lines(1, 3), b"x", line(5)], [("torn", None, None, None, 4), ("missing", "a1", 4, 4, 5)], id="overwritten"
    ),
    pytest.param(
        [lines(1, 3), b'{"id":"x"}', b'{"id":"y"}', line(4)],
        [("unnumbered", None, None, None, 4)],
        id="written-by-hand",
    ),
    *(
        pytest.param(
            [lines(1, 3), json_line({"run": "a1", **numbers})[:-1]],
            [("unnumbered", None, None, None, 4)],
            id=f"no-numbers-{'-'.join(map(str, numbers.values()))}",
        )
        for numbers in [
            *({"seq": seq} for seq in (0, -4, "4", True, 4.5, None, 2**70)),
            *({"seq": 4, "audit_gap": count} for count in (0, -1, "x", [], True)),
            *({"seq": 4, "run": run} for run in ("", None, [])),
        ]
    ),
]


@pytest.mark.parametrize("groups", WELL)
def test_nothing_is_wrong(groups):
    """A log from which the proxy itself lost and removed nothing but the oldest lines has no finding."""
    assert found(*groups) == []


@pytest.mark.parametrize(("groups", "findings"), FINDINGS)
def test_findings(groups, findings):
    """Each missing, lost, torn, double or moved number is named, with the line at which it shows."""
    assert found(*groups) == findings


def test_two_processes_are_named():
    """Two runs that take turns in one log are named, and are no finding."""
    result = totals(lines(1, 2), lines(1, 2, "b2"), lines(3, 4), lines(3, 3, "b2"))
    assert (result["together"], result["findings"]) == ([["b2", "a1"], ["a1", "b2"]], [])


def test_runs_are_counted():
    """A run's totals are its numbers, its lines, those it lost, and the times of its first and last line."""
    assert totals(lines(3, 5), gap(6, 4), lines(1, 1, "b2"))["runs"] == [
        {"run": "a1", "first": 3, "last": 9, "lines": 3, "lost": 4, "from": TIME, "to": TIME},
        {"run": "b2", "first": 1, "last": 1, "lines": 1, "lost": 0, "from": TIME, "to": TIME},
    ]


@given(st.integers(2, 30), st.data())
def test_whatever_is_removed_is_missing(count, data):
    """Whichever lines are removed after the first one and before the last one, exactly their numbers are missing."""
    kept = data.draw(st.sets(st.integers(2, count - 1)) if count > 2 else st.just(set())) | {1, count}
    result = totals([line(seq) for seq in sorted(kept)])["findings"]
    assert {each["kind"] for each in result} <= {"missing"}
    missing = [number for each in result for number in range(each["first"], each["last"] + 1)]
    assert missing == sorted({*range(1, count + 1)} - kept)


@given(st.permutations(range(1, 13)))
def test_whatever_is_moved_is_not_missing(order):
    """In whatever order lines are, no number is missing or double, and any other order than theirs is a finding."""
    kinds = {each["kind"] for each in totals([line(seq) for seq in order])["findings"]}
    assert kinds == (set() if order == sorted(order) else {"moved"})


@given(st.lists(st.one_of(st.binary(max_size=20), st.sampled_from([line(1), line(2), line(9, "b2"), gap(3, 4)]))))
def test_any_bytes_are_verified(content):
    """Whatever a log contains, it can be verified and shown."""
    result = totals(*content)
    assert json.loads(json.dumps(result)) == result
    shown(result)


def shown(result, width=120):
    console = Console(width=width, legacy_windows=False)
    with console.capture() as capture:
        for part in report(result):
            console.print(part)
    return [each.rstrip() for each in capture.get().splitlines()]


@pytest.fixture
def utc(monkeypatch):
    """Let local time be UTC."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    local.cache_clear()
    yield
    monkeypatch.undo()
    time.tzset()
    local.cache_clear()


@pytest.mark.usefixtures("utc")
def test_report():
    """The report names files, lines and runs, then each finding with its place, and what each kind means."""
    result = totals(lines(3, 4), gap(5, 1200), line(1207), line(1, "b2", after="a1/1207"), line(1, "b2"))
    assert shown(result) == [
        "1 file, 6 lines, 2 runs",
        "",
        "runs",
        "      numbers     lines   lost  from              to",
        "  a1  3 to 1,207      3  1,200  2026-11-23 20:00  2026-11-23 20:00",
        "  b2  1               2         2026-11-23 20:00  2026-11-23 20:00",
        "",
        "findings",
        "  lost     a1 5 to 1,204      1,200 lines  access.log line 3",
        "  missing  a1 1,205 to 1,206      2 lines  access.log line 4",
        "  twice    b2 1                    1 line  access.log line 6",
        "",
        "lost: the proxy reports that it couldn't write these lines",
        "missing: no line has these numbers, and the proxy reports no loss: lines or files were removed",
        "twice: an earlier line has the same number: lines or files were copied",
    ]


@pytest.fixture
def run(capfdbinary, monkeypatch, tmp_path):
    """Return a function that runs `logs --verify` on `access.log` here: exit code, standard output, standard error."""
    monkeypatch.setenv("HOME", str(tmp_path))

    def call(*words):
        code = cli.main(["logs", "--verify", "--access-log", str(tmp_path / "access.log"), *words])
        out, err = capfdbinary.readouterr()
        return code, out.decode(), err.decode()

    return call


def write(path, *groups):
    flat = itertools.chain.from_iterable([each] if isinstance(each, bytes) else each for each in groups)
    path.write_bytes(b"\n".join(flat) + b"\n")


def test_rotated_files_are_one_log(run, tmp_path):
    """All rotated files are read, the oldest first, and a log without a hole is exit code 0."""
    write(tmp_path / "access.log.2", lines(5, 6))
    write(tmp_path / "access.log.1", lines(7, 9))
    write(tmp_path / "access.log", lines(10, 11))
    code, out, err = run()
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "3 files, 7 lines, 1 run"
    assert out.splitlines()[-1] == "no number is missing"


def test_a_missing_file_is_found(run, tmp_path):
    """A rotated file that was removed from between the others is exit code 1, and its numbers are named."""
    write(tmp_path / "access.log.2", lines(5, 6))
    write(tmp_path / "access.log", lines(10, 11))
    code, out, _ = run("--json")
    assert code == 1
    place = {"file": str(tmp_path / "access.log"), "line": 1}
    assert json.loads(out)["findings"] == [{"kind": "missing", "run": "a1", "first": 7, "last": 9, "lines": 3} | place]


def test_place_is_file_and_line(run, tmp_path, monkeypatch):
    """The place of a finding is right whatever the blocks are in which a file is read."""
    monkeypatch.setattr(files, "BLOCK", 7)
    write(tmp_path / "access.log.1", lines(1, 4), line(6))
    write(tmp_path / "access.log", lines(7, 8), line(10))
    places = [(each["file"], each["line"]) for each in json.loads(run("--json")[1])["findings"]]
    assert places == [(str(tmp_path / "access.log.1"), 5), (str(tmp_path / "access.log"), 3)]


def test_torn_end(run, tmp_path):
    """A line that a crash left unfinished at the end of the log is torn."""
    write(tmp_path / "access.log", lines(1, 2))
    with (tmp_path / "access.log").open("ab") as log:
        log.write(line(3)[:-5])
    code, out, _ = run("--json")
    findings = json.loads(out)["findings"]
    assert (code, [(each["kind"], each["first"], each["line"]) for each in findings]) == (1, [("torn", 3, 3)])


def test_line_that_is_being_written(run, tmp_path, monkeypatch):
    """A half line at the end that is finished a moment later is no finding."""
    path = tmp_path / "access.log"
    path.write_bytes(line(1) + b"\n" + line(2)[:-5])
    monkeypatch.setattr("time.sleep", lambda _: path.write_bytes(line(1) + b"\n" + line(2) + b"\n"))
    assert run()[0] == 0


@pytest.mark.parametrize("flag", [["--since", "1h"], ["--device", "x"], ["--model", "x"], ["--refused"], ["--summary"]])
def test_all_lines_are_needed(run, flag):
    """`--verify` takes no filter, because it needs all lines."""
    code, _, err = run(*flag)
    assert code == 2
    assert f"{flag[0]} can't be combined with --verify" in err


def test_each_kind_has_its_meaning():
    """The report explains each kind of finding that it has."""
    for kind in Kind:
        fault = {"kind": str(kind), "run": None, "first": None, "last": None, "lines": 1, "file": FILE, "line": 1}
        result = {"files": [FILE], "lines": 1, "runs": [], "together": [], "findings": [fault]}
        assert any(each.startswith(f"{kind}: ") for each in shown(result))
