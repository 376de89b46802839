"""Lines reach a log whole, in order and once, whatever the file system does meanwhile."""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.logs import logfile
from proxy.logs.logfile import BACKLOG_LIMIT, COMPLAINT_INTERVAL, Backlog, LogFile, json_line, utc
from proxy.logs.stdio import Stream
from tests.support.linux.full_disk import full_disk, needs_dev_full


class Told(list):
    """A `diagnose` that remembers."""

    def __call__(self, event, **fields):
        self.append((event, fields))

    @property
    def events(self):
        return [event for event, _ in self]


@pytest.fixture
def shown():
    return Told()


@pytest.fixture
def opened(tmp_path, shown):
    """Open log files in tmp_path, and close them after the test."""
    files = []

    def make(name="access.log", **options):
        file = LogFile(str(tmp_path / name), shown, **options)
        file.open()
        files.append(file)
        return file

    yield make
    for file in files:
        file.close()


@contextmanager
def umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def file_size_limit(octets):
    """Let no file of this process grow beyond `octets`: the kernel writes short, then refuses with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (octets, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def backlog(sink, shown, clock=lambda: 0.0):
    return Backlog(sink, lambda lost: json_line({"gap": lost}), shown, clock)


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


# --- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        pytest.param(0.0, "1970-01-01T00:00:00.000Z", id="epoch"),
        pytest.param(1795464000.1234, "2026-11-23T20:00:00.123Z", id="milliseconds"),
        pytest.param(1795464000.9996, "2026-11-23T20:00:01.000Z", id="rounds_into_the_next_second"),
    ],
)
def test_utc(seconds, text):
    """A time is RFC 3339 in UTC, to the nearest millisecond."""
    assert utc(seconds) == text


@given(
    st.dictionaries(
        st.text(), st.none() | st.booleans() | st.integers() | st.text() | st.text("\ud800\udfff\x7f\x9b\n")
    )
)
def test_json_line_is_one_printable_line(record):
    """Whatever a record holds, its line is one JSON object in printable ASCII."""
    line = json_line(record)
    assert line.endswith(b"\n")
    assert all(0x20 <= octet < 0x7F for octet in line[:-1])
    assert isinstance(json.loads(line), dict)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_json_line_keeps_text(text):
    """Escaping loses nothing: a reader gets the text back."""
    assert json.loads(json_line({"text": text})) == {"text": text}


# --- opening ----------------------------------------------------------------------------------------------------------


def test_file_and_folders_are_private(tmp_path, opened):
    """File and missing folders are the owner's alone, whatever the umask."""
    with umask(0):
        opened("state/proxy/access.log")
    assert mode(tmp_path / "state/proxy/access.log") == 0o600
    assert mode(tmp_path / "state/proxy") == 0o700
    assert mode(tmp_path / "state") == 0o700


def test_wider_file_is_tightened(tmp_path, opened):
    """A log that others could read is closed to them when it is opened, and keeps its lines."""
    path = tmp_path / "access.log"
    path.write_text("old\n")
    path.chmod(0o644)
    opened().append(b"new\n")
    assert mode(path) == 0o600
    assert path.read_text() == "old\nnew\n"


def test_rotated_files_are_private(tmp_path, opened):
    """Every file of a rotation is the owner's alone."""
    with umask(0):
        file = opened(max_size=4)
        file.append(b"one\n")
        file.append(b"two\n")
    assert [mode(tmp_path / name) for name in ("access.log", "access.log.1")] == [0o600, 0o600]


def make_link(path):
    path.with_name("victim").write_text("precious\n")
    path.symlink_to(path.with_name("victim"))


@pytest.mark.parametrize(
    ("prepare", "text"),
    [
        pytest.param(Path.mkdir, "Is a directory", id="folder"),
        pytest.param(os.mkfifo, "is not a regular file", id="fifo"),
        pytest.param(make_link, "is a symbolic link; name the file that it points to", id="symbolic_link"),
    ],
)
def test_open_refuses(tmp_path, shown, prepare, text):
    """What is not a plain file is refused at the start, with a sentence that names it, and at once."""
    path = tmp_path / "access.log"
    prepare(path)
    with pytest.raises(OSError, match=text) as caught:
        LogFile(str(path), shown).open()
    assert caught.value.strerror.startswith(f"cannot write the log {path}: ")


