"""When Ollama counts as stuck, from times and counts alone, and through a gateway whose Ollama is silent or empty."""

from __future__ import annotations

import asyncio
import time
from math import inf
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from proxy.exchange.message.exchange import Exchange, Phase
from proxy.exchange.streams import Answer, Events
from proxy.exchange.waiting.rules import Rules
from proxy.exchange.waiting.stuck import (
    AGAIN,
    EMPTY_FOR,
    HINT,
    MINUTE,
    Sample,
    Silent,
    Watch,
    is_blank,
    is_empty,
    load,
    patience,
)
from proxy.exchange.waiting.visit import Visit
from proxy.policy.routes import OPT_IN, Dialect
from proxy.serving import processor
from tests.exchange.waiting.asking import NEVER, PATHS, ask, body
from tests.support.ollama_recordings import recording
from tests.support.raw_http import Proxy, until

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.simulated_ollama.server import SimulatedOllama

DIALECTS = {"chat": Dialect.CHAT, "messages": Dialect.MESSAGES, "responses": Dialect.RESPONSES}


@pytest.mark.parametrize(
    ("stuck_after", "octets", "seconds"),
    [(300, 0, 300), (300, 199, 300.995), (300, 200, 301), (300, 100_000, 800), (0, 100_000, inf)],
)
def test_patience(stuck_after: float, octets: int, seconds: float) -> None:
    """A longer request may take longer, one second for each 200 bytes; 0 waits forever."""
    assert patience(stuck_after, octets) == seconds


# --- processor time ---

LINUX = """\
    1     0    00:10:00 systemd
  700     1  1-02:03:04 ollama
  701   700    00:00:02 ollama
  702   701    00:00:03 llama-server
  703     1    05:00:00 ollama-watcher
  bad line
  704   700    what     ollama
"""
MACOS = """\
    1     0   9:59.99 /sbin/launchd
  600     1   0:01.00 /Applications/Ollama.app/Contents/MacOS/Ollama
  601   600   0:02.50 /Applications/Ollama.app/Contents/Resources/ollama
  602   601 123:45.67 /Users/me and you/llama-server
  603     1   0:07.00 /usr/bin/python3
"""


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        (LINUX, {700: 93784.0, 701: 2.0, 702: 3.0}),
        (MACOS, {600: 1.0, 601: 2.5, 602: 7425.67}),
        ("", {}),
    ],
    ids=["linux", "macos", "nothing"],
)
def test_used(listed: str, found: dict[int, float]) -> None:
    """Ollama's processes are those of that name and all below them, and their times are read in both forms.

    Public sources of the forms: procps, `pr_time`; Apple's adv_cmds, ps/print.c, `cputime`.
    """
    assert processor.used(listed) == found


async def test_this_machines_ps_is_understood() -> None:
    """The command runs here, and each process that it prints would be found if its name were `ollama`."""
    written = await processor.run(*processor.PS, environ={"LC_ALL": "C"})
    lines = [line.split(None, 3) for line in written.out.decode().splitlines()]
    renamed = [" ".join((*words[:3], "ollama")) for words in lines]
    assert sorted(processor.used("\n".join(renamed))) == sorted(int(words[0]) for words in lines)
    assert lines


