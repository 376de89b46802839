"""Devices that take everything they can: others are served meanwhile, the limits hold, and everything is freed.

The proxy and the simulated Ollama are separate processes, with their usual limits of connections. Each hostile device
is an address in 127.0.0.0/8, all of which work on Linux.
"""

from __future__ import annotations

import asyncio
import json
import resource
import statistics
import sys
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from proxy.serving.clients import REFUSED_AT_ONCE
from proxy.serving.descriptors import descriptors_for, raise_limit
from proxy.settings.settings import Settings
from tests.support.hostile.hostile_crowd import Crowd
from tests.support.linux.kernel_sockets import unsent
from tests.support.patience import PATIENCE
from tests.support.proxy_process import Process
from tests.support.raw_http import Wire, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8, and /proc"),
]

MIB = 2**20
BYSTANDER = "127.7.0.9"
LIMITS = Settings()  # as they are when nobody sets any
WANTED = descriptors_for(LIMITS.max_connections)

# --- the attacks ------------------------------------------------------------------------------------------------------


def post(content: bytes, *, length: int) -> bytes:
    """Return a chat request that says it has `length` bytes of content."""
    return b"POST /v1/chat/completions HTTP/1.1\r\nHost: mac\r\nContent-Length: %d\r\n\r\n%b" % (length, content)


