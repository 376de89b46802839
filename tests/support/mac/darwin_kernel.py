"""XNU's rules for sockets and clocks, on Linux, where the two differ.

`darwin` patches `socket.socket`, which uvloop's sockets go through as well, and the `monotonic` of our own modules:

    darwin.dead(sock)           whether XNU would take no option of it any more
    darwin.of_another_user(s)   `s` listens in the name of another user
    darwin.backlogs             what `listen` came to, one number for each call
    darwin.sleep(seconds)       the wall clock jumps, and `monotonic` doesn't
    darwin.asleep()             within it `monotonic` stands still, and the event loop's clock goes on

Each rule names the file of XNU, libuv or CPython that it was read in.
"""

from __future__ import annotations

import errno
import socket
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from time import time as _time
from typing import TYPE_CHECKING, Any

from proxy.event_loop import sockets

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

# public source: xnu `bsd/kern/uipc_socket2.c`, SOMAXCONN of `bsd/sys/socket.h` (sysctl kern.ipc.somaxconn)
BACKLOG = 128
# public source: xnu `bsd/netinet/tcp_timer.h`, TCPTV_KEEP_IDLE (sysctl net.inet.tcp.keepidle)
IDLE = 7200

_IDLE_OPTION = (socket.IPPROTO_TCP, sockets.IDLE_OPTION)
_CLOSED = 7  # the first byte of TCP_INFO: the connection is over in both directions
_WILDCARDS = {"0.0.0.0", "::"}

_CALLS = ("setsockopt", "getsockopt", "getpeername", "bind", "listen")
_real = {name: getattr(socket.socket, name) for name in _CALLS}


@dataclass
class Bound:
    """A socket that is bound, as `in_pcbbind` sees it."""

    sock: socket.socket
    address: str
    port: int
    reuse: bool
    other_user: bool = False


class Darwin:
    """The rules, while they hold. Made by the fixture `darwin`."""

    def __init__(self) -> None:
        self.backlogs: list[int] = []
        self._bound: list[Bound] = []
        self._idle: dict[int, int] = {}  # descriptor of a listening socket: the idle time that it says it has
        self._still: float | None = None  # what `monotonic` says while the machine sleeps
        self._slept = 0.0
        self._ahead = 0.0  # seconds by which sleeps have moved the wall clock

    # --- options ------------------------------------------------------------------------------------------------------

    def dead(self, sock: socket.socket) -> bool:
        """Return whether a connection that there was is over in both directions, as after a reset."""
        if sock.type != socket.SOCK_STREAM or sock.family not in (socket.AF_INET, socket.AF_INET6):
            return False
        state = _real["getsockopt"](sock, socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        return state == _CLOSED and sock.getsockname()[1] != 0

    def setsockopt(self, sock: socket.socket, level: int, option: int, *value: Any) -> None:
        """Refuse a dead socket, and keep the idle time of one that isn't connected from what it will accept.

        public source: xnu `bsd/kern/uipc_socket.c`, sosetoptlock: "the socket has been shutdown, no more sockopt's";
        `bsd/netinet/tcp_input.c`, "inherit states from the listener": t_keepinit, t_keepcnt and t_keepintvl, and no
        t_keepidle.
        """
        if self.dead(sock):
            raise OSError(errno.EINVAL, "Invalid argument")
        if (level, option) == _IDLE_OPTION and not _connected(sock):
            self._idle[sock.fileno()] = value[0]
            return
        _real["setsockopt"](sock, level, option, *value)

    def getsockopt(self, sock: socket.socket, level: int, option: int, *length: Any) -> Any:
        """Return the idle time that a listening socket was given; all else as it is."""
        if (level, option) == _IDLE_OPTION and not _connected(sock):
            return self._idle.get(sock.fileno(), IDLE)
        return _real["getsockopt"](sock, level, option, *length)

    def getpeername(self, sock: socket.socket) -> Any:
        """Refuse a dead socket. public source: xnu `bsd/kern/uipc_syscalls.c`, getpeername."""
        if self.dead(sock):
            raise OSError(errno.EINVAL, "Invalid argument")
        return _real["getpeername"](sock)

    # --- bind and listen ----------------------------------------------------------------------------------------------

    def bind(self, sock: socket.socket, place: Any) -> None:
        """Bind, unless another socket is in the way.

        public source: xnu `bsd/netinet/in_pcb.c`, in_pcbbind, and `bsd/netinet6/in6_pcb.c`: with SO_REUSEADDR only a
        socket with exactly this address collides (`wild` is 0), and a wildcard one if it is another user's.
        """
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            _real["bind"](sock, place)
            return
        new = Bound(sock, place[0], place[1], bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)))
        self._bound = [each for each in self._bound if each.sock.fileno() >= 0]
        if any(_collide(each, new) for each in self._bound):
            raise OSError(errno.EADDRINUSE, "Address already in use")
        _real["setsockopt"](sock, socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # else Linux compares wildcards too
        _real["bind"](sock, place)
        new.port = sock.getsockname()[1]
        self._bound.append(new)

    def of_another_user(self, sock: socket.socket) -> None:
        """Take `sock` for another user's."""
        for each in self._bound:
            each.other_user = each.other_user or each.sock is sock

    def listen(self, sock: socket.socket, backlog: int = BACKLOG) -> None:
        """Listen with the backlog that there is. public source: xnu `bsd/kern/uipc_socket.c`, solisten."""
        self.backlogs.append(min(backlog, BACKLOG))
        _real["listen"](sock, self.backlogs[-1])

    # --- clocks -------------------------------------------------------------------------------------------------------

    def monotonic(self) -> float:
        """Return seconds that the machine was awake.

        public source: CPython `Python/pytime.c`: mach_absolute_time, which stands still in sleep; libuv
        `src/unix/darwin.c`, uv__hrtime: mach_continuous_time, which goes on.
        """
        return (monotonic() if self._still is None else self._still) - self._slept

    def time(self) -> float:
        """Return what the wall clock says."""
        return _time() + self._ahead

    def sleep(self, seconds: float) -> None:
        """Let the machine sleep so long in no time: the wall clock jumps, `monotonic` doesn't."""
        self._ahead += seconds

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """Let the machine sleep: only the event loop's clock and the wall's go on."""
        self._still = monotonic()
        try:
            yield
        finally:
            self._slept += monotonic() - self._still
            self._still = None


def _connected(sock: socket.socket) -> bool:
    try:
        _real["getpeername"](sock)
    except OSError:
        return False
    return True


def _collide(there: Bound, new: Bound) -> bool:
    if there.port != new.port or there.sock.family != new.sock.family:
        return False
    if there.address == new.address:
        return True
    wildcard = not _WILDCARDS.isdisjoint((there.address, new.address))
    return wildcard and (there.other_user or not new.reuse)


def install(patch: pytest.MonkeyPatch) -> Darwin:
    """Let XNU's rules hold until `patch` is undone."""
    rules = Darwin()
    for name in ("listen",) if sys.platform == "darwin" else _real:  # on a Mac the kernel itself knows the rest
        method = getattr(rules, name)
        patch.setattr(socket.socket, name, lambda sock, *given, _method=method: _method(sock, *given))
    patch.setattr(sockets, "IDLE_INHERITED", False)
    for module in [module for name, module in sys.modules.items() if name.startswith("proxy.")]:
        if getattr(module, "monotonic", None) is monotonic:
            patch.setattr(module, "monotonic", rules.monotonic)
        if getattr(module, "time", None) is _time:
            patch.setattr(module, "time", rules.time)
    return rules
