"""A Mac for the tests of verify, on which both services are installed and run, as far as anyone can see.

Its launchctl, plutil, socketfilterfw and Tailscale are the fakes of others. A test decides what lsof and servers say,
and which processes there are, so that no process, port or address need be there.

mac = Installed(tmp_path)
mac.listens(ollama=[("*", 11434)])
assert wrong(mac.found(ollama.exposure)) == [...]
mac.close()
"""

from __future__ import annotations

import http.client
import json
import os
import plistlib
import time
from dataclasses import replace
from time import strftime

import pytest

from proxy import __version__
from proxy.logs.logfile import json_line
from proxy.manage.facts.answers import Answer
from proxy.manage.facts.facts import Facts
from proxy.manage.findings.table import TABLE, Counts, When, timed
from proxy.manage.install.agents import ollama_plist, proxy_plist
from proxy.manage.machine.launchd import OLLAMA, PROXY, plist_path
from proxy.manage.machine.processes import Process
from proxy.settings.settings import load
from proxy.tailnet.localapi import Places
from proxy.tailnet.tailscale import Tailscale
from proxy.terminal.finding import Outcome
from tests.support.mac.fake_mac import FRAMEWORK, Mac

ADDRESS, ADDRESS6, LAN = "100.101.102.103", "fd7a:115c:a1e0::1901:6667", "192.168.7.20"
PORT = 11434
PIDS = {"proxy": 70001, "ollama": 70002}
BEGUN = 1_795_000_000  # when both were started, in seconds since 1970

RUN = "python -m proxy"
LSOF = f"sudo lsof -nP -iTCP:{PORT} -sTCP:LISTEN"


class Network:
    """What answers where, on addresses that this machine doesn't have."""

    def __init__(self):
        self.at = {("127.0.0.1", PORT): self.ollama, (ADDRESS, PORT): self.proxy, (ADDRESS6, PORT): self.proxy}
        self.documents = {
            "/api/version": {"version": "0.32.15"},
            "/api/status": {"cloud": {"disabled": True, "source": "env"}},
            "/api/tags": {"models": [{"name": "tiny:latest"}]},
        }

    def ask(self, host, port, method, target, timeout=10):
        """Answer as proof.ask does."""
        if (host, port) not in self.at:
            raise ConnectionRefusedError(111, "Connection refused")
        return self.at[host, port](method, target)

    def ollama(self, method, target):
        if method == "GET" and target in self.documents:
            return Answer(200, json.dumps(self.documents[target]).encode())
        return Answer(404, b"404 page not found")

    def proxy(self, method, target):
        if method == "GET":
            return Answer(200, b'{"version":"0.32.15"}', "1a2b")
        return Answer(403, b'{"error":"`POST /api/pull` is not on this proxy\'s allowlist"}', "1a2c")

    def nonsense(self, *_):
        raise http.client.BadStatusLine("SSH-2.0-OpenSSH_9.9")


