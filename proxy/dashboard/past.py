"""Answer the page's questions about the past. A thread of its own reads the index."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from proxy import PROGRAM
from proxy.dashboard.filters import filter_of, period_of
from proxy.dashboard.history import history
from proxy.dashboard.index.database import is_broken
from proxy.dashboard.index.reader import Reader
from proxy.dashboard.keeper import NO_LOG, Keeper, Progress
from proxy.dashboard.log_lines import Cursor, limit_of, lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

T = TypeVar("T")


class UnreadableError(Exception):
    """The index can't be read; the text says why, `hint` is a command that helps."""

    hint = f"{PROGRAM} dashboard"

    def __init__(self, error: Exception) -> None:
        super().__init__(f"the index of the access log can't be read: {error}")


class Past:
    """The history of a log. `log` is None if no log is kept."""

    def __init__(self, log: str | None, clock: Callable[[], float] = time.time) -> None:
        self.log = log
        self.keeper = None if log is None else Keeper(log)
        self._clock = clock
        self._reader: Reader | None = None
        self._thread = ThreadPoolExecutor(1, "index")

    async def start(self) -> None:
        """Begin to build or update the index."""
        if self.keeper is not None:
            await self.keeper.start()

    async def stop(self) -> None:
        """End that, and close the index."""
        if self.keeper is not None:
            await self.keeper.stop()
        self._thread.shutdown()
        self._close()

    def _close(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            with suppress(sqlite3.Error):
                reader.close()

    def progress(self) -> Progress:
        """Return how far the index is."""
        return NO_LOG if self.keeper is None else self.keeper.progress

    def index(self) -> dict[str, Any]:
        """Return it in the form of the page."""
        return self.progress().shown(self.log)

    async def history(self, query: Mapping[str, str]) -> dict[str, Any]:
        """Return totals, bars, distributions and tables. Raises AskedWronglyError or UnreadableError."""
        period, wanted = period_of(query.get("period", "day"), self._clock()), filter_of(query)
        if not await self._is_ready():
            return {"index": self.index()}
        found = await self._asked(lambda reader: history(reader, period, wanted))
        return {"index": self.index(), **found}

    async def lines(self, query: Mapping[str, str]) -> dict[str, Any]:
        """Return lines of the log. Raises AskedWronglyError or UnreadableError."""
        period, wanted = period_of(query.get("period", "day"), self._clock()), filter_of(query)
        before, limit = Cursor.read(query.get("before")), limit_of(query.get("limit"))
        log = self.log
        if log is None or not await self._is_ready():
            return {"lines": [], "next": None}
        return await self._asked(lambda reader: lines(reader, log, period, wanted, before, limit))

    async def _is_ready(self) -> bool:
        return self.keeper is not None and (await self.keeper.catch_up()).state == "ready"

    async def _asked(self, ask: Callable[[Reader], T]) -> T:
        """Read the index in one state."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._ask, ask)
        except UnreadableError as error:
            if self.keeper is not None and isinstance(error.__cause__, sqlite3.Error) and is_broken(error.__cause__):
                self.keeper.again()
            raise

    def _ask(self, ask: Callable[[Reader], T]) -> T:
        try:
            with self._moment() as reader:
                return ask(reader)
        except (sqlite3.Error, OSError) as error:
            self._close()
            raise UnreadableError(error) from error

    @contextmanager
    def _moment(self) -> Iterator[Reader]:
        if self._reader is None:
            self._reader = Reader(self.log or "")
        self._reader.begin()
        try:
            yield self._reader
        finally:
            self._reader.end()