def ask(steps: str) -> bytes:
    """Return the content of a request for a stream that the simulated model makes of `steps`."""
    return json.dumps(
        {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": f"@@ttft=0 tps=0 {steps}@@"}]}
    ).encode()


SMALL_ASK, BIG_ASK = ask("tokens=3"), ask("tokens=20 big=65536")


@dataclass(frozen=True)
class Attack:
    """What each of `count` clients at one address does, the response it gets, and its lines in the access log."""

    source: str
    count: int
    opening: bytes
    dribble: bytes  # sent now and then
    reported: str  # the first line that it reads, or how its connection ends
    line: dict[str, object]
    memory: int  # bytes that the proxy may grow by for each
    reads: bool = True


HEADS = Attack(
    source="127.7.0.2",
    count=2000,
    opening=b"POST /v1/chat/completions HTTP/1.1\r\nHost: mac\r\nX-Slow: ",
    dribble=b"a",
    reported="HTTP/1.1 408 Request Timeout",
    line={"status": 408, "reason": "head_timeout", "ended": "proxy/head"},
    memory=32 * 1024,
)
BODIES = Attack(
    source="127.7.0.3",
    count=500,
    opening=post(b'{"model":"tiny",', length=100_000),
    dribble=b" ",
    reported="HTTP/1.1 408 Request Timeout",
    line={"status": 408, "reason": "content_timeout"},
    memory=128 * 1024,
)
READERS = Attack(
    source="127.7.0.4",
    count=500,
    opening=post(BIG_ASK, length=len(BIG_ASK)),
    dribble=b"",
    reported="reset",
    line={"status": 200, "reason": "stalled", "ended": "proxy/content"},
    memory=MIB,  # docs/architecture.md, "What an exchange can hold"
    reads=False,
)
FLOOD = Attack(
    source="127.7.0.2",
    count=400,  # beyond the limit; more than get a response at a time
    opening=b"",
    dribble=b"",
    reported="HTTP/1.1 503 Service Unavailable",
    line={"status": 503, "reason": "overloaded", "ended": "proxy/head"},
    memory=32 * 1024,
)


# --- the stage --------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _descriptors() -> Iterator[None]:
    """Let this process open as many files as the proxy may, or skip."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if raise_limit(WANTED) < WANTED:
        pytest.skip(f"needs {WANTED} open files, and the hard limit is {before[1]}: `ulimit -Hn` as root raises it")
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
async def ollama() -> AsyncIterator[int]:
    """Give the port of a simulated Ollama that answers every client at once, as fast as possible."""
    options = {"port": 0, "tokens-per-second": 0, "parallel": 4000, "max-queue": 4000}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy.simulated_ollama", *words, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        line = await process.stdout.readline()
    yield int(line.decode().rpartition(":")[2])
    process.kill()
    await process.wait()


@pytest.fixture
async def stage(tmp_path: Path, ollama: int) -> AsyncIterator[Stage]:
    """Give the proxy, with short times, before `ollama`."""
    times = {"PROXY_HEAD_TIMEOUT": 2, "PROXY_BODY_TIMEOUT": 2, "PROXY_STALL_TIMEOUT": 2}
    process = await Process.start(tmp_path, ollama, **times)
    await process.says("listening")
    stage = Stage(process, ollama)
    await stage.warm_up()
    yield stage
    for crowd in stage.crowds:
        crowd.leave()
    await process.kill()


class Stage:
    """The proxy, how it was before, and a bystander who measures how long everything takes."""

    def __init__(self, process: Process, ollama: int) -> None:
        self.process = process
        self._ollama = ollama
        self.crowds: list[Crowd] = []
        self._unloaded: list[float] = []
        self._times: list[float] = []
        self._direct: list[float] = []  # the same, past the proxy
        self._peak = 0

    def crowd(self, attack: Attack, source: str = "") -> Crowd:
        """Return the clients of an attack, who are yet to come."""
        self.crowds.append(Crowd(self.process.port, source or attack.source, reads=attack.reads))
        return self.crowds[-1]

    async def warm_up(self) -> None:
        """Measure how long requests take, and what the process is like, while nobody else is there."""
        self._unloaded = [await self.timed() for _ in range(20)]
        self._memory, self._descriptors = self.process.memory(), self.process.descriptors()

    async def guest(self, port: int = 0) -> Wire:
        """Return a new connection of the bystander, past the proxy with Ollama's `port`."""
        async with asyncio.timeout(PATIENCE):
            return await Wire.open(port or self.process.port, BYSTANDER)

    async def ask(self, wire: Wire, *, stay: bool = False) -> None:
        """Get a short answer and a stream on a connection; end it, unless it should `stay`."""
        try:
            await wire.request("GET", "/api/version")
            version = await wire.answer(patience=PATIENCE)
            await wire.request("POST", "/v1/chat/completions", SMALL_ASK)
            stream = await wire.answer(patience=PATIENCE)
        finally:
            if not stay:
                wire.close()
        assert (version.status, version.whole) == (200, True)
        assert (stream.status, stream.whole, stream.content.endswith(b"data: [DONE]\n\n")) == (200, True, True)

    async def timed(self, port: int = 0, guest: Wire | None = None) -> float:
        """Return the seconds that `ask` takes, connecting included."""
        begun = monotonic()
        await self.ask(guest or await self.guest(port), stay=guest is not None)
        return monotonic() - begun

    @asynccontextmanager
    async def served(self, guest: Wire | None = None) -> AsyncIterator[None]:
        """Ask again and again meanwhile, and note how long it takes; a request that fails, fails the test."""
        over = asyncio.Event()

        async def ask_on() -> None:
            while not over.is_set():
                self._times.append(await self.timed(guest=guest))
                self._direct.append(await self.timed(self._ollama))
                self._peak = max(self._peak, self.process.memory())
                await asyncio.sleep(0.02)

        async with asyncio.TaskGroup() as group:
            group.create_task(ask_on())
            yield
            over.set()

    def judge(self, *, memory: int) -> None:
        """Hold what was measured against what is promised; a machine or Ollama that is itself slow is given more."""
        rows = {"unloaded": self._unloaded, "direct": self._direct, "proxied": self._times}
        median = {name: statistics.median(times) for name, times in rows.items()}
        longest = {name: max(times) for name, times in rows.items()}
        for name, times in rows.items():
            print(f"{name}: {len(times)} rounds, median {median[name]:.3f} s, longest {longest[name]:.3f} s")
        grown = self._peak - self._memory
        print(f"memory: {self._memory / MIB:.0f} MiB, then {grown / MIB:.0f} more of at most {memory / MIB:.0f}")
        assert median["proxied"] < 1.0 + 20 * median["unloaded"] + 3 * median["direct"]
        assert longest["proxied"] < 5.0 + 20 * longest["unloaded"] + 3 * longest["direct"]
        assert grown < memory

    def lines(self, wanted: dict[str, object]) -> int:
        """Return how many lines of others than the bystander have these values."""
        return self.process.lines_of(**wanted) - self.process.lines_of(**wanted, peer=BYSTANDER)

    async def turned_away(self, count: int, setting: bytes) -> None:
        """Check that `count` clients over a limit have a line each, and got a response with `setting`, or nothing."""
        await until(lambda: self.lines(FLOOD.line) >= count, patience=PATIENCE)
        assert self.lines(FLOOD.line) == count
        ends = sum((crowd.ends for crowd in self.crowds), Counter[str]())
        assert ends.total() == count
        assert ends[FLOOD.reported] >= REFUSED_AT_ONCE
        assert set(ends) <= {FLOOD.reported, "", "reset"}
        for read in filter(None, (read for crowd in self.crowds for read in crowd.received)):
            assert b"\r\nretry-after: 1\r\n" in read.lower()
            assert setting in read

    async def released(self) -> None:
        """Wait until nothing of the crowds is left, in the process and in the kernel."""
        await until(lambda: self.process.descriptors() <= self._descriptors, patience=PATIENCE)
        await until(lambda: not unsent(self.process.port), patience=PATIENCE)


# --- what must hold ---------------------------------------------------------------------------------------------------


async def test_slow_clients(stage: Stage) -> None:
    """Who dribbles or takes nothing delays nobody, ends as promised with a line each, and leaves nothing behind."""
    process, attacks = stage.process, (HEADS, BODIES, READERS)
    crowds = [(attack, stage.crowd(attack)) for attack in attacks]
    async with stage.served():
        await asyncio.gather(*(crowd.join(attack.count, attack.opening) for attack, crowd in crowds))
        await asyncio.gather(*(crowd.until(lambda c=crowd: not c, PATIENCE, each.dribble) for each, crowd in crowds))  # type: ignore[misc]
    for attack, crowd in crowds:
        assert crowd.ends == {attack.reported: attack.count}
        await until(lambda each=attack: process.lines_of(**each.line) >= each.count, patience=PATIENCE)  # type: ignore[misc]
        assert process.lines_of(peer=attack.source) == attack.count
    stage.judge(memory=sum(attack.count * attack.memory for attack in attacks))
    await stage.released()


async def test_one_device_opens_everything(stage: Stage) -> None:
    """One address gets its share; what is over it gets a 503 or a mere end, and a line; others are served."""
    most, over = LIMITS.max_connections_per_client, 2 * FLOOD.count
    crowd = stage.crowd(FLOOD)
    async with stage.served():
        for _ in range(2):
            await crowd.join(most - len(crowd) + FLOOD.count, FLOOD.opening)
            await crowd.until(lambda: len(crowd) <= most, PATIENCE)
    await stage.turned_away(over, b"`max_connections_per_client`")
    assert len(crowd) == most
    stage.judge(memory=(most + REFUSED_AT_ONCE) * FLOOD.memory)
    crowd.leave()
    await stage.released()
    await stage.ask(await Wire.open(stage.process.port, FLOOD.source))


async def test_flood(stage: Stage) -> None:
    """When devices together take every place, connected clients are served, and new ones get 503 and can come back
    later.
    """
    most = LIMITS.max_connections
    guest = await stage.guest()
    await stage.ask(guest, stay=True)
    crowds = [stage.crowd(FLOOD, source) for source in ("127.7.0.2", "127.7.0.3", "127.7.0.4")]

    def full() -> bool:
        return sum(map(len, crowds)) <= most - 1

    async with stage.served(guest):
        await asyncio.gather(*(crowd.join(most // 3 + FLOOD.count, FLOOD.opening) for crowd in crowds))
        await asyncio.gather(*(crowd.until(full, PATIENCE) for crowd in crowds))
        other = await stage.guest()
        answer = await other.answer(patience=PATIENCE)
        other.close()
    assert (answer.status, answer.fields["retry-after"], answer.fields["connection"]) == (503, "1", "close")
    assert sum(map(len, crowds)) == most - 1
    await stage.turned_away(sum(crowd.joined - len(crowd) for crowd in crowds), b"`max_connections`")
    stage.judge(memory=(most + REFUSED_AT_ONCE) * FLOOD.memory)
    guest.close()
    for crowd in crowds:
        crowd.leave()
    await stage.released()
    await stage.ask(await stage.guest())
