"""What the owner sees of those who wait and of those that Ollama answers, and how a request is ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
import pytest

from tests.exchange.waiting.asking import NEVER, PATHS, TINY, ask, body, loading
from tests.support.raw_http import Proxy, until, within

if TYPE_CHECKING:
    from proxy.simulated_ollama.server import SimulatedOllama


def seen(house: Proxy) -> list[tuple[str, int | None]]:
    """Return the phase and the position of each exchange."""
    return [(each.phase, each.position) for each in house.gateway.room.snapshot().exchanges]


async def test_an_empty_room_has_nothing_to_show(house: Proxy) -> None:
    """Before the first request there is no exchange, no model, and no list of Ollama's."""
    shown = house.gateway.room.snapshot()
    assert (shown.exchanges, shown.models, shown.held, shown.looked) == ((), (), 0, None)


async def test_who_waits_is_shown(house: Proxy, ollama: SimulatedOllama) -> None:
    """Requests that wait for a load are shown in their order, with the model that is loaded for them."""
    ollama.scheduler.load_seconds = NEVER
    for number in range(2):
        await ask(house, PATHS[0], body(), x_request_id=f"r{number}")
        await loading(ollama)
    await until(lambda: seen(house) == [("load", 1), ("load", 2)])
    shown = house.gateway.room.snapshot()
    assert [(each.id, each.model, each.path) for each in shown.exchanges] == [
        ("r0", "tiny", PATHS[0]),
        ("r1", "tiny", PATHS[0]),
    ]
    assert [(each.name, each.state, each.waiting, each.sent) for each in shown.models] == [(TINY, "loading", 2, 0)]
    assert shown.held == 2 * len(body()) == sum(each.held for each in shown.exchanges)
    assert all(each.waited is not None and 0 <= each.waited <= each.seconds for each in shown.exchanges)
    assert orjson.loads(orjson.dumps(shown.as_dict()))["counters"] == {
        "held_too_much": 0,
        "loads": 1,
        "requests": 2,
        "waited": 2,
    }


async def test_who_has_the_slot_is_shown(house: Proxy, ollama: SimulatedOllama) -> None:
    """A request that Ollama answers is shown with what came so far, and the next one with its position."""
    first = await ask(house, PATHS[0], body(max_tokens=100))
    await until(lambda: house.audit)
    ollama.tokens_per_second = 20.0
    first = await ask(house, PATHS[0], body(max_tokens=10_000))
    await until(lambda: any(each.events > 1 for each in house.gateway.room.snapshot().exchanges))
    await ask(house, PATHS[0], body())
    await until(lambda: seen(house) == [("content", None), ("queue", 1)])
    shown = house.gateway.room.snapshot()
    assert shown.exchanges[0].held == 0
    (model,) = shown.models
    assert (model.state, model.seconds, model.waiting, model.sent) == ("loaded", None, 1, 1)
    assert model.memory
    assert model.context
    first.close()
    await until(lambda: len(seen(house)) == 1)


async def test_a_body_that_arrives_is_shown(house: Proxy) -> None:
    """A request whose body is still on its way counts with the bytes that have come."""
    wire = await house.connect()
    await wire.send(b"POST /v1/messages HTTP/1.1\r\nHost: mac\r\nContent-Length: 1000\r\n\r\n{")
    await until(lambda: seen(house) == [("upload", None)])
    assert house.gateway.room.snapshot().held == 1
    wire.close()
    await until(lambda: not seen(house))
    assert house.gateway.room.snapshot().held == 0


