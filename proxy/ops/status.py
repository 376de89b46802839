"""How the two services are: what launchd, the ports, Ollama and the logs tell, and what of it is wrong.

It changes nothing, and works wherever Python does: what can't be seen there is None, and a finding says so. The proxy
itself isn't asked anything, so that looking leaves no line in its access log.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy import PROGRAM
from proxy.addresses import TAILSCALE, split
from proxy.ops import environment
from proxy.ops.checks import Finding, Outcome
from proxy.ops.launchd import Launchd, LaunchdError, plist_path
from proxy.ops.services import LABELS, log_of, read_plist, settings_environ
from proxy.ops.survey import listeners
from proxy.settings import Settings, SettingsError, load
from proxy.tailscale import Tailscale

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from proxy.ops.launchd import JobState
    from proxy.ops.machine import Machine
    from proxy.ops.survey import Listener

REFUSALS = 5
"""How many of the last refusals are told."""

ANSWER_TIME = 2.0
"""Seconds that Ollama may take to answer: version and loaded models it has in memory."""

_ANSWER_LIMIT = 2**20  # octets of an answer that are read
_TAIL = 2**18  # octets of a log's end that are read: some 500 lines


@dataclass(frozen=True, slots=True)
class Service:
    """One service. None is what can't be seen, or what there is nothing to see of."""

    name: str
    label: str
    installed: bool
    loaded: bool | None
    running: bool | None
    disabled: bool | None
    pid: int | None
    since: str | None  # local time, ISO 8601
    last_exit: int | None
    program: str | None
    addresses: tuple[str, ...] | None
    version: str | None
    models: tuple[Mapping[str, Any], ...] | None = None  # Ollama's that are loaded: name, size in octets, expires_at
    refusals: tuple[Mapping[str, Any], ...] | None = None  # the proxy's last ones, as the access log has them


@dataclass(frozen=True, slots=True)
class Status:
    """Both services, and what was found; `well` is whether nothing of it failed."""

    well: bool
    proxy: Service
    ollama: Service
    findings: tuple[Finding, ...]


def status(machine: Machine, flags: Mapping[str, str], tailscale: Tailscale | None = None) -> Status:
    """Return how the services are. Takes some seconds at most."""
    look = _Look(machine, flags, tailscale or Tailscale())
    services = (look.proxy(), look.ollama())
    findings = tuple(look.findings)
    return Status(all(finding.outcome is not Outcome.FAIL for finding in findings), *services, findings)


