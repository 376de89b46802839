"""Bodies that are too large to hold: most of one is sent while its request waits, and its end when that may go on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from proxy.exchange.waiting.asking import Ollama
from proxy.exchange.waiting.room import Room, Rules
from proxy.policy.gate import Policy
from tests.exchange.waiting.asking import NEVER, PATHS, ask, body, loading
from tests.support.raw_http import LAST_CHUNK, NEXT, Proxy, Upstream, chunk, ok, until, within

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from proxy.simulated_ollama.server import SimulatedOllama
    from tests.support.raw_http import Wire

CHAT = PATHS[0]
MOST = 80 * 1024
"""Bytes that are held for a request with a large body that waits."""


def large(size: int = 600_000, **more: Any) -> bytes:
    return body(messages=[{"role": "user", "content": "x" * size}], **more)


def posts(ollama: SimulatedOllama) -> list[str]:
    return [target for method, target in ollama.seen if method == "POST"]


async def send_in_chunks(house: Proxy, content: bytes, size: int = 50_000) -> Wire:
    """Send a chat with a body in chunks."""
    wire = await house.connect()
    await wire.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: mac\r\nTransfer-Encoding: chunked\r\n\r\n")
    for at in range(0, len(content), size):
        await wire.send(chunk(content[at : at + size]))
    await wire.send(LAST_CHUNK)
    return wire


# --- before a simulated Ollama ---


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("size", [600_000, 3_000_000], ids=["text", "with_images"])
async def test_it_waits_for_its_load(house: Proxy, ollama: SimulatedOllama, path: str, size: int) -> None:
    """A large body waits for its model's load, costs no memory meanwhile, and is answered once."""
    content = large(size)
    ollama.scheduler.load_seconds = 0.5
    wire = await ask(house, path, content)
    await loading(ollama)
    seen = house.gateway.room.snapshot()
    assert [(each.phase, each.position, each.model) for each in seen.exchanges] == [("load", 1, "tiny")]
    assert seen.held <= MOST
    assert not house.gateway.room.queue.sent
    answer = await wire.answer()
    assert (answer.status, answer.whole) == (200, True)
    assert posts(ollama) == [path, "/api/generate"]
    [line] = await house.lines()
    assert (line["bytes_in"], line["model"], line["ended"]) == (len(content), "tiny", "complete")
    assert line["waited_ms"] > 0


async def test_it_waits_for_its_turn(house: Proxy, ollama: SimulatedOllama) -> None:
    """A large body waits while another request has the model's only slot, and is with Ollama only after that."""
    ollama.tokens_per_second = 50.0
    first = await ask(house, CHAT, body(max_tokens=20))
    await until(lambda: [each.phase for each in house.gateway.room.snapshot().exchanges] == ["content"])
    second = await ask(house, CHAT, large())
    await until(lambda: house.gateway.room.queue.waiting)
    assert [each.phase for each in house.gateway.room.snapshot().exchanges] == ["content", "queue"]
    assert len(house.gateway.room.queue.sent) == 1
    assert [(await within(wire.answer())).status for wire in (first, second)] == [200, 200]
    assert [line["ended"] for line in await house.lines(2)] == ["complete"] * 2


async def test_one_that_waits_leaves_other_loads_alone(house: Proxy, ollama: SimulatedOllama) -> None:
    """A request whose end is held back neither ends nor delays the load of another model."""
    ollama.scheduler.load_seconds = 0.3
    first = await ask(house, CHAT, large())
    await loading(ollama)
    second = await ask(house, CHAT, body("thinker"))
    assert [(await within(wire.answer())).status for wire in (first, second)] == [200, 200]
    assert ollama.scheduler.loads == 2


@pytest.mark.parametrize(
    ("content", "status"),
    [
        pytest.param(b"[" * 600_000, 400, id="not_json"),
        pytest.param(large()[:-1], 400, id="never_closed"),
        pytest.param(large(model="nope"), 404, id="unknown_model"),
        pytest.param(large()[:-1] + b',"MODEL":"tiny"}', 200, id="ambiguous"),
        pytest.param(large() + b" " * 70_000, 200, id="many_blanks"),
        pytest.param(large() + b"{}", 200, id="more_follows"),
    ],
)
async def test_what_is_not_certain_is_ollamas(
    house: Proxy, ollama: SimulatedOllama, content: bytes, status: int
) -> None:
    """A large body that can't be read, or isn't sure to name a model of this machine, gets Ollama's own answer."""
    wire = await ask(house, CHAT, content)
    assert (await wire.answer()).status == status
    assert posts(ollama) == [CHAT]
    assert (await house.lines())[0]["bytes_in"] == len(content)


