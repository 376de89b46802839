"""Start, stop, restart, disable and enable the two services: which launchd verbs that takes, and in which order.

Each ends when its work is done, or can't be done: launchctl itself returns earlier.

    stop     bootout. Any gentler verb is undone at once by KeepAlive. At the next login the job is loaded again
    start    bootstrap, or kickstart where the job is loaded and down
    restart  bootout, then bootstrap. `now`: kickstart -k
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from proxy import PROGRAM
from proxy.manage.machine import at_work
from proxy.manage.machine.launchd import OLLAMA, PROXY, WARM, Launchd, LaunchdError, plist_path
from proxy.manage.machine.live_client import state_of_process
from proxy.manage.machine.plists import read_plist, variables
from proxy.terminal.finding import Finding, Outcome
from proxy.terminal.result import CommandError, Exit, Result

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from proxy.manage.machine.job_state import JobState
    from proxy.manage.machine.machine import Machine
    from proxy.terminal.printer import Printer

LABELS = {"proxy": PROXY, "ollama": OLLAMA}
BOTH = "both"
VERBS = ("start", "stop", "restart", "disable", "enable")

SPAWN_TIME = 5.0
"""Seconds until a job that was loaded or killed is running again."""

SETTLE_TIME = 2.0
"""Seconds that a service must stay up to count as started: wrong settings end the proxy within one."""

DAEMONS = "/Library/LaunchDaemons"
"""The folder of the system's own jobs; docs/setup.md describes how the services become some of them."""


def run(flags: Mapping[str, str], args: argparse.Namespace, machine: Machine, out: Printer) -> Result:  # noqa: ARG001
    """Do the verb in `args` to the services that it names."""
    if machine.find("launchctl") is None:
        text = f"{args.command} needs macOS and its launchctl; this is {machine.system}"
        raise CommandError(text, PROGRAM, Exit.MISSING)
    launchd, now = Launchd(machine.uid, machine.run), getattr(args, "now", False)
    services = Services(launchd, machine.home)
    try:
        pid = None if getattr(args, "yes", True) else launchd.state(PROXY).pid
        state = state_of_process(pid, settings_environ(machine)) if pid else {}
        if lost := at_work.lost(state, services.concerned(args.command, args.service), now=now):
            words = [args.command, args.service, *(["--now"] if now else []), "--yes"]
            if not _agreed(lost, out, f"{args.command.capitalize()} anyway?", f"{PROGRAM} {' '.join(words)}"):
                return Result(Exit.FAILED, [])
        findings = list(services.act(args.command, args.service, now=now))
    except LaunchdError as error:
        raise CommandError(str(error), error.hint) from error
    out.findings(findings, args.command)
    return Result(Exit.of(findings), findings)


def _agreed(lost: Iterable[str], out: Printer, question: str, otherwise: str) -> bool:
    """Show what clients would lose, and return whether the owner agrees. Raises CommandError without a terminal."""
    out.step("this would be lost")
    for line in lost:
        out.step(f"  {line}")
    agreed = out.agree(question, otherwise)
    if not agreed:
        out.step("nothing was changed")
    return agreed


