"""The SDKs of OpenAI, Anthropic and Ollama take pings wherever they come, and show what fails after an early head."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anthropic
import openai
import pytest
from ollama import AsyncClient, ResponseError

from proxy.exchange.message.failures import Unreachable
from proxy.exchange.upstream.pool import Pool
from proxy.exchange.waiting.rules import Rules
from proxy.exchange.waiting.turned_away import CANCELLED, QUEUE_FULL
from proxy.policy.refusals import DRAINING, UPSTREAM_TIMEOUT
from tests.exchange.waiting.asking import NEVER, PATHS, ask, body, loading
from tests.support.raw_http import until, within

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxy.simulated_ollama.server import SimulatedOllama
    from tests.support.raw_http import Proxy

    Call = Callable[["Sdks", str, str], Awaitable[Any]]
    Happening = Callable[[Proxy, SimulatedOllama, pytest.MonkeyPatch], Awaitable[None]]

CITY = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
FUNCTION = {"name": "weather", "description": "Weather", "parameters": CITY}


class Sdks:
    """Each SDK, for one proxy, without retries."""

    def __init__(self, house: Proxy) -> None:
        url = f"http://127.0.0.1:{house.port}"
        self.openai = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        # A client of /v1/responses that isn't known to wait for ten minutes gets an early head.
        self.other = self.openai.with_options(default_headers={"User-Agent": "other"})
        self.anthropic = anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0)
        self.ollama = AsyncClient(url)


@pytest.fixture
def sdks(house: Proxy) -> Sdks:
    """Give the SDKs before `house`."""
    return Sdks(house)


def user(text: str) -> list[Any]:
    """Return a conversation of one turn."""
    return [{"role": "user", "content": text}]


async def chat(sdks: Sdks, model: str, text: str) -> Any:
    """Read chunks of a chat as they come."""
    stream = await sdks.openai.chat.completions.create(model=model, stream=True, messages=user(text))
    return "".join([each.choices[0].delta.content or "" async for each in stream])


async def chat_gathered(sdks: Sdks, model: str, text: str) -> Any:
    """Let OpenAI's SDK gather a chat with a tool."""
    tools: Any = [{"type": "function", "function": FUNCTION}] if model == "tools" else openai.omit
    async with sdks.openai.chat.completions.stream(model=model, messages=user(text), tools=tools) as stream:
        message = (await stream.get_final_completion()).choices[0].message
    return message.content, [(each.function.name, each.function.arguments) for each in message.tool_calls or ()]


async def responses(sdks: Sdks, model: str, text: str) -> Any:
    """Read events of a response as they come."""
    stream = await sdks.openai.responses.create(model=model, input=text, stream=True)
    return [each.type async for each in stream if each.type != "keepalive"]


async def responses_of_another(sdks: Sdks, model: str, text: str) -> Any:
    """Read them by a client that may get an early head."""
    stream = await sdks.other.responses.create(model=model, input=text, stream=True)
    return [each.type async for each in stream if each.type != "keepalive"]


async def responses_gathered(sdks: Sdks, model: str, text: str) -> Any:
    """Let OpenAI's SDK gather a response with a tool."""
    tools: Any = [{"type": "function", **FUNCTION}] if model == "tools" else openai.omit
    async with sdks.openai.responses.stream(model=model, input=text, tools=tools) as stream:
        final = await stream.get_final_response()
    return final.output_text, [(each.name, each.arguments) for each in final.output if each.type == "function_call"]


async def messages(sdks: Sdks, model: str, text: str) -> Any:
    """Read events of a message as they come."""
    stream = await sdks.anthropic.messages.create(model=model, max_tokens=99, messages=user(text), stream=True)
    return [each.type async for each in stream]


async def messages_gathered(sdks: Sdks, model: str, text: str) -> Any:
    """Let Anthropic's SDK gather a message with thoughts, or with a tool."""
    more: Any = {"tools": [{"name": "weather", "input_schema": CITY}]} if model == "tools" else {}
    async with sdks.anthropic.messages.stream(model=model, max_tokens=99, messages=user(text), **more) as stream:
        final = await stream.get_final_message()
    return [each.model_dump(exclude={"id", "signature"}) for each in final.content]


