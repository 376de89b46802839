"""The diagnostics log: what the program reports about itself, to standard error or to `diagnostics.log`.

Each line is one event: its time, level and name, and fields. In the file it is JSON, on standard error `name=value`.
Values are escaped, so none can forge a line, and cut. Exceptions are reported by type and place only, because their
texts, like those of other libraries' log records, may quote a client.

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
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from proxy.logs.logfile import KEPT, MAX_SIZE, Backlog, LogFile, json_line
from proxy.logs.stdio import Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import EventDict, ExcInfo, FilteringBoundLogger, Processor

# `import structlog` loads its renderer for development, and with it rich: 97 ms of every start instead of 53 on
# Python 3.11. It has no switch for this. None instead of rich makes it take rich for not installed.
_modules: dict[str, Any] = sys.modules
_rich = _modules.setdefault("rich", None)
import structlog  # noqa: E402

if _rich is None:
    del _modules["rich"]

TEXT_LIMIT = 1024
"""Characters of a value that go into a line."""

_STANDARD_ERROR = 2


class DiagnosticsLog(Backlog):
    """Writes the lines. Never raises once open, and never waits: what can't be written waits in memory."""

    def __init__(
        self,
        path: str | None,
        *,
        max_size: int = MAX_SIZE,
        kept: int = KEPT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Write JSON to the file `path`, or text to standard error for None."""
        self._stderr: DiagnosticsLog | None = None
        self.renderer = _as_text if path is None else _AS_JSON
        if path is None:
            super().__init__(Stream(_STANDARD_ERROR), _gap_in(self.renderer), _nowhere, clock)
        else:
            self._stderr = DiagnosticsLog(None, clock=clock)  # for trouble with the file: the only other place
            tell = configure(self._stderr, "info").warning
            file = LogFile(path, tell, max_size=max_size, kept=kept)
            super().__init__(file, _gap_in(self.renderer), tell, clock)

    def __repr__(self) -> str:
        """Show where it writes and what waits."""
        return f"<DiagnosticsLog {self._sink if self._stderr else 'stderr'} {super().__repr__()}>"

    def open(self) -> None:
        """Make a file ready, as `Backlog` does; nobody needs standard error."""
        if self._stderr is not None:
            super().open()

    write = Backlog.add  # as structlog calls it, with one complete line

    def tick(self) -> None:
        """Try again to write what waits, on standard error too. Call it once a second."""
        super().tick()
        if self._stderr is not None:
            self._stderr.tick()


def configure(out: DiagnosticsLog, level: str) -> FilteringBoundLogger:
    """Return a logger that writes events of `level` (`debug`, `info`, `warning`, `error`) and above to `out`.

    Nothing is global: another level means another logger. Its methods don't raise, whatever the fields are.
    """
    return _logger(structlog.BytesLogger(cast("BinaryIO", out)), out.renderer, level)


def _logger(target: object, renderer: Processor, level: str = "info") -> FilteringBoundLogger:
    """Return a logger that hands finished lines to `target`."""
    logger = structlog.wrap_logger(
        target,
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", key="time"),
            structlog.processors.ExceptionRenderer(_type_and_place),
            _plain,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        context_class=dict,
    )
    return cast("FilteringBoundLogger", logger.bind())


def _type_and_place(exc_info: ExcInfo) -> dict[str, str]:
    """Return the type of an exception and the line that raised it."""
    kind, _, trace = exc_info
    raised = {"exception": kind.__name__}
    for frame in traceback.extract_tb(trace)[-1:]:
        raised["at"] = f"{frame.filename}:{frame.lineno} {frame.name}"
    return raised


def _plain(_logger: object, _level: str, fields: EventDict) -> EventDict:
    """Return time, level, event and all other fields:

    numbers, booleans and None as they are, everything else as text.
    """
    first = {name: fields.pop(name) for name in ("time", "level", "event")}
    raised = fields.pop("exception", {})
    return {str(name): _value(value) for name, value in {**first, **fields, **raised}.items()}


def _value(value: object) -> object:
    """Return a value for a line, cutting a text; a value without a text is no reason to fail."""
    if value is None or type(value) in {bool, int, float}:
        return value
    try:
        return str(value)[:TEXT_LIMIT]
    except Exception as error:  # from its own __str__
        return f"unwritable: {type(error).__name__}"


_BARE = re.compile(r"[!#-<>-\[\]-~]+")  # printable ASCII without space, `"`, `=` and `\`


def _as_text(_logger: object, _level: str, fields: EventDict) -> bytes:
    """Return one readable line: time, level, event, `name=value` fields, quoted as JSON where necessary.

    structlog's own text renderers leave control characters as they are.
    """
    words = [str(fields.pop("time")), f"{fields.pop('level'):<7}", _word(fields.pop("event"))]
    return " ".join([*words, *(f"{_word(name)}={_word(value)}" for name, value in fields.items())]).encode()


def _word(value: object) -> str:
    text = str(value)
    return text if _BARE.fullmatch(text) else json.dumps(text).replace("\x7f", "\\u007f")


_AS_JSON = structlog.processors.JSONRenderer(lambda record, **_: json_line(record).rstrip())


def _gap_in(renderer: Processor) -> Callable[[int], bytes]:
    """Return a function that makes the line for missing lines."""
    log = _logger(structlog.testing.ReturnLogger(), renderer)
    return lambda lost: cast("bytes", log.warning("diagnostics_gap", lines=lost)) + b"\n"


def _nowhere(event: str, **fields: object) -> None:
    """Drop trouble with standard error itself, because there is nowhere left to report it."""


class LibraryHandler(logging.Handler):
    """Brings the messages of aiohttp and asyncio into this log, without what they quote.

    It keeps only the first line of a record's unfilled template, and the exception's type and place: aiohttp fills in
    the client's bytes, and asyncio appends the repr of whatever failed.
    """

    def __init__(self, log: FilteringBoundLogger) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record of another library as an event named `library`."""
        say = self._log.error if record.levelno >= logging.ERROR else self._log.warning
        template = str(record.msg).partition("\n")[0]
        say("library", logger=record.name, message=template, exc_info=record.exc_info)
