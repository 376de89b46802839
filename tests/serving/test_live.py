"""The owner's Unix socket: what it shows, what it ends, and who can open it."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from proxy.exchange.askers import Askers
from proxy.exchange.upstream.asking import Ollama
from proxy.exchange.waiting.room import Room
from proxy.exchange.waiting.rules import Rules
from proxy.exchange.waiting.stuck import EMPTY_ANSWERS, Watch
from proxy.manage.machine import live_client as client
from proxy.policy.access import Access
from proxy.policy.rule_keys import RuleSpec
from proxy.serving.live import Live, LiveError
from proxy.settings.live_socket import LONGEST, live_socket
from proxy.simulated_ollama import SimulatedOllama
from tests.support.raw_http import HANG, Proxy, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.support.raw_http import Upstream

CHAT = b'{"model":"tiny","messages":[{"role":"user","content":"a secret prompt"}],"stream":true,"max_tokens":10000}'


@pytest.fixture
def home() -> Iterator[Path]:
    """Give a home folder whose path is short enough for a socket below it."""
    with TemporaryDirectory() as folder:
        yield Path(folder)


class Shown:
    """A proxy with a room, shown on a socket, and the owner who asks there."""

    def __init__(self, upstream_port: int, folder: Path) -> None:
        self.proxy = Proxy(upstream_port)
        self.environ = {"HOME": str(folder)}
        self.path = live_socket(1, self.environ)
        self.owner = client.Live(1, self.environ)

    async def start(self) -> None:
        await self.proxy.start()
        room = Room(Ollama(self.proxy.pool, self.proxy.gateway.target), Rules(parallel=1))
        self.proxy.gateway.room = room
        self.live = Live(room, lambda: len(self.proxy.clients.connections), lambda: self.proxy.gateway.askers)
        await self.live.open(self.path)

    async def stop(self) -> None:
        await self.live.close()
        await self.proxy.stop()
        if self.proxy.gateway.room is not None:
            await self.proxy.gateway.room.loads.close()

    async def state(self) -> dict:
        return await asyncio.to_thread(self.owner.state)

    async def cancel(self, which: str) -> int:
        return await asyncio.to_thread(self.owner.cancel, which)


@pytest.fixture
async def ollama() -> AsyncIterator[SimulatedOllama]:
    """Give a simulated Ollama that loads at once and streams slowly."""
    async with SimulatedOllama(tokens_per_second=20) as server:
        yield server


@pytest.fixture
async def shown(ollama: SimulatedOllama, home: Path) -> AsyncIterator[Shown]:
    """Give a proxy before `ollama`."""
    made = Shown(ollama.port, home)
    await made.start()
    yield made
    await made.stop()


async def test_shows_and_ends_a_request(shown: Shown) -> None:
    """A request that streams is shown with its model, and `cancel` ends it; a second time there is none."""
    wire = await shown.proxy.connect()
    await wire.request("POST", "/v1/chat/completions", CHAT, x_request_id="long")
    await until(lambda: any(each.events for each in shown.proxy.gateway.room.snapshot().exchanges))
    state = await shown.state()
    (request,) = state["exchanges"]
    assert (request["id"], request["model"], request["phase"]) == ("long", "tiny", "content")
    assert 0 < request["first"] <= request["seconds"]
    (model,) = state["models"]
    assert model["state"] == "loaded"
    assert (state["connections"], state["pid"]) == (1, os.getpid())
    assert "a secret prompt" not in str(state)
    assert await shown.cancel("long") == 1
    (line,) = await shown.proxy.lines()
    assert line["ended"] == "cancelled"
    assert await shown.cancel("long") == 0
    wire.close()


async def test_says_what_the_access_rules_allow(shown: Shown) -> None:
    """The owner is shown what the rules that apply at that moment say about some models; without rules, nothing."""
    assert await asyncio.to_thread(shown.owner.judge, ["tiny"]) == []
    gateway = shown.proxy.gateway
    rule = RuleSpec(("tag:a",), ("tiny",), ("POST /api/embed",), 2)
    gateway.askers = Askers(Access.of((rule,), gateway.policy), lambda *_, **__: None)
    (found,) = await asyncio.to_thread(shown.owner.judge, ["tiny:latest", "plain"])
    assert found == {
        "number": 1,
        "allows": ["tiny:latest"],
        "also": ["POST /api/embed"],
        "max_active": 2,
        "behind": [],
    }


async def test_shows_that_ollama_is_stuck(shown: Shown) -> None:
    """What the proxy noticed about Ollama is in the state that `status` reads."""
    room = shown.proxy.gateway.room
    assert room is not None
    room.watch = Watch(shown.proxy.gateway.note)
    assert (await shown.state())["troubles"] == []
    for _ in range(EMPTY_ANSWERS):
        room.watch.answered("tiny:latest", empty=True, now=time.monotonic())
    found = await asyncio.to_thread(client.state_of, 1, shown.environ)
    assert found["troubles"] == ["the last 3 answers of tiny:latest had no token"]


async def test_state_of_a_process(shown: Shown) -> None:
    """A proxy is found by its process, whatever port the settings name; a process that isn't one has no state."""
    found = await asyncio.to_thread(client.state_of_process, os.getpid(), shown.environ)
    assert found["pid"] == os.getpid()
    assert await asyncio.to_thread(client.state_of_process, 1, shown.environ) == {}
    await shown.live.close()
    assert client.state_of_process(os.getpid(), shown.environ) == {}
    assert client.state_of_process(os.getpid(), {"HOME": "/nowhere"}) == {}


