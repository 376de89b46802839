"""A command as its owner types it on a Mac of fakes, run in this process: to start one takes longer than most commands.

Tests of what a process alone shows (streams, signals, exit codes that Python gives) start one instead.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

import pytest

from proxy.command_line import cli
from proxy.manage.machine.machine import Machine, Ran

if TYPE_CHECKING:
    from collections.abc import Mapping


def typed(machine: Machine, environ: Mapping[str, str], *words: str) -> Ran:
    """Run a command on `machine` with these variables and no others; return how it ended and what it printed."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(os, "environ", dict(environ))
        patch.setattr(sys, "stdin", io.StringIO())
        patch.setattr(Machine, "here", lambda: machine)
        try:
            code = cli.main(words)
        except SystemExit as stopped:
            code = int(stopped.code or 0)
    return Ran(code, *[each.buffer.getvalue().decode() for each in (out, err)])  # type: ignore[attr-defined]
