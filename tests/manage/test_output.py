"""What holds for the output of every command: a failed write is one error, a closed pipe none, and `--json` is JSON."""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from proxy.command_line import cli, commands
from proxy.manage.demo import command as demo
from proxy.manage.machine.machine import Machine
from proxy.serving import listener
from proxy.settings.settings import SPELLED, flag
from proxy.terminal import output
from tests.support.patience import PATIENCE
from tests.support.ports import free_port

ROOT = Path(__file__).parent.parent.parent

GIVEN = {"METHOD": "GET", "TARGET": "/v1/models", "MODEL": "tiny", "TOOL": "codex"}
"""What the tests give for an argument without a dash, by its name in the help."""

SETTINGS = {flag(option) for option in SPELLED} | {f"--no-{flag(option)[2:]}" for option in SPELLED}


def walked():
    """Yield the words of every command: as it is, and with each flag that takes no value."""
    top, _ = commands.commands(commands.options())
    yield from variants([], top)
    for action in top._actions:  # argparse has no public way to list commands
        if isinstance(action, argparse._SubParsersAction):
            for name, parser in action.choices.items():
                words = [GIVEN[each.metavar] for each in parser._actions if each.metavar in GIVEN]
                yield [name, *words]
                yield from variants([name, *words], parser)


def variants(words, parser):
    """Yield `words` with each flag of a parser that takes no value and isn't a setting."""
    for action in parser._actions:
        if action.nargs == 0:
            yield from ([*words, each] for each in action.option_strings if each[:2] == "--" and each not in SETTINGS)


EVERY = [*walked(), ["--check", "--json"], ["logs", "--summary", "--json"], ["--nonsense"]]
AS_JSON = [
    *(words for words in EVERY if words and words[-1] not in ("--help", "--json", "--keep", "--nonsense", "--version")),
    *(["completion", shell] for shell in commands.SHELLS),
    ["connect"],
    ["connect", "nothing-of-the-kind"],
    ["explain", "GET", "/", "--allow", "POST /api/pull"],
    ["logs", "--summary", "--access-log", "/nowhere/access.log"],
    ["warm"],
    ["cancel", "a1"],
]
AS_JSON.remove(["logs", "--ollama"])  # its lines are no JSON
AS_JSON.remove(["completion"])  # wrong usage, before --json is known
AS_JSON.remove(["cancel"])  # the same
"""What `--json` is added to: every command, with each flag that takes no value, and some with a mistake."""


class Failing(io.RawIOBase):
    """A file whose every write fails."""

    def __init__(self, number):
        self.number = number
        self.tries = 0

    def writable(self):
        return True

    def write(self, octets):
        self.tries += 1
        raise OSError(self.number, os.strerror(self.number))


@pytest.fixture
def here(monkeypatch, tmp_path):
    """Let commands find a Mac with nothing on it, a log with one line, and nobody who serves."""
    for name in [name for name in os.environ if name.startswith(("PROXY_", "XDG_", "FORCE_COLOR"))]:
        monkeypatch.delenv(name)
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "launchctl").write_text("#!/bin/sh\necho 'Could not find service' >&2\nexit 113\n")
    (tools / "launchctl").chmod(0o755)
    log = tmp_path / "access.log"
    log.write_text('{"time":"2026-11-23T20:00:00.000Z","verdict":"served","method":"GET","path":"/v1/models"}\n')
    config = tmp_path / "config.toml"
    ports = free_port(), free_port()
    config.write_text(f'listen = "127.0.0.1"\nport = {ports[0]}\nupstream = "http://127.0.0.1:{ports[1]}"\n')
    environ = {"HOME": tmp_path, "PATH": tools, "PROXY_CONFIG": config, "PROXY_ACCESS_LOG": log}
    environ["PROXY_DIAGNOSTICS_LOG"] = log
    for name, value in environ.items():
        monkeypatch.setenv(name, str(value))
    machine = replace(Machine.here(), platform="darwin", root=tmp_path / "root")
    monkeypatch.setattr(Machine, "here", lambda: machine)
    monkeypatch.setattr(listener, "serve", lambda *_: 0)
    monkeypatch.setattr(demo, "steps", lambda stage: ())  # what the tour prints besides is enough to fail
    monkeypatch.setattr(demo.Child, "start", lambda child: None)
    monkeypatch.setattr(demo.Child, "last_words", lambda child, count: "")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPIPE], ids=["full_disk", "closed_pipe"])
