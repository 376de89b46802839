"""The tour: a simulated Ollama and the proxy as real processes on loopback, and callers that show what is let through.

It needs neither Ollama nor Tailscale, and reads no settings, neither from the environment nor from the default file.
Both processes, and the folder with their logs, are gone when it ends, however it ends.
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
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import proxy
from proxy import PROGRAM
from proxy.manage.demo.callers import RawCallers
from proxy.manage.demo.stage import Stage, play
from proxy.manage.demo.steps import STEPS
from proxy.settings.kinds import printable
from proxy.terminal.output import unwritable
from proxy.terminal.result import CommandError, Exit, Result

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence

    from proxy.manage.demo.callers import Callers
    from proxy.manage.machine.machine import Machine
    from proxy.terminal.finding import Finding
    from proxy.terminal.printer import Printer

_HOST = "127.0.0.1"
_WIDTH = 80
# Seconds for a process to listen, and to end when asked to. Both take well under one; a busy machine may be slow.
_START, _END = 30.0, 15.0
_AUDIT_KEYS = ("status", "reason", "ended", "model", "bytes_in", "bytes_out", "events", "tokens_in", "tokens_out")

_HINT = f"{PROGRAM} --check"
_NO_SDKS = "The openai, anthropic and ollama SDKs are not installed: the same calls are made over raw HTTP."

_CONNECT = """
Both keep running until Ctrl-C. Point your tools at the proxy; any key will do, and
the simulated models are called {models}.

Claude Code
  export ANTHROPIC_BASE_URL={base}
  export ANTHROPIC_AUTH_TOKEN=demo
  export ANTHROPIC_MODEL=tools ANTHROPIC_DEFAULT_HAIKU_MODEL=tools
  claude

aider, and what else uses litellm
  export OPENAI_API_BASE={base}/v1
  export OPENAI_API_KEY=demo
  aider --model openai/tiny

The openai SDK
  export OPENAI_BASE_URL={base}/v1
  export OPENAI_API_KEY=demo

curl
  curl -N {base}/v1/chat/completions -d '{{"model": "tiny",
    "stream": true, "messages": [{{"role": "user", "content": "Hi @@tps=5@@"}}]}}'

The access log
  tail -f {log}
"""


class CannotStartError(CommandError):
    """A process did not come to listen; `str()` says which, and what it printed last."""


def run(flags: Mapping[str, str], args: argparse.Namespace, machine: Machine, out: Printer) -> Result:  # noqa: ARG001
    """Give the tour; with `--keep` serve on after it until Ctrl-C. Raises CannotStartError."""
    with _interruptible(), ExitStack() as ends:
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="remote-ollama-proxy-demo-")))
        try:
            findings = _tour(folder, ends, out, keep=args.keep)
        except KeyboardInterrupt:
            out.step("\nEnded before it was through.")
            return Result(Exit.FAILED)
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)  # ending takes a moment, and must not be left half done
            ends.close()
    return Result(Exit.of(findings), findings)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let whatever asks to end do so as Ctrl-C does: a plain SIGTERM or SIGHUP would leave the processes behind."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


class Child:
    """A process of the tour: `python -m module`, what it prints in a file, on a port of its own."""

    def __init__(self, name: str, folder: Path, module: str, *arguments: str, port: int, **environ: str) -> None:
        self.name = name
        self.port = port
        self.url = f"http://{_HOST}:{port}"
        self._printed = folder / f"{module}.txt"
        self._command = [sys.executable, "-m", module, *arguments]
        self._environ = _environment() | environ
        self._process: subprocess.Popen[bytes] | None = None

    def pid(self) -> int:
        """Return its process id; 0 while it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else 0

    def start(self) -> None:
        """Run it, if it does not run, until it listens. Raises CannotStartError."""
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
        raise CannotStartError(f"{self.name} did not start: {self.last_words(3) or 'it printed nothing'}", _HINT)

    def end(self, *, kill: bool = False) -> None:
        """End it and wait until it is gone; `kill` gives it no chance to do so itself."""
        if self._process is None:
            return
        if not kill:
            self._process.terminate()
            try:
                self._process.wait(_END)
            except subprocess.TimeoutExpired:
                kill = True
        if kill:
            self._process.kill()
            self._process.wait()

    def last_words(self, count: int) -> str:
        """Return the last `count` lines that it printed."""
        return "\n".join(self._printed.read_text(errors="replace").splitlines()[-count:])


def _environment() -> dict[str, str]:
    """Return our environment, with the package we are of to be found, and without anything that sets an option."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PROXY_")}
    paths = [str(Path(proxy.__file__).parent.parent), *filter(None, [kept.get("PYTHONPATH")])]
    return kept | {"PYTHONPATH": os.pathsep.join(paths)}


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listened on a moment ago."""
    with ExitStack() as sockets:
        bound = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for sock in bound:
            sock.bind((_HOST, 0))
        return [sock.getsockname()[1] for sock in bound]


