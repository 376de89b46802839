"""How Tailscale is asked: which way in is taken, and that none of them holds anything up."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from proxy.tailnet import localapi
from proxy.tailnet.localapi import Daemon, Places, SilentError, run
from tests.fakes.localapi import Tailnet, app, tailscaled
from tests.support.patience import PATIENCE
from tests.support.raw_http import until

FAKES = Path(__file__).parent.parent / "fakes"
STATUS = ("status?peers=false", "status", "--json", "--peers=false")


@pytest.fixture
def folder():
    """Give a folder whose path is short enough for the address of a Unix socket."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def places(folder, monkeypatch):
    """Give places on a Mac that has nothing of Tailscale yet."""
    (folder / "bin").mkdir()
    monkeypatch.setenv("FAKE_TAILSCALE", str(folder))
    return Places(
        sockets=(f"{folder}/tailscaled.socket",),
        app=f"{folder}/Library",
        tools=(f"{folder}/Tailscale.app",),
        path=f"{folder}/bin",
        platform="darwin",
    )


@pytest.fixture
def opened():
    """Give a stack for servers that a test starts."""
    with ExitStack() as stack:
        yield stack


def script(path, text):
    """Write a shell script that can be run."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def tool(path):
    """Put the fake `tailscale` at `path`."""
    path.symlink_to(FAKES / "tailscale")


async def test_tailscaled_is_asked_at_its_socket(folder, places, opened):
    """A tailscaled of Homebrew or Linux answers at its Unix socket, without a password."""
    served = opened.enter_context(tailscaled(folder, places.sockets[0]))
    reply = await Daemon(places).ask(*STATUS)
    assert (reply.document["BackendState"], reply.source) == ("Running", "localapi")
    assert served.requests == ["/localapi/v0/status?peers=false"]


async def test_standalone_app_is_asked_with_its_password(folder, places, opened):
    """The standalone app answers at the port that `ipnport` names, to who can read the file with its password."""
    served = opened.enter_context(app(folder, places.app))
    reply = await Daemon(places).ask(*STATUS)
    assert (reply.document["BackendState"], reply.source) == ("Running", "localapi")
    assert served.requests == ["/localapi/v0/status?peers=false"]


async def test_app_store_app_is_found_with_lsof(folder, places, opened):
    """The App Store app's port and token stand in the name of a file that it holds open."""
    served = opened.enter_context(app(folder, None, password="5ca1ab1e"))
    group = "/Users/alice/Library/Group Containers/W5364U7YZB.group.io.tailscale.ipn.macos"
    listed = f"p512\nfcwd\nn/\nf7\nn{group}/sameuserproof-{served.server_address[1]}-5ca1ab1e\nf8\nn{group}/logs.txt"
    asked = f"-n -a -u{os.getuid()} -c IPNExtension -F n"
    script(folder / "bin/lsof", f"test \"$*\" = '{asked}' || exit 1; cat <<'END'\n{listed}\nEND")
    daemon = Daemon(places)
    assert (await daemon.ask(*STATUS)).source == "localapi"
    (folder / "bin/lsof").unlink()
    assert (await daemon.ask(*STATUS)).source == "localapi", "the door is remembered"
    assert "5ca1ab1e" not in repr(daemon)


async def test_app_that_was_started_anew(folder, places):
    """Port and password change at every start of the app: the remembered door is replaced."""
    daemon = Daemon(places)
    for password in ("f1r57", "5ec0nd"):
        with app(folder, places.app, password):
            for _ in range(2):
                assert (await daemon.ask(*STATUS)).source == "localapi"


async def test_lsof_that_can_not_be_run(folder, places):
    """Without lsof the App Store app's door stays unknown, and the tool is asked."""
    (folder / "bin/lsof").write_text("#!/nowhere/sh\n")
    (folder / "bin/lsof").chmod(0o755)
    tool(folder / "bin/tailscale")
    assert (await Daemon(places).ask(*STATUS)).source == "cli"


