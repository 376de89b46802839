"""An access line has everything about an exchange that its owner may know, and nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import time
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.exchange.message.exchange import Party, Phase, Record
from proxy.logs import audit, logfile
from proxy.logs.audit import KEYS, MANY, AuditLog
from proxy.logs.logfile import KEPT, MAX_SIZE, LogFile
from proxy.policy.heads import Preflight, RequestHead
from proxy.policy.replies import Reason, Refusal
from proxy.policy.routes import ROUTES
from proxy.settings.settings import Settings
from proxy.tailnet.device import Who
from tests.support.raw_http import NEXT, ok, until

NOW = 1795464010.0  # 2026-11-23T20:00:10Z
HOUR = 3600.0
ARRIVED_AT = NOW - 9.87654321
CHAT, MODEL, MESSAGES = ROUTES[0], ROUTES[2], ROUTES[4]
REFUSED = Refusal(Reason.PATH_NOT_SERVED, 403, "`POST /api/pull` is not on this proxy's allowlist")

# No line may be longer: nine texts from outside of 256 characters, each of at most 12 bytes (two \uXXXX), and 1 KiB.
LONGEST = 9 * 256 * 12 + 1024


def head(method="POST", target="/v1/chat/completions", **fields):
    lines = tuple((name.replace("_", "-").encode(), value) for name, value in fields.items())
    return RequestHead(method, target, (1, 1), lines)


def exchange(**fields):
    return Record(
        **{
            "id": "a1",
            "peer": "100.64.0.9",
            "peer_port": 51234,
            "arrived": 100.0,
            "arrived_at": ARRIVED_AT,
            "ended": 100.0,
            "head": head(),
            **fields,
        }
    )


def logged(**fields):
    line = json.loads(audit.line(exchange(**fields), "5d1c9a0e", 7))
    assert (line.pop("run"), line.pop("seq")) == ("5d1c9a0e", 7)
    return line


def test_line_of_a_complete_exchange():
    """A finished exchange has all of the schema but a reason, in bytes that are what they were meant to be."""
    assert logged(
        head=head(Host=b"mac:11434", User_Agent=b"OpenAI/Python 3.54.0"),
        verdict=CHAT,
        status=200,
        first_octet=100.0125,
        ended=109.87654321,
        request_octets=210,
        response_octets=3210,
        phase=Phase.DONE,
        model="qwen3:8b",
        stream=True,
        tokens_in=12,
        tokens_out=34,
        events=36,
        who=Who("laptop", "me@example.com"),
    ) == {
        "time": "2026-11-23T20:00:00.123Z",
        "id": "a1",
        "peer": "100.64.0.9",
        "peer_port": 51234,
        "device": "laptop",
        "user": "me@example.com",
        "host": "mac:11434",
        "method": "POST",
        "path": "/v1/chat/completions",
        "route": "POST /v1/chat/completions",
        "verdict": "allowed",
        "surface": "openai",
        "status": 200,
        "ended": "complete",
        "model": "qwen3:8b",
        "stream": True,
        "bytes_in": 210,
        "bytes_out": 3210,
        "first_byte_ms": 12.5,
        "total_ms": 9876.543,
        "tokens_in": 12,
        "tokens_out": 34,
        "events": 36,
        "user_agent": "OpenAI/Python 3.54.0",
    }


def test_line_of_a_request_that_waited():
    """A request that waited says for how long, how many pings its client got, and what Ollama's own status was."""
    line = logged(status=200, upstream_status=500, waited=1.25, pings=3)
    assert {"status": 200, "upstream_status": 500, "waited_ms": 1250.0, "pings": 3}.items() <= line.items()


def test_line_of_a_request_that_did_not_wait():
    """Without a wait, and with Ollama's own status, the line has no keys for them."""
    line = logged(status=200, upstream_status=200)
    assert not {"upstream_status", "waited_ms", "pings"} & line.keys()


