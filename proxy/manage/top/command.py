"""`top`: watch a running proxy."""

from __future__ import annotations

import sys
from time import monotonic
from typing import TYPE_CHECKING, Any

from proxy.manage.machine.live_client import LiveError
from proxy.manage.top.place import live_of
from proxy.manage.top.screen import KEYS, parts, screen
from proxy.terminal.result import CommandError, Result

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from rich.live import Live as Shown

    from proxy.manage.machine.live_client import Live
    from proxy.manage.machine.machine import Machine
    from proxy.manage.top.keys import Keys
    from proxy.terminal.printer import Printer

EACH = 1.0
"""Seconds between two looks."""


def run(flags: Mapping[str, str], args: argparse.Namespace, machine: Machine, out: Printer) -> Result:
    """Show what goes on until `q` or Ctrl-C; without a terminal, or with `--once` or `--json`, show it once."""
    live = live_of(machine, flags)
    try:
        state = live.state()
        if out.as_json or args.once or not (sys.stdin.isatty() and sys.stdout.isatty()):
            out.parts(parts(state))
            return Result(data=state)
        _watch(live, state)
    except LiveError as error:
        raise CommandError(str(error), error.hint) from error
    except KeyboardInterrupt:
        pass
    return Result()


def _watch(live: Live, state: dict[str, Any]) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.live import Live as Shown  # noqa: PLC0415

    from proxy.manage.top.keys import Keys  # noqa: PLC0415

    with Keys() as keys, Shown(console=Console(), screen=True, auto_refresh=False) as shown:
        Watch(live, state, keys, shown).run()


class Watch:
    """The screen and its keys."""

    def __init__(self, live: Live, state: dict[str, Any], keys: Keys, shown: Shown) -> None:
        self._live = live
        self._state = state
        self._keys = keys
        self._shown = shown
        self._rates: dict[str, float] = {}
        self._chosen: str | None = None  # the id
        self._line = KEYS
        self._away = ""  # why there was no answer to the last look
        self._looked = monotonic()

    def run(self) -> None:
        """Show, look again, and follow the keys until `q`."""
        while True:
            self._draw()
            key = self._keys.pressed(EACH)
            if key == "q":
                return
            if key in {"up", "down"}:
                self._choose(1 if key == "down" else -1)
            elif key == "k" and self._chosen is not None:
                self._end(self._chosen)
            if monotonic() - self._looked >= EACH:
                self._look()

    def _ids(self) -> list[str]:
        return [each["id"] for each in self._state["exchanges"]]

    def _draw(self) -> None:
        ids = self._ids()
        chosen = ids.index(self._chosen) if self._chosen in ids else None
        line, height = self._away or self._line, self._shown.console.height
        self._shown.update(screen(self._state, self._rates, chosen, line, height), refresh=True)

    def _choose(self, step: int) -> None:
        ids = self._ids()
        if ids:
            at = ids.index(self._chosen) + step if self._chosen in ids else 0
            self._chosen = ids[at % len(ids)]

    def _end(self, which: str) -> None:
        self._line = f"end request {which}? y: yes, any other key: no"
        self._draw()
        key = ""
        while not key:
            key = self._keys.pressed(EACH)
        self._line = KEYS
        if key == "y":
            try:
                ended = self._live.cancel(which)
            except LiveError as error:
                self._line = f"{KEYS}   {error}"
                return
            self._line = f"{KEYS}   " + (f"ended {which}" if ended else f"{which} was over already")
            self._look()

    def _look(self) -> None:
        """Look again, and compute the speeds since the last look. If the proxy doesn't answer, keep trying."""
        self._looked = monotonic()
        before, passed = {each["id"]: each["events"] for each in self._state["exchanges"]}, -self._state["now"]
        try:
            self._state = self._live.state()
        except LiveError as error:
            self._away = f"{error}; trying again   q quit"
            return
        self._away = ""
        passed += self._state["now"]
        now = {each["id"]: each["events"] for each in self._state["exchanges"]}
        self._rates = {each: (now[each] - before[each]) / passed for each in now.keys() & before if passed > 0}
