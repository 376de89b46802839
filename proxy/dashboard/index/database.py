"""The index of the access log: its tables, how it is opened, and when it is rebuilt.

It holds nothing that isn't in the log. The only texts of clients in it are names of models. Lines are counted by
*combination*: device, model, kind, reason and so on. Even a long log has only some hundreds of combinations.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from proxy.manage.machine.log_index import index_files, index_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

VERSION = 4
"""The version of the tables and their content. An index of another version is rebuilt."""

BUSY_TIME = 10.0
"""Seconds that one process waits while another writes to the index."""

_SCHEMA = """
CREATE TABLE files (id INTEGER PRIMARY KEY, device INTEGER, inode INTEGER, head TEXT, tail TEXT, path TEXT,
                    age INTEGER, position INTEGER, lines INTEGER);
CREATE TABLE combinations (id INTEGER PRIMARY KEY, name TEXT, peer TEXT, model TEXT, kind TEXT, reason TEXT, ended TEXT,
                           context_full INTEGER, egress INTEGER, dropped TEXT,
                           UNIQUE (name, peer, model, kind, reason, ended, context_full, egress, dropped));
CREATE TABLE lines (id INTEGER PRIMARY KEY, time INTEGER, combination INTEGER, requests INTEGER,
                    tokens_in INTEGER, tokens_out INTEGER, first_token_ms REAL, tokens_per_second REAL, waited_ms REAL);
CREATE TABLE names (file INTEGER, peer TEXT, name TEXT, PRIMARY KEY (file, peer)) WITHOUT ROWID;
CREATE TABLE seen (file INTEGER, name TEXT, peer TEXT, time INTEGER, user TEXT,
                   PRIMARY KEY (file, name, peer)) WITHOUT ROWID;
"""

_LEVEL = """
CREATE TABLE {0} (hour INTEGER, combination INTEGER, file INTEGER, requests INTEGER, tokens_in INTEGER,
                  tokens_out INTEGER, first INTEGER, last INTEGER, PRIMARY KEY (hour, combination, file)) WITHOUT ROWID;
"""

_BINS = """
CREATE TABLE {0}_bins (hour INTEGER, combination INTEGER, file INTEGER, code INTEGER, count INTEGER,
                       PRIMARY KEY (hour, combination, file, code)) WITHOUT ROWID;
"""

LEVELS = ("hours", "days", "ever")
"""The tables of totals. A day is named by its first hour. `ever` has hour 1, and hour 0 for lines without a time."""

BINNED = ("hours", "ever")
"""The levels that also have bins of the measures. `days` needs none, because only bars over time come from there."""

INDEXES = """
CREATE INDEX IF NOT EXISTS lines_time ON lines (time);
CREATE INDEX IF NOT EXISTS lines_first_token_ms ON lines (first_token_ms, time, combination)
  WHERE first_token_ms IS NOT NULL;
CREATE INDEX IF NOT EXISTS lines_tokens_per_second ON lines (tokens_per_second, time, combination)
  WHERE tokens_per_second IS NOT NULL;
CREATE INDEX IF NOT EXISTS lines_waited_ms ON lines (waited_ms, time, combination) WHERE waited_ms IS NOT NULL;
"""
"""Made once all lines are in, which takes half the time."""

OFFSET_BITS = 40
"""The id of a line is the number of its file, followed by its offset in this many bits."""

_OF_ITSELF = frozenset({"SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_SCHEMA", "SQLITE_FORMAT"})


def remove(log: str) -> list[str]:
    """Remove the index of a log, and return the files that were removed."""
    removed = []
    for path in index_files(log):
        with suppress(FileNotFoundError):
            os.unlink(path)
            removed.append(path)
    return removed


def is_broken(error: sqlite3.Error) -> bool:
    """Return whether an error means that the index itself is broken, not the disk or a lock."""
    name = getattr(error, "sqlite_errorname", "") or ""
    return any(name.startswith(each) for each in _OF_ITSELF)


def is_whole(connection: sqlite3.Connection) -> bool:
    """Return whether the counts agree with each other and with the lines."""
    select = "SELECT (SELECT count(*) FROM lines), (SELECT total(lines) FROM files)"
    lines, read = connection.execute(select).fetchone()
    totals = " UNION ".join(f"SELECT total(requests), total(tokens_out) FROM {level}" for level in LEVELS)
    return bool(lines == read and len(connection.execute(totals).fetchall()) == 1)


def opened(log: str) -> sqlite3.Connection:
    """Open the index for writing. Make it if it is missing or of another version. Raises sqlite3.Error, OSError.

    The file is made first, because SQLite would give it the mode that the umask leaves. SQLite gives its other files
    the mode of this one.
    """
    path = index_path(log)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
    os.chmod(path, 0o600)
    connection = _connected(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute("PRAGMA cache_size = -65536")
    connection.execute("PRAGMA threads = 2")  # for sorting, when the indexes are made
    with transaction(connection):
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            _make(connection)
    return connection


def opened_to_read(log: str) -> sqlite3.Connection:
    """Open an existing index for reading. Raises sqlite3.Error."""
    connection = _connected(f"file:{_quoted(index_path(log))}?mode=rw", uri=True)
    connection.execute("PRAGMA query_only = ON")
    connection.execute("PRAGMA mmap_size = 268435456")
    return connection


def _quoted(path: str) -> str:
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _connected(path: str, *, uri: bool = False) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=BUSY_TIME, isolation_level=None, check_same_thread=False, uri=uri)


def _make(connection: sqlite3.Connection) -> None:
    """Make all tables, after removing those of another version."""
    kinds = ("index", "table")
    for kind in kinds:
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = ? AND name NOT LIKE 'sqlite_%'", (kind,))
        for (name,) in rows.fetchall():
            connection.execute(f'DROP {kind} "{name}"')
    levels = [*(_LEVEL.format(level) for level in LEVELS), *(_BINS.format(level) for level in BINNED)]
    for script in (_SCHEMA, *levels):
        for statement in filter(str.strip, script.split(";")):
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {VERSION}")


@contextmanager
def transaction(connection: sqlite3.Connection, undone: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Write everything or nothing. In the latter case, call `undone`."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        undone()
        raise
    connection.execute("COMMIT")