def test_line_without_a_head():
    """Bytes that made no request are logged with what is known about them, and nothing is made up."""
    refused = Refusal(Reason.MALFORMED, 400, "no")
    assert logged(head=None, verdict=refused, status=400, ended=100.5, ended_by=Party.PROXY) == {
        "time": "2026-11-23T20:00:00.123Z",
        "id": "a1",
        "peer": "100.64.0.9",
        "peer_port": 51234,
        "verdict": "refused",
        "reason": "malformed",
        "status": 400,
        "ended": "proxy/head",
        "bytes_in": 0,
        "bytes_out": 0,
        "total_ms": 500.0,
    }


def test_line_of_an_exchange_that_is_not_decided():
    """A client that leaves inside its head leaves neither a verdict nor a status."""
    line = logged(head=None, ended_by=Party.DOWNSTREAM)
    assert line["ended"] == "downstream/head"
    assert not {"verdict", "reason", "status", "surface"} & line.keys()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param(
            {"verdict": MODEL, "head": head("GET", "/v1/models/qwen3:8b")},
            {"verdict": "allowed", "route": "GET /v1/models/*", "path": "/v1/models/qwen3:8b", "surface": "openai"},
            id="route_of_a_model",
        ),
        pytest.param(
            {"verdict": MESSAGES, "head": head(target="/v1/messages?beta=true")},
            {"verdict": "allowed", "surface": "anthropic", "path": "/v1/messages"},
            id="query_is_cut",
        ),
        pytest.param(
            {"verdict": REFUSED, "head": head(target="/api/pull"), "reason": "draining"},
            {"verdict": "refused", "reason": "path_not_served", "surface": "native"},
            id="refusal_names_its_own_reason",
        ),
        pytest.param(
            {"verdict": CHAT, "reason": Reason.DRAINING, "ended_by": Party.PROXY, "phase": Phase.CONTENT},
            {"verdict": "allowed", "reason": "draining", "ended": "proxy/content"},
            id="cut_by_us",
        ),
        pytest.param(
            {"verdict": Preflight(("POST",), None), "head": head("OPTIONS", "/v1/messages")},
            {"verdict": "preflight", "method": "OPTIONS", "surface": "anthropic"},
            id="preflight",
        ),
        pytest.param({"head": head("GET", "/v1/models/a@b")}, {"path": "/v1/models/a@b"}, id="at_sign_in_a_path"),
        pytest.param(
            {"first_octet": 4100.0, "ended": 7300.0005},
            {"first_byte_ms": 4_000_000.0, "total_ms": 7_200_000.5},
            id="a_wait_of_hours_to_the_millisecond",
        ),
        pytest.param({"stream": False, "events": 0}, {"stream": False, "events": 0}, id="zero_is_known"),
        pytest.param({"head": head(Host=b"caf\xc3\xa9")}, {"host": "café"}, id="utf8"),
        pytest.param({"head": head(User_Agent=b"\xff\x1b[1m")}, {"user_agent": "\\xff\x1b[1m"}, id="octets"),
    ],
)
def test_line_tells(fields, expected):
    """Each value stands under its key, in the words that docs/access-log.md promises."""
    line = logged(**fields)
    assert {key: line.get(key) for key in expected} == expected


@pytest.mark.parametrize(
    ("key", "fields"),
    [
        ("id", {"id": "x" * 300}),
        ("model", {"model": "x" * 300}),
        ("device", {"who": Who("x" * 300, None)}),
        ("user", {"who": Who(None, "x" * 300)}),
        ("method", {"head": head("x" * 300)}),
        ("path", {"head": head(target="x" * 300)}),
        ("host", {"head": head(Host=b"x" * 300)}),
        ("user_agent", {"head": head(User_Agent=b"x" * 300)}),
    ],
)
def test_texts_are_cut(key, fields):
    """No text from outside brings more than 256 characters into a line."""
    assert logged(**fields)[key] == "x" * 256


