"""docs/scaling.md: its configurations are valid, and each balancer does with two proxies what the page says.

Each program is run where it is installed, on loopback, with the page's own text but for addresses, ports and times.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.docs.test_docs import PAGES, blocks
from tests.support.patience import PATIENCE
from tests.support.ports import free_port
from tests.support.raw_http import (
    CUT,
    HANG,
    LAST_CHUNK,
    NEXT,
    Proxy,
    Upstream,
    Wire,
    chunk,
    ok,
    stream_head,
    until,
    within,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

PAGE = PAGES["docs/scaling.md"]
CHAT = "/v1/chat/completions"
EVENT = b'data: {"model":"m"}\n\n'
"""Seconds that a balancer may take to listen, on a busy machine."""

_NGINX = """daemon off;
error_log stderr;
pid {folder}/nginx.pid;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder};
    proxy_temp_path {folder};
    fastcgi_temp_path {folder};
    uwsgi_temp_path {folder};
    scgi_temp_path {folder};
{text}
}}
"""
_CADDY = "{{\n\tadmin off\n\tauto_https off\n}}\n{text}"

BALANCERS = {
    "haproxy": ("{text}", ["-c", "-f"], ["-db", "-f"]),
    "nginx": (_NGINX, ["-t", "-p", "{folder}", "-c"], ["-p", "{folder}", "-c"]),
    "caddy": (
        _CADDY,
        ["validate", "--adapter", "caddyfile", "--config"],
        ["run", "--adapter", "caddyfile", "--config"],
    ),
}
LANGUAGES = {"haproxy": "haproxy", "nginx": "nginx", "caddy": "caddyfile"}


def config(name: str, folder: Path, ports: tuple[int, int, int], before: str = "", after: str = "") -> Path:
    """Write the page's configuration, on these ports of loopback (the balancer's and the proxies'); return its path."""
    (text,) = blocks(PAGE, LANGUAGES[name])
    if before:
        assert before in text
        text = text.replace(before, after)
    text = text.replace("http://:11434", f"http://:{ports[0]}").replace("bind 100.64.0.10\n", "bind 127.0.0.1\n")
    for last, port in zip((10, 11, 12), ports, strict=True):
        text = text.replace(f"100.64.0.{last}:11434", f"127.0.0.1:{port}")
    assert "100.64" not in text
    text = text.replace("inter 10s", "inter 100ms").replace("health_interval 10s", "health_interval 100ms")
    path = folder / f"{name}.conf"
    path.write_text(BALANCERS[name][0].format(text=text, folder=folder))
    return path


def program(name: str) -> str:
    """Return where the program is; skip the test where it isn't."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/opt/homebrew/bin")
    if found is None:
        pytest.skip(f"{name} is not installed, so its configuration in docs/scaling.md can't be run here")
    return found


async def spawn(name: str, path: Path, arguments: list[str]) -> asyncio.subprocess.Process:
    """Start the program with a configuration; what it says goes to standard error, which is read when it ends."""
    words = [word.format(folder=path.parent) for word in arguments]
    environ = {"HOME": str(path.parent), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
    return await asyncio.create_subprocess_exec(
        *(program(name), *words, str(path)),
        env=environ,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


def test_models_of_litellm():
    """Each entry of LiteLLM's configuration asks for a route that is open: OpenAI's kind, below /v1 of a proxy."""
    (text,) = blocks(PAGE, "yaml")
    assert re.findall(r"model: (\w+)/", text) == ["openai", "openai"]
    assert re.findall(r"api_base: (\S+)", text) == [f"http://100.64.0.{last}:11434/v1" for last in (11, 12)]


class Ollama(Upstream):
    """A scripted Ollama that answers a balancer's checks by itself."""

    async def _content(self, head, reader, peer):
        content = await super()._content(head, reader, peer)
        if b" /api/version " in head:
            self.scripts.insert(0, (ok(b'{"version":"0.32.15"}'),))  # taken at once; the others wait behind it
        return content