@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_every_command(here, monkeypatch, capsys, words, number):
    """What can't be written is one error with a hint, and a closed pipe none; Python has nothing left to flush."""
    file = Failing(number)
    stdout = io.TextIOWrapper(io.BufferedWriter(file), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", stdout)
    code = cli.main(words)
    errors = [line for line in capsys.readouterr().err.splitlines() if "standard output" in line]
    if file.tries and number == errno.ENOSPC:
        assert (code, errors) == (1, ["error: standard output can't be written: No space left on device"])
    else:
        assert errors == []
    assert sys.stdout is stdout
    stdout.flush()
    assert file.tries <= 1
    if words[-1] in {"--help", "--version"}:
        assert file.tries == 1


# --- as processes -----------------------------------------------------------------------------------------------------


def started(tmp_path, *words, **streams):
    """Return a command that has ended, in an environment that has nothing but a home."""
    (tmp_path / "empty").mkdir()
    environ = {"HOME": str(tmp_path), "PATH": str(tmp_path / "empty")}
    streams = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE, **streams}
    command = [sys.executable, "-m", "proxy", *words]
    return subprocess.run(command, cwd=ROOT, env=environ, text=True, timeout=PATIENCE, check=False, **streams)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
@pytest.mark.parametrize(
    "words", [["--version"], ["explain", "GET", "/"], ["status"], ["verify"], ["stop"]], ids=" ".join
)
def test_full_disk(tmp_path, words):
    """A process ends as a command does: error, hint, exit code 1; or, having printed nothing, as it would anyway.

    `test_every_command` has all commands.
    """
    with open("/dev/full", "w") as full:
        done = started(tmp_path, *words, stdout=full)
    *_, error, hint = done.stderr.splitlines()
    assert (error[:7], hint[:6]) == ("error: ", "hint: ")
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    if "standard output" in error:
        assert (done.returncode, hint) == (1, "hint: df -h (that disk is full)")
    else:
        assert done.returncode in {1, 2, 3}


@pytest.mark.parametrize(
    ("words", "code"),
    [(["status"], 1), (["explain", "GET", "/"], 0), (["--help"], 0)],
    ids=["status", "explain", "help"],
)
def test_closed_pipe(tmp_path, words, code):
    """A reader that has gone ends it silently, with the exit code that the command has anyway."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = started(tmp_path, *words, stdout=writing)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.parametrize(
    ("closed", "code", "said"),
    [
        ("1", 1, "error: standard output can't be written: it is closed\nhint: add `> FILE`\n"),
        ("2", 0, ""),
        ("0", 0, ""),
    ],
    ids=["stdout", "stderr", "stdin"],
)
def test_closed_stream(tmp_path, closed, code, said):
    """Without standard output there is an error; without one of the others the command does what it can."""
    with open(os.devnull, "w") as nothing:
        done = started(tmp_path, "--version", stdout=nothing, preexec_fn=lambda: os.close(int(closed)))
    assert (done.returncode, done.stderr) == (code, said)


# --- the streams ------------------------------------------------------------------------------------------------------


class Slow(io.RawIOBase):
    """A file that takes three bytes of each write, as a pipe may."""

    def __init__(self):
        self.octets = b""

    def writable(self):
        return True

    def write(self, octets):
        self.octets += bytes(octets[:3])
        return min(len(octets), 3)


@pytest.mark.parametrize("buffered", [True, False], ids=["buffered", "unbuffered"])
def test_all_of_it_is_written(monkeypatch, buffered):
    """Text and bytes arrive whole and in order, however little a write takes, buffered or not (as with -u)."""
    file = Slow()
    stdout = io.TextIOWrapper(io.BufferedWriter(file) if buffered else file, "ascii", write_through=not buffered)
    monkeypatch.setattr(sys, "stdout", stdout)

    def command():
        print("Grüße")
        sys.stdout.flush()
        sys.stdout.buffer.write(b"\xff and more\n")
        return 5

    assert output.written(command) == 5
    assert file.octets == b"Gr\\xfc\\xdfe\n\xff and more\n"


def test_nonblocking_stream(monkeypatch, capsys):
    """A descriptor that takes nothing now, because someone made it non-blocking, is a failed write."""
    file = Slow()
    file.write = lambda octets: None
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(file, write_through=True))
    assert output.written(lambda: print("line") or 0) == 1
    assert "can't be written: Resource temporarily unavailable\n" in capsys.readouterr().err


def test_other_errors_stay(monkeypatch):
    """An exception of the command itself is not the output's business; what was printed before it is written."""
    file = Slow()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(file)))
    with pytest.raises(SystemExit, match="words"):
        output.written(lambda: print("before") or sys.exit("words"))
    assert file.octets == b"before\n"


