"""The simulated Ollama says what the real one was recorded to say, and behaves as it was seen to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import signal
import socket
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from proxy import simulated_ollama as ollama_sim
from proxy.simulated_ollama import EMBEDDER, REMOTE_STUB, Model, SimulatedOllama, asks
from proxy.simulated_ollama.asks import Complaint, seconds
from proxy.simulated_ollama.go.head import Refused, parse
from proxy.simulated_ollama.go.json import JsonError, dump, first_value, struct
from tests.support.patience import PATIENCE

TRACES = Path(__file__).parent.parent / "traces"
ROOT = Path(__file__).parent.parent.parent
TIMINGS = json.loads((TRACES / "timings.json").read_text())
FAST = 200.0  # how many times faster than recorded the stand-ins speak here
SURE = 0.2  # a leak window, in seconds, that no busy machine makes a test miss

# Recordings whose bytes depend on what no one could see; their JSON has to be of the same shape.
UNMATCHED = {
    "chat-prompt-too-long": "how the stand-in's tokenizer cut a prompt longer than its context is not known",
}
# Recordings that need more than one request and its answer; the test named here has them.
ELSEWHERE = {
    "half-close-before-answer": "test_half_close_in_the_scheduler_is_never_answered",
    "disconnect-mid-stream": "test_leaving_stops_the_generation",
    "ps": "test_ps_tells_what_is_loaded",
}
# What was shortened in the recordings, as it was sent.
SHORTENED = {
    "request-headers-too-big": b"GET /api/version HTTP/1.1\r\nHost: localhost\r\nX-Big: "
    + b"a" * (2**20 + 5000)
    + b"\r\n\r\n",
    "request-header-900k": b"GET /api/version HTTP/1.1\r\nHost: localhost\r\nX-Big: " + b"a" * 900_000 + b"\r\n\r\n",
    "host-own-name": f"GET /api/version HTTP/1.1\r\nHost: {socket.gethostname()}\r\n\r\n".encode(),
}
PLAIN_GET = b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n"
# Identifiers, times and ports: what differs from one recording of the same thing to the next.
VOLATILE = [
    (rb"cmpl-\d+", b"cmpl-N"),
    (rb"(resp|rs|fc|msg)_(resp_)?[0-9a-f]+", rb"\1_\2N"),
    (rb"req_[0-9a-f]{24}", b"req_N"),
    (rb"call_[a-z0-9]{8}", b"call_N"),
    (rb'"(created_at|completed_at)":\d+', rb'"\1":0'),
    (rb'("object":"(?:chat|text).completion(?:.chunk)?","created":)\d+', rb"\g<1>0"),
    (rb'"(created_at|expires_at)":"[^"]+"', rb'"\1":"T"'),
    (rb'"(\w+_duration)":\d+', rb'"\1":0'),
    (rb"127\.0\.0\.1:\d{4,5}\b", b"127.0.0.1:P"),
    (rb'\{"days":3,"city":"Paris"\}', rb'{"city":"Paris","days":3}'),  # Go's order of a map's keys is random
]


class Answer(NamedTuple):
    """A response: what is compared, volatile parts replaced."""

    status: str
    fields: list[str]
    content: list[bytes]  # by chunk
    end: str  # what ended it: "length", "chunks", "none" or "close", or "cut"

    @property
    def text(self) -> bytes:
        return b"".join(self.content)

    @property
    def json(self):
        return json.loads(self.text)


async def read_answer(reader, method="GET"):
    """Read one response and check its framing."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status, *fields = head.removesuffix("\r\n\r\n").split("\r\n")
    named = dict(field.split(": ", 1) for field in fields)
    content, end = [], "none"
    if method != "HEAD" and " 204 " not in status and " 100 " not in status:
        if named.get("Transfer-Encoding") == "chunked":
            end = await read_chunks(reader, content)
        elif "Content-Length" in named:
            end = "length"
            content.append(await reader.readexactly(int(named["Content-Length"])))
        else:
            end = "close"
            content.append(await reader.read())
    steady = [re.sub(r"^(Date|Content-Length): .*", r"\1: *", field) for field in fields]
    for pattern, replacement in VOLATILE:
        content = [re.sub(pattern, replacement, part) for part in content]
    return Answer(status, steady, content, end)


async def read_chunks(reader, content):
    """Read chunks into `content`; returns how they ended."""
    try:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            content.append(await reader.readexactly(size))
            assert await reader.readexactly(2) == b"\r\n"
        assert await reader.readexactly(2) == b"\r\n"
    except asyncio.IncompleteReadError:
        return "cut"
    return "chunks"


async def recorded(name, method="GET"):
    """Return the answers in a recording."""
    reader = asyncio.StreamReader(limit=2**24)
    reader.feed_data((TRACES / f"{name}.response").read_bytes())
    reader.feed_eof()
    answers = []
    while not reader.at_eof():
        answers.append(await read_answer(reader, method))
    return answers


class Caller:
    """A raw client."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    async def send(self, octets):
        self.writer.write(octets)
        await self.writer.drain()

    async def ask(self, path, body, method="POST"):
        """Send a request with a JSON body."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
        await self.send(head.encode() + content)

    async def answer(self, method="GET"):
        async with asyncio.timeout(PATIENCE):
            return await read_answer(self.reader, method)

    async def rest(self):
        """Return all bytes up to the end of the connection."""
        async with asyncio.timeout(PATIENCE):
            return await self.reader.read()

    async def until(self, octets):
        async with asyncio.timeout(PATIENCE):
            return await self.reader.readuntil(octets)

    async def gone(self):
        """Whether the server has ended the connection without sending more."""
        return await self.rest() == b""


@pytest.fixture
async def call():
    """Give a way to connect to a server."""
    async with contextlib.AsyncExitStack() as stack:

        async def connect(ollama):
            reader, writer = await asyncio.open_connection("127.0.0.1", ollama.port, limit=2**24)
            stack.callback(writer.close)
            return Caller(reader, writer)

        yield connect


