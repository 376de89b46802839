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

from proxy.addresses import TAILSCALE, joined, split
from proxy.ops import environment, interpreter, launchd
from proxy.ops.environment import Checkout
from proxy.ops.interpreter import Interpreter
from proxy.ops.launchd import JobState, Launchd
from proxy.ops.receipt import Receipt
from proxy.settings import Loaded, Problem, Settings, SettingsError, load
from proxy.tailscale import Rule, Tailnet, Tailscale

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from proxy.ops.machine import Machine

HAPROXY = "com.haproxy"
BREW_OLLAMA = "homebrew.mxcl.ollama"
APP = "/Applications/Ollama.app"
FIREWALL = "/usr/libexec/ApplicationFirewall"
LOOK_TIMEOUT = 10.0  # seconds for a command that only tells something


@dataclass(frozen=True, slots=True)
class Options:
    """What the owner asked of an install."""

    proxy_only: bool = False  # Ollama is managed by someone else
    keep_haproxy: bool = False  # a previous install with HAProxy stays


@dataclass(frozen=True, slots=True)
class Listener:
    """A process that listens on a TCP port; `address` is `*` when it is every address."""

    pid: int
    address: str
    port: int
    program: str  # its command line

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine itself can connect to it."""
        return self.address.startswith("127.") or self.address == "::1"

    @property
    def is_ollama(self) -> bool:
        """Whether it is a server of Ollama's, by its command line."""
        return re.search(r"(^|/)ollama( |$)", self.program) is not None

    @property
    def where(self) -> str:
        """Address and port, as one writes them."""
        return joined(self.address, self.port)

    @property
    def who(self) -> str:
        """The name of its program, and its process."""
        return f"{Path(self.program.partition(' ')[0]).name or 'a process'} (pid {self.pid})"


@dataclass(frozen=True, slots=True)
class Firewall:
    """The application firewall: whether it is on, lets nothing in at all, and what it thinks of our Python."""

    on: bool
    blocks_all: bool = False
    python: str = "unlisted"  # or "permitted", "blocked"


@dataclass(frozen=True, slots=True)
class Survey:
    """The facts. Those with a default are what a new Mac would show."""

    machine: Machine
    options: Options
    checkout: Checkout | None
    can_build: bool
    receipt: Receipt
    loaded: Loaded | None  # settings as the installed proxy will read them; None: they are wrong
    mistakes: tuple[Problem, ...] = ()
    macos: str = ""
    apple_silicon: bool = True
    installed: Path | None = None  # the environment that this runs from, if it is an installed one
    interpreter: Interpreter | None = None
    gone: Path | None = None  # the binary that the installed proxy was built on and that no longer runs
    ollama: Path | None = None
    ollama_version: str = ""
    ollama_plist: bytes | None = None
    listeners: tuple[Listener, ...] = ()
    app_runs: bool = False
    jobs: Mapping[str, JobState] = field(default_factory=dict)
    screen: bool = True
    tailnet: Tailnet | None = None
    rules: tuple[Rule, ...] | None = None
    firewall: Firewall | None = None
    sleep: int | None = None  # minutes until it sleeps on mains power; 0: never

    @property
    def settings(self) -> Settings:
        """The settings, or the defaults while they are wrong."""
        return self.loaded.settings if self.loaded else Settings()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where the proxy will listen."""
        own = self.tailnet.addresses if self.tailnet else ()
        return tuple(each for entry in self.settings.listen for each in (own if entry == TAILSCALE else (entry,)))

    @property
    def haproxy_is_there(self) -> bool:
        """Whether a previous install with HAProxy is loaded or will be at the next login."""
        return launchd.plist_path(HAPROXY, self.machine.home).exists() or self.job(HAPROXY).loaded

    def job(self, label: str) -> JobState:
        """Return what launchd knows of a label."""
        return self.jobs.get(label) or JobState(loaded=False)


def look(machine: Machine, options: Options, tailscale: Tailscale | None = None) -> Survey:
    """Return what there is. Takes some seconds at most: each command has a time limit, and none changes anything."""
    checkout = Checkout.here()
    loaded, mistakes = _settings(machine)
    known: dict[str, Any] = {
        "machine": machine,
        "options": options,
        "checkout": checkout,
        "can_build": environment.can_build(),
        "receipt": Receipt.of(machine),
        "loaded": loaded,
        "mistakes": mistakes,
        "installed": environment.running(machine),
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
    tailnet, rules = asyncio.run(_tailscale(tailscale or Tailscale(), split(settings.upstream)[1]))
    return Survey(
        **known,
        macos=machine.run("sw_vers", "-productVersion", timeout=LOOK_TIMEOUT).out.strip(),
        apple_silicon=machine.run("sysctl", "-n", "hw.optional.arm64", timeout=LOOK_TIMEOUT).out.strip() == "1",
        interpreter=chosen,
        gone=gone,
        ollama=ollama,
        ollama_version=_version(machine, ollama) if ollama else "",
        ollama_plist=old,
        listeners=listeners(machine, ports),
        app_runs=machine.run("pgrep", "-x", "Ollama", timeout=LOOK_TIMEOUT).code == 0,
        jobs={label: agents.state(label) for label in (launchd.PROXY, launchd.OLLAMA, HAPROXY, BREW_OLLAMA)},
        screen=agents.domain_available(),
        tailnet=tailnet,
        rules=rules,
        firewall=firewall(machine, chosen),
        sleep=_sleep(machine),
    )


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


async def _tailscale(tailscale: Tailscale, port: int) -> tuple[Tailnet, tuple[Rule, ...] | None]:
    return await tailscale.look(), await tailscale.rules(port)


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
    """Return the version of the binary; beside a server of another version it tells both, the server's first."""
    told = machine.run(ollama, "--version", timeout=LOOK_TIMEOUT)
    text = f"{told.out}\n{told.err}"
    match = re.search(r"client version is (\S+)", text) or re.search(r"ollama version is (\S+)", text)
    return match[1] if match else ""


