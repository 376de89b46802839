"""Network namespaces: connections that are made inside one, and a network of one's own. Linux only, mostly as root."""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import shutil
import socket
import subprocess
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.support.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

IP = shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
_CLONE_NEWNET = 0x40000000


def ip(*words: str) -> None:
    """Run `ip`. OSError when it fails."""
    assert IP is not None
    done = subprocess.run([IP, *words], capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def _enter(entrance: str) -> None:
    """Move this thread to the namespace that the file `entrance` stands for."""
    with open(entrance) as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), entrance)


def connect(entrance: str, address: str, port: int, timeout: float = 5.0) -> socket.socket:
    """Return a connection that is made in a namespace. A socket stays in its namespace, whatever process uses it."""
    made: list[socket.socket] = []

    def make() -> None:  # in a thread of its own, which alone moves, and then ends
        _enter(entrance)
        made.append(socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    (sock,) = made
    sock.settimeout(timeout)
    try:
        sock.connect((address, port))
    except OSError:
        sock.close()
        raise
    return sock


def request(
    entrance: str, method: str, address: str, port: int, path: str, content: object = None, **fields: str
) -> http.client.HTTPResponse:
    """Return the answer to a request that is made in a namespace; read and close it."""
    asking = http.client.HTTPConnection(address, port)
    asking.sock = connect(entrance, address, port, PATIENCE)
    asking.auto_open = 0
    body = None if content is None else json.dumps(content)
    asking.request(method, path, body, {"Content-Type": "application/json", "Connection": "close"} | fields)
    answer = asking.getresponse()
    asking.close()
    return answer


@contextmanager
def own_network(*addresses: str) -> Iterator[None]:
    """Move this thread, and what it starts, to a network of its own whose loopback has `addresses`.

    OSError where that isn't possible: it needs Linux, its `ip`, and root. Nothing outlives this process.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if IP is None or not hasattr(libc, "setns"):
        raise OSError("needs Linux and its `ip`")
    with open("/proc/self/ns/net") as before:
        if libc.unshare(_CLONE_NEWNET):
            raise OSError(f"needs root: {os.strerror(ctypes.get_errno())}")
        try:
            ip("link", "set", "lo", "up")
            for address in addresses:
                ip("addr", "add", f"{address}/32", "dev", "lo")
            yield
        finally:
            assert libc.setns(before.fileno(), _CLONE_NEWNET) == 0