@pytest.fixture
async def start():
    """Give a way to start servers."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(*args, **kwargs):
            return await stack.enter_async_context(SimulatedOllama(*args, **{"speed": FAST, **kwargs}))

        yield make


@pytest.fixture
async def ollama(start):
    """Give a server as it is by default, but fast."""
    return await start()


def chat(prompt="Say something.", model="tiny", limit=400, **more):
    return {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": limit, **more}


def asked(surface, prompt, model, *, stream, limit=400):
    """Return path and body of one question on a surface."""
    if surface == "responses":
        return "/v1/responses", {"model": model, "input": prompt, "max_output_tokens": limit, "stream": stream}
    body = chat(prompt, model, limit, stream=stream)
    if surface == "apichat":
        return "/api/chat", {**body, "options": {"num_predict": limit}}
    return {"chat": "/v1/chat/completions", "messages": "/v1/messages"}[surface], body


# --- recordings -------------------------------------------------------------------------------------------------------


def names():
    """Every recording of a request and its answer."""
    found = sorted(path.name.removesuffix(".request") for path in TRACES.glob("*.request"))
    return [name for name in found if name not in ELSEWHERE]


def test_no_recording_is_left_out():
    """Each recording is replayed, or named with the reason or the test that has it."""
    assert all(test in globals() for test in ELSEWHERE.values())
    assert {*UNMATCHED, *ELSEWHERE, *SHORTENED} <= {
        path.name.removesuffix(".request") for path in TRACES.glob("*.request")
    }
    assert len(names()) > 300


@pytest.mark.parametrize("name", names())
async def test_replay(name, start, call):
    """A recorded request is answered with the recorded bytes, and the connection ends or stays as it did."""
    ollama = await start(() if name.startswith("empty-") else ollama_sim.DEFAULT_MODELS)
    request = SHORTENED.get(name) or (TRACES / f"{name}.request").read_bytes()
    method = "HEAD" if request.startswith(b"HEAD") else "GET"
    expected = await recorded(name, method)
    caller = await call(ollama)
    await caller.send(request)
    if name == "half-close-get":
        caller.writer.write_eof()
    for answer in expected:
        found = await caller.answer(method)
        if name in UNMATCHED:
            assert (found.status, found.fields) == (answer.status, answer.fields)
            assert shape(found.json) == shape(answer.json)
        else:
            assert sorted_models(name, found) == sorted_models(name, answer)
    end = TIMINGS.get(name, {"end": "framing-end+kept-open"})["end"]
    if end.endswith("kept-open"):
        await caller.send(PLAIN_GET)
        assert (await caller.answer()).json == {"version": "0.32.15"}
    else:
        assert await caller.gone()


def sorted_models(name, answer):
    """Put a list of models in order of name: Ollama sorts by whole seconds, and within one it keeps no order."""
    if name not in ("models", "models-query"):
        return answer
    listed = answer.json
    return answer._replace(content=[json.dumps({**listed, "data": sorted(listed["data"], key=lambda one: one["id"])})])


def shape(value):
    """Return a JSON value with its leaves replaced by their types."""
    if isinstance(value, dict):
        return {name: shape(member) for name, member in value.items()}
    return [shape(member) for member in value] if isinstance(value, list) else type(value)


# Scenario -> model, prompt. Lengths of prompts are such that the recorded estimates of their tokens come out.
SCENARIOS = {
    "standin-err400": ("tiny", "x @@err=400@@"),
    "standin-err500": ("tiny", "x @@err=500@@"),
    "standin-die0": ("tiny", "x @@die=0@@"),
    "standin-cut0": ("tiny", "x @@cut=0@@"),
    "standin-cut": ("tiny", "x @@tokens=9 cut=5@@"),
    "standin-empty": ("tiny", "Go on. @@tokens=0@@"),
    "standin-repeat": ("tiny", "x @@tokens=400 tps=0 repeat=3 ttft=200@@"),
    "runner-dies": ("slow", "x @@tokens=400 tps=17 die=6@@"),
}


@pytest.mark.parametrize("mode", ["stream", "nonstream"])
@pytest.mark.parametrize("surface", ["chat", "responses", "messages", "apichat"])
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_replay_of_failures(scenario, surface, mode, ollama, call):
    """A failure before the first token is a status. Later it is an end, and only NDJSON gives the reason."""
    model, prompt = SCENARIOS[scenario]
    caller = await call(ollama)
    await caller.ask(*asked(surface, prompt, model, stream=mode == "stream"))
    assert await caller.answer() == (await recorded(f"scn-{scenario}-{surface}-{mode}"))[0]
    await caller.send(PLAIN_GET)
    assert (await caller.answer()).status == "HTTP/1.1 200 OK"


@pytest.mark.parametrize("surface", ["chat", "responses", "messages", "apichat"])
async def test_replay_of_the_request_after_a_death(surface, ollama, call):
    """A dead runner is started again for the next request."""
    caller = await call(ollama)
    await caller.ask(*asked(surface, "x @@die=2@@", "slow", stream=False))
    assert " 500 " in (await caller.answer()).status
    await caller.ask(*asked(surface, "Go on.", "slow", stream=False, limit=3))
    assert await caller.answer() == (await recorded(f"scn-runner-dies-{surface}-next-request"))[0]
    assert ollama.scheduler.loads == 2


@pytest.mark.parametrize("surface", ["chat", "responses", "messages", "apichat"])
async def test_replay_of_a_failed_load(surface, ollama, call):
    """A load that fails is a 500 with a Content-Length, for a stream too."""
    caller = await call(ollama)
    await caller.ask(*asked(surface, "x @@load=fail@@", "tiny", stream=True))
    assert await caller.answer() == (await recorded(f"scn-load-fails-{surface}"))[0]


async def test_replay_of_a_death_in_a_template_of_its_own(ollama, call):
    """A runner with its own chat template dies as the others do."""
    caller = await call(ollama)
    await caller.ask(*asked("chat", "x @@die=2@@", "jinja", stream=True))
    assert await caller.answer() == (await recorded("scn-standin-jinja-die-chat-stream"))[0]


async def test_replay_of_a_deeply_nested_body(ollama, call):
    """Go gives up on a body nested too deep."""
    caller = await call(ollama)
    await caller.ask("/v1/chat/completions", b"[" * 20_000)
    assert await caller.answer() == (await recorded("scn-json-deep-nesting"))[0]


async def test_replay_of_a_large_body(ollama, call):
    """There is no limit on bodies."""
    caller = await call(ollama)
    await caller.ask("/v1/chat/completions", {**chat("x", limit=2), "padding": "a" * (8 << 20)})
    assert await caller.answer() == (await recorded("scn-body-40MB"))[0]


async def test_ps_tells_what_is_loaded(ollama, call):
    """Loaded models are listed with the longest-lived first. One kept forever stays for 292 years."""
    caller = await call(ollama)
    for model, keep_alive in (("toolcaller", "1h"), ("slow", "60m1s"), ("tiny", -1)):
        await caller.ask("/api/generate", {"model": model, "keep_alive": keep_alive})
        assert (await caller.answer()).json["done_reason"] == "load"
    await caller.send((TRACES / "ps.request").read_bytes())
    assert await caller.answer() == (await recorded("ps"))[0]
    assert next(iter(ollama.scheduler.runners.values())).keep_alive == 3600
    assert ollama.scheduler.runners["tiny:latest"].expires_at.year > 2300


async def test_identifiers_stay_in_a_stream(ollama, call):
    """All events of one stream have one id."""
    caller = await call(ollama)
    await caller.ask("/v1/chat/completions", chat("x @@tokens=5@@", stream=True))
    assert len(set(re.findall(rb"chatcmpl-\d+", await caller.until(b"[DONE]")))) == 1


async def test_only_orders_are_orders(ollama, call):
    """A prompt with the marks of a diff, as coding tools have them, steers nothing; what stands next to it does."""
    caller = await call(ollama)
    prompt = "*** Update File: a.py\n@@ def tokens=\n-x\n+y @@ limit= 3 @@ go on @@tps=0 tokens=2@@"
    await caller.ask("/v1/chat/completions", chat(prompt))
    answer = (await caller.answer()).json
    assert answer["usage"]["completion_tokens"] == 2


# --- leaving ----------------------------------------------------------------------------------------------------------


async def streaming(caller, prompt="x @@tokens=2000 tps=1@@", surface="chat", model="slow"):
    """Begin a stream that takes long, and read its first chunk."""
    await caller.ask(*asked(surface, prompt, model, stream=True, limit=10**6))
    await caller.until(b"Are")


@pytest.mark.parametrize("surface", ["chat", "responses", "messages", "apichat"])
async def test_leaving_stops_the_generation(surface, ollama, call):
    """A caller that leaves inside a stream ends the generation, and the slot is free."""
    caller = await call(ollama)
    await streaming(caller, surface=surface)
    caller.writer.close()
    await ollama.until(lambda: ollama.stopped == 1 and ollama.disconnects == 1)
    await ollama.until(lambda: not ollama.open_connections)
    other = await call(ollama)
    await other.ask("/v1/chat/completions", chat(model="slow"))
    assert (await other.answer()).status == "HTTP/1.1 200 OK"
    assert ollama.leaked == 0


async def test_leaving_stops_an_answer_that_is_not_streamed(ollama, call):
    """A caller that leaves before its whole answer stops the generation, with nothing begun."""
    caller = await call(ollama)
    await caller.ask("/v1/chat/completions", chat("x @@tokens=9000 tps=20@@", limit=9000))
    runners = ollama.scheduler.runners
    await ollama.until(lambda: bool(runners))
    caller.writer.write_eof()
    answer = await caller.answer()
    assert (answer.status, answer.json["error"]["message"]) == (
        "HTTP/1.1 500 Internal Server Error",
        "context canceled",
    )
    assert (ollama.stopped, ollama.disconnects) == (1, 0)
    assert await caller.gone()


@pytest.mark.parametrize("surface", ["chat", "responses", "messages", "apichat"])
async def test_half_close_in_a_stream_is_leaving(surface, ollama, call):
    """Shutting the writing side cuts the stream, whose framing still ends well."""
    caller = await call(ollama)
    await streaming(caller, surface=surface)
    caller.writer.write_eof()
    rest = await caller.rest()
    expected = (await recorded(f"scn-half-close-mid-stream-{surface}"))[0].content[-1]
    assert rest.endswith(b"\r\n0\r\n\r\n")
    if surface in ("chat", "apichat"):  # these alone say something more
        assert (
            re.sub(rb"chatcmpl-\d+", b"chatcmpl-N", re.sub(rb'"created":\d+', b'"created":0', rest)).count(expected)
            == 1
        )
    else:
        assert not re.search(rb"stop|completed|error", rest)


async def test_half_close_in_the_scheduler_is_never_answered(start, call):
    """A caller that half-closes right after its request gets neither an answer nor an end."""
    ollama = await start(leak_window=SURE)
    caller = await call(ollama)
    await caller.send((TRACES / "half-close-before-answer.request").read_bytes())
    caller.writer.write_eof()
    await ollama.until(lambda: ollama.leaked == 1)
    assert repr(next(iter(ollama.open_connections))) == "<Connection KEPT>"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await caller.reader.read()


async def test_early_leavers_leak(start, call):
    """Callers that leave at once cost a connection each, forever; the server goes on."""
    ollama = await start(leak_window=SURE)
    for _ in range(5):
        caller = await call(ollama)
        await caller.ask("/v1/chat/completions", chat(stream=True))
        caller.writer.close()
    await ollama.until(lambda: ollama.leaked == 5)
    assert (len(ollama.open_connections), ollama.stopped, ollama.connections) == (5, 0, 5)
    other = await call(ollama)
    await other.ask("/v1/chat/completions", chat())
    assert (await other.answer()).status == "HTTP/1.1 200 OK"


async def test_leaving_behind_another_load_leaks(start, call):
    """A caller queued for a load behind another model's leaks however late it leaves."""
    ollama = await start()
    first, second = await call(ollama), await call(ollama)
    await first.ask("/v1/chat/completions", chat("x @@load=1000@@", "slow"))
    await ollama.until(lambda: ollama.scheduler.loads == 1)
    await second.ask("/v1/chat/completions", chat("x", "tiny"))
    await ollama.until(lambda: ollama.scheduler.queued == 1)
    second.writer.close()
    await ollama.until(lambda: ollama.leaked == 1)
    assert ollama.scheduler.queued == 0


