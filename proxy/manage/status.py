"""How the two services are: what launchd, the ports, Ollama and the logs show, and what is wrong.

It changes nothing, and works wherever Python does: a value that can't be seen there is None, and a finding says so. It
sends nothing to the proxy itself, so it leaves no line in its access log.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy import PROGRAM
from proxy.manage.facts.facts import Facts
from proxy.manage.facts.listeners import NO_LSOF, who_listens
from proxy.manage.facts.log_end import last_records
from proxy.manage.findings.addresses import stranger
from proxy.manage.findings.ollama import looks_like, unanswered
from proxy.manage.findings.services import agent_fault, launchd_unasked, program_faults
from proxy.manage.findings.table import When, findings
from proxy.manage.machine.services import LABELS
from proxy.settings.addresses import TAILSCALE
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

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
    found = (*look.findings, *look.more())
    return Status(all(finding.outcome is not Outcome.FAIL for finding in found), *services, found)


class _Look:
    """One look at the machine; faults are noted in `findings` as they are found."""

    def __init__(self, machine: Machine, flags: Mapping[str, str], tailscale: Tailscale | None) -> None:
        self.machine = machine
        self.findings: list[Finding] = []
        self.facts = Facts.of_services(machine, flags, tailscale=tailscale)
        self.settings, self.jobs = self.facts.settings, self.facts.jobs
        if (why := launchd_unasked(self.facts)) is not None:
            only = ": only the ports, Ollama and the logs are asked" if why.outcome is Outcome.SKIP else ""
            self.note(why.name, why.outcome, why.detail + only, why.hint)
        self.listening = self.facts.listening
        if self.listening is None:
            self.note("ports", Outcome.SKIP, NO_LSOF)

    def note(self, name: str, outcome: Outcome, detail: str, hint: str = "") -> None:
        self.findings.append(Finding(name, outcome, detail, hint))

    # --- the services -------------------------------------------------------------------------------------------------

    def proxy(self) -> Service:
        """Return how the proxy is."""
        job = self._job("proxy")
        mine = self.facts.of("proxy")
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
            hidden = None if mine else stranger(self.facts, "proxy")
            missing = Finding("proxy", Outcome.FAIL, f"{who} listens on port {self.settings.port}", PROGRAM)
            self.findings.append(hidden or missing)
        for each in mine:
            if each.pid != pid or not running:
                detail = f"{each.where} is held by {each.who}, not by the service"
                self.note("proxy", Outcome.FAIL, detail, who_listens(each.port))
        refusals = self._refusals()
        return self._service("proxy", job, running, pid, where, self.facts.version, refusals=refusals)

    @property
    def tailnet(self) -> Tailnet | None:
        """What Tailscale reports of this machine, if the proxy is to listen there."""
        return self.facts.tailscale.tailnet if TAILSCALE in self.settings.listen else None

    def _listens(self, pid: int | None, where: tuple[str, ...], addresses: set[str]) -> None:
        """Note where a proxy that runs listens, and whether this machine has such an address still."""
        on = f" and listens on {', '.join(where)}" if where else ""
        if self.tailnet is not None and addresses and addresses.isdisjoint(self.facts.expected):
            why, hint = self.tailnet.problem, self.tailnet.hint
            detail = f"runs{on}, where no device reaches it: {why or 'this machine has another address now'}"
            self.note("proxy", Outcome.FAIL, detail, hint or self.facts.log)
        else:
            self.note("proxy", Outcome.PASS, f"runs (pid {pid}){on}")

    def _nowhere(self) -> None:
        """Note why a proxy that runs listens nowhere."""
        hint = self.facts.log if self.facts.diagnostics else f"{PROGRAM} --check"
        if self.tailnet is not None and self.tailnet.problem:
            problem = f"runs, but listens nowhere yet: {self.tailnet.problem}"
            self.note("proxy", Outcome.FAIL, problem, self.tailnet.hint)
        elif (hidden := stranger(self.facts, "proxy")) is not None:
            self.note("proxy", Outcome.FAIL, f"runs, but listens nowhere: {hidden.detail}", hidden.hint)
        else:
            self.note("proxy", Outcome.FAIL, "runs, but listens nowhere", hint)

    def more(self) -> Iterator[Finding]:
        """Yield what the table of checks has for `status`; a missing address may have been reported already."""
        reported = [each.detail for each in self.findings if each.outcome is Outcome.FAIL]
        for each in findings(self.facts, When.STATUS):
            if not any(each.detail in detail for detail in reported):
                yield each

    def ollama(self) -> Service:
        """Return how Ollama is."""
        job = self._job("ollama")
        version = self.facts.ollama_version
        loaded = self.facts.of_ollama("/api/ps") if version else None
        there = self.facts.of("ollama")
        pid = job.pid if job else next((each.pid for each in there), None)
        others = [each for each in there if each.pid != pid]
        if version is None:
            hint = f"{PROGRAM} restart ollama" if job and job.loaded else "ollama serve"
            detail = unanswered(self.facts)
            if others or (there and job is None):
                holder = (others or there)[0]
                detail += f": {holder.where} is held by {holder.who}"
                hint = who_listens(holder.port)
            self.note("ollama", Outcome.FAIL, detail, hint)
        elif others:
            detail = f"answers, but it is {others[0].who}, which is not the installed service"
            self.note("ollama", Outcome.WARN if job is None or not job.loaded else Outcome.FAIL, detail)
        elif (hidden := None if there else stranger(self.facts, "ollama")) is not None:
            self.findings.append(hidden)
        else:
            self.note("ollama", Outcome.PASS, f"Ollama {version} answers at {self.settings.upstream}")
        where = tuple(each.where for each in there) if self.listening is not None else None
        running = job.running if job else version is not None
        return self._service("ollama", job, running, pid, where, version, models=_models(loaded))

    def _job(self, name: str) -> JobState | None:
        """Return what launchd reports about a service, and note what is wrong with it."""
        job = self.jobs.get(name)
        if job is None:
            return None
        if (fault := agent_fault(self.facts, name)) is not None:
            self.findings.append(fault)
        self.findings += program_faults(self.facts, name)
        return job if self.facts.installed(name) else None

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
        since = self.facts.since(pid)
        return Service(
            name,
            LABELS[name],
            installed=self.facts.plists[name] is not None,
            loaded=job.loaded if job else None,
            running=running,
            disabled=job.disabled if job else None,
            pid=pid,
            since=since.isoformat() if since else None,
            last_exit=job.last_exit if job else None,
            program=self.facts.program(name) or (job.program if job else None),
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
        found = [line for path in (log, f"{log}.1") for line in last_records(path) if line.get("verdict") == "refused"]
        return tuple(found[:REFUSALS])


def _models(response: Any) -> tuple[Mapping[str, Any], ...] | None:
    """Return the models that Ollama has loaded, of its answer to /api/ps."""
    models = response.get("models") if isinstance(response, dict) else None
    if not isinstance(models, list):
        return None
    keys = ("name", "size", "expires_at")
    return tuple({key: each.get(key) for key in keys} for each in models if isinstance(each, dict))
