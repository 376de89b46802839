"""What a shell makes of a TAB, in the real bash, zsh and fish, with the script that `completion` prints."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from proxy.command_line import commands
from proxy.command_line.completion import script
from tests.support.patience import PATIENCE

LINES = [
    pytest.param("unins", "uninstall", id="command"),
    pytest.param("--serve-p", "--serve-port", id="setting"),
    pytest.param("install --dr", "--dry-run", id="flag_of_a_command"),
    pytest.param("connect claude-c", "claude-code", id="tool"),
    pytest.param("restart oll", "ollama", id="service"),
    pytest.param("completion fi", "fish", id="shell"),
    pytest.param("--config conf", "config.toml", id="file"),
]

_BASH = """
source "$0"
COMP_WORDS=(remote-ollama-proxy "$@")
COMP_CWORD=$#
COMP_LINE="${COMP_WORDS[*]}"
_shtab_remote_ollama_proxy remote-ollama-proxy "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def printed(shell):
    """Return the script for a shell."""
    return script(commands.commands(commands.options())[0], shell)


@pytest.fixture
def folder(tmp_path, request):
    """Give a folder with a file to be named, and the shell's script as `script`; skip where there is no such shell."""
    shell = request.node.name.split("_")[1].partition("[")[0]
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "config.toml").write_text("")
    (tmp_path / "script").write_text(printed(shell))
    return tmp_path


def run(folder, *words, **environ):
    """Run a shell in the folder; return what it printed, in lines."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder), **environ}
    done = subprocess.run(words, cwd=folder, env=environ, capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize(("line", "completed"), LINES)
def test_bash(folder, line, completed):
    """Bash offers one word for its beginning."""
    assert run(folder, "bash", "--norc", "-c", _BASH, "./script", *line.split(" ")) == [completed]


@pytest.mark.parametrize(("line", "completed"), LINES)
def test_fish(folder, line, completed):
    """Fish offers one word for its beginning, with what it is for."""
    code = f'source script; complete -C "remote-ollama-proxy {line}"'
    offered = run(folder, "fish", "--no-config", "-c", code, TERM="dumb")
    assert [each.partition("\t")[0] for each in offered] == [completed]


@pytest.mark.parametrize(("line", "completed"), LINES)
def test_zsh(folder, line, completed):
    """Zsh completes a word at a terminal, where alone it does so."""
    functions = folder / "functions"
    functions.mkdir()
    (folder / "script").rename(functions / "_remote-ollama-proxy")
    # What is typed is printed once it is entered: what the terminal echoes meanwhile is full of control codes.
    (folder / ".zshrc").write_text(
        f"fpath=({functions} $fpath); autoload -U compinit; compinit -u -D\n"
        "remote-ollama-proxy() { print -r -- 'GOT<'$*'>' }; print READY\n"
    )
    said = typed(folder, f"remote-ollama-proxy {line}\t", "READY")
    assert f"GOT<{' '.join([*line.split(' ')[:-1], completed])}>" in said


def typed(folder, text, ready):
    """Type a line at a zsh that has said that it is ready; return all that it printed."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "ZDOTDIR": str(folder), "TERM": "dumb"}
        os.execvpe("zsh", ["zsh", "-d", "-i"], environ)
    said = b""
    try:
        for awaited, words in ((ready, f"{text}\n"), ("GOT<", "exit\n")):
            deadline = time.monotonic() + PATIENCE
            while awaited.encode() not in said:
                assert select.select([terminal], [], [], deadline - time.monotonic())[0], said
                said += os.read(terminal, 65536)
            os.write(terminal, words.encode())
        while chunk := _read(terminal):
            said += chunk
    finally:
        os.close(terminal)
        os.waitpid(child, 0)
    return said.decode(errors="replace")


def _read(terminal):
    try:
        return os.read(terminal, 65536)
    except OSError:  # the other end is closed
        return b""


@pytest.mark.parametrize("shell", commands.SHELLS)
def test_script_is_of_the_command(shell):
    """A script completes the command by its name on the PATH, wherever it was printed, and knows each command."""
    text = printed(shell)
    assert "python -m proxy" not in text
    assert [name for name in ("explain", "verify", "warm", "completion") if name not in text] == []


def test_nothing_else_loads_it():
    """The library is loaded by this command only: the program that serves and the other commands start without it."""
    code = "import sys; from proxy.command_line import cli; from proxy.serving import listener; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "shtab" not in done.stdout.split()


def test_script_reaches_standard_output():
    """The command prints the script, and nothing else anywhere."""
    command = [sys.executable, "-m", "proxy", "completion", "fish"]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent.parent, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (printed("fish") + "\n", "")