async def test_leaving_while_waiting_for_a_slot_leaks_nothing(start, call):
    """A caller that waits behind a stream of the same model goes without a trace."""
    ollama = await start(leak_window=0.0)
    first, second = await call(ollama), await call(ollama)
    await streaming(first)
    runner = ollama.scheduler.runners["slow:latest"]
    await second.ask("/v1/chat/completions", chat("x", "slow"))
    await ollama.until(lambda: runner.users == 2)
    second.writer.close()
    await ollama.until(lambda: len(ollama.open_connections) == 1)
    assert (ollama.leaked, ollama.stopped, runner.users) == (0, 0, 1)


async def test_leaving_aborts_the_load(ollama, call):
    """The caller on whose behalf a model loads takes the load along; one that waits for it starts another."""
    first, second = await call(ollama), await call(ollama)
    await first.ask("/v1/chat/completions", chat("x @@load=1000@@"))
    await ollama.until(lambda: ollama.scheduler.loads == 1)
    await second.ask("/v1/chat/completions", chat("x"))
    await ollama.until(lambda: len(ollama.seen) == 2)
    first.writer.write_eof()
    refusal = await first.answer()
    assert (refusal.status, refusal.json["error"]["message"]) == ("HTTP/1.1 499 status code 499", "request canceled")
    assert (await second.answer()).status == "HTTP/1.1 200 OK"
    assert (ollama.scheduler.loads, ollama.scheduler.loads_aborted, ollama.leaked) == (2, 1, 0)


async def test_reset_counts_as_leaving(ollama, call):
    """A connection that is reset stops the generation too."""
    caller = await call(ollama)
    await streaming(caller)
    caller.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    caller.writer.transport.abort()
    await ollama.until(lambda: ollama.stopped == 1)


async def test_dropped_stream_has_no_end(ollama, call):
    """When Ollama itself goes, the stream stops after a whole chunk and lacks its last one."""
    caller = await call(ollama)
    await caller.ask("/v1/chat/completions", chat("x @@tokens=9 drop=3@@", stream=True))
    answer = await caller.answer()
    assert (len(answer.content), answer.end) == (3, "cut")
    assert await caller.gone()


# --- slots, queue, keep_alive -----------------------------------------------------------------------------------------


async def test_one_slot_serves_in_order(ollama, call):
    """With one slot, callers are served one after the other as they came, and other routes at once."""
    callers = [await call(ollama) for _ in range(4)]
    ended = []

    async def wait(number):
        await callers[number].until(b"[DONE]")
        ended.append(number)

    for number, caller in enumerate(callers):
        await caller.ask("/v1/chat/completions", chat("x @@tokens=20@@", stream=True))
        await ollama.until(lambda expected=number + 1: len(ollama.seen) == expected)
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(wait(number) for number in range(4)))
    assert ended == [0, 1, 2, 3]


async def test_two_slots_serve_at_once(start, call):
    """With two slots, a second stream begins while the first runs."""
    ollama = await start(parallel=2)
    first, second = await call(ollama), await call(ollama)
    await streaming(first)
    await streaming(second)
    assert ollama.stopped == 0


async def test_slow_reader_holds_the_slot(start, call):
    """A client that reads nothing keeps the only slot until it goes."""
    ollama = await start()
    slow, other = await call(ollama), await call(ollama)
    slow.writer.transport.pause_reading()
    await slow.ask("/v1/chat/completions", chat("x @@tokens=400 tps=0 big=200000@@", stream=True))
    await ollama.until(lambda: any(connection.stalled for connection in ollama.open_connections))
    await other.ask("/v1/chat/completions", chat())
    await ollama.until(lambda: len(ollama.seen) == 2)
    assert ollama.stopped == 0
    slow.writer.transport.abort()
    assert (await other.answer()).status == "HTTP/1.1 200 OK"
    assert ollama.stopped == 1


async def test_reader_that_goes_on_misses_nothing(ollama, call):
    """A client that pauses gets the whole answer when it reads again."""
    caller = await call(ollama)
    caller.writer.transport.pause_reading()
    await caller.ask("/v1/chat/completions", chat("x @@tokens=100 tps=0 big=200000@@", stream=True))
    await ollama.until(lambda: any(connection.stalled for connection in ollama.open_connections))
    caller.writer.transport.resume_reading()
    answer = await caller.answer()
    assert (len(answer.content), answer.end) == (101, "chunks")


async def test_queue_for_loads_is_bounded(start, call):
    """Only requests that need another model loaded are counted, and refused when there are too many."""
    ollama = await start(max_queue=1)
    callers = [await call(ollama) for _ in range(5)]
    await callers[0].ask(*asked("chat", "x @@load=60@@", "slow", stream=True))
    await ollama.until(lambda: ollama.scheduler.loads == 1)
    await callers[1].ask(*asked("responses", "x", "tiny", stream=True))
    await ollama.until(lambda: ollama.scheduler.queued == 1)
    for caller, surface, model, name in (
        (callers[2], "messages", "thinker", "2-thinker-v1_messages"),
        (callers[3], "apichat", "toolcaller", "3-toolcaller-api_chat"),
        (callers[4], "chat", "tools", "4-tools-v1_chat_completions"),
    ):
        await caller.ask(*asked(surface, "x", model, stream=True))
        assert await caller.answer() == (await recorded(f"scn-queue-full-{name}"))[0]
    for caller in callers[:2]:
        assert (await caller.answer()).status == "HTTP/1.1 200 OK"


