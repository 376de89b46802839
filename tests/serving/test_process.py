"""The real process: how it starts, takes signals, reloads, stops, and continues when a dependency fails."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM
from typing import TYPE_CHECKING, Any

import pytest

from proxy.policy.gate import judge_host
from proxy.policy.refusals import Reason
from proxy.policy.replies import STREAM_FAILURES, error_event
from proxy.policy.routes import Dialect
from proxy.serving.listener import policy_of
from proxy.settings.settings import Settings
from tests.fakes.localapi import Tailnet
from tests.support.patience import PATIENCE
from tests.support.ports import free_port
from tests.support.raw_http import HANG, LAST_CHUNK, NEXT, chunk, ok, stream_head, until

FAKES = Path(__file__).parent.parent / "fakes"

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from signal import Signals

    from tests.support.proxy_process import Process
    from tests.support.raw_http import Upstream, Wire

    Program = Callable[..., Awaitable[Process]]

TOKEN = b'data: {"model":"m"}\n\n'
END = b"data: [DONE]\n\n"


async def begin_stream(process: Process, path: str = "/v1/chat/completions", token: bytes = TOKEN) -> Wire:
    """Return a client that has read the first event of a streamed answer."""
    client = await process.connect()
    await client.request("POST", path, b"{}")
    await client.read_until(chunk(token))
    return client


async def rest_of(client: Wire) -> bytes:
    """Return what is still to come from a connection, up to its end."""
    octets = await client.read_until_closed()
    client.close()
    return octets


def told(reason: Reason, dialect: Dialect = Dialect.CHAT, **seen: Any) -> bytes:
    """Return the chunk that says to a client why its stream ends."""
    return chunk(error_event(dialect, STREAM_FAILURES[reason], **seen))


# --- start ------------------------------------------------------------------------------------------------------------


async def test_it_listens_and_says_so(program: Program, upstream: Upstream) -> None:
    """The first thing said is where it listens and what it stands before; then it serves."""
    upstream.answers(ok(b'{"version":"1"}'))
    process = await program()
    await process.says(f"listening address=http://127.0.0.1:{process.port} upstream=http://127.0.0.1:{upstream.port}")
    assert len(process.said) == 1
    assert (await process.ask("GET", "/api/version")).content == b'{"version":"1"}'


async def test_port_in_use(program: Program) -> None:
    """A port that another process has is named, with the command that shows whose it is; exit code 1."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, said = await (await program(PROXY_PORT=port)).exit()
    assert code == 1
    assert said.startswith(f"error: 127.0.0.1 port {port} is in use by another process\nhint: ")
    assert f"lsof -nP -iTCP:{port}" in said


@pytest.mark.parametrize("option", ["access_log", "diagnostics_log"])
async def test_unwritable_log(program: Program, tmp_path: Path, option: str) -> None:
    """A log that can't be written stops the start, with its path and a hint; exit code 2."""
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "log"
    code, said = await (await program(**{f"PROXY_{option.upper()}": path})).exit()
    assert code == 2
    assert said.startswith(f"error: {option}: cannot write the log {path}: Not a directory\nhint: ")
    assert f"--{option.replace('_', '-')}" in said


async def test_wrong_settings(program: Program, tmp_path: Path) -> None:
    """Every wrong setting is reported at once, with value and source; exit code 2."""
    config = tmp_path / "wrong.toml"
    config.write_text('allow = ["POST /api/pull"]\nmax_bodi = 1\n')
    wrong = {"PROXY_PORT": "0", "PROXY_LISTEN": "0.0.0.0", "PROXY_UPSTREAM": "http://192.0.2.1:1"}
    code, said = await (await program(**wrong, PROXY_CONFIG=config)).exit()
    assert code == 2
    for name, value in wrong.items():
        assert f' = "{value}" (environment {name}): ' in said
    assert f'error: allow = ["POST /api/pull"] (file {config}, line 1): ' in said
    assert "did you mean max_body?" in said
    assert [line.partition(":")[0] for line in said.splitlines()] == ["error"] * 5 + ["hint"]


async def test_parser_missing(program: Program) -> None:
    """Without aiohttp's C parser it doesn't start, and says how to get it."""
    code, said = await (await program(AIOHTTP_NO_EXTENSIONS=1)).exit()
    assert code == 1
    assert said.startswith("error: aiohttp's C parser is not loaded")
    assert "\nhint: unset AIOHTTP_NO_EXTENSIONS" in said


