"""Installing on a Mac of fakes: what it makes, that it repairs and upgrades, and that a failure leaves no trace."""

from __future__ import annotations

import os
import plistlib
import sys
import tomllib

import pytest

from proxy.manage.facts.mac import HAPROXY, Options
from proxy.manage.install import install
from proxy.manage.install.prove import Prove
from proxy.manage.machine import environment
from proxy.manage.machine.launchd import OLLAMA, PROXY, WARM, plist_path
from proxy.manage.machine.receipt import Receipt
from proxy.manage.machine.source import Checkout
from proxy.manage.machine.steps import Step, StepError
from proxy.settings.settings import FILE_ONLY, OPTIONS, Settings, load
from proxy.terminal.finding import Finding, Outcome
from tests.support.mac.fake_launchd import FAKES, alive, until
from tests.support.mac.fake_mac import ROOT, Mac

SEED = {
    "EnvironmentVariables": {
        "OLLAMA_HOST": "0.0.0.0:11434",
        "OLLAMA_NO_CLOUD": "0",
        "OLLAMA_MODELS": "/Volumes/Big",
        "OLLAMA_KEEP_ALIVE": "1h",
    }
}
"""What an owner's own com.ollama.plist may have."""


@pytest.fixture
def mac(tmp_path):
    """Give a Mac whose Ollama and proxy do nothing."""
    mac = Mac(tmp_path)
    yield mac
    mac.close()


def installed(mac):
    """Return the environment of the one version that is installed."""
    (version,) = mac.machine().versions.iterdir()
    return version


def next_version(monkeypatch):
    """Make the checkout a newer one."""
    monkeypatch.setattr(Checkout, "here", lambda: Checkout(ROOT, "9.9.9-00000000"))


# --- what it makes ----------------------------------------------------------------------------------------------------


def test_install(mac):
    """On a Mac with nothing but Ollama and Tailscale an install makes both agents, the command, and the settings."""
    assert mac.install() == 0
    assert mac.heard.asked == ["Go ahead?"]
    assert mac.heard.of(Outcome.FAIL) == {}
    assert mac.heard.of(Outcome.WARN) == {}
    machine = mac.machine()
    python = installed(mac) / "bin" / "python"
    assert plistlib.loads(plist_path(PROXY, mac.home).read_bytes())["ProgramArguments"][0] == str(python)
    assert mac.environment(OLLAMA) == {"HOME": str(mac.home), "OLLAMA_HOST": "127.0.0.1:11434", "OLLAMA_NO_CLOUD": "1"}
    for label in (PROXY, OLLAMA):
        until(lambda label=label: mac.job(label)["state"] == "running")
    assert machine.link.resolve() == python.with_name("remote-ollama-proxy")
    assert Receipt.of(machine) == Receipt(installed(mac).name, ollama=True)
    assert mac.proofs == [("100.101.102.103", "fd7a:115c:a1e0::1901:6667")]
    assert "  http://mac.tail1234.ts.net:11434" in mac.heard.lines
    assert "  http://100.101.102.103:11434" in mac.heard.lines
    assert machine.support.stat().st_mode & 0o777 == machine.logs.stat().st_mode & 0o777 == 0o700


def test_nothing_is_left_beside(mac):
    """What is written is written next to its place first, and nothing of that stays."""
    mac.install()
    machine = mac.machine()
    assert {path.name for path in machine.support.iterdir()} == {"config.toml", "receipt.json", "versions"}
    assert {path.name for path in machine.agents.iterdir()} == {f"{PROXY}.plist", f"{OLLAMA}.plist"}
    assert {path.name for path in installed(mac).iterdir()} == {"bin", ".made-of"}


def test_settings_file_names_every_option():
    """The settings file that is written sets nothing; each of its options has its default and can be uncommented."""
    text = install.config_text(Settings())
    assert tomllib.loads(text) == {}
    options = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ") and " = " in line]
    keys = {line.partition(" = ")[0] for line in options if line.partition(" = ")[0] in OPTIONS}
    assert keys == set(OPTIONS) - {"config", "diagnostics_log", *FILE_ONLY}
    assert "# [[access]]" in text
    assert "# [ollama_env]" in text


