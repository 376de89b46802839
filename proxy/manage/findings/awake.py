"""Whether the Mac is kept from sleeping while models answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.exchange.awake import CAFFEINATE, arguments
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from proxy.manage.machine.machine import Machine
    from proxy.settings.settings import Settings

NAME = "keep awake"


def keeps_awake(machine: Machine, settings: Settings, pid: int | None) -> Finding:
    """Return whether the proxy with `pid` can keep the Mac awake while a model answers, and whether it does so now."""
    if not machine.is_mac:
        return Finding(NAME, Outcome.SKIP, f"{machine.system} has no caffeinate")
    if not settings.keep_awake:
        return Finding(NAME, Outcome.PASS, "off: the Mac may sleep in the middle of an answer")
    if pid is not None and _holds(machine, pid):
        return Finding(NAME, Outcome.PASS, "the Mac is kept awake: a model answers, or did so within the last minute")
    return Finding(NAME, Outcome.PASS, "on: the Mac is kept awake while a model answers, which none does now")


def _holds(machine: Machine, pid: int) -> bool:
    """Return whether the process that keeps the Mac awake in the name of `pid` is there."""
    command = " ".join((CAFFEINATE, *arguments(pid)))
    return any(each.command == command for each in machine.processes())
