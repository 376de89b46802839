"""Native requests that would unload, pin or reload a model: what goes on of them, by `native_options`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from ollama import AsyncClient, ResponseError

from proxy.exchange.upstream.asking import Ollama
from proxy.exchange.waiting.room import Room
from proxy.exchange.waiting.rules import Rules
from proxy.reading.native import NativeOptions
from tests.exchange.waiting.asking import PATHS, ask, body
from tests.support.raw_http import LAST_CHUNK, Proxy, Upstream, chunk, ok, within

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from proxy.simulated_ollama.server import SimulatedOllama

CHAT = "/api/chat"
HI = [{"role": "user", "content": "Hi"}]
LONG = [{"role": "user", "content": "x" * 600_000}]
ALL = {"keep_alive": -1, "options": {"num_ctx": 8192, "num_gpu": 0, "seed": 7}}
EMBEDDER = "embedder"
REQUESTS = {
    "/api/chat": ("tiny", {"messages": HI}),
    "/api/generate": ("tiny", {"prompt": "Hi"}),
    "/api/embed": (EMBEDDER, {"input": "Hi"}),
    "/api/embeddings": (EMBEDDER, {"prompt": "Hi"}),
}
"""For each native path, a model and what it is asked."""


def rules(setting: NativeOptions) -> Rules:
    return Rules(parallel=1, native=setting, local_only=False)


def request(path: str, **more: Any) -> bytes:
    model, asked = REQUESTS[path]
    return orjson.dumps({"model": model, **asked, **more})


def posts(ollama: SimulatedOllama) -> list[str]:
    return [target for method, target in ollama.seen if method == "POST"]


def error_of(content: bytes) -> str:
    return orjson.loads(content)["error"]


# --- what becomes of others' models ---


@pytest.mark.parametrize("path", REQUESTS)
async def test_nobody_pins_or_reloads_a_model(house: Proxy, ollama: SimulatedOllama, path: str) -> None:
    """By default a request is answered, and its model is loaded and kept as the owner's settings say."""
    wire = await ask(house, path, request(path, **ALL))
    assert (await wire.answer()).status == 200
    (runner,) = ollama.scheduler.runners.values()
    assert (runner.keep_alive, runner.load) == (ollama.scheduler.keep_alive, ())
    (line,) = await house.lines()
    assert (line["verdict"], line["status"]) == ("allowed", 200)
    assert line["dropped"] == ["keep_alive", "num_ctx", "num_gpu"]


async def test_a_loaded_model_stays_as_it_is(house: Proxy, ollama: SimulatedOllama) -> None:
    """With others' requests in between, the model is loaded once, and the proxy's queue knows it in its plain form."""
    for more in ({}, ALL, {"keep_alive": 0}, {"options": {"num_ctx": 9}}):
        wire = await ask(house, CHAT, request(CHAT, **more))
        assert (await wire.answer()).status == 200
    assert ollama.scheduler.loads == 1
    assert house.gateway.room.counters["waited"] == 1  # for that load
    assert math.isfinite(ollama.scheduler.runners["tiny:latest"].keep_alive)


async def test_a_model_that_is_loaded_so_excuses_nobody(house: Proxy) -> None:
    """Load-time options are refused as soon as a reload says so, even while the model is loaded with just these."""
    statuses = []
    for setting in (NativeOptions.PASS, NativeOptions.PASS, NativeOptions.REFUSE):
        house.gateway.room.apply(rules(setting))
        wire = await ask(house, CHAT, request(CHAT, options={"num_ctx": 8192}))
        statuses.append((await wire.answer()).status)
    assert statuses == [200, 200, 403]


@pytest.mark.parametrize("setting", [NativeOptions.DROP, NativeOptions.REFUSE])
@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/api/generate", {"model": "tiny", "keep_alive": 0}),
        ("/api/generate", {"model": "tiny", "prompt": "", "keep_alive": "0s"}),
        ("/api/chat", {"model": "tiny", "messages": [], "keep_alive": 0}),
    ],
    ids=["generate", "empty_prompt", "chat"],
)
async def test_nobody_unloads_a_model(
    house: Proxy, ollama: SimulatedOllama, setting: NativeOptions, path: str, content: dict[str, Any]
) -> None:
    """A request that only unloads a model is refused: without its `keep_alive` it would load the model."""
    house.gateway.room.apply(rules(setting))
    wire = await ask(house, CHAT, request(CHAT))
    assert (await wire.answer()).status == 200
    sent = posts(ollama)
    answer = await (await ask(house, path, orjson.dumps(content))).answer()
    assert answer.status == 403
    assert "`keep_alive`" in error_of(answer.content)
    assert '`native_options = "pass"`' in error_of(answer.content)
    assert posts(ollama) == sent
    assert "tiny:latest" in ollama.scheduler.runners
    line = (await house.lines(2))[1]
    assert (line["reason"], line.get("dropped")) == ("native_options", None)