def listeners(machine: Machine, ports: Iterable[int]) -> tuple[Listener, ...]:
    """Return who listens on any of `ports`, of this user's processes: others' are not shown without root."""
    wanted = [f"-iTCP:{port}" for port in sorted(ports)]
    told = machine.run("lsof", "-nP", *wanted, "-sTCP:LISTEN", "-F", "pn", timeout=LOOK_TIMEOUT)
    pid, found = 0, []
    for line in told.out.splitlines():
        if line.startswith("p") and line[1:].isdigit():
            pid = int(line[1:])
        elif match := re.fullmatch(r"n(.+):(\d+)", line):
            found.append((pid, match[1].strip("[]"), int(match[2])))
    programs = {pid: _program(machine, pid) for pid in {pid for pid, *_ in found}}
    return tuple(Listener(pid, address, port, programs[pid]) for pid, address, port in dict.fromkeys(found))


def _program(machine: Machine, pid: int) -> str:
    return machine.run("ps", "-ww", "-o", "command=", "-p", str(pid), timeout=LOOK_TIMEOUT).out.strip()


def firewall(machine: Machine, python: Interpreter | None) -> Firewall | None:
    """Return what the firewall says; None when it says nothing that is known."""
    tool = machine.find("socketfilterfw", FIREWALL)
    if tool is None:
        return None
    state = re.search(r"State = (\d)", machine.run(tool, "--getglobalstate", timeout=LOOK_TIMEOUT).out)
    if state is None:
        return None
    every = machine.run(tool, "--getblockall", timeout=LOOK_TIMEOUT).out.lower()
    blocks = state[1] == "2" or re.search(r"enabled|state set to on", every) is not None
    judged = "unlisted"
    if python is not None and python.path is not None:
        told = machine.run(tool, "--getappblocked", python.program, timeout=LOOK_TIMEOUT).out.lower()
        if "not part" not in told:
            judged = "blocked" if "block" in told else "permitted" if "permit" in told else judged
    return Firewall(state[1] != "0", blocks, judged)


def _sleep(machine: Machine) -> int | None:
    """Return the minutes after which the Mac sleeps on mains power."""
    told = machine.run("pmset", "-g", "custom", timeout=LOOK_TIMEOUT).out
    match = re.search(r"^\s*sleep\s+(\d+)", told.partition("AC Power:")[2] or told, re.MULTILINE)
    return int(match[1]) if match else None
