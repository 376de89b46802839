"""Bring the index up to date with the log: read new lines, and forget files that are gone."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from proxy.dashboard.index.database import BINNED, INDEXES, LEVELS, OFFSET_BITS, transaction
from proxy.dashboard.index.intake import Counted, Intake, day_of, plain
from proxy.dashboard.index.log_files import digest_at, log_files

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Mapping

    from proxy.dashboard.index.intake import Combination
    from proxy.dashboard.index.log_files import LogFile

BLOCK = 2**24
"""Bytes of the log that are indexed in one transaction."""

LONGEST_LINE = 2**26
"""Bytes of a line. The rest of a file after a longer line isn't read."""


class Writer:
    """Writes one log's index."""

    def __init__(self, connection: sqlite3.Connection, log: str) -> None:
        self._connection = connection
        self._log = log
        self._numbers: dict[tuple[Any, ...], int] = {}  # of combinations, by what lines have
        self._changes = -1  # the database's version, which shows changes by another process

    def update(self, report: Callable[[int, int], bool]) -> bool:
        """Read new lines, and return whether there were any.

        After each block, `report` gets the bytes read so far and in all. If it returns False, reading stops.
        """
        changed = False
        with log_files(self._log) as files:
            known = self._recognised(files)
            total = sum(file.size for file in files)
            done = sum(position for _, position in known.values())
            for at, file in enumerate(files):
                over = any(newer.size for newer in files[at + 1 :])  # so that its last line is whole
                number, position = known[file]
                while position < file.size:
                    after = self._block(file, number, position, over=over)
                    if after == position:
                        break
                    changed = True
                    done, position = done + after - position, after
                    if not report(done, total):
                        return changed
        self._connection.executescript(INDEXES)
        return changed

    def _recognised(self, files: list[LogFile]) -> dict[LogFile, tuple[int, int]]:
        """Return the number of each file and how far it was read. Forget files that are gone."""
        with transaction(self._connection):
            rows = self._connection.execute("SELECT id, device, inode, head, tail, position FROM files").fetchall()
            known = {
                (device, inode, head): (number, position, tail) for number, device, inode, head, tail, position in rows
            }
            newest = max((row[0] for row in rows), default=0)
            found: dict[LogFile, tuple[int, int]] = {}
            for age, file in enumerate(files):
                number, position, tail = known.get((file.device, file.inode, file.head), (0, 0, ""))
                if not number or not _is_same(file, position, tail):
                    newest += 1
                    number, position = newest, 0
                    insert = "INSERT INTO files VALUES (?, ?, ?, ?, '', ?, ?, 0, 0)"
                    self._connection.execute(insert, (number, file.device, file.inode, file.head, file.path, age))
                found[file] = number, position
                update = "UPDATE files SET path = ?, age = ? WHERE id = ? AND (path, age) != (?, ?)"
                self._connection.execute(update, (file.path, age, number, file.path, age))
            gone = {row[0] for row in rows} - {number for number, _ in found.values()}
            for number in gone:
                self._forget(number)
            if gone:
                used = "SELECT combination FROM ever"
                self._connection.execute(f"DELETE FROM combinations WHERE id NOT IN ({used})")
                self._numbers.clear()
        return found

    def _forget(self, number: int) -> None:
        """Remove all rows of a file."""
        span = (number << OFFSET_BITS, (number + 1) << OFFSET_BITS)
        self._connection.execute("DELETE FROM lines WHERE id >= ? AND id < ?", span)
        for table in ("names", "seen", *LEVELS, *(f"{level}_bins" for level in BINNED)):
            self._connection.execute(f"DELETE FROM {table} WHERE file = ?", (number,))
        self._connection.execute("DELETE FROM files WHERE id = ?", (number,))

    def _block(self, file: LogFile, number: int, position: int, *, over: bool) -> int:
        """Read a block from a position, and return where it ended.

        If another process has read on meanwhile, return how far it is. The same position means that nothing is left.
        """
        content = _read(file, position, over=over)
        if not content:
            return position
        with transaction(self._connection, undone=self._numbers.clear):
            row = self._connection.execute("SELECT position FROM files WHERE id = ?", (number,)).fetchone()
            if row != (position,):
                return position if row is None else max(position, int(row[0]))
            self._forget_stale_numbers()
            intake = Intake(number, self._numbers, self._number)
            last = intake.take_block(content, position)
            self._write(intake, number)
            after = min(position + len(content), file.size)
            tail = digest_at(file.fd, last, after)
            update = "UPDATE files SET position = ?, tail = ?, lines = lines + ? WHERE id = ?"
            self._connection.execute(update, (after, f"{last} {tail}", intake.lines, number))
        return after

    def _forget_stale_numbers(self) -> None:
        (changes,) = self._connection.execute("PRAGMA data_version").fetchone()
        if changes != self._changes:
            self._changes = changes
            self._numbers.clear()

    def _number(self, combination: Combination) -> int:
        """Return the number of a combination. A new one gets a number."""
        columns, values = ", ".join(combination._fields), ", ".join("?" * len(combination))
        execute = self._connection.execute
        execute(f"INSERT OR IGNORE INTO combinations ({columns}) VALUES ({values})", combination)
        select = f"SELECT id FROM combinations WHERE ({columns}) = ({values})"
        return int(execute(select, combination).fetchone()[0])

    def _write(self, intake: Intake, file: int) -> None:
        many = self._connection.executemany
        many("INSERT INTO lines VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", intake.rows)
        days, ever = _summed(intake.hours, day_of), _summed(intake.hours, lambda hour: min(hour, 1))
        for level, counted in zip(LEVELS, (intake.hours, days, ever), strict=True):
            _write_level(many, level, counted, file)
        named = ((file, plain(peer), plain(name)) for peer, name in intake.names.items())
        many("INSERT INTO names VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET name = excluded.name", named)
        seen = (
            (file, plain(name), plain(peer), time, plain(user)) for (name, peer), (time, user) in intake.seen.items()
        )
        earlier = "ON CONFLICT DO UPDATE SET time = excluded.time, user = excluded.user WHERE excluded.time < time"
        many(f"INSERT INTO seen VALUES (?, ?, ?, ?, ?) {earlier}", seen)


