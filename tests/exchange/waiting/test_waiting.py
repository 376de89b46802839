"""Exchanges that wait, from the client's request to its line: turns, loads, early heads, pings, and every end."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import anthropic
import openai
import orjson
import pytest
from ollama import AsyncClient, ResponseError

from proxy.exchange.message.tickets import Form
from proxy.exchange.waiting.queue import LINGER
from proxy.exchange.waiting.rules import Rules
from proxy.reading.native import NativeOptions
from tests.exchange.waiting.asking import NEVER, PATHS, TINY, ask, body, loading
from tests.support.raw_http import until, within

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxy.simulated_ollama.server import SimulatedOllama
    from tests.support.raw_http import Answer, Proxy

    AskSdk = Callable[[str, str], Awaitable[str]]


@pytest.mark.parametrize("path", PATHS)
async def test_a_model_is_loaded_before_the_request_is_sent(house: Proxy, ollama: SimulatedOllama, path: str) -> None:
    """A request for a model that isn't loaded is sent after the proxy's own load, and answered as ever."""
    wire = await ask(house, path, body())
    answer: Answer = await wire.answer()
    assert answer.status == 200
    assert answer.whole
    posts = [target for method, target in ollama.seen if method == "POST"]
    assert posts == ["/api/generate", path]


async def test_a_loaded_model_is_asked_at_once(house: Proxy, ollama: SimulatedOllama) -> None:
    """The second request for a model causes no load and no question."""
    for _ in range(2):
        wire = await ask(house, PATHS[0], body())
        assert (await wire.answer()).status == 200
    assert [target for _, target in ollama.seen].count("/api/generate") == 1


async def test_clients_that_come_and_go_share_one_load(house: Proxy, ollama: SimulatedOllama) -> None:
    """Five clients that leave during a load neither end it nor begin another, and the sixth gets its answer."""
    ollama.scheduler.load_seconds = 0.3
    wires = [await ask(house, PATHS[0], body()) for _ in range(5)]
    await loading(ollama)
    for wire in wires:
        wire.close()
    await house.lines(5)
    last = await ask(house, PATHS[0], body())
    assert (await last.answer()).status == 200
    assert (ollama.scheduler.loads, ollama.scheduler.loads_aborted, ollama.leaked) == (1, 0, 0)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (body("nope"), 404),
        (body("tiny:cloud"), 403),
        (body("tiny", tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}]), 400),
        (b"{", 400),
    ],
    ids=["unknown", "cloud", "no_tools", "bad_json"],
)
async def test_what_ollama_refuses_is_refused_at_once(
    house: Proxy, ollama: SimulatedOllama, content: bytes, status: int
) -> None:
    """Nothing is loaded for a request that Ollama would refuse, and the refusal is its own."""
    wire = await ask(house, PATHS[0], content)
    assert (await wire.answer()).status == status
    assert ollama.scheduler.loads == 0


async def test_a_failed_load_is_passed_on(house: Proxy, ollama: SimulatedOllama) -> None:
    """A failed load is answered with Ollama's status and words, and the next request within moments likewise."""
    for _ in range(2):
        wire = await ask(house, PATHS[0], body("broken"))
        answer = await wire.answer()
        assert answer.status == 500
        assert "llama-server process has terminated" in orjson.loads(answer.content)["error"]["message"]
    assert ollama.scheduler.loads == 1
    assert {line["reason"] for line in house.audit} == {"load_failed"}


async def test_a_load_that_ollama_does_not_take_is_no_failure(house: Proxy, ollama: SimulatedOllama) -> None:
    """Where Ollama answers a load with 4xx, the request is sent and gets Ollama's own status, the next one too."""
    assert await house.gateway.room.loads.look()
    del ollama.models["tiny:latest"]  # the lists still have it
    for _ in range(2):
        wire = await ask(house, PATHS[0], body())
        assert (await wire.answer()).status == 404
    assert not [line for line in await house.lines(2) if "reason" in line]