def _children(folder: Path) -> tuple[Child, Child]:
    """Return the simulated Ollama, and the proxy before it with default settings."""
    ports = _free_ports(2)
    module = "proxy.simulated_ollama"
    ollama = Child("the simulated Ollama", folder, module, "--port", str(ports[0]), port=ports[0])
    config = folder / "config.toml"
    config.touch()  # named, so that the file of a proxy that is installed here has no say
    settings = {
        "PROXY_CONFIG": str(config),
        "PROXY_LISTEN": _HOST,
        "PROXY_PORT": str(ports[1]),
        "PROXY_UPSTREAM": ollama.url,
        "PROXY_ACCESS_LOG": str(folder / "access.log"),
        "PROXY_DRAIN_TIMEOUT": "1",
    }
    return ollama, Child("the proxy", folder, "proxy", port=ports[1], **settings)


def _callers(base: str) -> Callers:
    """Return callers with the SDKs if all are installed."""
    try:
        from proxy.manage.demo.sdk import SdkCallers  # noqa: PLC0415
    except ImportError:
        return RawCallers(base)
    return SdkCallers(base)


def _tour(folder: Path, ends: ExitStack, out: Printer, *, keep: bool) -> list[Finding]:
    def say(text: str) -> None:
        for line in _wrapped(text):
            out.step(line)

    say("remote-ollama-proxy: a tour on loopback, with neither Ollama nor Tailscale.")
    begun = time.monotonic()
    children = ollama, gateway = _children(folder)
    for child in children:
        ends.callback(child.end)
        child.start()
    callers = _callers(gateway.url)
    if isinstance(callers, RawCallers):
        say(_NO_SDKS)
    say("")
    for child in children:
        say(f"{child.name:<21} {child.url}  process {child.pid()}")
    say(f"{'the callers':<21} {callers.description}")
    stage = Stage(
        proxy=gateway.url,
        ollama=ollama.url,
        callers=callers,
        log=folder / "access.log",
        say=say,
        kill_ollama=lambda: ollama.end(kill=True),
        start_ollama=ollama.start,
    )
    findings = _play_all(stage)
    failed = sum(finding.outcome == "fail" for finding in findings)
    say("")
    say(f"{len(STEPS) - failed} of {len(STEPS)} steps hold, in {time.monotonic() - begun:.1f} s.")
    if failed:
        for child in children:
            say(f"The last that {child.name} printed:\n{textwrap.indent(child.last_words(10), '  ')}")
    if keep:
        _keep(children, stage, out)
    return findings


def _play_all(stage: Stage) -> list[Finding]:
    """Play every step and print what it saw, as long as someone reads it. Return how each ended."""
    findings = []
    for number, step in enumerate(STEPS, 1):
        if unwritable():
            break
        stage.say(f"\n{number}. {step.title}")
        before = len(stage.lines)
        finding = play(step, stage)
        stage.catch_up()
        for line in stage.lines[before:]:
            stage.say(_audit_line(line))
        stage.say(f"  {finding.outcome.upper()}: {finding.detail}")
        findings.append(finding)
    return findings


def _audit_line(line: Mapping[str, Any]) -> str:
    """Return what of an audit line fits into the story."""
    facts = " ".join(f"{key}={line[key]}" for key in _AUDIT_KEYS if key in line)
    return f"  audit: {line.get('verdict', '')} {line.get('method', '')} {line.get('path', '')} {facts}"


def _wrapped(text: str) -> Iterator[str]:
    """Yield lines, cut at blanks to the width of a terminal."""
    for line in text.split("\n"):
        shown = printable(line)
        blank = len(shown) - len(shown.lstrip())
        yield from textwrap.wrap(shown, _WIDTH, subsequent_indent=" " * (blank + 2), break_on_hyphens=False) or [""]


def _keep(children: Sequence[Child], stage: Stage, out: Printer) -> None:
    """Print how to point tools here, and wait for Ctrl-C; raise CannotStartError if a process ends before.

    If nobody can read the text, there is nothing to wait for.
    """
    models = "tiny, tools, thinker and toolcaller"
    for line in _CONNECT.format(base=stage.proxy, log=stage.log, models=models).split("\n"):
        out.step(line)  # not wrapped: it is there to be copied
    try:
        while all(child.pid() for child in children):
            if unwritable():
                return
            time.sleep(0.2)
    except KeyboardInterrupt:
        out.step("\nBoth are being stopped.")
        return
    gone = next(child for child in children if not child.pid())
    raise CannotStartError(f"{gone.name} ended by itself: {gone.last_words(3)}", _HINT)