def test_settings_file_uncommented_is_the_default(tmp_path):
    """With every # removed the file says just the defaults."""
    text = install.config_text(Settings())
    lines = [
        line.removeprefix("# ") for line in text.splitlines() if line.partition(" = ")[0].removeprefix("# ") in OPTIONS
    ]
    path = tmp_path / "config.toml"
    path.write_text("\n".join(lines))
    home = {"HOME": os.environ.get("HOME", "/")}
    said = load({"config": str(path)}, home)
    silent = load({}, {"HOME": "/nowhere"})
    for option in set(OPTIONS) - {"config", "access_log"}:
        assert getattr(said.settings, option) == getattr(silent.settings, option), option


# --- again ------------------------------------------------------------------------------------------------------------


def test_twice(mac):
    """A second install finds all as it should be: nothing is built, written or restarted; it is proved again."""
    mac.install()
    before, verbs = mac.seen(), mac.verbs()
    pids = [until(lambda label=label: mac.job(label).get("pid")) for label in (PROXY, OLLAMA)]
    assert mac.install() == 0
    assert mac.heard.taken() == [Prove.title]
    assert (mac.seen(), mac.verbs(), mac.builds) == (before, verbs, 1)
    assert [mac.job(label)["pid"] for label in (PROXY, OLLAMA)] == pids


@pytest.mark.parametrize(
    "break_it",
    [
        pytest.param(lambda mac: mac.machine().link.unlink(), id="command"),
        pytest.param(lambda mac: plist_path(PROXY, mac.home).unlink(), id="plist"),
        pytest.param(lambda mac: mac.machine().receipt.unlink(), id="receipt"),
        pytest.param(
            lambda mac: mac.machine().run("launchctl", "bootout", f"gui/{os.getuid()}/{PROXY}"), id="unloaded"
        ),
        pytest.param(
            lambda mac: next(mac.machine().versions.glob("*/bin/python")).write_text("#!/bin/sh\nexit 1\n"), id="python"
        ),
    ],
)
def test_repair(mac, break_it):
    """What is missing or broken is made again by an install."""
    mac.install()
    whole = mac.seen()
    break_it(mac)
    until(lambda: mac.seen() != whole)
    assert mac.install() == 0
    assert mac.seen() == whole


def test_upgrade(mac, monkeypatch):
    """A newer checkout is built next to the old version, which goes at the end; Ollama isn't touched."""
    mac.install()
    old = {label: until(lambda label=label: mac.job(label).get("pid")) for label in (PROXY, OLLAMA)}
    next_version(monkeypatch)
    assert mac.install() == 0
    machine = mac.machine()
    assert [path.name for path in machine.versions.iterdir()] == ["9.9.9-00000000"]
    assert "9.9.9-00000000" in str(machine.link.readlink())
    assert until(lambda: mac.job(PROXY).get("pid")) != old[PROXY]
    assert mac.job(OLLAMA)["pid"] == old[OLLAMA]
    assert not [line for line in mac.verbs()[2:] if OLLAMA in line and "bootstrap" in line][1:]


def test_upgrade_that_fails(mac, monkeypatch):
    """An upgrade that can't be proved leaves the old version running as before."""
    mac.install()
    before = mac.seen()
    next_version(monkeypatch)
    assert mac.install(proof=lambda *_: [Finding("proof", Outcome.FAIL, "no answer", "look here")]) == 1
    assert mac.seen() == before
    assert mac.heard.errors == [(f"{Prove.title}: proof: no answer", "look here")]
    until(lambda: mac.job(PROXY)["state"] == "running")


def test_upgrade_moves_ollamas_log(mac):
    """An upgrade from a version that had Ollama's output in /tmp moves it to our folder, and keeps nothing aside."""
    mac.install()
    path, machine = plist_path(OLLAMA, mac.home), mac.machine()
    ours = plistlib.loads(path.read_bytes())
    former = {"StandardOutPath": "/tmp/ollama.stdout.log", "StandardErrorPath": "/tmp/ollama.stderr.log"}
    path.write_bytes(plistlib.dumps({**ours, **former}, sort_keys=False))
    machine.receipt.unlink()  # even then it is known as ours
    assert mac.install() == 0
    assert plistlib.loads(path.read_bytes()) == ours
    assert ours["StandardErrorPath"] == ours["StandardOutPath"] == str(machine.logs / "ollama.log")
    assert not machine.backup.exists()
    assert mac.uninstall() == 0
    assert not path.exists()