async def test_without_ps_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no `ps`, the time is unknown, and not 0."""
    monkeypatch.setattr(processor, "PS", ("/nowhere/ps",))
    assert await processor.used_by_ollama() is None


@pytest.mark.parametrize(
    ("before", "after", "part"),
    [
        ({1: 10.0}, {1: 13.0}, 0.05),
        ({1: 10.0}, {1: 10.0, 2: 6.0}, 0.1),
        ({1: 10.0, 2: 60.0}, {1: 10.0}, 0.0),
        (None, {1: 10.0}, None),
        ({1: 10.0}, None, None),
    ],
    ids=["one", "a_new_one", "one_ended", "unknown_before", "unknown_after"],
)
def test_load(before: dict[int, float] | None, after: dict[int, float] | None, part: float | None) -> None:
    """The processor time of a minute is that of all processes, those that were started in it included."""
    assert load(Sample(100, before, frozenset()), Sample(160, after, frozenset())) == part


# --- the watch ---


class Desk:
    """A watch, what `ps` would say, and what was logged."""

    def __init__(self, *, local: bool = True) -> None:
        self.used: dict[int, float] | None = {1: 0.0}
        self.notes: list[dict[str, Any]] = []
        self.samples = 0
        self.watch = Watch(
            lambda event, **fields: self.notes.append({"event": event, **fields}), self.sample if local else None
        )

    async def sample(self) -> Mapping[int, float] | None:
        self.samples += 1
        return self.used

    async def tick(self, now: float, *ids: str) -> None:
        """Turn the wheel, with these requests overdue, and let a look end."""
        samples = self.samples
        self.watch.tick(now, [Silent(each, "tiny:latest", 420.0) for each in ids])
        if ids and self.watch_is_due(samples):
            await until(lambda: self.samples > samples)

    def watch_is_due(self, samples: int) -> bool:
        return self.samples == samples and "looking" in repr(self.watch)


@pytest.mark.parametrize(
    ("seconds", "used", "stuck"),
    [(MINUTE, 2.9, True), (MINUTE, 3.0, False), (MINUTE - 1, 0.0, False), (MINUTE, None, False)],
    ids=["nearly_idle", "five_percent", "not_a_minute_yet", "unknown"],
)
async def test_an_idle_ollama_is_stuck(seconds: float, used: float | None, stuck: bool) -> None:
    """With a request overdue for a minute more, in which Ollama used less than 5 % of a processor, it is stuck."""
    desk = Desk()
    await desk.tick(1000, "a")
    desk.used = None if used is None else {1: used}
    await desk.tick(1000 + seconds, "a")
    assert bool(desk.watch.troubles(1000 + seconds)) is stuck
    assert [(each["event"], each["hint"], each["request"]) for each in desk.notes] == [
        ("ollama_stuck", HINT, "a")
    ] * stuck


async def test_another_request_is_another_silence() -> None:
    """The idle minute must be one of the same request's silence."""
    desk = Desk()
    await desk.tick(0, "a")
    await desk.tick(MINUTE, "b")
    assert not desk.watch.troubles(MINUTE)
    await desk.tick(2 * MINUTE, "b")
    assert desk.watch.troubles(2 * MINUTE)


async def test_it_ends_with_the_silence() -> None:
    """Once no request is overdue, nothing is wrong any more."""
    desk = Desk()
    for now in (0, MINUTE):
        await desk.tick(now, "a")
    await desk.tick(MINUTE + 1)
    assert desk.watch.troubles(MINUTE + 1) == ()


async def test_it_is_logged_once_in_a_while() -> None:
    """A lasting silence is logged at once, and again after ten minutes."""
    desk = Desk()
    for minute in range(11):
        await desk.tick(minute * MINUTE, "a")
    assert len(desk.notes) == 1
    await desk.tick(MINUTE + AGAIN, "a")
    assert len(desk.notes) == 2


async def test_each_silence_is_logged() -> None:
    """A silence that begins after another one has ended is logged as well, however soon that is."""
    desk = Desk()
    for now in (0, MINUTE):
        await desk.tick(now, "a")
    await desk.tick(MINUTE + 1)
    for now in (2 * MINUTE, 3 * MINUTE):
        await desk.tick(now, "b")
    assert [each["request"] for each in desk.notes] == ["a", "b"]


async def test_the_longest_silence_is_reported() -> None:
    """Of several requests that Ollama is silent about, the one with the longest silence is in the log."""
    desk = Desk()
    for now in (0, MINUTE):
        desk.watch.tick(now, [Silent("b", "small:latest", 400.0), Silent("a", "tiny:latest", 3600.0)])
        await until(lambda: "looking" not in repr(desk.watch))
    (note,) = desk.notes
    assert note["request"] == "a"
    assert note["problem"].startswith("tiny:latest has been silent for 60 min about a request, and Ollama used 0.0%")


async def test_closing_ends_a_look() -> None:
    """`close` ends a look at Ollama's processes, and returns once it has ended."""
    ended = []

    async def sample() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append("sample")

    watch = Watch(lambda *_, **__: None, sample)
    await watch.close()
    watch.tick(0, [Silent("a", "tiny:latest", 420.0)])
    await until(lambda: "looking" in repr(watch))
    await asyncio.sleep(0)
    await watch.close()
    assert ended == ["sample"]
    assert "looking" not in repr(watch)


async def test_nothing_is_run_without_need() -> None:
    """While no request is overdue, or Ollama is on another machine, no program is run."""
    for desk, ids in ((Desk(), ()), (Desk(local=False), ("a",))):
        await desk.tick(0, *ids)
        assert "looking" not in repr(desk.watch)


