"""What can be wrong with the two services: agents, processes, ports, versions, and whether the proxy answers."""

from __future__ import annotations

import http.client
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy import PROGRAM, __version__
from proxy.exchange.awake import CAFFEINATE, arguments
from proxy.manage.facts.listeners import NO_LSOF, who_listens
from proxy.manage.facts.ruled import REFUSED, may_refuse, says_so
from proxy.manage.findings.addresses import hidden
from proxy.manage.machine import environment
from proxy.manage.machine.services import LABELS, log_of
from proxy.settings.addresses import joined
from proxy.settings.kinds import printable
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.manage.facts.facts import Facts
    from proxy.manage.machine.job_state import JobState

NAMES = {"proxy": "proxy", "ollama": "Ollama"}
"""What the two services are called in findings."""


def agents(facts: Facts) -> Iterator[Finding]:
    """Report whether launchd has both agents, and they run."""
    for name in LABELS:
        yield _agent(facts, name, f"{NAMES[name]} agent")


def _agent(facts: Facts, name: str, title: str) -> Finding:
    if (no := facts.no_launchd) is not None:
        return Finding(title, Outcome.FAIL if no.failed else Outcome.SKIP, no.why, no.hint)
    job, plist, path = facts.jobs[name], facts.plists[name], facts.paths[name]
    if job.disabled and (job.loaded or plist is not None):
        return Finding(title, Outcome.FAIL, "is disabled", f"{PROGRAM} enable {name}")
    if job.running:
        return Finding(title, Outcome.PASS, f"{LABELS[name]} is loaded and runs (pid {job.pid})")
    if job.coming_up:
        return Finding(title, Outcome.WARN, f"is starting ({job.state})", f"{PROGRAM} status")
    if job.loaded:
        detail = f"is loaded, but does not run ({job.shown}): {job.ended}"
        return Finding(title, Outcome.FAIL, detail, _after_end(name, job, plist))
    if plist is not None:
        return Finding(title, Outcome.FAIL, "is not loaded", f"{PROGRAM} start {name}")
    if path.exists():
        return Finding(title, Outcome.FAIL, f"{path} is not a plist", f"{PROGRAM} install")
    if name == "ollama":
        detail = "Ollama isn't one of our agents: someone else manages it, as with `install --proxy-only`"
        return Finding(title, Outcome.SKIP, detail)
    if (pid := facts.pid(name)) is not None:
        detail = f"no agent is installed; someone else started the program that listens there (pid {pid})"
        return Finding(title, Outcome.SKIP, detail)
    return Finding(title, Outcome.FAIL, "is not installed", f"{PROGRAM} install")


def _after_end(name: str, job: JobState, plist: dict[str, Any] | None) -> str:
    """Return what helps a job that is down: a program that was replaced is let in again by a restart."""
    if job.left_down:
        return f"{PROGRAM} start {name}"
    return f"{PROGRAM} restart {name}" if "CODESIGNING" in job.reason else log_of(plist, LABELS[name])


def programs(facts: Facts) -> Iterator[Finding]:
    """Find programs that aren't where the plists say, or are another than they were made of."""
    for name in LABELS:
        if (program := facts.program(name)) is None:
            continue
        path, title, hint = Path(program), f"{NAMES[name]} program", f"{PROGRAM} install"
        if not path.exists():
            link = path.is_symlink()
            gone = f"{path} is a link to {os.readlink(path)}, which" if link else f"{path}, its program,"
            yield Finding(title, Outcome.FAIL, f"{gone} is gone, so it can't be started again", hint)
        elif not os.access(path, os.X_OK):
            yield Finding(title, Outcome.FAIL, f"{path}, its program, can't be executed", hint)
        elif (made := environment.made_of(path.parent.parent)) and made != path.resolve():
            detail = f"its Python moved from {made} to {path.resolve()}: the firewall may drop connections silently"
            yield Finding(title, Outcome.WARN, detail, hint)


def processes(facts: Facts) -> Iterator[Finding]:
    """Report whether both processes run as this user. A fault in a process of root would affect the whole machine."""
    for name in LABELS:
        yield _process(facts, name)


def _process(facts: Facts, service: str) -> Finding:
    name, pid = f"{NAMES[service]} process", facts.pid(service)
    if pid is None:
        if facts.listening is None:
            return Finding(name, Outcome.SKIP, NO_LSOF)
        if service == "ollama" and facts.ollama_version is not None and facts.local_upstream:
            hint = who_listens(facts.upstream[1])
            detail = "Ollama answers, but no process of yours does: it runs as another user, or as root"
            return Finding(name, Outcome.WARN, detail, hint)
        return Finding(name, Outcome.SKIP, "no process of it was found")
    found = facts.machine.process(pid)
    if found is None or found.uid is None:
        return Finding(name, Outcome.SKIP, f"the user of process {pid} is unknown")
    uid, user = found.uid, printable(found.user)
    if uid == 0:
        detail = f"process {pid} runs as root: a vulnerability in it would affect the whole machine"
        outcome = Outcome.WARN if facts.machine.uid == 0 else Outcome.FAIL
        restart = facts.start(service, "restart")
        return Finding(name, outcome, detail, f"sudo kill {pid}; as the right user: {restart}")
    if uid == facts.machine.uid:
        return Finding(name, Outcome.PASS, f"process {pid} runs as {user}")
    detail = f"process {pid} runs as {user}, and should run as the user whose agent it is"
    return Finding(name, Outcome.FAIL, detail, f"sudo kill {pid}; {facts.start(service, 'restart')}")


