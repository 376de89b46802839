"""What an install finds on the machine: facts, gathered once, changing nothing. To judge them is preflight's.

Where there is no macOS most of it can't be seen, and the values are those of a new Mac.
"""

from __future__ import annotations

import asyncio
import plistlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy.manage.findings import firewall as findings_firewall
from proxy.manage.findings import ports as findings_ports
from proxy.manage.findings import tailscale as findings_tailscale
from proxy.manage.machine import environment, interpreter, launchd, source
from proxy.manage.machine.interpreter import Interpreter
from proxy.manage.machine.job_state import JobState
from proxy.manage.machine.launchd import Launchd
from proxy.manage.machine.receipt import Receipt
from proxy.settings.addresses import TAILSCALE, split, upstream_fault
from proxy.settings.settings import Loaded, Problem, Settings, SettingsError, load
from proxy.tailnet.tailscale import Tailscale

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.manage.findings.firewall import Firewall
    from proxy.manage.findings.ports import Listener
    from proxy.manage.findings.tailscale import Facts
    from proxy.manage.machine.machine import Machine
    from proxy.manage.machine.source import Source

HAPROXY = "com.haproxy"
BREW_OLLAMA = "homebrew.mxcl.ollama"
APP = "/Applications/Ollama.app"
LOOK_TIMEOUT = 10.0  # seconds for a command that only reports something


@dataclass(frozen=True, slots=True)
class Options:
    """What the owner asked of an install."""

    proxy_only: bool = False  # Ollama is managed by someone else
    keep_haproxy: bool = False  # a previous install with HAProxy stays


@dataclass(frozen=True, slots=True)
class Survey:
    """The facts. Those with a default are what a new Mac would show."""

    machine: Machine
    options: Options
    source: Source | None  # None: an installed copy, which stays as it is, or one whose files nothing recorded
    receipt: Receipt
    loaded: Loaded | None  # settings as the installed proxy will read them; None: they are wrong
    mistakes: tuple[Problem, ...] = ()
    macos: str = ""
    apple_silicon: bool = True
    installed: Path | None = None  # the environment that this runs from, if it is an installed one
    own_command: bool = False  # uv or pipx put the command of the copy that runs on the PATH
    interpreter: Interpreter | None = None
    gone: Path | None = None  # the binary that the installed proxy was built on and that no longer runs
    ollama: Path | None = None
    ollama_version: str = ""
    ollama_plist: bytes | None = None
    listeners: tuple[Listener, ...] | None = ()  # of this user; None: there is no lsof
    in_use: frozenset[tuple[str, int]] = frozenset()  # addresses and ports that can't be bound, whoever has them
    app_runs: bool = False
    jobs: Mapping[str, JobState] = field(default_factory=dict)
    screen: bool = True
    tailscale: Facts | None = None
    firewall: Firewall | None = None
    sleep: int | None = None  # minutes until it sleeps on mains power; 0: never

    @property
    def settings(self) -> Settings:
        """The settings, or the defaults while they are wrong."""
        return self.loaded.settings if self.loaded else Settings()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where the proxy will listen."""
        return _addresses(self.settings, self.tailscale)

    @property
    def haproxy_is_there(self) -> bool:
        """Whether a previous install with HAProxy is loaded or will be at the next login."""
        return launchd.plist_path(HAPROXY, self.machine.home).exists() or self.job(HAPROXY).loaded

    def job(self, label: str) -> JobState:
        """Return what launchd knows of a label."""
        return self.jobs.get(label) or JobState(loaded=False)


def look(machine: Machine, options: Options, tailscale: Tailscale | None = None) -> Survey:
    """Return what there is. Takes some seconds at most: each command has a time limit, and none changes anything."""
    installed = environment.running(machine)
    loaded, mistakes = _settings(machine)
    known: dict[str, Any] = {
        "machine": machine,
        "options": options,
        "source": None if installed else source.here(),
        "receipt": Receipt.of(machine),
        "loaded": loaded,
        "mistakes": mistakes,
        "installed": installed,
        "own_command": environment.keeps_its_command(machine),
    }
    if not machine.is_mac:
        # A new Mac, with what the first page of the manual says to install.
        python = Interpreter(machine.at(f"{interpreter.FRAMEWORK}/3.13/bin/python3.13"), "python.org", "3.13")
        return Survey(**known, interpreter=python, ollama=machine.at("/opt/homebrew/bin/ollama"))
    chosen, gone = _interpreter(machine)
    plist = launchd.plist_path(launchd.OLLAMA, machine.home)
    old = plist.read_bytes() if plist.is_file() else None
    ollama = find_ollama(machine, old)
    agents = Launchd(machine.uid, machine.run)
    settings = loaded.settings if loaded else Settings()
    ports = {settings.port, split(settings.upstream)[1]}
    facts = asyncio.run(findings_tailscale.look(tailscale or Tailscale(), settings))
    wanted = [(address, settings.port) for address in _addresses(settings, facts)]
    if not upstream_fault(settings.upstream, allow_any=False):
        host, port = split(settings.upstream)
        wanted.append(("127.0.0.1" if host == "localhost" else host, port))
    return Survey(
        **known,
        macos=machine.run("sw_vers", "-productVersion", timeout=LOOK_TIMEOUT).out.strip(),
        apple_silicon=machine.run("sysctl", "-n", "hw.optional.arm64", timeout=LOOK_TIMEOUT).out.strip() == "1",
        interpreter=chosen,
        gone=gone,
        ollama=ollama,
        ollama_version=_version(machine, ollama) if ollama else "",
        ollama_plist=old,
        listeners=findings_ports.listeners(machine, ports),
        in_use=frozenset(each for each in wanted if findings_ports.in_use(machine, *each)),
        app_runs=any(each.name == "Ollama" for each in machine.processes()),
        jobs={label: agents.state(label) for label in (launchd.PROXY, launchd.OLLAMA, HAPROXY, BREW_OLLAMA)},
        screen=agents.domain_available(),
        tailscale=facts,
        firewall=findings_firewall.look(machine, chosen),
        sleep=_sleep(machine),
    )


def _addresses(settings: Settings, facts: Facts | None) -> tuple[str, ...]:
    own = facts.held if facts else ()
    return tuple(each for entry in settings.listen for each in (own if entry == TAILSCALE else (entry,)))


def _settings(machine: Machine) -> tuple[Loaded | None, tuple[Problem, ...]]:
    """Return the settings as the agent will read them: nothing of this shell's environment, and no flags."""
    environ = {
        "HOME": str(machine.home),
        # Where the settings look for their file when this isn't macOS.
        "XDG_CONFIG_HOME": str(machine.support.parent),
        "XDG_STATE_HOME": str(machine.logs.parent),
        "PROXY_DIAGNOSTICS_LOG": str(machine.logs / "diagnostics.log"),
    }
    try:
        return load({}, environ), ()
    except SettingsError as error:
        return None, error.problems


