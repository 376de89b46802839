"""The index follows the log through rotations and faults, is private, and is made again if it can't be trusted."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import psutil
import pytest

from proxy.dashboard.index import builder, writer
from proxy.dashboard.index.builder import Builder
from proxy.dashboard.index.database import LEVELS, VERSION, opened, remove
from proxy.dashboard.index.intake import day_of, line_of, milliseconds
from proxy.dashboard.index.log_files import log_files
from proxy.dashboard.keeper import MODULE, STARTS_AGAIN, Keeper
from proxy.logs.logfile import utc
from proxy.manage.machine.log_index import index_files, index_path
from tests.dashboard.indexed import Indexed, line, total

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def log(tmp_path: Path) -> Indexed:
    """Give a log without lines."""
    return Indexed(tmp_path)


def requests(log: Indexed) -> int:
    """Return how many requests the page counts."""
    return int(log.history()["totals"]["requests"])


def test_grows_with_the_log(log: Indexed) -> None:
    """Each look counts the lines that came since the one before, and half a line once it is whole."""
    log.append(line(), line())
    assert requests(log) == 2
    whole = line()
    log.append(whole[:40])
    assert requests(log) == 2
    log.append(whole[40:], line())
    assert requests(log) == 4


def test_last_line_of_a_file_that_is_over(log: Indexed) -> None:
    """A line without a newline counts once a newer file has bytes: nothing will follow it."""
    log.append(line(), line()[:-1], number=1)
    log.append(line())
    assert requests(log) == 3


def test_rotation(log: Indexed) -> None:
    """Files that were renamed are recognised, and none of their lines is read again."""
    log.append(line())
    log.update()
    for _ in range(3):
        log.rotate()
        log.append(line())
        assert sum(done for done, _ in log.update()[:1]) > 0
    assert requests(log) == 4
    assert log.update() == []


def test_rows_go_with_their_file(log: Indexed) -> None:
    """Nothing of a line stays once its file is gone: no row, no name, and no free page that has one."""
    old = (
        {"device": f"old-{at}", "peer": f"10.0.0.{at % 250}", "user": "old", "model": f"old:{at}b"} for at in range(900)
    )
    log.append(*(line(reason="old", dropped=["old"], **each) for each in old), number=1)
    log.append(line())
    log.update()
    assert log.texts().count("old") > 900
    log.rotated(1).unlink()
    assert requests(log) == 1
    assert "old" not in log.texts()
    assert [path.name for path in log.path.parent.glob("access.log.index*") if b"old" in path.read_bytes()] == []


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda path: path.write_bytes(line(id="b")), id="written_again"),
        pytest.param(lambda path: os.truncate(path, 0), id="emptied"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[: -len(line())]), id="shortened"),
        pytest.param(
            lambda path: path.write_bytes(path.read_bytes().replace(b'"id":"a3"', b'"id":"x3"')), id="last_line_edited"
        ),
        pytest.param(
            lambda path: path.write_bytes(path.read_bytes().replace(b'"id":"a1"', b'"id":"x1"')), id="first_line_edited"
        ),
        pytest.param(lambda path: path.replace(path.with_name("access.log.2")), id="moved"),
        pytest.param(lambda path: path.with_name("access.log.5").write_bytes(path.read_bytes()), id="copied"),
    ],
)
def test_whatever_becomes_of_a_file(log: Indexed, change: Callable[[Path], object]) -> None:
    """A file that has other lines than those that were read is read again, even if it is the same file."""
    log.append(line(id="a1"), line(id="a2"), line(id="a3"))
    log.update()
    change(log.path)
    assert total(log.history(), "requests") == (log.summary()["requests"],)


def test_rotation_during_a_look(log: Indexed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is renamed while the files are being opened is met twice, and counts once."""
    log.append(line(id="a1"))
    opens = os.open

    def rotating(path: str, *rest: int) -> int:
        descriptor = opens(path, *rest)
        if path == str(log.path):
            log.rotate()
        return descriptor

    monkeypatch.setattr(os, "open", rotating)
    with log_files(str(log.path)) as files:
        assert [file.path for file in files] == [f"{log.path}.1"]


