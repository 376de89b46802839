"""Warming at login, on a Mac of fakes: what makes the agent, what an upgrade makes of it, and what removes it."""

from __future__ import annotations

import os
import plistlib
import sys
from pathlib import Path

import pytest

from proxy.command_line import cli
from proxy.manage.install import warm_agent
from proxy.manage.install.agents import Agent
from proxy.manage.machine.launchd import OLLAMA, PROXY, WARM, Launchd, plist_path
from proxy.manage.machine.receipt import Receipt
from proxy.manage.machine.services import Services
from proxy.simulated_ollama import Model
from tests.install.test_install import next_version
from tests.support.mac.fake_launchd import SLEEPER, until
from tests.support.mac.fake_mac import ROOT, Mac
from tests.support.threaded_ollama import threaded

TINY = Model("tiny:latest", memory=5, gpu_share=1.0)


@pytest.fixture
def mac(tmp_path):
    """Give a Mac whose Ollama and proxy do nothing."""
    mac = Mac(tmp_path)
    yield mac
    mac.close()


@pytest.fixture
def ollama():
    """Give the Ollama that models are warmed in, in a thread of its own: an install blocks this one."""
    with threaded(TINY) as started:
        yield started


@pytest.fixture
def run(mac, monkeypatch, capsys):
    """Return a function that runs `warm` on that Mac."""
    for name in [name for name in os.environ if name.startswith(("PROXY_", "XDG_"))]:
        monkeypatch.delenv(name)
    for name in ("HOME", "PATH", "FAKE_LAUNCHD", "FAKE_STATE"):
        monkeypatch.setenv(name, mac.environ[name])

    def ran(*words):
        return cli.main(["warm", *words]), *capsys.readouterr()

    return ran


@pytest.fixture
def installed(mac):
    """Give it as after an install, as far as `warm` looks: a version, whose Python runs this checkout."""
    machine = mac.machine()
    python = machine.versions / "1.0" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nshift\nexec env PYTHONPATH="{ROOT}" "{sys.executable}" "$@"\n')  # without -I
    python.chmod(0o755)
    machine.receipt.write_bytes(Receipt("1.0").content())
    return mac


def arguments(mac):
    """Return what the agent runs."""
    return plistlib.loads(plist_path(WARM, mac.home).read_bytes())["ProgramArguments"]


def python_of(mac):
    (version,) = mac.machine().versions.iterdir()
    return str(version / "bin" / "python")


def ended(mac):
    """Return how the agent's job ended, once it has."""
    return until(lambda: (mac.job(WARM) or {}).get("ended"))


# --- making it --------------------------------------------------------------------------------------------------------


def test_at_login(installed, run, ollama):
    """With --at-login models are loaded now, and an agent has the installed command do the same at each login."""
    code, out, err = run("tiny", "--keep-alive", "2h", "--at-login", "--upstream", ollama.url)
    assert code == 0, err
    words = ["warm", "tiny:latest", "--keep-alive=2h", "--wait=10m", f"--upstream={ollama.url}"]
    assert arguments(installed) == [python_of(installed), "-I", "-m", "proxy", *words]
    assert installed.job(WARM)["plist"]["RunAtLoad"] is True
    told = out.partition("at login\n")[2].splitlines()
    assert told[2:] == [
        f"  do    load {WARM} from ~/Library/LaunchAgents/{WARM}.plist",
        "  it does the same at each login, once Ollama answers; its log: ~/Library/Logs/remote-ollama-proxy/warm.log",
        "  to undo it: python -m proxy warm --no-at-login",
    ]
    assert "1 loaded" in out.partition("at login\n")[0]
    assert run("--no-at-login")[:2] == (
        0,
        f"stopped {WARM}\nremoved {plist_path(WARM, installed.home)}\n"
        "what is loaded now stays so: `ollama stop NAME` unloads it\n",
    )
    assert (installed.job(WARM), plist_path(WARM, installed.home).exists()) == (None, False)
    assert run("--no-at-login") == (0, "nothing was to be loaded at login: nothing was changed\n", "")


