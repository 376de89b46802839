"""Bodies in the room: which are read, how much of them is held, and what goes on to Ollama."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import TYPE_CHECKING

import orjson
import pytest
import zstandard

from proxy.exchange.waiting import bodies
from proxy.exchange.waiting.bodies import UNPACKED_AT_MOST
from proxy.exchange.waiting.rules import Rules
from tests.exchange.waiting.asking import NEVER, PATHS, ask, body, loading
from tests.support.raw_http import until, within

if TYPE_CHECKING:
    from proxy.simulated_ollama.server import SimulatedOllama
    from tests.support.raw_http import Proxy


def large(size: int) -> bytes:
    """Return a request with so many bytes of text."""
    return body(messages=[{"role": "user", "content": "why " * (size // 4)}])


@pytest.mark.parametrize("size", [4, 300_000, 2_000_000], ids=["small", "an_agents", "with_images"])
async def test_a_packed_body_is_judged_and_goes_on_unpacked(house: Proxy, ollama: SimulatedOllama, size: int) -> None:
    """A zstd body waits for its model's load as any other, and Ollama gets it unpacked, with its true length."""
    content = large(size)
    wire = await ask(house, PATHS[0], zstandard.compress(content), content_encoding="zstd")
    assert (await wire.answer()).status == 200
    assert [target for method, target in ollama.seen if method == "POST"] == ["/api/generate", PATHS[0]]
    head = ollama.heads[-1]
    assert (head.get("content-encoding"), head.get("content-length")) == ("", str(len(content)))
    assert house.gateway.room.snapshot().held == 0


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"no zstd", 400), (zstandard.compress(large(UNPACKED_AT_MOST + 4)), 200), (zstandard.compress(b"{"), 400)],
    ids=["not_zstd", "too_large", "bad_json"],
)
async def test_a_body_that_cannot_be_unpacked_is_ollamas(
    house: Proxy, ollama: SimulatedOllama, content: bytes, status: int
) -> None:
    """A packed body that can't be read here goes to Ollama at once where it may, and gets its answer."""
    house.gateway.room.apply(Rules(parallel=1, local_only=False))
    wire = await ask(house, PATHS[0], content, content_encoding="zstd")
    assert (await wire.answer()).status == status
    assert [target for method, target in ollama.seen if method == "POST"] == [PATHS[0]]
    assert house.gateway.room.snapshot().held == 0


