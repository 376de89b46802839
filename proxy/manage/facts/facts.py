"""The machine, its settings and its two services: each fact is looked up when it is first used, and kept.

Looking changes nothing, and works wherever Python does: what can't be seen is None. Some of it takes a second.
"""

from __future__ import annotations

import asyncio
import http.client
import json
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from proxy import PROGRAM
from proxy.manage.facts import firewall, listeners, tailscale
from proxy.manage.facts.answers import ask
from proxy.manage.facts.log_end import last_records
from proxy.manage.facts.mac import BREW_OLLAMA, HAPROXY, OnMac, Options
from proxy.manage.machine import environment, launchd
from proxy.manage.machine.launchd import Launchd, LaunchdError
from proxy.manage.machine.live_client import state_of
from proxy.manage.machine.services import DAEMONS, LABELS, settings_environ
from proxy.settings.addresses import TAILSCALE, is_local, split
from proxy.settings.settings import Settings, SettingsError, load
from proxy.tailnet.tailscale import Tailscale

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from proxy.manage.facts.answers import Answer
    from proxy.manage.facts.firewall import Firewall
    from proxy.manage.facts.listeners import Listener
    from proxy.manage.facts.tailscale import OfTailscale
    from proxy.manage.machine.interpreter import Interpreter
    from proxy.manage.machine.job_state import JobState
    from proxy.manage.machine.machine import Machine
    from proxy.settings.settings import Loaded, Problem

ANSWER_TIME = 2.0
"""Seconds that Ollama may take to answer: version and loaded models are in its memory."""


class NoLaunchd(NamedTuple):
    """Why launchd can't be asked about the services, and what helps or shows more."""

    why: str
    hint: str = ""
    failed: bool = False  # it should have answered


