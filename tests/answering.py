"""A machine whose fake tools answer in this process where all they do is answer.

Each fake is a Python program, which tests and commands run as the real tool would be run. An install asks a hundred
times; an interpreter for each was nearly all the time that its tests took.
"""

from __future__ import annotations

import functools
import io
import os
import re
import shutil
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from proxy.manage.machine.machine import COMMAND_TIMEOUT, Machine, Ran

if TYPE_CHECKING:
    from types import CodeType

_ANSWERING = frozenset({"plutil", "pmset", "socketfilterfw", "sw_vers", "sysctl"})
_ANSWERING_VERBS = frozenset({"error", "list", "print", "print-disabled"})  # of launchctl; the others start processes
_WRAPPER = re.compile(r'#!/bin/sh\nexec "[^"]+" -S "(/[^"]+/fakes/([a-z_]+))" "\$@"\n')


class AnsweringMachine(Machine):
    """A machine of tests. What isn't an answer of a fake runs as ever."""

    __slots__ = ()

    def run(self, *command: str | Path, timeout: float = COMMAND_TIMEOUT, **environ: str) -> Ran:
        """Run a command to its end, or play the fake that it is."""
        words = [str(word) for word in command]
        fake = self._answering(words)
        if fake is None or threading.current_thread() is not threading.main_thread():
            return super().run(*command, timeout=timeout, **environ)
        variables = {**self.environ, "PATH": self.path, "HOME": str(self.home), "LC_ALL": "C", **environ}
        return _played(fake, words[1:], variables)

    def _answering(self, words: list[str]) -> str | None:
        """Return the path of the fake that answers, if one does."""
        found = words[0] if "/" in words[0] else shutil.which(words[0], path=self.path)
        try:
            match = _WRAPPER.fullmatch(Path(found or "").read_text())
        except (OSError, UnicodeDecodeError):
            return None
        if match is None:
            return None
        answers = match[2] in _ANSWERING or (match[2] == "launchctl" and words[1] in _ANSWERING_VERBS)
        return match[1] if answers else None


@functools.cache
def _compiled(path: str) -> CodeType:
    return compile(Path(path).read_text(), path, "exec")


def _played(path: str, words: list[str], environ: dict[str, str]) -> Ran:
    """Return how a fake goes when it is run with these arguments and variables."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    code: object = 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", [path, *words])
        patch.setattr(sys, "stdin", io.StringIO())
        patch.setattr(os, "environ", environ)
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