class _Look:
    """One look at the machine; what is wrong is noted in `findings` as it is come upon."""

    def __init__(self, machine: Machine, flags: Mapping[str, str], tailscale: Tailscale) -> None:
        self.machine = machine
        self.tailscale = tailscale
        self.findings: list[Finding] = []
        self.plists = {name: read_plist(plist_path(label, machine.home)) for name, label in LABELS.items()}
        self.settings = self._settings(flags)
        self.jobs = self._jobs()
        self.listening = self._listening()

    def note(self, name: str, outcome: Outcome, detail: str, hint: str = "") -> None:
        self.findings.append(Finding(name, outcome, detail, hint))

    # --- what there is ------------------------------------------------------------------------------------------------

    def _settings(self, flags: Mapping[str, str]) -> Settings:
        """Return the settings as the service has them, from its plist's variables; without one, as this shell has."""
        try:
            return load(flags, settings_environ(self.machine)).settings
        except SettingsError as error:
            for problem in error.problems:
                self.note("settings", Outcome.FAIL, str(problem), f"{PROGRAM} --check")
            return Settings()

    def _jobs(self) -> Mapping[str, JobState]:
        """Return what launchd tells of each service; nothing where there is no launchd to ask."""
        if self.machine.find("launchctl") is None:
            detail = f"{self.machine.system} has no launchctl: only the ports, Ollama and the logs are asked"
            self.note("launchd", Outcome.SKIP, detail)
            return {}
        launchd = Launchd(self.machine.uid, self.machine.run)
        try:
            launchd.need_domain()
            return {name: launchd.state(label) for name, label in LABELS.items()}
        except LaunchdError as error:
            self.note("launchd", Outcome.FAIL, str(error), error.hint)
            return {}

    def _listening(self) -> tuple[Listener, ...] | None:
        """Return who listens on the two ports; None where lsof isn't there."""
        if self.machine.find("lsof") is None:
            self.note("ports", Outcome.SKIP, "there is no lsof: whose the ports are can't be seen")
            return None
        return listeners(self.machine, {self.settings.port, self.upstream[1]})

    @property
    def upstream(self) -> tuple[str, int]:
        """Host and port of Ollama."""
        return split(self.settings.upstream)

    def _since(self, pid: int | None) -> str | None:
        """Return when a process began."""
        told = self.machine.run("ps", "-o", "lstart=", "-p", str(pid)).out.strip() if pid else ""
        try:
            return datetime.strptime(told, "%a %b %d %H:%M:%S %Y").astimezone().isoformat()
        except ValueError:
            return None

    # --- the services -------------------------------------------------------------------------------------------------

    def proxy(self) -> Service:
        """Return how the proxy is."""
        job = self._job("proxy")
        mine = [each for each in self.listening or () if self._is_proxys(each, job)]
        pid = job.pid if job else next((each.pid for each in mine), None)
        where = tuple(_where(each) for each in mine if each.pid == pid)
        running = job.running if job else bool(where) if self.listening is not None else None
        if running and not where and self.listening is not None:
            self._nowhere()
        elif running:
            self.note("proxy", Outcome.PASS, f"runs (pid {pid}){' and listens on ' if where else ''}{', '.join(where)}")
        elif job is None and running is not None:
            self.note("proxy", Outcome.FAIL, f"nothing listens on port {self.settings.port}", PROGRAM)
        for each in mine:
            if each.pid != pid or not running:
                detail = f"{_where(each)} is held by {_who(each)}, not by the service"
                self.note("proxy", Outcome.FAIL, detail, f"lsof -nP -iTCP:{each.port} -sTCP:LISTEN")
        refusals = self._refusals()
        return self._service("proxy", job, running, pid, where, self._version(), refusals=refusals)

    def _is_proxys(self, each: Listener, job: JobState | None) -> bool:
        """Return whether a listener is the proxy, or in its place: at its port, and not where Ollama belongs."""
        if job is not None and job.pid == each.pid:
            return True
        listen = self.settings.listen
        place = each.address in listen or (TAILSCALE in listen and not each.on_loopback and each.address != "*")
        return each.port == self.settings.port and place

    def _nowhere(self) -> None:
        """Note why a proxy that runs listens nowhere."""
        tailnet = asyncio.run(self.tailscale.look()) if TAILSCALE in self.settings.listen else None
        log = self._diagnostics()
        hint = f"tail -n 20 '{log}'" if log else f"{PROGRAM} --check"
        if tailnet is not None and tailnet.problem:
            self.note("proxy", Outcome.FAIL, f"runs, but listens nowhere yet: {tailnet.problem}", tailnet.hint or hint)
        else:
            self.note("proxy", Outcome.FAIL, "runs, but listens nowhere", hint)

    def ollama(self) -> Service:
        """Return how Ollama is."""
        job = self._job("ollama")
        told = self._ask("/api/version")
        version = told.get("version") if isinstance(told, dict) else None
        loaded = self._ask("/api/ps") if version else None
        there = [each for each in self.listening or () if self._is_ollamas(each, job)]
        pid = job.pid if job else next((each.pid for each in there), None)
        others = [each for each in there if each.pid != pid]
        if version is None:
            hint = f"{PROGRAM} restart ollama" if job and job.loaded else "ollama serve"
            self.note("ollama", Outcome.FAIL, f"{self.settings.upstream} does not answer as Ollama does", hint)
        elif others:
            detail = f"answers, but it is {_who(others[0])}, which is not the service of ours"
            self.note("ollama", Outcome.WARN if job is None or not job.loaded else Outcome.FAIL, detail)
        else:
            self.note("ollama", Outcome.PASS, f"Ollama {version} answers at {self.settings.upstream}")
        for each in there:
            if not each.on_loopback:
                detail = f"{_who(each)} listens on {_where(each)}: whoever reaches that gets past the proxy"
                self.note("ollama", Outcome.FAIL, detail, f"{PROGRAM} install")
        where = tuple(_where(each) for each in there) if self.listening is not None else None
        running = job.running if job else version is not None
        return self._service("ollama", job, running, pid, where, version, models=_models(loaded))

    def _is_ollamas(self, each: Listener, job: JobState | None) -> bool:
        """Return whether a listener is Ollama: at its port, and not the proxy, which may have the same."""
        if each.port != self.upstream[1] or self._is_proxys(each, self.jobs.get("proxy")):
            return False
        return each.on_loopback or each.address == "*" or each.is_ollama or (job is not None and each.pid == job.pid)

    def _job(self, name: str) -> JobState | None:
        """Return what launchd tells of a service, and note what is wrong with that."""
        job, plist = self.jobs.get(name), self.plists[name]
        path = plist_path(LABELS[name], self.machine.home)
        if job is None:
            return None
        if not job.loaded and plist is None:
            detail = f"{path} is no plist" if path.exists() else "is not installed"
            managed = name == "ollama" and not path.exists()  # --proxy-only: someone else's
            self.note(name, Outcome.SKIP if managed else Outcome.FAIL, detail, f"{PROGRAM} install")
        elif job.disabled:
            self.note(name, Outcome.FAIL, "is disabled", f"{PROGRAM} enable {name}")
        elif not job.loaded:
            self.note(name, Outcome.FAIL, "is not loaded", f"{PROGRAM} start {name}")
        elif not job.running:
            hint = log_of(plist, LABELS[name])
            self.note(name, Outcome.FAIL, f"is loaded, but does not run ({job.state}): {job.ended}", hint)
        self.findings += _program_faults(name, _program(plist))
        return job if job.loaded or plist is not None else None

    def _service(
        self,
        name: str,
        job: JobState | None,
        running: bool | None,
        pid: int | None,
        addresses: tuple[str, ...] | None,
        version: str | None,
        **more: Any,
    ) -> Service:
        plist = self.plists[name]
        return Service(
            name,
            LABELS[name],
            installed=plist is not None,
            loaded=job.loaded if job else None,
            running=running,
            disabled=job.disabled if job else None,
            pid=pid,
            since=self._since(pid),
            last_exit=job.last_exit if job else None,
            program=_program(plist) or (job.program if job else None),
            addresses=addresses if self.listening is not None else None,
            version=version,
            **more,
        )

    # --- what they tell -----------------------------------------------------------------------------------------------

    def _ask(self, path: str) -> Any:
        """Return what Ollama answers to a GET, of JSON; None if it doesn't."""
        connection = http.client.HTTPConnection(*self.upstream, timeout=ANSWER_TIME)
        try:
            connection.request("GET", path)
            return json.loads(connection.getresponse().read(_ANSWER_LIMIT))
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            connection.close()

    def _refusals(self) -> tuple[Mapping[str, Any], ...] | None:
        """Return the last refusals, the newest first; None where there is no log to read."""
        log = self.settings.access_log
        if log == "-" or not Path(log).exists():
            self.note("access log", Outcome.SKIP, "there is none that could be read for the last refusals")
            return None
        found = [line for path in (log, f"{log}.1") for line in _tail(path) if line.get("verdict") == "refused"]
        return tuple(found[:REFUSALS])

    def _diagnostics(self) -> str | None:
        log = self.settings.diagnostics_log
        return log if log and Path(log).exists() else None

    def _version(self) -> str | None:
        """Return the version of the proxy that listened last; it says so in its diagnostics."""
        lines = [line for line in _tail(self._diagnostics() or os.devnull) if line.get("event") == "listening"]
        return next((str(line["version"]) for line in lines if "version" in line), None)


