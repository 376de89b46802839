"""The agent that warms models at login: how it is made, kept working by an upgrade, and removed.

It runs the command `warm` of the installed proxy, once at each login; the template says why not more often.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from proxy import PROGRAM
from proxy.manage.install.agents import Agent, remove
from proxy.manage.machine import launchd, plists
from proxy.manage.machine.launchd import WARM, Launchd, LaunchdError
from proxy.manage.machine.receipt import Receipt
from proxy.manage.machine.services import read_plist
from proxy.manage.machine.steps import Folder, RolledBackError, carry_out
from proxy.terminal.console import complain, console

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from proxy.manage.machine.machine import Machine

WAIT = "10m"
"""How long the agent waits for Ollama, which starts at the same login."""

_WELL, _FAILED, _MISSING = 0, 1, 3


class LackError(Exception):
    """There can be no agent, for want of something; `hint` is what helps, `code` the exit code for it."""

    def __init__(self, text: str, hint: str, code: int = _MISSING) -> None:
        super().__init__(text)
        self.hint, self.code = hint, code


def interpreter(machine: Machine) -> Path:
    """Return the interpreter of the installed proxy, which an agent runs on. LackError where there can be none."""
    if machine.find("launchctl") is None:
        text = f"--at-login needs macOS and its launchctl; this is {machine.system}"
        raise LackError(text, f"{PROGRAM} warm MODEL, without --at-login")
    version = Receipt.of(machine).version
    python = machine.versions / version / "bin" / "python"
    if not version or not os.access(python, os.X_OK):
        raise LackError(
            "--at-login needs the installed proxy: a clone may move, and launchd may not see it", "make install"
        )
    if machine.run(python, "-I", "-c", "import proxy.manage.warm.models").code:
        raise LackError(
            "--at-login needs an installed proxy that can warm models, and that one is older", "make install"
        )
    try:
        Launchd(machine.uid, machine.run).need_domain()
    except LaunchdError as error:
        raise LackError(str(error), error.hint, _FAILED) from error
    return python


def words(machine: Machine) -> list[str] | None:
    """Return what follows the command `warm` in the agent that there is; None without one that can be read."""
    arguments = (read_plist(launchd.plist_path(WARM, machine.home)) or {}).get("ProgramArguments")
    if not isinstance(arguments, list) or "warm" not in arguments:
        return None
    return [str(each) for each in arguments[arguments.index("warm") + 1 :]]


def agent(machine: Machine, python: Path, words: Sequence[str], *, after: Agent | None = None) -> Agent:
    """Return the step that has `words` follow the command `warm` at each login, run by `python`."""
    values = {"PYTHON": python, "WORDS": list(words), "HOME": machine.home, "LOGS": machine.logs}
    agents = Launchd(machine.uid, machine.run)
    return Agent(machine, agents, WARM, plists.render(WARM, values), after=after)


def put(machine: Machine, python: Path, words: Sequence[str]) -> int:
    """Make the agent, or change it; print what was done and how to undo it. Return the exit code."""
    say = console()
    steps = [Folder(machine, machine.logs), Folder(machine, machine.agents, 0o755), agent(machine, python, words)]
    say("at login", "bold")
    try:
        carry_out(steps, say)
    except RolledBackError as error:
        complain([str(error), *error.left], error.hint)
        return _FAILED
    say(f"  it does the same at each login, once Ollama answers; its log: {machine.shown(machine.logs / 'warm.log')}")
    say(f"  to undo it: {PROGRAM} warm --no-at-login")
    return _WELL


def take_away(machine: Machine) -> int:
    """Remove the agent, and print what was done; return the exit code."""
    if machine.find("launchctl") is None:
        complain([f"--no-at-login needs macOS and its launchctl; this is {machine.system}"], f"{PROGRAM} warm --help")
        return _MISSING
    say = console()
    try:
        done = list(remove(machine, Launchd(machine.uid, machine.run), WARM))
    except (LaunchdError, OSError) as error:
        complain([str(error)], getattr(error, "hint", ""))
        return _FAILED
    for line in done or ["nothing was to be loaded at login: nothing was changed"]:
        say(line)
    if done:
        say("what is loaded now stays so: `ollama stop NAME` unloads it")
    return _WELL
