"""What a socket reports and accepts beyond asyncio's own calls. None of it raises on a dead socket."""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import sys
import termios
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

# A closed laptop lid sends no FIN. Seconds of idleness before the first probe, seconds between two, and how many may
# fail.
KEEPALIVE = (30, 10, 3)
# The option for the idle time. macOS calls it TCP_KEEPALIVE, and older Pythons have no name for it there.
IDLE_OPTION: int = getattr(socket, "TCP_KEEPIDLE", 0x10)
# Bytes of send buffer of a client's socket. Linux would buffer 3-4 MB for a client that reads nothing, which is
# minutes of tokens before anyone notices.
SEND_BUFFER = 256 * 1024
# Bytes that may wait in a transport, to a client or to Ollama, before the other side is held back.
WRITE_BUFFER = 64 * 1024
# Whether an accepted socket has the idle time of the listening one. On macOS it has the system's two hours instead,
# although it inherits the other two values.
IDLE_INHERITED = sys.platform != "darwin"

# SO_NWRITE, macOS's option for the bytes in a send buffer (xnu, bsd/sys/socket.h). Elsewhere TIOCOUTQ has them.
IN_SEND_BUFFER: int | None = 0x1024 if sys.platform == "darwin" else None


def bound(address: str, port: int) -> socket.socket:
    """Return a socket to listen on, bound to this address alone: IPv6 without IPv4. OSError if that can't be."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        keep_alive(sock)
        sock.setblocking(False)
        sock.bind((address, port))
    except OSError:
        sock.close()
        raise
    return sock


def keep_alive(sock: socket.socket) -> None:
    """Let the kernel probe silent clients of a listening socket."""
    idle, interval, count = KEEPALIVE
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, IDLE_OPTION, idle)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, count)


def accepted(transport: asyncio.BaseTransport) -> None:
    """Set on a new connection what it should have inherited from the listening socket."""
    if not IDLE_INHERITED:
        with suppress(OSError):  # the client has already reset the connection
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, IDLE_OPTION, KEEPALIVE[0])


def address(transport: asyncio.BaseTransport, end: str) -> tuple[str, int] | None:
    """Return the address of an `end`, "peername" or "sockname"; None if the connection is over already.

    In that case Linux reports ENOTCONN, which uvloop reads as None, and macOS reports EINVAL, which uvloop raises.
    """
    try:
        found = transport.get_extra_info(end)
    except OSError:
        return None
    return None if found is None else (found[0], found[1])


def watch(transport: asyncio.Transport) -> select.poll:
    """Return an object whose `poll(0)` reports whether bytes, or the end of the connection, wait to be read.

    Make it once for a connection: making one for each request costs as much again as the poll.
    """
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return poll


def unacknowledged(transport: asyncio.BaseTransport) -> int:
    """Return how many bytes the kernel holds that the peer's machine hasn't acknowledged; 0 if it doesn't say."""
    try:
        sock = transport.get_extra_info("socket")
        if IN_SEND_BUFFER is not None:
            return int(sock.getsockopt(socket.SOL_SOCKET, IN_SEND_BUFFER))
        return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except (OSError, ValueError):  # it is closed
        return 0


def was_reset(transport: asyncio.Transport) -> bool:
    """Return whether the peer has reset the connection, which goes unnoticed while nothing reads it."""
    try:
        error: int = transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    except OSError:  # macOS refuses queries on a socket that is shut in both directions
        return True
    return error != 0


def reset(transport: asyncio.Transport) -> None:
    """End the connection so that the peer sees a reset, not an end. Unsent bytes are lost."""
    on, at_once = 1, 0
    try:
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", on, at_once))
    except OSError:
        pass  # the peer was faster: macOS sets no options on a socket that the peer has reset
    finally:
        transport.abort()
