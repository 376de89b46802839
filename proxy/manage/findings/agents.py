"""What can be wrong with two agents that run: too little time to end, models out of reach, a log that grows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from proxy import PROGRAM
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from proxy.manage.facts.facts import Facts

AGENT_LIMIT = 60
"""Seconds that launchd gives an agent to end, whatever its plist asks for: on macOS 26, 90 and 215 become 60."""

LARGE_LOG = 2**30
"""The size in bytes from which Ollama's log is reported: launchd appends to it and never rotates it."""

_LEAST, _CUT = 40, 15
"""Seconds: ExitTimeOut at least; and its part after drain_timeout, to send error events and write the logs."""


def exit_timeout_for(drain_timeout: float) -> int:
    """Return the seconds that the proxy may need to end: its plist's ExitTimeOut."""
    return max(_LEAST, int(drain_timeout) + _CUT)


def limits(facts: Facts) -> Iterator[Finding]:
    """Find settings that launchd doesn't allow an agent. A daemon of the system is not an agent."""
    if not facts.machine.is_mac or facts.is_daemon("proxy"):
        return
    job, allowed, variables = facts.jobs.get("proxy"), None, dict(facts.settings.ollama_env)
    if facts.is_install:
        variables = {} if facts.options.proxy_only else {**facts.variables("ollama"), **variables}
    elif not facts.is_check:
        if job is None or not facts.installed("proxy"):
            return
        allowed, variables = job.exit_timeout, dict(facts.variables("ollama"))
    if (cut := cut_drain(facts.settings.drain_timeout, allowed)) is not None:
        yield cut
    if (models := external_models(variables)) is not None:
        yield models


def large_log(facts: Facts) -> Iterator[Finding]:
    """Find a log of Ollama's that has grown large."""
    log = (facts.plists["ollama"] or {}).get("StandardErrorPath")
    if facts.installed("proxy") and isinstance(log, str) and (large := large_file(Path(log))) is not None:
        yield large


def cut_drain(drain_timeout: float, allowed: int | None = None) -> Finding | None:
    """Return what is wrong if launchd would kill the proxy before `drain_timeout` is over."""
    needed, most = exit_timeout_for(drain_timeout), AGENT_LIMIT if allowed is None else allowed
    if needed <= most:
        return None
    detail = (
        f"a stop may take {needed} s with drain_timeout = {drain_timeout:g}s, and launchd kills the proxy after {most}"
    )
    hint = f"{PROGRAM} install"
    if needed > AGENT_LIMIT:
        hint = f"drain_timeout = {AGENT_LIMIT - _CUT} in config.toml, then {PROGRAM} install"
    return Finding("drain_timeout", Outcome.WARN, f"{detail}: its last streams end without an error event", hint)


def external_models(environment: Mapping[str, str]) -> Finding | None:
    """Return what is wrong with models on an external volume: macOS asks before an agent may read one."""
    folder = environment.get("OLLAMA_MODELS", "")
    if not folder.startswith("/Volumes/"):
        return None
    detail = (
        f"Ollama's models are in {folder}: it can't start before that volume is mounted and you allowed it to read it"
    )
    hint = f"answer macOS's question at the screen, then {PROGRAM} restart ollama"
    return Finding("models", Outcome.WARN, detail, hint)


def large_file(path: Path) -> Finding | None:
    """Return what is wrong with a file of Ollama's output that has grown large."""
    try:
        size = path.stat().st_size
    except OSError:
        return None
    if size < LARGE_LOG:
        return None
    detail = f"{path} has grown to {size / 2**30:.1f} GiB: launchd never rotates it"
    return Finding("ollama log", Outcome.WARN, detail, f": > '{path}'")
