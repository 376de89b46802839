"""`--check`: the effective settings, the allowlist, and what is wrong, without serving."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from proxy.manage.facts.facts import Facts
from proxy.manage.findings import access
from proxy.manage.findings import settings as checks
from proxy.manage.findings.table import When, findings
from proxy.settings.settings import SettingsError, load
from proxy.terminal.result import Exit, Result

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from proxy.manage.machine.machine import Machine
    from proxy.terminal.printer import Printer


def run(flags: Mapping[str, str], args: argparse.Namespace, machine: Machine, out: Printer) -> Result:  # noqa: ARG001
    """Print settings, allowlist and findings. Wrong settings are findings with --json, else a SettingsError."""
    try:
        loaded = load(flags, os.environ)
    except SettingsError as error:
        if not out.as_json:
            raise
        return Result(Exit.WRONG, list(checks.mistakes(error)))
    found = list(findings(Facts(machine, loaded, python=sys.executable), When.CHECK))
    rules = access.shown(loaded)
    values = [
        (name, "as below" if name == "access" and rules else value, by) for name, value, by in checks.values(loaded)
    ]
    out.tables((("settings", values), ("allowlist", checks.rows(loaded))))
    if rules:
        out.tables((("access rules: the first that names the asker counts", rules),))
    out.findings(found, above={"settings", "allowlist"})
    return Result(Exit.of(found, Exit.WRONG), found)
