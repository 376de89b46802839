"""A LocalAPI in trouble: the machine's real tailscaled answers, but what becomes of each question is the test's."""

from __future__ import annotations

import http.client
import socket
import socketserver
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote, urlsplit

from tests.support.patience import PATIENCE
from tests.tailnet.machines import MOVED, SOCKET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.tailnet.machines import Machine


def straight(address: str) -> str:
    """Ask about the address itself."""
    return address


class Between:
    """What stands at the socket's usual place. `way` is what becomes of questions to whois; all others pass."""

    def __init__(self, real: str) -> None:
        self.real = real
        self.way: Callable[[str], str | None] = straight
        self.asked: list[str] = []  # addresses, in the order of the questions


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        between: Between = self.server.between  # type: ignore[attr-defined]
        path = self.path
        if (asked := parse_qs(urlsplit(path).query).get("addr")) and "/whois?" in path:
            host, _, port = asked[0].rpartition(":")
            between.asked.append(host)
            instead = between.way(host)
            if instead is None:
                return
            path = f"/localapi/v0/whois?addr={quote(f'{instead}:{port}', safe='')}"
        asking = http.client.HTTPConnection("local-tailscaled.sock")
        asking.sock = socket.socket(socket.AF_UNIX)
        asking.sock.settimeout(PATIENCE)
        asking.sock.connect(between.real)
        asking.request("GET", path)
        answer = asking.getresponse()
        content = answer.read()
        asking.close()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name not in {"Date", "Transfer-Encoding", "Content-Length"}:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing: whoever asked has gone, because the answer took too long."""


@contextmanager
def between(machine: Machine) -> Iterator[Between]:
    """Stand between a machine's tailscaled and those who ask it; afterwards its socket is in its place again."""
    machine.must("mv", SOCKET, MOVED)
    with _Server(machine.socket, _Handler) as server:
        server.between = Between(machine.socket.replace(SOCKET, MOVED))  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.between  # type: ignore[attr-defined]
        finally:
            server.shutdown()
            thread.join()
            machine.must("mv", MOVED, SOCKET)