async def test_silence_until_the_model_is_loaded(ollama, call):
    """Not even a head is sent before the first token."""
    caller = await call(ollama)
    await caller.ask("/v1/messages", chat("x @@load=1000@@", stream=True))
    await ollama.until(lambda: ollama.scheduler.loads == 1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await caller.reader.read(1)


async def test_load_time_is_the_models_own(start, call):
    """A model may take another time to load than the others, or none."""
    ollama = await start(
        (Model("quick:latest", load_seconds=0), Model("broken:latest", load_fails=True)), load_seconds=999
    )
    caller = await call(ollama)
    await caller.ask("/v1/chat/completions", chat(model="quick"))
    assert (await caller.answer()).status == "HTTP/1.1 200 OK"
    await caller.ask("/v1/chat/completions", chat("x @@load=1@@", model="broken"))
    assert "told to fail the load" in (await caller.answer()).json["error"]["message"]


async def test_idle_models_are_unloaded(ollama, call):
    """A model goes when its keep_alive is over, and not while it is in use."""
    caller = await call(ollama)
    await caller.ask("/api/generate", {"model": "tiny", "keep_alive": "500ms"})
    await caller.answer()
    await caller.ask("/v1/chat/completions", chat(f"x @@tokens=5 tps={5 / (0.7 * FAST)}@@"))
    assert (await caller.answer()).status == "HTTP/1.1 200 OK"
    assert ollama.scheduler.loads == 1
    await ollama.until(lambda: not ollama.scheduler.runners)
    await caller.send(b"GET /api/ps HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (await caller.answer()).json == {"models": []}


async def test_keep_alive_of_nothing_unloads(ollama, call):
    """An empty request with keep_alive 0 unloads, loaded or not; /v1 leaves the last keep_alive in force."""
    caller = await call(ollama)
    await caller.ask("/api/generate", {"model": "tiny", "keep_alive": -1})
    await caller.answer()
    await caller.ask("/v1/chat/completions", chat())
    await caller.answer()
    assert math.isinf(ollama.scheduler.runners["tiny:latest"].keep_alive)
    for _ in range(2):
        await caller.ask("/api/chat", {"model": "tiny", "keep_alive": 0})
        answer = (await caller.answer()).json
        assert (answer["done_reason"], answer["message"]["content"]) == ("unload", "")
        assert not ollama.scheduler.runners


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        (5, 5.0),
        (0.5, 0.5),
        ("24h", 86400.0),
        ("1m30s", 90.0),
        ("250ms", 0.25),
        ("0", 0.0),
        (-1, math.inf),
        ("-1m", math.inf),
    ],
)
def test_seconds(duration, expected):
    """A keep_alive is a number of seconds or a Go duration, and below zero forever."""
    assert seconds(duration) == expected


def test_seconds_refuses():
    """A duration without a unit is none."""
    with pytest.raises(Complaint, match="invalid duration"):
        seconds("24")


async def test_loaded_models_are_limited(start, call):
    """A load beyond the limit unloads what was to stay for the shortest time, but rather what is idle."""
    ollama = await start(max_loaded=2)
    caller, other = await call(ollama), await call(ollama)

    async def load(model, keep_alive):
        await caller.ask("/api/generate", {"model": model, "keep_alive": keep_alive})
        assert (await caller.answer()).json["done_reason"] == "load"
        return set(ollama.scheduler.runners)

    await load("tiny", -1)
    await load("slow", "1h")
    assert await load("tools", "2h") == {"tiny:latest", "tools:latest"}
    await streaming(other, model="tools")
    assert await load("slow", "1h") == {"tools:latest", "slow:latest"}


async def test_room_is_made_when_requests_are_done(start, call):
    """A load waits for the requests of the model that has to go for it."""
    ollama = await start(max_loaded=1)
    caller, other = await call(ollama), await call(ollama)
    await streaming(other, model="tools")
    await caller.ask("/api/generate", {"model": "tiny"})
    await ollama.until(lambda: len(ollama.seen) == 2)
    assert set(ollama.scheduler.runners) == {"tools:latest"}
    other.writer.close()
    assert (await caller.answer()).json["done_reason"] == "load"
    assert set(ollama.scheduler.runners) == {"tiny:latest"}


async def test_gpu_memory_is_told(start, call):
    """The list shows how much of a loaded model is in the GPU's memory."""
    ollama = await start((Model("half:latest", memory=1000, gpu_share=0.5),))
    caller = await call(ollama)
    await caller.ask("/api/generate", {"model": "half"})
    await caller.answer()
    await caller.send(b"GET /api/ps HTTP/1.1\r\nHost: localhost\r\n\r\n")
    (entry,) = (await caller.answer()).json["models"]
    assert (entry["size"], entry["size_vram"]) == (1000, 500)


# --- HTTP -------------------------------------------------------------------------------------------------------------


async def test_octet_by_octet(ollama, call):
    """A request means the same however it is cut into segments."""
    caller = await call(ollama)
    request = b'POST /api/show HTTP/1.1\r\nHost: a.local\r\nTransfer-Encoding: chunked\r\n\r\n5;x=1\r\n{"nam\r\n'
    request += b'a\r\ne":"tiny"}\r\n0\r\nX-Trailer: 1\r\n\r\n'
    for octet in request:
        await caller.send(bytes([octet]))
    assert (await caller.answer()).json["capabilities"] == ["completion"]


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        pytest.param(b"GET /%zz HTTP/1.1\r\n", "400", id="bad_line_before_its_fields"),
        pytest.param(b"GET / HTTP/1.1\r\nX-Endless: " + b"a" * 2 * 2**20, "431", id="endless_field"),
        pytest.param(b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "400", id="empty_line_first"),
        pytest.param(b"GET / HTTP/1.1\r\n Host: localhost\r\n\r\n", "400", id="first_field_folded"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\nNo colon\r\n\r\n", "400", id="no_colon"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\n: 1\r\n\r\n", "400", id="no_name"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\nA: \x01\r\n\r\n", "400", id="control_in_value"),
        pytest.param(b"GET /\x7f HTTP/1.1\r\nHost: localhost\r\n\r\n", "400", id="control_in_target"),
        pytest.param(b"GET api HTTP/1.1\r\nHost: localhost\r\n\r\n", "400", id="no_slash"),
        pytest.param(b"GET / HTTP/0.9\r\n\r\n", "505", id="old_version"),
        pytest.param(b"GET / FTP/1.1\r\n\r\n", "400", id="no_http"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n", "400", id="bad_length"),
        pytest.param(b"GET * HTTP/1.1\r\nHost: localhost\r\n\r\n", "400", id="asterisk_but_not_options"),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n",
            "405",
            id="unasked",
        ),
    ],
)
async def test_head_ends_the_connection(request_head, status, ollama, call):
    """What net/http can't make out, or answers without having read the body, is the connection's last."""
    caller = await call(ollama)
    await caller.send(request_head)
    answer = await caller.answer()
    assert answer.status.split(" ")[1] == status
    assert "Connection: close" in answer.fields
    assert await caller.gone()


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        (b"Host: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n", 5),
        (b"Host: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n", None),
        (b"Host: a\r\n", 0),
    ],
)
def test_length(fields, length):
    """Equal Content-Lengths are one; chunked wins; none is no body."""
    assert parse(b"POST / HTTP/1.1\r\n" + fields + b"\r\n").length == length


def test_http10_has_no_transfer_codings():
    """Transfer-Encoding is not looked at in HTTP/1.0."""
    head = parse(b"POST / HTTP/1.0\nTransfer-Encoding: gzip\nContent-Length: 3\n\n")
    assert (head.length, head.host, head.closes) == (3, "", True)


@pytest.mark.parametrize("lengths", [b"5\r\nContent-Length: 6", b"-1", b"9223372036854775808", b"5, 5", b""])
def test_length_refuses(lengths):
    """A length that is no plain number, or two that differ, is refused."""
    with pytest.raises(Refused):
        parse(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + lengths + b"\r\n\r\n")


