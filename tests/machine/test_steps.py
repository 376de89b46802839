"""Steps on a home folder: each is taken, shown, and taken back to what was there, whatever that was."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from proxy.manage.machine.machine import Machine, Ran
from proxy.manage.machine.steps import Folder, Kept, Link, RolledBackError, Step, WriteFile, carry_out, write


@pytest.fixture
def machine(tmp_path):
    """Give a machine with an empty home folder."""
    return Machine(tmp_path, os.getuid(), "darwin", path=os.defpath)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(lambda path: None, id="nothing"),
        pytest.param(lambda path: path.write_text("old"), id="file"),
        pytest.param(lambda path: (path.write_text("old"), path.chmod(0o640)), id="file_with_mode"),
        pytest.param(lambda path: path.symlink_to("elsewhere"), id="dangling_link"),
        pytest.param(lambda path: ((path.parent / "real").write_text("old"), path.symlink_to("real")), id="link"),
    ],
)
@pytest.mark.parametrize("kind", ["write", "link"])
def test_undo_restores(machine, before, kind):
    """Undone, a path is what it was before: nothing, a file with its content and mode, or a link, which stays one."""
    path = machine.home / "file"
    before(path)
    found = Kept.of(path)
    step = WriteFile(machine, "write", path, b"new") if kind == "write" else Link(machine, path, Path("/target"))
    assert not step.done()
    step.do()
    assert step.done()
    step.undo()
    assert Kept.of(path) == found
    assert not [each for each in machine.home.iterdir() if each.name.startswith(".")]


def test_undo_of_what_was_never_done(machine):
    """A step that was never taken changes nothing when it is undone."""
    path = machine.home / "file"
    path.write_text("mine")
    WriteFile(machine, "write", path, b"new").undo()
    Link(machine, path, Path("/target")).undo()
    Folder(machine, path.parent).undo()
    assert path.read_text() == "mine"


def test_write_is_whole(machine, monkeypatch):
    """A write that fails leaves the old file, and nothing next to it."""
    path = machine.home / "file"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write(path, b"new", 0o600)
    assert [each.name for each in machine.home.iterdir()] == ["file"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_mode_is_the_steps(machine, umask):
    """A file has the mode that its step says, whatever the umask."""
    before = os.umask(umask)
    try:
        WriteFile(machine, "write", machine.home / "file", b"x", mode=0o644).do()
        Folder(machine, machine.home / "a/b").do()
    finally:
        os.umask(before)
    assert mode(machine.home / "file") == 0o644
    assert mode(machine.home / "a/b") == 0o700


def test_folder(machine):
    """Folders that were made are removed again, but for what something was put into."""
    step = Folder(machine, machine.home / "a/b/c")
    step.do()
    assert (step.done(), mode(machine.home / "a/b/c")) == (True, 0o700)
    (machine.home / "a/b/c/empty.log").touch()
    (machine.home / "a/kept").write_text("x")
    step.undo()
    assert [str(path.relative_to(machine.home)) for path in machine.home.rglob("*")] == ["a", "a/kept"]


def test_kept_file(machine):
    """A file that is to be kept is done as soon as there is any."""
    path = machine.home / "config.toml"
    step = WriteFile(machine, "write", path, b"ours", keep=True)
    assert not step.done()
    path.write_text("theirs")
    assert step.done()


class Noted(Step):
    """A step that notes what becomes of it."""

    def __init__(self, title, said, error=None, done=False):
        self.title, self.said, self.error, self.is_done = title, said, error, done

    def done(self):
        return self.is_done

    def do(self):
        self.said.append(f"do {self.title}")
        self.notes = (f"{self.title} it is",)
        if self.error:
            raise self.error

    def undo(self):
        self.said.append(f"undo {self.title}")


def test_carry_out():
    """Steps are taken in order, finished ones are skipped, and each is printed with its notes."""
    said, lines = [], []
    carry_out([Noted("a", said), Noted("b", said, done=True), Noted("c", said)], lines.append)
    assert said == ["do a", "do c"]
    assert lines == ["  do    a", "        a it is", "  same  b", "  do    c", "        c it is"]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        pytest.param(OSError(28, "No space left on device"), "c: [Errno 28] No space left on device", id="system"),
        pytest.param(KeyboardInterrupt(), "c: interrupted", id="interrupt"),
        pytest.param(AssertionError(), "c: AssertionError", id="without_a_word"),
    ],
)
def test_carry_out_takes_back(error, text):
    """When one fails all that were begun are undone, it too, the last first; nothing else is."""
    said = []
    steps = [Noted("a", said), Noted("b", said, done=True), Noted("c", said, error), Noted("d", said)]
    with pytest.raises(RolledBackError) as caught:
        carry_out(steps, lambda _: None)
    assert said == ["do a", "do c", "undo c", "undo a"]
    assert (str(caught.value), caught.value.left) == (text, ())


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "ran"),
    [
        pytest.param(["sh", "-c", "echo out; echo err >&2; exit 3"], Ran(3, "out\n", "err\n"), id="ends"),
        pytest.param(["no-such-command"], Ran(127, "", "no-such-command: command not found"), id="none"),
        pytest.param(["/no/such"], Ran(127, "", "/no/such: No such file or directory"), id="no_path"),
        pytest.param(["sh", "-c", "read x; echo got $x"], Ran(0, "got\n", ""), id="no_input"),
        pytest.param(["sh", "-c", "printf '\\377'"], Ran(0, "\ufffd", ""), id="no_utf8"),
    ],
)
def test_run(machine, command, ran):
    """How a command went is an answer, whatever it is; nothing is asked of the user."""
    assert machine.run(*command) == ran


def test_run_has_an_end(machine):
    """A command that takes too long is ended."""
    assert machine.run("sh", "-c", "exec sleep 60", timeout=0.05).code == 124


def test_run_environment(machine):
    """A command gets the home folder, the language that its answers are read in, and what is given with it."""
    said = machine.run("sh", "-c", 'echo "$HOME $LC_ALL $MORE"', MORE="more").out
    assert said == f"{machine.home} C more\n"


def test_said():
    """What a command says is its last line, errors first."""
    assert Ran(1, "a\nb\n", "c\nd\n").said == "d"
    assert Ran(1, "a\nb\n", "").said == "b"
    assert Ran(7, "", "").said == "exit code 7"


def test_find(machine, tmp_path):
    """A command is looked for on the PATH, then in the folders of the system, wherever that begins."""
    tool = tmp_path / "root/usr/libexec/tool"
    tool.parent.mkdir(parents=True)
    tool.write_text("")
    tool.chmod(0o755)
    here = Machine(tmp_path, 0, "darwin", tmp_path / "root", os.defpath)
    assert here.find("tool", "/usr/libexec") == tool
    assert here.find("tool") is None
    assert here.find("sh").name == "sh"
