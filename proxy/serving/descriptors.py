"""How many files this process may have open, and how to raise that."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
from functools import cache

# Seconds that `sysctl` may take. It answers in a few milliseconds.
SYSCTL_TIMEOUT = 2.0

_OTHER_DESCRIPTORS = 64  # listening sockets, logs, the event loop's own, and room for what is being closed


def raise_limit(wanted: int) -> int:
    """Raise the soft limit on open files to `wanted` if it is lower; return how many can then be open.

    launchd starts a process with 256. macOS accepts any value up to the hard limit, but gives out no more files than
    `kern.maxfilesperproc` (xnu `bsd/kern/kern_resource.c`, proc_limitgetcur_nofile).
    """
    wanted = min(wanted, most())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    reachable = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if reachable > soft:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (reachable, hard))
            return reachable
    return soft


@cache
def most() -> int:
    """Return how many files the system gives to one process, whatever its limit says."""
    system: str = sys.platform
    if system != "darwin":
        return sys.maxsize
    command = ("/usr/sbin/sysctl", "-n", "kern.maxfilesperproc")
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=SYSCTL_TIMEOUT, check=True)  # noqa: S603 - the words are ours
        return int(answer.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return sys.maxsize  # then only the limit counts


def descriptors_for(connections: int) -> int:
    """Return the file descriptors that so many connections of clients need: one each, and one each to Ollama."""
    return 2 * connections + _OTHER_DESCRIPTORS


def connections_for(descriptors: int) -> int:
    """Return how many connections of clients so many file descriptors allow; at least one."""
    return max(1, (descriptors - _OTHER_DESCRIPTORS) // 2)