def test_no_proxy_has_no_state(home: Path) -> None:
    """Where no proxy runs, there is nothing to report, and no error."""
    assert client.state_of(1, {"HOME": str(home)}) == {}


async def test_silent_ollama_delays_no_answer(upstream: Upstream, home: Path) -> None:
    """While Ollama doesn't say what it has in memory, the rest of the state is shown."""
    upstream.answers(HANG)
    made = Shown(upstream.port, home)
    await made.start()
    assert (await made.state())["looked"] is None
    await made.stop()


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"{}", b'{"id":1,"models":1}', b'{"id":["a"],"models":[1]}', b"\xff"],
    ids=["empty", "torn", "list", "without_keys", "numbers", "wrong_lists", "not_text"],
)
@pytest.mark.parametrize("path", [b"/cancel", b"/judge"], ids=["cancel", "judge"])
async def test_malformed_body(shown: Shown, body: bytes, path: bytes) -> None:
    """A body without an id, or without a list of models, is answered 400."""
    reader, writer = await asyncio.open_unix_connection(shown.path)
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    writer.write(head % (path, len(body)))
    writer.write(body)
    assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
    writer.close()


# --- the file ---


def mode(path: str) -> int:
    """Return the permissions of a path."""
    return stat.S_IMODE(os.lstat(path).st_mode)


def there(path: str) -> bool:
    """Return whether something is at a path."""
    return os.path.lexists(path)


async def test_only_its_owner_can_open_it(shown: Shown) -> None:
    """Folder and socket are the user's alone, and the socket goes when the proxy ends."""
    assert (mode(os.path.dirname(shown.path)), mode(shown.path)) == (0o700, 0o600)
    await shown.live.close()
    assert not there(shown.path)


async def test_open_folder_is_shut(upstream: Upstream, home: Path) -> None:
    """A folder that others could enter loses these permissions before the socket is there."""
    made = Shown(upstream.port, home)
    os.makedirs(os.path.dirname(made.path))
    os.chmod(os.path.dirname(made.path), 0o777)
    await made.start()
    assert mode(os.path.dirname(made.path)) == 0o700
    await made.stop()


async def test_folder_above_is_private(upstream: Upstream, home: Path) -> None:
    """If the folder above is missing, it is made as the log would make it: nobody else may list it."""
    made = Shown(upstream.port, home)
    await made.start()
    assert mode(os.path.dirname(os.path.dirname(made.path))) == 0o700
    await made.stop()


