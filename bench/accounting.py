"""What processes cost according to the kernel: CPU time, memory, and the cores that they may run on.

Linux reports nanoseconds in /proc. Elsewhere `ps` reports hundredths of a second at best.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_PROC = Path("/proc")
LINUX = sys.platform == "linux"


def family(pid: int) -> list[int]:
    """Return `pid` and all its descendants at this moment."""
    parents = dict(_parents())
    found = [pid]
    for each in found:  # grows in the loop
        found += [child for child, parent in parents.items() if parent == each]
    return found


def _parents() -> Iterator[tuple[int, int]]:
    """Yield each process with its parent."""
    if not LINUX:
        for line in _ps("-ax", "-o", "pid=,ppid=").splitlines():
            pid, parent = line.split()
            yield int(pid), int(parent)
        return
    for folder in _PROC.iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # the process has ended
                yield int(folder.name), int((folder / "stat").read_text().rpartition(")")[2].split()[1])


def cpu(pids: Iterable[int]) -> float:
    """Return the seconds of CPU, user and system, that the living threads of these processes have used so far."""
    return sum(map(_cpu, pids))


def _cpu(pid: int) -> float:
    if not LINUX:
        return seconds(_ps("-o", "time=", "-p", str(pid)))
    total = 0
    for thread in (_PROC / str(pid) / "task").iterdir():
        with contextlib.suppress(OSError):
            total += int((thread / "schedstat").read_text().split()[0])
    return total / 1e9


def seconds(time: str) -> float:
    """Return the seconds in a time of `ps`: `[[dd-]hh:]mm:ss.cc`."""
    days, _, rest = time.strip().rpartition("-")
    found = 0.0
    for part in rest.split(":"):
        found = 60 * found + float(part)
    return found + 86400 * int(days or 0)


def memory(pids: Iterable[int]) -> int:
    """Return how many bytes of these processes are in RAM. `status` would be cheaper, but is wrong by some pages."""
    return sum(map(_memory, pids))


def _memory(pid: int) -> int:
    if not LINUX:
        return int(_ps("-o", "rss=", "-p", str(pid))) * 1024
    found = re.search(r"^Rss: +(\d+) kB", (_PROC / str(pid) / "smaps_rollup").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def reset_peak(pids: Iterable[int]) -> None:
    """Begin a new peak measurement, where the kernel supports that."""
    for pid in pids:
        with contextlib.suppress(OSError):
            (_PROC / str(pid) / "clear_refs").write_text("5")


def peak(pids: Iterable[int]) -> int:
    """Return the most bytes in RAM since `reset_peak`, or the current ones where the kernel doesn't report the peak."""
    if not LINUX:
        return memory(pids)
    return sum(int((_PROC / str(pid) / "status").read_text().partition("VmHWM:")[2].split()[0]) * 1024 for pid in pids)


def _ps(*words: str) -> str:
    return subprocess.run(("ps", *words), check=True, capture_output=True, text=True).stdout


# --- cores and descriptors ---


def cores() -> list[int]:
    """Return the cores that this process may use; none if that is unknown."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


class Places:
    """The use of each core: the last one runs the proxies, the first one the load, and those between the upstream."""

    def __init__(self) -> None:
        found = cores()
        self.pinned = len(found) > 1
        self.proxy = found[-1:]
        self.load = found[:1]
        self.upstream = found[1:2] if len(found) > 2 else found[:1]

    @contextlib.contextmanager
    def on(self, which: list[int]) -> Iterator[None]:
        """Start processes on these cores."""
        if not self.pinned:
            yield
            return
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, which)
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)

    def take_load_core(self) -> None:
        """Put this process, and those it starts from now on, on the cores of the load."""
        if self.pinned:
            os.sched_setaffinity(0, self.load)


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files as far as possible, for us and our children; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 20_000 if hard == resource.RLIM_INFINITY else min(hard, 20_000)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
