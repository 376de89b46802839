"""Service status: both agents, their processes, their ports, and whether both answer, as `verify` looks at them."""

from __future__ import annotations

import http.client
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from proxy import PROGRAM, __version__
from proxy.manage.findings import agents as findings_agents
from proxy.manage.findings import before_serving as checks
from proxy.manage.findings.ports import NO_LSOF, who_listens
from proxy.manage.findings.running import looks_like
from proxy.manage.machine.services import LABELS
from proxy.settings.addresses import joined
from proxy.settings.kinds import printable
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from proxy.manage.findings.running import Running

NAMES = {"proxy": "proxy", "ollama": "Ollama"}
"""What the two services are called in findings."""


def agents(running: Running) -> Iterator[Finding]:
    """Report whether launchd has both agents, and they run."""
    for name in LABELS:
        yield replace(_agent(running, name), name=f"{NAMES[name]} agent")
    yield from findings_agents.of_running(running)


def _agent(running: Running, name: str) -> Finding:
    if running.unasked is not None:
        return running.unasked
    if name == "proxy" and not running.paths[name].exists() and not running.installed(name) and running.pid(name):
        detail = f"no agent is installed; what listens was started by hand (pid {running.pid(name)})"
        return Finding(name, Outcome.SKIP, detail)
    fault = running.agent_fault(name)
    if fault is None:
        return Finding(name, Outcome.PASS, f"{LABELS[name]} is loaded and runs (pid {running.jobs[name].pid})")
    if fault.outcome is Outcome.SKIP:
        detail = "Ollama is no agent of ours: whoever started it manages it, as with `install --proxy-only`"
        return Finding(name, Outcome.SKIP, detail)
    return fault


def processes(running: Running) -> Iterator[Finding]:
    """Report whether both processes run as this user: as root, a fault in them would be everyone's."""
    for name in LABELS:
        yield _process(running, name)


def _process(running: Running, service: str) -> Finding:
    name, pid = f"{NAMES[service]} process", running.pid(service)
    if pid is None:
        if running.listening is None:
            return Finding(name, Outcome.SKIP, NO_LSOF)
        if service == "ollama" and running.ollama_version is not None and running.local_upstream:
            hint = who_listens(running.upstream[1])
            detail = "Ollama answers, but no process of yours does: it runs as another user, or as root"
            return Finding(name, Outcome.WARN, detail, hint)
        return Finding(name, Outcome.SKIP, "no process of it was found")
    found = running.machine.process(pid)
    if found is None or found.uid is None:
        return Finding(name, Outcome.SKIP, f"whose process {pid} is can't be seen")
    uid, user = found.uid, printable(found.user)
    if uid == 0:
        detail = f"process {pid} runs as root: a fault in it would be one of the whole machine"
        outcome = Outcome.WARN if running.machine.uid == 0 else Outcome.FAIL
        restart = running.start(service, "restart")
        return Finding(name, outcome, detail, f"sudo kill {pid}; as the user whose it should be: {restart}")
    if uid == running.machine.uid:
        return Finding(name, Outcome.PASS, f"process {pid} runs as {user}")
    detail = f"process {pid} runs as {user}, and should run as the user whose agent it is"
    return Finding(name, Outcome.FAIL, detail, f"sudo kill {pid}; {running.start(service, 'restart')}")


def ports(running: Running) -> Iterator[Finding]:
    """Report whether the ports are held by the processes that they belong to."""
    for name in LABELS:
        yield _port(running, name)


