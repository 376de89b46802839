"""Measure the processor time that Ollama and its child processes have used, with `ps`."""

from __future__ import annotations

import re
from typing import NamedTuple

from proxy.tailnet.localapi import run

PS = ("/bin/ps", "-A", "-o", "pid=", "-o", "ppid=", "-o", "time=", "-o", "comm=")
"""The same on macOS and Linux. macOS shows every process to everyone, because its `ps` runs as root."""

# [DD-]HH:MM:SS on Linux (procps, `pr_time`), minutes:seconds.hundredths on macOS (adv_cmds, ps/print.c, `cputime`).
_TIME = re.compile(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+(?:\.\d+)?)", re.ASCII)


class _Process(NamedTuple):
    parent: int
    seconds: float
    name: str


async def used_by_ollama() -> dict[int, float] | None:
    """Return the seconds that each of Ollama's processes has used, by its id; None if `ps` shows none."""
    try:
        written = await run(*PS, environ={"LC_ALL": "C"})
    except (OSError, TimeoutError):
        return None
    return used(written.out.decode(errors="replace")) or None


def used(listed: str) -> dict[int, float]:
    """Return the same from what `ps` prints: `ollama`, the app, and their children, which run the models."""
    processes = dict(_read(listed))
    found = {pid for pid, process in processes.items() if process.name.lower() == "ollama"}
    while children := {pid for pid, process in processes.items() if process.parent in found} - found:
        found |= children
    return {pid: processes[pid].seconds for pid in found}


def _read(listed: str) -> list[tuple[int, _Process]]:
    """Return the processes. What can't be read is left out."""
    found = []
    for line in listed.splitlines():
        words = line.split(None, 3)  # the last one is the program's path on macOS, which may have blanks
        time = _TIME.fullmatch(words[2]) if len(words) > 3 else None
        if time is not None and words[0].isdecimal() and words[1].isdecimal():
            days, hours, minutes, seconds = (float(each or 0) for each in time.groups())
            process = _Process(
                int(words[1]), ((days * 24 + hours) * 60 + minutes) * 60 + seconds, words[3].rpartition("/")[2]
            )
            found.append((int(words[0]), process))
    return found
