"""A launchd that registers every job and starts none by itself: whatever loads a job has it started."""

from __future__ import annotations

import os
import plistlib

import pytest

from proxy.manage.facts.mac import HAPROXY
from proxy.manage.machine import launchd
from proxy.manage.machine.launchd import OLLAMA, PROXY, Launchd, LaunchdError
from proxy.manage.machine.machine import Ran
from proxy.terminal.finding import Finding, Outcome
from tests.install.test_install import SEED, next_version
from tests.support.mac.fake_launchd import SLEEPER, Agents, until
from tests.support.mac.fake_mac import Mac

DOWN = "gui/501/x = {\n\tstate = not running\n\truns = 0\n\tlast exit code = (never exited)\n}"
PENDED = DOWN.replace("runs = 0", "runs = 0\n\tpended nondemand spawn = speculative")
ENDED = "gui/501/x = {\n\tstate = not running\n\truns = 1\n\tlast exit code = 0\n}"
HELD_BACK = "gui/501/x = {\n\tstate = not running\n\truns = 3\n\tpended nondemand spawn = inefficient\n}"
XPCPROXY = "gui/501/x = {\n\tstate = xpcproxy\n\truns = 1\n\tpid = 9\n\tlast exit code = (never exited)\n}"
CANNOT = "gui/501/x = {\n\tstate = not running\n\truns = 0\n\tlast exit code = 78: EX_CONFIG\n}"
UP = "gui/501/x = {\n\tstate = running\n\truns = 1\n\tpid = 9\n}"


@pytest.fixture
def mac(tmp_path):
    """Give a Mac whose launchd starts nothing but what is demanded."""
    mac = Mac(tmp_path)
    mac.knobs(asleep="always")
    yield mac
    mac.close()


def runs(mac, label):
    """Return the job of a label once it runs."""
    return until(lambda: (job := mac.job(label) or {}).get("state") == "running" and job)


# --- whoever loads a job ----------------------------------------------------------------------------------------------


def test_install_starts_both(mac):
    """An install ends with both services running, though launchd started neither by itself."""
    assert mac.install() == 0
    assert all(runs(mac, label)["runs"] == 1 for label in (PROXY, OLLAMA))


def test_old_version_runs_again_after_a_failed_upgrade(mac, monkeypatch):
    """An upgrade that fails leaves the old version running, not only registered."""
    mac.install()
    old = mac.job(PROXY)["plist"]["ProgramArguments"]
    next_version(monkeypatch)
    assert mac.install(proof=lambda *_: [Finding("proof", Outcome.FAIL, "no answer")]) == 1
    assert runs(mac, PROXY)["plist"]["ProgramArguments"] == old


def test_first_install_that_fails_gives_ollama_back_running(mac):
    """A first install that fails leaves the owner's own Ollama running again."""
    mac.load(OLLAMA, **SEED)
    assert mac.install(proof=lambda *_: [Finding("proof", Outcome.FAIL, "no answer")]) == 1
    assert runs(mac, OLLAMA)["plist"]["EnvironmentVariables"] == SEED["EnvironmentVariables"]


def test_uninstall_starts_what_it_puts_back(mac):
    """The agents of others that an install replaced run again after an uninstall."""
    mac.load(OLLAMA, **SEED)
    mac.load(HAPROXY)
    mac.install()
    assert mac.uninstall() == 0
    for label in (OLLAMA, HAPROXY):
        assert runs(mac, label)["plist"]["ProgramArguments"] == list(SLEEPER)


# --- which jobs, and when ---------------------------------------------------------------------------------------------


class Told:
    """A launchctl that answers each `print` in turn, the last answer again and again, and notes the other verbs."""

    def __init__(self, *prints):
        self.prints = list(prints)
        self.verbs = []
        clock = iter(range(10_000))
        self.launchd = Launchd(501, self.run, clock=lambda: float(next(clock)) / 4, sleep=lambda _: None)

    def run(self, *words, **_):
        if words[1] == "print-disabled":
            return Ran(0, "", "")
        if words[1] != "print":
            self.verbs.append(" ".join(words[1:]))
            return Ran(0, "", "")
        return Ran(0, self.prints.pop(0) if len(self.prints) > 1 else self.prints[0], "")


def kicked(tmp_path, *prints, **keys):
    """Return what is asked for beyond the load of a job with those keys."""
    path = tmp_path / "x.plist"
    path.write_bytes(plistlib.dumps({"Label": "x", "Program": "/x", **keys}))
    told = Told(*prints)
    told.launchd.bootstrap(path)
    assert told.verbs.pop(0) == f"bootstrap gui/501 {path}"
    return told.verbs


