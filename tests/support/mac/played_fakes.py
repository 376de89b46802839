"""A machine whose fake tools answer in this process where all they do is answer.

Each fake is a Python program, which tests and commands run as the real tool would be run. An install asks a hundred
times; an interpreter for each was nearly all the time that its tests took. What does more than answer (starts a job,
waits) is run for real.
"""

from __future__ import annotations

import functools
import io
import os
import re
import shutil
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import pytest

from proxy.manage.machine.machine import COMMAND_TIMEOUT, Machine, Ran
from proxy.tailnet import localapi

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import CodeType

_ANSWERING = frozenset({"lsof", "plutil", "pmset", "socketfilterfw", "sw_vers", "sysctl", "tailscale"})
_ANSWERING_VERBS = {"launchctl": {"error", "list", "print", "print-disabled"}, "ollama": {"--version"}}
_WRAPPER = re.compile(r'#!/bin/sh\n((?:[A-Z_]+="[^"]*" )*)exec "[^"]+" (?:-S )?"(/[^"]+/fakes/([a-z_]+))" "\$@"\n')
_VARIABLE = re.compile(r'([A-Z_]+)="([^"]*)"')


class _MoreThanAnAnswerError(Exception):
    """The fake would wait."""


class Fake(NamedTuple):
    """A fake that answers: its path, and the variables that its wrapper sets."""

    path: str
    variables: dict[str, str]


class AnsweringMachine(Machine):
    """A machine of tests. What isn't an answer of a fake runs as ever."""

    __slots__ = ()

    def run(self, *command: str | Path, timeout: float = COMMAND_TIMEOUT, **environ: str) -> Ran:
        """Run a command to its end, or play the fake that it is."""
        words = [str(word) for word in command]
        found = words[0] if "/" in words[0] else shutil.which(words[0], path=self.path)
        fake = answering(found or "", words[1:])
        if fake is not None:
            variables = {**self.environ, "PATH": self.path, "HOME": str(self.home), "LC_ALL": "C", **environ}
            with suppress(_MoreThanAnAnswerError):
                return _played(fake, words[1:], variables)
        return super().run(*command, timeout=timeout, **environ)


async def run_tool(program: str, *arguments: str, environ: Mapping[str, str] | None = None) -> localapi.Written:
    """Stand in for `localapi.run`: play the fake that a tool of Tailscale's is, if it answers."""
    fake = answering(program, list(arguments))
    if fake is not None:
        with suppress(_MoreThanAnAnswerError):
            ran = _played(fake, list(arguments), dict(environ or {}))
            return localapi.Written(ran.out.encode(), ran.err.encode())
    return await run_tool_for_real(program, *arguments, environ=environ)


run_tool_for_real = localapi.run


def answering(program: str, words: list[str]) -> Fake | None:
    """Return the fake that a program is, if all it does with these words is to answer. In the main thread only."""
    try:
        match = _WRAPPER.fullmatch(Path(program).read_text())
    except (OSError, UnicodeDecodeError):
        return None
    if match is None or threading.current_thread() is not threading.main_thread():
        return None
    answers = match[3] in _ANSWERING or bool(_ANSWERING_VERBS.get(match[3], set()) & set(words[:1]))
    return Fake(match[2], dict(_VARIABLE.findall(match[1]))) if answers else None


@functools.cache
def _compiled(path: str) -> CodeType:
    return compile(Path(path).read_text(), path, "exec")


def _more(*_: object) -> NoReturn:
    raise _MoreThanAnAnswerError


def _played(fake: Fake, words: list[str], environ: dict[str, str]) -> Ran:
    """Return how a fake goes when it is run with these arguments and variables."""
    path = fake.path
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    code: object = 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", [path, *words])
        patch.setattr(sys, "stdin", io.StringIO())
        patch.setattr(os, "environ", environ | fake.variables)
        patch.setattr(time, "sleep", _more)
        patch.setattr(sys, "path", [str(Path(path).parent), *sys.path])
        try:
            exec(_compiled(path), {"__name__": "__main__", "__file__": path})
        except SystemExit as stopped:
            code = stopped.code
            if isinstance(code, str):
                print(code, file=err)
                code = 1
    said = [each.buffer.getvalue().decode(errors="replace") for each in (out, err)]  # type: ignore[attr-defined]
    return Ran(int(code or 0), *said)  # type: ignore[call-overload]