def _port(running: Running, service: str) -> Finding:
    port = running.settings.port if service == "proxy" else running.upstream[1]
    name, hint = f"{NAMES[service]} port", who_listens(port)
    if service == "ollama" and not running.local_upstream:
        return Finding(name, Outcome.SKIP, f"Ollama is on another machine, at {running.settings.upstream}")
    if running.listening is None:
        return Finding(name, Outcome.SKIP, NO_LSOF)
    there, pid = running.of(service), running.pid(service)
    if not there:
        if (hidden := running.unseen(service)) is not None:
            return replace(hidden, name=name)
        return Finding(name, Outcome.FAIL, f"nothing listens on port {port}", running.start(service))
    for each in there:
        known = each.pid == pid if service in running.jobs and running.installed(service) else looks_like(service, each)
        if not known:
            return Finding(name, Outcome.FAIL, f"{each.where} is held by {each.who}, not by {NAMES[service]}", hint)
    where = ", ".join(each.where for each in there)
    return Finding(name, Outcome.PASS, f"{there[0].who} listens on {where}")


def answers(running: Running) -> Iterator[Finding]:
    """Report whether both answer HTTP: a port may take connections long before, or after, its program answers."""
    yield _proxy_answers(running)
    yield _ollama_answers(running)


def _proxy_answers(running: Running) -> Finding:
    name, port = "proxy HTTP", running.settings.port
    if not running.reachable:
        detail = running.tailnet.problem or "there is no address to listen on"
        return Finding(name, Outcome.FAIL, detail, running.tailnet.hint)
    where = joined(running.reachable[0], port)
    try:
        answer = running.ask(running.reachable[0], port, "GET", "/api/version")
    except (OSError, http.client.HTTPException) as error:
        return Finding(name, Outcome.FAIL, f"{where} does not answer: {error or type(error).__name__}", running.log)
    if not answer.id:
        detail = f"{where} answers with {answer.status}, but it isn't the proxy that does"
        return Finding(name, Outcome.FAIL, detail, who_listens(port))
    if answer.status != 200:
        detail = f"{where} answers, but GET /api/version with {answer.status} instead of 200"
        return Finding(name, Outcome.WARN, detail, f"{PROGRAM} status")
    return Finding(name, Outcome.PASS, f"the proxy answers at {where}")


def _ollama_answers(running: Running) -> Finding:
    name, url = "Ollama HTTP", running.settings.upstream
    if running.ollama_version is not None:
        return replace(checks.of_version(url, running.ollama_version), name=name)
    told = running.of_ollama("/api/version")
    if told is None:
        return Finding(name, Outcome.FAIL, f"{url} does not answer", running.start("ollama", "restart"))
    return Finding(name, Outcome.FAIL, f"{url} answers, but not as Ollama does", f"curl -i {url}/api/version")


def versions(running: Running) -> Iterator[Finding]:
    """Report whether the proxy that runs is the one that is installed, and the one that this command belongs to."""
    name, job, program = "proxy version", running.jobs.get("proxy"), running.program("proxy")
    restart = running.start("proxy", "restart")
    if job is not None and job.running and job.program and program and job.program != program:
        detail = f"{job.program} runs, and {program} is installed"
        yield Finding(name, Outcome.FAIL, detail, restart)
    elif running.version is None:
        yield Finding(name, Outcome.SKIP, "there is no diagnostics log that tells which version runs")
    elif (own := _installed(program)) and own != running.version:
        yield Finding(name, Outcome.FAIL, f"{running.version} runs, and {own} is installed", restart)
    elif running.version != __version__:
        detail = f"{printable(running.version)} runs, and these questions are those of {__version__}"
        yield Finding(name, Outcome.WARN, detail, f"{PROGRAM} install")
    else:
        yield Finding(name, Outcome.PASS, f"{running.version} runs, as installed" if own else f"{running.version} runs")


def _installed(program: str | None) -> str:
    """Return the version whose environment a program is in, as in versions/0.1.0-5f3c9a1e/bin/python."""
    folder = Path(program).parent.parent if program else None
    return folder.name.rpartition("-")[0] if folder is not None and folder.parent.name == "versions" else ""


CHECKS: tuple[Callable[[Running], Iterator[Finding]], ...] = (agents, processes, ports, answers, versions)