def test_job(installed, run, ollama):
    """The agent's job loads the models, logs it, and ends with 0; launchd doesn't start it again."""
    assert run("tiny", "--at-login", "--upstream", ollama.url)[0] == 0
    assert ended(installed) == "last exit code = 0"
    log = (installed.machine().logs / "warm.log").read_text()
    assert " warming tiny:latest\n" in log
    assert "  pass  tiny:latest: was loaded already; stays forever" in log
    assert "1 loaded, 0 pulled, 0 failed" in log
    job = installed.job(WARM)
    assert (job["state"], job["runs"]) == ("not running", 1)


def test_job_that_is_left_down(installed, run, ollama):
    """The agent's job is run when it is made, though launchd starts nothing by itself."""
    installed.knobs(asleep="always")
    assert run("tiny", "--at-login", "--upstream", ollama.url)[0] == 0
    assert ended(installed) == "last exit code = 0"
    assert installed.job(WARM)["runs"] == 1


def test_changing_it(installed, run, ollama):
    """The agent is made once; with other models it is made again, with the same ones it stays."""
    there = ("--at-login", "--upstream", ollama.url)
    run("tiny", *there)
    before = installed.verbs()
    _, out, _ = run("tiny", *there)
    assert f"  same  load {WARM}" in out
    assert installed.verbs() == before
    run("tiny", "--keep-alive", "1h", *there)
    assert "--keep-alive=1h" in arguments(installed)
    assert installed.verbs()[len(before) :] == [
        f"bootout gui/{os.getuid()}/{WARM}", f"bootstrap gui/{os.getuid()} {plist_path(WARM, installed.home)}",
    ]  # fmt: skip


# --- when it can't be made --------------------------------------------------------------------------------------------


def test_all_must_load(installed, run, ollama):
    """An agent for a model that can't be loaded isn't made: it would fail at each login."""
    code, out, err = run("tiny", "nope", "--at-login", "--upstream", ollama.url)
    assert code == 1
    assert "1 loaded, 0 pulled, 1 failed" in out
    assert "error: the login was not changed, because all models must load first\n" in err
    assert not plist_path(WARM, installed.home).exists()


def test_needs_an_install(run, ollama):
    """A clone alone makes no agent; that is reported before anything is loaded, with exit code 3."""
    code, out, err = run("tiny", "--at-login", "--upstream", ollama.url)
    assert (code, out) == (3, "")
    assert err.startswith("error: --at-login needs the installed proxy")
    assert err.endswith("hint: make install\n")
    assert ollama.seen == []


def test_needs_an_install_that_can(installed, run, ollama):
    """An installed proxy from before there was `warm` would fail at each login, so it is to be brought up to date."""
    Path(python_of(installed)).write_text("#!/bin/sh\nexit 1\n")
    code, out, err = run("tiny", "--at-login", "--upstream", ollama.url)
    assert (code, out) == (3, "")
    assert "that one is older\nhint: make install\n" in err
    assert ollama.seen == []


def test_needs_a_screen(installed, run, ollama):
    """Over SSH alone there is no launchd to use, and that is reported first."""
    installed.knobs(headless=True)
    code, _, err = run("tiny", "--at-login", "--upstream", ollama.url)
    assert code == 1
    assert "nobody is logged in at this Mac's screen" in err
    assert ollama.seen == []


@pytest.mark.parametrize("words", [("tiny", "--at-login"), ("--no-at-login",)])
def test_needs_macos(run, monkeypatch, tmp_path, words):
    """Without launchctl there is no login to do it at; exit code 3."""
    monkeypatch.setenv("PATH", str(tmp_path))
    code, out, err = run(*words, "--upstream", "http://127.0.0.1:1")
    assert (code, out) == (3, "")
    assert f"error: {words[-1]} needs macOS and its launchctl; this is " in err


