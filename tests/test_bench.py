"""The benchmark measures: what it runs, what it makes of the samples, what it calls held, what the guard lets pass."""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import re
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench import __main__ as bench
from bench import accounting, guard, python
from bench.parts.bodies import HOSTILE
from bench.reading import coding
from bench.reporting import plots, report
from bench.reporting.figures import TARGETS, Figures, Spread
from bench.wire import answers, load, record, traffic, upstream
from bench.wire.arrival import arrived, stamp
from bench.without import FEATURES
from proxy.exchange.waiting.catalog import catalog_of, loaded_in
from proxy.reading.body import read
from tests.support.patience import PATIENCE

ROOT = Path(__file__).parent.parent

LINUX = pytest.mark.skipif(not accounting.LINUX, reason="the kernel's accounts are in /proc")

# The way through all measures but those that start the proxy many times.
PARTS = ("requests", "streams", "bulk", "bodies", "memory", "rules", "watched", "connections")


@pytest.fixture(scope="module")
def run():
    """Return what a run with next to no rounds prints, with plain aiohttp as the only peer."""
    command = (sys.executable, "-m", "bench", "--scale", "tiny", "--peers", "aiohttp", "--own-load")
    done = subprocess.run(
        (*command, *(word for part in PARTS for word in ("--part", part))),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@LINUX
def test_a_run_measures(run):
    """A run has a figure for the proxy and for the peer in each measure that it takes."""
    tables = {block.splitlines()[0]: block.splitlines()[2:] for block in run.strip().split("\n\n")}
    assert {"goals", "Small chats", "Long chats", "One identical GET", "Streams: 50"} <= tables.keys()
    assert {"Streams: 50, in step", "One stream alone", "64 MiB", "Many connections"} <= tables.keys()
    assert {"Reading a coding tool's chat", "Streams next to hostile bodies"} <= tables.keys()
    assert len(tables["Streams next to hostile bodies"]) == len(HOSTILE)
    rows = {row.split()[0]: row.split() for row in tables["Small chats"]}
    assert rows.keys() == {"ours", "aiohttp", "direct"}
    ours, aiohttp = (float(rows[name][2].replace(",", "")) for name in ("ours", "aiohttp"))
    assert float(rows["aiohttp"][1]) == pytest.approx(ours / aiohttp, rel=0.1)
    assert any("CPU of a small chat, each different, against plain aiohttp" in row for row in tables["goals"])


def test_features_that_are_left_out_are_there():
    """Each feature that the benchmark leaves out is one that the proxy has."""
    lines = ("from bench.without import FEATURES, switch_off", "for each in FEATURES: switch_off(each)")
    subprocess.run((sys.executable, "-c", "\n".join(lines)), cwd=ROOT, check=True, timeout=PATIENCE)
    command = (sys.executable, "-m", "bench.without", "gate")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1
    assert "hint:" in done.stderr


# --- what is sent ---


@pytest.mark.parametrize("order", ["", "chunks=3&every=1"], ids=["whole", "streamed"])
@pytest.mark.parametrize("size", [traffic.SMALL, traffic.LONG], ids=["small", "long"])
def test_no_two_requests_are_alike(size, order):
    """Each request has a length and words of its own, with the fields that the SDKs send, and says what it wants."""
    made = traffic.requests(11434, size, count=200, order=order)
    assert len(set(made)) == 200
    assert made == traffic.requests(11434, size, count=200, order=order)
    lengths = set()
    for each in made:
        head, _, content = each.partition(b"\r\n\r\n")
        assert b"\r\nHost: 127.0.0.1:11434\r\n" in head
        assert b"@" not in head
        assert len(head.splitlines()) >= 16
        asked = json.loads(content)
        assert (asked.get("messages") or asked["input"])[0]["content"].startswith(f"<{order}>")
        assert asked.get("stream", False) is bool(order)
        assert b"Content-Length: %d" % len(content) in head
        lengths.add(len(content))
    assert len(lengths) > 150
    assert size.least < min(lengths) < max(lengths) < 3 * size.most


def test_heads_are_those_of_the_sdks():
    """The recorded heads are what the installed SDKs send, but for the Python and the system that they name."""
    machine = re.compile(rb"(?i)(x-stainless-(os|arch|runtime-version): )[^\r]+")
    for name, head in asyncio.run(record.record()).items():
        kept = (traffic.HEADS / f"{name}.http").read_bytes()
        assert machine.sub(rb"\1", kept) == machine.sub(rb"\1", head), "python -m bench.wire.record writes it anew"
    assert {*traffic.KINDS, *traffic.STREAMED} <= {path.stem for path in traffic.HEADS.iterdir()}


@pytest.mark.parametrize(
    "surface", [answers.CHAT, answers.MESSAGES, answers.RESPONSES], ids=["chat", "messages", "responses"]
)
def test_no_two_answers_are_alike(surface):
    """Each answer has another Date, id, text and length, and each event another text."""
    made = [surface.answer() for _ in range(200)]
    assert len({re.search(rb"Date: ([^\r]+)", each)[1] for each in made}) == 200
    assert len({json.loads(each.partition(b"\r\n\r\n")[2])["id"] for each in made}) == 200
    assert len({len(each) for each in made}) > 50
    assert all(load.whole(each) for each in made)
    assert len({next(surface.tails) for _ in range(200)}) > 100
    assert surface.stream_head() != surface.stream_head()
    data = surface.event().rpartition(b"data: ")[2] + b"1" * answers.STAMP_DIGITS + next(surface.tails)
    assert json.loads(data)
    assert answers.STAMP.search(data)


@pytest.mark.parametrize("order", ["", "chunks=1"], ids=["whole", "streamed"])
def test_the_model_of_all_chats_is_there_and_loaded(order):
    """The upstream lists the model that chats name, takes chats with tools for it, and lists it as loaded."""
    lists = answers.LISTS.partition(b"\r\n\r\n")[2]
    catalog, loaded = catalog_of(lists), loaded_in(lists)
    made = [*traffic.requests(11434, count=50, order=order), load.request("POST", "/v1/messages", coding(1, "tiny"))]
    for each in made:
        asked = read(each.split(b" ", 2)[1].decode(), each.partition(b"\r\n\r\n")[2])
        form, model = catalog.find(asked)
        assert asked.prompt
        assert model.accepts(asked, embedding=False)
        assert form.model in loaded


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_bodies_are_whole(kind):
    """A hostile request has as many bytes of content as its head announces."""
    octets = b"".join(HOSTILE[kind][1](1 << 20))
    head, _, content = octets.partition(b"\r\n\r\n")
    assert len(content) == (int(re.search(rb"Content-Length: (\d+)", head)[1]) if head else 0)


# --- figures ---


@pytest.mark.parametrize(
    ("samples", "text"),
    [
        pytest.param([3.0], "3.0", id="one"),
        pytest.param([3.0, 1.0, 2000.0], "3.0 (1.0–2,000.0)", id="median_and_spread"),
        pytest.param([1.0, 2.0], "1.5 (1.0–2.0)", id="between_two"),
    ],
)
def test_a_figure_is_a_median_with_its_spread(samples, text):
    """Samples are shown as their median, with the least and the most if they differ."""
    assert Spread.of(samples).text(1) == text


def test_a_ratio_is_taken_round_by_round():
    """What disturbs a whole round leaves the ratio as it is."""
    figures = Figures()
    figures.note("get_cpu", "ours", 10.0, 100.0, 10.0)
    figures.note("get_cpu", "caddy", 20.0, 200.0, 40.0)
    assert figures.ratio("get_cpu", "ours", "caddy") == Spread(0.5, 0.25, 0.5)
    assert figures.ratio("get_cpu", "ours", "nginx") is None


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.text.replace(" ", "_"))
@pytest.mark.parametrize(("factor", "held"), [(0.99, True), (1.01, False)])
def test_a_target_is_held_up_to_its_limit(target, factor, held):
    """A target is held when the median is at most its limit, of the peer's figure if there is one."""
    figures = Figures()
    figures.note(target.measure, "ours", target.limit * factor * 7)
    if target.peer:
        figures.note(target.measure, target.peer, 7)
    else:
        figures = Figures()
        figures.note(target.measure, "ours", target.limit * factor)
    assert target.judge(figures).held is held


