"""The process that keeps the index: `python -m proxy.dashboard.index.builder LOG`.

Each line on standard input asks it to bring the index up to date. It reports on standard output, one JSON object a
line, and ends when its standard input does. So it never outlives the dashboard.
"""

from __future__ import annotations

import json
import os
import select
import sqlite3
import sys
from contextlib import suppress
from typing import Any

from proxy import PROGRAM
from proxy.dashboard.index.database import is_broken, is_whole, opened, remove
from proxy.dashboard.index.log_files import log_files
from proxy.dashboard.index.writer import Writer
from proxy.manage.machine.log_index import index_path

AGAIN = b"again"
"""The line that asks to rebuild the index."""

_HINT = f"{PROGRAM} status"

NICE = 5
"""The process's niceness: the proxy and the models come first."""


class Builder:
    """Brings one index up to date, and reports how far it is."""

    def __init__(self, log: str, asked: int = 0, out: int = 1) -> None:
        self._log = log
        self._asked = asked
        self._out = out
        self._leaving = select.poll()  # shows when the dashboard has gone
        self._leaving.register(asked, select.POLLHUP)
        self._connection: sqlite3.Connection | None = None
        self._writer: Writer | None = None
        self._index = 0  # the inode of its file
        self._over = False

    def run(self) -> None:
        """Serve requests until standard input ends."""
        while not self._over and (asked := os.read(self._asked, 4096)):
            self.update(again=AGAIN in asked)
        self._close()

    def update(self, *, again: bool = False) -> None:
        """Bring the index up to date, and rebuild it if it is broken or if `again` asks for that."""
        try:
            if again:
                self._close()
                remove(self._log)
            try:
                self._update()
            except sqlite3.Error as error:
                if not is_broken(error):
                    raise
                self._close()
                remove(self._log)
                self._update()
        except (sqlite3.Error, OSError) as error:
            self._close()
            self._report("failed", problem=f"the index of {self._log} can't be written: {_words(error)}", hint=_HINT)

    def _update(self) -> None:
        with log_files(self._log) as files:
            there_is_a_log = bool(files)
        if not there_is_a_log:
            self._close()
            remove(self._log)
            self._report("none", problem=f"there is no {self._log} yet", hint=_HINT)
            return
        if self._connection is not None and (now := _inode(self._log)) != self._index:
            self._close()
            if not now:  # someone removed it; otherwise another dashboard made this one, which is as good
                remove(self._log)
        if self._writer is None or self._connection is None:
            self._connection = opened(self._log)
            if not is_whole(self._connection):
                self._close()
                remove(self._log)
                self._connection = opened(self._log)
            self._writer, self._index = Writer(self._connection, self._log), _inode(self._log)
        self._writer.update(self._progress)
        if self._over:
            return
        lines, done = self._connection.execute("SELECT total(lines), total(position) FROM files").fetchone()
        self._report("ready", lines=int(lines), done=int(done), total=int(done))

    def _progress(self, done: int, total: int) -> bool:
        self._report("building", done=done, total=total)
        self._over = any(event & select.POLLHUP for _, event in self._leaving.poll(0))
        return not self._over

    def _report(self, state: str, **more: Any) -> None:
        try:
            os.write(self._out, json.dumps({"state": state, **more}).encode() + b"\n")
        except BrokenPipeError:
            self._over = True

    def _close(self) -> None:
        self._writer = None
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None


def _inode(log: str) -> int:
    with suppress(FileNotFoundError):
        return os.stat(index_path(log)).st_ino
    return 0


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


if __name__ == "__main__":
    os.nice(NICE)
    Builder(sys.argv[1]).run()