def test_time_to_end_that_launchd_cuts(mac):
    """A drain_timeout that launchd would cut is a warning before the install, and the live limit is reported after."""
    mac.write_config("drain_timeout = 60\n")
    assert mac.install() == 0
    found = mac.heard.of(Outcome.WARN)["drain_timeout"]
    assert "may take 75 s with drain_timeout = 60s, and launchd kills the proxy after 60" in found.detail
    assert found.hint.startswith("drain_timeout = 45 in config.toml")
    assert "        launchd gives it 60 s to end, not the 75 that its plist asks for" in mac.heard.lines


def test_finders_file_is_no_old_version(mac):
    """A .DS_Store among the versions isn't one of them: the second install has nothing to remove."""
    mac.install()
    (mac.machine().versions / ".DS_Store").write_bytes(b"Bud1")
    assert mac.install() == 0
    assert mac.heard.taken() == [Prove.title]


# --- what is there before ---------------------------------------------------------------------------------------------


def test_settings_are_kept(mac):
    """A settings file that is there stays, and decides."""
    text = "port = 11435\ndrain_timeout = 60\n"
    mac.write_config(text)
    assert mac.install() == 0
    assert mac.machine().config.read_text() == text
    assert "  http://mac.tail1234.ts.net:11435" in mac.heard.lines
    assert plistlib.loads(plist_path(PROXY, mac.home).read_bytes())["ExitTimeOut"] == 75


def test_existing_ollama(mac):
    """An existing com.ollama.plist is kept aside; its variables stay but for the two, and `ollama_env` adds more."""
    path = mac.load(OLLAMA, **SEED)
    before = path.read_bytes()
    mac.write_config('[ollama_env]\nOLLAMA_KEEP_ALIVE = "24h"\nOLLAMA_NUM_PARALLEL = 2\nOLLAMA_DEBUG = true\n')
    assert mac.install() == 0
    assert (mac.machine().backup / path.name).read_bytes() == before
    assert mac.environment(OLLAMA) == {
        "HOME": str(mac.home),
        "OLLAMA_HOST": "127.0.0.1:11434",
        "OLLAMA_NO_CLOUD": "1",
        "OLLAMA_MODELS": "/Volumes/Big",
        "OLLAMA_KEEP_ALIVE": "24h",
        "OLLAMA_NUM_PARALLEL": "2",
        "OLLAMA_DEBUG": "true",
    }


def test_ollama_env_that_goes(mac):
    """What `ollama_env` no longer says is gone at the next install, or is what it was; only then Ollama restarts."""
    mac.load(OLLAMA, **SEED)
    mac.write_config('[ollama_env]\nOLLAMA_KEEP_ALIVE = "24h"\nOLLAMA_NUM_PARALLEL = 2\n')
    mac.install()
    pid = until(lambda: mac.job(OLLAMA).get("pid"))
    mac.write_config("max_connections = 100\n[ollama_env]\nOLLAMA_KEEP_ALIVE = '24h'\nOLLAMA_NUM_PARALLEL = 2\n")
    mac.install()
    assert mac.job(OLLAMA)["pid"] == pid
    mac.write_config("")
    mac.install()
    assert until(lambda: mac.job(OLLAMA).get("pid")) != pid
    kept = {name: value for name, value in mac.environment(OLLAMA).items() if name.startswith("OLLAMA_")}
    assert kept == {
        "OLLAMA_HOST": "127.0.0.1:11434",
        "OLLAMA_NO_CLOUD": "1",
        "OLLAMA_MODELS": "/Volumes/Big",
        "OLLAMA_KEEP_ALIVE": "1h",
    }


def test_first_backup_stays(mac):
    """The plist that was there first is what is kept, also when the receipt is lost."""
    before = mac.load(OLLAMA, **SEED).read_bytes()
    mac.install()
    mac.machine().receipt.unlink()
    assert mac.install() == 0
    assert (mac.machine().backup / f"{OLLAMA}.plist").read_bytes() == before