def test_samples_are_kept(tmp_path):
    """What is written to a file is what is read from it."""
    figures = Figures({"date": "2026-11-26"})
    figures.note("idle_total@2000", "ours", 24.5)
    figures.note("idle_total@500", "ours", 6.25)
    figures.write(tmp_path / "figures.json")
    found = Figures.read(tmp_path / "figures.json")
    assert found.about == figures.about
    assert found.curve("idle_total", "ours") == [(500, 6.25), (2000, 24.5)]


# --- the page ---


def sampled():
    """Return figures with samples for each column of each table, and for each curve."""
    about = {"date": "2026-11-26", "commit": "abc", "cpu": "a processor", "cores": 2, "system": "Linux 6 x86_64"}
    about |= {
        "python": "CPython",
        "load": "wrk",
        "pinned": True,
        "load_average": 0.1,
        "libraries": {"uvloop": "0.23"},
        "versions": {},
    }
    figures = Figures(about)
    measures = {column.measure for section in report.SECTIONS for column in section.columns}
    measures |= {f"{kind}@{number}" for kind in ("idle_total", "chunk_cpu") for number in (50, 500)}
    measures |= {f"distribution@{share}" for share in report.DISTRIBUTION}
    for number, measure in enumerate(sorted(measures)):
        for who in ("ours", "haproxy-tuned", "direct"):
            figures.note(measure, who, number + 1.0, number + 2.0)
    for kind in ("feature_chat_cpu", "feature_get_cpu", "feature_chunk_cpu"):
        for feature in ("nothing", *FEATURES):
            figures.note(kind, f"without {feature}", 5.0)
    for who in ("with", "without"):
        figures.note("coding_cpu", who, 900.0)
    for who in ("ours", "orjson.loads"):
        figures.note("reading_cpu", who, 400.0)
    for kind in HOSTILE:
        figures.note(f"hostile_delay@{kind}", "ours", 50.0)
    for state in ("quiet", "rotation", "reload"):
        figures.note(f"chunk_cpu@{state}", "ours", 20.0)
        figures.note("set_aside", state, 1)
        for share in ("p50", "p99", "max"):
            figures.note(f"delay_{share}@{state}", "ours", 0.5)
    return figures


