"""What launchd knows of one job: reads the output of `launchctl print`, and puts into words how the job ended."""

from __future__ import annotations

import os
import re
import signal
from dataclasses import dataclass

_COMING_UP = frozenset({"spawning", "xpcproxy", "trampoline"})
"""States of a job whose process exists, or nearly, before its own program runs in it."""

_REASONS = {
    "CODESIGNING": "macOS ended it because the signature of its program is invalid, or has changed since it was loaded",
    "DYLD": "macOS ended it because a library that its program needs could not be loaded",
    "EXEC": "macOS ended it because its program could not be executed",
    "JETSAM": "macOS ended it to free memory",
    "TCC": "macOS ended it because it used something that needs your consent",
}
"""Namespace of a reason -> what it means. launchd writes OS_REASON_CODESIGNING, JETSAM_REASON_MEMORY_IDLE_EXIT, ..."""

_CANNOT_START = "launchd could not start it: its program or the folder of its log is missing"


@dataclass(frozen=True, slots=True)
class JobState:
    """What launchd knows of a job. What it doesn't report is None, or empty."""

    loaded: bool
    running: bool = False
    pid: int | None = None
    last_exit: int | None = None  # a code, or below zero the signal that ended it
    disabled: bool = False
    program: str | None = None
    state: str = ""  # in launchd's words: running, spawn scheduled, SIGTERMed, ...
    exit_timeout: int | None = None  # seconds; what launchd will really allow
    reason: str = ""  # in launchd's words, when neither an exit code nor a signal ended it: OS_REASON_CODESIGNING, ...
    runs: int | None = None  # how often it was started
    pended: str = ""  # why launchd holds back a start that nobody demanded: speculative, inefficient, ...

    @property
    def coming_up(self) -> bool:
        """Whether launchd is starting it at this moment."""
        return self.state in _COMING_UP

    @property
    def left_down(self) -> bool:
        """Whether launchd registered it and left it down, so that only a kickstart starts it."""
        if not self.loaded or self.running or self.coming_up:
            return False
        untried = not self.runs and self.last_exit is None and not self.reason
        return untried or bool(self.pended)

    @property
    def ended(self) -> str:
        """How it ended when it last did, in words."""
        if self.reason:
            namespace = re.sub(r"^OS_REASON_", "", self.reason)
            known = next((words for name, words in _REASONS.items() if namespace.startswith(name)), "macOS ended it")
            return f"{known} ({self.reason})"
        if self.last_exit is None:
            return "it was never started" if not self.runs else "it has not ended yet"
        if self.last_exit < 0:
            return f"it was ended by signal {-self.last_exit}{_signal_name(-self.last_exit)}"
        meaning = f" ({_CANNOT_START})" if self.last_exit == os.EX_CONFIG else ""
        return f"it ended with exit code {self.last_exit}{meaning}"

    @property
    def shown(self) -> str:
        """The state in launchd's words, and why a start is held back if one is."""
        return f"{self.state}; launchd holds its start back: {self.pended}" if self.pended else self.state


def read(text: str, *, disabled: bool = False) -> JobState:
    """Return what `launchctl print` reports of a job; only its own entries count, not those nested in them."""
    entries: dict[str, str] = {}
    indent = None
    for line in text.splitlines():
        match = re.fullmatch(r"(\s+)(\S[^=]*?) = (.*)", line)
        if match is None or match[3] == "{":
            continue
        indent = indent or match[1]
        if match[1] == indent:
            entries.setdefault(match[2], match[3].strip())
    exit_code, killed = _number(entries.get("last exit code")), entries.get("last terminating signal", "")
    if killed:  # as in `Terminated: 15`
        exit_code = -(_number(killed.rpartition(":")[2]) or 0)
    pended = entries.get("pended nondemand spawn", "")
    return JobState(
        loaded=True,
        running=entries.get("state") == "running",
        pid=_number(entries.get("pid")),
        last_exit=exit_code,
        disabled=disabled,
        program=entries.get("program"),
        state=entries.get("state", ""),
        exit_timeout=_number(entries.get("exit timeout")),
        reason=entries.get("last exit reason", ""),
        runs=_number(entries.get("runs")),
        pended="" if pended in {"false", "0", "(none)"} else pended,
    )


def is_disabled(text: str, label: str) -> bool:
    """Return whether `launchctl print-disabled` lists a label as disabled. Its list of login items doesn't count."""
    services = text.partition("login item associations")[0]
    pattern = rf'^\s*"{re.escape(label)}" => (disabled|true)\s*$'
    return re.search(pattern, services, re.MULTILINE) is not None


def _number(text: str | None) -> int | None:
    """Return the number that a value begins with, as in `78: EX_CONFIG`; None for `(never exited)`."""
    match = re.match(r"\s*(-?\d+)", text or "")
    return int(match[1]) if match else None


def _signal_name(number: int) -> str:
    try:
        return f" ({signal.Signals(number).name})"
    except ValueError:
        return ""