async def test_a_request_that_only_loads_a_model_goes_on(house: Proxy, ollama: SimulatedOllama) -> None:
    """A request without a prompt may load a model, though not forever."""
    wire = await ask(house, "/api/generate", orjson.dumps({"model": "tiny", "keep_alive": -1}))
    assert (await wire.answer()).status == 200
    assert ollama.scheduler.runners["tiny:latest"].keep_alive == ollama.scheduler.keep_alive


# --- the other two settings ---


@pytest.mark.parametrize("path", REQUESTS)
async def test_they_can_be_refused(house: Proxy, ollama: SimulatedOllama, path: str) -> None:
    """With `refuse` such a request is refused, and the answer names what is in it and what the owner can set."""
    house.gateway.room.apply(rules(NativeOptions.REFUSE))
    answer = await (await ask(house, path, request(path, **ALL))).answer()
    assert answer.status == 403
    assert error_of(answer.content).startswith("`keep_alive` and `num_ctx` and `num_gpu` would change the model")
    assert '`native_options = "pass"`' in error_of(answer.content)
    assert posts(ollama) == []
    assert (await house.lines())[0]["reason"] == "native_options"
    plain = await ask(house, path, request(path, options={"seed": 7}))
    assert (await plain.answer()).status == 200


async def test_they_can_pass(house: Proxy, ollama: SimulatedOllama) -> None:
    """With `pass` the request decides, and the line names nothing."""
    house.gateway.room.apply(rules(NativeOptions.PASS))
    answer = await (await ask(house, CHAT, request(CHAT, **ALL))).answer()
    assert answer.status == 200
    runner = ollama.scheduler.runners["tiny:latest"]
    assert (runner.keep_alive, dict(runner.load)) == (math.inf, {"num_ctx": 8192, "num_gpu": 0})
    assert "dropped" not in (await house.lines())[0]


async def test_v1_has_no_such_fields(house: Proxy, ollama: SimulatedOllama) -> None:
    """On /v1 Ollama reads none of them, so that they go on unread even with `refuse`."""
    house.gateway.room.apply(rules(NativeOptions.REFUSE))
    wire = await ask(house, PATHS[0], body(**ALL))
    assert (await wire.answer()).status == 200
    assert "dropped" not in (await house.lines())[0]


# --- bodies that can't be changed ---


@pytest.mark.parametrize("coding", [{}, {"content_encoding": "identity"}], ids=["plain", "identity"])
@pytest.mark.parametrize("more", [{"keep_alive": 0}, {"options": {"num_ctx": 9}}], ids=["keep_alive", "num_ctx"])
async def test_a_large_body_is_refused(
    house: Proxy, ollama: SimulatedOllama, more: dict[str, Any], coding: dict[str, str]
) -> None:
    """A body that is too large to hold is refused if it has such a field, and Ollama doesn't get its end."""
    wire = await ask(house, CHAT, request(CHAT, messages=LONG, **more), **coding)
    answer = await within(wire.answer())
    assert answer.status == 403
    assert "too large" in error_of(answer.content)
    assert not ollama.scheduler.runners
    assert ollama.scheduler.loads == 0
    assert (await house.lines())[0]["reason"] == "native_options"


async def test_a_large_body_without_them_goes_on(house: Proxy, ollama: SimulatedOllama) -> None:
    """A large body that has none of them is answered."""
    wire = await ask(house, CHAT, request(CHAT, messages=LONG, options={"seed": 1}))
    assert (await within(wire.answer())).status == 200


@pytest.mark.parametrize("messages", [HI, LONG], ids=["held", "large"])
async def test_what_cannot_be_read_is_refused(house: Proxy, ollama: SimulatedOllama, messages: Any) -> None:
    """A body with more in it than the proxy reads may have such a field, and is refused, wherever its model may run."""
    house.gateway.room.apply(rules(NativeOptions.DROP))
    content = request(CHAT, messages=messages)[:-1] + b',"x":' + b"[" * 10_001 + b"]" * 10_001 + b',"keep_alive":0}'
    answer = await within((await ask(house, CHAT, content)).answer())
    assert answer.status == 403
    assert "nested more than" in error_of(answer.content)
    assert not ollama.scheduler.loads


# --- what Ollama gets ---


@pytest.fixture
async def played() -> AsyncIterator[Upstream]:
    """Give an Ollama that keeps what it gets."""
    upstream = Upstream()
    upstream.lists, upstream.models = True, ()
    await upstream.start()
    yield upstream
    await upstream.stop()


