"""launchd: the plists that are rendered, and what is made of launchctl's few words."""

from __future__ import annotations

import os
import plistlib
import subprocess
from pathlib import Path

import pytest

import proxy
from proxy.manage.machine import plists
from proxy.manage.machine.job_state import JobState
from proxy.manage.machine.launchd import OLLAMA, PROXY, WARM, Launchd, LaunchdError, plist_path
from proxy.manage.machine.machine import Ran
from proxy.manage.machine.plists import PlistError, render
from tests.support.mac.fake_launchd import SLEEPER, STUBBORN, Agents, alive, end, until

VALUES = {"HOME": "/Users/a", "PYTHON": "/p/bin/python", "LOGS": "/Users/a/Library/Logs/p", "OLLAMA": "/o/ollama"}
WORDS = ["a:8b", "b:latest", "--wait=10m"]

each_label = pytest.mark.parametrize("label", [PROXY, OLLAMA, WARM])


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


def rendered(label, **more):
    return plistlib.loads(render(label, {**VALUES, "WORDS": WORDS, **more}))


def running(jobs, label=PROXY):
    """Return the state of a job once it runs."""
    return until(lambda: (state := jobs.state(label)).running and state)


# --- plists -----------------------------------------------------------------------------------------------------------


@each_label
def test_plist_is_valid(agents, label, tmp_path):
    """A rendered plist passes plutil's check and the types of launchd's keys, whatever characters the values have."""
    odd = {name: f"{value} <&]]> 'é'" for name, value in VALUES.items()}
    path = tmp_path / "rendered.plist"
    path.write_bytes(render(label, {**odd, "WORDS": ["<&"], "OLLAMA_ENV": {"OLLAMA_MODELS": "/m & n"}}))
    done = agents.machine().run("plutil", "-lint", path)
    assert (done.code, done.out) == (0, f"{path}: OK\n")
    assert plistlib.loads(path.read_bytes())["EnvironmentVariables"]["HOME"] == odd["HOME"]


@each_label
def test_template_says_why(label):
    """In a template a comment stands before each key of the root."""
    text = plists.template(label).read_text()
    keys = [key for key in plistlib.loads(text.encode()) if f"    <key>{key}</key>" in text]
    explained = {part.partition("</key>")[0] for part in text.split("-->\n    <key>")[1:]} | {
        "HardResourceLimits",  # explained together with the soft ones,
        "StandardErrorPath",  # and with standard output
    }
    assert set(keys) <= explained


@pytest.mark.parametrize("label", [PROXY, OLLAMA])
def test_what_both_are(label):
    """Both services start at login and after every end, aren't throttled, and may open many files."""
    plist = rendered(label)
    assert plist["Label"] == label
    assert (plist["RunAtLoad"], plist["KeepAlive"], plist["ProcessType"]) == (True, True, "Interactive")
    for limits in ("SoftResourceLimits", "HardResourceLimits"):
        assert plist[limits]["NumberOfFiles"] == 16384
    variables = plist["EnvironmentVariables"]
    assert variables["HOME"] == "/Users/a"
    for path in (plist["ProgramArguments"][0], plist["StandardOutPath"], plist["StandardErrorPath"]):
        assert path.startswith("/")
    assert "@" not in str(plist)


def test_proxy_has_time_to_drain():
    """The proxy isn't killed before drain_timeout, and logs where only its owner looks."""
    plist = rendered(PROXY)
    assert plist["ExitTimeOut"] == 40
    assert plist["ProgramArguments"] == ["/p/bin/python", "-I", "-m", "proxy"]
    assert plist["EnvironmentVariables"]["PROXY_DIAGNOSTICS_LOG"] == "/Users/a/Library/Logs/p/diagnostics.log"
    assert plist["StandardOutPath"] == plist["StandardErrorPath"] == "/Users/a/Library/Logs/p/launchd.log"
    assert rendered(PROXY, EXIT_TIMEOUT=90, FILES=65536)["ExitTimeOut"] == 90


