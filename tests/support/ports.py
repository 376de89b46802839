"""Ports that nobody listens on, for programs that can't be given one that is bound already."""

from __future__ import annotations

import itertools
import os
import socket

_FIRST, _COUNT = 20_000, 10_000
"""Below all that systems hand out by themselves, so that no socket of another test is given one of these."""

_numbers = itertools.count(os.getpid() * 7919)  # another begin in each worker


def free_port() -> int:
    """Return a port that nobody listens on, another one each time. A server in this process binds port 0 instead."""
    for _ in range(_COUNT):
        port = _FIRST + next(_numbers) % _COUNT
        with socket.socket() as sock:
            try:
                sock.bind(("", port))
            except OSError:
                continue
        return port
    raise AssertionError("there is no free port")


def free_ports(count: int) -> list[int]:
    """Return several."""
    return [free_port() for _ in range(count)]