class Facts(OnMac):
    """The facts for one command."""

    def __init__(
        self,
        machine: Machine,
        loaded: Loaded | None,
        problems: Sequence[Problem] = (),
        *,
        options: Options | None = None,
        tailscale: Tailscale | None = None,
        python: str | None = None,
        ask: Callable[..., Answer] = ask,
    ) -> None:
        """`loaded` are settings, None if `problems` keep them from being used; `options` are those of an install.

        `python` is what would serve; None: what the proxy's plist names.
        """
        super().__init__(machine, options)
        self.loaded, self.problems = loaded, tuple(problems)
        self.ask = ask
        self._tailscale, self._python = tailscale, python
        self._documents: dict[str, Any] = {}
        self.silence = ""  # why Ollama gave no answer, once it was asked

    @classmethod
    def of_services(cls, machine: Machine, flags: Mapping[str, str], **more: Any) -> Facts:
        """Return the facts with the settings that the service has: its plist's, or this shell's without one."""
        return cls(machine, *_loaded(flags, settings_environ(machine)), **more)

    @classmethod
    def for_install(cls, machine: Machine, options: Options, tailscale: Tailscale | None = None) -> Facts:
        """Return the facts with the settings that the agent will have: nothing of this shell's environment."""
        environ = {
            "HOME": str(machine.home),
            # the place of the settings file if this isn't macOS
            "XDG_CONFIG_HOME": str(machine.support.parent),
            "XDG_STATE_HOME": str(machine.logs.parent),
            "PROXY_DIAGNOSTICS_LOG": str(machine.logs / "diagnostics.log"),
        }
        return cls(machine, *_loaded({}, environ), options=options, tailscale=tailscale)

    def again(self) -> Facts:
        """Return the facts of the installed services, with the same settings, looked up again."""
        return Facts(self.machine, self.loaded, self.problems, tailscale=self._tailscale, ask=self.ask)

    @property
    def settings(self) -> Settings:
        """The settings, or the defaults while they are wrong."""
        return self.loaded.settings if self.loaded else Settings()

    @cached_property
    def python(self) -> Interpreter | None:
        """The Python that the firewall must let through: the one to install on, or the one that runs the proxy."""
        if self.is_install:
            return self.interpreter
        program = self._python or self.program("proxy")
        return environment.python_of(self.machine, program) if program else None

    @cached_property
    def firewall(self) -> Firewall | None:
        """What the firewall reports; None when that can't be read."""
        return firewall.look(self.machine, self.python)

    @property
    def is_check(self) -> bool:
        """Whether this process will serve, as in `--check`."""
        return self._python is not None

    # --- launchd ------------------------------------------------------------------------------------------------------

    @property
    def agents(self) -> Launchd:
        """The launchd of this user."""
        return Launchd(self.machine.uid, self.machine.run)

    @cached_property
    def screen(self) -> bool:
        """Whether the user is logged in at the screen."""
        return self.agents.domain_available()

    @cached_property
    def _asked(self) -> tuple[Mapping[str, JobState], NoLaunchd | None]:
        if self.machine.find("launchctl") is None:
            return {}, NoLaunchd(f"{self.machine.system} has no launchctl")
        if any(map(self.is_daemon, LABELS)):
            hint = f"sudo launchctl print system/{LABELS['proxy']}"
            return {}, NoLaunchd("the services are daemons of the system, not agents", hint)
        try:
            self.agents.need_domain()
            return {name: self.agents.steady_state(label) for name, label in LABELS.items()}, None
        except LaunchdError as error:
            return {}, NoLaunchd(str(error), error.hint, failed=True)

    @property
    def jobs(self) -> Mapping[str, JobState]:
        """What launchd reports of each service; empty where it can't be asked."""
        return self._asked[0]

    @property
    def no_launchd(self) -> NoLaunchd | None:
        """Why launchd can't be asked."""
        return self._asked[1]

    @cached_property
    def _others(self) -> Mapping[str, JobState]:
        return {label: self.agents.state(label) for label in (HAPROXY, BREW_OLLAMA)}

    def other_job(self, label: str) -> JobState:
        """Return what launchd knows of a job that isn't ours."""
        return self._others[label]

    @property
    def haproxy_is_there(self) -> bool:
        """Whether a previous install with HAProxy is loaded or will be at the next login."""
        there = launchd.plist_path(HAPROXY, self.machine.home).exists()
        return there or (not self.only_shown and self.other_job(HAPROXY).loaded)

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

    # --- processes and ports ------------------------------------------------------------------------------------------

    @cached_property
    def listening(self) -> tuple[Listener, ...] | None:
        """Who listens on the ports of the settings; None where lsof isn't there."""
        ports = {self.settings.port, self.settings.serve_port, self.upstream[1]} - {0}
        return listeners.listeners(self.machine, ports)

    def holder(self, address: str, port: int) -> Listener | None:
        """Return who listens on an address, or on every one."""
        there = (each for each in self.listening or () if each.port == port)
        return next((each for each in there if each.address in {address, "*"}), None)

    @cached_property
    def app_runs(self) -> bool:
        """Whether Ollama.app is running."""
        return any(each.name == "Ollama" for each in self.machine.processes())

    def is_proxys(self, each: Listener) -> bool:
        """Return whether a listener is the proxy, or is at the proxy's port, where Ollama doesn't belong."""
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
        """Return the listeners that are a service, or occupy its port."""
        belongs = self.is_proxys if name == "proxy" else self.is_ollamas
        return [each for each in self.listening or () if belongs(each)]

    def pid(self, name: str) -> int | None:
        """Return the process of a service: launchd's if there is an agent, otherwise the one that has the port."""
        job = self.jobs.get(name)
        if job is not None and self.installed(name):
            return job.pid
        return next((each.pid for each in self.of(name) if each.may_be(name)), None)

    def since(self, pid: int | None) -> datetime | None:
        """Return when a process began, to the second."""
        found = self.machine.process(pid) if pid else None
        return datetime.fromtimestamp(int(found.begun)).astimezone() if found and found.begun else None

    # --- addresses ----------------------------------------------------------------------------------------------------

    @cached_property
    def tailscale(self) -> OfTailscale:
        """What Tailscale and the interfaces show of this machine. Don't use it inside an event loop."""
        return asyncio.run(tailscale.look(self._tailscale or Tailscale(), self.settings))

    @property
    def asks_tailscale(self) -> bool:
        """Whether Tailscale matters: to what is about to serve only if it is to listen there."""
        return not self.is_check or TAILSCALE in self.settings.listen

    @property
    def expected(self) -> tuple[str, ...]:
        """The addresses that the proxy should listen on now: not those that this machine doesn't have."""
        own = [self._entry(entry) for entry in self.settings.listen]
        return tuple(dict.fromkeys(address for each in own for address in each))

    def _entry(self, entry: str) -> tuple[str, ...]:
        if entry != TAILSCALE:
            return (entry,)
        return () if self.only_shown else self.tailscale.held

    @property
    def waits(self) -> bool:
        """Whether the proxy can listen nowhere until Tailscale gives this machine an address."""
        return not self.expected and self.tailscale.tailnet.problem is not None

    @property
    def reachable(self) -> tuple[str, ...]:
        """Those of them that can be connected to: loopback instead of a wildcard."""
        loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}
        return tuple(loopback.get(each, each) for each in self.expected)

    # --- Ollama -------------------------------------------------------------------------------------------------------

    @property
    def upstream(self) -> tuple[str, int]:
        """Host and port of Ollama."""
        return split(self.settings.upstream)

    @property
    def local_upstream(self) -> bool:
        """Whether Ollama is on this machine, as far as its address shows."""
        return is_local(self.upstream[0])

    def of_ollama(self, path: str) -> Any:
        """Return Ollama's answer to a GET: its JSON, or the status if that isn't 200.

        None means that there was no answer, and `silence` says why, or that it isn't JSON.
        """
        if path not in self._documents:
            self._documents[path] = None
            try:
                answer = self.ask(*self.upstream, "GET", path, timeout=ANSWER_TIME)
                self._documents[path] = json.loads(answer.content) if answer.status == 200 else answer.status
            except (OSError, http.client.HTTPException) as error:
                self.silence = _why(error)
            except ValueError:
                pass
        return self._documents[path]

    @property
    def ollama_version(self) -> str | None:
        """The version that Ollama reports; None if the program there isn't Ollama, or nothing answers."""
        response = self.of_ollama("/api/version")
        return str(response["version"]) if isinstance(response, dict) and "version" in response else None

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
        return tuple(last_records(self.diagnostics)) if self.diagnostics else ()

    @cached_property
    def live(self) -> Mapping[str, Any]:
        """What goes on in the proxy that runs; empty if there is none, or it doesn't say."""
        return state_of(self.settings.port, settings_environ(self.machine))

    @property
    def version(self) -> str | None:
        """The version of the proxy that listened last."""
        found = (line for line in self.events if line.get("event") == "listening")
        return next((str(line["version"]) for line in found if "version" in line), None)


def _why(error: Exception) -> str:
    """Return why there was no answer, in few words."""
    plain = str(error) if type(error) is http.client.HTTPException else type(error).__name__
    return getattr(error, "strerror", None) or plain


def _loaded(flags: Mapping[str, str], environ: Mapping[str, str]) -> tuple[Loaded | None, tuple[Problem, ...]]:
    try:
        return load(flags, environ), ()
    except SettingsError as error:
        return None, error.problems
