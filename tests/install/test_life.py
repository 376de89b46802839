"""A whole life on a Mac of fakes, with real processes on real addresses, as its owner would see it; and on Linux.

The proxy and Ollama run under the fake launchd and follow the fake Tailscale, whose addresses stand on `lo`: root only.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.manage.machine.launchd import OLLAMA, PROXY, plist_path
from proxy.manage.machine.machine import Machine
from proxy.manage.machine.source import Checkout
from proxy.tailnet.localapi import Places
from proxy.terminal.finding import Outcome
from tests.fakes.localapi import person
from tests.support.linux.namespaces import own_network
from tests.support.mac.fake_launchd import alive, until
from tests.support.mac.fake_mac import ROOT, Mac
from tests.support.mac.typed import typed
from tests.support.patience import PATIENCE
from tests.support.ports import free_ports

VERSION, NEXT = "0.1.0-00000000", "9.9.9-00000000"
PULL = ("refused", "POST", "/api/pull", "path_not_served")
TAGS = ("allowed", "GET", "/api/tags", None)


class Life:
    """A Mac, and what its owner and a device of the tailnet do."""

    def __init__(self, mac, addresses):
        self.mac, self.addresses = mac, addresses
        self.port, upstream = free_ports(2)
        self.read = 0  # lines of the access log
        mac.write_config(f'port = {self.port}\nupstream = "http://127.0.0.1:{upstream}"\n')
        # Where the commands look that don't know that this is a Mac.
        for there, here in ((".config", "Library/Application Support"), (".local/state", "Library/Logs")):
            (mac.home / here).mkdir(exist_ok=True)
            (mac.home / there).parent.mkdir(exist_ok=True)
            (mac.home / there).symlink_to(mac.home / here)
        self.at(addresses[0])

    def at(self, address, **more):
        """Have Tailscale give this machine an address; the one device that connects has the same."""
        self.mac.tailnet(ips=[address], peers={address: person("phone", "alice@example.com")}, **more)

    def command(self, *words):
        """Run a command as its owner does; return exit code, and all that it says."""
        done = typed(self.mac.machine(sys.platform), self.mac.environ, *words)
        return done.code, done.out + done.err

    def ask(self, address, method, target):
        """Return the status of an answer, or None where nobody takes the connection."""
        connection = http.client.HTTPConnection(address, self.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            try:
                connection.request(method, target)
            except ConnectionRefusedError:
                return None
            return connection.getresponse().status

    def assert_serves(self, address):
        """An allowed request is answered and a blocked one blocked at an address; `status` and the log say so."""
        until(lambda: self.ask(address, "GET", "/api/version") == 200)
        self.read_on()
        assert (self.ask(address, "GET", "/api/tags"), self.ask(address, "POST", "/api/pull")) == (200, 403)
        fields = ("verdict", "method", "path", "reason")
        until(lambda: {TAGS, PULL} <= {tuple(map(line.get, fields)) for line in self.lines()})
        self.read_on()
        code, said = self.command("status")
        assert (code, "  fail  " in said, "  warn  " in said) == (0, False, False), said
        assert f"listens on {address}:{self.port}\n" in said
        assert "POST  /api/pull  path_not_served" in said
        assert self.lines() == []

    def assert_down(self, why):
        """Nobody answers at either address, nor beyond; `status` says why, and exits with 1."""
        assert [self.ask(address, "GET", "/api/version") for address in (*self.addresses, "127.0.0.1")] == [None] * 3
        code, said = self.command("status")
        assert (code, f"  fail  {why}" in said) == (1, True), said

    def lines(self):
        """Return the lines of the access log that weren't read yet; the last ones come a moment after the answer."""
        log = self.mac.machine().logs / "access.log"
        return [json.loads(line) for line in log.read_text().splitlines()[self.read :]]

    def read_on(self):
        """Take all lines that are there as read."""
        self.read += len(self.lines())

    def events(self, name):
        """Return the events of that name in the diagnostics."""
        lines = (self.mac.machine().logs / "diagnostics.log").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == name]

    def pid(self, label):
        """Return the process of a job."""
        return until(lambda: (self.mac.job(label) or {}).get("pid"))

    def reboot(self):
        """End all processes, and log in: launchd loads each agent that isn't disabled."""
        jobs = [label for label in (PROXY, OLLAMA) if self.mac.job(label)]
        before = [self.pid(label) for label in jobs]
        self.mac.end_jobs()
        self.mac.knobs(pace=1)
        assert not any(map(alive, before))
        disabled = self.mac.seen()["disabled"]
        for path in sorted(self.mac.machine().agents.glob("*.plist")):
            if path.stem not in disabled:
                assert self.mac.machine().run("launchctl", "bootstrap", f"gui/{os.getuid()}", path).code == 0

    def files(self):
        """Return what there is of an install: agents, versions, the command, and what is next to them."""
        machine = self.mac.machine()
        versions = machine.versions.iterdir() if machine.versions.exists() else ()
        return {
            "agents": sorted(path.stem for path in machine.agents.iterdir()),
            "support": sorted(path.name for path in machine.support.iterdir()),
            "versions": [path.name for path in versions],
            "command": os.path.lexists(machine.link),
        }


