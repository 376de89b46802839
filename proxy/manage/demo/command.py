"""The tour: a simulated Ollama and the proxy as real processes on loopback, and the questions of `verify`.

It needs neither Ollama nor Tailscale, and reads no settings, neither from the environment nor from the default file.
However it ends, both processes and the folder with their logs are removed.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import proxy
from proxy import PROGRAM
from proxy.manage.connect.tools import TOOLS
from proxy.manage.demo.stage import Stage
from proxy.manage.demo.steps import steps
from proxy.manage.verify.asking.asking import Asker
from proxy.manage.verify.asking.session import Session
from proxy.manage.verify.command import promised
from proxy.settings.kinds import printable
from proxy.settings.settings import Settings
from proxy.terminal.output import unwritable
from proxy.terminal.result import CommandError, Exit, Result

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from proxy.manage.machine.machine import Machine
    from proxy.terminal.finding import Finding
    from proxy.terminal.printer import Printer

_HOST, _WIDTH = "127.0.0.1", 80
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Seconds for a process to listen, and to end when asked to. Both take well under one; a busy machine may be slow.
_START, _END = 30.0, 15.0
_HINT = f"{PROGRAM} --check"
_KEPT = "\nBoth keep running until Ctrl-C. The models are called tiny, tools, thinker and toolcaller.\n"
_TOOLS = ("claude-code", "aider", "curl")  # whose settings a kept tour prints, as `connect` has them


def run(flags: Mapping[str, str], args: argparse.Namespace, machine: Machine, out: Printer) -> Result:  # noqa: ARG001
    """Give the tour; with `--keep` serve on after it until Ctrl-C. Raises CommandError if a process ends by itself.

    Whatever asks to end does so as Ctrl-C does: a plain SIGTERM or SIGHUP would leave the processes behind.
    """
    before = [(number, signal.signal(number, signal.default_int_handler)) for number in _SIGNALS]
    try:
        with tempfile.TemporaryDirectory(prefix="remote-ollama-proxy-demo-") as folder, ExitStack() as ends:
            try:
                findings = _tour(Path(folder), ends, out, keep=args.keep)
            finally:
                for number in _SIGNALS:
                    signal.signal(number, signal.SIG_IGN)  # ending takes a moment, and must not be left half done
    except KeyboardInterrupt:
        out.step("Ended before it was through.")
        return Result(Exit.FAILED)
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    return Result(Exit.of(findings), findings)


class Child:
    """A process of the tour: `python -m module`, what it prints in a file, on a port of its own.

    It finds the package that we are of. No option comes from our environment, only from `environ`.
    """

    def __init__(self, name: str, folder: Path, module: str, *arguments: str, port: int, **environ: str) -> None:
        self.name = name
        self.port = port
        self.url = f"http://{_HOST}:{port}"
        self._printed = folder / f"{module}.txt"
        self._command = [sys.executable, "-m", module, *arguments]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PROXY_")}
        paths = [str(Path(proxy.__file__).parent.parent), *filter(None, [kept.get("PYTHONPATH")])]
        self._environ = kept | {"PYTHONPATH": os.pathsep.join(paths)} | environ
        self._process: subprocess.Popen[bytes] | None = None

    def pid(self) -> int:
        """Return its process id; 0 while it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else 0

    def start(self) -> None:
        """Run it, if it does not run, until it listens. Raises CommandError."""
        if self.pid():
            return
        with self._printed.open("ab") as printed:
            self._process = subprocess.Popen(  # noqa: S603 - a session of its own: Ctrl-C is for the tour, which ends it
                self._command,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START
        while self.pid() and time.monotonic() < deadline:
            try:
                socket.create_connection((_HOST, self.port), 1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        self.end()
        raise CommandError(f"{self.name} did not start: {self.last_words(3) or 'it printed nothing'}", _HINT)

    def end(self, *, kill: bool = False) -> None:
        """End it and wait until it has ended; `kill` gives it no chance to clean up."""
        if self._process is None:
            return
        if not kill:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_END)
        self._process.kill()
        self._process.wait()

    def printed(self) -> list[str]:
        """Return the lines that it printed so far."""
        return self._printed.read_text(errors="replace").splitlines()

    def last_words(self, count: int) -> str:
        """Return the last `count` lines that it printed."""
        return "\n".join(self.printed()[-count:])


def _children(folder: Path) -> tuple[Child, Child]:
    """Return the simulated Ollama, and the proxy before it with default settings."""
    with socket.create_server((_HOST, 0)) as one, socket.create_server((_HOST, 0)) as other:
        ports = [sock.getsockname()[1] for sock in (one, other)]  # nobody listened on them a moment ago
    words = ("proxy.simulated_ollama", "--port", str(ports[0]), "--tokens-per-second", "100", "--show-requests")
    ollama = Child("the simulated Ollama", folder, *words, port=ports[0])
    config = folder / "config.toml"
    config.touch()  # named, so that the file of an installed proxy isn't read
    settings = {
        "PROXY_CONFIG": str(config),
        "PROXY_LISTEN": _HOST,
        "PROXY_PORT": str(ports[1]),
        "PROXY_UPSTREAM": ollama.url,
        "PROXY_ACCESS_LOG": str(folder / "access.log"),
        "PROXY_DRAIN_TIMEOUT": "1",
    }
    return ollama, Child("the proxy", folder, "proxy", port=ports[1], **settings)


def _tour(folder: Path, ends: ExitStack, out: Printer, *, keep: bool) -> list[Finding]:
    def say(text: str) -> None:
        for line in map(printable, text.split("\n")):
            indent = " " * (len(line) - len(line.lstrip()) + 2)
            for part in textwrap.wrap(line, _WIDTH, subsequent_indent=indent, break_on_hyphens=False) or [""]:
                out.step(part)

    say("remote-ollama-proxy: a tour on loopback, with neither Ollama nor Tailscale.")
    say(f"Most steps ask what `{PROGRAM} verify` asks your own proxy.")
    begun = time.monotonic()
    children = ollama, gateway = _children(folder)
    for child in children:
        ends.callback(child.end)
        child.start()
    say("")
    for child in children:
        say(f"{child.name:<21} {child.url}  process {child.pid()}")
    asker, direct = (Asker(_HOST, child.port, PROGRAM) for child in (gateway, ollama))
    log = folder / "access.log"
    stage = Stage(
        Session(asker, promised(Settings()), direct=direct, log=str(log)),
        *(direct, log, say),
        received=lambda: [line.partition(" ")[2] for line in ollama.printed() if line.startswith("received ")],
        kill_ollama=lambda: ollama.end(kill=True),
        start_ollama=ollama.start,
    )
    findings = []
    for number, step in enumerate(steps(stage), 1):
        if unwritable():
            break
        say(f"\n{number}. {step.title}")
        findings.append(stage.play(step))
        say(f"  {findings[-1].outcome.upper()}: {findings[-1].detail}")
    failed = sum(finding.outcome == "fail" for finding in findings)
    say(f"\n{len(findings) - failed} of {len(findings)} steps hold, in {time.monotonic() - begun:.1f} s.")
    for child in children if failed else ():
        say(f"The last that {child.name} printed:\n{textwrap.indent(child.last_words(10), '  ')}")
    if keep:
        _keep(children, stage, out)
    return findings


def _keep(children: Sequence[Child], stage: Stage, out: Printer) -> None:
    """Print how to point tools here, and wait for Ctrl-C; raise CommandError if a process ends before.

    If nobody can read the text, there is nothing to wait for. It is not wrapped, because it is there to be copied.
    """
    filled = ((tool, tool.filled(tool.text, stage.session.asker.url, "tools")) for tool in TOOLS if tool.name in _TOOLS)
    texts = "".join(f"{tool.title}: {tool.path}\n{text}\n" for tool, text in filled)
    for line in f"{_KEPT}\n{texts}The access log: tail -f {stage.log}".split("\n"):
        out.step(line)
    try:
        while all(child.pid() for child in children):
            if unwritable():
                return
            time.sleep(0.2)
    except KeyboardInterrupt:
        out.step("Both are being stopped.")
        return
    gone = next(child for child in children if not child.pid())
    raise CommandError(f"{gone.name} ended by itself: {gone.last_words(3)}", _HINT)