async def test_a_failed_load_is_its_answer(house: Proxy, ollama: SimulatedOllama) -> None:
    """A large body whose model can't be loaded gets that answer in Ollama's words, and Ollama never gets its end."""
    wire = await ask(house, CHAT, large(model="broken"))
    answer = await within(wire.answer())
    assert answer.status == 500
    assert b"llama-server process has terminated" in answer.content
    assert ollama.leaked == 0


async def test_it_gets_a_head_and_pings(house: Proxy, ollama: SimulatedOllama) -> None:
    """A stream whose body is too large to hold gets its early head and pings as any other."""
    ollama.scheduler.load_seconds = 0.5
    wire = await ask(house, "/v1/messages", large())
    await loading(ollama)
    house.pass_time(16)
    house.pass_time(50)
    answer = await wire.answer()
    assert (answer.status, answer.whole) == (200, True)
    assert answer.content.startswith(b"event: ping\n")


@pytest.mark.parametrize("reset", [False, True], ids=["end", "reset"])
async def test_a_client_that_leaves_costs_ollama_nothing(house: Proxy, ollama: SimulatedOllama, reset: bool) -> None:
    """A client that leaves while its large body waits frees its place, and leaks nothing inside Ollama."""
    ollama.scheduler.load_seconds = NEVER
    ollama.leak_window = 0.02
    wire = await ask(house, CHAT, large())
    await loading(ollama)
    wire.close(reset=reset)
    [line] = await house.lines()
    assert line["ended"].startswith("downstream/")
    assert not house.gateway.room.queue.waiting
    assert house.gateway.room.snapshot().held == 0
    assert ollama.leaked == 0


async def test_a_drain_turns_it_away(house: Proxy, ollama: SimulatedOllama) -> None:
    """A drain answers a request whose large body waits at once."""
    ollama.scheduler.load_seconds = NEVER
    wire = await ask(house, CHAT, large())
    await loading(ollama)
    draining = asyncio.create_task(house.clients.drain(NEVER))
    assert (await within(wire.answer())).status == 503
    wire.close()
    await within(draining)


async def test_ollama_may_go_away_while_it_waits(house: Proxy, ollama: SimulatedOllama) -> None:
    """When Ollama stops, a large body that waits can't be sent again: its client gets 502, and its place is free."""
    ollama.scheduler.load_seconds = NEVER
    wire = await ask(house, CHAT, large())
    await loading(ollama)
    await ollama.close()
    assert (await within(wire.answer())).status == 502
    await house.lines()
    assert not house.gateway.room.queue.waiting


# --- before an Ollama that the test plays ---


@pytest.fixture
async def played() -> AsyncIterator[Upstream]:
    """Give an Ollama that has `tiny`, and answers as the test says."""
    upstream = Upstream()
    upstream.lists, upstream.models = True, ("tiny:latest",)
    await upstream.start()
    yield upstream
    await upstream.stop()


@pytest.fixture
async def before(played: Upstream) -> AsyncIterator[Proxy]:
    """Give the gateway with a room, before `played`."""
    proxy = Proxy(played.port)
    await proxy.start()
    proxy.gateway.room = Room(Ollama(proxy.pool, proxy.gateway.target), Rules(parallel=1))
    yield proxy
    await proxy.stop()
    await proxy.gateway.room.loads.close()


def content_of(octets: bytes) -> bytes:
    """Return what Ollama got of a request behind its head."""
    return octets.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize("behind", [b"", b" \n\n"], ids=["nothing", "blanks"])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
async def test_ollama_gets_its_end_last(before: Proxy, played: Upstream, chunked: bool, behind: bytes) -> None:
    """Ollama gets all before the closing byte while the model loads, the rest after that, and nothing twice."""
    played.answers_in_turn((NEXT, ok()), (ok(),))
    content = large()
    sent = content + behind
    wire = await (send_in_chunks(before, sent) if chunked else ask(before, CHAT, sent))
    await until(lambda: before.gateway.room.queue.loading)
    chat = next(peer for peer in played.peers if peer.octets.startswith(b"POST /v1/chat"))
    got = content_of(bytes(chat.octets))
    if chunked:
        assert got.endswith(b"]\r\n")
        assert not got.endswith(LAST_CHUNK)
    else:
        assert got == content[:-1]
    played.proceed()
    assert (await within(wire.answer())).status == 200
    whole = content_of(bytes(chat.octets))
    assert whole.removeprefix(got) == (chunk(b"}" + behind) + LAST_CHUNK if chunked else b"}" + behind)