def test_open_below_a_file_is_refused(tmp_path, shown):
    """A folder that can't be made is refused at the start."""
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="cannot write the log"):
        LogFile(str(tmp_path / "file/access.log"), shown).open()


def test_line_torn_by_a_crash_is_ended(tmp_path, opened):
    """When the last run ended inside a line, the first new line still stands alone."""
    (tmp_path / "access.log").write_bytes(b'{"half":')
    opened().append(b"{}\n")
    assert (tmp_path / "access.log").read_bytes() == b'{"half":\n{}\n'


def test_open_without_space_to_end_a_torn_line_is_refused(tmp_path, shown):
    """When even the end of a torn line can't be written, the start fails rather than the next line."""
    (tmp_path / "access.log").write_bytes(b'{"half":')
    with file_size_limit(8), pytest.raises(OSError, match="cannot write the log"):
        LogFile(str(tmp_path / "access.log"), shown).open()


def test_repr_tells_the_state(opened, shown):
    """The objects' repr shows their state."""
    file = opened(max_size=100)
    file.append(b"one\n")
    assert repr(file).endswith("access.log 4/100>")
    assert repr(backlog(file, shown)) == "<Backlog waiting=0 lost=0>"


# --- rotation ---------------------------------------------------------------------------------------------------------


def all_lines(path, kept):
    names = [f"{path}.{n}" for n in range(kept, 0, -1)] + [str(path)]
    return b"".join(Path(name).read_bytes() for name in names if Path(name).exists()).splitlines(keepends=True)


def test_rotation_loses_and_splits_nothing(tmp_path, opened, shown):
    """Over many rotations every line is in one file, in order, and no file is larger than allowed."""
    lines = [b"%d %s\n" % (n, b"x" * (n % 37)) for n in range(2000)]
    queue = backlog(opened(max_size=1000, kept=100), shown)
    for n, line in enumerate(lines):
        queue.add(line)
        if n % 7 == 0:
            queue.flush()
    queue.flush()
    assert all_lines(tmp_path / "access.log", 100) == lines
    assert len(list(tmp_path.iterdir())) > 40
    assert all(file.stat().st_size <= 1000 for file in tmp_path.iterdir())
    assert shown == []


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_rotation_keeps_so_many(tmp_path, opened, kept):
    """Next to the current file only the newest `kept` ones stay."""
    file = opened(max_size=2, kept=kept)
    for n in range(6):
        file.append(b"%d\n" % n)
    assert all_lines(tmp_path / "access.log", 9) == [b"%d\n" % n for n in range(5 - kept, 6)]
    assert len(list(tmp_path.iterdir())) == kept + 1


def test_rotation_removes_what_was_kept_before(tmp_path, opened):
    """Once fewer files are kept, a rotation removes the surplus, so that no file is missing between those that stay."""
    for number in (1, 2, 3, 4, 6):
        (tmp_path / f"access.log.{number}").write_bytes(b"old %d\n" % number)
    file = opened(max_size=2, kept=2)
    file.append(b"0\n")
    file.append(b"1\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("access.log", "access.log.1", "access.log.2", "access.log.6")
    ]
    assert all_lines(tmp_path / "access.log", 2) == [b"old 1\n", b"0\n", b"1\n"]


def test_size_counts_what_was_there(tmp_path, opened):
    """A file that a former run filled is rotated as if this run had."""
    (tmp_path / "access.log").write_bytes(b"x" * 99 + b"\n")
    opened(max_size=100).append(b"new\n")
    assert (tmp_path / "access.log").read_bytes() == b"new\n"