def _write_level(
    many: Callable[[str, Iterable[tuple[Any, ...]]], object],
    level: str,
    counted: Mapping[tuple[int, int], Counted],
    file: int,
) -> None:
    rows = (
        (hour, combination, file, each.requests, each.tokens_in, each.tokens_out, each.first, each.last)
        for (hour, combination), each in counted.items()
    )
    sums = ", ".join(f"{name} = {name} + excluded.{name}" for name in ("requests", "tokens_in", "tokens_out"))
    span = "first = min(first, excluded.first), last = max(last, excluded.last)"
    many(f"INSERT INTO {level} VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET {sums}, {span}", rows)
    if level not in BINNED:
        return
    bins = (
        (hour, combination, file, code, count)
        for (hour, combination), each in counted.items()
        for code, count in each.bins.items()
    )
    more = "ON CONFLICT DO UPDATE SET count = count + excluded.count"
    many(f"INSERT INTO {level}_bins VALUES (?, ?, ?, ?, ?) {more}", bins)


def _summed(hours: Mapping[tuple[int, int], Counted], begin: Callable[[int], int]) -> dict[tuple[int, int], Counted]:
    """Add up the hours that have the same `begin`."""
    sums: dict[tuple[int, int], Counted] = {}
    for (hour, combination), each in hours.items():
        key = begin(hour), combination
        found = sums.get(key)
        if found is None:
            found = sums[key] = Counted(each.first)
        found.requests += each.requests
        found.tokens_in += each.tokens_in
        found.tokens_out += each.tokens_out
        found.first, found.last = min(found.first, each.first), max(found.last, each.last)
        for code, count in each.bins.items():
            found.bins[code] = found.bins.get(code, 0) + count
    return sums


def _read(file: LogFile, position: int, *, over: bool) -> bytes:
    """Return about a block of whole lines from a position. If the file is complete, its last line needs no newline."""
    size = BLOCK
    while True:
        content = os.pread(file.fd, min(size, file.size - position), position)
        end = content.rfind(b"\n") + 1
        if end:
            return content[:end]
        if position + len(content) >= file.size:
            return content + b"\n" if over and content else b""
        if size >= LONGEST_LINE:
            return b""
        size *= 2


def _is_same(file: LogFile, position: int, tail: str) -> bool:
    """Return whether a file still has the lines that were read from it."""
    if file.size < position:
        return False
    last, _, digest = tail.partition(" ")
    return not tail or digest_at(file.fd, int(last), position) == digest