def test_warming_is_done_once():
    """What warms models runs at login and not again by itself: a load that fails costs what a good one does."""
    plist = rendered(WARM)
    assert plist["ProgramArguments"] == ["/p/bin/python", "-I", "-m", "proxy", "warm", *WORDS]
    assert (plist["RunAtLoad"], "KeepAlive" in plist, plist["ProcessType"]) == (True, False, "Background")
    assert plist["EnvironmentVariables"] == {"HOME": "/Users/a"}
    assert plist["StandardOutPath"] == plist["StandardErrorPath"] == "/Users/a/Library/Logs/p/warm.log"
    assert "@" not in str(plist)


def test_ollama_stays_on_loopback():
    """Ollama's own variables are kept, but for those that would open it to the network or the cloud."""
    mine = {"OLLAMA_HOST": "0.0.0.0", "OLLAMA_NO_CLOUD": "0", "OLLAMA_MODELS": Path("/m"), "OLLAMA_NUM_PARALLEL": 2}
    plist = rendered(OLLAMA, OLLAMA_ENV=mine)
    assert plist["ProgramArguments"] == ["/o/ollama", "serve"]
    assert plist["EnvironmentVariables"] == {
        "OLLAMA_MODELS": "/m",
        "OLLAMA_NUM_PARALLEL": "2",
        "HOME": "/Users/a",
        "OLLAMA_HOST": "127.0.0.1:11434",
        "OLLAMA_NO_CLOUD": "1",
    }
    assert plist["StandardOutPath"] == plist["StandardErrorPath"] == "/Users/a/Library/Logs/p/ollama.log"


def test_ollama_follows_upstream():
    """Another port on loopback may be given; an address that others reach may not."""
    assert rendered(OLLAMA, OLLAMA_HOST="[::1]:11435")["EnvironmentVariables"]["OLLAMA_HOST"] == "[::1]:11435"
    with pytest.raises(PlistError, match=r"192\.168\.1\.2:11434 is not on loopback"):
        render(OLLAMA, {**VALUES, "OLLAMA_HOST": "192.168.1.2:11434"})


def test_missing_value_is_named():
    """A template is never filled by half: the value that is missing is named."""
    with pytest.raises(PlistError, match="needs a value for @PYTHON@"):
        render(PROXY, {"HOME": "/h", "LOGS": "/l"})


def test_program_has_a_whole_path():
    """A job's program is not looked up: a program without a path is refused here."""
    with pytest.raises(PlistError, match="'ollama' is not an absolute path"):
        render(OLLAMA, {**VALUES, "OLLAMA": "ollama"})


def test_templates_are_in_the_package_once_installed(monkeypatch, tmp_path):
    """An installed package has the templates inside; without any it says so."""
    monkeypatch.setattr(proxy, "__file__", str(tmp_path / "site" / "proxy" / "__init__.py"))
    with pytest.raises(PlistError, match=r"no template for com\.ollama"):
        plists.template(OLLAMA)
    inside = tmp_path / "site" / "proxy" / "launchd"
    inside.mkdir(parents=True)
    (inside / "com.ollama.plist").touch()
    assert plists.template(OLLAMA) == inside / "com.ollama.plist"


def test_where_plists_are():
    """A user's agents are in Library/LaunchAgents, each file named after its label."""
    assert plist_path(OLLAMA, Path("/Users/a")) == Path("/Users/a/Library/LaunchAgents/com.ollama.plist")


# --- what launchctl says ----------------------------------------------------------------------------------------------


def answering(*answers):
    """Return a Launchd whose launchctl gives these answers in turn, the last one again and again."""
    left = list(answers)
    clock = iter(range(10_000))
    return Launchd(
        501,
        lambda *_, **__: left.pop(0) if len(left) > 1 else left[0],
        clock=lambda: float(next(clock)),
        sleep=lambda _: None,
    )


PRINTED = """gui/501/com.ollama = {
\tactive count = 1
\tpath = /Users/a/Library/LaunchAgents/com.ollama.plist
\tstate = %s

\tprogram = /opt/homebrew/bin/ollama
\targuments = {
\t\t/opt/homebrew/bin/ollama
\t\tserve
\t}

\tenvironment = {
\t\tODD => state = running
\t\tpid = 7
\t}

\texit timeout = 30
\truns = 3
\t%s
\t%s

\tresource coalition = {
\t\tstate = active
\t\tpid = 8
\t}
}
"""


