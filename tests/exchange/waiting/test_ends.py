"""What becomes of those who wait when Ollama restarts or their clients leave, and which of them is served first."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING

import openai
import orjson
import pytest

from proxy.exchange.message.failures import UpstreamFailure
from proxy.exchange.waiting.rules import Rules
from proxy.reading.native import NativeOptions
from tests.exchange.waiting.asking import NEVER, PATHS, TINY, ask, body, loading
from tests.support.raw_http import until, within

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from proxy.exchange.upstream.asking import Ollama, Response
    from proxy.simulated_ollama.server import SimulatedOllama
    from tests.support.raw_http import Proxy


def posts(ollama: SimulatedOllama) -> list[str]:
    """Return the paths of all that Ollama was asked to do."""
    return [target for method, target in ollama.seen if method == "POST"]


@pytest.fixture
async def ticking(house: Proxy) -> AsyncIterator[None]:
    """Turn the gateway's wheel often, so that small times in the rules count."""

    async def turn() -> None:
        while True:
            house.gateway.tick(time.monotonic())
            await asyncio.sleep(0.01)

    turning = asyncio.create_task(turn())
    yield
    turning.cancel()


# --- Ollama's ends ---


async def test_a_restart_during_a_load_costs_nobody_the_request(
    house: Proxy, ollama: SimulatedOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When Ollama restarts during a load, the load is asked for again, and those who wait are answered."""
    monkeypatch.setattr("proxy.exchange.waiting.loads.AGAIN_AFTER", 0.01)
    ollama.scheduler.load_seconds = NEVER
    wires = [await ask(house, PATHS[0], body()) for _ in range(2)]
    await until(lambda: len(house.gateway.room.queue.waiting) == 2)
    await loading(ollama)
    await ollama.close()
    ollama.scheduler.load_seconds = 0
    await ollama.start(port=ollama.port)
    assert [(await within(wire.answer())).status for wire in wires] == [200, 200]


async def test_a_restart_after_a_load_is_noticed(house: Proxy, ollama: SimulatedOllama) -> None:
    """An answer that breaks off makes the room forget what is loaded, so that the next request waits for a load."""
    ollama.tokens_per_second = 20.0
    wire = await ask(house, PATHS[0], body(max_tokens=10_000))
    await until(lambda: any(each.events > 1 for each in house.gateway.room.snapshot().exchanges))
    await ollama.close()
    assert not (await wire.answer()).whole
    await until(lambda: not house.gateway.room.snapshot().models)
    ollama.tokens_per_second = 0
    await ollama.start(port=ollama.port)
    following = await ask(house, PATHS[0], body())
    assert (await following.answer()).status == 200
    assert posts(ollama) == ["/api/generate", PATHS[0]] * 2


class Mute:
    """An Ollama that gives no lists once it has loaded a model, because it is busy."""

    def __init__(self, ollama: Ollama) -> None:
        self._ollama = ollama
        self._loaded = False

    async def ask(self, method: str, path: str, body: bytes = b"") -> Response:
        """Pass the request on, or fail."""
        if method == "GET" and self._loaded:
            raise UpstreamFailure("Ollama is busy")
        self._loaded = method == "POST"
        return await self._ollama.ask(method, path, body)


async def test_a_load_without_lists_serves_those_who_wait(house: Proxy, ollama: SimulatedOllama) -> None:
    """If Ollama gives no lists after a load, those who wait are served, and the model isn't taken for an unkept one."""
    loads = house.gateway.room.loads
    asker, loads.ollama = loads.ollama, Mute(loads.ollama)  # type: ignore[assignment]
    wire = await ask(house, PATHS[0], body())
    assert (await wire.answer()).status == 200
    assert posts(ollama) == ["/api/generate", "/api/show", PATHS[0]]  # it is asked where the model runs now
    loads.ollama = asker
    ollama.scheduler.runners.clear()
    loads.forget()
    wire = await ask(house, PATHS[0], body())
    assert (await wire.answer()).status == 200
    assert posts(ollama)[3:] == ["/api/generate", PATHS[0]]


async def test_what_ollama_unloads_is_loaded_again(house: Proxy, ollama: SimulatedOllama) -> None:
    """The room follows Ollama's lists: a model that is still listed needs no load, and one that isn't needs one."""
    for loads in (1, 1, 2):
        if loads == 2:
            ollama.scheduler.runners.clear()
        await house.gateway.room.loads.look()
        wire = await ask(house, PATHS[0], body())
        assert (await wire.answer()).status == 200
        assert house.gateway.room.snapshot().counters["loads"] == loads


async def test_without_lists_nothing_is_believed(house: Proxy, ollama: SimulatedOllama) -> None:
    """When Ollama gives no lists any more, nothing counts as loaded."""
    wire = await ask(house, PATHS[0], body())
    assert (await wire.answer()).status == 200
    assert house.gateway.room.snapshot().models
    await ollama.close()
    house.gateway.room.loads.forget()
    await house.gateway.room.loads.look()
    assert not house.gateway.room.snapshot().models


async def test_an_ollama_that_keeps_nothing_is_not_asked_to_load(house: Proxy, ollama: SimulatedOllama) -> None:
    """Where a load leaves nothing loaded, later requests load the model by themselves."""
    ollama.scheduler.keep_alive = 0
    for _ in range(3):
        wire = await ask(house, PATHS[0], body())
        assert (await wire.answer()).status == 200
        house.gateway.room.loads.forget()
    assert posts(ollama) == ["/api/generate", *PATHS[:1] * 3]


async def test_without_a_shield_nothing_is_loaded_ahead(house: Proxy, ollama: SimulatedOllama) -> None:
    """With a keep-alive of 0 in `ollama_env` the proxy loads nothing."""
    house.gateway.room.apply(Rules(parallel=1, shield=False))
    wire = await ask(house, PATHS[0], body())
    assert (await wire.answer()).status == 200
    assert posts(ollama) == [PATHS[0]]


# --- clients that leave ---


@pytest.mark.parametrize("reset", [False, True], ids=["end", "reset"])
async def test_clients_that_leave_while_they_wait_cost_ollama_nothing(
    house: Proxy, ollama: SimulatedOllama, reset: bool
) -> None:
    """Clients that leave the queue, and one that leaves just as its turn comes, leak nothing inside Ollama."""
    ollama.leak_window = 0.02
    ollama.tokens_per_second = 50.0
    first = await ask(house, PATHS[0], body(max_tokens=5))
    waiting = [await ask(house, PATHS[0], body()) for _ in range(8)]
    await until(lambda: len(house.gateway.room.queue.waiting) == 8)
    for wire in waiting[:4]:
        wire.close(reset=reset)
    assert (await first.answer()).status == 200
    for wire in waiting[4:]:
        wire.close(reset=reset)
    await house.lines(9)
    last = await ask(house, PATHS[0], body())
    assert (await last.answer()).status == 200
    assert ollama.leaked == 0
    assert not house.gateway.room.snapshot().exchanges


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has filters for sockets")
async def test_a_client_that_is_silently_gone_is_noticed_by_its_pings(house: Proxy, ollama: SimulatedOllama) -> None:
    """A client that doesn't acknowledge its early head is cut after `stall_timeout`, and gets no ping until then.

    The kernel doesn't probe a connection that has data on its way, and tries for many minutes to send it.
    """
    ollama.scheduler.load_seconds = NEVER
    wire = await ask(house, PATHS[0], body())
    await loading(ollama)
    wire.vanish()
    house.pass_time(16)
    house.pass_time(70)
    assert len(house.gateway.room.snapshot().exchanges) == 1
    house.pass_time(80)
    (line,) = await house.lines()
    assert (line["reason"], line["status"], line.get("pings")) == ("stalled", 200, None)
    assert not house.gateway.room.snapshot().exchanges


# --- fairness ---


@pytest.mark.usefixtures("ticking")
async def test_a_flood_lets_another_device_in(house: Proxy, ollama: SimulatedOllama) -> None:
    """While one device floods a model, another is served next for the same model, and soon for another one."""
    house.gateway.room.apply(Rules(parallel=1, swap_after=0.2))
    ollama.scheduler.max_loaded = 1
    ollama.tokens_per_second = 100.0
    flood = [await ask(house, PATHS[0], body(max_tokens=8)) for _ in range(30)]
    await until(lambda: len(house.gateway.room.queue.waiting) == 29)
    same = await ask(house, PATHS[0], body(max_tokens=8), "127.0.0.2")
    assert (await within(same.answer())).status == 200
    left = len(house.gateway.room.queue.waiting)
    assert left >= 25
    other = await ask(house, PATHS[0], body("thinker", max_tokens=8), "127.0.0.2")
    assert (await within(other.answer())).status == 200
    assert 0 < len(house.gateway.room.queue.waiting) < left
    assert ollama.scheduler.loads == 2
    for wire in flood:
        wire.close()


@pytest.mark.usefixtures("ticking")
async def test_devices_that_take_turns_do_not_swap_each_time(house: Proxy, ollama: SimulatedOllama) -> None:
    """Requests of two devices for two models that don't fit together share the loads, and all are answered."""
    house.gateway.room.apply(Rules(parallel=1, swap_after=0.5))
    ollama.scheduler.max_loaded = 1
    asked = [("tiny", "127.0.0.1"), ("thinker", "127.0.0.2")] * 5
    wires = [await ask(house, PATHS[0], body(model), source) for model, source in asked]
    assert [(await within(wire.answer())).status for wire in wires] == [200] * 10
    assert ollama.scheduler.loads <= 3


# --- /v1/responses ---


async def test_responses_fail_as_codex_and_the_sdk_read_it(house: Proxy, ollama: SimulatedOllama) -> None:
    """OpenAI's SDK gets no early head on /v1/responses, so that a load that fails late is still a status."""
    ollama.scheduler.load_seconds = 0.5
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{house.port}/v1", api_key="none", max_retries=0
    ) as client:
        asking = asyncio.ensure_future(client.responses.create(model="broken", input="Hi", stream=True))
        await loading(ollama)
        house.pass_time(100)
        with pytest.raises(openai.InternalServerError, match="llama-server process has terminated"):
            await within(asking)


