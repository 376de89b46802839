"""Record what a real Mac answers to every command that the program runs, to hold the fakes to it.

    python -m tests.tools.record_mac [FOLDER]

It takes some minutes, and changes nothing but one throw-away agent, which it removes. Run it while you are logged in at
the Mac's screen. It writes macos-VERSION.json into FOLDER (by default tests/recordings), without names, addresses and
home folders. Look through it before you hand it on. `tests/machine/test_record_mac.py` then compares the fakes with it.
"""

from __future__ import annotations

import json
import os
import plistlib
import re
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.manage.machine.job_state import read
from proxy.manage.machine.launchd import Launchd, LaunchdError
from proxy.manage.machine.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LABEL = "com.remote-ollama-proxy.recording"
FOLDER = Path(__file__).parent.parent / "recordings"
FORMAT = 1
PATIENCE = 30.0  # seconds until a job is in the state that is to be recorded
FIREWALL = "/usr/libexec/ApplicationFirewall/socketfilterfw"


@dataclass(frozen=True)
class Asked:
    """One command in one state, and what it answered."""

    state: str
    command: tuple[str, ...]
    code: int
    out: str
    err: str


class Recorder:
    """Asks a machine's commands, each in a state that it has brought about."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        self.machine, self.folder = machine, folder
        self.domain = f"gui/{machine.uid}"
        self.target = f"{self.domain}/{LABEL}"
        self.launchd = Launchd(machine.uid, machine.run)
        self.asked: list[Asked] = []

    def ask(self, state: str, *words: str | Path) -> Asked:
        """Run a command and keep what it answers."""
        done = self.machine.run(*words)
        command = tuple(self.anonymous(str(word)) for word in words)
        self.asked.append(Asked(state, command, done.code, self.anonymous(done.out), self.anonymous(done.err)))
        return self.asked[-1]

    def anonymous(self, text: str) -> str:
        """Return a text without the names of this machine and its user."""
        names = [(str(self.folder), "FOLDER"), (str(self.machine.home), "HOME"), (sys.executable, "PYTHON")]
        names += [(os.path.realpath(self.folder), "FOLDER"), (os.path.realpath(sys.executable), "PYTHON")]
        for name, shown in sorted(names, key=lambda each: -len(each[0])):
            text = text.replace(name, shown)
        text = re.sub(rf"\b(gui|user)/{self.machine.uid}\b", r"\1/UID", text)
        text = re.sub(rf"(user gui: ){self.machine.uid}\b", r"\1UID", text)
        for name in {self.machine.environ.get("USER", ""), socket.gethostname().partition(".")[0]} - {"", "root"}:
            text = re.sub(rf"\b{re.escape(name)}\b", "NAME", text)
        return addresses_hidden(text)

    # --- the throw-away agent -----------------------------------------------------------------------------------------

    def plist(self, *program: str, **keys: object) -> Path:
        """Write the agent's plist. By default its program sleeps."""
        path = self.folder / f"{LABEL}.plist"
        given = {"Label": LABEL, "ProgramArguments": list(program or ("/bin/sleep", "1000")), **keys}
        path.write_bytes(plistlib.dumps(given))
        path.chmod(0o600)
        return path

    def until(self, there: Callable[[str], bool]) -> None:
        """Wait until `print` shows what is wanted, or for too long: then that is what is recorded."""
        end = time.monotonic() + PATIENCE
        while not there(self.machine.run("launchctl", "print", self.target).out) and time.monotonic() < end:
            time.sleep(0.1)

    def load(self, path: Path) -> None:
        """Load the agent as the program does, and wait until it runs or has ended."""
        with suppress(LaunchdError):
            self.launchd.bootstrap(path)
        self.until(lambda text: not read(text).coming_up and not read(text).left_down)

    def unload(self) -> None:
        """Unload the agent, and wait until it is gone."""
        self.machine.run("launchctl", "bootout", self.target)
        self.until(lambda text: not text)
        time.sleep(1 if self.machine.is_mac and self.machine.root == Path("/") else 0)  # its label is held for a moment

    def jobs(self) -> None:
        """Record launchctl in each state of the agent."""
        self.ask("missing", "launchctl", "print", self.target)
        for verb in ("kickstart", "bootout"):
            self.ask("missing", "launchctl", verb, self.target)
        self.ask("missing", "launchctl", "kill", "HUP", self.target)
        self.ask("missing", "launchctl", "print", "gui/99999")
        self._refused()
        path = self.just_loaded()
        self.launchd.start_if_left_down(LABEL)
        self.until(lambda text: read(text).running)
        self.ask("running", "launchctl", "print", self.target)
        self.ask("running", "launchctl", "bootstrap", self.domain, path)
        self.ask("running", "launchctl", "kickstart", self.target)
        self.unload()
        for seconds in (60, 90):
            self.load(self.plist(RunAtLoad=True, ExitTimeOut=seconds))
            self.ask(f"ExitTimeOut {seconds}", "launchctl", "print", self.target)
            self.unload()
        self._ended()
        self._stopping()

    def just_loaded(self) -> Path:
        """Record the agent at the moment after it was loaded; return its plist."""
        path = self.plist(RunAtLoad=True, KeepAlive=True, ExitTimeOut=30)
        self.ask("unloaded", "launchctl", "bootstrap", self.domain, path)
        self.ask("loaded", "launchctl", "print", self.target)
        return path

    def _refused(self) -> None:
        """Record what a bootstrap says that fails."""
        path = self.plist(RunAtLoad=True)
        path.unlink()
        self.ask("no plist", "launchctl", "bootstrap", self.domain, path)
        path.write_text("<plist><dict></plist>")
        self.ask("broken plist", "launchctl", "bootstrap", self.domain, path)
        self.ask("broken plist", "plutil", "-lint", path)
        path = self.plist(RunAtLoad=True)
        self.ask("good plist", "plutil", "-lint", path)
        path.chmod(0o666)
        self.ask("plist that others may write", "launchctl", "bootstrap", self.domain, path)
        path.chmod(0o600)
        self.machine.run("launchctl", "disable", self.target)
        self.ask("disabled", "launchctl", "print-disabled", self.domain)
        self.ask("disabled", "launchctl", "bootstrap", self.domain, path)
        self.machine.run("launchctl", "enable", self.target)
        self.ask("enabled", "launchctl", "print-disabled", self.domain)

    def _ended(self) -> None:
        """Record each way to end that can be brought about."""
        for state, program, keys in (
            ("ended with 0", ("/bin/sh", "-c", "exit 0"), {}),
            ("ended with 3", ("/bin/sh", "-c", "exit 3"), {}),
            ("killed", ("/bin/sh", "-c", "kill -9 $$"), {}),
            ("program missing", ("/no/such/program",), {}),
            ("folder of the log missing", ("/bin/sleep", "1000"), {"StandardErrorPath": "/no/such/folder/log"}),
        ):
            self.load(self.plist(*program, RunAtLoad=True, **keys))
            self.until(lambda text: not read(text).running)
            self.ask(state, "launchctl", "print", self.target)
            self.unload()

    def _stopping(self) -> None:
        """Record a job that takes its time to end."""
        log = self.folder / "stubborn.log"
        stubborn = "trap '' TERM; echo on; while :; do sleep 0.1; done"
        self.load(self.plist("/bin/sh", "-c", stubborn, RunAtLoad=True, ExitTimeOut=4, StandardOutPath=str(log)))
        end = time.monotonic() + PATIENCE
        while not (log.exists() and log.read_text()) and time.monotonic() < end:
            time.sleep(0.1)
        self.ask("running", "launchctl", "bootout", self.target)
        self.ask("ending", "launchctl", "print", self.target)
        self.ask("ending", "launchctl", "bootout", self.target)
        self.until(lambda text: not text)

    # --- the other tools ----------------------------------------------------------------------------------------------

    def tools(self) -> None:
        """Record the tools that only print something."""
        self.ask("any", "sw_vers", "-productVersion")
        for name in ("hw.optional.arm64", "kern.maxfilesperproc", "kern.ipc.somaxconn", "net.inet.tcp.keepidle"):
            self.ask("any", "sysctl", "-n", name)
        self.ask("any", "pmset", "-g", "custom")
        self.ask("any", "ifconfig")
        self.firewall()
        self.ask("nobody listens", "lsof", "-nP", "-iTCP:1", "-sTCP:LISTEN", "-F", "pn")
        self._process()

    def firewall(self) -> None:
        """Record the application firewall, as it is set just now."""
        tool = self.machine.find("socketfilterfw", "/usr/libexec/ApplicationFirewall") or FIREWALL
        for flag in ("--getglobalstate", "--getblockall", "--getallowsigned", "--getstealthmode"):
            self.ask("any", tool, flag)
        self.ask("unlisted", tool, "--getappblocked", self.folder / "no-such-program")
        self.ask("this Python", tool, "--getappblocked", os.path.realpath(sys.executable))

    def _process(self) -> None:
        """Record what is shown of a Python that listens on loopback."""
        script = "import socket,time; s=socket.create_server(('127.0.0.1',0)); print(s.getsockname()[1],flush=True); "
        command = [sys.executable, "-c", f"{script}time.sleep(1000)", "two words"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                self.listening(process.pid, int(process.stdout.readline()))
            finally:
                process.kill()

    def listening(self, pid: int, port: int) -> None:
        """Record what is shown of a process that listens on loopback."""
        self.ask("listening", "lsof", "-nP", f"-iTCP:{port}", "-sTCP:LISTEN", "-F", "pn")

    def clean(self) -> None:
        """Leave nothing of the agent, whatever happened."""
        self.machine.run("launchctl", "enable", self.target)
        self.machine.run("launchctl", "bootout", self.target)


_HARDWARE = re.compile(r"\b[0-9a-f]{1,2}(:[0-9a-f]{1,2}){5}\b")
_WORD = r"(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7})"
_ADDRESS = re.compile(rf"(?<![\w:.]){_WORD}(?![\w:.])")
_SHOWN = tuple(map(ip_network, ("0.0.0.0/8", "127.0.0.0/8", "255.0.0.0/8", "::/127", "fe80::1/128")))
_PLACES = (("100.64.0.0/10", "100.64.0.1"), ("fd7a:115c:a1e0::/48", "fd7a:115c:a1e0::1"), ("fe80::/10", "fe80::2"))


def addresses_hidden(text: str) -> str:
    """Return a text with an address of documentation instead of each that could be someone's."""

    def shown(match: re.Match[str]) -> str:
        try:
            address = ip_address(match[0])
        except ValueError:
            return match[0]
        if any(address.version == each.version and address in each for each in _SHOWN):
            return match[0]
        for network, other in _PLACES:
            if address.version == ip_network(network).version and address in ip_network(network):
                return other
        return "192.0.2.1" if address.version == 4 else "2001:db8::1"

    return _ADDRESS.sub(shown, _HARDWARE.sub("00:00:00:00:00:00", text))


def record(machine: Machine) -> list[Asked]:
    """Return what a machine answers, and leave nothing behind."""
    with tempfile.TemporaryDirectory(prefix="record-mac-") as folder:
        recorder = Recorder(machine, Path(folder))
        try:
            recorder.jobs()
            recorder.tools()
        finally:
            recorder.clean()
        return recorder.asked


def written(macos: str, made: str, asked: list[Asked]) -> str:
    """Return a recording as a file."""
    entries = [{**asdict(each), "out": each.out.splitlines(), "err": each.err.splitlines()} for each in asked]
    return json.dumps({"format": FORMAT, "macos": macos, "made": made, "asked": entries}, indent=1) + "\n"


def recorded(path: Path) -> Iterator[Asked]:
    """Yield what a recording holds."""
    whole = json.loads(path.read_text())
    assert whole["format"] == FORMAT, f"{path} is of another format; record it again"
    for each in whole["asked"]:
        lines = {name: "".join(f"{line}\n" for line in each[name]) for name in ("out", "err")}
        yield Asked(each["state"], tuple(each["command"]), each["code"], **lines)


def main(machine: Machine, folder: Path = FOLDER) -> int:
    """Record, and say where; return the exit code."""
    if not machine.is_mac:
        print(f"error: this records a Mac, and here is {machine.system}", file=sys.stderr)
        print("hint: run it on a Mac, logged in at its screen", file=sys.stderr)
        return 3
    if machine.run("launchctl", "print", f"gui/{machine.uid}").code:
        print("error: nobody is logged in at this Mac's screen, so launchd takes no agent", file=sys.stderr)
        print("hint: log in at the screen, or by Screen Sharing, then run it again", file=sys.stderr)
        return 1
    macos = machine.run("sw_vers", "-productVersion").out.strip()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"macos-{macos}.json"
    path.write_text(written(macos, "by tests.tools.record_mac", record(machine)))
    print(f"wrote {path}; look through it before you hand it on")
    return 0


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main(Machine.here(), *map(Path, sys.argv[1:2])))
    sys.exit(1)