@pytest.mark.parametrize(
    ("state", "pid", "ended", "expected"),
    [
        pytest.param("running", "pid = 812", "last exit code = (never exited)", (True, 812, None), id="running"),
        pytest.param("running", "pid = 812", "last exit code = 0", (True, 812, 0), id="came_back"),
        pytest.param("not running", "", "last exit code = 2", (False, None, 2), id="ended"),
        pytest.param("spawn scheduled", "", "last exit code = 78: EX_CONFIG", (False, None, 78), id="cannot_start"),
        pytest.param("SIGTERMed", "pid = 9", "last exit code = 0", (False, 9, 0), id="ending"),
        pytest.param("running", "pid = 9", "last terminating signal = Killed: 9", (True, 9, -9), id="killed"),
    ],
)
def test_print_is_read(state, pid, ended, expected):
    """Of what `print` shows, only the job's own entries count, not those nested in them."""
    shown = answering(Ran(0, '"com.ollama" => enabled', ""), Ran(0, PRINTED % (state, pid, ended), "")).state(OLLAMA)
    assert shown.loaded
    assert (shown.running, shown.pid, shown.last_exit) == expected
    assert (shown.program, shown.exit_timeout, shown.state) == ("/opt/homebrew/bin/ollama", 30, state)


@pytest.mark.parametrize(
    ("line", "disabled"),
    [
        pytest.param('\t\t"com.ollama" => disabled', True, id="macos_13"),
        pytest.param('\t"com.ollama" => true', True, id="before"),
        pytest.param('\t\t"com.ollama" => enabled', False, id="enabled"),
        pytest.param('\t\t"com.ollama.other" => disabled', False, id="another"),
    ],
)
def test_disabled_is_read(line, disabled):
    """Both spellings of a disabled job are understood."""
    shown = answering(Ran(0, f"disabled services = {{\n{line}\n}}", ""), Ran(113, "", "")).state(OLLAMA)
    assert shown == JobState(loaded=False, disabled=disabled)


@pytest.mark.parametrize(
    ("call", "code", "message"),
    [
        pytest.param(lambda jobs: jobs.state(PROXY), 1, "launchctl: 1: no", id="print"),
        pytest.param(lambda jobs: jobs.kickstart(PROXY), 1, "can't be started: launchctl: 1: no", id="kickstart"),
        pytest.param(lambda jobs: jobs.enable(PROXY), 1, "enable failed: launchctl: 1: no", id="enable"),
        pytest.param(lambda jobs: jobs.kickstart(PROXY), 3, "is not loaded", id="kickstart_3"),
        pytest.param(lambda jobs: jobs.kickstart(PROXY), 113, "is not loaded", id="kickstart_113"),
    ],
)
def test_other_codes_are_told(call, code, message):
    """A code that isn't known to be harmless is an error with launchctl's first line in it."""
    with pytest.raises(LaunchdError, match=message) as raised:
        call(answering(Ran(code, "", f"\nlaunchctl: {code}: no\nTry re-running the command as root.")))
    assert raised.value.code == code
    assert raised.value.hint


def test_bootout_that_fails_is_told():
    """A job that can't be unloaded is an error, not something to wait for."""
    jobs = answering(Ran(0, "", ""), Ran(113, "", ""), Ran(1, "", "Boot-out failed: 1: Operation not permitted"))
    with pytest.raises(LaunchdError, match="can't be unloaded: Boot-out failed: 1: Operation not permitted"):
        jobs.bootout(PROXY)


def test_bootout_waits_longer_than_the_exit_timeout():
    """A job that outlasts its ExitTimeOut by 15 s is an error that names it."""
    with pytest.raises(LaunchdError, match=r"com\.ollama is still there 45 s after it was asked to end"):
        answering(Ran(0, PRINTED % ("SIGTERMed", "pid = 9", ""), "")).bootout(OLLAMA)


# --- a life under the fake launchd ------------------------------------------------------------------------------------


