"""Append lines to a log that may refuse them for a while, without losing or splitting lines, and without waiting.

Both logs are written through this module: `LogFile` is a file that rotates itself by size, `stdio.Stream` is standard
output or error, and `Backlog` holds the lines that neither accepts at the moment. Everything runs on the event loop's
thread.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from contextlib import suppress
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from proxy.logs.stdio import Stream

# Bytes at which a file is rotated, and how many older files are kept: 96 MiB in all, about 200,000 access lines.
MAX_SIZE = 16 * 2**20
KEPT = 5

# Bytes of lines that wait in memory while a log can't be written: about 2,000 requests.
BACKLOG_LIMIT = 2**20

# Seconds between two diagnostics about a log that can't be written.
COMPLAINT_INTERVAL = 60.0


class Diagnose(Protocol):
    """Receives reports of trouble with a log; must not raise. A structlog method such as `log.warning` is one."""

    def __call__(self, event: str, **fields: object) -> object: ...


# Every access line carries a time; formatting it costs 1.5 µs, two look-ups 0.3 µs.
@lru_cache(maxsize=16)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


_MILLISECONDS = tuple(f".{n:03d}Z" for n in range(1000))


def utc(seconds: float) -> str:
    """Return a wall clock time, in seconds since 1970, as `2026-11-23T20:00:00.123Z` (RFC 3339)."""
    milliseconds = int(seconds * 1000 + 0.5)
    return _second(milliseconds // 1000) + _MILLISECONDS[milliseconds % 1000]


def json_line(record: Mapping[str, object]) -> bytes:
    r"""Return `record`, a flat one, as one line of JSON in printable ASCII, whatever text it contains.

    JSON itself escapes only U+0000 to U+001F. DEL, U+0080 to U+009F (which include the one-character CSI) and marks
    that change the writing direction would reach the terminal of someone who tails the log. A lone surrogate becomes
    `?`.
    """
    try:
        line = orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
        if not line.isascii():
            line = json.dumps(orjson.loads(line), separators=(",", ":")).encode() + b"\n"
    except TypeError:  # a lone surrogate, or an integer beyond 64 bits; the standard library is slow but accepts both
        text = json.dumps(record, ensure_ascii=False).encode("utf-8", "replace")
        line = json.dumps(json.loads(text), separators=(",", ":")).encode() + b"\n"
    return line.replace(b"\x7f", b"\\u007f")


def _open(path: str, flags: int = 0) -> int:
    """Open a regular file for appending; create it if necessary, and make it private (0600 whatever the umask).

    A symbolic link is refused. A rotation would move the link instead of the file, and in a folder that others can
    write to, a planted link would aim our lines and the chmod at any file of the owner's. O_NONBLOCK keeps a FIFO
    without a reader from blocking the start. O_RDWR allows reading the last byte.
    """
    flags |= os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        if os.path.islink(path):
            raise OSError(error.errno, "is a symbolic link; name the file that it points to") from error
        raise
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "is not a regular file")
        if stat.S_IMODE(mode) != 0o600:
            os.fchmod(fd, 0o600)
    except OSError:
        os.close(fd)
        raise
    return fd


class LogFile:
    """A file of lines, mode 0600: `path` is the newest, `path.1` the one before it, up to `path.<kept>`."""

    def __init__(self, path: str, diagnose: Diagnose, *, max_size: int = MAX_SIZE, kept: int = KEPT) -> None:
        self.path = path
        self._diagnose = diagnose
        self._max_size = max_size
        self._kept = kept
        self._limit = max_size  # bytes; beyond it the file is rotated
        self._size = 0  # bytes, by our own count
        self._torn = b""  # the written part of a line whose rest was not accepted
        self._fd = -1

    def __repr__(self) -> str:
        """Show the path and how full it is."""
        return f"<LogFile {self.path} {self._size}/{self._limit}>"

    def open(self) -> None:
        """Open the file, and create missing folders with mode 0700; OSError, with a text to show, if that fails."""
        try:
            self._make_folders()
            self._begin(_open(self.path))
        except OSError as error:
            raise OSError(error.errno, f"cannot write the log {self.path}: {error.strerror}") from error

    def _make_folders(self) -> None:
        folder = Path(self.path).parent
        for missing in reversed([each for each in (folder, *folder.parents) if not each.exists()]):
            missing.mkdir(0o700, exist_ok=True)

    def _begin(self, fd: int) -> None:
        """Use `fd`, a different file; if a crash left it in the middle of a line, that line is ended first."""
        size = os.fstat(fd).st_size
        try:
            if size and os.pread(fd, 1, size - 1) != b"\n":
                size += os.write(fd, b"\n")
        except OSError:
            os.close(fd)
            raise
        old, self._fd = self._fd, fd
        self._size, self._limit, self._torn = size, self._max_size, b""
        if old >= 0:
            # Closing reports delayed write errors on some file systems. The descriptor is gone anyway.
            with suppress(OSError):
                os.close(old)

    def append(self, lines: bytes | bytearray) -> int:
        """Write what fits of `lines` into this file, after a rotation if not one line fits; return how many bytes.

        `lines` are whole lines, or the rest of one and whole lines. Never waits. After an OSError nothing was written.
        """
        end = len(lines)
        if self._size + end > self._limit:
            end = self._make_room(lines)
            lines = lines[:end]
        written = os.write(self._fd, lines)
        self._size += written
        self._torn = b"" if written == end else (self._torn + lines[:written]).rpartition(b"\n")[2]
        return written

    def _make_room(self, lines: bytes | bytearray) -> int:
        """Return how many bytes of `lines` may go into the file now: whole lines, and at least one.

        A line is never split over two files, so a line that is longer than a file may be still goes into one file.
        """
        fitting = self._fitting(lines)
        if not fitting and self._size and not self._torn:
            self._rotate()
            fitting = self._fitting(lines)
        return fitting or lines.index(b"\n") + 1

    def _fitting(self, lines: bytes | bytearray) -> int:
        return lines.rfind(b"\n", 0, max(self._limit - self._size, 0)) + 1

    def _rotate(self) -> None:
        """Continue in a new file. If that fails, the old one grows, and the next try comes after `max_size` more.

        The new file is opened under another name first: without a free descriptor or inode, nothing has moved yet.
        """
        spare = f"{self.path}.new"
        try:
            fresh = _open(spare, os.O_TRUNC)
            try:
                self._shift()
                os.replace(spare, self.path)
            except OSError:
                os.close(fresh)
                raise
        except OSError as error:
            self._limit = self._size + self._max_size
            self._diagnose("log_not_rotated", path=self.path, error=error.strerror)
            return
        self._begin(fresh)
        self._remove_surplus()

    def _shift(self) -> None:
        """Rename `path` to `path.1`, that to `path.2`, and so on up to the first free number.

        It stops at the first free number, so that a rotation that fails half-way again and again pushes no file off
        the end. If `path` was moved by someone else, there is nothing to do.
        """
        names = [self.path, *(f"{self.path}.{number}" for number in range(1, self._kept + 1))]
        if os.path.lexists(self.path):
            free = next((n for n, name in enumerate(names) if not os.path.lexists(name)), self._kept)
            for number in range(free, 0, -1):
                os.replace(names[number - 1], names[number])

    def _remove_surplus(self) -> None:
        """Remove files that were kept when more of them were: they aren't the next older ones any more."""
        with suppress(OSError):  # mostly because there is none
            for number in count(self._kept + 1):
                os.unlink(f"{self.path}.{number}")

    def reopen(self) -> bytes:
        """Open `path` again, which may have been moved; return what has to be written again, of a torn line.

        After an OSError nothing has changed.
        """
        fd = _open(self.path)
        if os.path.sameopenfile(fd, self._fd):
            os.close(fd)
            return b""
        torn = self._torn
        self._begin(fd)
        return torn

    def renew(self) -> bytes:
        """Do the same if the file was removed, with its folder if necessary: what goes into it would be lost.

        A file that was only moved still belongs to someone, who sends SIGHUP when they are done with it.
        """
        if os.fstat(self._fd).st_nlink:
            return b""
        self._make_folders()
        return self.reopen()

    def close(self) -> None:
        """Close the file. It does no harm if the file is closed already."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Backlog:
    """Lines on their way to a sink, in order. If the sink refuses them, they wait; past 1 MiB they are counted.

    The first waiting bytes are the next to be written, so a line of which the sink accepted only half is finished
    before the next. `gap` makes the line that stands in for `n` missing lines.
    """

    def __init__(
        self,
        sink: LogFile | Stream,
        gap: Callable[[int], bytes],
        diagnose: Diagnose,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sink = sink
        self._gap = gap
        self._diagnose = diagnose
        self._clock = clock
        self._waiting = bytearray()
        self._lost = 0  # lines dropped since the last gap line
        self._refused = False  # the last flush left something
        self._complained = False  # a diagnostic reported it, and none has reported its end yet
        self._silent_until = 0.0

    def __repr__(self) -> str:
        """Show what waits and what is lost."""
        return f"<Backlog waiting={len(self._waiting)} lost={self._lost}>"

    def open(self) -> None:
        """Make the sink ready. OSError, with a text to show, when it can't be written."""
        self._sink.open()

    @property
    def waiting(self) -> int:
        """The bytes that are not written yet."""
        return len(self._waiting)

    def tick(self) -> None:
        """Try again to write what waits. Call it once a second."""
        if self._waiting:
            self.flush()

    def add(self, line: bytes) -> None:
        """Add a line, which `flush` writes. It is dropped and counted if the limit is reached."""
        if self._lost or len(self._waiting) + len(line) > BACKLOG_LIMIT:
            if not self._refused:  # only a busy turn: all streams were cut at a shutdown, for example
                self.flush()
            if self._lost or len(self._waiting) + len(line) > BACKLOG_LIMIT:
                self._lost += 1  # once a line is lost, so are the lines after it: the gap stays in one place
                return
        self._waiting += line

    def lose(self) -> None:
        """Put a gap line in place of a line that couldn't be made."""
        if self._lost:
            self._lost += 1
        else:
            self._waiting += self._gap(1)

    def flush(self) -> None:
        """Write what waits, as far as the sink accepts it. Never raises."""
        try:
            if self._waiting:  # a check costs 1 µs; once in a turn of the loop, however many lines it brought
                self._waiting[:0] = self._sink.renew()
            while self._waiting:
                written = self._sink.append(self._waiting)
                del self._waiting[:written]
                if self._lost:
                    self._waiting += self._gap(self._lost)
                    self._lost = 0
        except OSError as error:
            self._refused = True
            self._complain(error)
        else:
            self._refused = False
            if self._complained:
                self._complained = False
                self._diagnose("log_writable_again")

    def _complain(self, error: OSError) -> None:
        """Report once a minute that lines wait. A reader that is only slow is reported only if lines are lost."""
        now = self._clock()
        if now < self._silent_until or (isinstance(error, BlockingIOError) and not self._lost):
            return
        self._silent_until = now + COMPLAINT_INTERVAL
        self._complained = True
        self._diagnose("log_not_written", error=error.strerror, waiting_octets=self.waiting, lost_lines=self._lost)

    def reopen(self) -> None:
        """Write what waits, then follow a file that was moved. If that fails, the old file stays in use."""
        self.flush()
        try:
            self._waiting[:0] = self._sink.reopen()
        except OSError as error:
            self._diagnose("log_not_reopened", error=error.strerror)
        self.flush()

    def close(self) -> None:
        """Write what waits, report what is lost, and close the sink."""
        self.flush()
        if self._waiting or self._lost:
            self._diagnose("log_lines_lost", lines=self._waiting.count(b"\n") + self._lost)
        with suppress(OSError):
            self._sink.close()