@pytest.mark.parametrize(
    ("answers", "stuck"),
    [("ee", False), ("eee", True), ("eete", False), ("eeet", False), ("teee", True)],
)
def test_empty_answers(answers: str, stuck: bool) -> None:
    """Three answers without a token in a row are trouble, until one has a token. Other models don't count."""
    desk = Desk()
    for at, each in enumerate(answers):
        desk.watch.answered("tiny:latest", empty=each == "e", now=at)
        desk.watch.answered("other:latest", empty=False, now=at)
    assert desk.watch.troubles(len(answers)) == (("the last 3 answers of tiny:latest had no token",) if stuck else ())
    assert len(desk.notes) == ("eee" in answers)


@pytest.mark.parametrize(("after", "stuck"), [(EMPTY_FOR - 1, True), (EMPTY_FOR, False)])
def test_empty_answers_are_forgotten(after: float, stuck: bool) -> None:
    """Empty answers of ten minutes ago say nothing about now."""
    desk = Desk()
    for _ in range(3):
        desk.watch.answered("tiny:latest", empty=True, now=0)
    assert bool(desk.watch.troubles(after)) is stuck


class Facts:
    """What was read in a response."""

    model = tokens_in = tokens_out = events = None
    blank = False


def read(name: str) -> tuple[Facts, Dialect]:
    """Return what is read in a recorded response."""
    surface = name.removeprefix("scn-standin-empty-").partition("-")[0]
    dialect = DIALECTS.get(surface, Dialect.NDJSON)
    facts = Facts()
    reader = Answer(facts) if "nonstream" in name else Events(facts, dialect)
    reader.feed(recording(name).content)
    reader.end()
    return facts, dialect


SURFACES = ("chat", "messages", "responses", "apichat")
EMPTY = [f"scn-standin-empty-{surface}-{kind}" for surface in SURFACES for kind in ("stream", "nonstream")]
FULL = [f"{surface}-{kind}" for surface in SURFACES for kind in ("stream", "nonstream")]
SHORT = ["chat-stream-one-token", "chat-stream-toolcall", "chat-stream-thinking", "completions-nonstream"]


@pytest.mark.parametrize("name", [*EMPTY, *FULL, *SHORT])
def test_is_empty(name: str) -> None:
    """Ollama's recorded answers without a token are recognised on each surface, streamed or not."""
    facts, dialect = read(name)
    assert is_empty(dialect, facts.tokens_out, facts.events, blank=facts.blank) is ("empty" in name)


@pytest.mark.parametrize(
    ("choice", "blank"),
    [
        ({"text": "Hi"}, False),
        ({"text": ""}, True),
        ({"delta": {"role": "assistant", "content": ""}}, True),
        ({"delta": {"content": "Hi"}}, False),
        ({"delta": None}, True),
        (None, True),
    ],
)
def test_is_blank(choice: object, blank: bool) -> None:
    """A chunk is blank if it brings no text and nothing but a role."""
    assert is_blank({"choices": [choice]}) is blank


ROLE, FINISH = {"role": "assistant", "content": ""}, {}


@pytest.mark.parametrize(
    ("deltas", "reason", "empty"),
    [
        ([ROLE, FINISH], "stop", True),
        ([ROLE, FINISH], None, False),
        ([ROLE, {"content": "x" * 300_000}], "stop", False),
        ([ROLE, {"content": "Hi"}], "stop", False),
        ([ROLE, {"content": "", "reasoning": "hm"}], "stop", False),
        ([ROLE, {"tool_calls": [{"id": "call_1"}]}], "tool_calls", False),
        ([{**ROLE, "content": "Hi"}, FINISH], "stop", False),
        ([ROLE, ROLE, FINISH], "stop", False),
    ],
    ids=["blank", "unfinished", "too_large_to_keep", "text", "thought", "tool_call", "text_first", "one_event_more"],
)
def test_a_chat_without_counts(deltas: list[dict[str, Any]], reason: str | None, empty: bool) -> None:
    """A chat stream without usage is empty only if it has no more than its role, its finish reason and `[DONE]`."""
    facts = Facts()
    reader = Events(facts, Dialect.CHAT)
    for at, delta in enumerate(deltas, 1):
        choice = {"index": 0, "delta": delta, "finish_reason": reason if at == len(deltas) else None}
        event = b"data: " + orjson.dumps({"model": "tiny", "choices": [choice]}) + b"\n\n"
        for begin in range(0, len(event), 50_000):
            reader.feed(event[begin : begin + 50_000])
    reader.feed(b"data: [DONE]\n\n")
    reader.end()
    assert is_empty(Dialect.CHAT, facts.tokens_out, facts.events, blank=facts.blank) is empty