def test_life_of_a_job(agents, jobs):
    """A job is loaded and runs, comes back after an end, is started again, and is gone when bootout returns."""
    path = agents.plist(PROXY)
    assert jobs.state(PROXY) == JobState(loaded=False)
    jobs.bootstrap(path)
    first = running(jobs)
    assert (first.loaded, first.program, first.last_exit) == (True, SLEEPER[0], None)
    end(first.pid)
    second = until(lambda: (state := jobs.state(PROXY)).pid not in {None, first.pid} and state)
    assert second.last_exit == -9
    jobs.kickstart(PROXY)
    third = until(lambda: (state := jobs.state(PROXY)).pid not in {None, second.pid} and state)
    jobs.bootout(PROXY)
    assert jobs.state(PROXY) == JobState(loaded=False)
    assert not alive(third.pid)


def test_environment_of_a_job(agents, jobs, tmp_path):
    """A job has the variables of its plist, launchd's short PATH, its limit of files, and nothing of who loaded it."""
    shown = tmp_path / "shown"
    script = f"env > '{shown}.new'; ulimit -n >> '{shown}.new'; mv '{shown}.new' '{shown}'; exec sleep 1000"
    limits = {f"{kind}ResourceLimits": {"NumberOfFiles": 300} for kind in ("Soft", "Hard")}
    jobs.bootstrap(agents.plist(PROXY, ("/bin/sh", "-c", script), EnvironmentVariables={"A": "b c"}, **limits))
    lines = until(lambda: shown.exists() and shown.read_text()).splitlines()
    assert {"A=b c", f"HOME={agents.home}", "PATH=/usr/bin:/bin:/usr/sbin:/sbin", "300"} <= set(lines)
    assert not [line for line in lines if line.startswith("FAKE_")]


def test_stubborn_job_is_killed(agents, jobs, tmp_path):
    """An unloading ends when a job that ignores SIGTERM was killed after its ExitTimeOut."""
    out = tmp_path / "out"
    agents.knobs(pace=20)
    jobs.bootstrap(agents.plist(PROXY, STUBBORN, ExitTimeOut=8, StandardOutPath=str(out)))
    pid = running(jobs).pid
    until(lambda: out.read_text() == "on\n")
    jobs.bootout(PROXY)
    assert not alive(pid)


@pytest.mark.parametrize("knobs", [{}, {"in_progress": True}], ids=["0", "36"])
def test_bootout_is_waited_for(agents, jobs, knobs):
    """Of a bootout launchctl returns, with 0 or 36, while the job is still there; we don't."""
    agents.knobs(**knobs)
    jobs.bootstrap(agents.plist(PROXY))
    running(jobs)
    jobs.bootout(PROXY)
    assert agents.job(PROXY) is None


def test_bootout_of_nothing(jobs):
    """A job that isn't loaded needs no unloading."""
    jobs.bootout(PROXY)
    assert not jobs.state(PROXY).loaded


def refused(jobs, path):
    """Return the error of a bootstrap."""
    with pytest.raises(LaunchdError) as raised:
        jobs.bootstrap(path)
    return str(raised.value), raised.value.hint


def test_loaded_twice(agents, jobs):
    """Error 5 is explained: the job is loaded already."""
    path = agents.plist(PROXY)
    jobs.bootstrap(path)
    running(jobs)
    text, hint = refused(jobs, path)
    assert "is loaded already, or has not ended yet (running)" in text
    assert hint == f"launchctl print gui/{os.getuid()}/{PROXY}"


def test_disabled(agents, jobs):
    """Error 5 is explained: the job is disabled. Once enabled, it can be loaded."""
    path = agents.plist(PROXY)
    jobs.disable(PROXY)
    assert jobs.state(PROXY).disabled
    assert refused(jobs, path) == (f"{PROXY} is disabled", f"launchctl enable gui/{os.getuid()}/{PROXY}")
    jobs.enable(PROXY)
    jobs.bootstrap(path)
    assert running(jobs).disabled is False


def test_bad_plist(agents, jobs):
    """Error 5 is explained: the plist is broken, and where."""
    path = agents.plist(PROXY)
    path.write_text("<plist><dict></plist>")
    text, hint = refused(jobs, path)
    assert text.startswith(f"{path} is not a plist: {path}: (mismatched tag: line 1")
    assert hint == f"plutil -lint '{path}'"