def test_launchd_that_refuses(installed, run, ollama):
    """If launchd rejects the agent, its reason is shown, and nothing of the agent stays."""
    real = (installed.commands / "launchctl").read_text()
    refuse = f'case "$*" in "bootstrap "*{WARM}*) echo "Bootstrap failed: 9: Bad file descriptor" >&2; exit 9;; esac\n'
    installed.command("launchctl", refuse + real.partition("\n")[2])
    code, out, err = run("tiny", "--at-login", "--upstream", ollama.url)
    assert (code, "  undo  load" in out) == (1, True)
    assert "Bad file descriptor" in err
    assert not plist_path(WARM, installed.home).exists()


# --- what becomes of it -----------------------------------------------------------------------------------------------


def load(mac):
    """Load the agent, as `warm` does; return the step."""
    machine = mac.machine()
    machine.logs.mkdir(parents=True, exist_ok=True)
    step = warm_agent.agent(machine, Path(python_of(mac)), ["tiny:latest", "--wait=10m"])
    step.do()
    return step


def test_upgrade_takes_it_along(mac, monkeypatch):
    """An upgrade has the agent run the new version, with the same words; a restarted Ollama comes before it."""
    mac.install()
    load(mac)
    before, old, verbs = arguments(mac), python_of(mac), mac.verbs()
    next_version(monkeypatch)
    mac.write_config('[ollama_env]\nOLLAMA_NUM_PARALLEL = "2"\n')
    assert mac.install() == 0
    assert python_of(mac) != old
    assert arguments(mac) == [python_of(mac), *before[1:]]
    assert mac.job(WARM)["plist"]["ProgramArguments"] == arguments(mac)
    loads = [line.rpartition("/")[2] for line in mac.verbs()[len(verbs) :] if line.startswith("bootstrap")]
    assert loads == [f"{OLLAMA}.plist", f"{PROXY}.plist", f"{WARM}.plist"]


def test_restarted_ollama_has_it_load_again(installed):
    """An agent that is as it should be is left alone by an install, unless Ollama was restarted before it."""
    step = load(installed)
    machine, python = installed.machine(), Path(python_of(installed))
    ollama = Agent(machine, step.agents, OLLAMA, plistlib.dumps({"Label": OLLAMA, "ProgramArguments": [*SLEEPER]}))
    words = warm_agent.words(machine)
    again = warm_agent.agent(machine, python, words, after=ollama)
    assert again.done()
    ollama.do()
    assert not again.done()


def test_agent_that_cant_be_read(installed):
    """A plist that isn't ours names no models, so an install leaves it alone."""
    machine, path = installed.machine(), plist_path(WARM, installed.home)
    assert warm_agent.words(machine) is None
    for content in (b"<plist>", plistlib.dumps({"ProgramArguments": ["/bin/true"]}), plistlib.dumps([])):
        path.write_bytes(content)
        assert warm_agent.words(machine) is None


def test_uninstall_removes_it(installed):
    """Uninstall removes the agent, and with --purge its log."""
    load(installed)
    assert installed.uninstall(purge=True) == 0
    assert (installed.job(WARM), plist_path(WARM, installed.home).exists()) == (None, False)
    assert f"  removed {plist_path(WARM, installed.home)}" in installed.heard.lines
    assert not installed.machine().logs.exists()


def test_restart_of_ollama_warms_again(installed):
    """After a restart of Ollama the models are loaded again, and that is reported. Without one they aren't."""
    load(installed)
    for label in (PROXY, OLLAMA):
        installed.plist(label)
    machine = installed.machine()
    services = Services(Launchd(os.getuid(), machine.run), installed.home, settle=0.1, spawn=2.0)
    before = len(installed.verbs())
    found = list(services.act("restart", "both"))
    assert [(each.name, each.outcome.value) for each in found] == [
        ("ollama", "pass"), ("warm", "pass"), ("proxy", "pass"),
    ]  # fmt: skip
    log = machine.logs / "warm.log"
    assert found[1].detail == f"loads its models again (see `tail -n 20 '{log}'`)"
    assert [each.name for each in services.act("start", "ollama")] == ["ollama"]
    kicks = [line for line in installed.verbs()[before:] if "kickstart" in line and WARM in line]
    assert kicks == [f"kickstart -k gui/{os.getuid()}/{WARM}"]
