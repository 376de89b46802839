"""Each thing that prevents an install has its own finding, with a remedy."""

from __future__ import annotations

import os
import sys

import pytest

from proxy.manage.facts.mac import BREW_OLLAMA, HAPROXY, Options
from proxy.manage.findings.table import When, findings
from proxy.manage.machine import source
from proxy.manage.machine.launchd import OLLAMA
from proxy.terminal.finding import Outcome
from tests.support.mac.fake_launchd import FAKES, until
from tests.support.mac.fake_mac import FRAMEWORK, Mac

PASSING = {
    "macos",
    "screen",
    "python",
    "source",
    "settings",
    "ollama",
    "Tailscale address",
    "tailscale serve",
    "port",
    "firewall",
    "sleep",
}
ADDRESS = "100.101.102.103"


@pytest.fixture
def mac(tmp_path):
    """Give a Mac on which all is well."""
    mac = Mac(tmp_path)
    yield mac
    mac.close()


def found(mac, outcome, options=None):
    """Return the findings of an outcome: (name, detail, hint)."""
    told = list(findings(mac.installer().look(options or Options()), When.INSTALL))
    return [(each.name, each.detail, each.hint) for each in told if each.outcome is outcome]


def process(program, *listen, pid=4711):
    return {"pid": pid, "program": program, "listen": list(listen)}


def without_framework(mac):
    (mac.root / "Library/Frameworks/Python.framework").rename(mac.root / "away")


def brew_service(mac):
    mac.load(BREW_OLLAMA)


def only_homebrews_python(mac):
    without_framework(mac)
    mac.script("opt/homebrew/opt/python@3.13/bin/python3.13", f'exec "{sys.executable}" "$@"')


def foreign_command(mac):
    link = mac.machine().link
    link.parent.mkdir(parents=True)
    link.write_text("someone's")


def firewall_on(mac, **apps):
    program = mac.root / FRAMEWORK / "Resources/Python.app"
    mac.change(firewall=1, allow_signed=False, apps={str(program): verdict for verdict in apps})


def only_uv(mac):
    without_framework(mac)
    mac.script("opt/homebrew/bin/uv", f'exec "{sys.executable}" -S "{FAKES / "uv"}" "$@"')
    mac.change(firewall=1)


def test_all_is_well(mac):
    """On a Mac on which all is well each check passes, and none has anything to add."""
    told = list(findings(mac.installer().look(Options()), When.INSTALL))
    assert {finding.name for finding in told} == PASSING
    assert {finding.outcome for finding in told} == {Outcome.PASS}