def test_wrong_type_in_plist(agents, jobs):
    """A value of the wrong type is found."""
    path = agents.plist(PROXY, ExitTimeOut="40")
    with pytest.raises(LaunchdError, match="ExitTimeOut is of the wrong type"):
        jobs.reload(PROXY, path)
    assert agents.verbs() == []


def test_no_plist(agents, jobs):
    """Error 5 is explained: there is not a plist."""
    path = plist_path(PROXY, agents.home)
    assert refused(jobs, path) == (f"there is no {path}", "python -m proxy install")


def test_plist_of_others(agents, jobs):
    """A plist that others may write to isn't loaded; the hint corrects it."""
    path = agents.plist(PROXY)
    path.chmod(0o666)
    text, hint = refused(jobs, path)
    assert "only you may write to it" in text
    assert hint == f"chmod 600 '{path}'"


def test_nobody_at_the_screen(agents, jobs):
    """Over SSH, with nobody logged in at the screen, there is no domain: said in so many words."""
    path = agents.plist(PROXY)
    assert jobs.domain_available()
    agents.knobs(headless=True)
    assert not jobs.domain_available()
    text, hint = refused(jobs, path)
    assert text == f"launchd has no gui/{os.getuid()}: nobody is logged in at this Mac's screen"
    assert hint.startswith("log in at the screen")
    assert jobs.state(PROXY) == JobState(loaded=False)


def test_unknown_cause_of_a_5(agents, jobs):
    """A 5 without a visible cause is reported in launchctl's own words; the hint names the switch it never shows."""
    agents.knobs(transient=1)
    text, hint = refused(jobs, agents.plist(PROXY))
    assert text == f"{PROXY} can't be loaded: Bootstrap failed: 5: Input/output error"
    assert hint.startswith("launchctl error 5; or System Settings, General, Login Items")


def test_reload(agents, jobs):
    """A reload ends the old process, reads the plist again, and bears with the 5 that follows for a while."""
    path = agents.plist(PROXY)
    jobs.reload(PROXY, path)
    first = running(jobs)
    agents.plist(PROXY, ExitTimeOut=12)
    agents.knobs(transient=1)
    jobs.reload(PROXY, path)
    second = running(jobs)
    assert second.exit_timeout == 12
    assert second.pid != first.pid
    assert not alive(first.pid)
    first_load, again = ["bootout", "bootstrap", "kickstart"], ["bootout", "bootstrap", "bootstrap"]
    assert [line.split()[0] for line in agents.verbs()] == first_load + again


def test_reload_gives_up():
    """An error 5 that stays is reported after about 15 s."""
    clock = iter(range(1000))
    slept = []

    def run(*words, **_):
        if words[1] == "bootstrap":
            return Ran(5, "", "Bootstrap failed: 5: Input/output error")
        return Ran(113 if words[1:2] == ("print",) and words[2].endswith(PROXY) else 0, "", "")

    jobs = Launchd(501, run, clock=lambda: float(next(clock)), sleep=slept.append)
    with pytest.raises(LaunchdError, match="Bootstrap failed: 5"):
        jobs.reload(PROXY, plists.template(PROXY))
    assert 10 < len(slept) < 20


@pytest.mark.parametrize("hindrance", ["headless", "broken", "disabled"])
def test_reload_takes_nothing_down_in_vain(agents, jobs, hindrance):
    """What could not be loaded again is not unloaded."""
    path = agents.plist(PROXY)
    jobs.bootstrap(path)
    pid, verbs = running(jobs).pid, agents.verbs()
    if hindrance == "broken":
        path.write_text("no plist")
    elif hindrance == "disabled":
        jobs.disable(PROXY)
    else:
        agents.knobs(headless=True)
    with pytest.raises(LaunchdError):
        jobs.reload(PROXY, path)
    assert alive(pid)
    assert [line.split()[0] for line in agents.verbs()[len(verbs) :]] in ([], ["disable"])