@pytest.mark.parametrize("party", Party)
@pytest.mark.parametrize("phase", Phase)
def test_ended_names_party_and_phase(party, phase):
    """`ended` says who cut the exchange short, and how far it had come."""
    assert logged(ended_by=party, phase=phase)["ended"] == f"{party.value}/{phase.value}"


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(head(target="/v1/models?key=CANARY"), id="query"),
        pytest.param(head(target="http://user:CANARY@mac/v1/models"), id="password_in_an_absolute_target"),
        pytest.param(head("CONNECT", "user:CANARY@mac:443"), id="password_in_an_authority_target"),
        pytest.param(head(Host=b"user:CANARY@mac"), id="password_in_host"),
        pytest.param(head(Host=b"CANARY" * 500 + b"@mac"), id="long_password_in_host"),
        pytest.param(head(target="http://" + "CANARY" * 500 + "@mac/"), id="long_password_in_target"),
        pytest.param(head(Authorization=b"Bearer CANARY", X_Api_Key=b"CANARY", Cookie=b"s=CANARY"), id="credentials"),
        pytest.param(head(Origin=b"https://CANARY", Via=b"CANARY", X_Request_Id=b"CANARY"), id="other_fields"),
    ],
)
def test_line_keeps_secrets(asked):
    """No query, credential or other field of the client's gets into a line, in whichever place it was sent."""
    assert b"CANARY" not in audit.line(exchange(head=asked, verdict=REFUSED), "5d1c9a0e", 1)


TEXT = st.text(max_size=400) | st.text("\ud800\udfff\x00\x1b\x7f\x9b\u202e\n\U0001f600", max_size=400)


@given(text=TEXT, octets=st.binary(max_size=1500), number=st.integers(0, 2**70))
def test_any_text_makes_one_valid_line(text, octets, number):
    """Whatever a client or Ollama sends, there is one JSON object in printable ASCII, of bounded length."""
    asked = RequestHead(text, text, (1, 1), ((b"Host", octets), (b"User-Agent", octets)))
    strange = exchange(id=text, head=asked, verdict=REFUSED, model=text, who=Who(text, text), tokens_in=number)
    line = audit.line(strange, "5d1c9a0e", 1)
    assert len(line) <= LONGEST
    assert line.endswith(b"\n")
    assert all(0x20 <= octet < 0x7F for octet in line[:-1])
    assert json.loads(line).keys() <= set(KEYS)


# --- the log ----------------------------------------------------------------------------------------------------------


class Told(list):
    """A `diagnose` that remembers the events, and which of them came with a traceback."""

    def __init__(self):
        super().__init__()
        self.traced = []

    def __call__(self, event, **fields):
        self.append(event)
        if fields.get("exc_info"):
            self.traced.append(event)


@pytest.fixture
def shown(monkeypatch):
    """Give a `diagnose`; in these tests the line of what is taken is what is taken, and the run is 5d1c9a0e."""
    monkeypatch.setattr(audit.secrets, "token_hex", lambda _: "5d1c9a0e")
    monkeypatch.setattr(audit, "line", lambda taken, *_: taken)
    return Told()


@pytest.fixture
def log(tmp_path, shown):
    log = AuditLog(str(tmp_path / "access.log"), shown)
    log.open()
    yield log
    log.close()


async def next_turn():
    """Return once everything that was scheduled before has run."""
    await asyncio.sleep(0)


async def test_lines_of_one_turn_are_one_write(log, tmp_path, monkeypatch):
    """Lines are written at the end of a turn of the loop, all with one system call."""
    writes = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: writes.append(bytes(data)) or write(fd, data))
    log.write(b"one\n")
    log.write(b"two\n")
    assert (tmp_path / "access.log").read_bytes() == b""
    await next_turn()
    assert (tmp_path / "access.log").read_bytes() == b"one\ntwo\n"
    log.write(b"three\n")
    await next_turn()
    assert [data for data in writes if data.endswith(b"\n")] == [b"one\ntwo\n", b"three\n"]


async def test_an_exchange_without_a_line_is_reported(log, tmp_path, monkeypatch, shown):
    """An exchange that can't be written down is reported with its traceback, and the others have their lines."""
    monkeypatch.setattr(audit, "line", lambda taken, *_: taken + b"\n")
    for taken in (b"one", "no bytes", b"two"):
        log.write(taken)
    await next_turn()
    assert [line for line in (tmp_path / "access.log").read_bytes().splitlines() if b"gap" not in line] == [
        b"one",
        b"two",
    ]
    assert (shown, shown.traced) == (["internal"], ["internal"])