async def test_other_requests_wait_here(house: Proxy, ollama: SimulatedOllama) -> None:
    """While a model answers one request, the next one waits in the proxy, and costs Ollama nothing when it leaves."""
    ollama.tokens_per_second = 0.001
    first = await ask(house, PATHS[0], body())
    await until(lambda: len(house.gateway.room.queue.sent) == 1)
    second = await ask(house, PATHS[0], body())
    await until(lambda: len(house.gateway.room.queue.waiting) == 1)
    second.close()
    await until(lambda: not house.gateway.room.queue.waiting)
    assert [target for _, target in ollama.seen].count(PATHS[0]) == 1
    first.close()
    await until(lambda: not house.gateway.room.queue.sent)


async def test_options_that_load_differently_are_loaded(house: Proxy, ollama: SimulatedOllama) -> None:
    """A native request whose options decide how the model is loaded waits for a load with those options."""
    room = house.gateway.room
    room.apply(Rules(parallel=1, native=NativeOptions.PASS))
    first = await ask(house, "/api/chat", body())
    assert (await first.answer()).status == 200
    second = await ask(house, "/api/chat", body(options={"num_ctx": 8192}))
    await until(lambda: room.queue.waiting)
    house.gateway.tick(time.monotonic() + LINGER + 1)
    assert (await second.answer()).status == 200
    assert [target for _, target in ollama.seen].count("/api/generate") == 2
    assert [room.queue.is_loaded(Form(TINY, options)) for options in ((), (("num_ctx", 8192),))] == [False, True]


@pytest.mark.parametrize(
    ("path", "content", "slots"),
    [
        (PATHS[0], body(), 4),
        ("/api/embed", orjson.dumps({"model": "embedder", "input": "Hi"}), 1),
        ("/api/embed", orjson.dumps({"model": "tiny", "input": "Hi"}), 1),
    ],
    ids=["a_chat", "an_embedder", "embeddings_of_a_chat_model"],
)
async def test_embeddings_have_one_slot(
    house: Proxy, ollama: SimulatedOllama, path: str, content: bytes, slots: int
) -> None:
    """At most `parallel` requests for a model are with Ollama, and one for embeddings."""
    house.gateway.room.apply(Rules(parallel=4))
    ollama.scheduler.load_seconds = NEVER
    await ask(house, path, content)
    await loading(ollama)
    assert [each.slots for each in house.gateway.room.queue.waiting] == [slots]


async def test_too_many_are_turned_away(house: Proxy, ollama: SimulatedOllama) -> None:
    """A device with half of all places gets 503 with Retry-After for one more request."""
    house.gateway.room.apply(Rules(parallel=1, max_waiting=2))
    ollama.scheduler.load_seconds = NEVER
    await ask(house, PATHS[0], body())
    await loading(ollama)
    wire = await ask(house, PATHS[0], body())
    answer = await within(wire.answer())
    assert (answer.status, answer.fields["retry-after"]) == (503, "10")
    assert "max_waiting" in orjson.loads(answer.content)["error"]["message"]
    assert (await house.lines())[0]["reason"] == "overloaded"
    assert not house.notes  # no file is missing


@pytest.mark.parametrize("size", [200_000, 600_000], ids=["held_whole", "too_large_to_hold"])
async def test_large_bodies_arrive_unchanged(house: Proxy, ollama: SimulatedOllama, size: int) -> None:
    """A large body is read before Ollama acts on it, and arrives unchanged, whether it is held or passes."""
    content = orjson.dumps(
        {"model": "tiny", "stream": True, "max_tokens": 3, "messages": [{"role": "user", "content": "x" * size}]}
    )
    wire = await ask(house, PATHS[0], content)
    assert (await wire.answer()).whole
    assert house.audit[0]["bytes_in"] == len(content)
    assert "/api/generate" in [target for _, target in ollama.seen]


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "length"])
async def test_a_body_that_comes_later_is_sent_once(house: Proxy, ollama: SimulatedOllama, chunked: bool) -> None:
    """A body that comes after its head is gathered, and sent with one end."""
    content = body()
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(content)
    for _ in range(2):  # the second one finds the model loaded, so that its sending begins as its end comes
        wire = await house.connect()
        await wire.send(b"POST %b HTTP/1.1\r\nHost: mac\r\n%b\r\n\r\n" % (PATHS[0].encode(), framing))
        await until(lambda: any(client.mode.name == "BUSY" for client in house.clients.connections))
        await wire.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content) if chunked else content)
        assert (await wire.answer()).whole
        wire.close()
    assert [line["ended"] for line in await house.lines(2)] == ["complete", "complete"]
    assert not house.notes