class Macs:
    """Two proxies, each before a scripted Ollama, and a balancer before both."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.ollamas = [Ollama(), Ollama()]
        self.proxies: list[Proxy] = []
        self.port = free_port()
        self._process: asyncio.subprocess.Process | None = None
        self._wires: list[Wire] = []

    async def start(self, before: str = "", after: str = "", **settings: object) -> None:
        """Start all; `before` in the page's configuration becomes `after`, `settings` are the proxies'."""
        for ollama in self.ollamas:
            await ollama.start()
            ollama.answers(ok())
            self.proxies.append(Proxy(ollama.port, **settings))  # type: ignore[arg-type]
            await self.proxies[-1].start()
        ports = (self.port, self.proxies[0].port, self.proxies[1].port)
        path = config(self.name, self.folder, ports, before, after)
        self._process = await spawn(self.name, path, BALANCERS[self.name][2])
        async with asyncio.timeout(PATIENCE):
            while True:
                assert self._process.returncode is None, (await self._process.communicate())[0].decode()
                try:
                    (await Wire.open(self.port)).close()
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    return

    async def stop(self) -> None:
        """End all."""
        for wire in self._wires:
            wire.close()
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await within(self._process.communicate(), patience=PATIENCE)
        for proxy in self.proxies:
            await proxy.stop()
        for ollama in self.ollamas:
            await ollama.stop()

    def answer(self, *script: object) -> None:
        """Have both Ollamas answer everything so."""
        for ollama in self.ollamas:
            ollama.answers(*script)  # type: ignore[arg-type]

    async def connect(self) -> Wire:
        """Return a client of the balancer."""
        self._wires.append(await Wire.open(self.port))
        return self._wires[-1]

    @property
    def asked(self) -> list[dict[str, object]]:
        """The audit lines of requests other than checks, of both Macs."""
        return [line for proxy in self.proxies for line in proxy.audit if line.get("path") != "/api/version"]

    @property
    def requests(self) -> list[bytes]:
        """What reached an Ollama, but for checks."""
        return [each for ollama in self.ollamas for each in ollama.requests if b" /api/version " not in each]


@pytest.fixture
async def macs(tmp_path: Path) -> AsyncIterator:
    """Give a function that starts two Macs behind a balancer of a name."""
    started: list[Macs] = []

    async def start(name: str, before: str = "", after: str = "", **settings: object) -> Macs:
        program(name)
        started.append(Macs(name, tmp_path))
        await started[-1].start(before, after, **settings)
        return started[-1]

    yield start
    for each in started:
        await each.stop()


async def caddy_version() -> tuple[int, ...]:
    """Return the version of the Caddy that is installed."""
    process = await asyncio.create_subprocess_exec(program("caddy"), "version", stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    return tuple(map(int, re.search(r"(\d+)\.(\d+)\.(\d+)", said.decode()).groups()))


CADDY_MENDED = (2, 7, 6)
"""The first Caddy that doesn't end a broken answer as if it were whole."""

each_balancer = pytest.mark.parametrize("name", BALANCERS)


@each_balancer
async def test_configuration_is_valid(name, tmp_path):
    """The program's own check finds nothing wrong with the page's configuration."""
    path = config(name, tmp_path, (free_port(), free_port(), free_port()))
    process = await spawn(name, path, BALANCERS[name][1])
    said, _ = await within(process.communicate(), patience=PATIENCE)
    assert process.returncode == 0, said.decode()


@each_balancer
async def test_answers_pass(name, macs):
    """Answer, refusal and error come through as the proxy words them; query and the client's fields go up."""
    there = await macs(name)
    wire = await there.connect()
    await wire.request("GET", "/v1/models?x=1", User_Agent="a/1", anthropic_beta="b")
    answer = await wire.answer()
    assert (answer.status, answer.content) == (200, b"{}")
    assert answer.fields["x-request-id"] == there.asked[0]["id"]
    (request,) = there.requests
    assert request.startswith(b"GET /v1/models?x=1 HTTP/1.1\r\n")
    assert b"\r\nanthropic-beta: b\r\n" in request.replace(b"Anthropic-Beta", b"anthropic-beta")
    assert b"x-forwarded" not in request.lower()
    assert there.asked[0]["user_agent"] == "a/1"
    await wire.request("POST", "/api/pull", b"{}")
    refused = await wire.answer()
    assert refused.status == 403
    assert b"run `ollama pull` on the server" in refused.content
    there.answer(b"HTTP/1.1 2", CUT)
    await wire.request("POST", CHAT, b"{}")
    failed = await wire.answer()
    assert (failed.status, failed.fields["x-should-retry"]) == (502, "false")
    assert b'"upstream_closed"' in failed.content


@each_balancer
async def test_host_is_judged(name, macs):
    """The client's Host reaches the proxy: a name of the balancer's own must be in `allowed_hosts`."""
    there = await macs(name, allowed_hosts=("models.example.org",))
    for host, status in (("models.example.org", 200), ("evil.example.org", 403)):
        wire = await there.connect()
        await wire.send(b"GET /v1/models HTTP/1.1\r\nHost: %b\r\n\r\n" % host.encode())
        assert (await wire.answer()).status == status


@each_balancer
async def test_request_id_is_kept(name, macs):
    """Each request has an id that the proxy keeps, and so its log has the balancer's; never one made by the proxy."""
    there = await macs(name)
    wire = await there.connect()
    await wire.request("GET", "/v1/models")
    await wire.answer()
    made_here = there.asked[0]["id"]
    assert re.fullmatch(r"[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", str(made_here))