def test_the_page_has_every_table_and_plot(tmp_path):
    """RESULTS.md has each table that there are figures for, and each plot next to it is a drawing."""
    (tmp_path / "results").mkdir()
    shown = tmp_path / "performance.md"
    shown.write_text("# Performance\n\n<!-- make bench writes from here -->\nold\n<!-- to here -->\n\nmore\n")
    report.write(sampled(), tmp_path, shown)
    page = (tmp_path / "RESULTS.md").read_text()
    titles = [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]
    sections = [section.title for section in report.SECTIONS]
    own = ["Reading a coding tool's chat", "Streams next to hostile bodies"]
    own += ["What the features cost", "While logs rotate and settings reload"]
    assert titles == ["Goals", *sections, *own]
    for name in ("delay", "chunk-cost", "memory", "length", "connections"):
        assert f"(results/{name}.svg)" in page
        assert ET.parse(tmp_path / f"results/{name}.svg").getroot().tag.endswith("svg")


def test_the_page_shows_what_was_measured():
    """The figures in docs/performance.md, and all of RESULTS.md, are those that are kept."""
    figures = Figures.read(report.HERE / "results/figures.json")
    page = report.SHOWN.read_text()
    assert report.show(page, figures) == page
    assert report.page(figures) == (report.HERE / "RESULTS.md").read_text()


@pytest.mark.parametrize(
    ("about", "begins"),
    [
        pytest.param({}, "A full run: 2026-11-26,", id="full"),
        pytest.param({"load_average": 0.5}, "A full run on a busy machine: ", id="busy"),
        pytest.param({"scale": "quick"}, "A short run: ", id="short"),
        pytest.param({"scale": "quick", "load_average": 4.0}, "A short run on a busy machine: ", id="both"),
    ],
)
def test_the_table_says_how_it_was_measured(about, begins):
    """The line below the table says whether the run was short, and whether the machine was busy."""
    figures = sampled()
    figures.about |= about
    assert report.short(figures).splitlines()[-1].startswith(begins)