async def test_time_is_that_of_the_arrival(darwin, gateway, upstream, wire):
    """`time` is when the request came, by the wall clock; a sleep of the Mac within it counts in no duration."""
    upstream.answers(NEXT, ok())
    before = time.time()
    await wire.request("GET", "/api/version")
    await until(lambda: upstream.requests)
    darwin.sleep(HOUR)
    upstream.proceed()
    await wire.answer()
    (line,) = await gateway.lines()
    written = datetime.fromisoformat(line["time"]).timestamp()
    assert before - 1 < written < before + HOUR / 2
    assert line["total_ms"] < HOUR * 1000 / 2


async def test_under_load_lines_are_gathered(log, tmp_path, monkeypatch):
    """Where a turn of the loop brings many lines the next ones are written together after a while, else at its end."""
    monkeypatch.setattr(audit, "GATHER", HOUR)
    path = tmp_path / "access.log"
    for number in range(1, 4):
        for _ in range(MANY - 1):
            log.write(b"%d\n" % number)
        await next_turn()
        assert path.read_bytes().endswith(b"%d\n" % number)
    for _ in range(MANY):
        log.write(b"4\n")
    await next_turn()
    assert path.read_bytes().endswith(b"4\n")
    for _ in range(5):
        log.write(b"5\n")
        await next_turn()
    assert path.read_bytes().endswith(b"4\n")
    log.flush()
    assert path.read_bytes().endswith(b"4\n" + b"5\n" * 5)
    log.write(b"6\n")
    log.flush()  # a lone one, so the next is written at the end of its turn
    log.write(b"7\n")
    await next_turn()
    assert path.read_bytes().endswith(b"6\n7\n")


async def test_gathered_lines_are_written_after_a_while(log, tmp_path, monkeypatch):
    """Lines that are gathered wait for `GATHER` seconds, and for no further one."""
    monkeypatch.setattr(audit, "GATHER", 0.001)
    for _ in range(MANY):
        log.write(b"1\n")
    await next_turn()
    log.write(b"2\n")
    await until(lambda: (tmp_path / "access.log").read_bytes().endswith(b"1\n2\n"))


async def test_files_are_as_large_and_as_many_as_asked(tmp_path, shown):
    """The log is rotated at `max_size`, `kept` old files stay, and problems with that are reported."""
    log = AuditLog(str(tmp_path / "access.log"), shown, max_size=10, kept=2)
    log.open()
    for number in range(5):
        log.write(b"line %d..\n" % number)
        log.flush()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["access.log", "access.log.1", "access.log.2"]
    assert shown == []
    (tmp_path / "access.log.new").mkdir()  # in the way of the next one
    log.write(b"last....\n")
    log.flush()
    log.close()
    assert shown == ["log_not_rotated"]


async def test_trouble_is_told_by_the_given_clock(monkeypatch, shown):
    """A lasting problem is reported once a minute of `clock`."""
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(audit, "_STANDARD_OUTPUT", writing)
    now = [1000.0]
    log = AuditLog("-", shown, clock=lambda: now[0])
    for seconds in (0.0, 1.0, 60.0):
        now[0] += seconds
        log.write(b"line\n")
        log.flush()
    os.close(writing)
    assert shown == ["log_not_written", "log_not_written"]


async def test_close_writes_what_is_left(log, tmp_path):
    """A line taken in the last turn is written by close()."""
    log.write(b"last\n")
    log.close()
    await next_turn()
    assert (tmp_path / "access.log").read_bytes() == b"last\n"


async def test_reopen_follows_a_moved_log(log, tmp_path):
    """After reopen() lines go to the path again, and those before it to where the file was moved."""
    log.write(b"one\n")
    (tmp_path / "access.log").rename(tmp_path / "moved")
    log.reopen()
    log.write(b"two\n")
    await next_turn()
    assert (tmp_path / "moved").read_bytes() == b"one\n"
    assert (tmp_path / "access.log").read_bytes() == b"two\n"
    assert stat.S_IMODE((tmp_path / "access.log").stat().st_mode) == 0o600


