"""The fakes answer as the recordings of real Macs do, as far as the program reads an answer."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path

import pytest

from proxy.manage.machine.job_state import is_disabled, read
from proxy.tailnet.interfaces import of_ifconfig
from tests.support.mac.fake_mac import Mac
from tests.tools import record_mac
from tests.tools.record_mac import FOLDER, LABEL, Asked, Recorder, addresses_hidden, recorded, written

RECORDINGS = sorted(FOLDER.glob("*.json"))
MADE_BY_HAND = FOLDER / "by-hand.json"

PYTHON = "/Library/Frameworks/Python.framework/Versions/3.13/Resources/Python.app/Contents/MacOS/Python"
FIREWALLS = (
    {"firewall": 0},
    {"firewall": 1, "block_all": True, "stealth": True, "allow_signed": False},
    {"firewall": 2, "allow_signed": True},
)
SHAPES = {
    "sw_vers": r"\d+(\.\d+)+",
    "sysctl": r"\d+",
    "lstart=": r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun) [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}",
    "lsof": r"p\d+\n(f\d+\nn127\.0\.0\.1:\d+\n?)+",
}


def digest(asked: Asked) -> object:
    """Return what the program makes of an answer: two that are alike in this are the same to it."""
    tool, verb = Path(asked.command[0]).name, asked.command[1] if len(asked.command) > 1 else ""
    if tool == "launchctl" and verb == "print" and not asked.code:
        state = read(asked.out)
        return dataclasses.replace(state, pid=1 if state.pid else None)
    if tool == "launchctl" and verb == "print-disabled":
        return asked.code, is_disabled(asked.out, LABEL)
    if tool == "pmset":
        return re.search(r"^\s*sleep\s+\d+", asked.out.partition("AC Power:")[2], re.MULTILINE) is not None
    shape = SHAPES.get("lstart=" if "lstart=" in asked.command else tool)
    if shape and not asked.code:
        return re.fullmatch(shape, asked.out.strip()) is not None
    first = next((line.strip() for line in f"{asked.err}\n{asked.out}".splitlines() if line.strip()), "")
    return asked.code, first


def key(asked: Asked) -> tuple[str, str]:
    """Return what was asked, in which state: ports and processes are others each time."""
    words = " ".join([Path(asked.command[0]).name, *asked.command[1:]])
    return asked.state, re.sub(r"(TCP:|-p )\d+", r"\1N", words)


@pytest.fixture(scope="module")
def fakes(tmp_path_factory):
    """Give what the fakes answer: (state, command) -> the digests that they can have."""
    answers: dict[tuple[str, str], set[object]] = {}
    mac = Mac(tmp_path_factory.mktemp("mac"))
    mac.knobs(asleep="never", throttle=0, pace=1)  # a job that ends slowly is asked for meanwhile
    asked = record_mac.record(mac.machine())
    mac.knobs(asleep="always")
    recorder = Recorder(mac.machine(), mac.home)
    recorder.just_loaded()
    recorder.unload()
    for firewall in FIREWALLS:
        mac.change(**firewall)
        recorder.firewall()
    mac.change(processes=[{"pid": os.getpid(), "program": f"{PYTHON} -c x", "listen": [["127.0.0.1", 54321]]}])
    recorder.listening(os.getpid(), 54321)
    for each in [*asked, *recorder.asked]:
        answers.setdefault(key(each), set()).add(digest(each))
    left = dict(mac.seen()["jobs"])
    mac.close()
    assert left == {}
    return answers


def differences(path, fakes):
    """Return what the fakes answer otherwise than a recording: (state, command), what is recorded, what they say."""
    known = [each for each in recorded(path) if key(each) in fakes and not played_by_nobody(each)]
    return [(key(each), digest(each), fakes[key(each)]) for each in known if digest(each) not in fakes[key(each)]]


def played_by_nobody(asked):
    """Return whether there is no fake of a command: then the parsers alone are tried with what is recorded."""
    tool = Path(asked.command[0]).name
    return tool == "ifconfig" or (tool == "sysctl" and "hw.optional.arm64" not in asked.command)


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_fakes_answer_as_recorded(path, fakes):
    """In each state that was recorded the fakes answer what the Mac did, as far as the program reads it."""
    assert differences(path, fakes) == []


def test_recording_by_hand_is_marked():
    """The recording that no Mac made says so, and each other one was made by the recorder."""
    for path in RECORDINGS:
        made, by_hand = json.loads(path.read_text())["made"], "by hand from public reports; no Mac was asked"
        assert made == (by_hand if path == MADE_BY_HAND else "by tests.tools.record_mac")


def test_every_question_is_played(fakes):
    """Whatever the hand-made recording asks, the recorder asks too: none of it is compared with nothing."""
    assert {key(each) for each in recorded(MADE_BY_HAND)} <= fakes.keys()


@pytest.mark.parametrize(
    ("state", "verb", "change"),
    [
        pytest.param("missing", "bootout", {"code": 36}, id="code"),
        pytest.param("missing", "bootout", {"err": "Boot-out failed: 3: No such job\n"}, id="words"),
        pytest.param("running", "print", {"out": "x = {\n\tstate = waiting\n\truns = 1\n}\n"}, id="state"),
        pytest.param("disabled", "print-disabled", {"out": "\tdisabled services = {\n\t}\n"}, id="not_disabled"),
        pytest.param("any", "-productVersion", {"out": "macOS 26\n"}, id="shape"),
    ],
)
def test_a_difference_is_found(tmp_path, fakes, state, verb, change):
    """Another exit code, wording, state or shape than the fakes have is a difference."""
    entries = list(recorded(MADE_BY_HAND))
    at = next(i for i, each in enumerate(entries) if each.state == state and each.command[1] == verb)
    entries[at] = dataclasses.replace(entries[at], **change)
    path = tmp_path / "changed.json"
    path.write_text(written("26", "a test", entries))
    assert [where for where, *_ in differences(path, fakes)] == [key(entries[at])]


# --- the parsers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_parsers_read_what_is_recorded(path):
    """The program's parsers read every recorded answer: a job's state is known, and loopback has its address."""
    for each in recorded(path):
        if each.command[:2] == ("launchctl", "print") and each.command[-1].endswith(LABEL) and not each.code:
            state = read(each.out)
            assert state.state
            assert None not in (state.runs, state.exit_timeout)
            assert state.running or state.coming_up or state.pid is None or state.state == "SIGTERMed"
        if each.command == ("ifconfig",):
            assert "127.0.0.1/8" in [str(one) for found in of_ifconfig(each.out) for one in found.addresses]


# --- the recorder -----------------------------------------------------------------------------------------------------


def test_recorder_writes_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    """A run writes a file named after the release, with no name of this machine, and leaves no agent."""
    mac = Mac(tmp_path)
    monkeypatch.setattr(record_mac, "record", lambda machine: _short(machine, tmp_path / "short"))
    assert record_mac.main(mac.machine(), tmp_path / "out") == 0
    text = (tmp_path / "out" / "macos-15.6.1.json").read_text()
    assert "wrote " in capsys.readouterr().out
    assert str(tmp_path) not in text
    assert f"gui/{os.getuid()}/" not in text
    assert mac.job(LABEL) is None
    mac.close()


def _short(machine, folder):
    folder.mkdir()
    recorder = Recorder(machine, folder)
    recorder.just_loaded()
    recorder.unload()
    return recorder.asked


@pytest.mark.parametrize(("platform", "headless", "code"), [("linux", False, 3), ("darwin", True, 1)])
def test_recorder_needs_a_mac_with_a_screen(tmp_path, capsys, platform, headless, code):
    """Elsewhere, and where nobody is logged in at the screen, it says what it needs and writes nothing."""
    mac = Mac(tmp_path)
    mac.knobs(headless=headless)
    assert record_mac.main(mac.machine(platform), tmp_path / "out") == code
    assert [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()] == ["error", "hint"]
    assert not (tmp_path / "out").exists()
    mac.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("inet 127.0.0.1 netmask 0xff000000", "inet 127.0.0.1 netmask 0xff000000"),
        ("inet 203.0.113.9 netmask 0xffffff00", "inet 192.0.2.1 netmask 0xffffff00"),
        ("inet 100.101.102.103 --> 100.101.102.103", "inet 100.64.0.1 --> 100.64.0.1"),
        ("inet6 fe80::1%lo0 prefixlen 64", "inet6 fe80::1%lo0 prefixlen 64"),
        ("inet6 fe80::aede:48ff:fe00:1122%en5 prefixlen 64", "inet6 fe80::2%en5 prefixlen 64"),
        ("inet6 2a02:8108:1:2::3 prefixlen 64", "inet6 2001:db8::1 prefixlen 64"),
        ("inet6 fd7a:115c:a1e0::1901:6667 prefixlen 48", "inet6 fd7a:115c:a1e0::1 prefixlen 48"),
        ("ether ac:de:48:00:11:22", "ether 00:00:00:00:00:00"),
        ("Mon Nov 30 21:00:00 2026", "Mon Nov 30 21:00:00 2026"),
        ("15.6.1", "15.6.1"),
        ("dyld::x at 12:30", "dyld::x at 12:30"),
    ],
)
def test_addresses_are_hidden(text, expected):
    """Each address that could be someone's becomes one of documentation, of the same kind; nothing else changes."""
    assert addresses_hidden(text) == expected
