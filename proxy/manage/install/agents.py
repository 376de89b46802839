"""The steps of an install that concern launchd: an agent's plist and job, and another program's agent that is replaced.

`launchd` runs launchctl. This module has what an install does with it, and how that is undone.
"""

from __future__ import annotations

import os
import plistlib
from typing import TYPE_CHECKING

from proxy.manage.findings.agents import exit_timeout_for
from proxy.manage.machine import launchd, plists
from proxy.manage.machine.steps import Kept, Step, shown_file, write
from proxy.serving.descriptors import descriptors_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from proxy.manage.machine.launchd import Launchd
    from proxy.manage.machine.machine import Machine
    from proxy.manage.machine.receipt import Receipt
    from proxy.settings.settings import Settings

PLIST_MODE = 0o644  # launchd refuses one that others may write to

_FORMER_LOGS = ["/tmp/ollama.stdout.log", "/tmp/ollama.stderr.log"]  # noqa: S108 - to know them again
_OURS = ("HOME", "OLLAMA_HOST", "OLLAMA_NO_CLOUD")


def proxy_plist(machine: Machine, settings: Settings, python: Path) -> bytes:
    """Return the plist of the proxy that runs on `python`, with limits that its settings need."""
    values = {
        "PYTHON": python,
        "HOME": machine.home,
        "LOGS": machine.logs,
        "EXIT_TIMEOUT": exit_timeout_for(settings.drain_timeout),
        "FILES": max(16384, 2 * descriptors_for(settings.max_connections)),
    }
    return plists.render(launchd.PROXY, values)


def ollama_plist(machine: Machine, settings: Settings, ollama: Path, environment: Mapping[str, str]) -> bytes:
    """Return the plist of Ollama, where `upstream` says that it is."""
    values = {
        "OLLAMA": ollama,
        "HOME": machine.home,
        "LOGS": machine.logs,
        "OLLAMA_HOST": settings.upstream.removeprefix("http://").replace("localhost", "127.0.0.1"),
        "OLLAMA_ENV": environment,
    }
    return plists.render(launchd.OLLAMA, values)


def ollama_environment(old: bytes | None, backup: bytes | None, receipt: Receipt, settings: Settings) -> dict[str, str]:
    """Return the owner's variables for Ollama: those that the existing plist has, and `ollama_env`, which wins.

    What an earlier `ollama_env` added and the present one doesn't is gone again, or what it was before.
    """
    before = plists.variables(plists.parse(backup or b""))
    there = plists.variables(plists.parse(old or b""))
    kept = {name: value for name, value in there.items() if name not in receipt.ollama_env}
    restored = {name: before[name] for name in receipt.ollama_env if name in before}
    return {
        name: value for name, value in {**kept, **restored, **dict(settings.ollama_env)}.items() if name not in _OURS
    }


def alike(plist: bytes | None, other: bytes) -> bool:
    """Return whether two plists differ in program and environment at most: then one hand wrote both.

    An earlier version had Ollama's output in /tmp.
    """
    mine, others = plists.parse(plist or b""), plists.parse(other)
    if mine is None or others is None:
        return False
    owners = {"ProgramArguments": None, "EnvironmentVariables": None}
    if [mine.get(stream) for stream in plists.STREAMS] == _FORMER_LOGS:
        owners |= dict.fromkeys(plists.STREAMS)
    return {**mine, **owners} == {**others, **owners}


class Agent(Step):
    """Write the plist of an agent and load it; an agent that is loaded with the same plist is left alone.

    It is loaded again anyway if `after` was, because what that one held in memory is gone.
    """

    def __init__(
        self, machine: Machine, agents: Launchd, label: str, plist: bytes, *, after: Agent | None = None
    ) -> None:
        self.path = launchd.plist_path(label, machine.home)
        self.title = f"load {label} from {machine.shown(self.path)}"
        self.agents, self.label, self.plist, self.after = agents, label, plist, after
        self.before: Kept | None = None
        self.was_loaded = self.was_disabled = False

    def shown(self) -> Iterator[str]:
        """Yield the plist, and the commands of a reload."""
        yield from shown_file(self.path, self.plist, PLIST_MODE)
        yield f"$ plutil -lint '{self.path}'"
        yield f"$ launchctl bootout {self.agents.target(self.label)}"
        yield f"$ launchctl bootstrap {self.agents.domain} '{self.path}'"
        yield f"$ launchctl kickstart {self.agents.target(self.label)}"

    def done(self) -> bool:
        """Return whether it is loaded from a plist that says the same, however that is formatted."""
        same = plists.read_plist(self.path) == plists.parse(self.plist)
        state = self.agents.state(self.label)
        moved = self.after is not None and self.after.before is not None
        return same and state.loaded and not state.disabled and not moved

    def do(self) -> None:
        """Write and load it. It is enabled if it was disabled: to install is to want it."""
        state = self.agents.state(self.label)
        self.before, self.was_loaded, self.was_disabled = Kept.of(self.path), state.loaded, state.disabled
        write(self.path, self.plist, PLIST_MODE)
        if state.disabled:
            self.agents.enable(self.label)
        state = self.agents.reload(self.label, self.path)
        asked = plistlib.loads(self.plist).get("ExitTimeOut", 0)
        if state.exit_timeout is not None and state.exit_timeout < asked:
            self.notes = (f"launchd gives it {state.exit_timeout} s to end, not the {asked} that its plist asks for",)

    def undo(self) -> None:
        """Unload it, put the old plist back, and load that if it was."""
        if self.before is None:
            return
        self.agents.bootout(self.label)
        self.before.restore()
        if self.was_loaded:
            self.agents.reload(self.label, self.path)
        if self.was_disabled:
            self.agents.disable(self.label)


def remove(machine: Machine, agents: Launchd, label: str, *, dry_run: bool = False) -> Iterator[str]:
    """Unload an agent of ours and remove its plist; yield what was done, which is nothing where there is none."""
    path = launchd.plist_path(label, machine.home)
    loaded = agents.state(label).loaded
    if not dry_run:
        agents.bootout(label)
    if loaded:
        yield f"stopped {label}"
    if os.path.lexists(path):
        if not dry_run:
            path.unlink()
        yield f"removed {path}"


class TakeOver(Step):
    """Unload an agent of others and keep its plist where launchd doesn't look."""

    def __init__(self, machine: Machine, agents: Launchd, label: str) -> None:
        self.path = launchd.plist_path(label, machine.home)
        self.aside = machine.backup / self.path.name
        self.title = f"unload {label} and keep its plist in {machine.shown(machine.backup)}"
        self.agents, self.label = agents, label
        self.before: Kept | None = None
        self.was_loaded = False

    def shown(self) -> Iterator[str]:
        """Yield the commands."""
        yield f"$ launchctl bootout {self.agents.target(self.label)}"
        yield f"$ mv '{self.path}' '{self.aside}'"

    def done(self) -> bool:
        """Return whether it is out of the way."""
        return not self.path.exists() and not self.agents.state(self.label).loaded

    def do(self) -> None:
        """Unload it, then move its plist."""
        self.before, self.was_loaded = Kept.of(self.path), self.agents.state(self.label).loaded
        self.agents.bootout(self.label)
        if self.path.exists():
            self.path.replace(self.aside)

    def undo(self) -> None:
        """Put it back, and load it if it was."""
        if self.before is None:
            return
        self.before.restore()
        self.aside.unlink(missing_ok=True)
        if self.was_loaded and self.path.exists() and not self.agents.state(self.label).loaded:
            self.agents.reload(self.label, self.path)
