"""The rules that `tests/support/mac/darwin_kernel.py` plays are the ones that it names: other tests stand on them."""

from __future__ import annotations

import errno
import socket
import struct
import sys
from typing import TYPE_CHECKING

import pytest

from proxy.event_loop.sockets import IDLE_OPTION, keep_alive
from proxy.serving.binding import BACKLOG, CannotBindError, bind
from tests.support.mac import darwin_kernel as rules
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.mac.darwin_kernel import Darwin

ONE, TWO, ALL = "127.0.0.1", "127.0.0.2", "0.0.0.0"


@pytest.fixture
def pair(darwin: Darwin) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Give an accepted socket and its client, the former of a socket that listens as ours do."""
    with bind(ONE, 0) as listening:
        listening.setblocking(True)
        with socket.create_connection(listening.getsockname()) as client:
            accepted = listening.accept()[0]
            with accepted:
                yield accepted, client


def test_idle_time_is_not_inherited(pair: tuple[socket.socket, socket.socket]) -> None:
    """An accepted socket has the keepalive of the listening one, but for the idle time: it has two hours."""
    accepted, _ = pair
    assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert accepted.getsockopt(socket.IPPROTO_TCP, IDLE_OPTION) == rules.IDLE
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 10
    accepted.setsockopt(socket.IPPROTO_TCP, IDLE_OPTION, 30)
    assert accepted.getsockopt(socket.IPPROTO_TCP, IDLE_OPTION) == 30


def test_listening_socket_says_what_it_was_given(darwin: Darwin) -> None:
    """A socket that isn't connected reports the idle time that it was given, which proves nothing of others."""
    with socket.socket() as sock:
        keep_alive(sock)
        assert sock.getsockopt(socket.IPPROTO_TCP, IDLE_OPTION) == 30


def test_dead_socket(pair: tuple[socket.socket, socket.socket], darwin: Darwin) -> None:
    """After a reset by the peer options and the peer's name are EINVAL; before it they aren't."""
    accepted, client = pair
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert accepted.getpeername() == client.getsockname()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    for call in (
        lambda: accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)),
        accepted.getpeername,
    ):
        with pytest.raises(OSError, match="Invalid argument") as caught:
            call()
        assert caught.value.errno == errno.EINVAL


@pytest.mark.skipif(sys.platform == "darwin", reason="another user's socket can't be played to a real kernel")
@pytest.mark.parametrize(
    ("there", "new", "other_user", "bound"),
    [
        pytest.param(ONE, ONE, False, False, id="same_address"),
        pytest.param(ONE, TWO, False, True, id="other_address"),
        pytest.param(ALL, ONE, False, True, id="wildcard_of_ours"),
        pytest.param(ONE, ALL, False, True, id="beside_a_wildcard"),
        pytest.param(ALL, ONE, True, False, id="wildcard_of_another_user"),
        pytest.param(ONE, TWO, True, True, id="other_address_of_another_user"),
    ],
)
def test_what_is_in_the_way(darwin: Darwin, there: str, new: str, other_user: bool, bound: bool) -> None:
    """With SO_REUSEADDR only the same address is in the way, or a wildcard of another user."""
    port = free_port()  # free on every address, which is more than port 0 promises
    with bind(there, port) as first:
        if other_user:
            darwin.of_another_user(first)
        if bound:
            bind(new, port).close()
        else:
            with pytest.raises(CannotBindError, match="in use"):
                bind(new, port)


def test_backlog(darwin: Darwin) -> None:
    """However long a queue is asked for, 128 connections wait in it."""
    bind(ONE, 0).close()
    assert BACKLOG > rules.BACKLOG
    assert darwin.backlogs == [rules.BACKLOG]


def test_clocks(darwin: Darwin) -> None:
    """While the machine sleeps `monotonic` stands still, and goes on from there; the wall clock has moved."""
    before = darwin.monotonic()
    with darwin.asleep():
        asleep = darwin.monotonic()
        assert darwin.monotonic() == asleep >= before
    assert darwin.monotonic() >= asleep
    wall = darwin.time()
    darwin.sleep(3600)
    assert darwin.time() >= wall + 3600
    assert darwin.monotonic() < before + 1800