def test_line_longer_than_a_file_is_whole(tmp_path, opened, shown):
    """A line that is longer than a file may be has a file to itself."""
    queue = backlog(opened(max_size=10), shown)
    for line in (b"one\n", b"x" * 50 + b"\n", b"two\n"):
        queue.add(line)
    queue.flush()
    assert (tmp_path / "access.log.2").read_bytes() == b"one\n"
    assert (tmp_path / "access.log.1").read_bytes() == b"x" * 50 + b"\n"
    assert (tmp_path / "access.log").read_bytes() == b"two\n"


def obstruct_spare(folder):
    (folder / "access.log.new").mkdir()


def obstruct_first(folder):
    (folder / "access.log.1").mkdir()


@pytest.mark.parametrize("obstruct", [obstruct_spare, obstruct_first])
def test_failed_rotation_goes_on_in_the_old_file(tmp_path, opened, shown, obstruct):
    """When the files can't be renamed the current one grows; no line is lost, and one diagnostic says so."""
    obstruct(tmp_path)
    file = opened(max_size=8, kept=1)
    lines = [b"%03d\n" % n for n in range(4)]
    for line in lines:
        file.append(line)
    assert (tmp_path / "access.log").read_bytes() == b"".join(lines)
    assert shown.events == ["log_not_rotated"]


def test_failed_rotation_is_tried_again(tmp_path, opened, shown):
    """A rotation that failed is repeated once the file has grown by as much again."""
    obstruct_spare(tmp_path)
    file = opened(max_size=4)
    file.append(b"000\n")
    file.append(b"001\n")
    (tmp_path / "access.log.new").rmdir()
    file.append(b"002\n")
    assert (tmp_path / "access.log.1").read_bytes() == b"000\n001\n"
    assert (tmp_path / "access.log").read_bytes() == b"002\n"


def test_failing_rotations_push_nothing_off_the_end(tmp_path, opened, monkeypatch):
    """Old files are only moved up to a free number, however often the last step of a rotation fails."""
    file = opened(max_size=4, kept=3)
    for n in range(4):
        file.append(b"%03d\n" % n)
    replace = os.replace

    def no_fresh_file(source, target):
        if source.endswith(".new"):
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(logfile.os, "replace", no_fresh_file)
    for n in range(4, 10):
        file.append(b"%03d\n" % n)
    assert all_lines(tmp_path / "access.log", 3) == [b"%03d\n" % n for n in range(1, 10)]


def test_rotation_after_the_file_was_moved(tmp_path, opened):
    """A file that someone moved away is simply followed by a fresh one."""
    file = opened(max_size=4)
    file.append(b"one\n")
    (tmp_path / "access.log").rename(tmp_path / "taken")
    file.append(b"two\n")
    assert (tmp_path / "taken").read_bytes() == b"one\n"
    assert (tmp_path / "access.log").read_bytes() == b"two\n"
    assert not (tmp_path / "access.log.1").exists()


# --- reopening --------------------------------------------------------------------------------------------------------


def test_reopen_follows_a_moved_file(tmp_path, opened, shown):
    """After a move from outside, reopening writes what waits to the old file and goes on in a new one."""
    queue = backlog(opened(), shown)
    queue.add(b"one\n")
    (tmp_path / "access.log").rename(tmp_path / "taken")
    queue.reopen()
    queue.add(b"two\n")
    queue.flush()
    assert (tmp_path / "taken").read_bytes() == b"one\n"
    assert (tmp_path / "access.log").read_bytes() == b"two\n"


def test_reopen_of_the_same_file_changes_nothing(tmp_path, opened, shown):
    """Reopening a file that is still in its place goes on in it."""
    queue = backlog(opened(), shown)
    queue.add(b"one\n")
    queue.reopen()
    queue.add(b"two\n")
    queue.flush()
    assert (tmp_path / "access.log").read_bytes() == b"one\ntwo\n"


