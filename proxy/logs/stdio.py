"""The three standard streams of the process: kept in their places, and written without waiting."""

from __future__ import annotations

import errno
import fcntl
import os
import select


def hold_standard_streams() -> None:
    """Occupy those descriptors from 0 to 2 that the parent process had closed.

    Otherwise the next file or socket would get their numbers, and output to standard error would end up in a client's
    connection, or in the event loop's own descriptors, which would make it abort. Opened for reading, they refuse to
    be written as if they were closed. coreutils does the same.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # gets the lowest free number, which is this one


class Stream:
    """Standard output (1) or error (2), written only if it accepts data at once.

    It may be a pipe whose reader has stopped, and a blocking write would stop every exchange. O_NONBLOCK doesn't help,
    because the flag belongs to the open file, which the user's shell shares. So it writes no more than POSIX lets
    select() promise, PIPE_BUF bytes. On a terminal stopped with Ctrl-S, select() promises none.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def append(self, lines: bytes | bytearray) -> int:
        """Write up to PIPE_BUF bytes of `lines`; raise BlockingIOError if there is no room for them."""
        if not select.select((), (self._fd,), (), 0)[1]:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return os.write(self._fd, lines[: select.PIPE_BUF])

    def __repr__(self) -> str:
        """Show which stream it is."""
        return f"<Stream {self._fd}>"

    def open(self) -> None:
        """Check that the stream exists, because the parent process may have closed it (see above)."""
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
