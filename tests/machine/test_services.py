"""The services: which verbs of launchd each operation takes, and that it ends when what was asked for is so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.command_line import cli
from proxy.manage.machine.launchd import OLLAMA, PROXY, Launchd, LaunchdError, plist_path
from proxy.manage.machine.plists import read_plist
from proxy.manage.machine.services import Services, log_of
from tests.support.mac.fake_launchd import Agents, alive
from tests.support.mac.typed import typed

ROOT = Path(__file__).parent.parent.parent
LABELS = {"proxy": PROXY, "ollama": OLLAMA}


@pytest.fixture
def agents(tmp_path):
    """Give a launchd whose processes end with the test."""
    made = Agents(tmp_path)
    yield made
    made.close()


@pytest.fixture
def jobs(agents):
    """Give the program's view of it."""
    return Launchd(os.getuid(), agents.machine().run)


@pytest.fixture
def act(agents, jobs):
    """Return a function that does a verb to services: (name, outcome, detail without pids) of each."""
    services = Services(jobs, agents.home, settle=0.2, spawn=1.0)

    def call(verb, which="both", **more):
        findings = services.act(verb, which, **more)
        return [(each.name, str(each.outcome), each.detail.partition(" (pid")[0], each.hint) for each in findings]

    return call


@pytest.fixture
def installed(agents):
    """Write both plists."""
    for label in LABELS.values():
        agents.plist(label)


def verbs(agents):
    """Return what launchctl was asked to change: verb and service."""
    name = {PROXY: "proxy", OLLAMA: "ollama"}
    words = [line.split() for line in agents.verbs()]
    return [f"{verb} {name[Path(last).name.removesuffix('.plist')]}" for verb, *_, last in words]


# --- one life ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("installed")
def test_life(agents, jobs, act):
    """Services are started, left alone while they run, stopped, and each operation can be repeated."""
    assert act("start") == [("ollama", "pass", "started", ""), ("proxy", "pass", "started", "")]
    first = jobs.state(PROXY).pid
    assert act("start", "proxy") == [("proxy", "pass", "runs already", "")]
    assert jobs.state(PROXY).pid == first
    stopped = "stopped; at the next login it starts again (`disable {}` keeps it down)"
    assert act("stop") == [(name, "pass", stopped.format(name), "") for name in ("proxy", "ollama")]
    assert not alive(first)
    assert act("stop") == [(name, "pass", "was not loaded", "") for name in ("proxy", "ollama")]
    assert not jobs.state(PROXY).disabled


@pytest.mark.usefixtures("installed")
def test_order(agents, act):
    """Ollama comes up first and goes down last, so that no stream is cut by its absence."""
    act("start")
    act("disable")
    changes = [line for line in verbs(agents) if not line.startswith("bootout") or "disable proxy" in verbs(agents)]
    loads = [line for line in changes if line.startswith("bootstrap")]
    assert loads == ["bootstrap ollama", "bootstrap proxy"]
    assert changes[-4:] == ["disable proxy", "bootout proxy", "disable ollama", "bootout ollama"]


@pytest.mark.usefixtures("installed")
def test_restart(agents, jobs, act):
    """A restart ends the process politely, waits until it is gone, and reads the plist again."""
    act("start", "proxy")
    first = jobs.state(PROXY).pid
    agents.plist(PROXY, ExitTimeOut=33)
    assert act("restart", "proxy") == [("proxy", "pass", "restarted", "")]
    second = jobs.state(PROXY)
    assert (second.exit_timeout, second.pid == first, alive(first)) == (33, False, False)
    assert verbs(agents)[-2:] == ["bootout proxy", "bootstrap proxy"]


@pytest.mark.usefixtures("installed")
def test_restart_of_both(agents, act):
    """A restart of both ends the proxy before Ollama, so that its streams finish."""
    act("start")
    assert act("restart") == [("ollama", "pass", "restarted", ""), ("proxy", "pass", "restarted", "")]
    assert [line for line in verbs(agents) if line.startswith("bootout")][-3:-1] == ["bootout proxy", "bootout ollama"]
    assert verbs(agents)[-1] == "bootstrap proxy"


@pytest.mark.usefixtures("installed")
def test_restart_of_both_where_ollama_is_disabled(jobs, act):
    """The proxy is up again after a restart in which Ollama failed."""
    act("start")
    act("disable", "ollama")
    assert [outcome for _, outcome, *_ in act("restart")] == ["fail", "pass"]
    assert jobs.state(PROXY).running


