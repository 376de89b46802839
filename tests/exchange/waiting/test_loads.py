"""The proxy's own loads: asked for once, unaffected by clients, and remembered when they fail."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from proxy import PROGRAM
from proxy.exchange.message.failures import UpstreamFailure
from proxy.exchange.upstream.asking import Ollama, Response
from proxy.exchange.upstream.pool import Pool
from proxy.exchange.upstream.target import Target
from proxy.exchange.waiting.loads import FRESH_FOR, MUTE_FOR, REMEMBERED_FOR, RENEWED_AFTER, SILENT_FOR, Loads
from proxy.reading.asked import Asked, Naming
from proxy.simulated_ollama.models import DEFAULT_MODELS, EMBEDDER
from proxy.simulated_ollama.server import SimulatedOllama
from tests.support.one_exchange import turns
from tests.support.raw_http import within

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from proxy.exchange.message.tickets import Form
    from proxy.exchange.waiting.loads import FailedLoad

BROKEN = replace(DEFAULT_MODELS[-1], name="broken:latest", load_fails=True)


class Desk:
    """Loads in front of a simulated Ollama, and what they reported."""

    def __init__(self, port: int) -> None:
        self.pool = Pool()
        self.ended: asyncio.Queue[tuple[Form, FailedLoad | None]] = asyncio.Queue()
        ollama = Ollama(self.pool, Target("127.0.0.1", port, 5.0))
        self.loads = Loads(ollama, lambda form, failure: self.ended.put_nowait((form, failure)), lambda: None)

    async def load(self, name: str) -> tuple[Form, FailedLoad | None]:
        """Load a model; return what was reported."""
        self.begin(name)
        return await within(self.ended.get())

    def begin(self, name: str) -> None:
        assert self.loads.catalog is not None
        found = self.loads.catalog.find(Asked(Naming.NAMED, name, prompt=True))
        assert found is not None
        self.loads.load(*found)


@pytest.fixture
async def ollama() -> AsyncIterator[SimulatedOllama]:
    """Give a simulated Ollama."""
    async with SimulatedOllama([*DEFAULT_MODELS, EMBEDDER, BROKEN], load_seconds=0.05) as server:
        yield server


@pytest.fixture
async def desk(ollama: SimulatedOllama) -> AsyncIterator[Desk]:
    """Give loads that know Ollama's models."""
    desk = Desk(ollama.port)
    assert await within(desk.loads.look())
    yield desk
    await desk.loads.close()
    desk.pool.close()


@pytest.mark.parametrize("name", ["tiny", "embedder"])
async def test_a_model_is_loaded_by_its_own_kind_of_request(desk: Desk, ollama: SimulatedOllama, name: str) -> None:
    """A load is one request, and Ollama lists the model when it is reported."""
    form, failure = await desk.load(name)
    assert failure is None
    assert list(desk.loads.listed) == [form.model]
    assert ollama.scheduler.loads == 1
    path = "/api/embed" if name == "embedder" else "/api/generate"
    assert ("POST", path) in ollama.seen


async def test_a_failed_load_keeps_ollamas_words(desk: Desk) -> None:
    """A failed load is reported with Ollama's status and body, and remembered for a while."""
    form, failure = await desk.load("broken")
    assert failure is not None
    assert failure.status == 500
    assert b"llama-server process has terminated" in failure.body
    assert desk.loads.failure(form, failure.at + REMEMBERED_FOR - 0.1) == failure
    assert desk.loads.failure(form, failure.at + REMEMBERED_FOR) is None


async def test_a_good_load_is_no_failure_any_more(desk: Desk, ollama: SimulatedOllama) -> None:
    """A load that succeeds makes an earlier failure of the same model forgotten."""
    form, failure = await desk.load("broken")
    assert failure is not None
    ollama.models["broken:latest"] = replace(BROKEN, load_fails=False)
    assert (await desk.load("broken")) == (form, None)
    assert desk.loads.failure(form, failure.at) is None


async def test_a_failure_after_a_forgotten_one_is_reported(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load that fails long after another one is reported like the first: everyone waits for that."""
    monkeypatch.setattr("proxy.exchange.waiting.loads.REMEMBERED_FOR", 0.0)
    for _ in range(2):
        _, failure = await desk.load("broken")
        assert failure is not None


async def test_a_mistake_ends_a_load_too(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in the proxy itself fails the load, is logged, and leaves the way free for the next load."""
    mistakes: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: mistakes.append(context.get("exception")))
    monkeypatch.setattr("proxy.exchange.waiting.loads.load_request", lambda *_: None)
    _, failure = await desk.load("tiny")
    assert failure is not None
    assert (failure.status, failure.body) == (0, b"the proxy made a mistake")
    assert [type(each) for each in mistakes] == [TypeError]
    monkeypatch.undo()
    assert (await desk.load("tiny"))[1] is None