SERVE = "tailscale serve"
PROBLEMS = {
    "old_macos": (lambda mac: mac.change(macos="13.7.1"), "macos", "13.7.1; this needs 14", "softwareupdate"),
    "unknown_macos": (lambda mac: mac.change(macos=""), "macos", "unknown version", "softwareupdate"),
    "intel": (lambda mac: mac.change(arm64=False), "chip", "no Apple silicon", "M-series"),
    "sudo": (lambda mac: mac.environ.update(SUDO_USER="me"), "user", "under sudo", "python -m proxy install"),
    "headless": (lambda mac: mac.knobs(headless=True), "screen", "nobody is logged in", "Screen Sharing"),
    "wrong_settings": (lambda mac: mac.write_config("port = 0\n"), "settings", "port", "config.toml"),
    "no_ollama": (
        lambda mac: (mac.root / "opt/homebrew/bin/ollama").unlink(),
        *("ollama", "no ollama command", "brew install ollama"),
    ),
    "old_ollama": (lambda mac: mac.change(ollama="0.13.5"), "ollama", "0.13.5; this needs 0.14.0", "brew upgrade"),
    "odd_ollama": (lambda mac: mac.change(ollama="nightly"), "ollama", "doesn't report its version", "--version"),
    "brew_service": (brew_service, "ollama service", "Homebrew's service", "brew services stop ollama"),
    "app": (lambda mac: mac.change(app=True), "ollama app", "Ollama.app runs", "quit app"),
    "by_hand": (
        lambda mac: mac.change(processes=[process("ollama serve", ["127.0.0.1", 11434])]),
        *("ollama server", "127.0.0.1:11434: process 4711, ollama serve", "kill 4711"),
    ),
    "other_on_ollamas_port": (
        lambda mac: mac.change(processes=[process("/usr/bin/ruby web.rb", ["::1", 11434])]),
        *("port", "[::1]:11434 is taken by process 4711, /usr/bin/ruby web.rb", "kill 4711"),
    ),
    "tailscale_stopped": (lambda mac: mac.tailnet(state="Stopped"), "Tailscale address", "is stopped", "tailscale up"),
    "tailscale_logged_out": (
        lambda mac: mac.tailnet(state="NeedsLogin"),
        "Tailscale address",
        "not logged in",
        "tailscale up",
    ),
    "tailscale_userspace": (lambda mac: mac.tailnet(tun=False), "Tailscale address", "userspace", "tun"),
    "no_tailscale": (lambda mac: mac.tailnet(cli="dead"), "Tailscale address", "does not answer", ""),
    "serve_rule": (
        lambda mac: mac.tailnet(serve={"TCP": {"443": {"TCPForward": "127.0.0.1:11434"}}}),
        *(SERVE, "leads from its tcp port 443 past this proxy", "tailscale serve --tcp=443 off"),
    ),
    "port_taken": (
        lambda mac: mac.change(processes=[process("/usr/sbin/nginx", [ADDRESS, 11434])]),
        *("port", f"{ADDRESS}:11434 is taken by process 4711, /usr/sbin/nginx", "kill 4711"),
    ),
    "port_of_root": (
        lambda mac: mac.change(foreign=[[ADDRESS, 11434]]),
        *("port", f"{ADDRESS}:11434 is in use, but by no process of yours", "sudo lsof -nP -iTCP:11434"),
    ),
    "ollama_of_root": (
        lambda mac: mac.change(foreign=[["127.0.0.1", 11434]]),
        *("ollama server", "127.0.0.1:11434 is in use, but by no process of yours", "sudo lsof -nP -iTCP:11434"),
    ),
    "block_all": (
        lambda mac: mac.change(firewall=2),
        *("firewall", "blocks all incoming", "--setblockall off"),
    ),
    "block_all_of_old": (
        lambda mac: mac.change(firewall=1, block_all=True),
        *("firewall", "blocks all incoming", "--setblockall off"),
    ),
    "python_blocked": (lambda mac: firewall_on(mac, blocked=1), "firewall", "Python.app is blocked", "--unblockapp"),
    "python_unlisted": (firewall_on, "firewall", "Python.app is unlisted", "--unblockapp"),
    "python_that_uv_will_bring": (only_uv, "firewall", "install it first", "UV_PYTHON_INSTALL_BIN=0"),
    "foreign_command": (foreign_command, "command", "exists already, and this program didn't make it", "mv "),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_problem(mac, case):
    """A problem is the only one that is reported, with its remedy. The install then doesn't begin."""
    make, name, detail, hint = PROBLEMS[case]
    make(mac)
    before = mac.seen()
    assert mac.install() == 1
    (problem,) = mac.heard.of(Outcome.FAIL).values()
    assert problem.name == name
    assert detail in problem.detail
    assert hint in problem.hint
    assert mac.seen() == before
    assert mac.heard.errors[0][0].startswith("nothing was changed: 1 ")


WARNINGS = {
    "homebrews_python": (only_homebrews_python, "python", "may move", "python.org"),
    "haproxy": (lambda mac: mac.plist(HAPROXY), "haproxy", "is replaced", "--keep-haproxy"),
    "port_has_everywhere": (
        lambda mac: mac.change(processes=[process("/opt/homebrew/bin/haproxy -f x", ["*", 11434])]),
        *("port", "*:11434 is held by haproxy (pid 4711)", "brew services stop haproxy"),
    ),
    "sleep": (lambda mac: mac.change(sleep=10), "sleep", "sleeps after 10 minutes", "pmset -c sleep 0"),
    "path": (lambda mac: mac.environ.update(PATH=str(mac.commands)), "command", "not on your PATH", ".zprofile"),
    "shell": (lambda mac: mac.environ.update(PROXY_PORT="5"), "settings", "PROXY_PORT is set in this shell", "config"),
}


@pytest.mark.parametrize("case", WARNINGS)
def test_warning(mac, case):
    """A warning is shown, and doesn't prevent the install."""
    make, name, detail, hint = WARNINGS[case]
    make(mac)
    assert mac.install() == 0
    (warning,) = mac.heard.of(Outcome.WARN).values()
    assert warning.name == name
    assert detail in warning.detail
    assert hint in warning.hint


def test_null_among_the_origins(mac):
    """Before an install, too, an owner reads what `null` opens."""
    mac.write_config('allowed_origins = ["null"]\n')
    assert [name for name, detail, _ in found(mac, Outcome.WARN) if "any web page" in detail] == ["allowed_origins"]


def test_every_problem_at_once(mac):
    """All problems are reported together, each with a hint."""
    mac.change(macos="12.0", arm64=False, app=True, ollama="0.5.0", firewall=2)
    mac.tailnet(state="Stopped")
    mac.knobs(headless=True)
    mac.write_config("port = 0\nmax_body = 'x'\n")
    problems = found(mac, Outcome.FAIL)
    names = [name for name, *_ in problems]
    assert set(names) >= {
        "macos",
        "chip",
        "screen",
        "settings",
        "ollama",
        "ollama app",
        "Tailscale address",
        "firewall",
    }
    assert names.count("settings") == 2
    assert all(hint for *_, hint in problems)


def test_firewall_that_permits(mac):
    """A firewall that is on and lets our Python be reached is fine."""
    firewall_on(mac, permitted=1)
    assert found(mac, Outcome.WARN) == found(mac, Outcome.FAIL) == []


def test_ollama_beyond_loopback(mac):
    """An Ollama that everyone can reach is reported, next to the server that is in the way."""
    mac.change(processes=[process("/opt/homebrew/bin/ollama serve", ["*", 11434])])
    problems = {name: (detail, hint) for name, detail, hint in found(mac, Outcome.FAIL)}
    assert problems.keys() == {"ollama server", "Ollama's address"}
    assert problems["Ollama's address"][0].startswith("ollama (pid 4711) listens on *:11434: anyone who can reach")
    assert "unsetenv OLLAMA_HOST" in problems["Ollama's address"][1]


def test_our_ollama_beyond_loopback(mac):
    """An existing com.ollama that is bound beyond loopback is no problem: the install changes that."""
    mac.load(OLLAMA)
    pid = until(lambda: mac.job(OLLAMA).get("pid"))
    mac.change(processes=[process("/opt/homebrew/bin/ollama serve", ["192.168.7.2", 11434], pid=pid)])
    assert found(mac, Outcome.FAIL) == []
    ((name, detail, _),) = found(mac, Outcome.WARN)
    assert (name, detail.endswith("the installer binds it to loopback")) == ("Ollama's address", True)


def test_haproxy_that_serves(mac):
    """The port is no problem while the HAProxy that has it is to be taken over; it is when that is to stay."""
    mac.load(HAPROXY)
    pid = until(lambda: mac.job(HAPROXY).get("pid"))
    mac.change(processes=[process("/opt/homebrew/bin/haproxy", ["*", 11434], pid=pid)])
    assert found(mac, Outcome.FAIL) == []
    kept = Options(keep_haproxy=True)
    assert [name for name, *_ in found(mac, Outcome.WARN, kept)] == ["port", "haproxy"]
    mac.change(processes=[process("/opt/homebrew/bin/haproxy", [ADDRESS, 11434], pid=pid)])
    assert found(mac, Outcome.FAIL) == []
    assert [name for name, *_ in found(mac, Outcome.FAIL, kept)] == ["port"]


def test_root_has_the_port_on_every_address(mac):
    """Another user's process that listens on every address keeps both services from their ports, and isn't seen."""
    mac.change(foreign=[["*", 11434]])
    assert {name for name, *_ in found(mac, Outcome.FAIL)} == {"port", "ollama server"}


def test_ollama_of_root_that_someone_manages(mac):
    """With --proxy-only another user's Ollama is none of our business, but is named."""
    mac.change(foreign=[["127.0.0.1", 11434]])
    assert found(mac, Outcome.FAIL, Options(proxy_only=True)) == []
    assert [name for name, *_ in found(mac, Outcome.WARN, Options(proxy_only=True))] == ["ollama server"]


@pytest.mark.parametrize("tool", ["lsof", "pmset", "sysctl", "sw_vers"])
def test_tools_that_are_not_on_the_path(mac, tool):
    """The system's own tools are found where macOS keeps them, whatever PATH says."""
    mac.environ.update(PATH=str(mac.commands))
    mac.change(app=True, processes=[process("/usr/sbin/nginx", [ADDRESS, 11434])])
    before = list(findings(mac.installer().look(Options()), When.INSTALL))
    (mac.root / "usr/sbin").mkdir(parents=True)
    (mac.commands / tool).rename(mac.root / "usr/sbin" / tool)
    assert list(findings(mac.installer().look(Options()), When.INSTALL)) == before


def test_proxy_only(mac):
    """With --proxy-only Ollama is someone else's: it may be any, or none, but not bound beyond loopback."""
    mac.change(app=True, ollama="0.1.0", processes=[process("Ollama.app/ollama serve", ["127.0.0.1", 11434])])
    assert found(mac, Outcome.FAIL, Options(proxy_only=True)) == []
    mac.change(processes=[process("/Applications/Ollama.app/Contents/Resources/ollama serve", ["*", 11434])])
    ((name, _, hint),) = found(mac, Outcome.FAIL, Options(proxy_only=True))
    assert name == "Ollama's address"
    assert "Expose Ollama" in hint


def test_upstream_elsewhere(mac):
    """An upstream on another machine needs --proxy-only."""
    mac.write_config('upstream = "http://192.168.7.9:11434"\nallow_any_upstream = true\n')
    assert [name for name, *_ in found(mac, Outcome.FAIL)] == ["upstream"]
    assert found(mac, Outcome.FAIL, Options(proxy_only=True)) == []


def test_listening_elsewhere(mac):
    """Who doesn't listen on the Tailscale address needs no Tailscale; its userspace networking is a danger still."""
    mac.on_loopback()
    mac.tailnet(state="Stopped")
    assert found(mac, Outcome.FAIL) == []
    mac.tailnet(state="Running", tun=False)
    assert [name for name, *_ in found(mac, Outcome.FAIL)] == ["Tailscale address"]


def test_no_python(mac, monkeypatch):
    """Without a Python that is new enough there is nothing to install on."""
    without_framework(mac)
    monkeypatch.setattr(sys, "_base_executable", str(mac.root / "usr/bin/python3"), raising=False)
    ((name, detail, hint),) = found(mac, Outcome.FAIL)
    assert (name, "no Python 3.11" in detail, "python.org" in hint) == ("python", True, True)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        pytest.param("echo 3 10 darwin arm64", "too old", id="old"),
        pytest.param("echo 3 14 darwin x86_64", "for Intel", id="intel"),
        pytest.param("echo No module named venv >&2; exit 1", "no venv", id="no_venv"),
        pytest.param("exit 127", "does not start", id="broken"),
    ],
)
def test_python_that_will_not_do(mac, script, why):
    """A Python that is too old or broken is passed over for the next one."""
    mac.script("Library/Frameworks/Python.framework/Versions/3.14/bin/python3.14", script)
    python = mac.installer().look(Options()).interpreter
    assert python.path.name == "python3.13", why