@pytest.mark.parametrize(
    ("prints", "expected"),
    [
        pytest.param((UP,), [], id="runs"),
        pytest.param((XPCPROXY,), [], id="comes_up"),
        pytest.param((DOWN, DOWN, UP), [], id="runs_a_moment_later"),
        pytest.param((DOWN, ENDED), [], id="ran_and_ended"),
        pytest.param((CANNOT,), [], id="cannot_start"),
        pytest.param((PENDED, UP), ["kickstart gui/501/x"], id="pended"),
        pytest.param((DOWN,) * 20 + (UP,), ["kickstart gui/501/x"], id="stays_down"),
        pytest.param((HELD_BACK, UP), ["kickstart gui/501/x"], id="held_back_after_an_end"),
    ],
)
def test_only_what_is_left_down_is_kickstarted(tmp_path, prints, expected):
    """A job that runs, comes up, or has run is left alone. One that is left down is started without `-k`."""
    assert kicked(tmp_path, *prints, RunAtLoad=True) == expected


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        pytest.param({"RunAtLoad": True}, True, id="run_at_load"),
        pytest.param({"KeepAlive": True}, True, id="keep_alive"),
        pytest.param({"KeepAlive": {"SuccessfulExit": False}}, True, id="successful_exit_implies_run_at_load"),
        pytest.param({"KeepAlive": {"PathState": {"/x": True}}}, False, id="condition"),
        pytest.param({"RunAtLoad": False, "KeepAlive": False}, False, id="neither"),
        pytest.param({}, False, id="nothing"),
    ],
)
def test_only_what_should_start_by_itself_is_kickstarted(tmp_path, keys, expected):
    """A job that waits for a demand by its own plist isn't started."""
    assert bool(kicked(tmp_path, PENDED, UP, **keys)) is expected


def test_a_kickstart_in_vain_is_an_error(tmp_path):
    """A job that stays down after a kickstart is an error with launchd's reason, and the command that shows more."""
    with pytest.raises(LaunchdError, match=r"x is loaded, but launchd does not start it \(not running; launchd holds"):
        kicked(tmp_path, PENDED, RunAtLoad=True)


def test_steady_state_waits_for_what_comes_up():
    """A job that is just coming up is looked at once more, so that nobody reads a moment as a fault."""
    assert Told(XPCPROXY, XPCPROXY, UP).launchd.steady_state("x").running
    assert Told(XPCPROXY).launchd.steady_state("x").state == "xpcproxy"
    assert Told(DOWN).launchd.steady_state("x").state == "not running"


# --- the fake ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def agents(tmp_path):
    """Give a launchd whose processes end with the test."""
    made = Agents(tmp_path)
    yield made
    made.close()


def printed(agents):
    """Return what the fake prints of the proxy's job, by key."""
    done = agents.machine().run("launchctl", "print", f"gui/{os.getuid()}/{PROXY}")
    own = [line[1:] for line in done.out.splitlines() if line.startswith("\t") and line[1] != "\t"]
    return dict(line.split(" = ", 1) for line in own if " = " in line and not line.endswith("{"))


def bootstrap(agents, **keys):
    """Load the proxy's job as a shell does."""
    path = agents.plist(PROXY, **keys)
    assert agents.machine().run("launchctl", "bootstrap", f"gui/{os.getuid()}", path).code == 0


def test_fake_leaves_the_first_load_down(agents):
    """The fake leaves a label's first load down until a kickstart, and shows why."""
    bootstrap(agents)
    seen = printed(agents)
    assert (seen["runs"], seen["pended nondemand spawn"]) == ("0", "speculative")
    launchd.Launchd(os.getuid(), agents.machine().run).start_if_left_down(PROXY)
    assert "pended nondemand spawn" not in printed(agents)
    Launchd(os.getuid(), agents.machine().run).bootout(PROXY)
    bootstrap(agents)
    until(lambda: agents.job(PROXY).get("pid"))


def test_fake_shows_xpcproxy_before_running(agents):
    """The first look after a start sees launchd's own process, as on a Mac."""
    agents.knobs(asleep="never")
    bootstrap(agents)
    until(lambda: agents.job(PROXY)["state"] == "running")
    first, second = printed(agents), printed(agents)
    assert (first["state"], second["state"]) == ("xpcproxy", "running")
    assert first["pid"] == second["pid"]


@pytest.mark.parametrize(("asked", "live"), [(30, "30"), (60, "60"), (90, "60"), (215, "60")])
def test_fake_clamps_exit_time_out(agents, asked, live):
    """An agent gets 60 s to end at most, whatever its plist asks for."""
    bootstrap(agents, ExitTimeOut=asked)
    assert printed(agents)["exit timeout"] == live


def test_fake_puts_an_end_down_to_a_reason(agents):
    """What the kernel ends for a reason of its own has that reason, and neither a code nor a signal."""
    agents.knobs(asleep="never", reasons={PROXY: "OS_REASON_CODESIGNING"})
    bootstrap(agents, program=("/bin/sh", "-c", "exit 0"), KeepAlive=False)
    seen = until(lambda: "last exit reason" in (seen := printed(agents)) and seen)
    assert seen["last exit reason"] == "OS_REASON_CODESIGNING"
    assert "last exit code" not in seen
