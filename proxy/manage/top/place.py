"""Find the running proxy that a command means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.manage.machine.live_client import Live
from proxy.manage.machine.services import settings_environ
from proxy.settings.settings import load

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.manage.machine.machine import Machine


def live_of(machine: Machine, flags: Mapping[str, str]) -> Live:
    """Return the installed proxy, or the one that these settings would start. Raises SettingsError."""
    environ = settings_environ(machine)
    return Live(load(flags, environ).settings.port, environ)