# --- through the gateway ---


def watched(house: Proxy, used: dict[int, float] | None = None) -> None:
    """Have the room watch Ollama, whose processes have used so much."""

    async def sample() -> dict[int, float] | None:
        return {1: 0.0} if used is None else used

    house.gateway.room.watch = Watch(house.gateway.note, sample)


def troubles(house: Proxy, now: float) -> tuple[str, ...]:
    return house.gateway.room.watch.troubles(now)


@pytest.mark.parametrize("path", PATHS)
async def test_a_silent_request_is_reported(house: Proxy, path: str) -> None:
    """A request that gets no answer for five minutes and a minute more, from an idle Ollama, is in the log."""
    watched(house)
    wire = await ask(house, path, body(messages=[{"role": "user", "content": "@@ttft=900000@@"}]), x_request_id="long")
    await until(lambda: [each.phase for each in house.gateway.room.snapshot().exchanges] == ["wait"])
    now = time.monotonic()
    house.gateway.tick(now)
    for seconds in (299, 301, 362):
        house.gateway.tick(now + seconds)
        await until(lambda: "looking" not in repr(house.gateway.room.watch))
        assert bool(troubles(house, now)) is (seconds == 362)
    (note,) = house.notes
    assert note["event"] == "ollama_stuck"
    assert (note["hint"], note["request"]) == (HINT, "long")
    assert "tiny:latest has been silent for 6 min" in note["problem"]
    wire.close()


async def test_ollama_is_not_asked_without_need(house: Proxy) -> None:
    """While no request is overdue, the watch asks Ollama nothing."""
    asked = []
    watched(house)
    house.gateway.room.loads.look = lambda: asked.append("lists")
    house.gateway.tick(time.monotonic())
    assert asked == []


class Client:
    """A client that hasn't taken so many bytes yet."""

    unsent = 0


@pytest.mark.parametrize(
    ("phase", "events", "unsent", "heard"),
    [
        (Phase.QUEUE, None, 0, None),
        (Phase.REQUEST, None, 0, None),
        (Phase.WAIT, None, 0, 10),
        (Phase.CONTENT, 5, 0, 10),
        (Phase.CONTENT, 5, 1, None),
        (Phase.CONTENT, None, 0, None),
    ],
    ids=["queue", "upload", "before_the_answer", "in_a_stream", "held_back_by_the_client", "not_a_stream"],
)
def test_since_when_ollama_is_silent(phase: Phase, events: int | None, unsent: int, heard: float | None) -> None:
    """Ollama is silent before its answer and in a stream, but not while its client takes nothing."""
    visit = visit_in(phase, events, unsent)
    for now in (10, 11, 400):
        visit.listen(now)
    assert visit.heard == heard


def test_each_event_breaks_the_silence() -> None:
    """The silence begins again with the answer, and with each event."""
    visit = visit_in(Phase.WAIT, None, 0)
    heard = []
    for now, (phase, events) in enumerate(
        [(Phase.WAIT, None), (Phase.WAIT, None), (Phase.CONTENT, 1), (Phase.CONTENT, 1), (Phase.CONTENT, 2)]
    ):
        visit.exchange.phase = phase
        visit.stream = reading(events)
        visit.listen(now)
        heard.append(visit.heard)
    assert heard == [0, 0, 2, 2, 4]


def visit_in(phase: Phase, events: int | None, unsent: int) -> Visit:
    client: Any = Client()
    client.unsent = unsent
    exchange = Exchange("1", "100.64.0.9", 1, 0.0, None)
    exchange.phase = phase
    visit = Visit(exchange, OPT_IN["POST /api/chat"], client)
    visit.stream = reading(events)
    return visit


def reading(events: int | None) -> Any:
    """Return what reads the stream, if one has begun."""
    return None if events is None else SimpleNamespace(events=events)


