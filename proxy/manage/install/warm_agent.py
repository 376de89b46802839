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
from proxy.manage.machine.plists import read_plist
from proxy.manage.machine.receipt import Receipt
from proxy.manage.machine.steps import Folder, RolledBackError, carry_out
from proxy.terminal.result import CommandError, Exit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from proxy.manage.machine.machine import Machine
    from proxy.terminal.printer import Printer

WAIT = "10m"
"""How long the agent waits for Ollama, which starts at the same login."""


def interpreter(machine: Machine) -> Path:
    """Return the interpreter of the installed proxy, which an agent runs on. CommandError where there can be none."""
    if machine.find("launchctl") is None:
        text = f"--at-login needs macOS and its launchctl; this is {machine.system}"
        raise CommandError(text, f"{PROGRAM} warm MODEL, without --at-login", Exit.MISSING)
    version = Receipt.of(machine).version
    python = machine.versions / version / "bin" / "python"
    if not version or not os.access(python, os.X_OK):
        text = "--at-login needs the installed proxy: a clone may move, and launchd may not see it"
        raise CommandError(text, "make install", Exit.MISSING)
    if machine.run(python, "-I", "-c", "import proxy.manage.warm.models").code:
        text = "--at-login needs an installed proxy that can warm models, and that one is older"
        raise CommandError(text, "make install", Exit.MISSING)
    try:
        Launchd(machine.uid, machine.run).need_domain()
    except LaunchdError as error:
        raise CommandError(str(error), error.hint) from error
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


def put(machine: Machine, python: Path, words: Sequence[str], out: Printer) -> None:
    """Make the agent, or change it; print what was done and how to undo it. Raises CommandError."""
    steps = [Folder(machine, machine.logs), Folder(machine, machine.agents, 0o755), agent(machine, python, words)]
    out.step("at login", "bold")
    try:
        carry_out(steps, out.step)
    except RolledBackError as error:
        raise CommandError(str(error), error.hint, Exit.FAILED, *error.left) from error
    out.say(
        f"  it does the same at each login, once Ollama answers; its log: {machine.shown(machine.logs / 'warm.log')}"
    )
    out.say(f"  to undo it: {PROGRAM} warm --no-at-login")


def take_away(machine: Machine, out: Printer) -> list[str]:
    """Remove the agent; print and return what was done. Raises CommandError."""
    if machine.find("launchctl") is None:
        text = f"--no-at-login needs macOS and its launchctl; this is {machine.system}"
        raise CommandError(text, f"{PROGRAM} warm --help", Exit.MISSING)
    try:
        done = list(remove(machine, Launchd(machine.uid, machine.run), WARM))
    except (LaunchdError, OSError) as error:
        raise CommandError(str(error), getattr(error, "hint", "")) from error
    for line in done or ["nothing was to be loaded at login: nothing was changed"]:
        out.say(line)
    if done:
        out.say("what is loaded now stays so: `ollama stop NAME` unloads it")
    return done