async def test_lsof_runs_at_most_once_a_minute(folder, places):
    """Where lsof found nothing it isn't run again for a while: it takes a good part of a second."""
    script(folder / "bin/lsof", f"echo run >> '{folder}/runs'; exit 1")
    tool(folder / "bin/tailscale")
    now = [100.0]
    daemon = Daemon(places, clock=lambda: now[0])
    for now[0] in (100.0, 159.0, 161.0):
        await daemon.ask(*STATUS)
    assert (folder / "runs").read_text() == "run\n" * 2


async def test_stale_files_lead_nowhere_and_on(folder, places):
    """A socket, port and password that were left behind don't work, and then the tool is asked."""
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(places.sockets[0])
    stale.close()
    with app(folder, places.app):
        pass
    tool(folder / "bin/tailscale")
    assert (await Daemon(places).ask(*STATUS)).source == "cli"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"SSH-2.0-OpenSSH_9.9\r\n", id="no_http"),
        pytest.param(b"HTTP/1.0 200 OK\r\n", id="head_cut"),
        pytest.param(b'HTTP/1.0 200 OK\r\n\r\n{"BackendState":"Run', id="content_cut"),
        pytest.param(b"HTTP/1.0 200 OK\r\n\r\n<html>", id="no_json"),
        pytest.param(b"HTTP/1.0 404 Not Found\r\n\r\n404 page not found\n", id="another_server"),
        pytest.param(b"HTTP/1.0 403 Forbidden\r\n\r\nstatus access denied\n", id="denied"),
        pytest.param(b"HTTP/1.0 200 OK\r\n\r\n" + b" " * localapi.ANSWER_LIMIT, id="too_much"),
    ],
)
async def test_who_answers_at_a_port_may_be_anybody(folder, places, answer):
    """Whatever else has taken the port since, its answer is dropped, and the tool is asked."""

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_unix_server(serve, places.sockets[0]):
        tool(folder / "bin/tailscale")
        assert (await Daemon(places).ask(*STATUS)).source == "cli"


async def test_silent_localapi_is_not_waited_for(folder, places, monkeypatch):
    """A LocalAPI that takes the request and says nothing is left after its time."""
    monkeypatch.setattr(localapi, "LOCALAPI_TIMEOUT", 0.05)
    left = asyncio.Event()

    async def serve(reader, writer):
        await reader.read()  # until the client leaves
        writer.close()
        left.set()

    async with await asyncio.start_unix_server(serve, places.sockets[0]):
        tool(folder / "bin/tailscale")
        assert (await Daemon(places).ask(*STATUS)).source == "cli"
        await asyncio.wait_for(left.wait(), PATIENCE)


async def test_unknown_peer_is_an_answer(folder, places, opened):
    """That nobody has an address is what the LocalAPI says: the tool isn't asked as well."""
    opened.enter_context(tailscaled(folder, places.sockets[0]))
    tool(folder / "bin/tailscale")
    reply = await Daemon(places).ask("whois?addr=100.64.0.9%3A5", "whois", "--json", "100.64.0.9:5")
    assert reply == (None, "localapi", False)
    assert Tailnet(folder).noted() == []


async def test_unknown_peer_by_the_tool(folder, places):
    """That nobody has an address is an answer of the tool's, too; it writes that to standard error."""
    tool(folder / "bin/tailscale")
    reply = await Daemon(places).ask("whois?addr=100.64.0.9%3A5", "whois", "--json", "100.64.0.9:5")
    assert reply == (None, "cli", False)


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        pytest.param("echo '{}'", True, id="that_answers"),
        pytest.param("echo 'not running' >&2; exit 1", False, id="that_does_not"),
    ],
)
async def test_tool_runs_at_most_each_half_minute(folder, places, text, answers):
    """If the LocalAPI can't be read, the app's binary isn't started with every look."""
    script(folder / "bin/tailscale", f"echo run >> '{folder}/runs'; {text}")
    now = [100.0]
    daemon = Daemon(places, clock=lambda: now[0])
    for now[0] in (100.0, 105.0, 129.9, 130.0):
        asked = daemon.ask(*STATUS, at_most=30.0)
        if answers:
            assert await asked == ({}, "cli", True)
        else:
            with pytest.raises(SilentError, match="says: not running"):
                await asked
    assert (folder / "runs").read_text() == "run\n" * 2