def test_ollama_where_its_plist_says(mac):
    """The ollama that an existing plist starts is the one that goes on serving."""
    other = mac.script("Users/me/ollama/bin/ollama", (mac.root / "opt/homebrew/bin/ollama").read_text().split("\n")[1])
    mac.plist(OLLAMA, (str(other), "serve"))
    assert mac.install() == 0
    assert plistlib.loads(plist_path(OLLAMA, mac.home).read_bytes())["ProgramArguments"] == [str(other), "serve"]


def test_plist_that_is_none(mac):
    """A com.ollama.plist that can't be read is a warning; it is kept aside all the same."""
    path = mac.plist(OLLAMA)
    path.write_bytes(b"<plist><dict>")
    assert mac.install() == 0
    assert "can't be read" in mac.heard.of(Outcome.WARN)["ollama"].detail
    assert (mac.machine().backup / path.name).read_bytes() == b"<plist><dict>"


def test_haproxy_is_taken_over(mac):
    """An agent com.haproxy of the setup before is unloaded, and its plist kept where launchd doesn't look."""
    path = mac.load(HAPROXY)
    before, pid = path.read_bytes(), until(lambda: mac.job(HAPROXY).get("pid"))
    assert mac.install() == 0
    assert not path.exists()
    assert (mac.machine().backup / path.name).read_bytes() == before
    assert mac.job(HAPROXY) is None
    assert not alive(pid)
    assert Receipt.of(mac.machine()).haproxy
    assert mac.install() == 0
    assert Receipt.of(mac.machine()).haproxy


def test_haproxy_is_kept(mac):
    """With --keep-haproxy the agent is left as it is."""
    path = mac.load(HAPROXY)
    assert mac.install(Options(keep_haproxy=True)) == 0
    assert path.exists()
    assert mac.job(HAPROXY) is not None
    assert not Receipt.of(mac.machine()).haproxy


def test_proxy_only(mac):
    """With --proxy-only the Ollama that someone else manages isn't touched, nor asked for."""
    path = mac.load(OLLAMA, **SEED)
    before = path.read_bytes()
    mac.change(ollama="0.1.0")
    verbs = mac.verbs()
    assert mac.install(Options(proxy_only=True)) == 0
    assert path.read_bytes() == before
    assert not Receipt.of(mac.machine()).ollama
    assert not [line for line in mac.verbs()[len(verbs) :] if OLLAMA in line]


def test_disabled_agent(mac):
    """To install is to want it: an agent that was disabled is enabled; if the install fails it is disabled again."""
    mac.install()
    mac.machine().run("launchctl", "disable", f"gui/{os.getuid()}/{PROXY}")
    before = mac.seen()
    assert before["disabled"] == [PROXY]
    assert mac.install(proof=lambda *_: [Finding("proof", Outcome.FAIL, "no")]) == 1
    assert mac.seen() == before
    assert mac.install() == 0
    assert mac.seen()["disabled"] == []


def test_installed_copy_installs(mac, monkeypatch):
    """The installed command can install too, as after a change of `ollama_env`: it keeps the version that it is."""
    mac.install()
    whole = mac.seen()["tree"].keys()
    monkeypatch.setattr(Checkout, "here", lambda: None)
    monkeypatch.setattr(sys, "prefix", str(installed(mac)))
    mac.write_config('[ollama_env]\nOLLAMA_MODELS = "/Volumes/Big"\n')
    before = mac.verbs()
    assert mac.install() == 0
    assert mac.environment(OLLAMA)["OLLAMA_MODELS"] == "/Volumes/Big"
    assert not [line for line in mac.verbs()[len(before) :] if PROXY in line]
    assert mac.seen()["tree"].keys() == whole


# --- rolling back -----------------------------------------------------------------------------------------------------


