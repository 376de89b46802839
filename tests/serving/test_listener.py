"""Where the parts meet, seen from inside: sockets, descriptors, the wheel, who speaks where. See `test_process` too."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from proxy.event_loop import sockets
from proxy.serving import listener
from proxy.serving.binding import CannotBindError, bind
from proxy.serving.listener import Listener
from proxy.settings.settings import load
from tests.support.linux.kernel_sockets import accepted_from, unread
from tests.support.ports import free_port
from tests.support.raw_http import Proxy, Wire, ok, until, within

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.raw_http import Answer, Upstream

FORBIDDEN = b"GET /api/nothing HTTP/1.1\r\nHost: mac\r\n\r\n"

# --- start ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "text"),
    [
        pytest.param("192.0.2.1", "192.0.2.1 is not an address of this machine", id="not_ours"),
        pytest.param("fe80::1", "can't listen on fe80::1 port 45000", id="without_its_interface"),
    ],
)
def test_address_that_cannot_be(address: str, text: str) -> None:
    """An address that can't be bound is named, with why."""
    with pytest.raises(CannotBindError, match=text) as caught:
        bind(address, 45000)
    assert caught.value.hint


@pytest.mark.parametrize("system", ["as_here", "darwin"])
async def test_sockets_of_clients_are_probed(request: pytest.FixtureRequest, system: str, upstream: Upstream) -> None:
    """A closed laptop lid sends no FIN: accepted sockets are probed after 30 s of silence, and have a small buffer."""
    if system == "darwin":
        request.getfixturevalue("darwin")
    proxy = Proxy(upstream.port)
    await proxy.start()
    wire = await proxy.connect()
    await until(lambda: proxy.clients.connections)
    with accepted_from(wire.address) as accepted:
        options = (sockets.IDLE_OPTION, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert tuple(accepted.getsockopt(socket.IPPROTO_TCP, option) for option in options) == sockets.KEEPALIVE
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 2 * 256 * 1024
    await proxy.stop()


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
        server.reload()
        await hello()
        listener.logging.getLogger("aiohttp").warning("something")
        text = diagnostics.read_text()
        counts.append((text.count("tls_on_plain_port"), text.count('"library"')))
    server.stop()
    assert await within(task) == 0
    assert counts == [(1, 1), (1, 1), (2, 2)]
    assert not [each for each in listener.logging.getLogger().handlers if isinstance(each, listener.LibraryHandler)]


async def ask(options: dict[str, str], **fields: str) -> Answer:
    """Return the answer to a GET of /api/ps on a connection of its own."""
    wire = await Wire.open(int(options["port"]))
    await wire.request("GET", "/api/ps", **fields)
    answer = await wire.answer()
    wire.close()
    return answer


async def test_reload(here: tuple[Listener, dict[str, str], Path], upstream: Upstream) -> None:
    """New settings hold whole or not at all; what needs a restart is named, and so is each mistake."""
    server, options, diagnostics = here
    options["log_levels"] = "info"
    task = await running(server, diagnostics)
    server.reload()
    told = diagnostics.read_text()
    assert '"reload_refused"' in told
    assert "log_levels" in told
    del options["log_levels"]
    options |= {"allow": "GET /api/ps", "access_log": f"{diagnostics.parent}/other.log", "max_head": "1KiB"}
    server.reload()
    told = diagnostics.read_text()
    assert '"reload_needs_restart","options":"access_log"' in told
    assert told.count('"reloaded"') == 1
    upstream.answers(ok(b'{"models":[]}'))
    assert (await ask(options)).status == 200
    assert (await ask(options, User_Agent="x" * 1024)).status == 431
    server.stop()
    assert await within(task) == 0


async def test_reload_of_access_rules(here: tuple[Listener, dict[str, str], Path], upstream: Upstream) -> None:
    """Access rules count after a reload. If one has a mistake, all of the old ones stay, and the mistake is logged.

    That none is left is logged as well, because a file that was lost or cut short looks the same.
    """
    server, options, diagnostics = here
    config = diagnostics.parent / "config.toml"
    options |= {"config": str(config), "allow": "GET /api/ps"}
    upstream.answers(ok(b'{"models":[]}'))
    rule, wrong = '[[access]]\nwho = ["{}"]\nmodels = ["*"]\n', '[[access]]\nwho = ["self"]\nmodel = ["*"]\n'
    task = await running(server, diagnostics)
    statuses = []
    for text in ("", rule.format("bob@example.com"), rule.format("self") + wrong, rule.format("self"), ""):
        config.write_text(text)
        server.reload()
        statuses.append((await ask(options)).status)
    assert statuses == [200, 403, 403, 200, 200]
    logged = diagnostics.read_text()
    assert logged.count('"reload_refused"') == 2
    assert logged.count('"access_rules_gone"') == 1
    assert f"access, rule 2 = a table (file {config}, line 4): has no `models`" in logged
    assert "line 6): is no key of a rule; did you mean models?" in logged
    server.stop()
    assert await within(task) == 0


def possible(diagnostics: Path) -> int:
    """Return how many connections the log says are possible, where that is fewer than wished."""
    (told,) = [line for line in diagnostics.read_text().splitlines() if '"descriptors_short"' in line]
    number: int = json.loads(told)["max_connections"]
    return number


async def test_reload_of_the_number_of_connections(here: tuple[Listener, dict[str, str], Path]) -> None:
    """A reload raises the number of connections too, and the files that they need; where it can't, it says so."""
    _, options, diagnostics = here
    options |= {"max_connections": "1", "max_connections_per_client": "0"}
    server = Listener(load(options, {}), lambda: load(options, {}))
    task = await running(server, diagnostics)
    first = await Wire.open(int(options["port"]))
    await first.request("GET", "/api/nothing")
    assert (await first.answer()).status == 403
    assert (await ask(options)).status == 503
    options["max_connections"] = "2"
    server.reload()
    assert (await ask(options)).status == 403
    first.close()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if 0 < hard < 200_000:
        options["max_connections"] = str(hard // 2)
        server.reload()
        assert 2 < possible(diagnostics) < hard // 2
    server.stop()
    assert await within(task) == 0


async def test_start_with_something_to_say(here: tuple[Listener, dict[str, str], Path]) -> None:
    """Warnings of the settings, and that fewer connections are possible than wished, are said at the start."""
    _, options, diagnostics = here
    loaded = load(options, {"PROXY_MAX_BODIES": "1"})
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    settings = loaded.settings.model_copy(update={"max_connections": limits[1]})
    server = Listener(replace(loaded, settings=settings), lambda: loaded)
    task = await running(server, diagnostics)
    told = diagnostics.read_text()
    assert "PROXY_MAX_BODIES" in told
    assert possible(diagnostics) < limits[1]
    server.stop()
    server.stop()
    assert await within(task) == 0


async def test_null_among_the_origins(here: tuple[Listener, dict[str, str], Path]) -> None:
    """That every web page is let in is said at the start, and again by each reload while it is so."""
    _, options, diagnostics = here
    options["allowed_origins"] = "null"
    loaded = load(options, {})
    server = Listener(loaded, lambda: load(options, {}))
    task = await running(server, diagnostics)
    counts = [diagnostics.read_text().count('"origin_null_allowed"')]
    for entry in ("null", "https://a.org"):
        options["allowed_origins"] = entry
        server.reload()
        counts.append(diagnostics.read_text().count('"origin_null_allowed"'))
    server.stop()
    assert await within(task) == 0
    assert counts == [1, 2, 2]


async def test_what_nobody_caught(here: tuple[Listener, dict[str, str], Path]) -> None:
    """An exception that reaches the loop is logged by type and place, never by its text, which may quote a client."""
    server, _, diagnostics = here
    task = await running(server, diagnostics)

    def fail() -> None:
        raise ValueError("canary")

    asyncio.get_running_loop().call_soon(fail)
    await until(lambda: '"internal"' in diagnostics.read_text())
    server.stop()
    await within(task)
    (told,) = [line for line in diagnostics.read_text().splitlines() if '"internal"' in line]
    assert '"exception":"ValueError"' in told
    assert f"{__name__.rpartition('.')[2]}.py" in told
    assert "canary" not in diagnostics.read_text()


async def test_wheel(here: tuple[Listener, dict[str, str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """All deadlines are looked at each second, those of clients, of idle connections to Ollama and of the logs."""
    server, _, diagnostics = here
    monkeypatch.setattr(listener, "TICK", 0.01)
    turns: list[str] = []
    for part in (listener.Clients, listener.Gateway, listener.AuditLog):
        monkeypatch.setattr(part, "tick", lambda *_, name=part.__name__: turns.append(name))
    task = await running(server, diagnostics)
    await until(lambda: turns.count("Clients") > 1)
    assert {"Clients", "Gateway", "AuditLog"} == set(turns)
    assert repr(server) == "<Listener, its wheel turns>"
    server.stop()
    assert await within(task) == 0
    assert repr(server) == "<Listener, its wheel stands>"


@pytest.mark.parametrize(
    ("written", "service", "parallel", "shield"),
    [
        ("", False, None, True),
        ("", True, 1, True),
        ("[ollama_env]\nOLLAMA_NUM_PARALLEL = 4\n", True, 4, True),
        ("[ollama_env]\nOLLAMA_NUM_PARALLEL = 4\n", False, None, True),
        ("[ollama_env]\nOLLAMA_NUM_PARALLEL = 0\n", True, 1, True),
        ("parallel = 2\n[ollama_env]\nOLLAMA_NUM_PARALLEL = 4\n", True, 2, True),
        ("[ollama_env]\nOLLAMA_KEEP_ALIVE = 0\n", True, 1, False),
        ('[ollama_env]\nOLLAMA_KEEP_ALIVE = "0h0m"\n', True, 1, False),
        ('[ollama_env]\nOLLAMA_KEEP_ALIVE = "-1"\n', True, 1, True),
    ],
    ids=[
        *("foreground", "service", "given", "given_to_none", "not_a_number_of_slots", "set"),
        *("no_keep_alive", "none_in_hours", "forever"),
    ],
)
def test_rules_of_waiting(tmp_path: Path, written: str, service: bool, parallel: int | None, shield: bool) -> None:
    """Ollama gets as many requests at once as launchd makes it answer, unless `parallel` says another number."""
    file = tmp_path / "config.toml"
    file.write_text(written)
    settings = load({"config": str(file)}, {"HOME": str(tmp_path)}).settings
    rules = listener.rules_of(settings, service=service)
    assert (rules.parallel, rules.shield) == (parallel, shield)


async def test_native_options_are_reloaded(here: tuple[Listener, dict[str, str], Path], upstream: Upstream) -> None:
    """A reload changes what becomes of a native request that would change a model."""
    server, options, diagnostics = here
    upstream.answers(ok())
    options |= {"allow": "POST /api/chat", "native_options": "refuse"}
    server = Listener(load(options, {}), lambda: load(options, {}))
    task = await running(server, diagnostics)
    wire = await Wire.open(int(options["port"]))
    statuses = []
    for setting in ("refuse", "drop", "pass"):
        options["native_options"] = setting
        server.reload()
        await wire.request("POST", "/api/chat", b'{"model":"a","keep_alive":9}')
        statuses.append((await wire.answer()).status)
    assert statuses == [403, 200, 200]
    asked = b"".join(bytes(peer.octets) for peer in upstream.peers).split(b"POST /api/chat")[1:]
    assert [each.partition(b"\r\n\r\n")[2] for each in asked] == [b'{"model":"a"}', b'{"model":"a","keep_alive":9}']
    wire.close()
    server.stop()
    assert await within(task) == 0


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


class Hearing(asyncio.Protocol):
    """Calls `then`, with the time, where sockets are read: timers have their turn before they are read again."""

    def __init__(self, then: Callable[[float], None]) -> None:
        self._then = then

    def data_received(self, data: bytes) -> None:
        """Call it."""
        self._then(monotonic())


async def test_waiting_octets_are_read_before_deadlines_are_judged(
    here: tuple[Listener, dict[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the wheel turns late, after a stop of the process say, what clients sent meanwhile comes first."""
    server, options, diagnostics = here
    monkeypatch.setattr(listener, "TICK", 0.01)
    task = await running(server, diagnostics)
    loop, refused = asyncio.get_running_loop(), b"HTTP/1.1 403 "
    with socket.create_connection(("127.0.0.1", int(options["port"]))) as client:
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # the kernel keeps nothing back
        client.send(FORBIDDEN)
        assert (await within(loop.sock_recv(client, 65536))).startswith(refused)
        client.send(FORBIDDEN[:20])
        with accepted_from(client.getsockname()) as accepted:
            await until(lambda: not unread(accepted))

        def stand_still(now: float) -> None:
            """Let the head become late, and the wheel due, while its rest comes."""
            monkeypatch.setattr(listener, "monotonic", lambda: now + 60)
            client.send(FORBIDDEN[20:])
            while monotonic() < now + 2 * listener.TICK:
                pass

        ours, theirs = socket.socketpair()
        transport, _ = await loop.create_connection(lambda: Hearing(stand_still), sock=ours)
        theirs.send(b"!")
        answer = await within(loop.sock_recv(client, 65536))
        transport.close()
        theirs.close()
    server.stop()
    assert await within(task) == 0
    assert answer.startswith(refused)


async def test_wheel_turns_all_whatever_one_does(
    here: tuple[Listener, dict[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake in one thing that the wheel turns is reported, and the others are turned all the same."""
    server, _, diagnostics = here
    monkeypatch.setattr(listener, "TICK", 0.01)
    turned = []
    monkeypatch.setattr(listener.Gateway, "tick", lambda *_: 1 / 0)
    monkeypatch.setattr(listener.AuditLog, "tick", lambda *_: turned.append("audit"))
    task = await running(server, diagnostics)
    await until(lambda: len(turned) > 1)
    server.stop()
    assert await within(task) == 0
    assert '"exception":"ZeroDivisionError"' in diagnostics.read_text()


async def test_machine_is_kept_awake(
    here: tuple[Listener, dict[str, str], Path], upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service keeps its machine awake while a model answers, unless `keep_awake` says no, also by a reload."""
    server, options, diagnostics = here
    monkeypatch.setattr(listener, "is_service", lambda: True)
    upstream.answers(ok())
    options["keep_awake"] = "false"
    server = Listener(load(options, {}), lambda: load(options, {}))
    task = await running(server, diagnostics)

    async def chat() -> None:
        wire = await Wire.open(int(options["port"]))
        await wire.request("POST", "/v1/chat/completions", b"{}")
        assert (await wire.answer()).status == 200
        wire.close()

    await chat()
    assert "kept_awake" not in diagnostics.read_text()
    options["keep_awake"] = "true"
    server.reload()
    await chat()
    await until(lambda: '_awake"' in diagnostics.read_text())  # kept, or not for want of the program
    server.stop()
    assert await within(task) == 0