async def test_silent_tool_stands_in_no_door(folder, places, opened):
    """While the tool isn't run again, a LocalAPI that comes up is asked at once."""
    script(folder / "bin/tailscale", "exit 1")
    daemon = Daemon(places, clock=lambda: 100.0)
    with pytest.raises(SilentError):
        await daemon.ask(*STATUS)
    opened.enter_context(tailscaled(folder, places.sockets[0]))
    assert (await daemon.ask(*STATUS)).source == "localapi"


async def test_each_question_is_another(folder, places):
    """What the tool said to one question is no answer to another, nor to one that asks for the present."""
    tool(folder / "bin/tailscale")
    daemon = Daemon(places, clock=lambda: 100.0)
    for _ in range(2):
        await daemon.ask(*STATUS, at_most=30.0)
        await daemon.ask("serve-config", "serve", "status", "--json")
        await daemon.ask("whois?addr=100.64.0.9%3A5", "whois", "--json", "100.64.0.9:5")
    asked = [call["arguments"][0] for call in Tailnet(folder).noted()]
    assert asked == ["status", "serve", "whois", "serve", "whois"]


@pytest.mark.parametrize(
    ("platform", "on_path", "app", "advice", "hint"),
    [
        pytest.param("linux", False, True, "tailscale up", "tailscale up", id="linux"),
        pytest.param("darwin", True, True, "tailscale up", "tailscale up", id="command_on_path"),
        pytest.param("darwin", False, False, "tailscale up", "tailscale up", id="no_app_either"),
        pytest.param(
            *("darwin", False, True, "tailscale up"),
            "in the menu of the Tailscale app: Connect, or Log in; in a terminal: APP up",
            id="menu",
        ),
        pytest.param(
            *("darwin", False, True, "tailscale serve --https=443 off"), "APP serve --https=443 off", id="path"
        ),
        pytest.param("darwin", False, True, "open -a Tailscale", "open -a Tailscale", id="another_command"),
    ],
)
def test_hint_can_be_followed(folder, places, platform, on_path, app, advice, hint):
    """Where `tailscale` is no command, as on most Macs, a hint names the app's menu or the command's full path."""
    if on_path:
        tool(folder / "bin/tailscale")
    if app:
        tool(folder / "Tailscale.app")
    assert replace(places, platform=platform).hint(advice) == hint.replace("APP", f"{folder}/Tailscale.app")


def test_hint_with_a_space_in_its_path(folder, places):
    """A path with a space is quoted, so that it can be pasted."""
    tool(folder / "My Tailscale")
    hint = replace(places, tools=(f"{folder}/My Tailscale",)).hint("tailscale status")
    assert hint == f"'{folder}/My Tailscale' status"


async def test_tool_is_told_to_be_one(folder, places, monkeypatch):
    """Without a shell, the app's binary starts the app, unless a variable says otherwise."""
    monkeypatch.delenv("SHLVL", raising=False)
    Tailnet(folder).change(cli="app")
    tool(folder / "Tailscale.app")
    assert (await Daemon(places).ask(*STATUS)).document["BackendState"] == "Running"
    assert Tailnet(folder).noted() == [
        {"arguments": ["status", "--json", "--peers=false"], "be_cli": "1", "shlvl": "1"}
    ]


async def test_broken_tool_gives_way_to_the_next(folder, places):
    """A link on the PATH that crashes keeps nobody from the app's own binary, which is then asked first."""
    script(folder / "bin/tailscale", f"echo run >> '{folder}/runs'; kill -TRAP $$")
    tool(folder / "Tailscale.app")
    daemon = Daemon(places)
    for _ in range(2):
        assert (await daemon.ask(*STATUS)).source == "cli"
    assert (folder / "runs").read_text() == "run\n"