async def test_socket_of_a_process_that_ended(upstream: Upstream, home: Path) -> None:
    """A socket where nobody answers is replaced."""
    made = Shown(upstream.port, home)
    os.makedirs(os.path.dirname(made.path), 0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(made.path)
    await made.start()
    assert "exchanges" in await made.state()
    await made.stop()


async def test_socket_of_another_process(shown: Shown) -> None:
    """A socket where another proxy answers stays that proxy's, also when the second one ends."""
    second = Live(shown.proxy.gateway.room, int, lambda: None)
    with pytest.raises(LiveError, match="another proxy answers"):
        await second.open(shown.path)
    await second.close()
    assert "exchanges" in await shown.state()


async def test_socket_that_was_replaced_stays(shown: Shown, home: Path) -> None:
    """A socket that another process made in place of ours isn't removed at our end."""
    os.unlink(shown.path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(shown.path)
        await shown.live.close()
        assert there(shown.path)


@pytest.mark.parametrize("what", ["link", "file", "folder_is_a_file"])
async def test_what_is_no_socket_stays(what: str, upstream: Upstream, home: Path) -> None:
    """A link instead of the folder, or a file instead of folder or socket, is reported and not touched."""
    made = Shown(upstream.port, home)
    folder = os.path.dirname(made.path)
    os.makedirs(os.path.dirname(folder))
    if what == "link":
        (home / "elsewhere").mkdir()
        os.symlink(home / "elsewhere", folder)
    elif what == "file":
        os.mkdir(folder, 0o700)
        (home / "kept").write_text("kept")
        os.link(home / "kept", made.path)
    else:
        (home / "kept").write_text("kept")
        os.link(home / "kept", folder)
    with pytest.raises(LiveError) as caught:
        await made.start()
    assert caught.value.hint
    assert not any((home / "elsewhere").glob("*")) if what == "link" else (home / "kept").stat().st_nlink == 2
    await made.stop()


@pytest.mark.parametrize("platform", ["darwin", "linux"])
def test_long_home(platform: str) -> None:
    """A path that a socket can't have moves to the folder for temporary files."""
    short, long = f"/Users/{'x' * 20}", f"/Users/{'ü' * 60}"
    temporary = {"TMPDIR": "/var/folders/ab/cdefgh/T"}
    assert live_socket(11434, {"HOME": short, **temporary}, platform).startswith(short)
    moved = live_socket(11434, {"HOME": long, **temporary}, platform)
    assert moved.startswith("/var/folders/ab/cdefgh/T/remote-ollama-proxy-")
    assert os.path.dirname(live_socket(1, {"HOME": long, **temporary}, platform)) == os.path.dirname(moved)
    assert len(os.fsencode(moved)) <= LONGEST


# --- without a proxy ---


async def test_no_proxy(home: Path) -> None:
    """Where no proxy serves, the error says so and names a command."""
    with pytest.raises(client.NotThereError, match="no proxy of this user serves on port 1") as caught:
        client.Live(1, {"HOME": str(home)}).state()
    assert caught.value.hint


@pytest.mark.parametrize("what", ["stale", "not_a_socket", "silent", "no_http"])
def test_no_answer(what: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket whose process ended is none; one that gives no answer is reported as that."""
    monkeypatch.setattr(client, "ANSWER_TIME", 0.2)
    environ = {"HOME": str(home)}
    path = live_socket(1, environ)
    os.makedirs(os.path.dirname(path))
    with socket.socket(socket.AF_UNIX) as other:
        if what == "not_a_socket":
            Path(path).touch()
        else:
            other.bind(path)
        if what in {"silent", "no_http"}:
            other.listen()
        if what == "no_http":
            threading.Thread(target=_answers, args=(other, b"hello\n")).start()
        with pytest.raises(client.LiveError) as caught:
            client.Live(1, environ).state()
    assert str(caught.value).startswith({"stale": "no proxy", "not_a_socket": ""}.get(what, f"{path} doesn't answer: "))
    assert caught.value.hint


def _answers(server: socket.socket, octets: bytes) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(1000)
        connection.sendall(octets)


async def test_folder_of_another_user(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is believed that a folder of another user shows."""
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    with pytest.raises(client.LiveError, match="belongs to another user") as caught:
        await shown.state()
    assert caught.value.hint == "run this command as the user who runs the proxy"