@pytest.mark.usefixtures("installed")
def test_restart_now(agents, jobs, act):
    """A restart with `now` kills, with one verb; the job stays loaded."""
    act("start", "proxy")
    first = jobs.state(PROXY).pid
    assert act("restart", "proxy", now=True) == [("proxy", "pass", "restarted", "")]
    second = jobs.state(PROXY)
    assert second.pid != first
    assert second.last_exit == -9
    assert verbs(agents)[-1] == "kickstart proxy"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("now", [False, True])
def test_restart_of_what_is_down(jobs, act, now):
    """Restarting what isn't loaded starts it."""
    assert act("restart", "ollama", now=now) == [("ollama", "pass", "restarted", "")]
    assert jobs.state(OLLAMA).running


@pytest.mark.usefixtures("installed")
def test_disable_and_enable(agents, jobs, act):
    """What is disabled is down and can't be started or restarted until it is enabled, which starts it."""
    act("start", "proxy")
    pid = jobs.state(PROXY).pid
    assert act("disable", "proxy") == [("proxy", "pass", "stopped, and stays down (until `enable proxy`)", "")]
    assert (jobs.state(PROXY).disabled, alive(pid)) == (True, False)
    refused = [("proxy", "fail", "is disabled", "python -m proxy enable proxy")]
    assert act("start", "proxy") == refused
    assert act("restart", "proxy") == refused
    assert act("enable", "proxy") == [("proxy", "pass", "started", "")]
    assert (jobs.state(PROXY).disabled, jobs.state(PROXY).running) == (False, True)


# --- what doesn't go by itself ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("installed")
def test_loaded_but_not_started(agents, jobs, act):
    """A job that launchd registers and leaves down each time is started."""
    agents.knobs(asleep="always")
    assert act("start", "proxy") == [("proxy", "pass", "started", "")]
    assert verbs(agents)[-1] == "kickstart proxy"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("verb", ["restart", "enable"])
def test_left_down_each_time(agents, jobs, act, verb):
    """Whatever loads a service has it run, though launchd starts nothing by itself."""
    agents.knobs(asleep="always")
    assert [outcome for _, outcome, *_ in act(verb)] == ["pass", "pass"]
    assert jobs.steady_state(PROXY).running
    assert jobs.steady_state(OLLAMA).running


@pytest.mark.usefixtures("installed")
def test_loaded_and_down(agents, jobs, act):
    """A job that is loaded and down needs no loading."""
    path = plist_path(PROXY, agents.home)
    assert agents.machine().run("launchctl", "bootstrap", jobs.domain, path).code == 0
    assert act("start", "proxy") == [("proxy", "pass", "started", "")]
    assert verbs(agents) == ["bootstrap proxy", "kickstart proxy"]


def test_does_not_stay_up(agents, act, tmp_path):
    """A program that ends at once has not been started: its exit code is reported, and where its reason is."""
    log = tmp_path / "new" / "folder" / "launchd.log"
    agents.plist(PROXY, ("/bin/sh", "-c", "echo wrong >&2; exit 2"), StandardErrorPath=str(log))
    ((_, outcome, detail, hint),) = act("start", "proxy")
    assert (outcome, detail) == ("fail", "does not stay up: it ended with exit code 2")
    assert hint == f"tail -n 20 '{log}'"
    assert "wrong\n" in log.read_text()
    assert log.parent.stat().st_mode & 0o777 == 0o700


def test_cannot_be_started(agents, act):
    """A program that is gone is reported as gone."""
    agents.plist(PROXY, ("/nowhere/python",))
    ((_, outcome, detail, hint),) = act("start", "proxy")
    assert outcome == "fail"
    assert detail.startswith("does not stay up: it ended with exit code 78 (launchd could not start it: its program")
    assert hint == f"launchctl print gui/{os.getuid()}/{PROXY}"


def test_only_the_proxy_is_installed(agents, act):
    """An Ollama of others is left to them, unless it is named."""
    agents.plist(PROXY)
    managed = ("ollama", "skip", "not one of our services: someone else manages it", "")
    assert act("start") == [managed, ("proxy", "pass", "started", "")]
    path = plist_path(OLLAMA, agents.home)
    assert act("start", "ollama") == [("ollama", "fail", f"there is no {path}", "python -m proxy install")]


