"""The diagnostics log reports the program's events, quotes no client, and never gets in the way."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import stat
import sys
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.logs import diagnostics
from proxy.logs.diagnostics import DiagnosticsLog, LibraryHandler, configure
from tests.support.linux.full_disk import full_disk, needs_dev_full

NOW = "2026-11-23T20:00:00.123456Z"


class Clock(datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls, tz=None):
        """Return the time at which it stands."""
        return cls.fromisoformat(NOW).astimezone(tz)


@pytest.fixture
def stderr(monkeypatch):
    """A pipe instead of standard error; call it for what was written since."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    monkeypatch.setattr(diagnostics, "_STANDARD_ERROR", writing)
    monkeypatch.setattr("datetime.datetime", Clock)  # which structlog asks for the time

    def read():
        try:
            return os.read(reading, 2**20).decode()
        except BlockingIOError:
            return ""

    yield read
    os.close(writing)
    os.close(reading)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "diagnostics.log"


@pytest.fixture
def file_log(path, stderr):
    out = DiagnosticsLog(str(path))
    out.open()
    yield out
    out.close()


@pytest.fixture
def text_log(stderr):
    out = DiagnosticsLog(None)
    out.open()
    yield out
    out.close()


def records(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


class Unprintable:
    def __str__(self):
        raise ValueError("CANARY")


# --- lines ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        pytest.param({}, "", id="none"),
        pytest.param({"address": "100.64.0.1", "port": 11434}, " address=100.64.0.1 port=11434", id="plain"),
        pytest.param({"path": Path("/a/b"), "ok": True}, " path=/a/b ok=True", id="other_types"),
        pytest.param({"why": "No space left"}, ' why="No space left"', id="space_is_quoted"),
        pytest.param({"why": 'a="b"'}, ' why="a=\\"b\\""', id="quotes_are_escaped"),
        pytest.param({"why": ""}, ' why=""', id="empty"),
        pytest.param({"why": "a\nb\x1b[1m\x7f\x9b"}, ' why="a\\nb\\u001b[1m\\u007f\\u009b"', id="controls"),
        pytest.param({"why": "x" * 2000}, " why=" + "x" * 1024, id="cut"),
    ],
)
def test_text(text_log, stderr, fields, text):
    """In the foreground a line is time, level, event and fields, to be read; values can't forge another line."""
    configure(text_log, "info").warning("it_happened", **fields)
    assert stderr() == f"2026-11-23T20:00:00.123456Z warning it_happened{text}\n"


def test_file_has_json(file_log, path):
    """In the file a line is one JSON object; numbers stay numbers, and all else becomes a text."""
    configure(file_log, "info").error("it_happened", port=1, wait=0.5, ok=False, none=None, path=Path("/a"), why="a\nb")
    assert path.read_text() == (
        '{"time":"2026-11-23T20:00:00.123456Z","level":"error","event":"it_happened",'
        '"port":1,"wait":0.5,"ok":false,"none":null,"path":"/a","why":"a\\nb"}\n'
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@given(text=st.text() | st.text("\ud800\n\r\x7f\x85\x9b\u2028="))
def test_no_text_forges_a_line(text):
    """Whatever an event and its fields hold, there is one line of printable ASCII."""
    for out in (DiagnosticsLog(None), DiagnosticsLog("unused")):
        lines = []
        out.write = lines.append
        configure(out, "info").info(text, **{"value": text, "f" + text: 1})
        assert len(lines) == 1
        assert re.fullmatch(rb"[ -~]+\n", lines[0])


@pytest.mark.parametrize(
    ("level", "events"),
    [("debug", ["a", "b", "c", "d"]), ("info", ["b", "c", "d"]), ("warning", ["c", "d"]), ("error", ["d"])],
)
def test_level(file_log, path, level, events):
    """Only events of the chosen level and above are written."""
    log = configure(file_log, level)
    log.debug("a")
    log.info("b")
    log.warning("c")
    log.error("d")
    assert [record["event"] for record in records(path)] == events


def test_bound_fields(file_log, path):
    """A logger with fields of its own adds them to each event."""
    configure(file_log, "info").bind(listen="100.64.0.1").info("bound", port=1)
    assert records(path)[0] == {**records(path)[0], "listen": "100.64.0.1", "port": 1}


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"value": Unprintable()}, id="value_without_a_text"),
        pytest.param({"value": 2**80}, id="huge_number"),
        pytest.param({"value": float("nan")}, id="not_a_number"),
        pytest.param({"value": "\udcff"}, id="lone_surrogate"),
        pytest.param({"exc_info": "odd"}, id="exc_info_that_is_none"),
    ],
)
@pytest.mark.parametrize("to_file", [False, True])
def test_logging_never_raises(tmp_path, stderr, to_file, fields):
    """A field that can't be written costs at most itself: its line is still there."""
    out = DiagnosticsLog(str(tmp_path / "log") if to_file else None)
    out.open()
    configure(out, "info").info("it_happened", **fields)
    out.close()
    written = (tmp_path / "log").read_text() if to_file else stderr()
    assert "it_happened" in written
    assert "CANARY" not in written


def raise_canary():
    raise ValueError("CANARY")


