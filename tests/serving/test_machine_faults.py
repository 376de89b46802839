"""The program's dependencies fail and come back: files, descriptors, streams, time, its own life.

A full disk, a moved log, and Ollama's end are in `test_process`; Tailscale's address that goes is in `test_namespaces`.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM
from typing import TYPE_CHECKING

import pytest

from proxy.logs.logfile import utc
from tests.support.patience import PATIENCE
from tests.support.ports import free_port
from tests.support.proxy_process import ROOT
from tests.support.raw_http import HANG, LAST_CHUNK, NEXT, chunk, ok, stream_head, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tests.support.proxy_process import Process
    from tests.support.raw_http import Proxy, Upstream, Wire

    Program = Callable[..., Awaitable[Process]]

MIB = 2**20
TOKEN = b'data: {"model":"m"}\n\n'
END = b"data: [DONE]\n\n"

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, and limits that another process sets")


def as_anybody() -> None:
    """Give up what lets root write where its owner may not: CAP_DAC_OVERRIDE, also for what is executed next."""
    if os.geteuid() == 0:
        pr_capbset_drop, cap_dac_override = 24, 1
        ctypes.CDLL(None).prctl(pr_capbset_drop, cap_dac_override, 0, 0, 0)


def paths(process: Process) -> list[str]:
    """Return the paths in the access log, as far as there is one."""
    return [line["path"] for line in process.lines()] if process.access_log.exists() else []


async def wait_for(process: Process, *told: str) -> None:
    """Wait until the access log has exactly these paths."""
    await until(lambda: paths(process) == [*told])


def shut(folder: Path) -> None:
    """Let nothing be made, renamed or removed in a folder."""
    folder.chmod(0o500)


def unshut(folder: Path) -> None:
    """Let it be again."""
    folder.chmod(0o700)


@pytest.fixture
def own_folder(tmp_path: Path) -> Iterator[Path]:
    """Give a folder that can be shut to processes that run `as_anybody`."""
    if os.geteuid() == 0 and sys.platform != "linux":
        pytest.skip("elsewhere than on Linux root can write everywhere")
    folder = tmp_path / "own"
    folder.mkdir(0o700)
    yield folder
    unshut(folder)


# --- the access log ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["file", "folder"])
async def test_removed_log(program: Program, tmp_path: Path, what: str) -> None:
    """A log that is removed, even with its folder, is begun again by the next line, which is in it; as private."""
    folder = tmp_path / "logs"
    process = await program(PROXY_ACCESS_LOG=folder / "access.log")
    process.access_log = folder / "access.log"
    await process.says("listening")
    await process.ask("GET", "/before")
    await wait_for(process, "/before")
    shutil.rmtree(folder) if what == "folder" else process.access_log.unlink()
    await process.ask("GET", "/after")
    await wait_for(process, "/after")
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, process.access_log)] == [0o700, 0o600]


async def test_removed_log_that_cannot_be_begun_anew(program: Program, own_folder: Path) -> None:
    """While a removed log can't be created again, its lines wait, and that is logged. Later they are written."""
    process = await program(before=as_anybody, PROXY_ACCESS_LOG=own_folder / "access.log", PROXY_CONFIG=None)
    process.access_log = own_folder / "access.log"
    await process.says("listening")
    process.access_log.unlink()
    shut(own_folder)
    for path in ("/1", "/2"):
        assert (await process.ask("GET", path)).status == 403
    assert 'error="Permission denied"' in await process.says("log_not_written")
    unshut(own_folder)
    await process.says("log_writable_again")
    await process.ask("GET", "/3")
    await wait_for(process, "/1", "/2", "/3")