async def test_unknown_path_is_answered_before_its_body(ollama, call):
    """A long body that nobody wants isn't waited for: answer, FIN, and what still comes is dropped."""
    caller = await call(ollama)
    await caller.send(b"POST /nope HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1000)
    answer = await caller.answer()
    assert (answer.status, answer.fields[-1]) == ("HTTP/1.1 404 Not Found", "Connection: close")
    await caller.send(b"x" * 1000)
    assert await caller.gone()


@pytest.mark.parametrize(
    ("chunks", "kept"),
    [
        (b"5\r\nhello\r\n0\r\n\r\n", True),
        (b"5\r\nhelloX\r\n", False),
        (b"40001\r\n" + b"x" * 0x40001 + b"\r\n0\r\n\r\n", False),
    ],
    ids=["short", "malformed", "long"],
)
async def test_unwanted_chunks_are_read_if_few(chunks, kept, ollama, call):
    """Up to 256 KiB of an unwanted chunked body are read before the answer; else the connection ends with it."""
    caller = await call(ollama)
    await caller.send(b"POST /nope HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
    answer = await caller.answer()
    assert answer.status == "HTTP/1.1 404 Not Found"
    assert ("Connection: close" in answer.fields) is not kept


@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(b"Content-Length: 9\r\n\r\n{}", id="short"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", id="bad_size"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 5000, id="long_line"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\n0\n\n", id="bare_lf"),
    ],
)
async def test_broken_body_is_refused_in_native_shape(octets, ollama, call):
    """A body that breaks off is a 400 in native shape on every surface."""
    caller = await call(ollama)
    await caller.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n" + octets)
    caller.writer.write_eof()
    answer = await caller.answer()
    assert (answer.status, list(answer.json)) == ("HTTP/1.1 400 Bad Request", ["error"])
    assert await caller.gone()


async def test_http10_keep_alive(ollama, call):
    """HTTP/1.0 may keep its connection where the answer has a length."""
    caller = await call(ollama)
    await caller.send(b"GET /api/version HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" * 2)
    for _ in range(2):
        assert (await caller.answer()).fields[-1] == "Connection: keep-alive"


async def test_no_host_check_on_open_addresses(call):
    """Bound to more than loopback, Ollama looks at no Host."""
    ollama = SimulatedOllama()
    await ollama.start("0.0.0.0")
    caller = await call(ollama)
    await caller.send(b"GET /api/version HTTP/1.1\r\nHost: evil.com\r\n\r\n")
    assert (await caller.answer()).status == "HTTP/1.1 200 OK"
    await ollama.close()


@pytest.mark.parametrize(
    ("target", "location"),
    [
        ("/v1/../api//version?a=b", "/api/version?a=b"),
        ("http://localhost", "/"),
        ("mailto:x", "/"),
        ("/v1/models/tiny/", "/v1/models/tiny"),
        ("//a%20b/", "/a%2520b/"),
    ],
)
async def test_redirects(target, location, ollama, call):
    """The path is cleaned as it was sent, with its query kept."""
    caller = await call(ollama)
    await caller.send(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert f"Location: {location}" in (await caller.answer()).fields


@pytest.mark.parametrize(
    ("method", "target", "head", "status"),
    [
        pytest.param("GET", "/api/version", "Host: a:1\r\nOrigin: http://a:1", 403, id="same_origin_is_no_host"),
        pytest.param("GET", "/api/version", "Host: localhost\r\nOrigin: http://localhost", 200, id="same_origin"),
        pytest.param("OPTIONS", "/nope", "Host: localhost", 204, id="options_on_a_name"),
        pytest.param("OPTIONS", "/nope", "Host: 127.0.0.1", 404, id="options_on_an_address"),
        pytest.param("GET", "http://user@localhost:1/api/version", "Host: evil.com", 200, id="target_names_the_host"),
        pytest.param("CONNECT", "/api/version", "Host: localhost", 405, id="connect_to_a_path"),
        pytest.param("PATCH", "/v1/models/", "Host: localhost", 404, id="slash_of_another_method"),
    ],
)
async def test_hosts_and_origins(method, target, head, status, ollama, call):
    """Origin is looked at before Host, and both before whether there is such a path."""
    caller = await call(ollama)
    await caller.send(f"{method} {target} HTTP/1.1\r\n{head}\r\n\r\n".encode())
    assert f" {status} " in (await caller.answer()).status


# --- JSON, names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"  ", "EOF"),
        (b'{"a":"b', "unexpected EOF"),
        (b'{"a"', "unexpected EOF"),
        (b"{'a':1}", "invalid character '\\'' looking for beginning of object key string"),
        (b'{"a" 1}', "invalid character '1' after object key"),
        (b'{"a":1 "b"}', "invalid character '\"' after object key:value pair"),
        (b'{"a":"\n"}', "invalid character '\\n' in string literal"),
        (b'{"a":"\\q"}', "invalid character 'q' in string escape code"),
        (b'{"a":NaN}', "invalid character 'N' looking for beginning of value"),
    ],
)
def test_json_mistakes(body, complaint):
    """A mistake in a body is reported in Go's words."""
    with pytest.raises(JsonError) as raised:
        first_value(body)
    assert str(raised.value) == complaint


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b'{"model":"a","MODEL":"b","model":"c"}', {"model": "c"}),
        (b'{"model":"a","MODEL":"b"} {"model":"c"}', {"model": "b"}),
        (b"null", {}),
        (b'{"model":"\\ud800x\\ud83d\\ude00"}', {"model": "\ufffdx\U0001f600"}),
    ],
)
def test_struct(body, fields):
    """The last of equal names wins in any letter case, the first value counts, lone surrogates are replaced."""
    assert struct(body, "api.X", {"model": "string"}) == fields


def test_struct_checks_types():
    """A member of another type is named with its Go type."""
    with pytest.raises(
        JsonError, match=r"cannot unmarshal object into Go struct field X.messages of type \[\]api.Message"
    ):
        struct(b'{"messages":{}}', "api.X", {"messages": "[]api.Message"})


def test_dump_escapes_as_go():
    """Markup and the Unicode line separators are escaped, other text is not."""
    assert dump({"a": "<é>&\u2028\u2029"}) == '{"a":"\\u003cé\\u003e\\u0026\\u2028\\u2029"}'.encode()


# --- surfaces ---------------------------------------------------------------------------------------------------------

IMAGE = "data:image/png;base64,AAAA"