@pytest.fixture
def addresses():
    """Move this test, and what it starts, to a network of its own, whose loopback has two addresses of a tailnet."""
    if any(map(os.path.exists, Places().sockets)):
        pytest.skip("a real Tailscale runs here, and would be asked")
    both = ("100.64.20.1", "100.64.20.2")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(own_network(*both))
        except OSError as error:
            pytest.skip(f"a network with addresses of a tailnet {error}")
        yield both


@pytest.fixture
def life(tmp_path, addresses, monkeypatch):
    """Give a Mac on which nothing is installed yet."""
    monkeypatch.setattr(Checkout, "here", lambda: Checkout(ROOT, VERSION))
    mac = Mac(tmp_path, silent=False)
    yield Life(mac, addresses)
    mac.close()


def test_whole_life(life, monkeypatch):
    """An install survives reboots, address changes and upgrades, obeys its commands, and is removed without a trace."""
    is_installed(life)
    waits_for_tailscale(life)
    follows_the_address(life)
    monkeypatch.setattr(Checkout, "here", lambda: Checkout(ROOT, NEXT))
    is_upgraded(life)
    stops_and_starts(life)
    stays_down(life)
    is_uninstalled(life)


def is_installed(life):
    """A dry run changes nothing, and an install proves itself: at Tailscale's address alone."""
    mac, (first, _) = life.mac, life.addresses
    code, said = life.command("status")
    assert (code, "  fail  proxy agent: is not installed\n" in said) == (1, True)
    before = mac.seen()
    assert mac.install(dry_run=True) == 0
    assert mac.seen() == before
    assert mac.install() == 0, mac.heard
    assert (mac.heard.errors, mac.heard.of(Outcome.WARN)) == ([], {})
    until(lambda: [line["status"] for line in life.lines()][-2:] == [200, 403])  # what the proof asked
    assert life.files() == {
        "agents": [OLLAMA, PROXY],
        "support": ["config.toml", "receipt.json", "versions"],
        "versions": [VERSION],
        "command": True,
    }
    life.assert_serves(first)
    assert life.ask("127.0.0.1", "GET", "/api/version") is None


def waits_for_tailscale(life):
    """At a login before Tailscale the proxy runs and listens nowhere; it needs no restart when Tailscale is up."""
    life.mac.tailnet(state="NoState")
    life.reboot()
    proxy, _ = life.pid(PROXY), life.pid(OLLAMA)
    until(lambda: life.events("waiting_for_tailscale"))
    why = "Tailscale is starting: You are logged out. The last login error was: fetch control key: connection refused"
    life.assert_down(f"binding: it listens nowhere: {why}\n        hint: tailscale status\n")
    assert life.command("status")[1].count(why) == 1
    life.mac.tailnet(state="Running")
    life.assert_serves(life.addresses[0])
    assert life.pid(PROXY) == proxy


