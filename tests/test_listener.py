"""Where the parts meet: what keeps the process from starting, its signals, its settings anew, and how it ends."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from proxy import listener
from proxy.listener import CannotServeError, Listener, bind, keep_alive, raise_descriptor_limit
from proxy.settings import load
from tests.process import free_port
from tests.wire import HANG, LAST_CHUNK, NEXT, Upstream, chunk, ok, stream_head, until, within

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.process import Process
    from tests.wire import Answer

    Make = Callable[..., Process]

GET = b"GET /api/version HTTP/1.1\r\nHost: mac\r\n\r\n"
PS = b"GET /api/ps HTTP/1.1\r\nHost: mac\r\n\r\n"
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: mac\r\nContent-Length: 2\r\n\r\n{}"
EVENT = b'data: {"model":"m"}\n\n'
DONE = b"data: [DONE]\n\n"


async def ask(process: Process, octets: bytes = GET) -> Answer:
    """Return the answer to one request on a connection of its own."""
    wire = await process.connect()
    await wire.send(octets)
    return await wire.answer()


# --- start ------------------------------------------------------------------------------------------------------------


async def test_starts_and_stops(make: Make, upstream: Upstream) -> None:
    """It says where it listens, serves, writes its lines, and ends with 0 and nothing left unsaid."""
    upstream.answers(ok(b'{"version":"1"}'))
    begun = monotonic()
    process = await program()
    await process.says("listening", f"http://127.0.0.1:{process.port}")
    assert monotonic() - begun < 5
    assert (await ask(process)).content == b'{"version":"1"}'
    process.signal(signal.SIGTERM)
    code, said = await process.exit()
    assert code == 0
    assert [line["path"] for line in await process.lines(1)] == ["/api/version"]
    assert process.access_log.stat().st_mode & 0o777 == 0o600
    assert [line.split()[2] for line in said.splitlines()] == ["listening", "draining", "stopped"]


async def test_addresses_of_either_family(make: Make, upstream: Upstream) -> None:
    """Several addresses can be listened on, of both families, and each is said as a URL."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    upstream.answers(ok())
    process = await program(PROXY_LISTEN="127.0.0.1,::1")
    await process.says(f"http://127.0.0.1:{process.port}")
    await process.says(f"http://[::1]:{process.port}")
    reader, writer = await asyncio.open_connection("::1", process.port)
    writer.write(GET)
    assert (await within(reader.readline())).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_port_in_use(make: Make) -> None:
    """Another process on the port is said plainly, with how to find it; the exit code is 1."""
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        process = await program(PROXY_PORT=str(port))
        code, said = await process.exit()
    assert code == 1
    assert said.splitlines() == [
        f"error: 127.0.0.1 port {port} is in use by another process",
        f"hint: see which: lsof -nP -iTCP:{port} -sTCP:LISTEN; or give another --port",
    ]


@pytest.mark.parametrize(
    ("address", "text"),
    [
        pytest.param("192.0.2.1", "192.0.2.1 is no address of this machine", id="not_ours"),
        pytest.param("fe80::1", "can't listen on fe80::1 port 45000", id="without_its_interface"),
    ],
)
def test_address_that_cannot_be(address: str, text: str) -> None:
    """An address that can't be bound is named, with why."""
    with pytest.raises(CannotServeError, match=text) as caught:
        bind(address, 45000)
    assert caught.value.hint
    assert caught.value.status == 1