# --- the fakes themselves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        pytest.param("bootout {target}", 3, "Boot-out failed: 3: No such process", id="bootout"),
        pytest.param("bootout --wait {target}", 64, "Unrecognized target specifier", id="bootout_wait"),
        pytest.param("kickstart {target}", 113, 'Could not find service "x" in domain for user gui:', id="kickstart"),
        pytest.param("kickstart x", 64, "Unrecognized target specifier, did you mean gui/<uid>/x?", id="bare_label"),
        pytest.param("print {target}", 113, "Bad request.", id="print"),
        pytest.param("list x", 113, 'Could not find service "x"', id="list"),
        pytest.param("stop {target}", 3, "", id="stop_takes_bare_labels"),
        pytest.param("kill SIGTERM {target}", 113, 'Could not find service "x"', id="kill"),
        pytest.param("bootstrap gui/12345 /x.plist", 125, "Bootstrap failed: 125: Domain does not", id="other_user"),
        pytest.param("error 125", 0, "", id="error"),
        pytest.param("nonsense", 64, "Unrecognized subcommand: nonsense", id="usage"),
    ],
)
def test_fake_launchctl(agents, words, code, said):
    """The fake answers with the codes and words of the real one."""
    done = agents.machine().run("launchctl", *words.format(target=f"gui/{os.getuid()}/x").split())
    assert (done.code, done.err.partition("\n")[0][: len(said)]) == (code, said)


def test_fake_keeps_alive_what_is_stopped(agents, jobs):
    """The legacy `stop` ends a job that KeepAlive starts again at once: it is no way to stop one."""
    jobs.bootstrap(agents.plist(PROXY))
    first = running(jobs).pid
    assert agents.machine().run("launchctl", "stop", PROXY).code == 0
    assert until(lambda: jobs.state(PROXY).pid not in {None, first})


def test_fake_leaves_an_orderly_end_alone(agents, jobs):
    """With SuccessfulExit = false, a program that ends with 0 stays down, as Ollama would."""
    path = agents.plist(OLLAMA, ("/bin/sh", "-c", "exit 0"), KeepAlive={"SuccessfulExit": False})
    jobs.bootstrap(path)
    state = until(lambda: (state := jobs.state(OLLAMA)).last_exit == 0 and state)
    assert state.state == "not running"


@pytest.mark.parametrize(
    "keys", [{"StandardOutPath": "/nowhere/out"}, {"ProgramArguments": ["/nowhere/program"]}], ids=["log", "program"]
)
def test_fake_cannot_start(agents, jobs, keys):
    """Without the program, or the folder of its log, a job ends with 78 and is tried again."""
    jobs.bootstrap(agents.plist(PROXY, **keys))
    state = until(lambda: (state := jobs.state(PROXY)).last_exit and state)
    assert (state.last_exit, state.state) == (78, "spawn scheduled")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(b"<plist", "(unclosed token", id="no_xml"),
        pytest.param(plistlib.dumps([1]), "the root is not a dictionary", id="array"),
        pytest.param(plistlib.dumps({"Label": "x"}), "ProgramArguments is missing", id="no_program"),
        pytest.param(plistlib.dumps({"Label": "x", "Program": "/x", "KeepAlve": True}), "KeepAlve is no key", id="key"),
        pytest.param(plistlib.dumps({"Label": "x", "Program": "/x", "ProcessType": "Fast"}), "is unknown", id="value"),
        pytest.param(
            plistlib.dumps({"Label": "x", "Program": "/x", "SoftResourceLimits": {"NumberOfFiles": True}}),
            "SoftResourceLimits is of the wrong type",
            id="nested",
        ),
    ],
)
def test_fake_plutil(agents, tmp_path, content, said):
    """The fake finds what is no XML, no plist, and no key or value of launchd's."""
    path = tmp_path / "a.plist"
    path.write_bytes(content)
    done = agents.machine().run("plutil", "-lint", path)
    assert done.code == 1
    assert said in done.err


def test_fakes_need_no_wrapper(agents):
    """The fakes are executables in their own right."""
    fake = Path(__file__).parent.parent / "fakes" / "plutil"
    assert subprocess.run([fake, "-lint"], check=False).returncode == 0
