"""What the page is tested with: a simulated Ollama, a proxy and a dashboard as processes, and clients of the proxy."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy.logs.logfile import utc
from tests.support.patience import PATIENCE
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parent.parent.parent.parent


class Program:
    """`python -m` something; it is ready when it has printed a line with a certain text."""

    def __init__(self, environ: dict[str, str], *words: str, ready: str) -> None:
        self._lines: list[str] = []
        self._ready = threading.Event()
        self._text = ready
        self.process = subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=ROOT,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def wait(self) -> None:
        """Wait until it is ready."""
        assert self._ready.wait(PATIENCE), f"it printed {self._lines}"
        assert any(self._text in line for line in self._lines), f"it ended: {self._lines}"

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line)
            if self._text in line:
                self._ready.set()
        self._ready.set()

    def line(self) -> str:
        """Return the line that said it is ready."""
        return next(line.strip() for line in self._lines if self._text in line)

    def end(self, number: int = signal.SIGTERM) -> int:
        """End it, and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self._reading.join(PATIENCE)


class Stage:
    """One folder with a log, and whatever of the three programs a test starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "access.log"
        config = folder / "config.toml"
        config.touch()
        self.port, self.ollama_port = free_port(), free_port()
        own = {
            "HOME": str(folder),
            "XDG_STATE_HOME": str(folder / "state"),
            "PROXY_LISTEN": "127.0.0.1",
            "PROXY_PORT": str(self.port),
            "PROXY_UPSTREAM": f"http://127.0.0.1:{self.ollama_port}",
            "PROXY_ACCESS_LOG": str(self.log),
            "PROXY_CONFIG": str(config),
            "PROXY_PARALLEL": "1",
        }
        self.environ = {"PATH": os.environ["PATH"], "TZ": "UTC", "LANG": "C.UTF-8", **own}
        self._programs: dict[str, Program] = {}
        self._clients: list[Client] = []

    def _start(self, name: str, *words: str, ready: str) -> Program:
        started = self._programs[name] = Program(self.environ, *words, ready=ready)
        started.wait()
        return started

    def start_ollama(self, *options: str) -> None:
        """Start a simulated Ollama that answers one request of a model at a time."""
        words = ("proxy.simulated_ollama", "--port", str(self.ollama_port), *options)
        self._start("ollama", *words, ready="listening")

    def start_proxy(self) -> None:
        """Start the proxy."""
        self._start("proxy", "proxy", ready="listening")

    def start_dashboard(self, port: int = 0) -> str:
        """Start the dashboard; return the link that it prints."""
        words = ("proxy", "dashboard", "--no-open", "--port", str(port), "--access-log", str(self.log))
        return self._start("dashboard", *words, ready="http://127.0.0.1:").line()

    def export(self) -> Path:
        """Return a file with the history."""
        path = self.folder / "history.html"
        words = (sys.executable, "-m", "proxy", "dashboard", "--export", str(path), "--access-log", str(self.log))
        subprocess.run(words, cwd=ROOT, env=self.environ, check=True, capture_output=True, timeout=PATIENCE)
        return path

    def end(self, name: str, number: int = signal.SIGTERM) -> int:
        """End one of the programs; return its exit code."""
        return self._programs.pop(name).end(number)

    def write(self, *records: dict[str, Any]) -> None:
        """Append lines to the log, as the proxy would."""
        with self.log.open("a") as log:
            log.writelines(json.dumps(record) + "\n" for record in records)

    def chat(self, model: str = "tiny", *, tokens: int = 5000, **fields: str) -> Client:
        """Send a chat whose answer streams; it goes on until the client leaves."""
        body = {"model": model, "messages": [{"role": "user", "content": f"@@tokens={tokens}@@"}], "max_tokens": tokens}
        self._clients.append(Client(self.port, {**body, "stream": True}, fields))
        return self._clients[-1]

    def ask(self, method: str, path: str, **fields: str) -> int:
        """Send a request, and return the status of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in fields.items()})
        status = connection.getresponse().status
        connection.close()
        return status

    def close(self) -> None:
        """End all that goes on."""
        with ExitStack() as ends:
            for name in list(self._programs):
                ends.callback(self.end, name)
            for client in self._clients:
                ends.callback(client.leave)


class Client:
    """A client that reads a stream in the background."""

    def __init__(self, port: int, body: dict[str, Any], fields: dict[str, str]) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        names = {name.replace("_", "-"): value for name, value in fields.items()}
        self._connection.request("POST", "/v1/chat/completions", json.dumps(body), names)
        self.read = b""
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        # It left, or the proxy cut it.
        with (
            suppress(OSError, http.client.HTTPException, ValueError, AttributeError),
            self._connection.getresponse() as response,
        ):
            while part := response.read1():
                self.read += part

    def leave(self) -> None:
        """Close the connection, whatever is still to come."""
        if (sock := self._connection.sock) is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)
        self._connection.close()

    def ended(self) -> bytes:
        """Wait until the answer has ended, and return it."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        return self.read


def until(true: Callable[[], object], pause: Callable[[float], None]) -> None:
    """Wait until something is true. `pause` lets the browser go on meanwhile."""
    for _ in range(int(PATIENCE * 20)):
        if true():
            return
        pause(50)
    raise AssertionError("it never became true")


def ago(seconds: float) -> str:
    """Return the moment so many seconds ago, as the log has it."""
    return utc(time.time() - seconds)


def refused(before: float, **more: object) -> dict[str, object]:
    """Return the line of a request that was refused so many seconds ago."""
    usual = {"time": ago(before), "method": "POST", "path": "/api/pull", "verdict": "refused", "status": 403}
    return {**usual, "reason": "path_not_served", "ended": "complete", **more}


def served(before: float, **more: object) -> dict[str, object]:
    """Return the line of a chat that came so many seconds ago."""
    usual = {"time": ago(before), "method": "POST", "path": "/v1/chat/completions", "route": "/v1/chat/completions"}
    ended = {"verdict": "allowed", "status": 200, "ended": "complete", "surface": "openai", "stream": True}
    tokens = {"model": "qwen3:8b", "tokens_in": 100, "tokens_out": 60, "events": 60}
    return {**usual, **ended, **tokens, "first_byte_ms": 800.0, "total_ms": 2000.0, "user_agent": "aider", **more}