async def write_lines(client: Wire, count: int) -> None:
    """Have `count` requests refused, each of which makes a line of 1 KiB."""
    request = f"GET /{'p' * 256} HTTP/1.1\r\nHost: {'h' * 256}\r\nUser-Agent: {'u' * 256}\r\n\r\n".encode()
    for _ in range(count // 25):
        await client.send(request * 25)
        assert {(await client.answer()).status for _ in range(25)} == {403}


class ReadOnlyFolder:
    """A folder in which nothing can be made or renamed any more."""

    def __init__(self, process: Process) -> None:
        self._folder = process.access_log.parent

    def begin(self) -> None:
        """Shut it."""
        shut(self._folder)

    def end(self) -> None:
        """Open it again."""
        unshut(self._folder)


class NoDescriptor:
    """A process that can open no further file, connection or socket."""

    def __init__(self, process: Process) -> None:
        self._pid = process.pid
        self._before = resource.prlimit(self._pid, resource.RLIMIT_NOFILE)

    def begin(self) -> None:
        """Set the limit at the lowest number that is free."""
        taken = {int(name) for name in os.listdir(f"/proc/{self._pid}/fd")}
        lowest = next(number for number in range(len(taken) + 1) if number not in taken)
        resource.prlimit(self._pid, resource.RLIMIT_NOFILE, (lowest, self._before[1]))

    def end(self) -> None:
        """Lift it."""
        resource.prlimit(self._pid, resource.RLIMIT_NOFILE, self._before)


@linux_only
@pytest.mark.parametrize("fault", [ReadOnlyFolder, NoDescriptor])
async def test_rotation_that_cannot_be(
    program: Program, own_folder: Path, fault: type[ReadOnlyFolder | NoDescriptor]
) -> None:
    """A log that can't be rotated grows and loses nothing; it is rotated when it can be and is due again."""
    log = own_folder / "access.log"
    process = await program(before=as_anybody, PROXY_ACCESS_LOG=log, PROXY_LOG_MAX_SIZE="1MiB", PROXY_CONFIG=None)
    process.access_log = log
    await process.says("listening")
    client = await process.connect()
    await write_lines(client, 25)  # so it is taken in before nothing more is
    fault_now = fault(process)
    fault_now.begin()
    await write_lines(client, 1200)
    await process.says("log_not_rotated")
    assert log.stat().st_size > MIB
    rotated = log.with_name("access.log.1")
    assert not rotated.exists()
    fault_now.end()
    await write_lines(client, 1200)
    client.close()
    await until(lambda: rotated.exists() and log.exists())
    await until(lambda: sum(path.read_bytes().count(b"\n") for path in (rotated, log)) == 2425)


# --- file descriptors -------------------------------------------------------------------------------------------------


def idled(process: Process) -> int:
    """Return how often a process has waited of its own will: one that spins never does."""
    told = Path(f"/proc/{process.pid}/status").read_text()
    return int(told.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


@linux_only
async def test_descriptors_used_up(program: Program, upstream: Upstream) -> None:
    """Without a free descriptor, clients get 503, new connections are rejected, and nothing spins. Then it recovers."""
    upstream.answers(ok(b"up"))
    process = await program(PROXY_LOCAL_ONLY="false")  # with it, there is a kept connection to Ollama already
    await process.says("listening")
    first, second = [await process.connect() for _ in range(2)]
    for client in (first, second):
        await client.request("GET", "/refused")
        assert (await client.answer()).status == 403
    fault = NoDescriptor(process)
    fault.begin()
    taken = len(os.listdir(f"/proc/{process.pid}/fd"))
    for _ in range(3):
        newcomer = await process.connect()
        with suppress(ConnectionResetError):
            assert await newcomer.read_until_closed() == b""
        newcomer.close()
    before = idled(process)
    await until(lambda: idled(process) >= before + 3)
    await first.request("GET", "/api/tags")
    answer = await first.answer()
    assert (answer.status, answer.fields["retry-after"]) == (503, "1")
    assert "limit of open files and connections" in json.loads(answer.content)["error"]
    assert await first.read_until_closed() == b""
    first.close()
    await until(lambda: len(os.listdir(f"/proc/{process.pid}/fd")) < taken)
    await second.request("GET", "/api/tags")
    assert (await second.answer()).content == b"up"
    fault.end()
    assert (await process.ask("GET", "/api/tags")).content == b"up"
    assert "ulimit -n" in await process.says("descriptors_used_up")
    await until(lambda: len(process.lines()) == 5)
    ends = [(line["ended"], line.get("reason")) for line in process.lines()[2:]]
    assert ends == [("proxy/connect", "overloaded"), ("complete", None), ("complete", None)]
    second.close()


async def test_a_flood_leaves_descriptors(program: Program, upstream: Upstream) -> None:
    """However many are turned away at once, each connection that was let in can have one to Ollama."""
    upstream.answers(NEXT, ok(b"up"))
    limit = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (200, 200))
    process = await program(before=limit, PROXY_LOCAL_ONLY="false")  # with it, lists must be lists
    await process.says("max_connections=68")
    await process.says("listening")
    clients = [await process.connect() for _ in range(68)]
    flood = [socket.create_connection(("127.0.0.1", process.port)) for _ in range(150)]
    for client in clients:
        await client.request("GET", "/api/tags")
    await until(lambda: len(upstream.requests) == 68)
    for _ in clients:
        upstream.proceed()
    assert [(await client.answer()).content for client in clients] == [b"up"] * 68
    for connection in (*clients, *flood):
        connection.close()


# --- standard streams -------------------------------------------------------------------------------------------------


def dead_pipe(number: int) -> str:
    """Return a function that replaces a standard stream by a pipe whose reader is gone."""
    return f"reading, writing = os.pipe(); os.dup2(writing, {number}); os.close(reading); os.close(writing)"


CLOSED = "os.closerange(0, 3)"  # as some daemons' parents do


async def up(process: Process) -> None:
    """Wait until a process that can't say so listens."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                (await process.connect()).close()
            except ConnectionRefusedError:
                await asyncio.sleep(0.01)
            else:
                return


@pytest.mark.parametrize(
    "streams",
    [
        pytest.param(CLOSED, id="closed"),
        pytest.param(dead_pipe(2), id="reader_of_errors_is_gone"),
        pytest.param(dead_pipe(1), id="reader_of_output_is_gone"),
    ],
)
async def test_no_standard_streams(program: Program, upstream: Upstream, streams: str) -> None:
    """Closed streams, and those whose reader died, cost nothing: no connection takes their place, and it ends well."""
    process = await program(first=streams)
    await up(process)
    if sys.platform == "linux" and streams == CLOSED:
        assert [os.readlink(f"/proc/{process.pid}/fd/{number}") for number in range(3)] == ["/dev/null"] * 3
    await upstream.stop()
    assert (await process.ask("GET", "/api/tags")).status == 502
    process.signal(SIGTERM)
    assert (await process.exit())[0] == 0
    assert [line["path"] for line in process.lines() if "path" in line] == ["/api/tags"]


async def test_reader_of_the_access_log_is_gone(program: Program) -> None:
    """With `access_log = -` into a pipe whose reader died it serves on, and says that lines can't be written."""
    process = await program(first=dead_pipe(1), PROXY_ACCESS_LOG="-")
    await process.says("listening")
    assert (await process.ask("GET", "/1")).status == 403
    assert 'error="Broken pipe"' in await process.says("log_not_written")
    assert (await process.ask("GET", "/2")).status == 403
    process.signal(SIGTERM)
    code, said = await process.exit()
    assert code == 0
    assert "log_lines_lost lines=2" in said


async def test_access_log_to_a_closed_stream(program: Program) -> None:
    """`access_log = -` without a standard output stops the start, with a hint."""
    code, said = await (await program(first="os.close(1)", PROXY_ACCESS_LOG="-")).exit()
    assert code == 2
    assert said.startswith("error: access_log: cannot write to a standard stream that is closed\nhint: ")


# --- folders ----------------------------------------------------------------------------------------------------------


async def test_read_only_home(program: Program, own_folder: Path) -> None:
    """A home that can't be written stops the start, with the path of the log and a hint."""
    shut(own_folder)
    where = {"HOME": own_folder, "PROXY_CONFIG": None, "PROXY_ACCESS_LOG": None, "XDG_STATE_HOME": None}
    code, said = await (await program(before=as_anybody, **where)).exit()
    assert code == 2
    assert said.startswith(f"error: access_log: cannot write the log {own_folder}/")
    assert "access.log: Permission denied\nhint: free the disk or correct the permissions" in said


async def test_no_folder_for_temporary_files_and_no_mask(program: Program, tmp_path: Path) -> None:
    """It needs no folder for temporary files, and under the widest umask what it makes is its owner's alone."""
    home = tmp_path / "home"
    where = {"HOME": home, "PROXY_ACCESS_LOG": None, "XDG_STATE_HOME": None, "TMPDIR": tmp_path / "none"}
    process = await program(before=lambda: os.umask(0) and None, **where)
    await process.says("listening")
    made = [home, *home.rglob("*")]
    assert any(path.name == "access.log" for path in made)
    assert [path for path in made if path.stat().st_mode & 0o077] == []


# --- time and life ----------------------------------------------------------------------------------------------------


async def test_wall_clock_is_set(monkeypatch: pytest.MonkeyPatch, gateway: Proxy, upstream: Upstream) -> None:
    """If the clock is set during an exchange, its line has the time at which the request arrived."""
    upstream.answers(NEXT, ok(b"up"))
    before = utc(time.time())
    client = await gateway.connect()
    await client.request("GET", "/api/tags")
    await upstream.arrived.wait()
    after = utc(time.time())
    monkeypatch.setattr(time, "time", lambda: 0.5 + 86400 * 365)
    upstream.proceed()
    assert (await client.answer()).content == b"up"
    (line,) = await gateway.lines()
    assert before <= line["time"] <= after
    assert 0 <= line["first_byte_ms"] <= line["total_ms"] < 1000 * PATIENCE


async def test_stopped_and_continued(program: Program, upstream: Upstream) -> None:
    """A process that was stopped goes on with all that came meanwhile: a stream, half a head, a new connection."""
    upstream.answers(stream_head(), chunk(TOKEN), NEXT, chunk(END), LAST_CHUNK)
    process = await program()
    await process.says("listening")
    stream, half = await process.connect(), await process.connect()
    await stream.request("POST", "/v1/chat/completions", b"{}")
    await stream.read_until(chunk(TOKEN))
    await half.send(b"GET /half HTTP/1.1\r\nHo")
    process.signal(SIGSTOP)
    upstream.proceed()
    await half.send(b"st: mac\r\n\r\n")
    late = await process.connect()
    await late.request("GET", "/late")
    process.signal(SIGCONT)
    assert await stream.read_until(LAST_CHUNK) == chunk(END) + LAST_CHUNK
    assert [(await client.answer()).status for client in (half, late)] == [403, 403]
    await until(lambda: len(process.lines()) == 3)
    assert {line["ended"] for line in process.lines()} == {"complete"}
    for client in (stream, half, late):
        client.close()


async def test_killed_under_load(program: Program, upstream: Upstream) -> None:
    """Killed, it leaves whole lines and visibly broken streams; it starts again at once, even after half a line."""
    upstream.answers(stream_head(), chunk(TOKEN), HANG)
    process = await program()
    await process.says("listening")
    streams = [await process.connect() for _ in range(8)]
    for client in streams:
        await client.request("POST", "/v1/chat/completions", b"{}")
        await client.read_until(chunk(TOKEN))
    busy = await process.connect()
    for _ in range(50):
        await busy.request("GET", "/busy")
        assert (await busy.answer()).status == 403
    await until(lambda: len(process.lines()) == 50)
    await busy.send(b"GET /busy HTTP/1.1\r\nHost: mac\r\n\r\n" * 1000)
    await busy.answer()
    process.signal(SIGKILL)
    for client in streams:
        seen = b""
        with suppress(ConnectionResetError):
            seen = await client.read_until_closed()
        assert not seen.endswith(LAST_CHUNK)
    assert (await process.exit())[0] == -SIGKILL
    before = process.lines()
    assert 50 <= len(before) <= 1050  # the lines of a turn of the loop follow its answers
    with process.access_log.open("ab") as log:
        log.write(b'{"time":"20')
    again = await program(PROXY_PORT=process.port)  # whose old connections are not closed by their clients yet
    again.port = process.port
    await again.says("listening")
    assert (await again.ask("GET", "/after")).status == 403
    await until(lambda: again.access_log.read_bytes().count(b"\n") == len(before) + 2)
    *_, torn, last = again.access_log.read_bytes().splitlines()
    assert torn == b'{"time":"20'
    assert json.loads(last)["path"] == "/after"
    for client in (*streams, busy):
        client.close()


# --- someone else at a port ------------------------------------------------------------------------------------------

PROGRAM = Path(sys.executable).resolve().name
"""What a process that these tests start is called."""

HOLDER = """
import socket, sys
sock = socket.create_server(("127.0.0.1", 0))
print(sock.getsockname()[1], flush=True)
while True:
    sock.accept()[0].close()
"""


@pytest.fixture
def holder() -> Iterator[tuple[int, int]]:
    """Give the id of another process, and the port that it holds and says nothing at."""
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())
        process.kill()