async def test_bodies_have_a_bound_together(
    house: Proxy, ollama: SimulatedOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request whose body would be too much with all others gets 503 with Retry-After, and the next one fits again.

    One device has half of the place. Another one isn't refused because of it.
    """
    monkeypatch.setattr(bodies, "HELD_AT_MOST", 6 * len(body()))
    ollama.scheduler.load_seconds = NEVER
    waiting = [await ask(house, PATHS[0], body()) for _ in range(3)]
    await until(lambda: len(house.gateway.room.queue.waiting) == 3)
    answer = await within((await ask(house, PATHS[0], body())).answer())
    assert (answer.status, answer.fields["retry-after"]) == (503, "10")
    assert house.gateway.room.snapshot().counters["held_too_much"] == 1
    waiting.append(await ask(house, PATHS[0], body(), "127.0.0.2"))
    await until(lambda: len(house.gateway.room.queue.waiting) == 4)
    waiting[0].close()
    await until(lambda: len(house.gateway.room.queue.waiting) == 3)
    await ask(house, PATHS[0], body())
    await until(lambda: len(house.gateway.room.queue.waiting) == 4)


async def test_bodies_that_arrive_count_as_they_grow(
    house: Proxy, ollama: SimulatedOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow senders that hold too much together are turned away, the newest first, and cost nobody else the place."""
    monkeypatch.setattr(bodies, "HELD_AT_MOST", 500_000)
    slow = [await house.connect() for _ in range(4)]
    innocent = await house.connect("127.0.0.2")  # the newest of all
    for wire in slow:
        await wire.send(b"POST /v1/messages HTTP/1.1\r\nHost: mac\r\nContent-Length: 400000\r\n\r\n" + b" " * 100_000)
        await until(lambda: house.gateway.room.snapshot().held % 100_000 == 0)
    await until(lambda: house.gateway.room.snapshot().held == 400_000)
    await innocent.send(b"POST /v1/messages HTTP/1.1\r\nHost: mac\r\nContent-Length: 2\r\n\r\n ")
    await until(lambda: house.gateway.room.snapshot().held == 400_001)
    house.gateway.tick(asyncio.get_running_loop().time())
    assert [(await within(wire.answer())).status for wire in slow[2:]] == [503, 503]
    assert [line["reason"] for line in await house.lines(2)] == ["overloaded"] * 2
    assert house.gateway.room.snapshot().counters["held_too_much"] == 2
    assert house.gateway.room.snapshot().held == 200_001
    wire = await ask(house, PATHS[0], body())
    assert (await wire.answer()).status == 200


async def test_large_bodies_that_stall_count_too(house: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that is too large to hold counts with what of it waits, and its sender is turned away like others."""
    monkeypatch.setattr(bodies, "HELD_AT_MOST", 50_000)
    wire = await house.connect()
    await wire.send(
        b"POST /v1/messages HTTP/1.1\r\nHost: mac\r\nContent-Length: 600000\r\n\r\n" + body() + b" " * 30_000
    )
    await until(lambda: house.gateway.room.snapshot().held > 30_000)
    house.gateway.tick(asyncio.get_running_loop().time())
    assert (await within(wire.answer())).status == 503
    assert house.gateway.room.snapshot().held == 0


async def test_what_is_sent_is_held_no_more(house: Proxy, ollama: SimulatedOllama) -> None:
    """A body counts until it goes to Ollama, however long the answer takes."""
    ollama.tokens_per_second = 0.001
    await ask(house, PATHS[0], body())
    await until(lambda: [each.phase for each in house.gateway.room.snapshot().exchanges] == ["wait"])
    assert house.gateway.room.snapshot().held == 0


@pytest.mark.parametrize(("held_at_most", "status"), [(2**26, 200), (1024, 503)], ids=["answered", "turned_away"])
async def test_an_idle_connection_holds_no_body(
    house: Proxy, monkeypatch: pytest.MonkeyPatch, held_at_most: int, status: int
) -> None:
    """A connection that stays open after its request holds nothing of it, even if it never went to Ollama."""
    monkeypatch.setattr(bodies, "HELD_AT_MOST", held_at_most)
    wire = await ask(house, PATHS[0], large(300_000))
    assert (await within(wire.answer())).status == status
    (client,) = house.clients.connections
    assert repr(client.upload).endswith(" done>")


@pytest.mark.parametrize("size", [64, 100_000], ids=["small", "an_agents"])
async def test_a_waiting_request_costs_little(house: Proxy, ollama: SimulatedOllama, size: int) -> None:
    """A request that waits costs its body and at most 16 KiB, with the connection's own bytes."""
    count = 32
    house.gateway.room.apply(Rules(parallel=1, max_waiting=10_000))
    ollama.scheduler.load_seconds = NEVER
    content = large(size)
    await ask(house, PATHS[0], content)
    await loading(ollama)
    wires = [await house.connect() for _ in range(count)]
    await asyncio.sleep(0)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for wire in wires:
            await wire.request("POST", PATHS[0], content)
        await until(lambda: len(house.gateway.room.queue.waiting) == count + 1)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown / count < len(content) + 16 * 1024


async def test_a_transcription_waits_too(house: Proxy, ollama: SimulatedOllama) -> None:
    """A form is read for its model, though nothing else in it is."""
    house.gateway.policy = type(house.gateway.policy).of(allow=("POST /v1/audio/transcriptions",), max_body=2**20)
    form = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\ntiny\r\n--b--\r\n'
    wire = await ask(house, "/v1/audio/transcriptions", form, content_type="multipart/form-data; boundary=b")
    await wire.answer()
    assert house.gateway.room.snapshot().counters["requests"] == 1


async def test_lists_do_not_enter_the_room(house: Proxy) -> None:
    """A GET, and a POST that needs no model, ask Ollama for nothing more where all may leave the Mac."""
    house.gateway.room.apply(Rules(parallel=1, local_only=False))
    for method, target, content in (("GET", "/api/version", None), ("POST", "/api/show", b'{"model":"tiny"}')):
        wire = await house.connect()
        await wire.request(method, target, content)
        assert (await wire.answer()).status == 200
    shown = house.gateway.room.snapshot()
    assert (shown.looked, shown.counters) == (None, {"held_too_much": 0})
    assert orjson.dumps(shown.as_dict())
