"""What the kernel says of sockets. Linux only."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct
import sys
import termios
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_LISTEN = "0A"


def listened(process: int | str = "self") -> set[tuple[str, int]]:
    """Return every (address, port) with a TCP listener, wildcards too, in the network of `process`."""
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state = line.split()[:4]
            address, port = local.split(":")
            if state == _LISTEN:  # words of 32 bits, each in the machine's own order
                words = struct.unpack(f"!{len(address) // 8}I", bytes.fromhex(address))
                octets = struct.pack(f"={len(words)}I", *words)
                found.add((socket.inet_ntop(family, octets), int(port, 16)))
    return found


def accepted_from(address: tuple[str, int]) -> socket.socket:
    """Return a copy of the one socket of this process whose peer is at `address`."""
    found, seen = [], set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            status = entry.stat()
            if not stat.S_ISSOCK(status.st_mode) or status.st_ino in seen:  # a copy that was just made is met again
                continue
            seen.add(status.st_ino)
            copy = socket.socket(fileno=os.dup(int(entry.name)))
            try:
                matches = copy.type == socket.SOCK_STREAM and copy.getpeername() == address
            except OSError:
                matches = False
            if matches:
                found.append(copy)
            else:
                copy.close()
    (one,) = found
    return one


def unread(sock: socket.socket) -> int:
    """Return how many bytes have come on a socket that its owner hasn't read yet."""
    return int.from_bytes(fcntl.ioctl(sock, termios.FIONREAD, bytes(4)), sys.byteorder)


class Queues(NamedTuple):
    """How many bytes the kernel holds of some connections."""

    unsent: int
    unread: int


def queues(*, local: int | None = None, remote: int | None = None) -> Queues:
    """Return what the kernel holds of all connections over IPv4 with these ports, closed ones too."""
    found = [0, 0]
    for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]:
        _, *ends, state, held = line.split()[:5]
        ports = [int(end.rpartition(":")[2], 16) for end in ends]
        if state != _LISTEN and all(port in (None, its) for port, its in zip((local, remote), ports, strict=True)):
            found = [count + int(more, 16) for count, more in zip(found, held.split(":"), strict=True)]
    return Queues(*found)


def unsent(port: int) -> int:
    """Return how many bytes the kernel still holds to be sent from `port`, closed connections' too."""
    return queues(local=port).unsent


def unaccepted(port: int) -> int:
    """Return how many connections to `port`, on any IPv4 address, wait to be accepted."""
    waiting = 0
    with Path("/proc/self/net/tcp").open() as table:
        next(table)
        for line in table:
            _, local, _, state, queues = line.split()[:5]
            if state != _LISTEN:  # those that listen come first
                break
            if int(local.partition(":")[2], 16) == port:
                waiting += int(queues.partition(":")[2], 16)
    return waiting
