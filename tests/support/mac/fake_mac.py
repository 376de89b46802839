"""A Mac for tests: a home folder, the system's folders, and all its tools as fakes, on this machine's ports.

mac = Mac(tmp_path)
assert mac.install() == 0
...
mac.close()
"""

from __future__ import annotations

import errno
import json
import os
import platform
import plistlib
import stat
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy.manage.facts.mac import HAPROXY, Options
from proxy.manage.install import install, uninstall
from proxy.manage.machine.launchd import OLLAMA, PROXY, WARM
from proxy.manage.machine.machine import bind_briefly
from proxy.manage.machine.processes import Process, process
from proxy.tailnet import localapi
from proxy.tailnet.localapi import Places
from proxy.tailnet.tailscale import Tailscale
from proxy.terminal.finding import Finding, Outcome
from proxy.terminal.printer import Printer
from proxy.terminal.result import CommandError, Result
from tests.support.mac.fake_launchd import FAKES, SLEEPER, Agents, until
from tests.support.mac.played_fakes import run_tool
from tests.support.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from proxy.manage.facts.facts import Facts
    from proxy.manage.machine.machine import Machine
    from proxy.manage.machine.source import Checkout
    from proxy.manage.machine.steps import Step

ROOT = Path(__file__).parent.parent.parent.parent
TOOLS = ("lsof", "pmset", "sw_vers", "sysctl", "socketfilterfw")
FRAMEWORK = "Library/Frameworks/Python.framework/Versions/3.13"


