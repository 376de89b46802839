"""Proxies in processes of their own, each set up for the same table of routes."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from proxy import __version__
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

HERE = Path(__file__).parent

# A login shell's PATH often lacks where Debian puts servers.
SEARCHED = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin"])

MAX_BODY = 65536
"""Bytes of content that each takes which has such a limit; the corpus is written for it."""

# What a server says of itself when it breaks, and when it only complains of itself.
_BROKEN = re.compile(r"exited on signal|panic:|Segmentation fault|runtime error|BUG")
_TRACEBACK = "Traceback (most recent call last)"


@dataclass(frozen=True)
class Peer:
    """One proxy: how it is called, found, and started."""

    name: str
    about: str
    program: str | None  # the executable that must be on the PATH; None: Python alone
    template: str | None  # the file here that its configuration is made from
    command: Callable[[Path, int, int], list[str]]  # of its folder, and the ports to listen on and to forward to
    version: Callable[[], str]
    install: str = ""
    environment: Mapping[str, str] | None = None

    @property
    def found(self) -> bool:
        """Whether it is on this machine."""
        return self.program is None or shutil.which(self.program, path=SEARCHED) is not None


def _which(program: str) -> str:
    return shutil.which(program, path=SEARCHED) or program


def _said(pattern: str, *command: str) -> Callable[[], str]:
    """Return what finds a version in the words of a command."""

    def version() -> str:
        done = subprocess.run([_which(command[0]), *command[1:]], capture_output=True, text=True, check=False)
        found = re.search(pattern, done.stdout + done.stderr)
        return found[1] if found else "unknown"

    return version


def _ours(folder: Path, listen: int, upstream: int) -> list[str]:
    (folder / "config.toml").touch()
    flags = {
        "config": folder / "config.toml",
        "access-log": folder / "access.log",
        "listen": "127.0.0.1",
        "port": listen,
        "upstream": f"http://127.0.0.1:{upstream}",
        "max-body": MAX_BODY,
    }
    return [sys.executable, "-m", "proxy", *(word for key, value in flags.items() for word in (f"--{key}", str(value)))]


PEERS = (
    Peer(
        "ours",
        "this proxy, its default table",
        None,
        None,
        _ours,
        lambda: __version__,
    ),
    Peer(
        "HAProxy",
        "the configuration that this proxy replaces, with the same directives",
        "haproxy",
        "haproxy.cfg",
        lambda folder, listen, upstream: [_which("haproxy"), "-db", "-f", str(folder / "haproxy.cfg")],
        _said(r"version (\S+)", "haproxy", "-v"),
        "apt install haproxy, brew install haproxy",
    ),
    Peer(
        "nginx",
        "exact locations with `limit_except`, checks of Host and Origin, a limit on the body",
        "nginx",
        "nginx.conf",
        lambda folder, listen, upstream: [_which("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf")],
        _said(r"nginx/(\S+)", "nginx", "-v"),
        "apt install nginx, brew install nginx",
    ),
    Peer(
        "Caddy",
        "matchers of method and path, checks of Host and Origin, a limit on the body",
        "caddy",
        "Caddyfile",
        lambda folder, listen, upstream: [_which("caddy"), "run", "--config", str(folder / "Caddyfile")],
        _said(r"v?(\d\S*)", "caddy", "version"),
        "apt install caddy, brew install caddy",
    ),
    Peer(
        "aiohttp",
        "`web.Application` with a route for each row, forwarding with `ClientSession`",
        None,
        None,
        lambda folder, listen, upstream: [sys.executable, str(HERE / "plain_aiohttp.py"), str(listen), str(upstream)],
        lambda: importlib.metadata.version("aiohttp"),
    ),
)


class Running:
    """A peer that runs."""

    def __init__(self, peer: Peer, folder: Path, upstream: int) -> None:
        self.peer = peer
        self.port = free_port()
        self._said = folder / "stderr"
        self._read = 0
        if peer.template is not None:
            text = (HERE / peer.template).read_text()
            for name, value in {"listen": self.port, "upstream": upstream, "folder": folder}.items():
                text = text.replace(f"{{{name}}}", str(value))
            (folder / peer.template).write_text(text)
        environment = {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
        with self._said.open("wb") as said:
            self.process = subprocess.Popen(
                peer.command(folder, self.port, upstream),
                cwd=HERE.parent.parent,
                env={name: value for name, value in environment.items() if not name.startswith("PROXY_")},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
            )

    async def ready(self) -> None:
        """Wait until it takes connections. RuntimeError, with what it said, when it won't."""
        for _ in range(200):
            if self.process.poll() is not None:
                break
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            return
        raise RuntimeError(f"{self.peer.name} doesn't start: {self._said.read_text(errors='replace')[-2000:]}")

    def complains(self) -> tuple[bool, bool]:
        """Return whether it broke, and whether it showed a traceback, since the last time it was asked."""
        with self._said.open(errors="replace") as said:
            said.seek(self._read)
            text = said.read()
            self._read = said.tell()
        return self.process.poll() is not None or _BROKEN.search(text) is not None, _TRACEBACK in text

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