async def test_a_model_that_left_the_memory_is_loaded(house: Proxy, ollama: SimulatedOllama) -> None:
    """If Ollama no longer lists the model, it may be loading it, so that it isn't stuck. It is asked again for that."""
    watched(house)
    wire = await ask(house, PATHS[0], body(messages=[{"role": "user", "content": "@@ttft=900000@@"}]))
    await ollama.until(lambda: ("POST", PATHS[0]) in ollama.seen)
    await ollama.until(lambda: any(runner.users for runner in ollama.scheduler.runners.values()))
    ollama.scheduler.runners.clear()
    now = time.monotonic()
    for seconds in (0, 301):
        house.gateway.tick(now + seconds)
    await until(lambda: not house.gateway.room.loads.listed)
    house.gateway.tick(now + 302)
    assert "0 overdue" in repr(house.gateway.room.watch)
    wire.close()


async def test_a_stream_that_goes_on_is_not_silent(house: Proxy, ollama: SimulatedOllama) -> None:
    """A stream whose events come is never overdue, however long it takes."""
    watched(house)
    ollama.tokens_per_second = 200.0
    wire = await ask(house, PATHS[1], body(max_tokens=10_000))
    now = time.monotonic()
    for step in range(1, 4):
        events = sum(each.events for each in house.gateway.room.snapshot().exchanges)
        await until(lambda: sum(each.events for each in house.gateway.room.snapshot().exchanges) > events)  # noqa: B023
        house.gateway.tick(now + 400 * step)
    assert "0 overdue" in repr(house.gateway.room.watch)
    wire.close()


async def test_a_request_in_the_queue_is_not_silent(house: Proxy, ollama: SimulatedOllama) -> None:
    """A request that waits for a load isn't with Ollama, so nobody can be silent about it."""
    watched(house)
    ollama.scheduler.load_seconds = NEVER
    wire = await ask(house, PATHS[0], body())
    await until(lambda: ollama.scheduler.loads)
    now = time.monotonic()
    for seconds in (0, 1000, 2000):
        house.gateway.tick(now + seconds)
    assert "0 overdue" in repr(house.gateway.room.watch)
    wire.close()


async def test_stuck_after_0_is_never(house: Proxy) -> None:
    """With `stuck_after` 0 no silence is too long."""
    watched(house)
    house.gateway.room.apply(Rules(stuck_after=0))
    wire = await ask(house, PATHS[0], body(messages=[{"role": "user", "content": "@@ttft=900000@@"}]))
    await until(lambda: [each.phase for each in house.gateway.room.snapshot().exchanges] == ["wait"])
    now = time.monotonic()
    for seconds in (0, 10_000):
        house.gateway.tick(now + seconds)
    assert "0 overdue" in repr(house.gateway.room.watch)
    wire.close()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("path", PATHS)
async def test_three_empty_answers_are_reported(house: Proxy, path: str, stream: bool) -> None:
    """The third answer in a row without a token is in the log and in the live state."""
    watched(house)
    for _ in range(3):
        assert not house.gateway.room.snapshot().troubles
        wire = await ask(house, path, body(messages=[{"role": "user", "content": "@@tokens=0@@"}], stream=stream))
        assert (await wire.answer()).status == 200
        await until(lambda: not house.gateway.room.snapshot().exchanges)
    assert house.gateway.room.snapshot().troubles == ("the last 3 answers of tiny:latest had no token",)
    assert [note["event"] for note in house.notes] == ["ollama_stuck"]


async def test_errors_are_not_empty_answers(house: Proxy) -> None:
    """Answers with an error have no token either, and aren't counted."""
    watched(house)
    for _ in range(3):
        wire = await ask(house, "/api/chat", body(messages=[{"role": "user", "content": "@@err=500@@"}], stream=False))
        assert (await wire.answer()).status == 500
    await until(lambda: not house.gateway.room.snapshot().exchanges)
    assert not house.gateway.room.snapshot().troubles


async def test_cut_answers_are_not_empty_answers(house: Proxy, ollama: SimulatedOllama) -> None:
    """Of an answer that its client didn't wait for, nobody knows how many tokens it would have had."""
    watched(house)
    ollama.tokens_per_second = 20.0
    for count in range(1, 4):
        wire = await ask(house, "/api/chat", body(options={"num_predict": 10_000}))
        await until(lambda: any(each.events for each in house.gateway.room.snapshot().exchanges))
        wire.close()
        await house.lines(count)
    assert not house.gateway.room.snapshot().troubles
