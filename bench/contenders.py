"""The proxies that are compared: how each is started, and what it costs while it runs."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench import accounting

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Sequence

    from bench.accounting import Places

ROOT = Path(__file__).parent.parent
_PEERS = Path(__file__).parent / "peers"
_PATIENCE = 60.0  # seconds to start in; LiteLLM takes ten
_TO_END = 1.5  # seconds; who has more to do then is killed
LITELLM = ROOT / ".venv-litellm/bin/litellm"

# Limits that the measurements would reach. Everything that affects the cost of a request keeps its default.
_CONNECTIONS = 9000


@dataclass(frozen=True)
class Site:
    """What a contender gets: its folder, its port, and the upstream's port."""

    folder: Path
    port: int
    upstream: int

    def fill(self, name: str) -> str:
        """Write our configuration `name` for this site; return its path."""
        text = (_PEERS / name).read_text()
        user = "user root;" if os.getuid() == 0 else ""  # otherwise a worker that root starts couldn't enter the folder
        values = {"PORT": self.port, "UPSTREAM": self.upstream, "FOLDER": self.folder, "USER": user}
        path = self.folder / name
        path.write_text(re.sub("@([A-Z]+)@", lambda found: str(values[found[1]]), text))
        return str(path)


@dataclass(frozen=True)
class Contender:
    """A program that can stand in front of the upstream. `how` says how to get it if it is missing."""

    name: str
    program: str
    command: Callable[[Site], Sequence[str]]
    version: tuple[str, ...] = ()
    how: str = ""
    most_streams: int = _CONNECTIONS  # that it is configured for
    pace: int = 1  # one that takes whole cores is given so much less to do
    only: frozenset[str] = frozenset()  # the measures it can take part in, if not all

    @property
    def path(self) -> str | None:
        """The path of its program."""
        return shutil.which(self.program)

    def can(self, measure: str) -> bool:
        """Return whether it takes part in a measure."""
        return not self.only or measure in self.only

    def reported_version(self) -> str:
        """Return the version that the program reports."""
        if not self.version:
            return ""
        done = subprocess.run((self.path or self.program, *self.version), capture_output=True, text=True, check=False)
        found = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
        return found[0] if found else "unknown"


def _python(*words: str) -> Callable[[Site], Sequence[str]]:
    return lambda site: (sys.executable, *words, str(site.port), str(site.upstream), str(site.folder / "access.log"))


OURS = Contender("ours", sys.executable, lambda _: (sys.executable, "-m", "proxy"))

_APT = "macOS: `brew install {0}`; Debian: `sudo apt install {0}`"
PEERS = (
    Contender(
        "haproxy-replaced",
        "haproxy",
        lambda site: ("haproxy", "-f", site.fill("haproxy-replaced.cfg")),
        ("-v",),
        _APT.format("haproxy"),
        most_streams=4000,
    ),
    Contender(
        "haproxy-tuned",
        "haproxy",
        lambda site: ("haproxy", "-f", site.fill("haproxy-tuned.cfg")),
        ("-v",),
        _APT.format("haproxy"),
    ),
    Contender(
        "nginx",
        "nginx",
        lambda site: ("nginx", "-p", str(site.folder), "-e", "error.log", "-c", site.fill("nginx.conf")),
        ("-v",),
        _APT.format("nginx"),
    ),
    Contender(
        "caddy",
        "caddy",
        lambda site: ("caddy", "run", "--adapter", "caddyfile", "--config", site.fill("Caddyfile")),
        ("version",),
        _APT.format("caddy"),
    ),
    Contender("aiohttp", sys.executable, _python("-m", "bench.peers.plain_aiohttp")),
    Contender(
        "litellm",
        str(LITELLM),
        lambda site: (
            *(str(LITELLM), "--config", site.fill("litellm.yaml")),
            *("--host", "127.0.0.1", "--port", str(site.port), "--telemetry", "False"),
        ),
        ("--version",),
        "make bench-litellm",
        most_streams=0,
        pace=10,
        only=frozenset(("chat", "streams", "first_byte", "resident")),
    ),
)
DIRECT = Contender("direct", "", lambda _: ())
"""No proxy at all: the cost of the load and the upstream alone."""