async def test_each_event_is_counted(house: Proxy, ollama: SimulatedOllama, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counters count requests, those that waited, loads, those that failed, and cancelled requests, each time."""
    monkeypatch.setattr("proxy.exchange.waiting.loads.REMEMBERED_FOR", 0.0)
    for _ in range(2):
        assert (await (await ask(house, PATHS[0], body("broken"))).answer()).status == 500
    ollama.scheduler.load_seconds = NEVER
    for _ in range(2):
        wire = await ask(house, PATHS[0], body(), x_request_id="one")
        await until(lambda: seen(house) == [("load", 1)])
        house.gateway.room.cancel("one")
        await within(wire.answer())
    assert house.gateway.room.snapshot().counters == {
        "held_too_much": 0,
        "requests": 4,
        "waited": 4,
        "loads": 3,
        "loads_failed": 2,
        "cancelled": 2,
    }


# --- cancel ---

WORDS = {
    PATHS[0]: b'data: {"error":{"message":"The server\'s owner ended this request',
    PATHS[1]: b'event: error\ndata: {"type":"error","error":{"type":',
    PATHS[2]: b'{"error":"The server\'s owner ended this request',
}


@pytest.mark.parametrize("path", PATHS)
async def test_a_cancelled_stream_ends_with_an_error_event(house: Proxy, ollama: SimulatedOllama, path: str) -> None:
    """A stream that is cancelled ends with the surface's error event, and Ollama's slot is free."""
    ollama.tokens_per_second = 20.0
    wire = await ask(house, path, body(max_tokens=10_000, options={"num_predict": 10_000}), x_request_id="long")
    await until(lambda: any(each.events > 1 for each in house.gateway.room.snapshot().exchanges))
    assert house.gateway.room.cancel("long") == 1
    answer = await wire.answer()
    assert not answer.whole
    assert WORDS[path] in answer.content
    (line,) = await house.lines()
    assert (line["ended"], line["reason"], line["status"]) == ("cancelled", "cancelled", 200)
    ollama.tokens_per_second = 0
    following = await ask(house, path, body())
    assert (await following.answer()).status == 200


async def test_a_cancelled_request_that_waits_gets_a_status(house: Proxy, ollama: SimulatedOllama) -> None:
    """A request that is cancelled before its head is answered with 403, which no SDK repeats, and the load goes on."""
    ollama.scheduler.load_seconds = NEVER
    wire = await ask(house, PATHS[0], body(), x_request_id="one")
    await loading(ollama)
    assert house.gateway.room.cancel("one") == 1
    answer = await within(wire.answer())
    assert (answer.status, answer.fields["x-should-retry"]) == (403, "false")
    assert orjson.loads(answer.content)["error"]["type"] == "invalid_request_error"
    assert (await house.lines())[0]["ended"] == "cancelled"
    assert ollama.scheduler.loads_aborted == 0
    assert [each.state for each in house.gateway.room.snapshot().models] == ["loading"]


@pytest.mark.parametrize("path", PATHS)
async def test_a_cancel_after_the_early_head_is_an_event(house: Proxy, ollama: SimulatedOllama, path: str) -> None:
    """A client that has its early head gets the same words in an error event."""
    ollama.scheduler.load_seconds = NEVER
    wire = await ask(house, path, body(), x_request_id="one")
    await loading(ollama)
    house.pass_time(16)
    house.gateway.room.cancel("one")
    answer = await within(wire.answer())
    assert answer.content.startswith(WORDS[path])
    assert not answer.whole


async def test_a_cancelled_upload_is_refused(house: Proxy, ollama: SimulatedOllama) -> None:
    """A request whose body is still on its way can be cancelled, and Ollama never hears of it."""
    wire = await house.connect()
    await wire.send(b"POST /v1/messages HTTP/1.1\r\nHost: mac\r\nX-Request-Id: up\r\nContent-Length: 1000\r\n\r\n{")
    await until(lambda: seen(house) == [("upload", None)])
    assert house.gateway.room.cancel("up") == 1
    assert (await within(wire.answer())).status == 403
    assert not [target for method, target in ollama.seen if method == "POST"]


async def test_what_nobody_has_is_not_cancelled(house: Proxy, ollama: SimulatedOllama) -> None:
    """An unknown id, or the id of an exchange that is over, cancels nothing."""
    wire = await ask(house, PATHS[0], body(), x_request_id="over")
    await wire.answer()
    await until(lambda: not seen(house))
    assert [house.gateway.room.cancel(each) for each in ("over", "never")] == [0, 0]