DEAD = "failed to connect to local tailscaled; it does not appear to be running (sudo systemctl start tailscaled ?)"
GUI = "The Tailscale GUI failed to start: The operation couldn’t be completed. (Tailscale.CLIError error 3.)"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(f"echo '{GUI}'", f"says: {GUI}", id="exit_0_without_json"),
        pytest.param("exit 1", "says nothing", id="nothing"),
        pytest.param(f"echo {DEAD!r} >&2; exit 1", f"says: {DEAD}", id="on_standard_error"),
        pytest.param("printf 'one\\ntwo\\n' >&2", "says: one two", id="on_several_lines"),
        pytest.param("printf '\\033[2J{'", r"says: \x1b[2J{", id="no_terminal_is_steered"),
        pytest.param("cat /dev/zero", "wrote too much", id="endless"),
    ],
)
async def test_tool_that_tells_nothing_is_quoted(folder, places, text, said):
    """Only JSON is an answer, whatever the exit code; what was said instead is passed on to the owner."""
    script(folder / "bin/tailscale", text)
    with pytest.raises(SilentError) as error:
        await Daemon(places).ask(*STATUS)
    assert f"{folder}/bin/tailscale " in str(error.value)
    assert said in str(error.value)
    assert "open -a Tailscale" in error.value.hint


async def test_no_tool_at_all(places):
    """Where nothing of Tailscale is found, the hint is to install it."""
    with pytest.raises(SilentError, match="not found on this machine") as error:
        await Daemon(places).ask(*STATUS)
    assert "https://tailscale.com/download" in error.value.hint


async def test_tool_that_never_returns_is_killed_whole(folder, places, monkeypatch):
    """When its time is over, a tool is killed with all that it started, and the error reports it."""
    monkeypatch.setattr(localapi, "PROGRAM_TIMEOUT", 0.5)
    os.mkfifo(folder / "alive")  # ends for its reader when no process has it open any more
    with open(os.open(folder / "alive", os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as alive:  # noqa: ASYNC230
        script(folder / "bin/tailscale", f"exec 3> '{folder}/alive'; echo up >&3; sleep 600; echo never")
        with pytest.raises(SilentError, match="does not answer within"):
            await Daemon(places).ask(*STATUS)
        await until(lambda: alive.read() == b"")


def command_line(process: psutil.Process) -> str:
    """Return the words of a process, or none when it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, None])
async def test_abandoned_program_is_killed(folder, places, turns):
    """If the caller stops waiting for a program, no process of it remains.

    That holds after few turns of a slow loop, and when all of it runs (None).
    """
    script(folder / "bin/slow", f"'{folder}/bin/inner' & wait")
    script(folder / "bin/inner", f"touch '{folder}/up'; sleep 600; exit 1")
    asking = asyncio.create_task(run(str(folder / "bin/slow")))
    for _ in range(turns or 0):
        await asyncio.sleep(0)
    begun = [child for child in psutil.Process().children() if f"{folder}/bin" in command_line(child)]
    while begun and not (folder / "up").exists():
        time.sleep(0.01)  # noqa: ASYNC251 - it starts its own program meanwhile, and the loop knows of neither yet
    while turns is None and not (folder / "up").exists():
        await asyncio.sleep(0.01)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await until(lambda: not [line for line in map(command_line, psutil.process_iter()) if f"{folder}/bin" in line])


async def test_output_is_whole_whatever_the_exit_code():
    """All of a program's output is read, even beyond what a pipe holds, and the beginning of its errors."""
    code = "import sys; sys.stdout.write('x' * 300_000); sys.stderr.write('e' * 300_000); sys.exit(3)"
    assert await run(sys.executable, "-c", code) == (b"x" * 300_000, b"e" * localapi.ERROR_LIMIT)