def test_sockets_of_clients_are_probed() -> None:
    """A closed laptop lid sends no FIN: the listening socket has keepalive and a small send buffer, which are inherited."""
    with bind("127.0.0.1", free_port()) as listening, socket.create_connection(listening.getsockname()):
        listening.setblocking(True)
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 10
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 2 * 256 * 1024
    with socket.socket() as plain:
        keep_alive(plain)
        assert plain.getsockopt(socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPIDLE", 0x10)) == 30


@pytest.mark.parametrize("option", ["access_log", "diagnostics_log"])
@pytest.mark.parametrize("kind", ["symlink", "folder", "below_a_file"])
async def test_log_that_cannot_be_written(make: Make, tmp_path: Path, option: str, kind: str) -> None:
    """A log that can't be written at the start stops it with 2: nobody serves without one. A link is not followed."""
    path = tmp_path / "other.log"
    if kind == "symlink":
        path.symlink_to("/dev/full")
    elif kind == "folder":
        path.mkdir()
    else:
        (tmp_path / "file").touch()
        path = tmp_path / "file" / "other.log"
    process = await program(**{f"PROXY_{option.upper()}": str(path)})
    code, said = await process.exit()
    error, hint = said.splitlines()
    assert code == 2
    assert error.startswith(f"error: {option}: cannot write the log {path}: ")
    assert f"--{option.replace('_', '-')}" in hint


async def test_lenient_parser(make: Make) -> None:
    """Without aiohttp's C parser nothing is served: its Python one is too lenient."""
    process = await program(AIOHTTP_NO_EXTENSIONS="1")
    code, said = await process.exit()
    assert code == 1
    assert said.startswith("error: aiohttp's C parser is not loaded")


async def test_warnings_of_the_settings(make: Make) -> None:
    """What the settings warn of is said once the log is open."""
    process = await program(PROXY_MAX_BODIES="1")
    await process.says("setting", "PROXY_MAX_BODIES", "max_body")


# --- descriptors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
async def test_few_descriptors(make: Make, upstream: Upstream, hard: bool) -> None:
    """A low soft limit of open files is raised; where the hard one forbids it fewer connections are let in, as is said."""
    upstream.answers(ok())
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    process = await program(
        PROXY_MAX_CONNECTIONS="60",
        PROXY_MAX_CONNECTIONS_PER_CLIENT="0",
        before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (70, 70 if hard else most)),
    )
    if hard:
        await process.says("descriptors_short", "limit=70", "max_connections=3")
    await process.says("listening")
    wires = [await process.connect() for _ in range(3)]
    for wire in wires:
        await wire.send(GET)
        assert (await wire.answer()).status == 200
    wires.append(await process.connect())
    await wires[3].send(b"" if hard else GET)
    assert (await wires[3].answer()).status == (503 if hard else 200)
    assert not [line for line in process.heard if "descriptors_short" in line] or hard


@pytest.mark.parametrize(
    ("soft", "hard", "asked", "reached"),
    [
        pytest.param(256, 4096, 1000, 1000, id="raised"),
        pytest.param(256, 500, 1000, 500, id="as_far_as_it_goes"),
        pytest.param(4096, 4096, 1000, 1000, id="enough"),
        pytest.param(resource.RLIM_INFINITY, resource.RLIM_INFINITY, 1000, 1000, id="no_limit"),
        pytest.param(256, resource.RLIM_INFINITY, 1000, 1000, id="no_hard_limit"),
        pytest.param(100, 4096, 700, 100, id="refused"),  # macOS does so beyond kern.maxfilesperproc
    ],
)
def test_limit_of_descriptors(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, asked: int, reached: int
) -> None:
    """The soft limit is raised to what is needed, never lowered, and what is then to be had is returned."""
    limit = [soft, hard]

    def change(_which: int, limits: tuple[int, int]) -> None:
        if asked == 700:
            raise ValueError
        limit[:] = limits

    monkeypatch.setattr(resource, "getrlimit", lambda _which: tuple(limit))
    monkeypatch.setattr(resource, "setrlimit", change)
    assert raise_descriptor_limit(asked) == reached
    assert limit[0] == soft if reached <= soft or soft == resource.RLIM_INFINITY else reached


# --- end --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_drains(make: Make, upstream: Upstream, number: signal.Signals) -> None:
    """A signal lets the stream under way finish, takes no further connection, and ends with 0."""
    upstream.answers(stream_head(), chunk(EVENT), NEXT, chunk(DONE), LAST_CHUNK)
    process = await program()
    await process.says("listening")
    stream, idle = await process.connect(), await process.connect()
    await stream.send(CHAT)
    await stream.read_until(EVENT + b"\r\n")
    process.signal(number)
    assert await idle.read() == b""
    with pytest.raises(ConnectionRefusedError):
        await process.connect()
    upstream.proceed()
    assert await stream.read_until_closed() == chunk(DONE) + LAST_CHUNK
    assert (await process.exit())[0] == 0
    assert [line["ended"] for line in await process.lines(1)] == ["complete"]


@pytest.mark.parametrize("second", [True, False], ids=["second_signal", "time_is_up"])
async def test_cuts(make: Make, upstream: Upstream, second: bool) -> None:
    """A second signal, or `drain_timeout`, cuts what is left, visibly; the exit code is 0 all the same."""
    upstream.answers(stream_head(), chunk(EVENT), HANG)
    process = await program(PROXY_DRAIN_TIMEOUT="600" if second else "0.2")
    await process.says("listening")
    wire = await process.connect()
    await wire.send(CHAT)
    await wire.read_until(EVENT + b"\r\n")
    process.signal(signal.SIGTERM)
    await process.says("draining", "connections=1")
    if second:
        process.signal(signal.SIGINT)
    rest = await wire.read_until_closed()
    assert b'"error"' in rest
    assert not rest.endswith(LAST_CHUNK)
    assert (await process.exit())[0] == 0
    assert [(line["ended"], line["reason"]) for line in await process.lines(1)] == [("proxy/content", "draining")]