def test_reopen_that_fails_keeps_the_old_file(tmp_path, opened, shown):
    """When the path can't be opened again, the lines go on into the file there was, and a diagnostic says so."""
    queue = backlog(opened(), shown)
    (tmp_path / "access.log").rename(tmp_path / "taken")
    (tmp_path / "access.log").mkdir()
    queue.add(b"one\n")
    queue.reopen()
    queue.add(b"two\n")
    queue.flush()
    assert (tmp_path / "taken").read_bytes() == b"one\ntwo\n"
    assert shown.events == ["log_not_reopened"]


def test_torn_line_is_written_whole_to_a_new_file(tmp_path, opened, shown):
    """When a file is moved away in the midst of a line that it had no space for, the next file has all of the line."""
    queue = backlog(opened(), shown)
    with file_size_limit(6):
        queue.add(b"first\n")
        queue.flush()
        queue.add(b"second\n")
        queue.flush()
    with file_size_limit(9):
        queue.flush()
        (tmp_path / "access.log").rename(tmp_path / "taken")
        queue.reopen()
    assert (tmp_path / "taken").read_bytes() == b"first\nsec"
    queue.flush()
    assert (tmp_path / "access.log").read_bytes() == b"second\n"


def test_torn_line_of_a_removed_file_is_written_whole(tmp_path, opened, shown):
    """When a file is removed in the midst of a line that it had no space for, the next file has all of the line."""
    queue = backlog(opened(), shown)
    with file_size_limit(3):
        queue.add(b"first\n")
        queue.flush()
    assert queue.waiting == 3
    (tmp_path / "access.log").unlink()
    queue.add(b"second\n")
    queue.flush()
    assert (tmp_path / "access.log").read_bytes() == b"first\nsecond\n"


def test_moved_file_is_not_renewed(tmp_path, opened, shown):
    """A file that was moved away gets lines until the log is reopened, as whoever moved it can signal."""
    queue = backlog(opened(), shown)
    (tmp_path / "access.log").rename(tmp_path / "taken")
    queue.add(b"one\n")
    queue.flush()
    assert (tmp_path / "taken").read_bytes() == b"one\n"
    assert not (tmp_path / "access.log").exists()


# --- a log that can't be written --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "max_size",
    [
        pytest.param(1000, id="far_from_rotation"),
        pytest.param(13, id="rotated_after_the_line"),
        pytest.param(7, id="rotated_before_the_line"),
        pytest.param(3, id="line_longer_than_a_file"),
    ],
)
@pytest.mark.parametrize("taken", range(14))
def test_short_write_is_finished_first(tmp_path, opened, shown, max_size, taken):
    """A line that the disk took only a part of is completed, in the same file, before the next one is begun."""
    queue = backlog(opened(max_size=max_size), shown)
    with file_size_limit(taken):
        for line in (b"first\n", b"second\n", b"third\n"):
            queue.add(line)
            queue.flush()
    queue.flush()
    assert all_lines(tmp_path / "access.log", 9) == [b"first\n", b"second\n", b"third\n"]
    assert all(file.read_bytes().endswith(b"\n") for file in tmp_path.iterdir())


@needs_dev_full
def test_full_disk_loses_nothing_that_fits_in_memory(tmp_path, opened, shown):
    """Lines wait in memory while the disk is full, and are written in order when there is space again."""
    file = opened()
    queue = backlog(file, shown)
    with full_disk(file.path):
        for n in range(100):
            queue.add(b"%d\n" % n)
            queue.flush()
        assert queue.waiting == sum(len(b"%d\n" % n) for n in range(100))
    queue.add(b"100\n")
    queue.flush()
    assert all_lines(tmp_path / "access.log", 0) == [b"%d\n" % n for n in range(101)]
    assert shown == [
        ("log_not_written", {"error": os.strerror(errno.ENOSPC), "waiting_octets": 2, "lost_lines": 0}),
        ("log_writable_again", {}),
    ]


