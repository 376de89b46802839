"""Bodies in the room: which are read, how much of them is held, and what goes on to Ollama."""

from __future__ import annotations

import asyncio
import re
import tracemalloc
from typing import TYPE_CHECKING

import orjson
import pytest
import zstandard

from proxy.exchange.client.client_socket import PIECE
from proxy.exchange.waiting import bodies
from proxy.exchange.waiting.bodies import UNPACKED_AT_MOST
from proxy.exchange.waiting.rules import Rules
from proxy.reading import body as reading
from proxy.reading.body import read_objects
from tests.exchange.waiting.asking import NEVER, PATHS, ask, body, loading
from tests.support.raw_http import LAST_CHUNK, chunk, until, within

if TYPE_CHECKING:
    from proxy.simulated_ollama.server import SimulatedOllama
    from tests.support.raw_http import Proxy, Wire


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


BEGUN = b"POST /v1/messages HTTP/1.1\r\nHost: mac\r\nContent-Length: %d\r\n\r\n%b"


async def begin(house: Proxy, size: int, length: int = 400_000, source: str = "") -> Wire:
    """Send the first `size` bytes of a body, and wait until they are held."""
    wire, room = await house.connect(source), house.gateway.room
    after = room.bodies.held + size
    await wire.send(BEGUN % (length, b" " * size))
    await until(lambda: room.bodies.held == after)
    return wire


