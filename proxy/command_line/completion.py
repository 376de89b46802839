"""The script that lets a shell complete commands and flags when Tab is pressed, written by shtab.

shtab writes every word into the script, so a TAB starts nothing. argcomplete, the other library of its kind, starts the
program at each TAB, which would wait a third of a second for Python to load the settings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import shtab

from proxy import NAME
from proxy.command_line import commands
from proxy.manage.connect.tools import TOOLS
from proxy.terminal.result import Result

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from proxy.command_line.commands import Parser
    from proxy.manage.machine.machine import Machine
    from proxy.terminal.printer import Printer

_COMMAND = NAME  # in a checkout, too: `python -m proxy` can't be completed
_FILES = ("config", "access_log", "diagnostics_log")


def run(flags: Mapping[str, str], args: argparse.Namespace, machine: Machine, out: Printer) -> Result:  # noqa: ARG001
    """Print the script."""
    made = script(commands.commands(commands.options())[0], args.shell)
    out.text(f"{made}\n")
    return Result(data={"script": made})


def script(parser: Parser, shell: str) -> str:
    """Return the script for `shell`. It changes `parser`, which has no other use afterwards."""
    parser.prog = _COMMAND
    for option in _FILES:
        vars(parser.action(option))["complete"] = shtab.FILE
    connect = dict(parser.action("command").choices or {})["connect"]
    connect.action("tool").choices = sorted(tool.name for tool in TOOLS)
    return shtab.complete(parser, shell=shell)