class Services:
    """The services of one user. A method returns what it did, in words, or raises LaunchdError."""

    def __init__(self, launchd: Launchd, home: Path, *, settle: float = SETTLE_TIME, spawn: float = SPAWN_TIME) -> None:
        self._launchd = launchd
        self._home = home
        self._settle = settle
        self._spawn = spawn

    def act(self, verb: str, which: str = BOTH, *, now: bool = False) -> Iterator[Finding]:
        """Do `verb` to `which` (`proxy`, `ollama` or `both`) and yield a finding for each; one failing stops no other.

        Ollama starts first and stops last, in a restart too. With `both`, an Ollama without a plist is someone else's.
        """
        self._launchd.need_domain()
        concerned = self.concerned(verb, which)
        for name in self._named(verb, which):
            if name not in concerned:
                yield Finding(name, Outcome.SKIP, "not one of our services: someone else manages it")
                continue
            try:
                if verb == "restart" and name == "ollama" and "proxy" in concerned and not now:
                    self._gone(PROXY)
                detail = self.restart(name, now=now) if verb == "restart" else getattr(self, verb)(name)
                yield Finding(name, Outcome.PASS, detail)
                if name == "ollama" and detail.startswith(("started", "restarted")):
                    yield from self._warm_again()
            except LaunchdError as error:
                yield Finding(name, Outcome.FAIL, str(error), error.hint)

    def concerned(self, verb: str, which: str) -> list[str]:
        """Return the services that `verb` acts on, in its order: with `both`, not an Ollama of someone else."""
        names = self._named(verb, which)
        ours = plist_path(OLLAMA, self._home).exists() or self._launchd.state(OLLAMA).loaded
        return names if ours or which != BOTH else [name for name in names if name != "ollama"]

    @staticmethod
    def _named(verb: str, which: str) -> list[str]:
        names = list(reversed(LABELS)) if which == BOTH else [which]
        return names[::-1] if verb in {"stop", "disable"} else names

    def start(self, name: str) -> str:
        """Have a service run; one that does is left alone."""
        label = LABELS[name]
        state = self._enabled(name)
        if state.running:
            return f"runs already (pid {state.pid})"
        if state.loaded:
            self._launchd.kickstart(label, kill=False)
        else:
            self._launchd.reload(label, plist_path(label, self._home))
        return f"started (pid {self._settled(label).pid})"

    def stop(self, name: str) -> str:
        """Have a service end, streams that it serves first, and be gone."""
        if not self._gone(LABELS[name]):
            return "was not loaded"
        return f"stopped; at the next login it starts again (`disable {name}` keeps it down)"

    def restart(self, name: str, *, now: bool = False) -> str:
        """Stop a service and start it again; `now` cuts its streams."""
        label = LABELS[name]
        state = self._enabled(name)
        if now and state.loaded:
            self._launchd.kickstart(label)
        else:
            self._launchd.reload(label, plist_path(label, self._home))
        return f"restarted (pid {self._settled(label, before=state.pid).pid})"

    def disable(self, name: str) -> str:
        """Have a service end, and stay down over logins until it is enabled."""
        self._launchd.disable(LABELS[name])
        self._gone(LABELS[name])
        return f"stopped, and stays down (until `enable {name}`)"

    def enable(self, name: str) -> str:
        """Have a service run, now and after each login."""
        self._launchd.enable(LABELS[name])
        return self.start(name)

    def _warm_again(self) -> Iterator[Finding]:
        """Start the agent that warms models at login, again if it is running, because a load that was cut is lost."""
        log = log_of(read_plist(plist_path(WARM, self._home)), WARM)
        try:
            if self._launchd.state(WARM).loaded:
                self._launchd.kickstart(WARM)
                yield Finding("warm", Outcome.PASS, f"loads its models again (see `{log}`)")
        except LaunchdError as error:
            yield Finding("warm", Outcome.WARN, f"does not load its models again: {error}", error.hint)

    def _enabled(self, name: str) -> JobState:
        state = self._launchd.state(LABELS[name])
        if state.disabled:
            raise LaunchdError("is disabled", f"{PROGRAM} enable {name}")
        return state

    def _gone(self, label: str) -> bool:
        """Unload a job; return whether it was loaded."""
        loaded = self._launchd.state(label).loaded
        self._launchd.bootout(label)
        return loaded

    def _settled(self, label: str, before: int | None = None) -> JobState:
        """Return the state of a job once it runs, as another process than `before`, and stays up."""

        def up() -> bool:
            state = self._launchd.state(label)
            return (state.running and state.pid != before) or state.last_exit == os.EX_CONFIG

        if not self._launchd.await_(up, self._spawn):
            self._launchd.start_if_left_down(label)
            self._launchd.await_(up, self._spawn)
        first = self._launchd.state(label)
        if not first.running or self._launchd.await_(lambda: self._launchd.state(label).pid != first.pid, self._settle):
            ended = self._launchd.state(label).ended
            raise LaunchdError(f"does not stay up: {ended}", log_of(read_plist(plist_path(label, self._home)), label))
        return first


def plist_of(machine: Machine, label: str) -> Path:
    """Return where a service's plist is, or would be: an agent's, or a daemon's that the owner made of it."""
    agent, daemon = plist_path(label, machine.home), machine.at(f"{DAEMONS}/{label}.plist")
    return daemon if daemon.exists() and not agent.exists() else agent


def settings_environ(machine: Machine) -> Mapping[str, str]:
    """Return the variables that the proxy has: those of its plist; where there is none, those of this shell."""
    plist = read_plist(plist_of(machine, PROXY))
    if plist is None:
        return machine.environ
    return {"HOME": str(machine.home), "TMPDIR": machine.environ.get("TMPDIR", ""), **variables(plist)}


def log_of(plist: dict[str, Any] | None, label: str) -> str:
    """Return a command that shows why a job ended."""
    log = (plist or {}).get("StandardErrorPath")
    return f"tail -n 20 '{log}'" if log else f"launchctl print gui/{os.getuid()}/{label}"