@pytest.mark.skipif(shutil.which("lsof") is None, reason="needs lsof")
@pytest.mark.parametrize("command", ["status", "verify"])
@pytest.mark.parametrize("taken", ["upstream", "port"])
async def test_port_held_by_another(tmp_path: Path, holder: tuple[int, int], command: str, taken: str) -> None:
    """`status` and `verify` name the process that sits where Ollama, or the proxy, belongs; exit code 1."""
    pid, port = holder
    ports = {"upstream": free_port(), "port": free_port()} | {taken: port}
    kept = {variable: value for variable, value in os.environ.items() if not variable.startswith("PROXY_")}
    own = {
        "PROXY_LISTEN": "127.0.0.1",
        "PROXY_PORT": str(ports["port"]),
        "PROXY_UPSTREAM": f"http://127.0.0.1:{ports['upstream']}",
        "PROXY_ACCESS_LOG": str(tmp_path / "access.log"),
        "HOME": str(tmp_path),
    }
    asked = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", command, "--json"), cwd=ROOT, env=kept | own, stdout=subprocess.PIPE
    )
    told, _ = await asked.communicate()
    assert asked.returncode == 1
    assert f"127.0.0.1:{port} is held by {PROGRAM} (pid {pid})" in told.decode()
    assert f"lsof -nP -iTCP:{port} -sTCP:LISTEN" in told.decode()