async def test_few_descriptors(program: Program, upstream: Upstream) -> None:
    """If the limit of open files can't be raised, the limit of connections shrinks, is reported, and holds."""
    upstream.answers(ok())
    process = await program(before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200)))
    assert "limit=200 max_connections=68 hint=" in await process.says("descriptors_short")
    await process.says("listening")
    clients = [await process.connect() for _ in range(69)]
    assert (await clients[-1].answer()).status == 503
    await clients[0].request("GET", "/api/version")
    assert (await clients[0].answer()).status == 200
    for client in clients:
        client.close()


# --- stop -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [SIGTERM, SIGINT])
async def test_a_signal_lets_streams_finish(program: Program, upstream: Upstream, name: Signals) -> None:
    """A signal closes the door and lets what is under way come to its true end; exit code 0."""
    upstream.answers(stream_head(), chunk(TOKEN), NEXT, chunk(END), LAST_CHUNK)
    process = await program()
    await process.says("listening")
    client = await begin_stream(process)
    process.signal(name)
    assert "connections=1 at_most=25s" in await process.says("draining")
    with pytest.raises(ConnectionRefusedError):
        await process.connect()
    upstream.proceed()
    assert await rest_of(client) == chunk(END) + LAST_CHUNK
    code, said = await process.exit()
    assert (code, said.split()[-1]) == (0, "stopped")
    (line,) = process.lines()
    assert line["ended"] == "complete"


@pytest.mark.parametrize("names", [(SIGTERM, SIGTERM), (SIGINT, SIGINT), (SIGTERM, SIGINT)])
async def test_a_second_signal_cuts(program: Program, upstream: Upstream, names: tuple[Signals, Signals]) -> None:
    """A second signal cuts streams at once, with an error event; exit code 0."""
    upstream.answers(stream_head(), chunk(TOKEN), HANG)
    process = await program(PROXY_DRAIN_TIMEOUT="1h")
    await process.says("listening")
    client = await begin_stream(process)
    process.signal(names[0])
    await process.says("draining")
    process.signal(names[1])
    assert await rest_of(client) == told(Reason.DRAINING)
    assert (await process.exit())[0] == 0
    (line,) = process.lines()
    assert (line["ended"], line["reason"], line["status"]) == ("proxy/content", "draining", 200)


STARTED = b'event: message_start\ndata: {"type":"message_start"}\n\n'
CREATED = b'event: response.created\ndata: {"sequence_number":4,"response":{"id":"resp_1","model":"m"}}\n\n'
STREAMS = [
    ("/v1/chat/completions", TOKEN, told(Reason.DRAINING)),
    ("/v1/messages", STARTED, told(Reason.DRAINING, Dialect.MESSAGES)),
    ("/v1/responses", CREATED, told(Reason.DRAINING, Dialect.RESPONSES, sequence_number=5, response_id="resp_1")),
    ("/api/chat", b'{"model":"m"}\n', told(Reason.DRAINING, Dialect.NDJSON)),
]


async def test_a_drain_has_an_end(program: Program, upstream: Upstream) -> None:
    """After `drain_timeout` each stream is cut with its own surface's error event, and the process ends well."""
    kinds = [b"application/x-ndjson" if path == "/api/chat" else b"text/event-stream" for path, _, _ in STREAMS]
    scripts = [(stream_head(kind), chunk(first), HANG) for kind, (_, first, _) in zip(kinds, STREAMS, strict=True)]
    upstream.answers_in_turn(*scripts)
    process = await program(PROXY_DRAIN_TIMEOUT=0.1, PROXY_ALLOW="POST /api/chat")
    await process.says("listening")
    clients = [await begin_stream(process, path, first) for path, first, _ in STREAMS]
    process.signal(SIGTERM)
    assert [await rest_of(client) for client in clients] == [last for _, _, last in STREAMS]
    assert (await process.exit())[0] == 0
    lines = process.lines()
    assert sorted(line["path"] for line in lines) == sorted(path for path, _, _ in STREAMS)
    assert {(line["ended"], line["reason"]) for line in lines} == {("proxy/content", "draining")}


# --- reload -----------------------------------------------------------------------------------------------------------


