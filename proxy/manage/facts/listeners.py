"""Which process listens on a port: lsof shows this user's processes only; an attempt to bind notices any process.

With SO_REUSEADDR macOS refuses an address only if the very same one is taken, or if another user's process has every
address (public source: xnu `bsd/netinet/in_pcb.c`, `in_pcbbind`). So a listener on `*` of the same user blocks nobody,
and root's does without being seen.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.manage.machine.processes import Process
from proxy.settings.addresses import joined

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.manage.machine.machine import Machine

ASK_TIMEOUT = 10.0  # seconds for one answer of lsof

_OWN = re.compile(r"-m proxy\b|remote-ollama-proxy\b")  # in a command line of the proxy's

NO_LSOF = "there is no lsof, so the owner of a port is unknown"


@dataclass(frozen=True, slots=True)
class Listener:
    """A process that listens on a TCP port; `address` is `*` when it is every address."""

    pid: int
    address: str
    port: int
    program: str  # its command line
    executable: str = ""  # the path of its program, or its name

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine itself can connect to it."""
        return self.address.startswith("127.") or self.address == "::1"

    @property
    def is_ollama(self) -> bool:
        """Whether it is a server of Ollama's, by its command line."""
        return re.search(r"(^|/)ollama( |$)", self.program) is not None

    def may_be(self, service: str) -> bool:
        """Return whether it is a service that launchd doesn't know of, by its command line; without one it may be."""
        own = _OWN.search(self.program) is not None if service == "proxy" else "ollama" in self.program.lower()
        return own or not self.program

    @property
    def where(self) -> str:
        """Address and port, as people write them."""
        return joined(self.address, self.port)

    @property
    def who(self) -> str:
        """The name of its program, and its process."""
        started = self.executable or self.program.partition(" ")[0]
        return f"{Path(started).name or 'a process'} (pid {self.pid})"


def who_listens(port: int) -> str:
    """Return the command that shows who listens on a port. Without root it shows this user's processes only."""
    return f"sudo lsof -nP -iTCP:{port} -sTCP:LISTEN"


def listeners(machine: Machine, ports: Iterable[int]) -> tuple[Listener, ...] | None:
    """Return which of this user's processes listen on `ports`; None if there is no lsof."""
    if machine.find("lsof") is None:
        return None
    wanted = [f"-iTCP:{port}" for port in sorted(ports)]
    printed = machine.run("lsof", "-nP", *wanted, "-sTCP:LISTEN", "-F", "pn", timeout=ASK_TIMEOUT)
    pid, found = 0, []
    for text in printed.out.splitlines():
        if text.startswith("p") and text[1:].isdigit():
            pid = int(text[1:])
        elif match := re.fullmatch(r"n(.+):(\d+)", text):
            found.append((pid, match[1].strip("[]"), int(match[2])))
    there = {pid: machine.process(pid) or Process(pid) for pid in {pid for pid, *_ in found}}
    programs = {pid: (each.command, each.executable or each.name) for pid, each in there.items()}
    return tuple(Listener(*each, *programs[each[0]]) for each in dict.fromkeys(found))


def in_use(machine: Machine, address: str, port: int) -> bool:
    """Return whether an address can't be bound because any process has it."""
    error = machine.bind(address, port)
    return error is not None and error.errno == errno.EADDRINUSE