class Running:
    """One contender that listens, or the upstream itself as `direct`."""

    def __init__(self, contender: Contender, site: Site, process: subprocess.Popen[bytes] | None = None) -> None:
        self.contender = contender
        self.name = contender.name
        self.folder = site.folder
        self.port = site.port
        self.took = 0.0  # seconds from exec to listening
        self._process = process

    @classmethod
    def start(cls, contender: Contender, folder: Path, upstream: int, places: Places, **settings: str) -> Running:
        """Start `contender` on the proxy's core, and wait until it accepts connections."""
        site = Site(folder / f"{contender.name}-{time.monotonic_ns()}", free_port(), upstream)
        site.folder.mkdir()
        command = contender.command(site)
        with places.on(places.proxy), (site.folder / "output").open("wb") as output:
            began = time.monotonic()
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=_environment(site) | settings,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        running = cls(contender, site, process)
        while not _listens(site.port):
            if ended := running.ended():
                raise RuntimeError(f"{contender.name} {ended}")
            if time.monotonic() - began > _PATIENCE:
                running.stop()
                raise RuntimeError(f"{contender.name} doesn't listen: {' '.join(command)}")
            time.sleep(0.001)
        running.took = time.monotonic() - began
        return running

    @property
    def pids(self) -> list[int]:
        """Its current processes. A worker may start after the port is open."""
        return accounting.family(self._process.pid) if self._process is not None else []

    def ended(self) -> str:
        """Return its exit code and output if it has ended, otherwise nothing."""
        if self._process is None or self._process.poll() is None:
            return ""
        said = (self.folder / "output").read_text(errors="replace")[-2000:]
        return f"has ended with {self._process.returncode}: {said}"

    def cpu(self) -> float:
        """Seconds of CPU used so far."""
        return accounting.cpu(self.pids)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its main process."""
        if self._process is not None:
            self._process.send_signal(number)

    def stop(self) -> None:
        """End it, and wait until it has ended."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _environment(site: Site) -> dict[str, str]:
    """Return the environment for any contender: this process's, with our settings and no others.

    Python may keep what it compiles, as a daemon's does. Otherwise each start would compile the whole program.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PROXY_", "PYTHONDONTWRITE"))}
    ours = {
        "PROXY_LISTEN": "127.0.0.1",
        "PROXY_PORT": str(site.port),
        "PROXY_UPSTREAM": f"http://127.0.0.1:{site.upstream}",
        "PROXY_ACCESS_LOG": str(site.folder / "access.log"),
        "PROXY_DIAGNOSTICS_LOG": str(site.folder / "diagnostics.log"),
        "PROXY_CONFIG": str(site.folder / "config.toml"),
        "PROXY_MAX_CONNECTIONS": str(_CONNECTIONS),
        "PROXY_MAX_CONNECTIONS_PER_CLIENT": "0",
    }
    (site.folder / "config.toml").touch()
    others = {
        "HOME": str(site.folder),
        "XDG_DATA_HOME": str(site.folder),
        "XDG_CONFIG_HOME": str(site.folder),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # don't ask any other machine
    }
    return kept | others | ours


class Upstream:
    """The process that plays Ollama, on many ports.

    Each contender gets another port. On a single one, closed connections in TIME_WAIT would use up all local ports.
    """

    _PORTS = 32

    def __init__(self, places: Places) -> None:
        with places.on(places.upstream):
            self._process = subprocess.Popen(
                (sys.executable, "-m", "bench.wire.upstream", str(self._PORTS)),
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        assert self._process.stdout is not None
        self._ports = itertools.cycle([int(port) for port in self._process.stdout.readline().split()])

    def port(self) -> int:
        """Return one of its ports, a different one each time."""
        return next(self._ports)

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def free_port() -> int:
    """Return a free port, below those that the system gives to other programs."""
    while True:
        port = random.randrange(10_000, 20_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