async def test_an_ollama_that_is_down_answers_as_before(house: Proxy, ollama: SimulatedOllama) -> None:
    """Without an Ollama nobody waits: the client gets the 502 that says how to start it."""
    await ollama.close()
    wire = await ask(house, PATHS[0], body())
    assert (await wire.answer()).status == 502


# --- early heads and pings ---

PINGS = {
    "/v1/chat/completions": b'"id":"chatcmpl-wait"',
    "/v1/messages": b"event: ping\n",
    "/api/chat": b'"content":""},"done":false}\n',
}


@pytest.mark.parametrize("path", PATHS)
async def test_a_waiting_stream_gets_a_head_and_pings(house: Proxy, ollama: SimulatedOllama, path: str) -> None:
    """A stream gets its head after 15 s of silence, a ping 30 s later, and then Ollama's own answer."""
    ollama.scheduler.load_seconds = 0.5
    wire = await ask(house, path, body())
    await loading(ollama)
    house.pass_time(16)
    house.gateway.tick(time.monotonic() + 50)
    answer = await wire.answer()
    assert answer.status == 200
    assert answer.whole
    assert answer.content.count(PINGS[path]) == 1
    assert answer.content.startswith(b"event: ping") or PINGS[path] in answer.content.partition(b"\n")[0] + b"\n"
    assert house.audit[0]["status"] == 200


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1/chat/completions", b'data: {"error":{"message":"llama-server process has terminated'),
        ("/v1/messages", b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"llama-server'),
        ("/api/chat", b'{"error":"llama-server process has terminated'),
    ],
)
async def test_a_failure_after_the_head_is_an_event(
    house: Proxy, ollama: SimulatedOllama, path: str, words: bytes
) -> None:
    """A load that fails after the early head ends the stream with the surface's error event, in Ollama's words."""
    ollama.scheduler.load_seconds = 0.5
    wire = await ask(house, path, body("broken"))
    await loading(ollama)
    house.pass_time(16)
    answer = await wire.answer()
    assert answer.status == 200
    assert answer.content.startswith(words)
    assert not answer.whole
    assert [line["reason"] for line in house.audit] == ["load_failed"]


async def test_a_request_that_does_not_stream_gets_no_early_head(house: Proxy, ollama: SimulatedOllama) -> None:
    """A failed load of a request that doesn't stream is a status, however long it took."""
    ollama.scheduler.load_seconds = 0.5
    wire = await ask(house, PATHS[0], body("broken", stream=False))
    await loading(ollama)
    house.pass_time(100)
    assert (await wire.answer()).status == 500


async def test_a_drain_turns_away_who_waits(house: Proxy, ollama: SimulatedOllama) -> None:
    """A drain answers those who wait at once, with 503 and Retry-After."""
    ollama.scheduler.load_seconds = NEVER
    wire = await ask(house, PATHS[0], body())
    await loading(ollama)
    draining = asyncio.create_task(house.clients.drain(NEVER))
    answer = await within(wire.answer())
    assert (answer.status, answer.fields["retry-after"]) == (503, "1")
    wire.close()
    await within(draining)
    assert [line["reason"] for line in house.audit] == ["draining"]


