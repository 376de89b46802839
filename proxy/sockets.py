"""What a client's socket tells and takes beyond what asyncio has a call for."""

from __future__ import annotations

import select
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


def watch(transport: asyncio.Transport) -> select.poll:
    """Return what says, by `poll(0)`, whether octets, or the end of the connection, wait to be read.

    Made once for a connection: to make one for each request costs as much again as to ask it.
    """
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return poll


def was_reset(transport: asyncio.Transport) -> bool:
    """Say whether the peer has reset the connection, which nobody is told while it isn't read."""
    error: int = transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return error != 0


def reset(transport: asyncio.Transport) -> None:
    """End the connection so that the peer sees a reset, not an end; what is still to be sent is lost."""
    on, at_once = 1, 0
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", on, at_once))
    transport.abort()