class Heard(Printer):
    """What a command printed, and what it is answered."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.seen: list[Finding] = []
        self.errors: list[tuple[str, str]] = []
        self.asked: list[str] = []
        self.answer = True

    def __repr__(self) -> str:
        return f"<Heard: {self.lines}, {self.seen}, {self.errors}>"

    def say(self, line: str = "", style: str = "") -> None:
        """Keep a line."""
        self.lines.append(line)

    step = say

    def findings(self, findings: Iterable[Finding], title: str = "", above: Iterable[str] = ()) -> None:
        """Keep findings."""
        self.seen.extend(findings)

    def complain(self, error: str, hint: str = "") -> None:
        """Keep an error."""
        self.errors.append((error, hint))

    def agree(self, question: str, otherwise: str) -> bool:
        """Answer."""
        self.asked.append(question)
        return self.answer

    def code(self, command: Callable[[], Result]) -> int:
        """Run a command, keep its errors, and return its exit code."""
        try:
            result = command()
        except CommandError as error:
            result = error.result
        self.errors += [(error, result.hint) for error in result.errors]
        return int(result.code)

    def of(self, outcome: Outcome) -> dict[str, Finding]:
        """Return the findings of an outcome by name."""
        return {finding.name: finding for finding in self.seen if finding.outcome is outcome}

    def taken(self) -> list[str]:
        """Return the titles of the steps that were taken."""
        return [line.removeprefix("  do    ") for line in self.lines if line.startswith("  do    ")]


class Mac(Agents):
    """One on which all is well: macOS, Python of python.org, Ollama of Homebrew, Tailscale up, nothing installed."""

    def __init__(self, folder: Path, *, silent: bool = True) -> None:
        """`silent`: Ollama and the proxy are processes that do nothing; else they serve."""
        super().__init__(folder, *TOOLS)
        self.root, self.facts, self.silent = folder / "root", folder / "state", silent
        self.facts.mkdir()
        path = [str(self.commands), str(self.home / ".local/bin"), "/usr/bin", "/bin"]
        self.environ |= {
            "PATH": os.pathsep.join(path),
            "FAKE_STATE": str(self.facts),
        }
        # Tailscale's is not run by the machine, but as the proxy runs it.
        self.patch.setattr(localapi, "run", run_tool)
        self.command(
            "tailscale", f'FAKE_TAILSCALE="{self.facts}" exec "{sys.executable}" -S "{FAKES / "tailscale"}" "$@"'
        )
        self.framework(FRAMEWORK)
        states = f'FAKE_STATE="{self.facts}" FAKE_LAUNCHD="{self.state}"'
        self.script("opt/homebrew/bin/ollama", f'{states} exec "{sys.executable}" "{FAKES / "ollama"}" "$@"')
        self.change(silent=silent)
        self.heard = Heard()
        self.builds = 0
        self.proofs: list[tuple[str, ...]] = []

    # --- its state ----------------------------------------------------------------------------------------------------

    def script(self, path: str, text: str) -> Path:
        """Put a program among the system's."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)
        return file

    def framework(self, folder: str, release: str = "3.13") -> Path:
        """Put a framework build of Python there: its command becomes the app inside it; return the command.

        Public source: CPython `Mac/Tools/pythonw.c`, which is every framework's `bin/python3.x`.
        """
        inside = "Resources/Python.app/Contents"
        app = self.root / folder / inside
        (app / "MacOS").mkdir(parents=True)
        # An environment of its own with the packages of the one that runs the tests, so that its name may be another.
        binary = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
        (app / "MacOS" / "Python").symlink_to(binary)
        (app / "pyvenv.cfg").write_text(f"home = {binary.parent}\n")
        (app / "lib").symlink_to(Path(sys.prefix) / "lib")
        # As the `python` of an environment, which is a link to this one, it is what `build` made of it.
        as_built = 'test -x "${0%/*}/served" && exec "${0%/*}/served" "$@"'
        becomes = f'here=$(/usr/bin/readlink -f "$0")\nexec "${{here%/*}}/../{inside}/MacOS/Python" "$@"'
        # What `interpreter` asks of each Python, which is asked most of all: a start of it takes longer than the rest.
        reported = f"{sys.version_info[0]} {sys.version_info[1]} {sys.platform} {platform.machine()}"
        probed = f'case "$*" in *ensurepip*) test -x "$0" && echo {reported}; exit;; esac'
        return self.script(f"{folder}/bin/python{release}", f"{probed}\n{as_built}\n{becomes}")

    def bind(self, address: str, port: int) -> OSError | None:
        """Answer as macOS does: the same address collides, and another user's `*` does; one's own `*` doesn't.

        Public source: xnu `bsd/netinet/in_pcb.c`, `in_pcbbind`. Where its services are real processes, binding is too.
        """
        state = json.loads((self.facts / "mac.json").read_text())
        own = [tuple(where) for process in state.get("processes", []) for where in process["listen"]]
        foreign = [tuple(where) for where in state.get("foreign", [])]
        taken = (address, port) in own or {(address, port), ("*", port)} & set(foreign)
        if taken:
            return OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        return None if self.silent else bind_briefly(address, port)

    def process(self, pid: int) -> Process | None:
        """Return a process of the state's, or a real one."""
        known = json.loads((self.facts / "mac.json").read_text()).get("processes", [])
        found = next((each for each in known if each["pid"] == pid), None)
        if found is None:
            return process(pid)
        program = found["program"]
        return Process(pid, executable=found.get("executable") or program.partition(" ")[0], command=program)

    def processes(self) -> Iterator[Process]:
        """Yield the app of Ollama, if it runs."""
        if json.loads((self.facts / "mac.json").read_text()).get("app"):
            yield Process(4242, "Ollama")

    def change(self, **values: object) -> None:
        """Change what its tools say (see fakes/mac.py)."""
        self._change("mac.json", values)

    def tailnet(self, **values: object) -> None:
        """Change what Tailscale says (see fakes/localapi.py)."""
        self._change("tailscale.json", values)

    def _change(self, name: str, values: dict[str, object]) -> None:
        file = self.facts / name
        before = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**before, **values}))

    def machine(self, platform: str = "darwin") -> Machine:
        """Return it as the commands see it."""
        return replace(
            super().machine(platform),
            root=self.root,
            environ=dict(self.environ),
            bind=self.bind,
            process=self.process,
            processes=self.processes,
        )

    def write_config(self, text: str) -> None:
        """Write settings before an install."""
        config = self.machine().config
        config.parent.mkdir(parents=True, exist_ok=True)
        config.parent.chmod(0o700)
        config.write_text(text)

    def on_loopback(self, more: str = "") -> tuple[int, int]:
        """Write settings with which it all works here: loopback, and free ports; return the proxy's and Ollama's."""
        port, upstream = free_ports(2)
        self.write_config(f'listen = ["127.0.0.1"]\nport = {port}\nupstream = "http://127.0.0.1:{upstream}"\n{more}')
        return port, upstream

    def load(self, label: str, **keys: Any) -> Path:
        """Load an agent that is there before an install, and have it run."""
        path, machine = self.plist(label, **{"program": SLEEPER, **keys}), self.machine()
        assert machine.run("launchctl", "bootstrap", f"gui/{os.getuid()}", path).code == 0
        assert machine.run("launchctl", "kickstart", f"gui/{os.getuid()}/{label}").code == 0
        return path

    def environment(self, label: str) -> dict[str, str]:
        """Return the variables that a plist gives its job."""
        path = self.home / "Library" / "LaunchAgents" / f"{label}.plist"
        found: dict[str, str] = plistlib.loads(path.read_bytes()).get("EnvironmentVariables", {})
        return found

    def seen(self) -> dict[str, object]:
        """Return all that an install may change: the home folder's tree, and what launchd has loaded and disabled."""
        for label in (PROXY, OLLAMA, HAPROXY):
            until(lambda label=label: (self.job(label) or {"state": "running"})["state"] == "running")
        tree = {str(path.relative_to(self.home)): _content(path) for path in sorted(self.home.rglob("*"))}
        jobs = {label: job["plist"] for label in (PROXY, OLLAMA, HAPROXY, WARM) if (job := self.job(label))}
        disabled = self.state / "disabled.json"
        off = (
            {label for label, is_off in json.loads(disabled.read_text()).items() if is_off} if disabled.exists() else {}
        )
        return {"tree": tree, "jobs": jobs, "disabled": sorted(off)}

    # --- commands -----------------------------------------------------------------------------------------------------

    def build(self, machine: Machine, checkout: Checkout, python: Path, folder: Path) -> None:
        """Make an environment without pip: its Python is the one that runs the tests, or one that does nothing."""
        self.builds += 1
        program = folder / "bin" / "python"
        program.parent.mkdir(parents=True)
        serve = " ".join(f'"{word}"' for word in SLEEPER)
        if not self.silent:
            program.symlink_to(python)  # as in a real one; that Python then looks for what is next to the link
            program = program.with_name("served")
            # What -I keeps out is let in again: this checkout, and settings where macOS would look for them; and of
            # all tools the one that its PATH would have.
            (folder / "tools").mkdir()
            (folder / "tools" / "tailscale").symlink_to(self.commands / "tailscale")
            places = 'XDG_CONFIG_HOME="$HOME/Library/Application Support" XDG_STATE_HOME="$HOME/Library/Logs"'
            app = self.root / FRAMEWORK / "Resources/Python.app/Contents/MacOS/Python"
            # An address that changes is to be seen before a test has run out of patience.
            impatient = "from proxy.tailnet import tailscale; tailscale.TOOL_AGE = tailscale.TOOL_AGE_DOWN = 1.0"
            start = f'import runpy; {impatient}; runpy.run_module(\\"proxy\\", run_name=\\"__main__\\", alter_sys=True)'
            serve = f'env PATH="{folder}/tools:$PATH" PYTHONPATH="{ROOT}" {places} "{app}" -c "{start}"'
        # What is run is `-I -m proxy ...`; the first three are said by `serve`.
        program.write_text(f'#!/bin/sh\ncase "$*" in *import*) exit 0;; esac\nshift 3\nexec {serve} "$@"\n')
        program.chmod(0o755)
        (folder / "bin" / "remote-ollama-proxy").write_text("#!/bin/sh\n")

    def prove(self, facts: Facts) -> list[Finding]:
        """Take it as proved."""
        self.proofs.append(facts.expected)
        return [Finding("proof", Outcome.PASS, "as if")]

    def installer(self, platform: str = "darwin", **changes: Any) -> install.Installer:
        """Return what installs here."""
        places = Places(sockets=(), app=str(self.root), tools=(), path=str(self.commands), platform="linux")
        given: dict[str, Any] = {"tailscale": Tailscale(places), "builder": self.build, "seconds": 15.0}
        if self.silent:
            given |= {"proof": self.prove, "seconds": 0.0}
        return Patient(self.machine(platform), silent=self.silent, **{**given, **changes})

    def install(self, options: Options | None = None, *, dry_run: bool = False, **changes: Any) -> int:
        """Install, and return the exit code; `heard` has what it said."""
        self.heard = Heard()
        installer = self.installer(**changes)
        return self.heard.code(lambda: install.install(installer, options or Options(), self.heard, dry_run=dry_run))

    def uninstall(self, *, purge: bool = False, dry_run: bool = False, platform: str = "darwin") -> int:
        """Uninstall, and return the exit code."""
        self.heard = Heard()
        uninstaller = uninstall.Uninstaller(self.machine(platform), purge=purge, dry_run=dry_run)
        return self.heard.code(lambda: uninstall.uninstall(uninstaller, self.heard))


class Patient(install.Installer):
    """An installer that leaves out waiting for an Ollama that does nothing."""

    def __init__(self, machine: Machine, *, silent: bool, **more: Any) -> None:
        super().__init__(machine, **more)
        self.silent = silent
        self.wrap: Callable[[list[Step]], list[Step]] = lambda steps: steps

    def plan(self, seen: Any) -> list[Step]:
        """Return the steps, as a test wants them."""
        steps = super().plan(seen)
        if self.silent:
            steps = [step for step in steps if not isinstance(step, install.OllamaAnswers)]
        return self.wrap(steps)


def _content(path: Path) -> tuple[str, object]:
    if path.is_symlink():
        return "link", os.readlink(path)
    mode = oct(stat.S_IMODE(path.stat().st_mode))
    return (mode, path.read_bytes() if path.is_file() else None)