def test_number_of_a_removed_file_is_given_to_another(log: Indexed) -> None:
    """A file system may give a new file the number of one that is gone: they differ in their first lines."""
    log.append(line(id="a1"))
    log.update()
    log.path.write_bytes(line(id="b1") + line(id="b2"))
    assert requests(log) == 2


@pytest.mark.parametrize(
    "content",
    [b"", b"\n\n", b"no json\n", b"[1]\n", b"{\n", b"\xff\xfe\n", b'{"time":7}\n', b'{"time":"9999-99-99"}\n', b"{}\n"],
    ids=["empty", "blank", "words", "list", "torn", "no_text", "time_is_a_number", "no_such_day", "nothing"],
)
def test_lines_that_the_proxy_never_writes(log: Indexed, content: bytes) -> None:
    """What isn't an object is left out, as in the summary; all else counts."""
    log.append(line(), content, line())
    objects = content in {b'{"time":7}\n', b'{"time":"9999-99-99"}\n', b"{}\n"}
    assert requests(log) == 2 + objects


def test_line_longer_than_a_block(log: Indexed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of any length up to the limit is read; after a longer one, the rest of that file isn't."""
    monkeypatch.setattr(writer, "BLOCK", 512)
    monkeypatch.setattr(writer, "LONGEST_LINE", 2048)
    log.append(line(), line(user="u" * 900), line())
    assert requests(log) == 3
    log.append(line(user="u" * 9000), line())
    log.rotate()
    log.append(line())
    assert requests(log) == 4


def test_each_block_is_reported(log: Indexed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is reported in bytes of all files, and begins where the index was."""
    monkeypatch.setattr(writer, "BLOCK", 1)
    log.append(line(), number=1)
    log.append(line())
    size = len(line())
    assert log.update() == [(size, 2 * size), (2 * size, 2 * size)]
    log.append(line())
    assert log.update() == [(3 * size, 3 * size)]


# --- the index itself -------------------------------------------------------------------------------------------------


def test_only_the_owner_can_read_it(log: Indexed) -> None:
    """The index and the files that belong to it have mode 0600, whatever the umask and whatever mode it had."""
    log.append(line())
    path = index_path(str(log.path))
    before = os.umask(0)
    try:
        with closing(opened(str(log.path))) as connection:
            connection.execute("CREATE TABLE more (a)")
            files = [each for each in index_files(str(log.path)) if os.path.exists(each)]
            assert [stat.S_IMODE(os.stat(each).st_mode) for each in files] == [0o600] * 3
    finally:
        os.umask(before)
    os.chmod(path, 0o644)
    opened(str(log.path)).close()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_link_is_not_followed(log: Indexed, tmp_path: Path) -> None:
    """A link with the index's name leads nowhere: what it points to stays as it is."""
    other = tmp_path / "other"
    other.write_text("mine")
    os.symlink(other, index_path(str(log.path)))
    with pytest.raises(OSError, match="symbolic"):
        opened(str(log.path))
    assert other.read_text() == "mine"


def built(log: Indexed, asked: bytes = b"\n", *, leaves: bool = False) -> list[str]:
    """Return what the process that keeps the index reports until it is done; `leaves`: nobody waits for that."""
    (reads, writes), (reported, reports) = os.pipe(), os.pipe()
    os.write(writes, asked)
    if leaves:
        os.close(writes)
    running = Thread(target=lambda: (Builder(str(log.path), reads, reports).run(), os.close(reports)))
    running.start()
    states = []
    with os.fdopen(reported) as file:
        for each in file:
            states.append(json.loads(each)["state"])
            if states[-1] != "building" and not leaves:
                os.close(writes)
    running.join()
    os.close(reads)
    return states


def _damaged(path: str) -> None:
    """Overwrite a page of the index, as a disk may."""
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * 8192)


def _of_another_version(path: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE seen")
        connection.execute("CREATE TABLE other (a)")
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")


def _with_other_rows(path: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM lines WHERE id % 2")
        connection.commit()


def _with_other_totals(path: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE days SET requests = requests + 1")
        connection.commit()


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(os.unlink, id="missing"),
        pytest.param(lambda path: Path(path).write_bytes(b""), id="empty"),
        pytest.param(lambda path: Path(path).write_bytes(b"no database" * 1000), id="no_database"),
        pytest.param(lambda path: os.truncate(path, 8192), id="cut"),
        pytest.param(_damaged, id="damaged"),
        pytest.param(_of_another_version, id="other_version"),
        pytest.param(_with_other_rows, id="lines_are_missing"),
        pytest.param(_with_other_totals, id="totals_differ"),
    ],
)
def test_made_again(log: Indexed, spoil: Callable[[str], object]) -> None:
    """An index that is missing, of another version or broken is made again, and nobody has to do anything."""
    log.append(*(line(id=f"{number}", tokens_out=number) for number in range(100)))
    assert built(log)[-1] == "ready"
    spoil(index_path(str(log.path)))
    assert built(log)[-1] == "ready"
    assert total(log.history(), "requests", "tokens_out") == (100, 4950)
    assert len(log.rows("lines")) == len(log.lines(limit="200")["lines"]) == 100
    assert [sum(row[3] for row in log.rows(level)) for level in LEVELS] == [100] * len(LEVELS)


def test_made_again_if_it_is_asked(log: Indexed) -> None:
    """A reader that finds the index broken can have it made again."""
    log.append(line())
    built(log)
    first = os.stat(index_path(str(log.path))).st_ino
    os.link(index_path(str(log.path)), log.path.with_name("kept"))  # so that its number isn't given to the next
    assert built(log, builder.AGAIN)[-1] == "ready"
    assert os.stat(index_path(str(log.path))).st_ino != first


async def test_removed_while_it_is_kept(log: Indexed) -> None:
    """An index that someone removes while a dashboard is open is made again at the next look."""
    log.append(line(), line())
    keeper = Keeper(str(log.path))
    await keeper.start()
    assert (await keeper.settled()).lines == 2
    remove(str(log.path))
    while not log.path.with_name("access.log.index").exists():
        await keeper.catch_up()
    assert (await keeper.settled()).state == "ready"
    await keeper.stop()
    assert requests(log) == 2


async def test_folder_with_the_name_of_this_package(
    log: Indexed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that keeps the index runs this package, not a folder called `proxy` where the command was typed."""
    (tmp_path / "proxy").mkdir()
    (tmp_path / "proxy" / "__init__.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    log.append(line())
    keeper = Keeper(str(log.path))
    await keeper.start()
    assert (await keeper.settled()).state == "ready"
    await keeper.stop()


async def test_builder_that_ended(log: Indexed) -> None:
    """A builder that ended by itself is started again when someone asks, but not at once."""
    now = [0.0]
    log.append(line())
    keeper = Keeper(str(log.path), lambda: now[0])
    await keeper.start()
    await keeper.settled()
    (builder,) = (each for each in psutil.Process().children() if MODULE in each.cmdline())
    builder.kill()
    while (await keeper.catch_up()).state != "failed":
        pass
    assert (await keeper.catch_up()).state == "failed"
    now[0] = STARTS_AGAIN
    while (await keeper.catch_up()).state != "ready":
        pass
    await keeper.stop()


def test_no_log(log: Indexed) -> None:
    """Without a log there is nothing to show, and that is no failure. Nor is there an index."""
    assert built(log) == ["none"]
    log.append(line())
    assert built(log)[-1] == "ready"
    log.path.unlink()
    assert built(log) == ["none"]
    assert list(log.path.parent.iterdir()) == []


def test_folder_that_cannot_be_written(log: Indexed, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that can't be written is reported with the reason, and tried again at the next look."""

    def full(_log: str) -> sqlite3.Connection:
        raise OSError(28, "No space left on device")

    log.append(line())
    with monkeypatch.context() as patched:
        patched.setattr(builder, "opened", full)
        assert built(log) == ["failed"]
    assert built(log)[-1] == "ready"


@pytest.mark.parametrize("asked", [b"\n", builder.AGAIN], ids=["usual", "again"])
@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_folder_with_the_name_of_the_index(log: Indexed, suffix: str, asked: bytes) -> None:
    """What can't be removed from the index's place is reported, and the next look works once it is gone."""
    log.append(line())
    there = Path(index_path(str(log.path)) + suffix)
    there.mkdir()
    assert built(log, asked) == ["failed"]
    there.rmdir()
    assert built(log)[-1] == "ready"


def test_ends_in_the_middle(log: Indexed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A builder whose dashboard is gone stops after a block; the next one goes on from there."""
    monkeypatch.setattr(writer, "BLOCK", 1)
    log.append(line(), line(), line())
    assert built(log, leaves=True) == ["building"]
    monkeypatch.undo()
    assert requests(log) == 3


def test_two_builders(log: Indexed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two dashboards on one log share its index, and each line is counted once."""
    monkeypatch.setattr(writer, "BLOCK", 1)
    log.append(*(line(model=f"m{number}") for number in range(6)))
    with closing(opened(str(log.path))) as one, closing(opened(str(log.path))) as other:
        first, second = writer.Writer(one, str(log.path)), writer.Writer(other, str(log.path))
        first.update(lambda done, total: second.update(lambda done, total: False) or True)
        first.update(lambda done, total: True)
    assert requests(log) == 6


def test_two_builders_of_a_new_index(log: Indexed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of two dashboards that start at once says that it is done before all lines are read."""
    monkeypatch.setattr(writer, "BLOCK", 1)
    log.append(*(line(model=f"m{number}") for number in range(6)))
    with closing(opened(str(log.path))) as one, closing(opened(str(log.path))) as other:
        first, second = writer.Writer(one, str(log.path)), writer.Writer(other, str(log.path))
        first.update(lambda *_: second.update(lambda *_: False) or True)
        (done,) = one.execute("SELECT position FROM files").fetchone()
    assert done == log.path.stat().st_size


async def test_index_that_another_dashboard_made_again(log: Indexed) -> None:
    """Two dashboards share the index that one of them makes again: neither removes that of the other."""
    log.append(line(), line())
    one, other = Keeper(str(log.path)), Keeper(str(log.path))
    for each in (one, other):
        await each.start()
        await each.settled()
    remove(str(log.path))
    made = set()
    for each in (one, other, one, other):
        await each.catch_up()
        await each.settled()
        made.add(os.stat(index_path(str(log.path))).st_ino)
    assert len(made) == 1
    await one.stop()
    await other.stop()


def test_remove(log: Indexed) -> None:
    """All files of the index can be removed, and nothing else."""
    log.append(line())
    log.update()
    assert remove(str(log.path)) == [index_path(str(log.path))]
    assert [each.name for each in log.path.parent.iterdir()] == ["access.log"]


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1970-01-01T00:00:00.000Z", 0),
        ("2026-11-23T20:00:00.123Z", 1_795_464_000_123),
        ("2026-11-23T20:00:00Z", 1_795_464_000_000),
        ("2026-11-23T21:00:00.123+01:00", 1_795_464_000_123),
        ("2026-11-23T20:00:0x.123Z", 0),
        ("2026-13-23T20:00:00.123Z", 0),
        ("yesterday", 0),
        ("", 0),
    ],
)
def test_times(text: str, found: int) -> None:
    """Times are those that the proxy writes, to the millisecond, and any other of ISO 8601; what is none is 0."""
    assert milliseconds(text) == found
    assert not found or milliseconds(utc(found / 1000)) == found


def test_days_begin_at_midnight_here() -> None:
    """Each hour belongs to a day that began at most a day earlier, and days follow each other."""
    begins = [day_of(hour) for hour in range(490_000, 490_000 + 24 * 400)]
    assert all(0 <= hour - begin <= 25 for hour, begin in zip(range(490_000, 500_000), begins, strict=False))
    assert begins == sorted(begins)
    assert 399 <= len(set(begins)) <= 402


def test_texts_are_taken_as_they_are_printed() -> None:
    """What could steer a terminal or a reader is escaped in the index too."""
    found = line_of(line(model="a\u202eb"))
    assert found is not None
    assert found.model == "a\u202eb"