class Breaking(Step):
    """A step that fails, before it is taken or after."""

    def __init__(self, step, when):
        self.step, self.when, self.title = step, when, step.title

    def done(self):
        return False

    def do(self):
        if self.when == "after" and not self.step.done():
            self.step.do()
        raise StepError("it broke", "mend it")

    def undo(self):
        self.step.undo()


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Give a Mac with all that an install can meet, what is found there, and how it looked. Failures restore it."""
    mac = Mac(tmp_path_factory.mktemp("full"))
    mac.load(OLLAMA, **SEED)
    mac.load(HAPROXY)
    mac.load(WARM, KeepAlive=False, program=("/bin/true", "warm", "tiny"))
    mac.write_config('[ollama_env]\nOLLAMA_NUM_PARALLEL = "2"\n')
    mac.script("opt/homebrew/bin/uv", f'exec "{sys.executable}" -S "{FAKES / "uv"}" "$@"')
    (mac.root / "Library/Frameworks/Python.framework").rename(mac.root / "away")
    yield mac, mac.installer().look(Options()), mac.seen()
    mac.close()


STEPS = 18


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", range(STEPS))
def test_failure_is_rolled_back(full, number, when):
    """Whichever step fails, and however far it came, home folder and launchd are then what they were."""
    mac, seen, before = full
    installer = mac.installer()
    steps = installer.plan(seen)
    assert len(steps) == STEPS
    steps[number] = Breaking(steps[number], when)
    installer.plan = lambda _: steps
    installer.look = lambda _: seen
    heard = mac.heard = type(mac.heard)()
    assert heard.code(lambda: install.install(installer, Options(), heard)) == 1
    assert mac.seen() == before
    assert heard.errors == [(f"{steps[number].title}: it broke", "mend it")]
    assert heard.lines[-1] == "all changes were undone"
    assert [line for line in heard.lines if line.startswith("  FAIL")] == [f"  FAIL  {steps[number].title}"]


def test_interrupt_is_rolled_back(mac):
    """Ctrl-C in the middle is a failure like any other."""
    before = mac.seen()

    def interrupted(*_):
        raise KeyboardInterrupt

    assert mac.install(builder=interrupted) == 1
    assert mac.seen() == before
    assert mac.heard.errors[0][0].endswith(": interrupted")


def test_launchd_that_refuses(mac, monkeypatch):
    """If launchd rejects the proxy's agent, Ollama's is undone too, and launchd's reason is shown."""
    path = mac.load(OLLAMA, **SEED)
    before = mac.seen()
    real = install.proxy_plist
    monkeypatch.setattr(install, "proxy_plist", lambda *given: real(*given).replace(b"Interactive", b"Frantic"))
    assert mac.install() == 1
    assert mac.seen() == before
    assert path.exists()
    assert "ProcessType Frantic is unknown" in mac.heard.errors[0][0]


def test_undo_that_fails(mac):
    """What can't be undone is reported, and doesn't stop the rest from being undone."""

    class Sticky(Step):
        title = "stick"

        def do(self):
            raise StepError("no")

        def undo(self):
            raise OSError(1, "glued")

    before = mac.seen()
    installer = mac.installer()
    installer.wrap = lambda steps: [*steps[:6], Sticky()]
    heard = mac.heard
    assert heard.code(lambda: install.install(installer, Options(), heard)) == 1
    assert heard.lines[-2:] == ["all changes were undone, except for these", "  stick: [Errno 1] glued"]
    assert mac.seen() == before


# --- asking and showing -----------------------------------------------------------------------------------------------


def test_no(mac):
    """Who answers no has nothing changed."""
    before, heard = mac.seen(), mac.heard
    heard.answer = False
    assert heard.code(lambda: install.install(mac.installer(), Options(), heard)) == 1
    assert mac.seen() == before
    assert heard.lines[-1] == "nothing was changed"


def test_problems_keep_it_from_beginning(mac):
    """With a problem nothing is asked, and nothing changed."""
    mac.change(macos="13.7")
    before = mac.seen()
    assert mac.install() == 1
    assert (mac.seen(), mac.heard.asked) == (before, [])