@pytest.mark.parametrize(
    ("ours", "ends"),
    [
        pytest.param(3.3, "The proxy meets 1 of 1 goals.", id="met"),
        pytest.param(
            3.4,
            "The proxy meets 0 of 1 goals. Missed: CPU of a small chat, each different, against HAProxy, tuned"
            " (3.40 ×, at most 3.30). Each ratio is the median of the rounds' ratios, so it differs from"
            " the quotient of two medians in the table.",
            id="missed",
        ),
    ],
)
def test_the_table_names_missed_goals(ours, ends):
    """The line below the table names each goal that was missed, with its result and its limit."""
    figures = Figures(sampled().about)
    figures.note("chat_cpu", "ours", ours)
    figures.note("chat_cpu", "haproxy-tuned", 1.0)
    assert report.short(figures).endswith(f"CPython. {ends}\n")


@pytest.mark.parametrize("logarithmic", [False, True])
def test_a_plot_has_room_for_all_its_points(logarithmic):
    """Every point of a curve lies between the axes, and at least two marks are on each."""
    axis = plots.Axis.over("µs", [0.08, 3, 170], logarithmic=logarithmic)
    assert all(0 <= axis.place(value) <= 1 for value in (0.08, 3, 170))
    assert len([*axis.ticks()]) >= 2


# --- how it is measured ---


@pytest.mark.parametrize(
    ("answer", "whole"),
    [
        pytest.param(answers.VERSION, True, id="length"),
        pytest.param(answers.VERSION[:-1], False, id="an_octet_less"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Le", False, id="half_a_head"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", False, id="chunks"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", True, id="last_chunk"
        ),
    ],
)
def test_an_answer_is_whole_at_its_end(answer, whole):
    """An answer is complete with the last byte of its content, not before."""
    assert load.whole(answer) is whole


@LINUX
def test_time_of_arrival_is_the_kernels():
    """Bytes that are read late count from their arrival; of several in one read the last ones do."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sending:
        receiving, _ = server.accept()
        with receiving:
            stamp(receiving)
            receiving.settimeout(PATIENCE)
            until = time.monotonic() + PATIENCE
            between = came = before_the_read = 0
            while not between < came < before_the_read:  # the kernel begins some time after the first socket has asked
                assert time.monotonic() < until
                sending.sendall(b"one")
                between = time.time_ns()
                sending.sendall(b"two")
                while len(receiving.recv(9, socket.MSG_PEEK)) < 6:
                    pass
                before_the_read = time.time_ns()
                data, came = arrived(receiving)
                assert data == b"onetwo"


class Sender:
    """A stream of the upstream that only counts."""

    gap = 0.0

    def __init__(self):
        self.sent = 0

    def send_chunk(self):
        """Count a chunk."""
        self.sent += 1


class Clock:
    """A loop whose time only the test moves on, in milliseconds as uvloop does."""

    def __init__(self):
        self.now = 23_122_417
        self.later = []

    def time(self):
        """Return the seconds."""
        return self.now / 1000

    def call_soon(self, turn):
        """Keep what is to be called, as due at once."""
        self.later.append((0, turn))

    def call_later(self, seconds, turn):
        """Keep what is to be called, and when."""
        self.later.append((seconds, turn))


def test_the_upstream_sleeps_between_two_ticks(monkeypatch):
    """The upstream turns once in each millisecond, and sends each stream's chunks exactly when they are due."""
    clock, wheel, sender = Clock(), upstream.Wheel(), Sender()
    monkeypatch.setattr(upstream.asyncio, "get_running_loop", lambda: clock)
    wheel.add(sender, 10, in_step=True)
    for _ in range(1000):
        ((seconds, turn),) = clock.later
        clock.later.clear()
        clock.now += round(seconds * 1000)
        turn()
    assert [seconds for seconds, _ in clock.later] == [0.001]
    assert clock.now == 23_122_417 + 999
    assert sender.sent == 99


@LINUX
def test_time_and_memory_are_the_kernels():
    """What a process burns is counted, and what it takes in memory is seen, also after it has given it back."""
    pids = [os.getpid()]
    accounting.reset_peak(pids)
    before, used = accounting.memory(pids), accounting.cpu(pids)
    until = time.thread_time() + 0.05
    block = mmap.mmap(-1, 32 << 20)  # of the kernel: what Python has freed before would be no more memory
    block.write(bytes(32 << 20))
    while time.thread_time() < until:
        pass
    assert accounting.cpu(pids) - used > 0.04
    assert accounting.memory(pids) - before > 30 << 20
    block.close()
    assert accounting.peak(pids) - before > 30 << 20