class Installed(Mac):
    """A Mac with both services installed and running, for what asks; its processes aren't real."""

    def __init__(self, folder):
        super().__init__(folder)
        self.network = Network()
        machine = self.machine()
        self.logs, self.config = machine.logs, machine.config
        for each in (machine.support, self.logs):
            each.mkdir(mode=0o700, parents=True)
        self.python = machine.versions / f"{__version__}-12345678" / "bin" / "python"
        self.python.parent.mkdir(parents=True)
        framework = self.root / FRAMEWORK / "bin" / "python3.13"
        self.python.symlink_to(framework)
        (self.python.parent.parent / ".made-of").write_text(str(framework.resolve()))
        self.put(self.config, "# nothing\n")
        self.put(self.logs / "access.log", "")
        self.put(self.logs / "access.log.1", "")
        self.diagnostics = self.logs / "diagnostics.log"
        self.put(self.diagnostics, "")
        self.event("listening", version=__version__)
        os.utime(self.config, (BEGUN - 60, BEGUN - 60))
        settings = load({}, {"HOME": str(self.home)}).settings
        self.write(PROXY, plistlib.loads(proxy_plist(machine, settings, self.python)))
        self.variable(PROXY, "PROXY_CONFIG", str(self.config))  # where this system wouldn't look for them
        self.variable(PROXY, "PROXY_ACCESS_LOG", str(self.logs / "access.log"))
        self.write(OLLAMA, plistlib.loads(ollama_plist(machine, settings, machine.at("/opt/homebrew/bin/ollama"), {})))
        held = (("lo", [], "127.0.0.1", 8), ("en0", [], LAN, 24), ("en0", [], "fe80::1", 64))
        held += (("utun3", ["POINTOPOINT"], ADDRESS, 32), ("utun3", ["POINTOPOINT"], ADDRESS6, 128))
        addresses = [
            {"ifname": name, "flags": flags, "addr_info": [{"local": address, "prefixlen": length}]}
            for name, flags, address, length in held
        ]
        self.put(folder / "addresses.json", json.dumps(addresses))
        self.command("ip", f"cat '{folder / 'addresses.json'}'")
        self.shown, self.there = folder / "listeners", {}
        self.command("lsof", f"cat '{self.shown}'; test -s '{self.shown}'")
        # The app that a framework's command becomes, which is what macOS shows.
        app = self.root / FRAMEWORK / "Resources/Python.app/Contents/MacOS/Python"
        self.programs = {"proxy": f"{app} -I -m proxy", "ollama": "/opt/homebrew/bin/ollama serve"}
        self.listens(proxy=[(ADDRESS, PORT), (ADDRESS6, PORT)], ollama=[("127.0.0.1", PORT)])
        for name, label in (("proxy", PROXY), ("ollama", OLLAMA)):
            self.run_job(label, PIDS[name])

    # --- changes ------------------------------------------------------------------------------------------------------

    def put(self, path, text):
        """Write a file of the user's alone."""
        path.write_text(text)
        path.chmod(0o600)

    def write(self, label, plist):
        """Write a plist."""
        path = plist_path(label, self.home)
        path.write_bytes(plistlib.dumps(plist))
        path.chmod(0o644)

    def edit(self, label, **keys):
        """Change keys of a plist; None takes one away."""
        plist = {**plistlib.loads(plist_path(label, self.home).read_bytes()), **keys}
        self.write(label, {key: value for key, value in plist.items() if value is not None})

    def variable(self, label, name, value):
        """Set a variable in a plist."""
        self.edit(label, EnvironmentVariables={**self.environment(label), name: value})

    def run_job(self, label, pid, **more):
        """Have launchd run a job."""
        path = plist_path(label, self.home)
        job = {"label": label, "path": str(path), "plist": plistlib.loads(path.read_bytes()), "runs": 1}
        (self.state / "jobs" / f"{label}.json").write_text(json.dumps({**job, "state": "running", "pid": pid, **more}))

    def unload(self, label, *, remove=True):
        """Have launchd not know a job; `remove` its plist too."""
        (self.state / "jobs" / f"{label}.json").unlink()
        if remove:
            plist_path(label, self.home).unlink()

    def session(self, **variables):
        """Set variables of the login session."""
        (self.state / "environ.json").write_text(json.dumps(variables))

    def listens(self, *others, **given):
        """Have processes listen: of the services by their name, or others as (pid, program, address, port)."""
        self.listening = {**getattr(self, "listening", {}), **given}
        own = [(PIDS[name], self.programs[name], *where) for name, places in self.listening.items() for where in places]
        shown = ""
        for pid, program, address, port in [*own, *others]:
            shown += f"p{pid}\nf5\nn{f'[{address}]' if ':' in address else address}:{port}\n"
            executable = program.partition(" -")[0].removesuffix(" serve")
            self.there[pid] = Process(pid, executable=executable, command=program)
        self.shown.write_text(shown)
        for pid in PIDS.values():
            known = self.there.get(pid, Process(pid))
            self.there[pid] = replace(known, uid=os.getuid(), user="alice", begun=float(BEGUN))

    def owner(self, pid, uid, user):
        """Have a process be a user's; None: that can't be seen."""
        self.there[pid] = replace(self.there[pid], uid=uid, user=user)

    def process(self, pid):
        """Return a process that a test has run."""
        return self.there.get(pid)

    def event(self, name, seconds=1, **fields):
        """Let the proxy log its start, this many seconds after it."""
        when = strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(BEGUN + seconds))
        with self.diagnostics.open("a") as log:
            log.write(json.dumps({"time": when, "level": "info", "event": name, **fields}) + "\n")

    def settings(self, text, seconds=-60):
        """Write the settings file, so many seconds after the start of the proxy."""
        self.put(self.config, text)
        os.utime(self.config, (BEGUN + seconds, BEGUN + seconds))

    def lines(self, *lines):
        """Write the access log."""
        self.put(self.logs / "access.log", b"".join(map(json_line, lines)).decode())

    # --- looks --------------------------------------------------------------------------------------------------------

    def tailscale(self):
        """Return its Tailscale."""
        return Tailscale(Places(sockets=(), app=str(self.root), tools=(), path=str(self.commands), platform="linux"))

    def before(self, platform="darwin", **flags):
        """Return what verify finds before it asks."""
        return list(timed(self.seen_as(platform, **flags), When.VERIFY))

    def seen_as(self, platform="darwin", **flags):
        """Return the facts, with the settings that the service has."""
        return Facts.of_services(self.machine(platform), flags, tailscale=self.tailscale(), ask=self.network.ask)

    def found(self, *checks, **flags):
        """Return what checks find."""
        facts = self.seen_as(**flags)
        return [finding for check in checks for finding in check(facts)]

    def group(self, name):
        """Return the checks of a group of `verify`."""
        return [row.look for row in TABLE if row.group == name and row.verify != Counts.NEVER]

    def spelled(self, hint):
        """Return a hint with the folders that stand in capitals in it."""
        machine = self.machine()
        app = self.root / FRAMEWORK / "Resources" / "Python.app"
        places = {"LOGS": machine.logs, "AGENTS": machine.agents, "ROOT": self.root, "APP": app}
        for word, path in {**places, "SUPPORT": machine.support}.items():
            hint = hint.replace(f"'{word}", f"'{path}")
        return hint

    def close(self):
        """Forget the jobs: no process stands behind them."""
        for path in (self.state / "jobs").glob("*.json"):
            path.unlink()
        super().close()


def wrong(findings):
    """Return what isn't well, as (name, outcome, detail, hint); that a test is run by root is no news."""
    return [
        (each.name, each.outcome, each.detail, each.hint)
        for each in findings
        if each.outcome is not Outcome.PASS and not (os.getuid() == 0 and "runs as root" in each.detail)
    ]


def case(name, change, check, finding, hint):
    """Return a case of `assert_told`: what changes on the Mac, and what the check then finds."""
    return pytest.param(change, check, finding, hint, id=name)


def assert_told(mac, change, check, finding, hint):
    """Assert that after a change a check finds one thing wrong: (name, outcome, words of its detail), and that hint."""
    change(mac)
    ((name, outcome, detail, its_hint),) = wrong(mac.found(*(check if isinstance(check, tuple) else (check,))))
    words = finding[2]
    assert (name, str(outcome)) == finding[:2]
    assert words in detail
    assert its_hint == mac.spelled(hint)
    assert hint or outcome == "skip"
