"""The two services as they are to be seen: settings, plists, jobs, who listens, where they should. To judge is others'.

It changes nothing, and works wherever Python does: what can't be seen is None. Each thing is looked at once, when it is
first asked for; some of it takes a second.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy import PROGRAM
from proxy.manage.findings import ports as findings_ports
from proxy.manage.findings import tailscale as findings_tailscale
from proxy.manage.findings.proof import ask
from proxy.manage.machine import environment
from proxy.manage.machine.launchd import Launchd, LaunchdError
from proxy.manage.machine.services import DAEMONS, LABELS, log_of, plist_of, read_plist, settings_environ
from proxy.settings.addresses import TAILSCALE, parse, split
from proxy.settings.settings import Settings, SettingsError, load
from proxy.tailnet.tailscale import Tailscale
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from proxy.manage.findings.ports import Listener
    from proxy.manage.findings.proof import Answer
    from proxy.manage.findings.tailscale import Facts
    from proxy.manage.machine.job_state import JobState
    from proxy.manage.machine.machine import Machine
    from proxy.settings.settings import Loaded, Problem
    from proxy.tailnet.tailscale import Tailnet

ANSWER_TIME = 2.0
"""Seconds that Ollama may take to answer: version and loaded models it has in memory."""

_OWN = re.compile(r"-m proxy\b|remote-ollama-proxy\b")  # in a command line of the proxy's
_TAIL = 2**18  # bytes of a log's end that are read: about 500 lines


class Running:
    """What runs on a machine, or should, with the settings that the service has."""

    def __init__(
        self,
        machine: Machine,
        flags: Mapping[str, str],
        tailscale: Tailscale | None = None,
        ask: Callable[..., Answer] = ask,
    ) -> None:
        self.machine = machine
        self.ask = ask
        self._told: dict[str, Any] = {}
        self.tailscale = tailscale or Tailscale()
        self.paths = {name: plist_of(machine, label) for name, label in LABELS.items()}
        self.plists = {name: read_plist(path) for name, path in self.paths.items()}
        self.loaded, self.problems = self._settings(flags)

    def _settings(self, flags: Mapping[str, str]) -> tuple[Loaded | None, tuple[Problem, ...]]:
        """Return the settings as the service has them, from its plist's variables; without one, as this shell has."""
        try:
            return load(flags, settings_environ(self.machine)), ()
        except SettingsError as error:
            return None, error.problems

    @property
    def settings(self) -> Settings:
        """The settings, or the defaults while they are wrong."""
        return self.loaded.settings if self.loaded else Settings()

    @property
    def upstream(self) -> tuple[str, int]:
        """Host and port of Ollama."""
        return split(self.settings.upstream)

    # --- launchd ------------------------------------------------------------------------------------------------------

    @cached_property
    def _asked(self) -> tuple[Mapping[str, JobState], Finding | None]:
        if self.machine.find("launchctl") is None:
            return {}, Finding("launchd", Outcome.SKIP, f"{self.machine.system} has no launchctl")
        if any(map(self.is_daemon, LABELS)):
            hint = f"sudo launchctl print system/{LABELS['proxy']}"
            return {}, Finding("launchd", Outcome.SKIP, "the services are daemons of the system, not agents", hint)
        launchd = Launchd(self.machine.uid, self.machine.run)
        try:
            launchd.need_domain()
            return {name: launchd.steady_state(label) for name, label in LABELS.items()}, None
        except LaunchdError as error:
            return {}, Finding("launchd", Outcome.FAIL, str(error), error.hint)

    @property
    def jobs(self) -> Mapping[str, JobState]:
        """What launchd reports about each service; empty if it can't be asked, and `unasked` gives the reason."""
        return self._asked[0]

    @property
    def unasked(self) -> Finding | None:
        """Why launchd can't be asked."""
        return self._asked[1]

    def is_daemon(self, name: str) -> bool:
        """Return whether a service is a daemon of the system, as docs/setup.md describes."""
        return self.paths[name] == self.machine.at(f"{DAEMONS}/{LABELS[name]}.plist")

    def start(self, name: str, verb: str = "start") -> str:
        """Return the command that starts a service, or does another `verb`."""
        if self.is_daemon(name):
            return f"sudo launchctl kickstart -k system/{LABELS[name]}"
        if self.installed(name):
            return f"{PROGRAM} {verb} {name}"
        return "ollama serve" if name == "ollama" else f"{PROGRAM} install" if self.machine.is_mac else PROGRAM

    def installed(self, name: str) -> bool:
        """Return whether there is a plist of a service, or was one that launchd still has."""
        job = self.jobs.get(name)
        return self.plists[name] is not None or (job is not None and job.loaded)

    def agent_fault(self, name: str) -> Finding | None:
        """Return what is wrong with an agent; None when it runs, or launchd can't be asked.

        An Ollama without an agent is skipped: someone else's, as with `install --proxy-only`.
        """
        job, plist, _label, path = self.jobs.get(name), self.plists[name], LABELS[name], self.paths[name]
        if job is None or (job.running and not job.disabled):
            return None
        if job.coming_up and not job.disabled:
            return Finding(name, Outcome.WARN, f"is coming up ({job.state})", f"{PROGRAM} status")
        if not job.loaded and plist is None:
            detail = f"{path} is no plist" if path.exists() else "is not installed"
            managed = name == "ollama" and not path.exists()
            return Finding(name, Outcome.SKIP if managed else Outcome.FAIL, detail, f"{PROGRAM} install")
        if job.disabled:
            return Finding(name, Outcome.FAIL, "is disabled", f"{PROGRAM} enable {name}")
        if not job.loaded:
            return Finding(name, Outcome.FAIL, "is not loaded", f"{PROGRAM} start {name}")
        detail = f"is loaded, but does not run ({job.shown}): {job.ended}"
        hint = f"{PROGRAM} start {name}" if job.left_down else _after_end(name, job, plist)
        return Finding(name, Outcome.FAIL, detail, hint)

    def program(self, name: str) -> str | None:
        """Return what the plist of a service starts."""
        plist = self.plists[name] or {}
        words = plist.get("ProgramArguments") or [plist.get("Program")]
        return words[0] if isinstance(words[0], str) else None

    def program_faults(self, name: str) -> Iterator[Finding]:
        """Report a program that isn't where the plist says, or that differs from the one it was made with."""
        program = self.program(name)
        if program is None:
            return
        path, hint = Path(program), f"{PROGRAM} install"
        if not path.exists():
            link = path.is_symlink()
            gone = f"{program} is a link to {os.readlink(path)}, which" if link else f"{program}, its program,"
            yield Finding(name, Outcome.FAIL, f"{gone} is gone: it can't be started again", hint)
        elif not os.access(path, os.X_OK):
            yield Finding(name, Outcome.FAIL, f"{program}, its program, can't be executed", hint)
        elif (made := environment.made_of(path.parent.parent)) and made != path.resolve():
            detail = (
                f"its Python moved from {made} to {path.resolve()}: the firewall may drop connections without a word"
            )
            yield Finding(name, Outcome.WARN, detail, hint)

    # --- processes and ports ------------------------------------------------------------------------------------------

    @cached_property
    def listening(self) -> tuple[Listener, ...] | None:
        """Who listens on the two ports; None where lsof isn't there."""
        return findings_ports.listeners(self.machine, {self.settings.port, self.upstream[1]})

    def unseen(self, name: str) -> Finding | None:
        """Return the finding of a service's port that another user's process has; None where that isn't so."""
        if name == "proxy":
            port = self.settings.port
            taken = (each for each in self.expected if findings_ports.in_use(self.machine, each, port))
            found = (findings_ports.unseen(name, each, port, self.listening) for each in taken)
            return next((each for each in found if each is not None), None)
        if self.ollama_version is None or not self.local_upstream:
            return None
        outcome = Outcome.FAIL if self.installed(name) else Outcome.WARN
        return findings_ports.unseen(
            name, *self.upstream, self.of(name) if self.listening is not None else None, outcome
        )

    def is_proxys(self, each: Listener) -> bool:
        """Return whether a listener is the proxy, or in its place: at its port, and not where Ollama belongs."""
        job = self.jobs.get("proxy")
        if job is not None and job.pid == each.pid:
            return True
        listen = self.settings.listen
        place = each.address in listen or (TAILSCALE in listen and not each.on_loopback and each.address != "*")
        place = place or (each.address == "*" and bool({"0.0.0.0", "::"} & set(listen)))
        return each.port == self.settings.port and place

    def is_ollamas(self, each: Listener) -> bool:
        """Return whether a listener is Ollama: at its port, and not the proxy, which may have the same."""
        if each.port != self.upstream[1] or self.is_proxys(each):
            return False
        job = self.jobs.get("ollama")
        return each.on_loopback or each.address == "*" or each.is_ollama or (job is not None and each.pid == job.pid)

    def of(self, name: str) -> list[Listener]:
        """Return the listeners that are a service, or in its place."""
        belongs = self.is_proxys if name == "proxy" else self.is_ollamas
        return [each for each in self.listening or () if belongs(each)]

    def pid(self, name: str) -> int | None:
        """Return the process of a service: launchd's where there is an agent, else whose the port is."""
        job = self.jobs.get(name)
        if job is not None and self.installed(name):
            return job.pid
        return next((each.pid for each in self.of(name)), None)

    def since(self, pid: int | None) -> datetime | None:
        """Return when a process began, to the second."""
        found = self.machine.process(pid) if pid else None
        return datetime.fromtimestamp(int(found.begun)).astimezone() if found and found.begun else None

    # --- addresses ----------------------------------------------------------------------------------------------------

    @cached_property
    def facts(self) -> Facts:
        """What Tailscale and the interfaces show of this machine."""
        return asyncio.run(findings_tailscale.look(self.tailscale, self.settings))

    @property
    def tailnet(self) -> Tailnet:
        """What Tailscale reports of this machine."""
        return self.facts.tailnet

    @property
    def expected(self) -> tuple[str, ...]:
        """The addresses that the proxy should listen on now: not those that this machine doesn't have."""
        own = [self.facts.held if each == TAILSCALE else (each,) for each in self.settings.listen]
        return tuple(dict.fromkeys(address for each in own for address in each))

    @property
    def reachable(self) -> tuple[str, ...]:
        """Those of them that can be connected to: loopback instead of a wildcard."""
        loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}
        return tuple(loopback.get(each, each) for each in self.expected)

    @property
    def local_upstream(self) -> bool:
        """Whether Ollama is on this machine, as far as its address shows."""
        host = self.upstream[0]
        try:
            return host == "localhost" or parse(host).is_loopback
        except ValueError:
            return False

    # --- answers ------------------------------------------------------------------------------------------------------

    def of_ollama(self, path: str) -> Any:
        """Return what Ollama itself answers to a GET, of JSON, or its status when that isn't 200; None: no answer."""
        if path not in self._told:
            self._told[path] = None
            try:
                answer = self.ask(*self.upstream, "GET", path, timeout=ANSWER_TIME)
                self._told[path] = json.loads(answer.content) if answer.status == 200 else answer.status
            except (OSError, http.client.HTTPException, ValueError):
                pass
        return self._told[path]

    @property
    def ollama_version(self) -> str | None:
        """Ollama's version; None if what answers isn't Ollama, or nothing answers."""
        told = self.of_ollama("/api/version")
        return str(told["version"]) if isinstance(told, dict) and "version" in told else None

    # --- logs ---------------------------------------------------------------------------------------------------------

    @property
    def diagnostics(self) -> Path | None:
        """The diagnostics log, if there is one."""
        log = self.settings.diagnostics_log
        return Path(log) if log and Path(log).exists() else None

    @property
    def log(self) -> str:
        """A command that shows the proxy's diagnostics."""
        return f"{PROGRAM} logs --diagnostics" if self.diagnostics else f"{PROGRAM} status"

    @cached_property
    def events(self) -> tuple[Mapping[str, Any], ...]:
        """The proxy's last diagnostics, the newest first."""
        return tuple(tail(self.diagnostics)) if self.diagnostics else ()

    @property
    def version(self) -> str | None:
        """The version of the proxy that listened last."""
        found = (line for line in self.events if line.get("event") == "listening")
        return next((str(line["version"]) for line in found if "version" in line), None)


def _after_end(name: str, job: JobState, plist: dict[str, Any] | None) -> str:
    """Return what helps after a job has ended: a program that was replaced is let in again by a restart."""
    return f"{PROGRAM} restart {name}" if "CODESIGNING" in job.reason else log_of(plist, LABELS[name])


def looks_like(service: str, each: Listener) -> bool:
    """Return whether a listener that launchd doesn't know is a service, by its command line; without one it may be."""
    if service == "proxy":
        return not each.program or _OWN.search(each.program) is not None
    return not each.program or "ollama" in each.program.lower()


def tail(path: str | Path, octets: int = _TAIL) -> Iterator[Mapping[str, Any]]:
    """Yield the last lines of a log of JSON, the newest first; lines that aren't objects are left out."""
    try:
        with open(path, "rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - octets))
            lines = log.read(octets).split(b"\n")
    except OSError:
        return
    for line in reversed(lines):
        try:
            found = json.loads(line)
        except ValueError:  # an empty one, or the half one at the beginning
            continue
        if isinstance(found, dict):
            yield found