@each_balancer
async def test_events_pass_at_once(name, macs):
    """Each event is with the client before Ollama says the next."""
    there = await macs(name)
    there.answer(
        stream_head(),
        *(step for _ in range(5) for step in (chunk(EVENT), NEXT)),
        chunk(b"data: [DONE]\n\n"),
        LAST_CHUNK,
    )
    wire = await there.connect()
    await wire.request("POST", CHAT, b'{"stream":true}')
    for _ in range(5):
        await wire.read_until(EVENT)
        for ollama in there.ollamas:
            ollama.proceed()
    await wire.read_until(b"data: [DONE]\n\n")


@each_balancer
async def test_unfinished_stream(name, macs):
    """A stream that Ollama leaves unfinished has the proxy's error event, and no clean end here either."""
    there = await macs(name)
    there.answer(stream_head(), chunk(EVENT), LAST_CHUNK)
    wire = await there.connect()
    await wire.request("POST", CHAT, b'{"stream":true}')
    answer = await wire.answer()
    assert b'data: {"error":{"message":"Ollama ended its answer without finishing it' in answer.content
    assert answer.whole is (name == "caddy" and await caddy_version() < CADDY_MENDED)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        pytest.param("haproxy", "    option abortonclose\n", "", id="haproxy_without_abortonclose"),
        pytest.param("caddy", "health_timeout 5s", "flush_interval -1", id="caddy_with_flush_interval"),
    ],
)
async def test_client_that_leaves_unseen(name, before, after, macs):
    """What the page warns of is so: Ollama goes on with the request of a client that has left."""
    there = await macs(name, before, after)
    there.answer(NEXT, ok())
    wire = await there.connect()
    await wire.request("POST", CHAT, b"{}")
    await until(lambda: there.requests)
    wire.close()
    for _ in range(5):  # round trips in which the balancer may see it
        other = await there.connect()
        await other.request("POST", "/api/pull", b"{}")
        assert (await other.answer()).status == 403
    for ollama in there.ollamas:
        ollama.proceed()
    await until(lambda: len(there.asked) == 6)
    assert [line["ended"] for line in there.asked if line["path"] == CHAT] == ["complete"]


@each_balancer
@pytest.mark.parametrize("begun", [False, True], ids=["in_silence", "in_content"])
async def test_client_that_leaves(name, begun, macs):
    """When a client leaves, before the first token or after it, its request in Ollama ends at once."""
    there = await macs(name)
    there.answer(*((stream_head(), chunk(EVENT)) if begun else ()), HANG)
    wire = await there.connect()
    await wire.request("POST", CHAT, b'{"stream":true}')
    if begun:
        await wire.read_until(EVENT)
    await until(lambda: there.requests)
    wire.close()
    await until(lambda: there.asked)
    (line,) = there.asked
    assert line["ended"] == ("downstream/content" if begun else "downstream/wait")


@each_balancer
async def test_device_stays_with_one_mac(name, macs):
    """Requests of one address go to one Mac."""
    there = await macs(name)
    for _ in range(6):
        wire = await there.connect()
        await wire.request("GET", "/v1/models")
        await wire.answer()
    assert sorted(len([line for line in proxy.audit if line["path"] == "/v1/models"]) for proxy in there.proxies) == [
        0,
        6,
    ]


@pytest.mark.parametrize("name", ["haproxy", "caddy"])
async def test_mac_whose_ollama_is_down(name, macs):
    """A Mac whose proxy answers 502 to the check is left out until it answers again."""
    there = await macs(name)
    wire = await there.connect()
    for down, other in ((0, 1), (1, 0)):
        await there.ollamas[down].stop()
        in_turn = 0
        async with asyncio.timeout(PATIENCE):
            while in_turn < 5:
                await wire.request("GET", "/v1/models")
                in_turn = in_turn + 1 if (await wire.answer()).status == 200 else 0
        assert there.ollamas[other].requests
        await there.ollamas[down].start(there.ollamas[down].port)


async def test_mac_whose_ollama_is_down_behind_nginx(macs):
    """The free nginx goes on sending a device to the Mac whose proxy answers 502, and passes that on."""
    there = await macs("nginx")
    wire = await there.connect()
    await wire.request("GET", "/v1/models")
    await wire.answer()
    (its,) = [ollama for ollama in there.ollamas if ollama.requests]
    await its.stop()
    for _ in range(4):
        await wire.request("POST", CHAT, b"{}")
        answer = await wire.answer()
        assert (answer.status, b'"upstream_' in answer.content) == (502, True)