@pytest.mark.parametrize(
    ("path", "body", "complaint"),
    [
        (
            "/v1/chat/completions",
            chat([{"type": "image_url", "image_url": "data:text/plain,x"}]),
            "invalid image input",
        ),
        ("/v1/chat/completions", chat([{"type": "audio"}]), "invalid message format"),
        ("/v1/chat/completions", chat(5), "invalid message content type: float64"),
        ("/v1/chat/completions", {**chat(), "messages": 5}, "of type []openai.Message"),
        ("/v1/messages", chat([{"type": "image", "source": {"type": "url"}}]), "Only base64 images are supported."),
        ("/v1/messages", {**chat(), "max_tokens": 0}, "max_tokens is required"),
        (
            "/v1/responses",
            {"model": "tiny", "input": [{"role": "user", "content": [{"type": "input_file"}]}]},
            "input_file",
        ),
        (
            "/v1/responses",
            {"model": "tiny", "input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "image",
        ),
        ("/api/chat", {"model": "tiny", "keep_alive": "x"}, "invalid duration"),
        ("/api/chat", {**chat(), "think": "bogus"}, "invalid reasoning value"),
        ("/v1/embeddings", {"model": 5}, "EmbedRequest.model of type string"),
        ("/v1/chat/completions", {**chat(), "model": "embedder"}, '"embedder" does not support chat'),
        ("/api/generate", {"model": "embedder", "keep_alive": -1}, '"embedder" does not support generate'),
    ],
)
async def test_complaints(path, body, complaint, start, call):
    """What a surface can't read is a 400 that says so."""
    ollama = await start((*ollama_sim.DEFAULT_MODELS, EMBEDDER))
    caller = await call(ollama)
    await caller.ask(path, body)
    answer = await caller.answer()
    assert answer.status == "HTTP/1.1 400 Bad Request"
    assert complaint.encode() in answer.text.replace(b'\\"', b'"')


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/v1/chat/completions",
            chat([{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": IMAGE}}]),
        ),
        ("/v1/chat/completions", chat(None, stop="zzz", reasoning_effort="none")),
        ("/v1/messages", chat([{"type": "text", "text": "x"}, {"type": "document"}], system="Be brief.")),
        (
            "/v1/messages",
            chat([{"type": "tool_result", "content": [{"type": "text", "text": "x"}]}], thinking={"type": "disabled"}),
        ),
        ("/v1/messages", chat([{"type": "image", "source": {"type": "base64"}}, {"type": "text", "text": "x"}])),
        (
            "/v1/responses",
            {
                "model": "tiny",
                "instructions": "Be brief.",
                "temperature": 0.5,
                "input": [
                    {"role": "user", "content": "x"},
                    {"type": "function_call", "name": "f"},
                    {"type": "function_call_output", "output": "y"},
                    {
                        "role": "user",
                        "content": [{"type": "input_text", "text": "x"}, {"type": "input_image", "image_url": IMAGE}],
                    },
                ],
            },
        ),
        ("/api/chat", chat(stream=False, think=True, model="thinker")),
        (
            "/api/generate",
            {"model": "tiny", "prompt": "x", "system": "Be brief.", "stream": False, "options": {"stop": ["zz"]}},
        ),
        ("/v1/completions", {"model": "tiny", "prompt": "x", "stop": "zz"}),
    ],
)
async def test_what_a_surface_reads(path, body, ollama, call):
    """Text in parts, images, tool results, instructions and system prompts are taken."""
    caller = await call(ollama)
    await caller.ask(path, body)
    answer = await caller.answer()
    assert answer.status == "HTTP/1.1 200 OK"
    assert "Are of may" in answer.text.decode()


async def test_completions_stream(ollama, call):
    """The old completions stream in an order of keys of their own."""
    caller = await call(ollama)
    body = {"model": "tiny", "prompt": "x @@tokens=1@@", "stream": True, "stream_options": {"include_usage": True}}
    await caller.ask("/v1/completions", body)
    first, last = (await caller.answer()).content
    assert re.fullmatch(
        rb'data: {"id":"cmpl-N","object":"text_completion","created":\d+,"choices":\[{"text":"Are","index":0,'
        rb'"finish_reason":null}\],"model":"tiny","system_fingerprint":"fp_ollama"}\n\n',
        first,
    )
    assert last.endswith(b'"usage":{"prompt_tokens":4,"completion_tokens":1,"total_tokens":5}}\n\ndata: [DONE]\n\n')


async def test_load_on_responses_streams(ollama, call):
    """A request without input is an empty answer, as a stream when asked so."""
    caller = await call(ollama)
    await caller.ask("/v1/responses", {"model": "tiny", "stream": True})
    events = re.findall(rb"event: (\S+)", (await caller.answer()).text)
    assert events == [b"response.created", b"response.in_progress", b"response.completed"]


async def test_stop_in_a_stream(ollama, call):
    """A stop sequence that begins inside a token leaves what came before it."""
    caller = await call(ollama)
    await caller.ask("/v1/chat/completions", chat("x", stop=["y s"]))
    answer = (await caller.answer()).json
    assert answer["choices"][0]["message"]["content"] == "Are of ma"
    assert answer["usage"]["completion_tokens"] == 4


async def test_json_script(ollama, call):
    """A stand-in can be ordered to answer with a JSON object."""
    caller = await call(ollama)
    await caller.ask("/v1/chat/completions", chat("x @@script=json@@", response_format={"type": "json_object"}))
    assert json.loads((await caller.answer()).json["choices"][0]["message"]["content"]) == {"answer": 42}


TOOLS = [{"type": "function", "function": {"name": "get_time"}}]


@pytest.mark.parametrize(
    ("prompt", "model", "more", "said"),
    [
        ("As JSON.", "tiny", {"response_format": {"type": "json_object"}}, '{"answer": 42}'),
        ("As JSON.", "tiny", {"response_format": {"type": "text"}}, "Are of may"),
        ("As you like.", "tiny", {"response_format": {"type": "json_object"}}, "Are of may"),
        ("Call get_time.", "tools", {"tools": TOOLS}, ""),
        ("Hello.", "tools", {"tools": TOOLS}, "Are of may"),
        ("Why?", "thinker", {"reasoning_effort": "low"}, "The answer is forty-two."),
        ("Why?", "thinker", {}, "Are of may"),
        ("@@tokens=2@@ Why?", "thinker", {"reasoning_effort": "low"}, "Are of"),
    ],
)
async def test_heeded_prompts(prompt, model, more, said, ollama, call):
    """Without directives a stand-in heeds a prompt for JSON, one that names its tool, and a question to think about."""
    caller = await call(ollama)
    await caller.ask("/v1/chat/completions", chat(prompt, model, **more))
    message = (await caller.answer()).json["choices"][0]["message"]
    assert message["content"].startswith(said)
    assert ("tool_calls" in message, "reasoning" in message) == (said == "", said.startswith("The answer"))


async def test_no_call_after_its_result(ollama, call):
    """A stand-in that has the result of its call says something."""
    caller = await call(ollama)
    turns = [{"role": "user", "content": "Call get_time."}, {"role": "tool", "content": "noon"}]
    await caller.ask("/v1/chat/completions", {"model": "tools", "messages": turns, "tools": TOOLS})
    assert "tool_calls" not in (await caller.answer()).json["choices"][0]["message"]


async def test_thinking_can_be_turned_off(ollama, call):
    """A thinking model that must not think answers at once."""
    caller = await call(ollama)
    await caller.ask("/v1/chat/completions", chat("x @@script=think@@", "thinker", reasoning={"effort": "none"}))
    assert (await caller.answer()).json["choices"][0]["message"] == {
        "role": "assistant",
        "content": "The answer is forty-two.",
    }


async def test_big_tokens_stay_in_one_chunk(ollama, call):
    """A token of many bytes is one HTTP chunk."""
    caller = await call(ollama)
    await caller.ask("/v1/chat/completions", chat("x @@tokens=2 big=20000@@", stream=True))
    sizes = [len(content) for content in (await caller.answer()).content]
    assert len(sizes) == 3
    assert min(sizes[:2]) > 20_000


async def test_pace(start, call):
    """Tokens come at the pace that the server was given, or that the prompt orders."""
    ollama = await start(speed=1.0, tokens_per_second=100.0)
    caller = await call(ollama)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await caller.ask("/v1/chat/completions", chat("x @@tokens=11 ttft=0@@"))
    await caller.answer()
    assert loop.time() - began >= 0.1


async def test_strange_body_is_a_panic(ollama, call):
    """A body that no handler expects is a 500 without content, as gin makes of a panic."""
    caller = await call(ollama)
    await caller.ask("/api/chat", {**chat(), "options": {"stop": 5}})
    answer = await caller.answer()
    assert (answer.status, answer.text) == ("HTTP/1.1 500 Internal Server Error", b"")


async def test_without_zstandard(monkeypatch, ollama, call):
    """Where zstandard is missing a packed body is as strange as any other packed one."""
    monkeypatch.setitem(sys.modules, "zstandard", None)
    caller = await call(ollama)
    await caller.send((TRACES / "chat-zstd-body.request").read_bytes())
    assert "invalid character '('" in (await caller.answer()).json["error"]["message"]


async def test_broken_zstd(ollama, call):
    """A body that only claims to be packed is refused in native shape."""
    caller = await call(ollama)
    await caller.send(
        b"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: zstd\r\nContent-Length: 2\r\n\r\n{}"
    )
    assert isinstance((await caller.answer()).json["error"], str)


# --- versions, cloud, embeddings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "method", "path", "status"),
    [
        ("0.13.2", "POST", "/v1/responses", 404),
        ("0.13.3", "POST", "/v1/responses", 400),
        ("0.13.5", "POST", "/v1/messages", 404),
        ("0.14.0", "POST", "/v1/messages", 400),
        ("0.6.8", "GET", "/v1/chat/completions", 404),
        ("0.7.0", "GET", "/v1/chat/completions", 405),
        ("0.16.1", "GET", "/api/status", 404),
        ("0.33.0-rc2", "GET", "/api/status", 200),
        ("0.0.0", "GET", "/api/status", 200),
    ],
)
async def test_versions(version, method, path, status, start, call):
    """Older versions lack what they lacked."""
    ollama = await start(version=version)
    caller = await call(ollama)
    await caller.ask(path, b"{}", method)
    assert f" {status} " in (await caller.answer()).status
    await caller.send(PLAIN_GET)
    assert (await caller.answer()).json == {"version": version}