async def test_a_drain_after_the_early_head_is_an_event(house: Proxy, ollama: SimulatedOllama) -> None:
    """A client that has its early head gets the drain's words in an error event."""
    ollama.scheduler.load_seconds = NEVER
    wire = await ask(house, "/v1/messages", body())
    await loading(ollama)
    house.pass_time(16)
    draining = asyncio.create_task(house.clients.drain(NEVER))
    answer = await within(wire.answer())
    assert answer.content.startswith(
        b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"The proxy'
    )
    assert not answer.whole
    wire.close()
    await within(draining)


async def test_the_line_says_how_long_it_waited(house: Proxy, ollama: SimulatedOllama) -> None:
    """A request that waited for a load says so in its line, and one that found it loaded doesn't."""
    for _ in range(2):
        wire = await ask(house, PATHS[0], body())
        await wire.answer()
    first, second = await house.lines(2)
    assert first["waited_ms"] > 0
    assert "waited_ms" not in second


async def test_the_line_of_a_client_that_left_says_what_it_waited_for(house: Proxy, ollama: SimulatedOllama) -> None:
    """A client that leaves while it waits has the time until then in its line, its model and its bytes."""
    ollama.scheduler.load_seconds = NEVER
    wire = await ask(house, PATHS[0], body())
    await loading(ollama)
    wire.close()
    (line,) = await house.lines(1)
    assert (line["ended"], line["waited_ms"] > 0) == ("downstream/queue", True)
    assert (line["model"], line["bytes_in"]) == ("tiny", len(body()))


# --- the real SDKs ---


async def ask_openai(url: str, model: str) -> str:
    """Ask for a chat, with chunks."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model=model, stream=True, max_tokens=3, messages=[{"role": "user", "content": "Hi"}]
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def ask_anthropic(url: str, model: str) -> str:
    """Ask for a message, by the SDK's own accumulator."""
    async with (
        anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as client,
        client.messages.stream(model=model, max_tokens=3, messages=[{"role": "user", "content": "Hi"}]) as stream,
    ):
        return await stream.get_final_text()


async def ask_ollama(url: str, model: str) -> str:
    """Ask for a native chat."""
    client = AsyncClient(url)
    stream = await client.chat(model=model, stream=True, messages=[{"role": "user", "content": "Hi"}])
    return "".join([part.message.content or "" async for part in stream])


ASKS = pytest.mark.parametrize("ask_sdk", [ask_openai, ask_anthropic, ask_ollama])


@ASKS
async def test_sdks_ignore_heads_and_pings(house: Proxy, ollama: SimulatedOllama, ask_sdk: AskSdk) -> None:
    """An SDK whose request waits long enough for pings gets the same text as without them."""
    url = f"http://127.0.0.1:{house.port}"
    plain = await within(ask_sdk(url, "tiny"))
    ollama.scheduler.load_seconds = 0.5
    ollama.scheduler.close()
    house.gateway.room.queue.listed([], time.monotonic())
    asking = asyncio.create_task(ask_sdk(url, "tiny"))
    await loading(ollama, 2)
    for seconds in (16, 50, 90):
        house.gateway.tick(time.monotonic() + seconds)
    assert await within(asking) == plain
    assert [line.get("pings") for line in await house.lines(2)] == [None, 2]


@ASKS
async def test_sdks_show_a_failure_after_the_head(house: Proxy, ollama: SimulatedOllama, ask_sdk: AskSdk) -> None:
    """An SDK raises an error with Ollama's words when a load fails after its early head."""
    ollama.scheduler.load_seconds = 0.5
    asking = asyncio.create_task(ask_sdk(f"http://127.0.0.1:{house.port}", "broken"))
    await loading(ollama)
    for seconds in (16, 50):
        house.gateway.tick(time.monotonic() + seconds)
    with pytest.raises(
        (openai.APIError, anthropic.APIError, ResponseError), match="llama-server process has terminated"
    ):
        await within(asking)