async def test_other_clients_of_responses_get_a_failed_response(house: Proxy, ollama: SimulatedOllama) -> None:
    """Another client of /v1/responses gets comments, and `response.failed` with Ollama's words when the load fails."""
    ollama.scheduler.load_seconds = 0.5
    wire = await ask(house, "/v1/responses", orjson.dumps({"model": "broken", "input": "Hi", "stream": True}))
    await loading(ollama)
    for seconds in (16, 50):
        house.pass_time(seconds)
    answer = await wire.answer()
    assert (answer.status, answer.whole) == (200, False)
    assert answer.content.startswith(b": waiting\n\nevent: response.failed\n")
    failed = orjson.loads(answer.content.rpartition(b"data: ")[2])
    assert failed["response"]["error"]["code"] == "server_error"
    assert "llama-server process has terminated" in failed["response"]["error"]["message"]


async def test_it_is_loaded_by_its_own_name(house: Proxy, ollama: SimulatedOllama) -> None:
    """However a client spells a model, it is the same one in the room."""
    for name in ("tiny", "TINY:latest", " tiny "):
        wire = await ask(house, PATHS[0], body(name))
        assert (await wire.answer()).status == 200
    assert [each.name for each in house.gateway.room.snapshot().models] == [TINY]
    assert ollama.scheduler.loads == 1