@pytest.mark.parametrize(
    ("text", "seconds"), [("0:00.05", 0.05), ("12:34.5", 754.5), ("1:00:00", 3600), ("2-01:00:00", 176400)]
)
def test_the_time_that_ps_tells(text, seconds):
    """`ps` prints minutes and seconds, with hours and days where there are any."""
    assert accounting.seconds(text) == seconds


def test_a_peer_that_is_named_must_be_there(monkeypatch, capsys):
    """Peers that are missing are left out; one that was named and is missing is an error. Both say how to get it."""
    monkeypatch.setenv("PATH", "/nonexistent")
    assert [peer.name for peer in bench.chosen("")] == ["aiohttp"]
    assert "brew install caddy" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        bench.chosen("aiohttp caddy")
    assert stopped.value.code == 3
    assert "hint: " in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"no such peer: caddie\nhint: PEERS takes .*caddy"):
        bench.chosen("caddie")


# --- the guard ---


@pytest.mark.parametrize(
    ("tool", "output", "count"),
    [
        pytest.param(
            guard.CALLGRIND, "==7== Events    : Ir\n==7== Collected : 1710711214\n", 1710711214, id="valgrind"
        ),
        pytest.param(guard.PERF, "1498921,,instructions:u,801000,100.00,,\n", 1498921, id="perf"),
    ],
)
def test_the_guard_reads_what_tools_tell(tool, output, count):
    """The count is found in what a tool prints; what has none is an error, not a zero."""
    assert tool.count(output) == count
    with pytest.raises(RuntimeError):
        tool.count("<not supported>,,instructions:u,0,100.00,,")


@pytest.mark.parametrize(("chunk", "well"), [(109, True), (111, False), (60, True)])
def test_the_guard_fails_above_a_tenth(chunk, well):
    """A count may grow by a tenth; each is printed with its change."""
    lines, found = guard.compare({"chat": 1000, "chunk": chunk}, {"chat": 1000, "chunk": 100})
    assert found is well
    assert [line.split()[0] for line in lines] == ["pass", "pass" if well else "fail"]
    assert f"{chunk - 100:+.1f} %" in lines[1]


def test_the_guard_says_when_it_cannot_count(monkeypatch, capsys):
    """Without a tool that counts instructions the guard ends with 3 and says which to get."""
    monkeypatch.setenv("PATH", "/nonexistent")
    assert guard.main([]) == 3
    assert "hint: " in capsys.readouterr().err


# --- which Python ---


def test_the_python_of_the_tests(monkeypatch):
    """`.venv` is the Python of the tests; so is the default where there is no newer one."""
    assert python.chosen(".venv") == sys.executable
    monkeypatch.setattr(python, "candidates", lambda *_: iter(()))
    assert python.chosen("") == sys.executable


def test_the_newest_python_is_measured(monkeypatch):
    """The first that runs and is what its name says is taken; one that was named must be there."""
    there = {"python3.14": "/opt/python3.14", "python3.13": "/opt/python3.13"}
    versions = {"/opt/python3.14": None, "/opt/python3.13": "3.13"}
    monkeypatch.setattr(python.shutil, "which", there.get)
    monkeypatch.setattr(python, "version", versions.get)
    monkeypatch.setattr(python, "prepared", lambda found: f"prepared {found}")
    assert python.chosen("") == python.chosen("3.13") == "prepared /opt/python3.13"
    assert python.chosen("/opt/python3.13") == "prepared /opt/python3.13"
    for missing in ("3.14", "/opt/python3.14"):
        with pytest.raises(SystemExit, match=r"there is no Python .*\nhint: "):
            python.chosen(missing)


def test_environment_of_another_python_is_made_again(tmp_path):
    """An environment is used again by the Python that it was made of, and made again for another of its version."""
    made = tmp_path / "made"
    for name in ("one", "other"):
        script = tmp_path / name
        script.write_text(
            f'#!/bin/sh\ncase "$*" in -c*) echo 3.13;; *"venv --clear"*) echo {name} >> {made}; '
            'mkdir -p "$4/bin"; cp "$0" "$4/bin/python";; esac\n'
        )
        script.chmod(0o755)
    for name in ("one", "one", "other", "other", "one"):
        assert python.prepared(str(tmp_path / name), tmp_path) == str(tmp_path / ".venv-bench-3.13/bin/python")
    assert made.read_text().split() == ["one", "other", "one"]