def test_newest_python_first(mac):
    """Of several of python.org's the newest is taken: 3.14 comes after 3.9."""
    for release in ("3.9", "3.14"):
        mac.script(
            f"Library/Frameworks/Python.framework/Versions/{release}/bin/python{release}",
            f'exec "{sys.executable}" "$@"',
        )
    assert mac.installer().look(Options()).interpreter.path.name == "python3.14"


def test_newest_patch_first(mac):
    """Of several that uv keeps the newest patch is taken: 3.13.10 comes after 3.13.9."""
    without_framework(mac)
    for patch in ("9", "10"):
        python = mac.machine().pythons / f"cpython-3.13.{patch}-macos-aarch64-none/bin/python3.13"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
    assert "cpython-3.13.10-" in str(mac.installer().look(Options()).interpreter.path)


def test_uv_is_asked_before_homebrew(mac):
    """A uv that can bring a Python is better than one of Homebrew's, which moves."""
    only_homebrews_python(mac)
    mac.script("opt/homebrew/bin/uv", f'exec "{sys.executable}" -S "{FAKES / "uv"}" "$@"')
    assert found(mac, Outcome.WARN) == []
    assert mac.installer().look(Options()).interpreter.keeper == "uv"


def test_no_build_tools(mac, monkeypatch):
    """Without the packages that make a wheel `make setup` is to be run first."""
    monkeypatch.setattr(source.Checkout, "fault", lambda _: "no hatchling")
    ((name, _, hint),) = found(mac, Outcome.FAIL)
    assert (name, hint) == ("source", "make setup; then make install")


def test_neither_checkout_nor_install(mac, monkeypatch):
    """A copy of the package that is neither a checkout nor installed by an install has nothing to install from."""
    monkeypatch.setattr(source.Checkout, "here", lambda: None)
    assert [name for name, *_ in found(mac, Outcome.FAIL)] == ["source"]


def test_tools_that_say_nothing(mac):
    """What can't be found out is said to be so; it is no failure."""
    for name in ("socketfilterfw", "pmset"):
        mac.command(name, "exit 1")
    names = {name for name, *_ in found(mac, Outcome.SKIP)}
    assert names == {"firewall", "sleep"}
    assert found(mac, Outcome.FAIL) == []


def test_looking_changes_nothing(mac):
    """A look, however much there is to see, changes neither the home folder nor launchd."""
    mac.load(OLLAMA)
    mac.load(HAPROXY)
    before, verbs = mac.seen(), mac.verbs()
    mac.installer().look(Options())
    assert (mac.seen(), mac.verbs()) == (before, verbs)
    assert os.listdir(mac.home) == ["Library"]