@pytest.fixture
async def before(played: Upstream) -> AsyncIterator[Proxy]:
    """Give the gateway with a room, before `played`."""
    proxy = Proxy(played.port, allow=("POST /api/chat",))
    await proxy.start()
    proxy.gateway.room = Room(Ollama(proxy.pool, proxy.gateway.target), rules(NativeOptions.DROP))
    yield proxy
    await proxy.stop()
    await proxy.gateway.room.loads.close()


SENT = (
    b'{ "model":"x", "Keep_Alive" : 0, "messages":[{"role":"user","content":"keep_alive"}],'
    b' "format":{"z":1,"a":12345678901234567890123},"keep\\u005falive":-1,"options":{"num_ctx":8,"seed":1} }'
)
LEFT = (
    b'{ "model":"x", "messages":[{"role":"user","content":"keep_alive"}],'
    b' "format":{"z":1,"a":12345678901234567890123},"options":{"seed":1} }'
)


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("behind", [b"", b'{"keep_alive":0}'], ids=["nothing", "more"])
async def test_ollama_gets_the_rest_unchanged(before: Proxy, played: Upstream, chunked: bool, behind: bytes) -> None:
    """Ollama gets every other byte as it was sent, with the length that is left."""
    played.answers(ok(b"{}"))
    sent, left = SENT + behind, LEFT + behind
    wire = await before.connect()
    if chunked:
        head = b"POST /api/chat HTTP/1.1\r\nHost: mac\r\nTransfer-Encoding: chunked\r\n\r\n"
        await wire.send(head + chunk(sent[:50]) + chunk(sent[50:]) + LAST_CHUNK)
    else:
        await wire.request("POST", CHAT, sent)
    assert (await within(wire.answer())).status == 200
    got = next(bytes(peer.octets) for peer in played.peers if peer.octets.startswith(b"POST /api/chat"))
    head, _, content = got.partition(b"\r\n\r\n")
    assert content == left
    assert f"content-length: {len(left)}".encode() in head.lower()
    assert b"transfer-encoding" not in head.lower()
    (line,) = await before.lines()
    assert (line["bytes_in"], line["dropped"]) == (len(sent), ["keep_alive", "num_ctx"])


async def test_a_second_request_on_the_connection_is_its_own(house: Proxy, ollama: SimulatedOllama) -> None:
    """What was dropped of one request has no effect on the next one of the same connection."""
    wire = await house.connect()
    for content in (request(CHAT, **ALL), request(CHAT)):
        await wire.request("POST", CHAT, content)
        assert (await wire.answer()).status == 200
    first, second = await house.lines(2)
    assert ("dropped" in first, "dropped" in second) == (True, False)
    assert second["bytes_in"] == len(request(CHAT))


# --- the SDK ---


async def test_the_sdk_is_answered(house: Proxy, ollama: SimulatedOllama) -> None:
    """Ollama's own client gets its answers, though it sends `keep_alive` and `num_ctx` with each request."""
    client = AsyncClient(f"http://127.0.0.1:{house.port}")
    also: Any = {"keep_alive": "10m", "options": {"num_ctx": 32768, "num_predict": 3, "temperature": 0}}
    stream = await client.chat("tiny", HI, stream=True, **also)
    last = [each async for each in stream][-1]
    assert (last.done, last.eval_count) == (True, 3)
    assert (await client.generate("tiny", "Hi", **also)).done
    assert (await client.embed(EMBEDDER, "Hi", **also)).embeddings
    assert {runner.load for runner in ollama.scheduler.runners.values()} == {()}
    assert [line["dropped"] for line in await house.lines(3)] == [["keep_alive", "num_ctx"]] * 3


async def test_the_sdk_shows_the_refusal(house: Proxy) -> None:
    """Ollama's own client shows the person why a model isn't unloaded."""
    client = AsyncClient(f"http://127.0.0.1:{house.port}")
    with pytest.raises(ResponseError, match="would unload the model for all its users") as caught:
        await client.generate("tiny", keep_alive=0)
    assert caught.value.status_code == 403


async def test_a_reload_counts_for_the_next_request(house: Proxy, ollama: SimulatedOllama) -> None:
    """New settings count for the requests that come after them."""
    found = []
    for setting in (NativeOptions.REFUSE, NativeOptions.DROP, NativeOptions.PASS):
        house.gateway.room.apply(rules(setting))
        wire = await ask(house, CHAT, request(CHAT, keep_alive=600))
        runner = (await wire.answer()).status == 200 and ollama.scheduler.runners["tiny:latest"]
        found.append(runner and runner.keep_alive)
    assert found == [False, ollama.scheduler.keep_alive, 600]
