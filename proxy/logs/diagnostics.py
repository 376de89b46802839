"""The other log: what the program itself has to say, to standard error in the foreground or to `diagnostics.log`.

One event a line: its time, level and name, and fields. In the file it is JSON, on standard error `name=value`. Values
are escaped, so none can forge a line, and cut. Exceptions are told by type and place only: their texts, as those of
other libraries' log records, may quote what a client sent.

    out = DiagnosticsLog(path)  # or None
    out.open()
    log = configure(out, "info")
    log.warning("upstream_unreachable", upstream="http://127.0.0.1:11434")
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any, cast

from proxy.logs.logfile import KEPT, MAX_SIZE, Backlog, LogFile, json_line, utc
from proxy.logs.stdio import Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import EventDict, FilteringBoundLogger, Processor

# structlog loads rich where it finds it, for a renderer that isn't used here: 70 ms of every start. None in its place
# makes that import fail, which structlog takes for "not installed".
_modules: dict[str, Any] = sys.modules
_rich = _modules.setdefault("rich", None)
import structlog  # noqa: E402

if _rich is None:
    del _modules["rich"]

TEXT_LIMIT = 1024
"""Characters of a value that go into a line."""

_STANDARD_ERROR = 2


class DiagnosticsLog:
    """Where the lines go. Never raises once open, and never waits: what can't be written waits in memory."""

    def __init__(
        self,
        path: str | None,
        *,
        max_size: int = MAX_SIZE,
        kept: int = KEPT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Write JSON to the file `path`, or text to standard error for None."""
        self._stderr = Backlog(Stream(_STANDARD_ERROR), lambda lost: _as_text(_gap(lost)), _nowhere, clock)
        self._file = None if path is None else LogFile(path, self._tell, max_size=max_size, kept=kept)
        self._lines = self._stderr
        if self._file is not None:
            self._lines = Backlog(self._file, lambda lost: json_line(_gap(lost)), self._tell, clock)
        self.render = _as_text if path is None else json_line

    def __repr__(self) -> str:
        """Tell where it writes and what waits."""
        return f"<DiagnosticsLog {self._file or 'stderr'} {self._lines}>"

    def _tell(self, event: str, **fields: object) -> None:
        """Tell of trouble with the file on standard error, the only other place."""
        self._stderr.add(_as_text({"time": utc(time.time()), "level": "warning", "event": event, **_plain(fields)}))
        self._stderr.flush()

    def open(self) -> None:
        """Make the log ready. OSError, with a text to show, when it can't be written."""
        if self._file is not None:
            self._file.open()

    def write(self, line: bytes) -> None:
        """Take one whole line and write it at once, or when the file can be written again."""
        self._lines.add(line)
        self._lines.flush()

    def tick(self) -> None:
        """Try again to write what waits; to be called once a second."""
        for lines in {self._lines, self._stderr}:
            if lines.waiting:
                lines.flush()

    def reopen(self) -> None:
        """Follow a file that was moved away or removed, as SIGHUP asks."""
        self._lines.reopen()

    def close(self) -> None:
        """Write what is left and let go of the file."""
        self._lines.close()


def configure(out: DiagnosticsLog, level: str) -> FilteringBoundLogger:
    """Return a logger that writes events of `level` (`debug`, `info`, `warning`, `error`) and above to `out`.

    Nothing is global: a change of level is another logger. Its methods don't raise, whatever the fields are.
    """
    logger = structlog.wrap_logger(
        _Writer(out.write),
        processors=[_renderer(out)],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        context_class=dict,
    )
    return cast("FilteringBoundLogger", logger.bind())


class _Writer:
    """What structlog hands its rendered lines to: every level's method is `write`."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = write


def _renderer(out: DiagnosticsLog) -> Processor:
    """Return the one processor there is: an event's dictionary to its line."""

    def render(_logger: object, level: str, fields: EventDict) -> tuple[tuple[bytes], dict[str, object]]:
        record: dict[str, object] = {"time": utc(time.time()), "level": level}
        try:
            _name_exception(fields)
            record["event"] = str(fields.pop("event", ""))[:TEXT_LIMIT]
            line = out.render({**record, **_plain(fields)})
        except Exception as error:  # from a field's own __str__, say: a log line is no reason to fail
            line = out.render({"event": "", **record, "unwritable": type(error).__name__})
        return (line,), {}

    return render


def _plain(fields: EventDict | dict[str, object]) -> dict[str, object]:
    """Return `fields` with numbers, truth values and None as they are, and all else as a text that is cut."""
    return {
        str(name): value if value is None or type(value) in {bool, int, float} else str(value)[:TEXT_LIMIT]
        for name, value in fields.items()
    }


def _name_exception(fields: EventDict) -> None:
    """Replace `exc_info` by the exception's type and the place that raised it."""
    error = fields.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()
    if isinstance(error, tuple):
        error = error[1]
    if isinstance(error, BaseException):
        fields["exception"] = type(error).__name__
        for frame in traceback.extract_tb(error.__traceback__)[-1:]:
            fields["at"] = f"{frame.filename}:{frame.lineno} {frame.name}"


_BARE = re.compile(r"[!#-<>-\[\]-~]+")  # printable ASCII without space, `"`, `=` and `\`


def _as_text(record: dict[str, object]) -> bytes:
    """Return `record` as one line to read: time, level, event, `name=value` fields; quoted as JSON where need be."""
    words = [str(record.pop("time")), f"{record.pop('level'):<7}", _word(record.pop("event"))]
    words += [f"{_word(name)}={_word(value)}" for name, value in record.items()]
    return " ".join(words).encode() + b"\n"


def _word(value: object) -> str:
    text = str(value)
    return text if _BARE.fullmatch(text) else json.dumps(text).replace("\x7f", "\\u007f")


def _gap(lost: int) -> dict[str, object]:
    """Return the record that stands where `lost` lines are missing."""
    return {"time": utc(time.time()), "level": "warning", "event": "diagnostics_gap", "lines": lost}


def _nowhere(event: str, **fields: object) -> None:
    """Drop trouble with standard error itself: there is no place left to tell it."""


class LibraryHandler(logging.Handler):
    """Brings what aiohttp and asyncio say through `logging` into this log, without what they quote.

    Of a record only the first line of its unfilled template is kept, with the exception's type and place: aiohttp
    fills in offending octets, and asyncio appends the repr of whatever failed.
    """

    def __init__(self, log: FilteringBoundLogger) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record of another library as an event named `library`."""
        say = self._log.error if record.levelno >= logging.ERROR else self._log.warning
        template = str(record.msg).partition("\n")[0]
        say("library", logger=record.name, message=template, exc_info=record.exc_info)
