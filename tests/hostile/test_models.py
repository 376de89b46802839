"""No spelling of a model gets past a rule: tests/attacks/bodies/models.toml, through a gateway with a room."""

from __future__ import annotations

import asyncio
import tomllib
from json import JSONDecodeError, JSONDecoder
from typing import TYPE_CHECKING

import pytest

from proxy.exchange.askers import Askers
from proxy.exchange.upstream.asking import Ollama
from proxy.exchange.waiting.room import Room
from proxy.exchange.waiting.rules import Rules
from proxy.policy.access import Access
from proxy.policy.gate import Policy
from proxy.policy.rule_keys import RuleSpec
from proxy.simulated_ollama.server import SimulatedOllama
from tests.support.hostile.attack_corpus import FOLDER, octets_of
from tests.support.raw_http import Proxy, within

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PADDING = b" " * 700_000  # more than is held whole


class Wiretap:
    """Passes bytes on to Ollama, and keeps those that the proxy sent."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._pipes: set[asyncio.Task[None]] = set()
        self.sent: list[bytearray] = []  # by connection

    async def start(self) -> int:
        """Listen; return the port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        """End all connections."""
        self._server.close()
        for pipe in self._pipes:
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, onwards = await asyncio.open_connection("127.0.0.1", self._port)
        kept = bytearray()
        self.sent.append(kept)
        for source, sink, copy in ((reader, onwards, kept), (answers, writer, bytearray())):
            self._pipes.add(asyncio.create_task(self._pipe(source, sink, copy)))

    async def _pipe(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, copy: bytearray) -> None:
        try:
            while data := await source.read(2**16):
                copy += data
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            pass
        finally:
            sink.close()

    def content_of(self, path: str) -> bytes | None:
        """Return what came of the content of a POST to `path`; None if there was none."""
        for each in self.sent:
            _, found, after = bytes(each).partition(f"POST {path} ".encode())
            if found:
                return after.partition(b"\r\n\r\n")[2]
        return None


def attacks() -> list[object]:
    """Return all bodies as parameters: path, body, status and reason."""
    found: list[object] = []
    for table in tomllib.loads((FOLDER / "bodies" / "models.toml").read_text("utf-8"))["body"]:
        for name, body, answer, why in table["cases"]:
            status, reason = answer.split(" ")
            assert why
            found.append(pytest.param(table["path"], octets_of(body), int(status), reason, id=name))
    return found


def acts_at(body: bytes) -> int:
    """Return how many bytes of a body Go's decoder needs to act: those of the first value, or more than there are."""
    try:
        return JSONDecoder().raw_decode(body.decode("latin-1"))[1]
    except JSONDecodeError as error:
        return max(len(body), error.pos + 1)
    except RecursionError:
        return len(body)


@pytest.fixture
async def tap() -> AsyncIterator[Wiretap]:
    """Give a wiretap in front of a simulated Ollama."""
    async with SimulatedOllama(tokens_per_second=0) as ollama:
        tap = Wiretap(ollama.port)
        yield tap
        await tap.stop()


@pytest.fixture
async def house(tap: Wiretap) -> AsyncIterator[Proxy]:
    """Give the gateway with a room, and one rule that allows `tiny`."""
    proxy = Proxy(await tap.start())
    await proxy.start()
    room = proxy.gateway.room = Room(Ollama(proxy.pool, proxy.gateway.target), Rules())
    access = Access.of((RuleSpec(("*",), ("tiny",)),), Policy.of(max_body=2**26))
    proxy.gateway.policy, proxy.gateway.askers = access.policy, Askers(access, proxy.notes.append)
    yield proxy
    await proxy.stop()
    await room.judge.close()
    await room.loads.close()


async def sent(house: Proxy, path: str, body: bytes) -> tuple[int, str, str]:
    """Send a body; return status, verdict and reason."""
    wire = await house.connect()
    await wire.request("POST", path, body)
    answer = await within(wire.answer())
    [line] = await house.lines()
    return answer.status, line["verdict"], line["reason"]


@pytest.mark.parametrize(("path", "body", "status", "reason"), attacks())
async def test_no_byte_reaches_ollama(
    house: Proxy, tap: Wiretap, path: str, body: bytes, status: int, reason: str
) -> None:
    """A body that is held whole is refused before a byte of its request reaches Ollama."""
    assert await sent(house, path, body) == (status, "refused", reason)
    assert tap.content_of(path) is None


@pytest.mark.parametrize(("path", "body", "status", "reason"), attacks())
async def test_no_closing_byte_reaches_ollama(
    house: Proxy, tap: Wiretap, path: str, body: bytes, status: int, reason: str
) -> None:
    """A larger body is refused before the byte reaches Ollama with which it would act."""
    assert await sent(house, path, PADDING + body) == (status, "refused", reason)
    assert len(tap.content_of(path) or b"") < len(PADDING) + acts_at(body)


@pytest.mark.parametrize("padding", [b"", PADDING], ids=["whole", "passing"])
@pytest.mark.parametrize("models", [b'"model":"tiny"', b'"model":"plain","model":"tiny"', b'"model":"TINY:latest"'])
async def test_the_allowed_model_passes(house: Proxy, models: bytes, padding: bytes) -> None:
    """What Ollama reads as the allowed model passes, in whatever spelling."""
    wire = await house.connect()
    body = b'%b{"messages":[{"role":"user","content":"Hi"}],%b}' % (padding, models)
    await wire.request("POST", "/v1/chat/completions", body)
    assert (await within(wire.answer())).status == 200