def test_one_failing_stops_no_other(agents, act):
    """What is wrong with one service keeps nothing from the other."""
    agents.plist(OLLAMA, ("/nowhere/ollama",))
    agents.plist(PROXY)
    assert [outcome for _, outcome, *_ in act("start")] == ["fail", "pass"]


@pytest.mark.parametrize("verb", ["start", "stop", "restart", "disable", "enable"])
def test_nobody_at_the_screen(agents, act, verb):
    """Over SSH, with nobody at the screen, nothing is tried: neither service can be there."""
    agents.knobs(headless=True)
    with pytest.raises(LaunchdError, match="nobody is logged in at this Mac's screen"):
        act(verb)
    assert agents.verbs() == []


def test_plist_that_cannot_be_read(tmp_path):
    """A plist that is none has nothing to say, and hides nothing behind a traceback."""
    path = tmp_path / "x.plist"
    assert read_plist(path) is None
    for content in (b"", b"<plist>", b"<plist><array/></plist>", b"bplist00"):
        path.write_bytes(content)
        assert read_plist(path) is None
    assert log_of(None, "x") == f"launchctl print gui/{os.getuid()}/x"


# --- the commands -----------------------------------------------------------------------------------------------------


def command(agents, *words):
    """Run the command as its users do."""
    return typed(agents.machine(sys.platform), agents.environ, *words)


@pytest.mark.usefixtures("installed")
def test_commands(agents, jobs):
    """The commands say what they did, one line for each service; exit 0."""
    done = command(agents, "start", "ollama")
    pid = jobs.state(OLLAMA).pid
    assert (done.code, done.out, done.err) == (0, f"start\n  pass  ollama: started (pid {pid})\n", "")
    done = command(agents, "disable")
    assert [line.split(": ")[0] for line in done.out.splitlines()] == ["disable", "  pass  proxy", "  pass  ollama"]
    done = command(agents, "start")
    assert done.code == 1
    assert "  fail  proxy: is disabled\n        hint: python -m proxy enable proxy\n" in done.out


def test_commands_over_ssh(agents):
    """Where launchd has no place for the services it is one error with its hint; exit 1."""
    agents.knobs(headless=True)
    done = command(agents, "start")
    assert (done.code, done.out) == (1, "")
    error, hint = done.err.splitlines()
    assert error.startswith(f"error: launchd has no gui/{os.getuid()}")
    assert hint.startswith("hint: log in at the screen")


@pytest.mark.parametrize("verb", ["start", "stop", "restart", "disable", "enable"])
def test_commands_need_macos(monkeypatch, tmp_path, capsys, verb):
    """Without launchctl each says in one line that it needs macOS; exit 3."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main([verb]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {verb} needs macOS and its launchctl; this is ")
    assert len(err.splitlines()) == 2


@pytest.mark.parametrize("words", [["start", "proxi"], ["stop", "--port", "5"], ["start", "--now"]])
def test_wrong_usage(words, capsys):
    """A service that isn't one, and settings, are wrong usage; exit 2."""
    try:
        code = cli.main(words)
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("verb", ["status", "start", "stop", "restart", "disable", "enable"])
def test_help(verb, capsys):
    """Each command's help has an example."""
    assert cli.main([verb, "--help"]) == 0
    assert f"example:\n  python -m proxy {verb} " in capsys.readouterr().out


def test_status_command(agents):
    """`status` is readable, or one object; exit 1 when something isn't well."""
    done = command(agents, "status")
    assert (done.code, done.err) == (1, "")
    assert "proxy\n  installed  no\n" in done.out
    assert "  fail  proxy agent: is not installed\n        hint: python -m proxy install\n" in done.out
    found = json.loads(command(agents, "status", "--json").out)
    assert set(found) == {"well", "proxy", "ollama", "findings", "live"}
    assert found["live"] is None
    assert (found["well"], found["proxy"]["loaded"]) == (False, None)


@pytest.mark.parametrize("verb", ["start", "stop", "restart", "disable", "enable"])
def test_make_targets(agents, verb):
    """`make VERB` uses the installed command where there is one, and hands SERVICE on."""
    installed = agents.home / ".local" / "bin" / "remote-ollama-proxy"
    installed.parent.mkdir(parents=True)
    installed.write_text('#!/bin/sh\necho "ran $*"\n')
    installed.chmod(0o755)
    run = ["make", "-s", "-C", str(ROOT), verb, "SERVICE=proxy"]
    done = subprocess.run(run, env=os.environ | agents.environ, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == (f"ran {verb} proxy\n", 0)
