"""The one place where commands write their output. It reports a failed write once, at the end, and never raises one.

So a command that changes the machine finishes its work even if nobody can read about it any more, and Python has
nothing left to flush when it exits. `verify --client-script` prints this module too, so it needs only Python 3.9, on
any system.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable

_UNWRITTEN = 1
"""The exit code of a command whose output couldn't be written, whatever else it found."""

_CLOSED_PIPE = (errno.EPIPE, errno.ESHUTDOWN)
_HINTS = {
    errno.ENOSPC: "df -h (that disk is full)",
    errno.EDQUOT: "quota (the disk quota is used up)",
    errno.EBADF: "add `> FILE`",
}
_OTHER_HINT = "add `> FILE`, with a file on another disk"


class _Kept(io.RawIOBase):
    """The bytes of a stream. Keeps its first failed write in `failure`, and drops everything after it."""

    def __init__(self, below: Any) -> None:
        self._below = below
        self.failure: OSError | None = None

    def writable(self) -> bool:
        """Return True, because a stream that can't be written reports that when it is written."""
        return True

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return self._below is not None and bool(self._below.isatty())

    def fileno(self) -> int:
        """Return the descriptor; raise OSError if there is none."""
        if self._below is None:
            raise io.UnsupportedOperation("fileno")
        return int(self._below.fileno())

    def write(self, octets: Any) -> int:
        """Write all of `octets`, or keep the reason for the failure."""
        try:
            self._write(memoryview(octets))
        except OSError as error:
            self.failure = self.failure or error
        return len(octets)

    def _write(self, left: memoryview) -> None:
        if self._below is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        while left and self.failure is None:
            written = self._below.write(left)
            if written is None:  # someone made the descriptor non-blocking
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            left = left[written:]
        self._below.flush()


class Output(io.TextIOWrapper):
    """A standard stream that keeps a failed write for the end."""

    def __init__(self, kept: _Kept, like: Any) -> None:
        """Write to `kept`, in the encoding and with the buffering of `like`; None means that the stream was closed."""
        through = bool(getattr(like, "write_through", False))
        super().__init__(
            kept if through else io.BufferedWriter(kept),  # type: ignore[arg-type]  # like CPython itself with -u
            encoding=getattr(like, "encoding", None) or "utf-8",
            errors="backslashreplace",  # not every encoding has every character
            line_buffering=bool(getattr(like, "line_buffering", False)),
            write_through=through,
        )
        self._kept = kept

    @property
    def failure(self) -> OSError | None:
        """The first write that failed."""
        return self._kept.failure


def guarded(stream: TextIO | None) -> TextIO:
    """Return `stream` as an `Output`, unless it is one already or isn't a file, such as a test's text in memory."""
    if isinstance(stream, Output) or (stream is not None and not hasattr(stream, "buffer")):
        return stream
    if stream is None:
        return Output(_Kept(None), None)
    stream.flush()
    return Output(_Kept(getattr(stream.buffer, "raw", stream.buffer)), stream)


def unwritable() -> bool:
    """Return whether standard output can't be written any more, so that a command that only prints can end."""
    return isinstance(sys.stdout, Output) and sys.stdout.failure is not None


def complain_plainly(error: str, hint: str) -> None:
    """Print an error and its hint on standard error."""
    print(f"error: {error}\nhint: {hint}", file=sys.stderr)


def written(command: Callable[[], int], complain: Callable[[str, str], None] = complain_plainly) -> int:
    """Run a command with both streams guarded; return its exit code, or _UNWRITTEN if its output couldn't be written.

    A closed pipe, as with `| head`, isn't a failure. The reader has what it wanted, and the exit code stays the
    command's.
    """
    with redirect_stdout(guarded(sys.stdout)) as out, redirect_stderr(guarded(sys.stderr)) as err:
        try:
            try:
                code = command()
            except SystemExit as stopped:  # how argparse ends --help, --version and wrong usage
                if not isinstance(stopped.code, int):
                    raise
                code = stopped.code
            finally:
                out.flush()
            failure = out.failure if isinstance(out, Output) else None
            if failure is not None and failure.errno not in _CLOSED_PIPE:
                why = "it is closed" if failure.errno == errno.EBADF else failure.strerror or str(failure)
                hint = _HINTS.get(failure.errno or 0, _OTHER_HINT)
                complain(f"standard output can't be written: {why}", hint)
                code = _UNWRITTEN
        finally:
            err.flush()
    return code