# --- Ollama -----------------------------------------------------------------------------------------------------------


async def test_ollama_comes_and_goes(make: Make, upstream: Upstream) -> None:
    """Without Ollama a client is told how to start it; a stream that it dies in is visibly cut; once back it is used."""
    await upstream.stop()
    process = await program()
    await process.says("listening")
    answer = await ask(process)
    assert answer.status == 502
    assert b"ollama serve" in answer.content

    first = Upstream()
    first.answers(stream_head(), chunk(EVENT), HANG)
    await first.start(upstream.port)
    wire = await process.connect()
    await wire.send(CHAT)
    await wire.read_until(EVENT + b"\r\n")
    await first.stop()
    rest = await wire.read_until_closed()
    assert b"Ollama broke off" in rest
    assert not rest.endswith(LAST_CHUNK)

    second = Upstream()
    second.answers(ok(b"back"))
    await second.start(upstream.port)
    assert (await ask(process)).content == b"back"
    await second.stop()
    assert [line["ended"] for line in await process.lines(3)] == ["upstream/connect", "upstream/content", "complete"]


# --- settings anew ----------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Give an empty settings file."""
    path = tmp_path / "config.toml"
    path.touch()
    return path


async def test_reload(make: Make, config: Path, upstream: Upstream) -> None:
    """SIGHUP makes new settings hold for the next request, and disturbs none that is under way."""
    upstream.answers_in_turn((stream_head(), chunk(EVENT), NEXT, chunk(DONE), LAST_CHUNK), (ok(b"{}"),))
    process = await program(PROXY_CONFIG=str(config))
    await process.says("listening")
    stream = await process.connect()
    await stream.send(CHAT)
    await stream.read_until(EVENT + b"\r\n")
    asked = PS.replace(b"mac", b"mac.example.org")
    assert (await ask(process, asked)).status == 403
    config.write_text('allow = ["GET /api/ps"]\nallowed_hosts = ["mac.example.org"]\nmax_body = "1KiB"\n')
    process.signal(signal.SIGHUP)
    await process.says("reloaded", str(config))
    assert (await ask(process, asked)).status == 200
    assert (await ask(process, CHAT.replace(b": 2", b": 2000"))).status == 413
    upstream.proceed()
    assert await stream.read_until(LAST_CHUNK) == chunk(DONE) + LAST_CHUNK


async def test_reload_of_a_bad_file(make: Make, config: Path, upstream: Upstream) -> None:
    """A file with mistakes changes nothing, not even what is right in it, and each mistake is said."""
    upstream.answers(ok())
    process = await program(PROXY_CONFIG=str(config))
    await process.says("listening")
    config.write_text('allow = ["GET /api/ps"]\nmax_body = "much"\nnonsense = 1\n')
    process.signal(signal.SIGHUP)
    told = sorted([await process.says("reload_refused"), await process.says("reload_refused")])
    assert ["max_body" in told[0], "nonsense" in told[1]] == [True, True] or "nonsense" in told[0]
    assert (await ask(process, PS)).status == 403
    config.write_text('allow = ["GET /api/ps"]\n')
    process.signal(signal.SIGHUP)
    await process.says("reloaded")
    assert (await ask(process, PS)).status == 200
    assert sum("reload" in line for line in process.heard) == 3


async def test_reload_that_needs_a_restart(
    make: Make, config: Path, tmp_path: Path, upstream: Upstream
) -> None:
    """What can't change while it runs is named and stays; the rest of the file holds."""
    upstream.answers(ok())
    old = f'upstream = "http://127.0.0.1:{upstream.port}"\naccess_log = "{tmp_path}/access.log"\n'
    config.write_text(old)
    process = await program(PROXY_CONFIG=str(config), PROXY_UPSTREAM=None, PROXY_ACCESS_LOG=None)
    await process.says("listening")
    config.write_text(f'upstream = "http://127.0.0.1:1"\naccess_log = "{tmp_path}/b.log"\nallow = ["GET /api/ps"]\n')
    process.signal(signal.SIGHUP)
    await process.says("reload_needs_restart", '"upstream, access_log"')
    await process.says("reloaded")
    assert (await ask(process, PS)).status == 200
    assert len(await process.lines(1)) == 1
    assert not (tmp_path / "b.log").exists()