async def test_ollama_may_answer_before_its_end(before: Proxy, played: Upstream) -> None:
    """An answer that comes while the end of a large body is held back goes to the client, and ends its waiting."""
    played.early = True
    played.answers_in_turn((NEXT, ok(b"{}")), (ok(b'{"early":1}'),))
    loads = await ask(before, CHAT, body())
    await until(lambda: before.gateway.room.queue.loading)
    wire = await ask(before, CHAT, large())
    assert (await within(wire.answer())).content == b'{"early":1}'
    assert len(before.gateway.room.queue.waiting) == 1
    loads.close()


async def test_a_form_waits_too(before: Proxy, played: Upstream) -> None:
    """A large recording in a form waits for its model's load, without its last boundary."""
    before.gateway.policy = Policy.of(allow=("POST /v1/audio/transcriptions",), max_body=2**26)
    played.answers_in_turn((NEXT, ok()), (ok(),))
    part = b'--b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
    form = part % (b"file", b'; filename="a.wav"', b"\0" * 600_000) + part % (b"model", b"", b"tiny") + b"--b--\r\n"
    wire = await ask(before, "/v1/audio/transcriptions", form, content_type="multipart/form-data; boundary=b")
    await until(lambda: before.gateway.room.queue.loading)
    got = content_of(bytes(played.peers[0].octets))
    assert form.removeprefix(got) == b"\r\n--b--\r\n"
    played.proceed()
    assert (await within(wire.answer())).status == 200
    assert content_of(bytes(played.peers[0].octets)) == form


BEGUN = b"POST /v1/chat/completions HTTP/1.1\r\nHost: mac\r\nContent-Length: %d\r\n\r\n%b"


@pytest.mark.parametrize(
    ("before_it", "status", "times"),
    [pytest.param(100_000, 200, 2, id="held"), pytest.param(400_000, 502, 1, id="not_held_any_more")],
)
async def test_it_is_sent_again_only_if_it_is_held(
    before: Proxy, played: Upstream, before_it: int, status: int, times: int
) -> None:
    """If its connection ends before the closing byte is sent, what is still held goes to another; else it is a 502."""
    played.answers(ok())
    content = large()
    wire = await before.connect()
    await wire.send(BEGUN % (len(content), content[:before_it]))
    await until(lambda: played.peers and len(content_of(bytes(played.peers[0].octets))) == before_it)
    played.cut()
    if status == 200:
        await until(lambda: len(played.peers) == times)
        await wire.send(content[before_it:])
    assert (await within(wire.answer())).status == status
    chats = [peer for peer in played.peers if peer.octets.startswith(b"POST /v1/chat")]
    assert len(chats) == times
    assert not before.gateway.room.queue.sent
    if status == 200:
        assert content_of(bytes(chats[1].octets)) == content


@pytest.mark.parametrize("content", [body(), large()], ids=["small", "large"])
async def test_what_ollama_may_act_on_is_never_sent_again(before: Proxy, played: Upstream, content: bytes) -> None:
    """Once the byte that makes Ollama act is sent, a request whose connection breaks off is a 502."""
    played.answers_in_turn((ok(),), (NEXT, ok()))
    wire = await ask(before, CHAT, content)
    await until(lambda: any(each.phase == "wait" for each in before.gateway.room.snapshot().exchanges))
    await until(lambda: any(content_of(request) == content for request in played.requests))
    played.cut()
    assert (await within(wire.answer())).status == 502
    assert sum(request.startswith(b"POST /v1/chat") for request in played.requests) == 1


def test_what_is_held_is_small() -> None:
    """What is held of a request that waits is within what each may have, next to a body of up to 512 KiB."""
    assert MOST < 512 * 1024
    assert orjson.loads(large())["model"] == "tiny"


async def test_large_requests_whose_clients_leave_together_are_not_completed(
    house: Proxy, ollama: SimulatedOllama
) -> None:
    """The end of a large body is not sent for a client whose leaving is still unread, so nothing leaks in Ollama.

    Ollama's scheduler takes its time here: it keeps the connection of each request whose client leaves before its turn.
    """
    ollama.tokens_per_second = 0.001
    wires = [await ask(house, CHAT, large(900_000))]
    await until(lambda: [each.phase for each in house.gateway.room.snapshot().exchanges] == ["content"])
    ollama.leak_window = NEVER
    wires += [await ask(house, CHAT, large(900_000)) for _ in range(5)]
    await until(lambda: len(house.gateway.room.queue.waiting) == 5)
    for wire in wires:
        wire.close()
    await house.lines(6)
    await until(lambda: len(ollama.open_connections) == len(house.pool) + ollama.leaked)
    assert ollama.leaked == 0