# --- a keep-alive of 0 ---


@pytest.mark.parametrize("keep_alive", [0, "0h0m", -0.0], ids=str)
async def test_a_request_that_unloads_its_model_loads_it_too(
    house: Proxy, ollama: SimulatedOllama, keep_alive: float | str
) -> None:
    """A request that says to keep nothing loads the model by itself, and the next one waits for a load again."""
    house.gateway.room.apply(Rules(parallel=1, native=NativeOptions.PASS))
    for more in ({"keep_alive": keep_alive}, {}):
        wire = await ask(house, "/api/chat", body(**more))
        assert (await wire.answer()).status == 200
    assert posts(ollama) == ["/api/chat", "/api/generate", "/api/chat"]


async def test_an_unload_is_noticed(house: Proxy, ollama: SimulatedOllama) -> None:
    """After a request that only unloads a model, the next one waits for a load."""
    house.gateway.room.apply(Rules(parallel=1, native=NativeOptions.PASS))
    for path, content in (
        ("/api/chat", body()),
        ("/api/generate", orjson.dumps({"model": "tiny", "keep_alive": 0})),
        ("/api/chat", body()),
    ):
        wire = await ask(house, path, content)
        assert (await wire.answer()).status == 200
    assert posts(ollama) == ["/api/generate", "/api/chat", "/api/generate", "/api/generate", "/api/chat"]