def _where(each: Listener) -> str:
    return f"[{each.address}]:{each.port}" if ":" in each.address else f"{each.address}:{each.port}"


def _who(each: Listener) -> str:
    return f"{Path(each.program.partition(' ')[0]).name or 'a process'} (pid {each.pid})"


def _program(plist: Mapping[str, Any] | None) -> str | None:
    """Return what a plist starts."""
    words = (plist or {}).get("ProgramArguments") or [(plist or {}).get("Program")]
    return words[0] if isinstance(words[0], str) else None


def _program_faults(name: str, program: str | None) -> Iterator[Finding]:
    """Tell of a program that isn't where the plist says, or is another than it was made of."""
    if program is None:
        return
    path, hint = Path(program), f"{PROGRAM} install"
    if not path.exists():
        gone = f"{program} is a link to {os.readlink(path)}, which" if path.is_symlink() else f"{program}, its program,"
        yield Finding(name, Outcome.FAIL, f"{gone} is gone: it can't be started again", hint)
    elif not os.access(path, os.X_OK):
        yield Finding(name, Outcome.FAIL, f"{program}, its program, can't be executed", hint)
    elif (made := environment.made_of(path.parent.parent)) and made != path.resolve():
        detail = f"its Python moved from {made} to {path.resolve()}: the firewall may drop connections without a word"
        yield Finding(name, Outcome.WARN, detail, hint)


def _models(told: Any) -> tuple[Mapping[str, Any], ...] | None:
    """Return the models that Ollama has loaded, of its answer to /api/ps."""
    models = told.get("models") if isinstance(told, dict) else None
    if not isinstance(models, list):
        return None
    keys = ("name", "size", "expires_at")
    return tuple({key: each.get(key) for key in keys} for each in models if isinstance(each, dict))


def _tail(path: str) -> Iterator[Mapping[str, Any]]:
    """Yield the last lines of a log of JSON, the newest first; what is no object is left out."""
    try:
        with open(path, "rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - _TAIL))
            lines = log.read(_TAIL).split(b"\n")
    except OSError:
        return
    for line in reversed(lines):
        try:
            found = json.loads(line)
        except ValueError:  # an empty one, or the half one at the beginning
            continue
        if isinstance(found, dict):
            yield found