def test_open_says_what_is_wrong(tmp_path, shown):
    """A log that can't be written is an OSError at the start, with a sentence that names the path."""
    with pytest.raises(OSError, match="Is a directory") as caught:
        AuditLog(str(tmp_path), shown).open()
    assert caught.value.strerror == f"cannot write the log {tmp_path}: Is a directory"


async def test_tick_writes_after_trouble_and_tells_the_gap(monkeypatch, shown):
    """Once the log can be written again, the next tick writes what waited, then how many lines are lost."""
    monkeypatch.setattr(audit.time, "time", lambda: NOW)
    reading, writing = os.pipe()
    monkeypatch.setattr(audit, "_STANDARD_OUTPUT", writing)
    log = AuditLog("-", shown)
    log.open()
    line = b"x" * 1023 + b"\n"
    for _ in range(2000):
        log.write(line)
    await next_turn()
    got = bytearray()
    while not got.endswith(b"}\n"):
        got += os.read(reading, 2**20)
        log.tick()
    log.tick()  # nothing waits, nothing happens
    os.close(writing)
    os.close(reading)
    *lines, gap = bytes(got).splitlines(keepends=True)
    taken = len(lines)
    assert lines == [line] * taken
    lost = {"run": "5d1c9a0e", "seq": taken + 1, "audit_gap": 2000 - taken}
    assert json.loads(gap) == {"time": "2026-11-23T20:00:10.000Z", **lost}
    assert shown == ["log_not_written", "log_writable_again"]


def test_repr_tells_the_state(log, shown):
    """The log's repr shows where it writes and what waits."""
    assert repr(log).endswith("access.log 0/16777216> 5d1c9a0e/0 <Backlog waiting=0 lost=0>>")
    assert repr(AuditLog("-", shown)) == "<AuditLog <Stream 1> 5d1c9a0e/0 <Backlog waiting=0 lost=0>>"


# --- numbers ----------------------------------------------------------------------------------------------------------


