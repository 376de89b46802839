"""Bodies that take long to read: whatever clients send, each turn of the loop reads a bounded part of it, for all."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from proxy.exchange.message.passage import A_TURN, STEP, TOKENS_A_TURN
from proxy.exchange.upstream.asking import Ollama
from proxy.exchange.waiting import bodies
from proxy.exchange.waiting.room import Room
from proxy.exchange.waiting.rules import Rules
from proxy.reading.reader import reader_of
from proxy.simulated_ollama.server import SimulatedOllama
from tests.support.raw_http import Proxy, within

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from proxy.reading.reader import Reader

PATH = "/api/chat"


def filled(start: bytes, again: bytes, size: int) -> bytes:
    """Return a body that begins so, and repeats one thing."""
    return start + again * ((size - len(start)) // len(again))


LARGE = {
    "deep": filled(b'{"x":', b"[", 640 * 1024),
    "numbers": filled(b'{"messages":[0', b",0", 640 * 1024),
    "objects": filled(b'{"messages":[{}', b",{}", 640 * 1024),
    "keys": filled(b'{"a":0', b',"a":0', 640 * 1024),
    "text": filled(b'{"x":"', b"x", 2 * 2**20),
}
HELD = {  # which orjson reads, but whose values take long to look at, and which it doesn't read
    "values": filled(b'{"messages":[0', b",0", 500_000) + b"]}",
    "twice": filled(b'{"options":{},"options":{"a":[0', b",0", 500_000) + b"]}}",
    "bad_text": filled(b'{"model":"\\ud800","messages":[0', b",0", 500_000) + b"]}",
}


class Turns:
    """Counts the turns of the loop, and what is read in each."""

    def __init__(self) -> None:
        self.octets: Counter[int] = Counter()
        self.tokens: Counter[int] = Counter()
        self.readers = 0
        self._turn = 0
        self._loop = asyncio.get_running_loop()
        self._next = self._loop.call_soon(self._count)

    def _count(self) -> None:
        self._turn += 1
        self._next = self._loop.call_soon(self._count)

    def end(self) -> None:
        """Count no more."""
        self._next.cancel()

    def reader_of(self, path: str, content_type: str, query: str) -> Reader | None:
        """Return a reader that counts what it reads."""
        reader = reader_of(path, content_type, query)
        return None if reader is None else Counting(reader, self)

    def note(self, octets: int, tokens: int) -> None:
        """Count what was read in this turn."""
        self.octets[self._turn] += octets
        self.tokens[self._turn] += tokens


class Counting:
    """A reader whose work is counted."""

    def __init__(self, reader: Reader, turns: Turns) -> None:
        self._reader, self._turns = reader, turns
        self.end = reader.end
        turns.readers += 1

    @property
    def asked(self) -> object:
        """What it found."""
        return self._reader.asked

    @property
    def tokens(self) -> int:
        """What it has read."""
        return self._reader.tokens

    @property
    def held(self) -> bytes:
        """What it holds back."""
        return self._reader.held

    def feed(self, data: bytes) -> bytes:
        """Count, and read."""
        tokens = self._reader.tokens
        on = self._reader.feed(data)
        self._turns.note(len(data), self._reader.tokens - tokens)
        return on


@pytest.fixture
async def turns(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Turns]:
    """Count what every reader reads."""
    counted = Turns()
    monkeypatch.setattr(bodies, "reader_of", counted.reader_of)
    yield counted
    counted.end()


@pytest.fixture
async def house() -> AsyncIterator[Proxy]:
    """Give the gateway with a room, before a simulated Ollama."""
    async with SimulatedOllama(tokens_per_second=0) as ollama:
        proxy = Proxy(ollama.port, allow=(f"POST {PATH}",))
        await proxy.start()
        proxy.gateway.room = Room(Ollama(proxy.pool, proxy.gateway.target), Rules())
        yield proxy
        await proxy.stop()
        await proxy.gateway.room.loads.close()


@pytest.mark.parametrize("sent", [LARGE, HELD], ids=["too_large_to_hold", "held_whole"])
async def test_a_turn_of_the_loop_reads_little(house: Proxy, turns: Turns, sent: dict[str, bytes]) -> None:
    """However many hostile bodies arrive at once, one turn reads 64 KiB and some 24,000 tokens of all of them."""
    wires = [await house.connect() for _ in sent]
    sending = [wire.request("POST", PATH, content) for wire, content in zip(wires, sent.values(), strict=True)]
    await within(asyncio.gather(*sending, *(wire.answer() for wire in wires)))
    assert turns.readers >= len(sent)
    assert max(turns.octets.values()) <= A_TURN
    assert max(turns.tokens.values()) <= TOKENS_A_TURN + STEP