async def native_chat(sdks: Sdks, model: str, text: str) -> Any:
    """Read lines of a native chat as they come."""
    stream = await sdks.ollama.chat(model=model, stream=True, messages=user(text))
    return "".join([each.message.content or "" async for each in stream])


async def native_generate(sdks: Sdks, model: str, text: str) -> Any:
    """Read lines of a native completion as they come."""
    return "".join([each.response async for each in await sdks.ollama.generate(model, text, stream=True)])


WORDS, THOUGHT, TOOL = (f"@@ttft=30 tps=40 {script}@@" for script in ("tokens=8", "script=think", "script=tool"))


@pytest.mark.parametrize(
    ("call", "model", "text"),
    [
        (chat, "tiny", WORDS),
        (chat_gathered, "tiny", WORDS),
        (chat_gathered, "tools", TOOL),
        (responses, "tiny", WORDS),
        (responses, "thinker", THOUGHT),
        (responses_of_another, "tiny", WORDS),
        (responses_gathered, "tiny", WORDS),
        (responses_gathered, "tools", TOOL),
        (messages, "tiny", WORDS),
        (messages_gathered, "tiny", WORDS),
        (messages_gathered, "thinker", THOUGHT),
        (messages_gathered, "tools", TOOL),
        (native_chat, "tiny", WORDS),
        (native_generate, "tiny", WORDS),
    ],
)
async def test_sdks_take_pings_between_all_events(house: Proxy, sdks: Sdks, call: Call, model: str, text: str) -> None:
    """An SDK that gets pings before the first event and between all others returns what it returns without them."""

    async def ping_always() -> None:
        now = time.monotonic()
        while True:
            now += 31
            house.gateway.tick(now)
            await asyncio.sleep(0.001)

    plain = await within(call(sdks, model, text))
    pinging = asyncio.create_task(ping_always())
    try:
        assert await within(call(sdks, model, text)) == plain
    finally:
        pinging.cancel()
    first, second = await house.lines(2)
    assert second.get("pings", 0) >= (3 if text == WORDS else 0)  # a tool's call is one event
    assert second["events"] == first["events"]
    assert "pings" not in first


# --- failures ---


@dataclass(frozen=True)
class Trouble:
    """Something that goes wrong while a request waits, and what its client is to read."""

    words: str
    status: int
    kind: str = "api_error"
    model: str = "tiny"
    text: str = "Hi"
    load_takes: float = 0.0
    happens: Happening | None = None