@pytest.mark.parametrize(
    "exc_info",
    [
        pytest.param(lambda error: True, id="current"),
        pytest.param(lambda error: error, id="exception"),
        pytest.param(lambda error: (type(error), error, error.__traceback__), id="tuple"),
    ],
)
def test_exceptions_are_told_by_type_and_place(file_log, path, exc_info):
    """An exception is reported by type and line, never by its text, which may quote a client."""
    try:
        raise_canary()
    except ValueError as error:
        configure(file_log, "info").error("failed", exc_info=exc_info(error))
    [record] = records(path)
    assert record["exception"] == "ValueError"
    assert re.fullmatch(r".*test_diagnostics\.py:\d+ raise_canary", record["at"])
    assert "CANARY" not in path.read_text()


# --- trouble ----------------------------------------------------------------------------------------------------------


def test_open_says_what_is_wrong(tmp_path):
    """A log that can't be written is an OSError at the start, with a sentence that names the path."""
    with pytest.raises(OSError, match=r"cannot write the log .*: Is a directory"):
        DiagnosticsLog(str(tmp_path)).open()


@needs_dev_full
def test_full_disk_is_told_on_standard_error(file_log, path, stderr):
    """When the file can't be written, its lines wait and standard error says so; tick() writes them later."""
    log = configure(file_log, "info")
    with full_disk(path):
        log.info("one")
        file_log.tick()
        assert stderr() == (
            "2026-11-23T20:00:00.123456Z warning log_not_written "
            'error="No space left on device" waiting_octets=68 lost_lines=0\n'
        )
    file_log.tick()
    assert [record["event"] for record in records(path)] == ["one"]
    assert stderr() == "2026-11-23T20:00:00.123456Z warning log_writable_again\n"


@needs_dev_full
def test_gap_in_the_file_is_json(file_log, path):
    """In the file the line that stands for lost ones is JSON too."""
    log = configure(file_log, "info")
    with full_disk(path):
        for _ in range(1500):
            log.info("event", filling="x" * 1000)
    file_log.tick()
    *written, gap = records(path)
    assert gap == {
        "time": "2026-11-23T20:00:00.123456Z",
        "level": "warning",
        "event": "diagnostics_gap",
        "lines": 1500 - len(written),
    }


def test_stopped_reader_of_standard_error(text_log, stderr):
    """A full pipe on standard error blocks nothing; dropped lines are reported once there is a reader again."""
    log = configure(text_log, "info")
    for _ in range(1500):
        log.info("event", filling="x" * 1000)
    got = ""
    while "diagnostics_gap" not in got:
        got += stderr()
        text_log.tick()
    got += stderr()
    lost = int(re.search(r"diagnostics_gap lines=(\d+)\n$", got)[1])
    assert got.count(" event filling=") + lost == 1500


def test_rotation_and_reopen(path, stderr):
    """The file rotates as the access log does, and follows a move on reopen()."""
    out = DiagnosticsLog(str(path), max_size=200, kept=2)
    out.open()
    log = configure(out, "info")
    for n in range(3):
        log.info("event", n=n, filling="x" * 100)
    assert [records(Path(f"{path}{suffix}"))[0]["n"] for suffix in (".2", ".1", "")] == [0, 1, 2]
    path.rename(path.with_name("moved"))
    out.reopen()
    log.info("after")
    out.close()
    assert [record["event"] for record in records(path)] == ["after"]


def test_repr_tells_the_state(file_log, text_log):
    """The log's repr shows where it writes and what waits."""
    assert repr(file_log).endswith("diagnostics.log 0/16777216> <Backlog waiting=0 lost=0>>")
    assert repr(text_log) == "<DiagnosticsLog stderr <Backlog waiting=0 lost=0>>"


# --- other libraries --------------------------------------------------------------------------------------------------


@pytest.fixture
def library(file_log):
    """A library's logger whose records go to the diagnostics log."""
    logger = logging.getLogger("some.library")
    handler = LibraryHandler(configure(file_log, "info"))
    logger.addHandler(handler)
    logger.propagate = False
    yield logger
    logger.removeHandler(handler)


def test_libraries_quote_nothing(library, path):
    """Of a library's record the template is kept, not what is filled in, nor what stands below its first line."""
    library.warning("Bad request from %s", "CANARY")
    try:
        raise_canary()
    except ValueError:
        library.exception("Error handling request\nCANARY")
    library.info("too little")
    one, two = records(path)
    assert one == {**one, "level": "warning", "event": "library", "message": "Bad request from %s"}
    assert two == {**two, "level": "error", "message": "Error handling request", "exception": "ValueError"}
    assert two["logger"] == "some.library"
    assert "CANARY" not in path.read_text()


async def test_asyncio_quotes_nothing(file_log, path):
    """A task that failed unseen is reported without the text of its exception."""
    logger = logging.getLogger("asyncio")
    handler = LibraryHandler(configure(file_log, "info"))
    logger.addHandler(handler)
    logger.propagate = False
    try:
        asyncio.get_running_loop().call_exception_handler({"message": "It failed", "exception": ValueError("CANARY")})
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
    assert records(path)[0]["message"] == "It failed"
    assert "CANARY" not in path.read_text()


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("import sys, proxy.logs.diagnostics; sys.exit('rich' in sys.modules)", id="not_loaded"),
        pytest.param("import proxy.logs.diagnostics, rich.console", id="can_be_loaded_later"),
        pytest.param("import rich, proxy.logs.diagnostics, rich.console", id="can_be_loaded_before"),
    ],
)
def test_rich_stays_out_of_the_way(code):
    """The log loads no rich, which the commands need and serving doesn't, and leaves it to be loaded by others."""
    assert os.spawnl(os.P_WAIT, sys.executable, sys.executable, "-c", code) == 0