def _interpreter(machine: Machine) -> tuple[Interpreter | None, Path | None]:
    """Return the Python to install on, and the one of the installed proxy if that no longer runs.

    One that is in use and stays is kept: another one would be another program to the firewall.
    """
    installed = [path for path in machine.versions.glob("*") if path.is_dir()] if machine.versions.is_dir() else []
    used = [made for path in installed if (made := environment.made_of(path))]
    found = [(binary, interpreter.of(machine, binary)) for binary in used]
    gone = next((binary for binary, python in found if python is None), None)
    kept = next((python for _, python in found if python is not None and python.stays), None)
    return kept or interpreter.choose(machine), gone


def find_ollama(machine: Machine, plist: bytes | None) -> Path | None:
    """Return the command that serves: the one that the existing plist names, else the first that is found."""
    try:
        named = Path(plistlib.loads(plist or b"")["ProgramArguments"][0])
        if named.is_absolute() and named.name == "ollama" and named.is_file():  # no shell that starts it
            return named
    except Exception:  # noqa: S110 - whatever is wrong with a plist of others, it names no program then
        pass
    found = machine.find("ollama", "/opt/homebrew/bin", "/usr/local/bin", f"{APP}/Contents/Resources")
    return found.absolute() if found else None


def _version(machine: Machine, ollama: Path) -> str:
    """Return the version of the binary; if a server of another version runs, it prints both, the server's first."""
    told = machine.run(ollama, "--version", timeout=LOOK_TIMEOUT)
    text = f"{told.out}\n{told.err}"
    match = re.search(r"client version is (\S+)", text) or re.search(r"ollama version is (\S+)", text)
    return match[1] if match else ""


def _sleep(machine: Machine) -> int | None:
    """Return the minutes after which the Mac sleeps on mains power."""
    told = machine.run("pmset", "-g", "custom", timeout=LOOK_TIMEOUT).out
    match = re.search(r"^\s*sleep\s+(\d+)", told.partition("AC Power:")[2] or told, re.MULTILINE)
    return int(match[1]) if match else None