def test_standard_error_that_fails(monkeypatch):
    """Talk that can't be written is lost, and changes nothing about the exit code."""
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BufferedWriter(Failing(errno.ENOSPC))))
    assert output.written(lambda: print("talk", file=sys.stderr) or 0) == 0


# --- json -------------------------------------------------------------------------------------------------------------


def printed(words, capsys):
    """Run a command; return its exit code, standard output and standard error."""
    code = cli.main(words)
    return code, *capsys.readouterr()


@pytest.mark.parametrize("words", AS_JSON, ids=" ".join)
def test_json_of_every_command(here, capsys, words):
    """With --json standard output is one JSON document, or one a line for the lines of a log, and the code is the same.

    Errors stand on standard error as well.
    """
    code, _, plain_errors = printed(words, capsys)
    json_code, out, errors = printed([*words, "--json"], capsys)
    assert json_code == code
    if words[0] == "logs" and not {"--summary", "--verify"} & set(words):
        assert all(isinstance(json.loads(line), dict) for line in out.splitlines())
    else:
        assert isinstance(json.loads(out), dict | list)
    if words != ["--check"]:  # there a wrong setting is a finding
        assert [line for line in plain_errors.splitlines() if line.startswith("error: ") and line not in errors] == []


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        pytest.param(["connect"], {"tools"}, id="connect"),
        pytest.param(["connect", "nothing-of-the-kind"], {"errors", "hint"}, id="error"),
        pytest.param(["install", "--dry-run"], {"findings", "steps"}, id="install_dry_run"),
        pytest.param(["install", "--yes"], {"findings", "steps", "errors", "hint"}, id="install"),
        pytest.param(["uninstall", "--yes"], {"done", "left"}, id="uninstall"),
        pytest.param(["completion", "fish"], {"script"}, id="script"),
    ],
)
def test_keys(here, capsys, words, keys):
    """An object has the keys that docs/commands.md names; a command that failed adds `errors` and `hint`."""
    assert {*json.loads(printed([*words, "--json"], capsys)[1])} == keys


def test_documents_are_documented():
    """docs/commands.md says what each command prints with --json."""
    section = (ROOT / "docs/commands.md").read_text().partition("## JSON")[2].partition("\n## ")[0]
    named = {
        word for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for word in re.findall(r"`([^` ]+)", row)
    }
    (tree,) = (commands.commands(commands.options())[0].action("command").choices,)
    assert {*tree} - named == set()


@pytest.mark.parametrize("words", [["--check"], ["demo"], ["verify"]], ids=" ".join)
def test_arrays(here, capsys, words):
    """What only judges is an array of findings, each with name, outcome, detail and hint."""
    found = json.loads(printed([*words, "--json"], capsys)[1])
    assert isinstance(found, list)
    assert [each for each in found if not {"name", "outcome", "detail", "hint"} <= {*each}] == []


def test_narration_goes_to_standard_error(here, capsys):
    """What a command does meanwhile is still to be read, on standard error."""
    _, out, errors = printed(["demo", "--json"], capsys)
    assert json.loads(out) == []
    assert "remote-ollama-proxy: a tour on loopback" in errors