def follows_the_address(life):
    """A new address is listened on and the old one no longer; a connection that is open stays."""
    (first, second), proxy = life.addresses, life.pid(PROXY)
    connection = http.client.HTTPConnection(first, life.port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", "/api/version")
        sock, _ = connection.sock, connection.getresponse().read()
        life.at(second)
        until(lambda: life.events("address_gone"))
        life.assert_serves(second)
        connection.request("GET", "/api/version")
        assert connection.getresponse().status == 200
        assert connection.sock is sock
    assert life.ask(first, "GET", "/api/version") is None
    assert life.pid(PROXY) == proxy


def is_upgraded(life):
    """An upgrade restarts the proxy alone, and leaves nothing of the old version."""
    proxy, ollama = life.pid(PROXY), life.pid(OLLAMA)
    assert life.mac.install() == 0, life.mac.heard
    assert life.files()["versions"] == [NEXT]
    assert not alive(proxy)
    assert life.pid(OLLAMA) == ollama
    life.assert_serves(life.addresses[1])
    assert life.events("listening")[-1]["address"] == f"http://{life.addresses[1]}:{life.port}"


def stops_and_starts(life):
    """Each command ends when what it says is so; Ollama isn't touched by what is said to the proxy."""
    ollama = life.pid(OLLAMA)
    assert life.command("stop", "proxy")[0] == 0
    life.assert_down("proxy agent: is not loaded\n        hint: python -m proxy start proxy\n")
    assert life.command("start", "proxy")[0] == 0
    life.assert_serves(life.addresses[1])
    before = life.pid(PROXY)
    assert life.command("restart", "proxy")[0] == 0
    life.assert_serves(life.addresses[1])
    assert (life.pid(PROXY) == before, alive(before), life.pid(OLLAMA)) == (False, False, ollama)


def stays_down(life):
    """What is disabled stays down over a reboot, and `start` says why; once enabled all is as before."""
    assert life.command("disable")[0] == 0
    life.reboot()
    life.assert_down("proxy agent: is disabled\n        hint: python -m proxy enable proxy\n")
    assert life.mac.seen()["jobs"] == {}
    code, said = life.command("start")
    assert (code, said.count("is disabled")) == (1, 2)
    assert life.command("enable")[0] == 0
    life.assert_serves(life.addresses[1])


def is_uninstalled(life):
    """Settings and logs stay, all else goes; the second time there is nothing to do, and that is well."""
    mac, pids = life.mac, [life.pid(label) for label in (PROXY, OLLAMA)]
    assert mac.uninstall() == 0
    assert not any(map(alive, pids))
    assert life.files() == {"agents": [], "support": ["config.toml"], "versions": [], "command": False}
    assert not plist_path(PROXY, mac.home).exists()
    life.assert_down("proxy agent: is not installed\n")
    assert (mac.machine().logs / "access.log").stat().st_size > 0
    before = mac.seen()
    assert mac.uninstall() == 0
    assert (mac.seen(), mac.heard.errors) == (before, [])
    assert mac.uninstall(purge=True) == 0
    assert not mac.machine().support.exists()
    assert not mac.machine().logs.exists()


# --- on Linux ---------------------------------------------------------------------------------------------------------


def command(*words, **environ):
    """Run the command in a process of its own, with nothing of this one's environment."""
    run = [sys.executable, "-m", "proxy", *words]
    return subprocess.run(
        run,
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture
def home(tmp_path):
    """Give the environment of a user who has nothing."""
    if sys.platform == "darwin":
        pytest.skip("it would look at this very Mac")
    return {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}


def test_dry_run_on_linux(home):
    """A dry run shows the plan for a new Mac, says what it can't see, and makes nothing."""
    done = command("install", "--dry-run", **home)
    assert (done.returncode, done.stderr) == (0, "")
    assert "  skip  machine: " in done.stdout
    assert "this is Linux" in done.stdout
    assert f"> {home['HOME']}/Library/LaunchAgents/{PROXY}.plist (mode 644)" in done.stdout
    assert done.stdout.endswith("\nnothing was changed\n")
    assert list(Path(home["HOME"]).iterdir()) == []


def test_status_on_linux(home):
    """`status` shows what it sees, and that there is no launchd. It creates nothing."""
    (port,) = free_ports(1)
    done = command("status", "--json", "--upstream", f"http://127.0.0.1:{port}", **home)
    assert (done.returncode, done.stderr) == (1, "")
    found = json.loads(done.stdout)
    details = {(each["name"], each["outcome"]): each["detail"] for each in found["findings"]}
    assert details["proxy agent", "skip"] == details["Ollama agent", "skip"] == "Linux has no launchctl"
    assert details["Ollama HTTP", "fail"] == f"http://127.0.0.1:{port} does not answer: Connection refused"
    assert (found["well"], found["proxy"]["installed"], found["proxy"]["loaded"]) == (False, False, None)
    assert list(Path(home["HOME"]).iterdir()) == []


@pytest.mark.parametrize("verb", ["install", "uninstall", "start", "stop", "restart", "disable", "enable"])
def test_needs_macos(home, verb):
    """What needs macOS says so in one line, with a hint, and exits with 3; it asks nothing and makes nothing."""
    machine = Machine(Path(home["HOME"]), os.getuid(), path=home["PATH"], environ=home)
    done = typed(machine, home, verb)
    assert (done.code, done.out) == (3, "")
    error, hint = done.err.splitlines()
    assert error.startswith(f"error: {verb} needs macOS")
    assert error.endswith("is Linux")
    assert hint.startswith("hint: ")
    assert list(Path(home["HOME"]).iterdir()) == []