async def dies(house: Proxy, ollama: SimulatedOllama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.exchange.waiting.loads.BACK_WITHIN", 0.0)
    await ollama.close()


async def drains(house: Proxy, ollama: SimulatedOllama, monkeypatch: pytest.MonkeyPatch) -> None:
    house.gateway.drain()


async def is_cancelled(house: Proxy, ollama: SimulatedOllama, monkeypatch: pytest.MonkeyPatch) -> None:
    (exchange,) = house.gateway.room.snapshot().exchanges
    assert house.gateway.room.cancel(exchange.id) == 1


async def takes_no_connection(house: Proxy, ollama: SimulatedOllama, monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(*_: object) -> None:
        raise Unreachable("no answer", refused=False)

    monkeypatch.setattr(Pool, "take", lambda _: None)
    monkeypatch.setattr("proxy.exchange.upstream.pool.connect", connect)


SILENT = "@@ttft=600000@@"
TROUBLES = {
    "load_fails": Trouble("llama-server process has terminated", 500, model="broken", load_takes=0.2),
    "ollama_dies_in_a_load": Trouble("", 502, load_takes=NEVER, happens=dies),
    "ollama_dies_before_it_answers": Trouble("Ollama closed", 502, text=SILENT, happens=dies),
    "ollama_takes_no_connection": Trouble(UPSTREAM_TIMEOUT.message, 502, load_takes=0.2, happens=takes_no_connection),
    "ollama_answers_400": Trouble("told to", 400, "invalid_request_error", text="@@ttft=200 err=400@@"),
    "ollama_answers_500": Trouble("told to", 500, text="@@ttft=200 err=500@@"),
    "drain": Trouble(DRAINING.message, 503, load_takes=NEVER, happens=drains),
    "cancel_in_a_load": Trouble(
        CANCELLED.message, 403, "invalid_request_error", load_takes=NEVER, happens=is_cancelled
    ),
    "cancel_before_the_answer": Trouble(
        CANCELLED.message, 403, "invalid_request_error", text=SILENT, happens=is_cancelled
    ),
}


def read(error: Exception) -> tuple[int, str, str]:
    """Return status, words and type that an SDK's own error shows; status 200 after an early head."""
    if isinstance(error, ResponseError):  # it has no types
        return error.status_code, str(error.error), ""  # words that are JSON it reads once more
    if isinstance(error, anthropic.APIStatusError):
        return error.status_code, error.body["error"]["message"], error.body["error"]["type"]  # type: ignore[index, call-overload]
    assert isinstance(error, openai.APIError)
    status = error.status_code if isinstance(error, openai.APIStatusError) else 200
    return status, error.body["message"], error.body["type"]  # type: ignore[index, call-overload]


@pytest.mark.parametrize("early", [False, True], ids=["status", "event"])
@pytest.mark.parametrize("call", [chat, responses_of_another, messages, native_chat])
@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
async def test_sdks_read_the_same_words_before_and_after_the_head(
    house: Proxy,
    ollama: SimulatedOllama,
    sdks: Sdks,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Trouble,
    call: Call,
    early: bool,
) -> None:
    """A failure raises the SDK's own error with the same words and type, as a status or as an event."""
    ollama.scheduler.load_seconds = trouble.load_takes
    asking = asyncio.ensure_future(call(sdks, trouble.model, trouble.text))
    await until(lambda: ollama.scheduler.loads == 1)
    if not trouble.load_takes:
        await until(lambda: [each.phase for each in house.gateway.room.snapshot().exchanges] == ["wait"])
    for seconds in (16, 50) if early else ():
        house.gateway.tick(time.monotonic() + seconds)
    if trouble.happens is not None:
        await trouble.happens(house, ollama, monkeypatch)
    with pytest.raises((openai.APIError, anthropic.APIError, ResponseError)) as raised:
        await within(asking)
    status, words, kind = read(raised.value)
    assert trouble.words in words
    assert words
    assert kind in ("", trouble.kind)
    assert status == (trouble.status if not early else -1 if call is native_chat else 200)
    (line,) = await house.lines()
    assert (line["status"], line.get("pings")) == ((200, 1) if early else (trouble.status, None))


@pytest.mark.parametrize("call", [chat, responses, messages, native_chat])
async def test_a_full_queue_is_a_status(house: Proxy, ollama: SimulatedOllama, sdks: Sdks, call: Call) -> None:
    """A request that is turned away at once raises the SDK's error for 503."""
    house.gateway.room.apply(Rules(parallel=1, max_waiting=2))
    ollama.scheduler.load_seconds = NEVER
    await ask(house, PATHS[0], body())
    await loading(ollama)
    with pytest.raises((openai.InternalServerError, anthropic.InternalServerError, ResponseError)) as raised:
        await within(call(sdks, "tiny", "Hi"))
    assert read(raised.value)[:2] == (503, QUEUE_FULL.message)


@pytest.mark.parametrize("call", [chat, responses_of_another, messages, native_chat])
async def test_who_is_turned_away_after_the_head_reads_why(
    house: Proxy, ollama: SimulatedOllama, sdks: Sdks, call: Call
) -> None:
    """A request that waits with an early head, and is turned away for another device, ends with the queue's words."""
    house.gateway.room.apply(Rules(parallel=1, max_waiting=4))
    ollama.scheduler.load_seconds = NEVER
    for count, source in enumerate(("127.0.0.2", "127.0.0.2", "127.0.0.1"), 1):
        await ask(house, PATHS[0], body(), source)
        await until(lambda count=count: len(house.gateway.room.queue.waiting) == count)
    asking = asyncio.ensure_future(call(sdks, "tiny", "Hi"))
    await until(lambda: len(house.gateway.room.queue.waiting) == 4)
    house.gateway.tick(time.monotonic() + 16)
    await ask(house, PATHS[0], body(), "127.0.0.3")
    with pytest.raises((openai.APIError, anthropic.APIError, ResponseError)) as raised:
        await within(asking)
    status, words, kind = read(raised.value)
    assert (words, kind) == (QUEUE_FULL.message, "" if call is native_chat else "api_error")
    assert status == (-1 if call is native_chat else 200)