@needs_dev_full
def test_memory_is_bounded_and_the_gap_is_told(tmp_path, opened, shown):
    """Past 1 MiB lines are dropped and counted, and a gap line stands exactly where they are missing."""
    file = opened()
    queue = backlog(file, shown)
    line = b"x" * 1023 + b"\n"
    with full_disk(file.path):
        queue.flush()
        for _ in range(1024 + 5):
            queue.add(line)
            queue.flush()
        queue.add(b"short\n")  # would fit, but behind a gap nothing does
        assert queue.waiting == BACKLOG_LIMIT
    queue.flush()
    queue.add(b"next\n")
    queue.flush()
    assert all_lines(tmp_path / "access.log", 0) == [line] * 1024 + [b'{"gap":6}\n', b"next\n"]


def test_busy_turn_is_no_gap(tmp_path, opened, shown):
    """More than 1 MiB of lines in one turn of the loop is no loss as long as the disk takes them."""
    queue = backlog(opened(), shown)
    line = b"x" * 1023 + b"\n"
    for _ in range(3000):
        queue.add(line)
    queue.flush()
    assert all_lines(tmp_path / "access.log", 0) == [line] * 3000


@needs_dev_full
def test_trouble_is_told_once_a_minute(opened, shown):
    """However often writing fails, a diagnostic says so once a minute."""
    now = [1000.0]
    file = opened()
    queue = backlog(file, shown, lambda: now[0])
    queue.add(b"one\n")
    with full_disk(file.path):
        for _ in range(int(2 * COMPLAINT_INTERVAL) + 1):
            queue.flush()
            now[0] += 1.0
    assert shown.events == ["log_not_written"] * 3


@needs_dev_full
def test_close_tells_what_is_lost_for_good(opened, shown):
    """Lines that wait when the log is closed are counted in a last diagnostic."""
    file = opened()
    queue = backlog(file, shown)
    with full_disk(file.path):
        queue.add(b"one\n")
        queue.add(b"two\n")
        queue.close()
    assert shown[-1] == ("log_lines_lost", {"lines": 2})


# --- standard streams -------------------------------------------------------------------------------------------------


@pytest.fixture
def pipe():
    """A blocking pipe, as a shell makes them."""
    reading, writing = os.pipe()
    yield reading, writing
    os.close(writing)
    os.close(reading)


def test_full_pipe_does_not_block(pipe, shown):
    """A reader that has stopped costs no time and no diagnostic; it gets every line when it goes on."""
    reading, writing = pipe
    queue = backlog(Stream(writing), shown)
    lines = [b"%d %s\n" % (n, b"x" * 2000) for n in range(200)]
    for line in lines:
        queue.add(line)
        queue.flush()
    assert queue.waiting > 0
    assert shown == []
    got = bytearray()
    while queue.waiting:
        got += os.read(reading, 65536)
        queue.flush()
    os.set_blocking(reading, False)
    while len(got) < sum(map(len, lines)):
        got += os.read(reading, 65536)
    assert bytes(got) == b"".join(lines)
    assert os.get_blocking(writing)


def test_stopped_reader_is_told_once_lines_are_lost(pipe, shown):
    """When lines are dropped because a reader has stopped, a diagnostic says so."""
    _, writing = pipe
    queue = backlog(Stream(writing), shown)
    line = b"x" * 1023 + b"\n"
    for _ in range(1200):
        queue.add(line)
    queue.flush()
    assert shown.events == ["log_not_written"]
    assert shown[0][1]["lost_lines"] > 0


def test_reader_that_left_is_trouble_like_any(shown):
    """A pipe without a reader is reported, and doesn't raise."""
    reading, writing = os.pipe()
    os.close(reading)
    queue = backlog(Stream(writing), shown)
    queue.add(b"one\n")
    queue.flush()
    os.close(writing)
    assert shown[0][1]["error"] == os.strerror(errno.EPIPE)


def test_stream_survives_reopen_and_close(pipe, shown):
    """Reopening and closing leave a standard stream as it is."""
    reading, writing = pipe
    queue = backlog(Stream(writing), shown)
    queue.add(b"one\n")
    queue.reopen()
    queue.close()
    assert os.read(reading, 100) == b"one\n"
    os.write(writing, b"still open")
    assert os.read(reading, 100) == b"still open"
