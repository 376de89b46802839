"""The three streams that a process is given: kept in their places, and written without waiting."""

from __future__ import annotations

import errno
import fcntl
import os
import select


def hold_standard_streams() -> None:
    """Occupy those of the descriptors 0 to 2 that whoever started us had closed.

    The next file or socket would be given their numbers, and what is said on standard error would end up in it: in a
    client's connection, or in the event loop's own descriptors, which it aborts over. Opened for reading, they refuse
    to be written as if they were closed; as coreutils do it.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # takes the lowest free number, which is this one


class Stream:
    """Standard output (1) or error (2), written only when it takes something at once.

    It may be a pipe whose reader has stopped, and a blocking write would stop every exchange with it. O_NONBLOCK is
    no way out: the flag belongs to the open file, which the user's shell shares. Instead no more is written than
    POSIX lets select() promise, PIPE_BUF octets; on a terminal stopped with Ctrl-S it promises none.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def append(self, lines: bytes | bytearray) -> int:
        """Write up to PIPE_BUF octets of `lines`; BlockingIOError when there is no room for them (see `Sink`)."""
        if not select.select((), (self._fd,), (), 0)[1]:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return os.write(self._fd, lines[: select.PIPE_BUF])

    def __repr__(self) -> str:
        """Tell which."""
        return f"<Stream {self._fd}>"

    def open(self) -> None:
        """Make sure that there is such a stream: whoever started us may have closed it (see above)."""
        if fcntl.fcntl(self._fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "cannot write to a standard stream that is closed")

    def reopen(self) -> bytes:
        """Do nothing: a standard stream has no name to follow."""
        return b""

    def renew(self) -> bytes:
        """Do nothing: a standard stream can't be removed."""
        return b""

    def close(self) -> None:
        """Do nothing: the process keeps its standard streams."""