async def test_an_ollama_that_goes_is_a_failure_without_status(
    desk: Desk, ollama: SimulatedOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When Ollama stops during a load and doesn't come back in time, the load fails, and the lists aren't renewed."""
    monkeypatch.setattr("proxy.exchange.waiting.loads.BACK_WITHIN", 0.0)
    ollama.scheduler.load_seconds = 1000.0
    desk.begin("tiny")
    await ollama.until(lambda: ollama.scheduler.loads == 1)
    await ollama.close()
    _, failure = await within(desk.ended.get())
    assert failure is not None
    assert failure.status == 0


async def test_an_ollama_that_was_away_is_no_failed_load(
    desk: Desk, ollama: SimulatedOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next request may find it back: nothing is remembered, and the words say what to do until then."""
    monkeypatch.setattr("proxy.exchange.waiting.loads.BACK_WITHIN", 0.0)
    await ollama.close()
    form, failure = await desk.load("tiny")
    assert failure is not None
    words = failure.body.decode()
    assert words.startswith("Ollama didn't load the model: ")
    assert words.endswith(f"; run `{PROGRAM} status` on the server, and try again")
    assert desk.loads.failure(form, failure.at) is None


async def test_an_ollama_that_gives_no_lists_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the lists in time, whoever waits for them goes on, and for MUTE_FOR seconds nobody else waits."""
    monkeypatch.setattr("proxy.exchange.waiting.loads.LISTS_TAKE", 0.01)
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    desk = Desk(server.sockets[0].getsockname()[1])
    assert not await within(desk.loads.look())
    assert desk.loads.catalog is None
    assert desk.loads.settled(asyncio.get_running_loop().time() + MUTE_FOR - 1)
    server.close()


async def test_connections_are_kept(desk: Desk, ollama: SimulatedOllama) -> None:
    """The proxy's own requests use the pool's connections, one after the other."""
    await desk.load("tiny")
    assert ollama.connections == 1
    assert len(desk.pool) == 1


async def test_one_load_at_a_time(desk: Desk) -> None:
    """A second load during the first is a mistake of the caller."""
    desk.begin("tiny")
    with pytest.raises(RuntimeError, match="hasn't ended"):
        desk.begin("tools")


async def test_nobody_looks_twice_at_once(desk: Desk) -> None:
    """Everyone who needs the lists while they are asked for waits for the same answer."""
    assert desk.loads.look() is desk.loads.look()


class Slow:
    """An Ollama that answers when a test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, asyncio.Future[Response]]] = []
        self.ps = b'{"models":[]}'

    async def ask(self, method: str, path: str, body: bytes = b"") -> Response:
        """Wait for `answer`."""
        self.asked.append((path, asyncio.get_running_loop().create_future()))
        return await self.asked[-1][1]

    async def answer(self, *, but: str = "") -> None:
        """Answer all that is asked, and what is asked then, but for one path."""
        while waiting := [each for each in self.asked if each[0] != but and not each[1].done()]:
            for path, answer in waiting:
                answer.set_result(
                    Response(200, b'{"models":[{"name":"tiny:latest"}]}' if path == "/api/tags" else self.ps)
                )
            await turns()


async def test_lists_from_before_a_load_do_not_hide_it() -> None:
    """Lists that were asked for during a load, and come late, don't make its model look like one that isn't loaded."""
    ollama, ended = Slow(), []
    loads = Loads(ollama, lambda *what: ended.append((*what, dict(loads.listed))), lambda: None)  # type: ignore[arg-type]
    look = loads.look()
    await turns()
    await ollama.answer()
    assert await look
    assert loads.catalog is not None
    found = loads.catalog.find(Asked(Naming.NAMED, "tiny", prompt=True))
    assert found is not None
    loads.load(*found)
    early = loads.look()
    await turns()
    await ollama.answer(but="/api/ps")  # of which `early` has asked
    ((_, late),) = [each for each in ollama.asked if not each[1].done()][:1]
    ollama.ps = b'{"models":[{"name":"tiny:latest"}]}'
    for _, answer in [each for each in ollama.asked if each[1] is not late and not each[1].done()]:
        answer.set_result(Response(200, ollama.ps))
    await turns()
    late.set_result(Response(200, b'{"models":[]}'))
    await turns()
    await ollama.answer()
    assert early.done()
    assert [(failure, list(listed)) for _, failure, listed in ended] == [(None, [found[0].model])]
    assert list(loads.listed) == [found[0].model]


class Clock:
    """The time that the loads read."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Give a clock that only the test moves."""
    clock = Clock()
    monkeypatch.setattr("proxy.exchange.waiting.loads.monotonic", clock)
    return clock