@pytest.mark.parametrize(
    ("version", "listed", "shown"), [("0.30.0", True, True), ("0.29.9", False, True), ("0.6.3", False, False)]
)
async def test_told_capabilities(version, listed, shown, start, call):
    """What a model can is listed since 0.30.0, and shown of one model since 0.6.4."""
    caller = await call(await start(version=version))
    await caller.send(b"GET /api/tags HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert ("capabilities" in (await caller.answer()).json["models"][0]) is listed
    await caller.ask("/api/show", {"model": "tiny"})
    assert ("capabilities" in (await caller.answer()).json) is shown


async def test_old_chat_chunks(start, call):
    """Before v0.32.6 each chunk had a role, and the last empty one the finish_reason."""
    ollama = await start(version="0.32.5")
    caller = await call(ollama)
    await caller.ask("/v1/chat/completions", chat("x @@tokens=2@@", stream=True))
    events = re.findall(r"data: ({.*})", (await caller.answer()).text.decode())
    choices = [json.loads(event)["choices"][0] for event in events]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": text} for text in ("Are", " of", "")
    ]
    assert [choice["finish_reason"] for choice in choices] == [None, None, "stop"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/chat/completions", chat(model="far")),
        ("POST", "/v1/messages", chat(model="gpt-oss:120b-cloud")),
        ("POST", "/api/show", {"model": "far"}),
        ("POST", "/v1/embeddings", {"model": "far", "input": "x"}),
        ("GET", "/v1/models/gpt-oss:cloud", {}),
    ],
)
@pytest.mark.parametrize(("cloud", "status"), [(False, 403), (True, 401)])
async def test_what_runs_elsewhere(cloud, status, method, path, body, start, call):
    """Names and stubs of other machines are refused in native shape: 403 when off, 401 when nobody is signed in."""
    ollama = await start((REMOTE_STUB,), cloud=cloud)
    caller = await call(ollama)
    await caller.ask(path, body, method)
    answer = await caller.answer()
    assert f" {status} " in answer.status
    assert isinstance(answer.json["error"], str)


async def test_stubs_say_where_they_run(start, call):
    """A model of another machine has `remote_host`, and /api/status has the state of the cloud."""
    ollama = await start((REMOTE_STUB,), cloud=True)
    caller = await call(ollama)
    await caller.send(b"GET /api/tags HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (await caller.answer()).json["models"][0]["remote_host"] == "https://ollama.com:443"
    await caller.send(b"GET /api/status HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (await caller.answer()).json == {"cloud": {"disabled": False, "source": "none"}}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/embeddings", {"model": "embedder", "input": ["a b", "c"]}, 200),
        ("/api/embed", {"model": "embedder", "input": ["a b", "c"]}, 200),
        ("/api/embeddings", {"model": "tiny", "prompt": "a"}, 200),
        ("/v1/embeddings", {"model": "nope", "input": "a"}, 404),
        ("/api/embed", {"model": "nope"}, 404),
        ("/api/embeddings", {"model": "nope"}, 404),
        ("/api/embed", b"", 400),
        ("/api/embeddings", b"[", 400),
        ("/v1/embeddings", b"", 400),
    ],
)
async def test_embeddings(path, body, status, start, call):
    """Every surface of embeddings answers with vectors of length one, or in its own error shape."""
    ollama = await start((*ollama_sim.DEFAULT_MODELS, EMBEDDER))
    caller = await call(ollama)
    await caller.ask(path, body)
    answer = await caller.answer()
    assert f" {status} " in answer.status
    if status == 200:
        found = answer.json
        vector = found.get("embedding") or (found.get("embeddings") or [found.get("data", [{}])[0].get("embedding")])[0]
        assert math.isclose(sum(number**2 for number in vector), 1, abs_tol=1e-5)


async def test_embedding_loads(start, call):
    """A model that embeds is loaded for it, and stays as asked; no input at all only loads it."""
    ollama = await start((EMBEDDER,))
    caller = await call(ollama)
    await caller.ask("/api/embed", {"model": "embedder", "keep_alive": -1})
    assert (await caller.answer()).json["embeddings"] == []
    assert math.isinf(ollama.scheduler.runners["embedder:latest"].keep_alive)
    await caller.ask("/api/embed", {"model": "embedder", "keep_alive": "x"})
    assert "invalid duration" in (await caller.answer()).json["error"]


async def test_leaving_an_embedding_aborts_its_load(start, call):
    """A caller that leaves while the model is loaded for its embedding ends the load."""
    ollama = await start((EMBEDDER,), load_seconds=999, speed=1)
    caller = await call(ollama)
    await caller.ask("/api/embed", {"model": "embedder", "input": "x"})
    await ollama.until(lambda: ollama.scheduler.loads == 1)
    caller.writer.close()
    await ollama.until(lambda: ollama.scheduler.loads_aborted == 1)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/api/show", "/api/embed", "/api/embeddings"])