def ports(facts: Facts) -> Iterator[Finding]:
    """Report whether the ports are held by the processes that they belong to."""
    for name in LABELS:
        yield _port(facts, name)


def _port(facts: Facts, service: str) -> Finding:
    port = facts.settings.port if service == "proxy" else facts.upstream[1]
    name, hint = f"{NAMES[service]} port", who_listens(port)
    if service == "ollama" and not facts.local_upstream:
        return Finding(name, Outcome.SKIP, f"Ollama is on another machine, at {facts.settings.upstream}")
    if facts.listening is None:
        return Finding(name, Outcome.SKIP, NO_LSOF)
    there, pid = facts.of(service), facts.pid(service)
    ours = service in facts.jobs and facts.installed(service)
    for each in there:
        if not (each.pid == pid if ours else each.may_be(service)):
            who = "the agent" if ours else NAMES[service]
            return Finding(name, Outcome.FAIL, f"{each.where} is held by {each.who}, not by {who}", hint)
    if there:
        where = ", ".join(each.where for each in there)
        return Finding(name, Outcome.PASS, f"{there[0].who} listens on {where}")
    outcome = Outcome.FAIL if service == "proxy" or facts.installed(service) else Outcome.WARN
    for address in facts.expected if service == "proxy" else (facts.upstream[0],):
        if (foreign := hidden(facts, name, address, port, outcome)) is not None:
            return foreign
    if (
        service == "proxy" and pid is None and facts.waits
    ):  # one in a terminal may wait too, and a second one would be no help
        tailnet = facts.tailscale.tailnet
        return Finding(name, Outcome.FAIL, f"nothing listens on port {port}: {tailnet.problem}", tailnet.hint)
    return Finding(name, Outcome.FAIL, f"nothing listens on port {port}", facts.log if pid else facts.start(service))


def proxy_answers(facts: Facts) -> Iterator[Finding]:
    """Report whether the proxy answers: a port may accept connections long before, or after, its program answers."""
    yield _proxy_answers(facts)


def _proxy_answers(facts: Facts) -> Finding:
    name, port = "proxy HTTP", facts.settings.port
    if not facts.reachable:
        detail = facts.tailscale.tailnet.problem or "there is no address to listen on"
        return Finding(name, Outcome.FAIL, detail, facts.tailscale.tailnet.hint)
    where = joined(facts.reachable[0], port)
    try:
        answer = facts.ask(facts.reachable[0], port, "GET", "/api/version")
    except (OSError, http.client.HTTPException) as error:
        return Finding(name, Outcome.FAIL, f"{where} does not answer: {error or type(error).__name__}", facts.log)
    if not answer.id:
        detail = f"{where} answers with {answer.status}, but not from the proxy"
        return Finding(name, Outcome.FAIL, detail, who_listens(port))
    if says_so(answer.status, answer.content) and may_refuse(facts.settings, facts.reachable[0]):
        return Finding(name, Outcome.PASS, f"the proxy answers at {where}, and refuses this machine: {REFUSED}")
    if answer.status != 200:
        detail = f"{where} answers, but GET /api/version with {answer.status} instead of 200"
        return Finding(name, Outcome.WARN, detail, f"{PROGRAM} status")
    return Finding(name, Outcome.PASS, f"the proxy answers at {where}")


def versions(facts: Facts) -> Iterator[Finding]:
    """Report whether the proxy that runs is the one that is installed, and the one that this command belongs to."""
    name, job, program = "proxy version", facts.jobs.get("proxy"), facts.program("proxy")
    restart = facts.start("proxy", "restart")
    if job is not None and job.running and job.program and program and job.program != program:
        detail = f"{job.program} runs, and {program} is installed"
        yield Finding(name, Outcome.FAIL, detail, restart)
    elif facts.version is None:
        yield Finding(name, Outcome.SKIP, "no diagnostics log says which version runs")
    elif (own := _installed(program)) and own != facts.version:
        yield Finding(name, Outcome.FAIL, f"{facts.version} runs, and {own} is installed", restart)
    elif facts.version != __version__:
        detail = f"{printable(facts.version)} runs, but this command is version {__version__}"
        yield Finding(name, Outcome.WARN, detail, f"{PROGRAM} install")
    else:
        yield Finding(name, Outcome.PASS, f"{facts.version} runs, as installed" if own else f"{facts.version} runs")


def _installed(program: str | None) -> str:
    """Return the version whose environment a program is in, as in versions/0.1.0-5f3c9a1e/bin/python."""
    folder = Path(program).parent.parent if program else None
    return folder.name.rpartition("-")[0] if folder is not None and folder.parent.name == "versions" else ""


# --- sleep ------------------------------------------------------------------------------------------------------------


def keep_awake(facts: Facts) -> Iterator[Finding]:
    """Report whether a proxy that runs can keep the Mac awake while a model answers, and whether it does so now."""
    name, pid = "keep awake", facts.pid("proxy")
    if not facts.machine.is_mac or pid is None:
        return
    if not facts.settings.keep_awake:
        yield Finding(name, Outcome.PASS, "off: the Mac may sleep in the middle of an answer")
        return
    command = " ".join((CAFFEINATE, *arguments(pid)))
    if any(each.command == command for each in facts.machine.processes()):
        yield Finding(name, Outcome.PASS, "the Mac is kept awake: a model is answering, or was within the last minute")
    else:
        yield Finding(name, Outcome.PASS, "on: the Mac is kept awake while a model answers; none is answering now")
