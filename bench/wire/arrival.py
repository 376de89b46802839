"""The time at which bytes arrive at a socket, by the kernel's clock, so that a client that reads late doesn't count.

Linux stamps each segment on arrival, and reports the stamp of the last one in a read (`tcp_recvmsg` in
net/ipv4/tcp.c). Other systems don't, so it is the time of the read there. The clock is that of `time.time_ns()`.
"""

from __future__ import annotations

import socket
import struct
import sys
from time import time_ns

_BYTES = 65536
_STAMPS = sys.platform == "linux"
_SO_TIMESTAMPNS = 35  # asm-generic/socket.h; Python has no name for it
_TIMESPEC = struct.Struct("@ll")


def stamp(sock: socket.socket) -> None:
    """Let the kernel record when bytes arrive, if it can.

    It begins some milliseconds after the first socket has asked for it, and reports the time of the read until then.
    """
    if _STAMPS:
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)


def arrived(sock: socket.socket) -> tuple[bytes, int]:
    """Return the bytes that have arrived, and when the last of them did, in nanoseconds. No bytes mean the end."""
    if not _STAMPS:
        return sock.recv(_BYTES), time_ns()
    data, ancillary, _, _ = sock.recvmsg(_BYTES, 64)
    for level, kind, value in ancillary:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
            seconds, nanoseconds = _TIMESPEC.unpack(value)
            return data, seconds * 1_000_000_000 + nanoseconds
    return data, time_ns()