def lines_of(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def numbers(path):
    return [(line["seq"], line.get("audit_gap", 1)) for line in lines_of(path)]


async def test_lines_are_numbered_in_the_order_of_the_file(tmp_path):
    """Lines of one start of the process have one `run`, and numbers from 1 on without a hole, also after a reload."""
    path = tmp_path / "access.log"
    log = AuditLog(str(path), pytest.fail)
    log.open()
    for number in range(1, 6):
        log.write(exchange(id=f"a{number}"))
        if number == 3:
            log.reopen()  # as a reload does
    log.close()
    lines = lines_of(path)
    assert [(line["id"], line["seq"]) for line in lines] == [(f"a{number}", number) for number in range(1, 6)]
    assert len({line["run"] for line in lines}) == 1


async def test_each_start_is_another_run(tmp_path):
    """Each start has a `run` of its own, whose first line names the last one that it found in the file."""
    path = tmp_path / "access.log"
    for _ in range(3):
        log = AuditLog(str(path), pytest.fail)
        log.open()
        log.write(exchange())
        log.write(exchange())
        log.close()
    lines = lines_of(path)
    runs = [line["run"] for line in lines[::2]]
    assert len(set(runs)) == 3
    assert [line["seq"] for line in lines] == [1, 2] * 3
    assert [line.get("after") for line in lines] == [None, None, f"{runs[0]}/2", None, f"{runs[1]}/2", None]


@pytest.mark.parametrize(
    ("found", "after"),
    [
        pytest.param(b"", None, id="empty"),
        pytest.param(b'{"run":"r","seq":4}\n', "r/4", id="line"),
        pytest.param(b'{"run":"r","seq":4,"audit_gap":3}\n', "r/6", id="gap"),
        pytest.param(b'{"run":"r","seq":4}\n{"run":"r","seq":5,"id', "r/4", id="torn"),
        pytest.param(b'{"run":"r","seq":4}\n{"id":"of an older version"}\n[]\n7\n\n', "r/4", id="without-numbers"),
        pytest.param(b'{"id":"of an older version"}\n', None, id="older-version"),
        pytest.param(b'{"run":7,"seq":4}\n', None, id="run-is-a-number"),
        pytest.param(b'{"run":"r","seq":"4"}\n', None, id="number-is-a-text"),
        pytest.param(b'{"run":"r","seq":4}\n' + b"x" * 2**17 + b"\n", None, id="far-away"),
        pytest.param(b"x" * 2**17 + b'\n{"run":"r","seq":4}\n', "r/4", id="long-log"),
    ],
)
async def test_first_line_names_the_line_before_it(tmp_path, found, after):
    """`after` is run and number of the last numbered line in the file, and absent if there is none."""
    path = tmp_path / "access.log"
    path.write_bytes(found)
    log = AuditLog(str(path), pytest.fail)
    log.open()
    log.write(exchange())
    log.close()
    assert json.loads(path.read_bytes().splitlines()[-1]).get("after") == after


@pytest.mark.usefixtures("shown")
async def test_gap_has_the_numbers_of_lines_that_cannot_be_made(tmp_path, monkeypatch):
    """A line that can't be made has a number like any other, which its gap line stands for."""
    monkeypatch.undo()
    path = tmp_path / "access.log"
    log = AuditLog(str(path), Told())
    log.open()
    for model in ("a", 7, 7, "b"):
        log.write(exchange(model=model))
    log.close()
    assert numbers(path) == [(1, 1), (2, 1), (3, 1), (4, 1)]
    assert ["audit_gap" in line for line in lines_of(path)] == [False, True, True, False]


STEPS = st.tuples(st.sampled_from(["line", "odd", "tick"]), st.sampled_from([None, 0, 90, 2**20]))


@given(st.lists(STEPS, max_size=60))
async def test_gaps_stand_for_exactly_what_is_lost(steps):
    """Whatever is lost, and whenever the disk takes lines again, lines and gaps have each number once and in order."""
    written, room = bytearray(), 2**20

    def append(lines):
        taken = lines[:room]
        if not taken:
            raise OSError(28, "No space left on device")
        written.extend(taken)
        return len(taken)

    sink = LogFile("access.log", Told())
    sink.append, sink.renew, sink.close = append, lambda: b"", lambda: None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logfile, "BACKLOG_LIMIT", 900)
        patch.setattr(audit, "LogFile", lambda *_, **__: sink)
        log = AuditLog("access.log", Told())
        made = 0
        for step, change in [*steps, ("line", 2**20)]:
            room = room if change is None else change
            if step == "tick":
                log.tick()
                continue
            log.write(exchange(model=7 if step == "odd" else "a"))
            made += 1
            if change is not None:
                log.flush()
        log.flush()
    lines = [json.loads(line) for line in written.splitlines()]
    covered = [number for line in lines for number in range(line["seq"], line["seq"] + line.get("audit_gap", 1))]
    assert covered == [*range(1, made + 1)]


# --- its page ---------------------------------------------------------------------------------------------------------

PAGE = (Path(__file__).parent.parent.parent / "docs/access-log.md").read_text()


def test_page_has_an_entry_for_every_key():
    """docs/access-log.md has a row for each key of the schema, and for no other."""
    table = PAGE.partition("## Fields")[2].partition("\n## ")[0]
    assert [row.split("`")[1] for row in table.splitlines() if row.startswith("| `")] == list(KEYS)


def test_page_has_every_ended():
    """docs/access-log.md explains each party and each phase in `ended`."""
    section = PAGE.partition("## `ended`")[2].partition("\n## ")[0]
    for word in [*Party, *(phase for phase in Phase if phase is not Phase.DONE)]:
        assert f"| `{word}` |" in section


def test_page_has_the_figures():
    """docs/access-log.md has the sizes that the code has, and those are the settings' defaults."""
    options = Settings.model_fields
    assert (options["log_max_size"].default, options["log_keep"].default) == (MAX_SIZE, KEPT)
    assert f"{MAX_SIZE // 2**20} MiB" in PAGE
    assert f"`access.log.{KEPT}`" in PAGE


def test_page_shows_a_real_line():
    """The line that docs/access-log.md shows has only keys of the schema."""
    example = PAGE.partition("```json\n")[2].partition("\n```")[0]
    assert json.loads(example).keys() <= set(KEYS)