def test_dry_run_shows_all_of_it(mac):
    """A dry run changes nothing, and shows each file that an install writes and each change it asks launchd for."""
    mac.load(OLLAMA, **SEED)
    mac.load(HAPROXY)
    before, verbs = mac.seen(), mac.verbs()
    assert mac.install(dry_run=True) == 0
    assert (mac.seen(), mac.verbs(), mac.heard.asked) == (before, verbs, [])
    shown = "\n".join(mac.heard.lines)
    mac.install()
    machine = mac.machine()
    for path in (machine.config, machine.receipt, plist_path(PROXY, mac.home), plist_path(OLLAMA, mac.home)):
        assert f"> {path} (mode " in shown
        for line in path.read_text().splitlines():
            assert f"| {line.expandtabs(2)}".rstrip() in shown
    for line in mac.verbs()[len(verbs) :]:
        assert f"$ launchctl {line}" in shown.replace("'", "")


def test_dry_run_tells_problems(mac):
    """A dry run with problems shows the plan nevertheless, and its exit code reports the problems."""
    mac.change(macos="13.7")
    assert mac.install(dry_run=True) == 1
    assert "macos" in mac.heard.of(Outcome.FAIL)
    assert mac.heard.lines[-1] == "nothing was changed"


def test_dry_run_elsewhere(mac):
    """Without macOS a dry run says what it can't see, and shows the plan for a new Mac."""
    before = mac.seen()
    assert mac.install(dry_run=True, platform="linux") == 0
    assert mac.seen() == before
    assert "this is Linux" in mac.heard.of(Outcome.SKIP)["machine"].detail
    assert [line for line in mac.heard.lines if "$ launchctl bootstrap" in line]
    assert not mac.verbs()


def test_needs_macos(mac):
    """Without macOS an install says so in one line; exit code 3."""
    before = mac.seen()
    assert mac.install(platform="linux") == 3
    assert mac.heard.errors == [("install needs macOS, and this is Linux", "python -m proxy install --dry-run")]
    assert mac.seen() == before


# --- the environment --------------------------------------------------------------------------------------------------


def test_uv_brings_a_python(mac):
    """Without python.org's Python uv brings one into our folder; its binary, not a link that uv moves, is used."""
    (mac.root / "Library/Frameworks/Python.framework").rename(mac.root / "away")
    mac.script("opt/homebrew/bin/uv", f'exec "{sys.executable}" -S "{FAKES / "uv"}" "$@"')
    mac.install(dry_run=True)
    assert [line for line in mac.heard.lines if "uv python install --install-dir" in line]
    assert mac.install() == 0
    version = installed(mac)
    binary = mac.machine().pythons / "cpython-3.13.7-macos-aarch64-none/bin/python3.13"
    assert environment.made_of(version) == binary.resolve()
    assert mac.install() == 0
    assert mac.heard.taken() == [Prove.title]


def test_python_in_use_is_kept(mac):
    """A Python that stays where it is goes on being used when a newer one appears: the firewall knows it."""
    mac.install()
    mac.script("Library/Frameworks/Python.framework/Versions/3.14/bin/python3.14", f'exec "{sys.executable}" "$@"')
    assert mac.install() == 0
    assert mac.builds == 1


def test_python_that_is_gone(mac):
    """An environment whose Python is gone is built again on the current one, and that is reported."""
    mac.install()
    (mac.root / "Library/Frameworks/Python.framework/Versions/3.13").rename(
        mac.root / "Library/Frameworks/Python.framework/Versions/3.12"
    )
    (mac.root / "Library/Frameworks/Python.framework/Versions/3.12/bin/python3.13").rename(
        mac.root / "Library/Frameworks/Python.framework/Versions/3.12/bin/python3.12"
    )
    assert mac.install() == 0
    assert "no longer runs" in mac.heard.of(Outcome.WARN)["python"].detail
    assert mac.builds == 2


def test_build_that_fails(mac):
    """The output of a failed build command is shown, with the command."""
    tools = mac.script("bin/false", "echo no wheel for you >&2; exit 1")
    mac.script(
        "Library/Frameworks/Python.framework/Versions/3.13/bin/python3.13",
        f'case "$*" in *venv\\ --clear*) exec "{tools}";; esac; exec "{sys.executable}" "$@"',
    )
    before = mac.seen()
    assert mac.install(builder=environment.build) == 1
    assert mac.seen() == before
    text, hint = mac.heard.errors[0]
    assert "-m venv --clear" in text
    assert text.endswith("failed: no wheel for you")
    assert hint == "make setup"
