"""How the two services are: what launchd, the ports, Ollama and the logs show, and what is wrong.

It changes nothing, and works wherever Python does: a value that can't be seen there is None, and a finding says so. It
sends nothing to the proxy itself, so it leaves no line in its access log.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy import PROGRAM
from proxy.manage.findings import agents as findings_agents
from proxy.manage.findings import firewall as findings_firewall
from proxy.manage.findings import tailscale as findings_tailscale
from proxy.manage.findings.awake import keeps_awake
from proxy.manage.findings.origins import null_origin
from proxy.manage.findings.ports import NO_LSOF, who_listens
from proxy.manage.findings.running import Running, looks_like, tail
from proxy.manage.findings.stubs import unusable
from proxy.manage.machine.services import LABELS
from proxy.settings.addresses import TAILSCALE
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.manage.machine.job_state import JobState
    from proxy.manage.machine.machine import Machine
    from proxy.tailnet.tailscale import Tailnet, Tailscale

REFUSALS = 5
"""How many of the last refusals are shown."""


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
    models: tuple[Mapping[str, Any], ...] | None = None  # Ollama's that are loaded: name, size in bytes, expires_at
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
    look = _Look(machine, flags, tailscale)
    services = (look.proxy(), look.ollama())
    findings = (*look.findings, *findings_agents.of_running(look.running))
    return Status(all(finding.outcome is not Outcome.FAIL for finding in findings), *services, findings)


class _Look:
    """One look at the machine; faults are noted in `findings` as they are found."""

    def __init__(self, machine: Machine, flags: Mapping[str, str], tailscale: Tailscale | None) -> None:
        self.machine = machine
        self.findings: list[Finding] = []
        self.running = Running(machine, flags, tailscale)
        self.settings, self.jobs = self.running.settings, self.running.jobs
        for problem in self.running.problems:
            self.note("settings", Outcome.FAIL, str(problem), f"{PROGRAM} --check")
        if (why := self.running.unasked) is not None:
            only = ": only the ports, Ollama and the logs are asked" if why.outcome is Outcome.SKIP else ""
            self.note(why.name, why.outcome, why.detail + only, why.hint)
        self.listening = self.running.listening
        if self.listening is None:
            self.note("ports", Outcome.SKIP, NO_LSOF)

    def note(self, name: str, outcome: Outcome, detail: str, hint: str = "") -> None:
        self.findings.append(Finding(name, outcome, detail, hint))

    # --- the services -------------------------------------------------------------------------------------------------

    def proxy(self) -> Service:
        """Return how the proxy is."""
        job = self._job("proxy")
        mine = self.running.of("proxy")
        pid = job.pid if job else next((each.pid for each in mine if looks_like("proxy", each)), None)
        where = tuple(each.where for each in mine if each.pid == pid)
        running = job.running if job else bool(where) if self.listening is not None else None
        if running and not where and self.listening is not None:
            self._nowhere()
        elif running:
            self._listens(pid, where, {each.address for each in mine if each.pid == pid})
        elif job is None and running is not None and not mine and self.tailnet and self.tailnet.problem:
            # A proxy in a terminal may wait for Tailscale: it can't be seen, and a second one would be no help.
            running = None
            problem = f"nothing listens on port {self.settings.port}: {self.tailnet.problem}"
            self.note("proxy", Outcome.FAIL, problem, self.tailnet.hint)
        elif job is None and running is not None:
            who = "nothing" if not mine else "no proxy"
            hidden = None if mine else self.running.unseen("proxy")
            missing = Finding("proxy", Outcome.FAIL, f"{who} listens on port {self.settings.port}", PROGRAM)
            self.findings.append(hidden or missing)
        for each in mine:
            if each.pid != pid or not running:
                detail = f"{each.where} is held by {each.who}, not by the service"
                self.note("proxy", Outcome.FAIL, detail, who_listens(each.port))
        self.findings += null_origin(self.settings)
        if self.machine.is_mac and (program := self.running.program("proxy")) is not None:
            wall = findings_firewall.of_program(self.machine, program)
            if wall.outcome in {Outcome.FAIL, Outcome.WARN}:
                self.findings.append(wall)
        if running and self.machine.is_mac:
            self.findings.append(keeps_awake(self.machine, self.settings, pid))
        self._tailscale()
        refusals = self._refusals()
        return self._service("proxy", job, running, pid, where, self.running.version, refusals=refusals)

    @property
    def tailnet(self) -> Tailnet | None:
        """What Tailscale reports of this machine, if the proxy is to listen there."""
        return self.running.tailnet if TAILSCALE in self.settings.listen else None

    def _listens(self, pid: int | None, where: tuple[str, ...], addresses: set[str]) -> None:
        """Note where a proxy that runs listens, and whether this machine has such an address still."""
        on = f" and listens on {', '.join(where)}" if where else ""
        if self.tailnet is not None and addresses and addresses.isdisjoint(self.running.expected):
            why, hint = self.tailnet.problem, self.tailnet.hint
            detail = f"runs{on}, where no device reaches it: {why or 'this machine has another address now'}"
            self.note("proxy", Outcome.FAIL, detail, hint or self.running.log)
        else:
            self.note("proxy", Outcome.PASS, f"runs (pid {pid}){on}")

    def _nowhere(self) -> None:
        """Note why a proxy that runs listens nowhere."""
        hint = self.running.log if self.running.diagnostics else f"{PROGRAM} --check"
        if self.tailnet is not None and self.tailnet.problem:
            problem = f"runs, but listens nowhere yet: {self.tailnet.problem}"
            self.note("proxy", Outcome.FAIL, problem, self.tailnet.hint)
        elif (hidden := self.running.unseen("proxy")) is not None:
            self.note("proxy", Outcome.FAIL, f"runs, but listens nowhere: {hidden.detail}", hidden.hint)
        else:
            self.note("proxy", Outcome.FAIL, "runs, but listens nowhere", hint)

    def _tailscale(self) -> None:
        """Note what is wrong with Tailscale: no address, rules of serve, shields up, a key that expires."""
        facts = self.running.facts
        found = [*findings_tailscale.serve(facts.serving), *findings_tailscale.amiss(facts.concerns)]
        if self.tailnet is None:
            found = [*findings_tailscale.userspace(facts.tailnet), *found]
            found = [each for each in found if each.outcome is Outcome.FAIL]
        elif self.tailnet.problem is not None:
            told = any(self.tailnet.problem in each.detail for each in self.findings)
            found = [*([] if told else [findings_tailscale.address(self.tailnet)]), *found]
        self.findings += [*found, *findings_tailscale.serve_port(facts, self.settings)]

    def ollama(self) -> Service:
        """Return how Ollama is."""
        job = self._job("ollama")
        version = self.running.ollama_version
        loaded = self.running.of_ollama("/api/ps") if version else None
        there = self.running.of("ollama")
        pid = job.pid if job else next((each.pid for each in there), None)
        others = [each for each in there if each.pid != pid]
        if version is None:
            hint = f"{PROGRAM} restart ollama" if job and job.loaded else "ollama serve"
            detail = f"{self.settings.upstream} does not answer as Ollama does"
            if others or (there and job is None):
                holder = (others or there)[0]
                detail += f": {holder.where} is held by {holder.who}"
                hint = who_listens(holder.port)
            self.note("ollama", Outcome.FAIL, detail, hint)
        elif others:
            detail = f"answers, but it is {others[0].who}, which is not the service of ours"
            self.note("ollama", Outcome.WARN if job is None or not job.loaded else Outcome.FAIL, detail)
        elif (hidden := None if there else self.running.unseen("ollama")) is not None:
            self.findings.append(hidden)
        else:
            self.note("ollama", Outcome.PASS, f"Ollama {version} answers at {self.settings.upstream}")
        if version is not None:
            self.findings += unusable(self.running.of_ollama("/api/status"), self.running.of_ollama("/api/tags"))
        for each in there:
            if not each.on_loopback:
                detail = f"{each.who} listens on {each.where}: whoever reaches that gets past the proxy"
                self.note("ollama", Outcome.FAIL, detail, f"{PROGRAM} install")
        where = tuple(each.where for each in there) if self.listening is not None else None
        running = job.running if job else version is not None
        return self._service("ollama", job, running, pid, where, version, models=_models(loaded))

    def _job(self, name: str) -> JobState | None:
        """Return what launchd reports about a service, and note what is wrong with it."""
        job = self.jobs.get(name)
        if job is None:
            return None
        if (fault := self.running.agent_fault(name)) is not None:
            self.findings.append(fault)
        self.findings += self.running.program_faults(name)
        return job if self.running.installed(name) else None

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
        since = self.running.since(pid)
        return Service(
            name,
            LABELS[name],
            installed=self.running.plists[name] is not None,
            loaded=job.loaded if job else None,
            running=running,
            disabled=job.disabled if job else None,
            pid=pid,
            since=since.isoformat() if since else None,
            last_exit=job.last_exit if job else None,
            program=self.running.program(name) or (job.program if job else None),
            addresses=addresses if self.listening is not None else None,
            version=version,
            **more,
        )

    # --- what they tell -----------------------------------------------------------------------------------------------

    def _refusals(self) -> tuple[Mapping[str, Any], ...] | None:
        """Return the last refusals, the newest first; None where there is no log to read."""
        log = self.settings.access_log
        if log == "-" or not Path(log).exists():
            self.note("access log", Outcome.SKIP, "there is none that could be read for the last refusals")
            return None
        found = [line for path in (log, f"{log}.1") for line in tail(path) if line.get("verdict") == "refused"]
        return tuple(found[:REFUSALS])


def _models(told: Any) -> tuple[Mapping[str, Any], ...] | None:
    """Return the models that Ollama has loaded, of its answer to /api/ps."""
    models = told.get("models") if isinstance(told, dict) else None
    if not isinstance(models, list):
        return None
    keys = ("name", "size", "expires_at")
    return tuple({key: each.get(key) for key in keys} for each in models if isinstance(each, dict))