async def test_own_name_is_an_allowed_host(program: Program, upstream: Upstream, tmp_path: Path) -> None:
    """Clients may call the machine by its name in the tailnet, of whatever domain; a reload takes nothing from that."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/tailscale").symlink_to(FAKES / "tailscale")
    Tailnet(tmp_path).change(dns="mac.mesh.example.com.")
    upstream.answers(ok(b'{"version":"1"}'))
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    # Nothing is listened on beyond 127.0.0.1: this machine doesn't have the addresses that the fake reports.
    process = await program(PROXY_LISTEN="127.0.0.1,tailscale", PATH=path, FAKE_TAILSCALE=tmp_path)
    await process.says("not_listening")

    async def status_of(host: str) -> int:
        client = await process.connect()
        await client.send(f"GET /api/version HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        status = (await client.answer()).status
        client.close()
        return status

    for _ in range(2):
        assert await status_of(f"mac.mesh.example.com:{process.port}") == 200
        assert await status_of("MAC.mesh.example.com.") == 200
        assert await status_of("mac.mesh.example.com.evil.example") == 403
        assert await status_of("other.mesh.example.com") == 403
        process.config.write_text("# nothing\n")
        process.signal(SIGHUP)
        await process.says(f"reloaded config={process.config}")


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        pytest.param("mac.mesh.example.com", True, id="name"),
        pytest.param("*.example.com", False, id="pattern"),
        pytest.param('a"b\r\nX: y', False, id="no_name"),
        pytest.param("", False, id="empty"),
    ],
)
def test_own_name_in_the_policy(name: str, allowed: bool) -> None:
    """Only a host name is taken over from Tailscale, and it is no mistake if what it reports is none."""
    policy = policy_of(Settings(), name)
    assert (judge_host(b"mac.mesh.example.com", policy) is None) is allowed
    assert judge_host(b"stranger.example.com", policy) is not None


async def test_reload_opens_a_row(program: Program, upstream: Upstream) -> None:
    """SIGHUP takes a changed file whole: a row that it opens is served, without a restart."""
    upstream.answers(ok(b'{"models":[]}'))
    process = await program()
    await process.says("listening")
    assert (await process.ask("GET", "/api/ps")).status == 403
    process.config.write_text('allow = ["GET /api/ps"]\n')
    process.signal(SIGHUP)
    await process.says(f"reloaded config={process.config}")
    assert (await process.ask("GET", "/api/ps")).content == b'{"models":[]}'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param("allow = [", "is not TOML: ", id="not_toml"),
        pytest.param('alow = ["GET /api/ps"]', "did you mean allow?", id="unknown_option"),
        pytest.param('allow = []\nmax_body = "much"', "is not a size", id="wrong_value_beside_a_right_one"),
        pytest.param(None, "can't be read: ", id="missing"),
    ],
)
async def test_reload_of_a_bad_file(
    program: Program, upstream: Upstream, tmp_path: Path, text: str | None, why: str
) -> None:
    """A bad file changes nothing at all, and what is wrong with it is said."""
    upstream.answers(ok(b'{"models":[]}'))
    config = tmp_path / "other.toml"
    config.write_text('allow = ["GET /api/ps"]\n')
    process = await program(PROXY_CONFIG=config)
    await process.says("listening")
    if text is None:
        config.unlink()
    else:
        config.write_text(text)
    process.signal(SIGHUP)
    line = await process.says("reload_refused")
    assert why in line
    assert str(config) in line
    assert (await process.ask("GET", "/api/ps")).status == 200


async def test_reload_reports_what_needs_a_restart(program: Program, upstream: Upstream, tmp_path: Path) -> None:
    """Options bound at the start keep their old values and are named; the others of the same file apply."""
    upstream.answers(ok(b'{"models":[]}'))
    config, port = tmp_path / "other.toml", free_port()
    old = {"listen": "127.0.0.1", "port": port, "upstream": f"http://127.0.0.1:{upstream.port}"}
    old |= {"access_log": f"{tmp_path}/access.log", "diagnostics_log": "-"}
    new = {"listen": "127.0.0.2", "port": port - 1, "upstream": "http://127.0.0.1:9"}
    new |= {"access_log": f"{tmp_path}/a.log", "diagnostics_log": f"{tmp_path}/d.log", "allow": "GET /api/ps"}
    config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in old.items()))
    process = await program(**dict.fromkeys(f"PROXY_{name.upper()}" for name in old), PROXY_CONFIG=config)
    process.port = port
    await process.says("listening")
    config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in new.items()))
    process.signal(SIGHUP)
    line = await process.says("reload_needs_restart")
    assert 'options="listen, port, upstream, access_log, diagnostics_log"' in line
    await process.says("reloaded")
    assert (await process.ask("GET", "/api/ps")).status == 200
    await until(process.lines)
    assert not (tmp_path / "a.log").exists()
    assert not (tmp_path / "d.log").exists()


async def test_reload_reopens_the_access_log(program: Program, tmp_path: Path) -> None:
    """After SIGHUP a log that was moved away is begun again, and the moved one grows no more."""
    process = await program()
    await process.says("listening")
    await process.ask("GET", "/before")
    await until(process.lines)
    moved = process.access_log.rename(tmp_path / "access.old")
    await process.ask("GET", "/between")
    await until(lambda: moved.read_bytes().count(b"\n") == 2)
    process.signal(SIGHUP)
    await process.says("reloaded")
    await process.ask("GET", "/after")
    await until(process.lines)
    assert [line["path"] for line in process.lines()] == ["/after"]
    assert [json.loads(line)["path"] for line in moved.read_bytes().splitlines()] == ["/before", "/between"]


# --- Ollama goes and comes --------------------------------------------------------------------------------------------


async def test_upstream_down(program: Program, upstream: Upstream) -> None:
    """While Ollama is down, a request gets the command that starts it. Once it is up, requests are served."""
    await upstream.stop()
    upstream.answers(ok(b"up"))
    process = await program()
    await process.says("listening")
    answer = await process.ask("GET", "/api/tags")
    assert answer.status == 502
    assert "start it there (`python -m proxy start ollama`, or `ollama serve`)" in json.loads(answer.content)["error"]
    await upstream.start(upstream.port)
    assert (await process.ask("GET", "/api/version")).content == b"up"
    await until(lambda: len(process.lines()) == 2)
    assert [line["ended"] for line in process.lines()] == ["upstream/connect", "complete"]


async def test_upstream_restarted(program: Program, upstream: Upstream) -> None:
    """A stream that Ollama's end cuts says so to the client; the next request finds the new Ollama."""
    upstream.answers(stream_head(), chunk(TOKEN), HANG)
    process = await program()
    await process.says("listening")
    client = await begin_stream(process)
    await upstream.stop()
    assert await rest_of(client) == told(Reason.UPSTREAM_CLOSED)
    upstream.answers(ok(b"again"))
    await upstream.start(upstream.port)
    assert (await process.ask("GET", "/api/version")).content == b"again"
    await until(lambda: len(process.lines()) == 2)
    assert [line["ended"] for line in process.lines()] == ["upstream/content", "complete"]