async def test_broken_bodies_elsewhere(path, ollama, call):
    """A body that breaks off is refused wherever it goes."""
    caller = await call(ollama)
    await caller.send(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n".encode())
    caller.writer.write_eof()
    assert (await caller.answer()).json == {"error": "unexpected EOF"}


def test_a_client_that_is_gone_within_its_body_costs_no_connection():
    """A connection that closes in the middle of a request's content ends on this side too, with asyncio's own loop."""

    async def leave():
        async with SimulatedOllama(speed=FAST) as ollama:
            _, writer = await asyncio.open_connection("127.0.0.1", ollama.port)
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
            await ollama.until(lambda: ollama.seen)
            writer.transport.abort()
            await ollama.until(lambda: not ollama.open_connections)

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(leave())


# --- management -------------------------------------------------------------------------------------------------------

FRESH = Model("fresh:latest", digest="ab" * 32, size=1000)


async def test_pull_reports_progress(start, call):
    """A pull reports its progress line by line, ends in success, and the model is there."""
    ollama = await start((), registry=(FRESH,))
    caller = await call(ollama)
    await caller.ask("/api/pull", {"model": "fresh"})
    lines = [json.loads(content) for content in (await caller.answer()).content]
    assert [line["status"] for line in lines][:2] == ["pulling manifest", "pulling abababababab"]
    assert [line["completed"] for line in lines if "completed" in line] == [250, 500, 750, 1000]
    assert lines[-1] == {"status": "success"}
    assert "fresh:latest" in ollama.models


async def test_pull_of_an_unknown_model_fails_inside_a_200(ollama, call):
    """What the registry doesn't have is an error line under a 200."""
    caller = await call(ollama)
    await caller.ask("/api/pull", {"name": "nope"})
    answer = await caller.answer()
    assert answer.status == "HTTP/1.1 200 OK"
    assert answer.content[-1] == b'{"error":"pull model manifest: file does not exist"}\n'


async def test_pull_ends_with_its_caller(start, call):
    """A caller that leaves stops the pull, and the model is not there."""
    ollama = await start((), speed=0.001, registry=(FRESH,))
    caller = await call(ollama)
    await caller.ask("/api/pull", {"model": "fresh"})
    await caller.until(b'"completed":250')
    caller.writer.close()
    await ollama.until(lambda: ollama.disconnects == 1)
    assert ollama.models == {}


async def pulled(caller, model):
    """Return the lines of a pull."""
    await caller.ask("/api/pull", {"model": model})
    return [json.loads(content) for content in (await caller.answer()).content]


async def test_pull_of_layers(start, call):
    """Layers come one after the other, at a rate if there is one. A layer that is here already is reported once."""
    layered = Model("layered:latest", digest="cd" * 32, layers=(1000, 40))
    ollama = await start((), speed=1, registry=(layered,), pull_rate=5000)
    caller = await call(ollama)
    lines = [line for line in await pulled(caller, "layered") if "digest" in line]
    assert [line.get("completed") for line in lines] == [None, 300, 600, 900, 1000, None, 40]
    assert [line["total"] for line in lines] == [1000] * 5 + [40] * 2
    assert lines[0]["digest"] != lines[-1]["digest"]
    again = [line["completed"] for line in await pulled(caller, "layered") if "digest" in line]
    assert again == [1000, 40]
    await caller.ask("/api/delete", {"model": "layered"}, "DELETE")
    await caller.answer()
    assert ollama.pulled == {}


async def test_pull_goes_on(start, call):
    """What a pull that ended early has brought is not brought again."""
    ollama = await start((), registry=(FRESH,))
    ollama.pulled[FRESH.digest] = 500
    caller = await call(ollama)
    assert [line["completed"] for line in await pulled(caller, "fresh") if "completed" in line] == [500, 750, 1000]


async def test_pull_that_fails_halfway(start, call):
    """An error in the middle is a line as well, and what there is of the layer stays."""
    full = Model("full:latest", size=1000, pull_fails="write blob: no space left on device")
    ollama = await start((), registry=(full,))
    caller = await call(ollama)
    assert (await pulled(caller, "full"))[-1] == {"error": "write blob: no space left on device"}
    assert (ollama.models, ollama.pulled) == ({}, {full.digest: 500})


SIGN_IN = "unauthorized"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "expected"),
    [
        ("POST", "/api/pull", {"model": "fresh", "stream": False}, 200, '{"status":"success"}'),
        ("POST", "/api/pull", {"model": "../x"}, 400, "invalid model name"),
        ("POST", "/api/pull", b"", 400, "missing request body"),
        ("POST", "/api/push", {"model": "tiny"}, 200, "not authorized"),
        ("POST", "/api/push", {"model": "nope"}, 404, "not found"),
        ("POST", "/api/push", b"", 400, "missing request body"),
        ("POST", "/api/create", {"model": "new", "from": "tiny"}, 200, "success"),
        ("POST", "/api/create", {"model": "new"}, 400, "neither"),
        ("POST", "/api/create", {"model": "../x"}, 400, "invalid model name"),
        ("POST", "/api/create", b"", 400, "missing request body"),
        ("POST", "/api/copy", {"source": "tiny", "destination": "new"}, 200, ""),
        ("POST", "/api/copy", {"source": "nope", "destination": "new"}, 404, "not found"),
        ("POST", "/api/copy", {"source": "tiny", "destination": ".."}, 400, "invalid"),
        ("POST", "/api/copy", b"", 400, "missing request body"),
        ("DELETE", "/api/delete", {"model": "tiny"}, 200, ""),
        ("DELETE", "/api/delete", {"name": "../x"}, 400, "invalid model name"),
        ("DELETE", "/api/delete", b"", 400, "missing request body"),
        ("POST", "/api/blobs/sha256:x", b"abc", 400, "digest mismatch"),
        ("POST", "/api/me", b"", 401, SIGN_IN),
        ("POST", "/api/signout", b"", 200, "null"),
        ("DELETE", "/api/user/keys/abc", b"", 200, "null"),
        ("POST", "/api/experimental/web_search", {"query": "x"}, 401, SIGN_IN),
        ("POST", "/api/experimental/web_fetch", {"url": "x"}, 401, SIGN_IN),
        ("GET", "/api/experimental/model-recommendations", b"", 200, "recommendations"),
        ("GET", "/v1/models/..x", b"", 400, "invalid model name"),
    ],
)
async def test_management(method, path, body, status, expected, start, call):
    """The routes that a proxy must not let through do what they say."""
    ollama = await start(registry=(FRESH,))
    before = set(ollama.models)
    caller = await call(ollama)
    await caller.ask(path, body, method)
    answer = await caller.answer()
    assert f" {status} " in answer.status
    assert expected in answer.text.decode()
    assert ollama.seen == [(method, path)]
    changed = {
        "/api/pull": "fresh:latest",
        "/api/create": "new:latest",
        "/api/copy": "new:latest",
        "/api/delete": "tiny:latest",
    }
    expected_change = {changed[path]} if status == 200 and path in changed else set()
    assert before ^ set(ollama.models) == expected_change
    assert ollama.signed_out is (path in ("/api/signout", "/api/user/keys/abc"))


async def test_blobs(ollama, call):
    """A blob that matches its digest is kept."""
    digest = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    caller = await call(ollama)
    for method, status in (("HEAD", 404), ("POST", 201), ("HEAD", 200)):
        await caller.ask(f"/api/blobs/{digest}", b"abc" if method == "POST" else b"", method)
        assert f" {status} " in (await caller.answer(method)).status


# --- the process ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signals_end_it_at_once(number):
    """The process says where it listens; a signal cuts streams and waiting requests, and it exits with 0."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy.simulated_ollama", "--port", "0"), stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    try:
        async with asyncio.timeout(PATIENCE):
            line = (await process.stdout.readline()).decode()
            port = int(re.fullmatch(r"listening on http://127\.0\.0\.1:(\d+)\n", line)[1])
            callers = [Caller(*await asyncio.open_connection("127.0.0.1", port)) for _ in range(3)]
            stream, waiting, idle = callers
            await streaming(stream)
            await waiting.ask("/v1/chat/completions", chat("x", "slow"))
            process.send_signal(number)
            assert not (await stream.rest()).endswith(b"0\r\n\r\n")
            assert await idle.gone()
            with contextlib.suppress(ConnectionResetError):
                assert await waiting.gone()
            assert await process.wait() == 0
            for caller in callers:
                caller.writer.close()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_process_with_a_registry(call):
    """What can be pulled may be named when it is started; it comes in layers, and is in the GPU once it is loaded."""
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "proxy.simulated_ollama",
            "--port",
            "0",
            "--registry",
            "Qwen3:8b=1000",
            "--speed",
            "99",
        ),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            port = int((await process.stdout.readline()).decode().rpartition(":")[2])
            caller = Caller(*await asyncio.open_connection("127.0.0.1", port))
            totals = {line["total"] for line in await pulled(caller, "qwen3:8b") if "total" in line}
            assert max(totals) == 11_357
            assert {1000, 486} < totals
            await caller.ask("/api/generate", {"model": "qwen3:8b"})
            await caller.answer()
            await caller.send(b"GET /api/ps HTTP/1.1\r\nHost: localhost\r\n\r\n")
            (entry,) = (await caller.answer()).json["models"]
            assert entry["size"] == entry["size_vram"] == 1200
            caller.writer.close()
    finally:
        process.kill()
        await process.wait()


def test_main_refuses_what_it_does_not_know(capsys):
    """An unknown option is a usage error."""
    with pytest.raises(SystemExit) as raised:
        ollama_sim.main(["--no-such-option"])
    assert raised.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_urls_and_names():
    """A server prints its address, also with IPv6."""
    ollama = SimulatedOllama()
    ollama.host, ollama.port = "::1", 5
    assert ollama.url == "http://[::1]:5"
    assert repr(ollama) == "<SimulatedOllama 0.32.15 port=5 connections=0>"
    assert set(asks.READERS) == {"chat", "completions", "responses", "messages", "api_chat", "generate"}


async def test_until_gives_up(ollama):
    """Waiting for what doesn't come ends in time."""
    with pytest.raises(TimeoutError):
        await ollama.until(lambda: ollama.leaked == 1, 0.01)