class Prompt:
    """An Ollama that takes no real time to answer, with what a test says."""

    def __init__(self, clock: Clock, takes: float = 0.0) -> None:
        self._clock = clock
        self._takes = takes
        self.answers: list[Response | UpstreamFailure] = [Response(200, b'{"models":[{"name":"tiny:latest"}]}')]
        self.asked: list[str] = []

    async def ask(self, method: str, path: str, body: bytes = b"") -> Response:
        """Give the next answer, and the last one again and again."""
        self.asked.append(path)
        self._clock.now += self._takes
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, UpstreamFailure):
            raise answer
        return answer


@pytest.mark.parametrize(
    ("age", "fresh", "young"),
    [
        (0.0, True, True),
        (RENEWED_AFTER, True, True),
        (RENEWED_AFTER + 1, True, False),
        (FRESH_FOR, True, False),
        (FRESH_FOR + 1, False, False),
    ],
)
async def test_lists_are_believed_for_a_while(clock: Clock, age: float, fresh: bool, young: bool) -> None:
    """Ollama's lists are believed for FRESH_FOR seconds, and asked for again meanwhile after RENEWED_AFTER."""
    ollama = Prompt(clock)
    loads = Loads(ollama, lambda *_: None, lambda: None)  # type: ignore[arg-type]
    assert (loads.fresh(clock.now), loads.young(clock.now), loads.settled(clock.now)) == (False, False, False)
    await loads.look()
    ollama.asked.clear()
    now = clock.now + age
    assert (loads.fresh(now), loads.young(now), loads.settled(now)) == (fresh, young, fresh)
    await turns()
    assert bool(ollama.asked) is (fresh and not young)


@pytest.mark.parametrize("known", [False, True], ids=["never_had_lists", "has_old_lists"])
@pytest.mark.parametrize(
    "answer",
    [Response(503, b""), Response(200, b"busy"), UpstreamFailure("Ollama is gone")],
    ids=["an_error", "no_lists", "no_answer"],
)
async def test_no_lists_hold_up_nobody(clock: Clock, known: bool, answer: Response | UpstreamFailure) -> None:
    """After Ollama gave no lists, nobody waits for them or asks again for SILENT_FOR seconds."""
    ollama = Prompt(clock)
    loads = Loads(ollama, lambda *_: None, lambda: None)  # type: ignore[arg-type]
    if known:
        await loads.look()
        clock.now += RENEWED_AFTER + 1
    ollama.answers = [answer]
    assert await loads.look() is False
    ollama.asked.clear()
    assert loads.settled(clock.now + SILENT_FOR - 0.1)
    await turns()
    assert ollama.asked == []
    assert loads.settled(clock.now + SILENT_FOR) is known
    await turns()
    assert bool(ollama.asked) is known


@pytest.mark.parametrize("status", [200, 503])
async def test_what_is_forgotten_is_waited_for(clock: Clock, status: int) -> None:
    """After `forget` the next request waits for Ollama's lists, whether or not it gave some a moment ago."""
    ollama = Prompt(clock)
    loads = Loads(ollama, lambda *_: None, lambda: None)  # type: ignore[arg-type]
    await loads.look()
    ollama.answers = [Response(status, b'{"models":[]}')]
    await loads.look()
    assert loads.settled(clock.now)
    loads.forget()
    assert (loads.fresh(clock.now), loads.settled(clock.now)) == (False, False)


async def test_closing_waits_for_a_look() -> None:
    """`close` ends a look that is under way, and returns once it has ended."""
    loads = Loads(Slow(), lambda *_: None, lambda: None)  # type: ignore[arg-type]
    look = loads.look()
    await turns()
    await loads.close()
    assert look.cancelled()


@pytest.mark.parametrize(("failures", "tries", "fails"), [(3, 4, False), (4, 5, False), (9, 5, True)])
async def test_a_load_is_asked_for_while_ollama_may_come_back(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, failures: int, tries: int, fails: bool
) -> None:
    """If Ollama goes during a load, the load is asked for again for up to BACK_WITHIN seconds."""
    step = 2**-10
    monkeypatch.setattr("proxy.exchange.waiting.loads.AGAIN_AFTER", step)
    monkeypatch.setattr("proxy.exchange.waiting.loads.BACK_WITHIN", 4 * step)
    ollama, ended = Prompt(clock, step), asyncio.Queue["FailedLoad | None"]()
    loads = Loads(ollama, lambda _, failure: ended.put_nowait(failure), lambda: None)  # type: ignore[arg-type]
    await loads.look()
    assert loads.catalog is not None
    found = loads.catalog.find(Asked(Naming.NAMED, "tiny", prompt=True))
    assert found is not None
    ollama.answers = [UpstreamFailure("Ollama is gone")] * failures + ollama.answers
    loads.load(*found)
    failure = await within(ended.get())
    assert ollama.asked.count("/api/generate") == tries
    assert (failure is not None and (failure.status, b"Ollama is gone" in failure.body)) == (fails and (0, True))
    assert loads.fresh(clock.now) is not fails, "lists from before the load are believed"
