"""The Mac itself and what is installed on it, each fact looked up when it is first asked for. Mostly for an install."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.manage.machine import environment, interpreter, source
from proxy.manage.machine.interpreter import Interpreter
from proxy.manage.machine.launchd import OLLAMA, plist_path
from proxy.manage.machine.plists import read_plist, variables
from proxy.manage.machine.receipt import Receipt
from proxy.manage.machine.services import LABELS, plist_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.manage.machine.machine import Machine
    from proxy.manage.machine.source import Source

HAPROXY = "com.haproxy"
BREW_OLLAMA = "homebrew.mxcl.ollama"
APP = "/Applications/Ollama.app"

_LOOK_TIMEOUT = 10.0  # seconds for a command that only reports something


@dataclass(frozen=True, slots=True)
class Options:
    """The options of an install."""

    proxy_only: bool = False  # Ollama is managed by someone else
    keep_haproxy: bool = False  # a previous install with HAProxy stays


class OnMac:
    """The part of the facts that needs neither settings nor services."""

    def __init__(self, machine: Machine, options: Options | None = None) -> None:
        """`options` are those of an install."""
        self.machine, self.options, self.is_install = machine, options or Options(), options is not None
        self.paths = {name: plist_of(machine, label) for name, label in LABELS.items()}
        self.plists = {name: read_plist(path) for name, path in self.paths.items()}

    @property
    def only_shown(self) -> bool:
        """Whether this is an install where there is no macOS: then a new Mac is what it is shown for."""
        return self.is_install and not self.machine.is_mac

    def _says(self, *command: str | Path) -> str:
        return self.machine.run(*command, timeout=_LOOK_TIMEOUT).out

    @cached_property
    def macos(self) -> str:
        """The release of macOS."""
        return self._says("sw_vers", "-productVersion").strip()

    @cached_property
    def apple_silicon(self) -> bool:
        """Whether it has an M-series chip."""
        return self._says("sysctl", "-n", "hw.optional.arm64").strip() == "1"

    @cached_property
    def sleep(self) -> int | None:
        """The minutes after which the Mac sleeps on mains power; 0: never."""
        printed = self._says("pmset", "-g", "custom")
        match = re.search(r"^\s*sleep\s+(\d+)", printed.partition("AC Power:")[2] or printed, re.MULTILINE)
        return int(match[1]) if match else None

    @cached_property
    def source(self) -> Source | None:
        """The source of an install; None for an installed copy, or one whose files weren't recorded."""
        return None if self.installed_as else source.here()

    @cached_property
    def installed_as(self) -> Path | None:
        """The environment that this runs from, if it is an installed one."""
        return environment.running(self.machine)

    @cached_property
    def receipt(self) -> Receipt:
        """The notes of the last install."""
        return Receipt.of(self.machine)

    @cached_property
    def own_command(self) -> bool:
        """Whether uv or pipx put this copy's command on the PATH."""
        return environment.keeps_its_command(self.machine)

    @property
    def interpreter(self) -> Interpreter | None:
        """The Python to install on."""
        return self._pythons[0]

    @property
    def gone(self) -> Path | None:
        """The Python that the installed proxy was built on, if it no longer runs."""
        return self._pythons[1]

    @cached_property
    def _pythons(self) -> tuple[Interpreter | None, Path | None]:
        """The Python to install on, and the installed proxy's if that no longer runs.

        A Python that is in use and doesn't move is kept, because another one would be another program to the firewall.
        """
        if self.only_shown:  # what the README says to install
            binary = self.machine.at(f"{interpreter.FRAMEWORK}/3.13/bin/python3.13")
            return Interpreter(binary, "python.org", "3.13"), None
        versions = self.machine.versions
        installed = [path for path in versions.glob("*") if path.is_dir()] if versions.is_dir() else []
        used = [made for path in installed if (made := environment.made_of(path))]
        found = [(binary, interpreter.of(self.machine, binary)) for binary in used]
        gone = next((binary for binary, python in found if python is None), None)
        kept = next((python for _, python in found if python is not None and python.stays), None)
        return kept or interpreter.choose(self.machine), gone

    # --- what its plists say ------------------------------------------------------------------------------------------

    def program(self, name: str) -> str | None:
        """Return what the plist of a service starts."""
        plist = self.plists[name] or {}
        words = plist.get("ProgramArguments") or [plist.get("Program")]
        return words[0] if isinstance(words[0], str) else None

    def variables(self, name: str) -> Mapping[str, str]:
        """Return the variables that the plist of a service sets."""
        return variables(self.plists[name])

    # --- Ollama's program ---------------------------------------------------------------------------------------------

    @cached_property
    def ollama_plist(self) -> bytes | None:
        """The plist of Ollama's agent as it is."""
        path = plist_path(OLLAMA, self.machine.home)
        return path.read_bytes() if path.is_file() else None

    @cached_property
    def ollama(self) -> Path | None:
        """The command that serves: the one that the existing plist names, else the first that is found."""
        if self.only_shown:
            return self.machine.at("/opt/homebrew/bin/ollama")
        named = Path(self.program("ollama") or "")
        if named.is_absolute() and named.name == "ollama" and named.is_file():  # no shell that starts it
            return named
        found = self.machine.find("ollama", "/opt/homebrew/bin", "/usr/local/bin", f"{APP}/Contents/Resources")
        return found.absolute() if found else None

    @cached_property
    def ollama_says(self) -> str:
        """The version of that command. If a server of another version is running, the command prints both, the server's
        first.
        """
        printed = self.machine.run(self.ollama or "ollama", "--version", timeout=_LOOK_TIMEOUT)
        text = f"{printed.out}\n{printed.err}"
        match = re.search(r"client version is (\S+)", text) or re.search(r"ollama version is (\S+)", text)
        return match[1] if match else ""