async def test_log_moved_away(make: Make, tmp_path: Path, upstream: Upstream) -> None:
    """After a log was moved away SIGHUP begins a new one; no line is lost or split."""
    upstream.answers(ok())
    process = await program()
    await process.says("listening")
    await ask(process)
    await process.lines(1)
    moved = process.access_log.rename(tmp_path / "access.log.old")
    await ask(process)
    await until(lambda: moved.read_text().count("\n") == 2)
    process.signal(signal.SIGHUP)
    await process.says("reloaded")
    await ask(process)
    assert len(await process.lines(1)) == 1
    assert moved.read_text().count("\n") == 2


# --- in this process --------------------------------------------------------------------------------------------------


@pytest.fixture
async def here(tmp_path: Path, upstream: Upstream) -> tuple[Listener, dict[str, str], Path]:
    """Give a listener that isn't running yet, the options it reads, and its diagnostics."""
    options = {
        "listen": "127.0.0.1",
        "port": str(free_port()),
        "upstream": f"http://127.0.0.1:{upstream.port}",
        "access_log": str(tmp_path / "access.log"),
        "diagnostics_log": str(tmp_path / "diagnostics.log"),
    }
    return Listener(load(options, {}), lambda: load(options, {})), options, tmp_path / "diagnostics.log"


async def running(server: Listener, diagnostics: Path) -> asyncio.Task[int]:
    """Let it run until it listens."""
    task = asyncio.create_task(server.run())
    await until(lambda: task.done() or (diagnostics.exists() and "listening" in diagnostics.read_text()))
    return task


async def test_level_of_the_diagnostics(here: tuple[Listener, dict[str, str], Path]) -> None:
    """A new `log_level` holds for all that speaks, the inner rooms and other libraries too."""
    server, options, diagnostics = here
    task = await running(server, diagnostics)

    async def hello() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", int(options["port"]))
        writer.write(b"\x16\x03\x01\x00\x05hello")
        closed = asyncio.create_task(writer.wait_closed())
        written = len((diagnostics.parent / "access.log").read_bytes())
        await until(lambda: len((diagnostics.parent / "access.log").read_bytes()) > written)
        writer.close()
        await closed

    counts = []
    for level in ("info", "error", "warning"):
        options["log_level"] = level
        server._reload()
        await hello()
        listener.logging.getLogger("aiohttp").warning("something")
        text = diagnostics.read_text()
        counts.append((text.count("tls_on_plain_port"), text.count('"library"')))
    server._stop()
    assert await within(task) == 0
    assert counts == [(1, 1), (1, 1), (2, 2)]
    assert not [each for each in listener.logging.getLogger().handlers if isinstance(each, listener.LibraryHandler)]


async def test_what_nobody_caught(here: tuple[Listener, dict[str, str], Path]) -> None:
    """An exception that reaches the loop is told by kind and place, never by its text, which may quote a client."""
    server, _, diagnostics = here
    task = await running(server, diagnostics)

    def fail() -> None:
        raise ValueError("canary")

    asyncio.get_running_loop().call_soon(fail)
    await until(lambda: '"internal"' in diagnostics.read_text())
    server._stop()
    await within(task)
    (told,) = [line for line in diagnostics.read_text().splitlines() if '"internal"' in line]
    assert '"exception":"ValueError"' in told
    assert f"{__name__.rpartition('.')[2]}.py" in told
    assert "canary" not in diagnostics.read_text()


async def test_wheel(here: tuple[Listener, dict[str, str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """All deadlines are looked at each second, those of clients, of idle connections to Ollama and of the logs."""
    server, _, diagnostics = here
    monkeypatch.setattr(listener, "TICK", 0.01)
    task = await running(server, diagnostics)
    server._clients.date = b""
    await until(lambda: server._clients.date)
    server._stop()
    assert await within(task) == 0
    server._clients.date = b""
    assert server._wheel is not None
    assert server._wheel.cancelled()


def test_serve_tells_why_it_cannot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What keeps it from serving is an exit code, an error and a hint, never a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        options = {
            "listen": "127.0.0.1",
            "port": str(taken.getsockname()[1]),
            "upstream": "http://127.0.0.1:1",
            "access_log": str(tmp_path / "access.log"),
        }
        assert listener.serve(load(options, {}), lambda: load(options, {})) == 1
    assert capsys.readouterr().err.startswith(f"error: 127.0.0.1 port {options['port']} is in use")
