"""What a socket says and takes beyond asyncio's own calls. On a dead socket none of it raises."""

from __future__ import annotations

import select
import socket
import struct
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

# A closed laptop lid sends no FIN. Seconds of idleness before the first probe, between two, and how many may fail.
KEEPALIVE = (30, 10, 3)
# The option that holds the idle time. macOS calls it TCP_KEEPALIVE, and older Pythons have no name for it there.
IDLE_OPTION: int = getattr(socket, "TCP_KEEPIDLE", 0x10)
# Whether an accepted socket has the idle time of the listening one. On macOS it has the system's two hours instead,
# although it inherits the other two values.
IDLE_INHERITED = sys.platform != "darwin"


def keep_alive(sock: socket.socket) -> None:
    """Have the clients of a listening socket probed when they are silent."""
    idle, interval, count = KEEPALIVE
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, IDLE_OPTION, idle)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, count)


def accepted(transport: asyncio.BaseTransport) -> None:
    """Set on a new connection what it should have inherited from the listening socket."""
    if not IDLE_INHERITED:
        with suppress(OSError):  # a client that has reset the connection by now
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, IDLE_OPTION, KEEPALIVE[0])


def address(transport: asyncio.BaseTransport, end: str) -> tuple[str, int] | None:
    """Return the address at an `end`, "peername" or "sockname"; None when the connection is over already.

    Linux then says ENOTCONN, which uvloop reads as None, and macOS EINVAL, which it raises.
    """
    try:
        found = transport.get_extra_info(end)
    except OSError:
        return None
    return None if found is None else (found[0], found[1])


def watch(transport: asyncio.Transport) -> select.poll:
    """Return an object whose `poll(0)` reports whether bytes, or the end of the connection, wait to be read.

    Made once for a connection: making one for each request costs as much again as the question.
    """
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return poll


def was_reset(transport: asyncio.Transport) -> bool:
    """Return whether the peer has reset the connection, which stays unnoticed while it isn't read."""
    try:
        error: int = transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    except OSError:  # macOS takes no question about a socket that is shut both ways
        return True
    return error != 0


def reset(transport: asyncio.Transport) -> None:
    """End the connection so that the peer sees a reset, not an end. Bytes that are still unsent are lost."""
    on, at_once = 1, 0
    try:
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", on, at_once))
    except OSError:
        pass  # the peer was faster: on macOS a socket that it has reset takes no options
    finally:
        transport.abort()