# --- a full disk ------------------------------------------------------------------------------------------------------

ROOM = 64 * 1024
"""Bytes that a log may have on a disk that is nearly full."""


class Mounted:
    """A folder that is a file system in memory, filled up by a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
        try:
            subprocess.run(mount, check=True, capture_output=True, timeout=PATIENCE)
        except (OSError, subprocess.SubprocessError):
            pytest.skip("only root mounts a file system")
        (folder / "filler").write_bytes(bytes(8 * 2**20 - ROOM))

    def before(self) -> None:
        """Leave the new process as it is."""

    def free(self, _pid: int) -> None:
        """Make room."""
        (self.folder / "filler").unlink()

    def close(self) -> None:
        """Take the file system away, also from under a process that still writes to it."""
        subprocess.run(["umount", "-l", str(self.folder)], check=True, timeout=PATIENCE)


class Limited:
    """A folder in which the process may write no file larger than `ROOM`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

    def before(self) -> None:
        """Set the limit; a write beyond it fails with EFBIG, for Python ignores SIGXFSZ."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, self._hard))

    def free(self, pid: int) -> None:
        """Make room for the process `pid`."""
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (self._hard, self._hard))

    def close(self) -> None:
        """Leave nothing behind: the limit ends with the process."""


@pytest.fixture(params=[Mounted, Limited])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mounted | Limited]:
    """Give a disk that is nearly full until the test calls `free`."""
    folder = tmp_path / "disk"
    folder.mkdir()
    disk = request.param(folder)
    yield disk
    disk.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has tmpfs, and limits that another process lifts")
async def test_full_disk(disk: Mounted | Limited, program: Program) -> None:
    """On a full disk it serves on and says so; with room again, what waited is written and the lost lines counted."""
    count = 1500  # lines of 1 KiB: more than the disk takes and memory holds
    process = await program(PROXY_ACCESS_LOG=disk.folder / "access.log", before=disk.before)
    process.access_log = disk.folder / "access.log"
    await process.says("listening")
    client = await process.connect()
    request = f"GET /{'p' * 256} HTTP/1.1\r\nHost: {'h' * 256}\r\nUser-Agent: {'u' * 256}\r\n\r\n".encode()
    for _ in range(count // 30):
        await client.send(request * 30)
        assert {(await client.answer()).status for _ in range(30)} == {403}
    client.close()
    await process.says("log_not_written")
    assert process.access_log.stat().st_size <= ROOM
    disk.free(process.pid)
    await process.says("log_writable_again")
    await process.ask("GET", "/last")
    await until(lambda: b'"/last"' in process.access_log.read_bytes())
    *before, gap, last = process.lines()
    assert last["path"] == "/last"
    assert gap["audit_gap"] > 0
    assert len(before) + gap["audit_gap"] == count