async def test_bodies_that_arrive_count_as_they_grow(
    house: Proxy, ollama: SimulatedOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body that grows beyond the place of its device costs the device's newest one its own, at once, and no other."""
    monkeypatch.setattr(bodies, "HELD_AT_MOST", 500_000)
    old, new = [await begin(house, 100_000) for _ in range(2)]
    innocent = await begin(house, 1, source="127.0.0.2")  # the newest of all
    await old.send(b" " * 50_001)
    assert (await within(new.answer())).status == 503
    assert [line["reason"] for line in await house.lines()] == ["overloaded"]
    room = house.gateway.room
    await until(lambda: room.bodies.held == 150_002)
    assert room.snapshot().counters["held_too_much"] == 1
    await innocent.send(b" ")
    await until(lambda: room.bodies.held == 150_003)
    answered = await (await ask(house, PATHS[0], body())).answer()
    assert answered.status == 200


async def test_the_device_with_the_most_gives_up_one_that_waits(
    house: Proxy, ollama: SimulatedOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole bodies that wait for long keep no other device out: the newest of the device with the most is refused."""
    monkeypatch.setattr(bodies, "HELD_AT_MOST", 300_000)
    ollama.scheduler.load_seconds = NEVER
    room = house.gateway.room
    waiting = []
    for source in ("127.0.0.2", "127.0.0.3", "127.0.0.2", "127.0.0.3"):
        waiting.append(await ask(house, PATHS[0], large(70_000), source))
        await until(lambda: len(room.queue.waiting) == len(waiting))
    await ask(house, PATHS[0], large(30_000), "127.0.0.4")
    assert (await within(waiting[2].answer())).status == 503
    await until(lambda: [each.device for each in room.queue.waiting].count("127.0.0.2") == 1)
    assert len(room.queue.waiting) == 4


async def test_one_that_grows_goes_if_its_own_device_has_the_most(
    house: Proxy, ollama: SimulatedOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body that goes beyond its device's half of the place costs none of the device's older ones that wait."""
    monkeypatch.setattr(bodies, "HELD_AT_MOST", 250_000)
    ollama.scheduler.load_seconds = NEVER
    await ask(house, PATHS[0], large(100_000))
    await until(lambda: len(house.gateway.room.queue.waiting) == 1)
    second = await begin(house, 20_000)
    await second.send(b" " * 20_000)
    assert (await within(second.answer())).status == 503
    assert len(house.gateway.room.queue.waiting) == 1


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
async def test_many_that_come_at_once_stay_within_the_bound(
    house: Proxy, ollama: SimulatedOllama, monkeypatch: pytest.MonkeyPatch, chunked: bool
) -> None:
    """Bodies that come at the same time hold no more together than the bound and one read, by the memory they take.

    Of each device some are answered 503, and the others wait for their model.
    """
    monkeypatch.setattr(bodies, "HELD_AT_MOST", 1_000_000)
    ollama.scheduler.load_seconds = NEVER
    content, room, samples = large(90_000), house.gateway.room, []

    async def sample() -> None:
        while len(room.queue.waiting) + room.bodies.refused < len(wires):
            uploads = " ".join(repr(client.upload) for client in house.clients.connections)
            samples.append(max(room.bodies.held, sum(map(int, re.findall(r"<Upload (\d+) \w+, held>", uploads)))))
            await asyncio.sleep(0)

    wires = [await house.connect(f"127.0.0.{2 + number % 3}") for number in range(30)]
    for wire in wires:
        framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(content)
        await wire.send(b"POST /v1/messages HTTP/1.1\r\nHost: mac\r\n%b\r\n\r\n" % framing)
    sampling = asyncio.ensure_future(sample())
    for at in range(0, len(content), 9_001):
        piece = content[at : at + 9_001]
        for wire in wires:
            await wire.send(chunk(piece) if chunked else piece)
        await asyncio.sleep(0)
    for wire in wires:
        await wire.send(LAST_CHUNK if chunked else b"")
    await within(sampling)
    assert 9 * len(content) <= max(samples) <= 1_000_000 + PIECE
    assert room.bodies.held == len(content) * len(room.queue.waiting) <= 1_000_000
    assert {each.peer for each in room.snapshot().exchanges} == {"127.0.0.2", "127.0.0.3", "127.0.0.4"}


async def test_large_bodies_that_stall_count_too(house: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that is too large to hold counts with what of it waits, and its sender is turned away like others."""
    monkeypatch.setattr(bodies, "HELD_AT_MOST", 50_000)
    wire = await house.connect()
    await wire.send(BEGUN % (600_000, body() + b" " * 30_000))
    assert (await within(wire.answer())).status == 503
    assert house.gateway.room.bodies.held == 0


async def test_what_is_kept_to_be_sent_again_counts(
    house: Proxy, ollama: SimulatedOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The beginning of a large body, which is kept until more than a window has come, counts until then."""
    await begin(house, 100_000, length=600_000)
    await ollama.until(lambda: ollama.seen)
    assert house.gateway.room.bodies.held == 100_000
    monkeypatch.setattr(bodies, "HELD_AT_MOST", 250_000)
    second = await house.connect()
    await second.send(BEGUN % (600_000, b" " * 30_000))
    assert (await within(second.answer())).status == 503


@pytest.mark.parametrize(
    ("content", "pieces", "times"),
    [
        pytest.param(body(), 1, 0, id="plain"),
        pytest.param(body().replace(b"model", b"Model"), 1, 1, id="odd"),
        pytest.param(body().replace(b"model", b"Model"), 2, 1, id="odd_in_pieces"),
    ],
)
async def test_a_body_is_tried_at_once_only_once(
    house: Proxy, ollama: SimulatedOllama, monkeypatch: pytest.MonkeyPatch, content: bytes, pieces: int, times: int
) -> None:
    """A body that must be read in pieces is tried once before that, whether or not it was there with its head."""
    house.gateway.room.apply(Rules(parallel=1, local_only=False))
    await (await ask(house, PATHS[0], body())).answer()
    tries = []
    monkeypatch.setattr(
        reading, "read_objects", lambda *args, **more: tries.append(args) or read_objects(*args, **more)
    )
    wire = await house.connect()
    half = len(content) // pieces
    await wire.send(BEGUN % (len(content), content[:half]))
    if content[half:]:
        await until(lambda: house.gateway.room.bodies.held == half)
        await wire.send(content[half:])
    assert (await wire.answer()).status == 200
    assert len(tries) == times


async def test_what_is_sent_is_held_no_more(house: Proxy, ollama: SimulatedOllama) -> None:
    """A body counts until it goes to Ollama, however long the answer takes."""
    ollama.tokens_per_second = 0.001
    await ask(house, PATHS[0], body())
    await until(lambda: [each.phase for each in house.gateway.room.snapshot().exchanges] == ["wait"])
    assert house.gateway.room.snapshot().held == 0


@pytest.mark.parametrize(
    ("held_at_most", "size", "status"), [(2**26, 300_000, 200), (1024, 4_000, 503)], ids=["answered", "turned_away"]
)
async def test_an_idle_connection_holds_no_body(
    house: Proxy, monkeypatch: pytest.MonkeyPatch, held_at_most: int, size: int, status: int
) -> None:
    """A connection that stays open after its request holds nothing of it, even if it never went to Ollama."""
    monkeypatch.setattr(bodies, "HELD_AT_MOST", held_at_most)
    wire = await ask(house, PATHS[0], large(size))
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
