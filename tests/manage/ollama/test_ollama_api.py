"""How Ollama is talked to: what its answers say, and what is made of answers that break off or say something else."""

from __future__ import annotations

import asyncio
import json
from contextlib import closing
from datetime import UTC, datetime

import pytest

from proxy.manage.ollama.api import Loaded, Ollama, OllamaError, Pulling, UnreachableError
from proxy.simulated_ollama import EMBEDDER, REMOTE_STUB, Model, SimulatedOllama
from tests.support.patience import PATIENCE
from tests.support.ports import free_ports
from tests.support.raw_http import CLOSE, CUT, HANG, NEXT

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
MANIFEST = {"status": "pulling manifest"}
LAYER = {"status": "pulling abababababab", "digest": "sha256:abab", "total": 1000, "completed": 250}
SUCCESS = {"status": "success"}
END = b"0\r\n\r\n"


def chunk(line):
    """Return a line of progress as it comes."""
    octets = line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n"
    return b"%x\r\n%b\r\n" % (len(octets), octets)


def answer(body, status="200 OK"):
    """Return a whole answer."""
    octets = body if isinstance(body, bytes) else json.dumps(body).encode()
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status.encode(), len(octets), octets)


def at(upstream):
    return Ollama(f"http://127.0.0.1:{upstream.port}")


async def pulled(ollama, name="m"):
    """Return what a pull reports, from another thread: servers answer in this one."""
    return await asyncio.to_thread(lambda: list(ollama.pull(name)))


async def failing(call, *args):
    """Return the error of a call."""
    with pytest.raises(OllamaError) as raised:
        await asyncio.to_thread(call, *args)
    return raised.value


# --- what it reports --------------------------------------------------------------------------------------------------


async def test_listed():
    """Models that are here are known by their normal names, stubs of others' as what they are."""
    async with SimulatedOllama((EMBEDDER, REMOTE_STUB, Model("someone/m:8b"))) as ollama:
        found = await asyncio.to_thread(Ollama(ollama.url).listed)
    assert set(found) == {"embedder:latest", "far:latest", "someone/m:8b"}
    assert found["embedder:latest"].abilities == ("embedding",)
    assert (found["far:latest"].elsewhere, found["someone/m:8b"].elsewhere) == ("https://ollama.com:443", "")


async def test_loaded(upstream):
    """A model in memory is described by its size, the part in the GPU, its context, and how long it stays."""
    entry = {"name": "M:8b", "digest": "ab", "size": 9, "size_vram": 4, "context_length": 8192}
    times = ("2026-11-23T19:33:24.36160593Z", "2319-03-05T18:20:46.079183877+01:00", "0001-01-01T00:00:00Z", 5)
    models = [{**entry, "name": f"M:{number}", "expires_at": each} for number, each in enumerate(times)]
    upstream.answers(answer({"models": [*models, {"size": 1}, {"name": "../x"}, 7]}))
    found = await asyncio.to_thread(at(upstream).loaded)
    assert found.keys() == {"m:0", "m:1", "m:2", "m:3"}
    assert found["m:0"] == Loaded("ab", 9, 4, 8192, datetime(2026, 11, 23, 19, 33, 24, 361605, UTC))
    assert [found[f"m:{number}"].until for number in (2, 3)] == [None, None]
    assert found["m:1"].until.year == 2319


async def test_old_answers(upstream):
    """An Ollama that reports neither capabilities nor context is understood too."""
    upstream.answers_in_turn((answer({"models": [{"name": "m"}]}),), (answer({"models": [{"name": "m"}]}),))
    ollama = at(upstream)
    assert (await asyncio.to_thread(ollama.listed))["m:latest"].abilities is None
    assert (await asyncio.to_thread(ollama.loaded))["m:latest"] == Loaded("", 0, 0, None, None)


@pytest.mark.parametrize(
    ("script", "there"),
    [
        ((answer({"version": "0.32.15"}),), True),
        ((answer({"version": 5}),), False),
        ((answer(b"nginx"),), False),
        ((answer({"version": "1"}, "502 Bad Gateway"),), False),
        ((HANG,), False),
        ((CLOSE,), False),
    ],
)
async def test_answers(upstream, script, there):
    """Ollama is up once it reports its version. Listening isn't enough."""
    upstream.answers(*script)
    assert await asyncio.to_thread(Ollama(at(upstream).url, 0.2).answers) is there


async def test_nothing_listens():
    """If nothing listens, that is reported, with the reason."""
    (port,) = free_ports(1)
    error = await failing(Ollama(f"http://127.0.0.1:{port}").listed)
    assert isinstance(error, UnreachableError)
    assert str(error) == f"http://127.0.0.1:{port} does not answer: Connection refused"


async def test_no_ollama(upstream):
    """An answer that isn't Ollama's is reported as that."""
    upstream.answers(answer({"data": []}))
    assert (
        str(await failing(at(upstream).listed))
        == f"the program that answers at http://127.0.0.1:{upstream.port} isn't Ollama"
    )


async def test_environments_proxy_is_not_used(monkeypatch):
    """A proxy that the environment names is for others: Ollama is on this machine."""
    (trap,) = free_ports(1)
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{trap}")
    async with SimulatedOllama() as ollama:
        assert await asyncio.to_thread(Ollama(ollama.url).answers)


# --- pulling ----------------------------------------------------------------------------------------------------------


async def test_pull_adds_layers_up():
    """How far a pull has come is the sum of its layers that were begun; phases between them are named."""
    model = Model("m:latest", layers=(1000, 40))
    async with SimulatedOllama((), registry=(model,), speed=100) as ollama:
        told = await pulled(Ollama(ollama.url))
    assert told[0] == Pulling("pulling manifest", 0, 0)
    assert [(now.done, now.total) for now in told if not now.phase][3:7] == [
        (750, 1000),
        (1000, 1000),
        (1000, 1040),
        (1010, 1040),
    ]
    assert [now.phase for now in told][-2:] == ["verifying sha256 digest", "writing manifest"]


PULLS = [
    pytest.param(
        (STREAM, chunk(MANIFEST), chunk({"error": "pull model manifest: file does not exist"}), END),
        "pull model manifest: file does not exist",
        id="error_in_a_200",
    ),
    pytest.param(
        (STREAM, chunk(MANIFEST), chunk({"error": "412: \n\nThe model\n\n\trequires a newer version"}), END),
        "412: The model requires a newer version",
        id="error_of_many_lines",
    ),
    pytest.param((STREAM, chunk(LAYER), END), "the pull ended before it was done", id="no_success"),
    pytest.param((STREAM, END), "the pull ended before it was done", id="nothing"),
    pytest.param((STREAM, chunk(LAYER), CUT), "the connection to Ollama broke: Connection reset by peer", id="reset"),
    pytest.param(
        (STREAM, chunk(LAYER)[:-20], CLOSE),
        "the connection to Ollama broke: it ended in the middle of an answer",
        id="cut_in_a_chunk",
    ),
    pytest.param(
        (CLOSE,), "the connection to Ollama broke: it was closed without an answer", id="closed_without_an_answer"
    ),
    pytest.param((STREAM, chunk(b"<html>\n"), END), "the program that answers isn't Ollama", id="no_json"),
    pytest.param((STREAM, chunk(b"[]\n"), END), "the program that answers isn't Ollama", id="no_object"),
    pytest.param((answer({"error": "invalid model name"}, "400 Bad Request"),), "invalid model name", id="refused"),
    pytest.param((answer(b"", "403 Forbidden"),), "Ollama answers 403 Forbidden", id="refused_without_a_word"),
    pytest.param((answer([], "500 Internal Server Error"),), "Ollama answers 500 Internal Server Error", id="a_list"),
    pytest.param((STREAM, chunk({"error": "x" * 5000}), END), "x" * 400, id="long_error"),
]


@pytest.mark.parametrize(("script", "text"), PULLS)
async def test_pull_that_fails(upstream, script, text):
    """Only a pull that ends in success is one; else the error is Ollama's own, or says how the answer ended."""
    upstream.answers(*script)
    with pytest.raises(OllamaError) as raised:
        await pulled(at(upstream))
    assert str(raised.value) == text


async def test_pull_whose_last_chunk_is_cut(upstream):
    """An end without the last chunk is a failure, unless success was reported before it."""
    upstream.answers_in_turn((STREAM, chunk(LAYER), CLOSE), (STREAM, chunk(LAYER), chunk(SUCCESS), CLOSE))
    with pytest.raises(OllamaError, match=r"the pull ended before|broke"):
        await pulled(at(upstream))
    assert await pulled(at(upstream)) == [Pulling("", 250, 1000)]


async def test_pull_with_odd_numbers(upstream):
    """Numbers that are none count as nothing."""
    upstream.answers(STREAM, chunk({**LAYER, "total": "much", "completed": None}), chunk(SUCCESS), END)
    assert await pulled(at(upstream)) == [Pulling("", 0, 0)]


async def test_pull_that_is_left(upstream):
    """To close a pull closes its connection, which ends it inside Ollama."""
    upstream.answers(STREAM, chunk(LAYER), HANG)

    def first():
        with closing(at(upstream).pull("m")) as pull:
            return next(pull)

    assert await asyncio.to_thread(first) == Pulling("", 250, 1000)
    await asyncio.wait_for(upstream.peers[0].closed.wait(), PATIENCE)


# --- loading ----------------------------------------------------------------------------------------------------------


async def test_load():
    """A load has Ollama keep the model for as long as it was asked to."""
    async with SimulatedOllama((Model("m:latest"), EMBEDDER)) as ollama:
        there = Ollama(ollama.url)
        await asyncio.to_thread(there.load, "m:latest", 90)
        await asyncio.to_thread(lambda: there.load("embedder", -1, embeds=True))
        kept = {name: runner.keep_alive for name, runner in ollama.scheduler.runners.items()}
    assert kept == {"m:latest": 90, "embedder:latest": float("inf")}


LOADS = [
    pytest.param(
        (answer({"error": "llama-server process has terminated"}, "500 Internal Server Error"),),
        "llama-server process has terminated",
        id="failed",
    ),
    pytest.param((answer({"error": "model 'm' not found"}, "404 Not Found"),), "model 'm' not found", id="unknown"),
    pytest.param((answer({"error": "odd"}),), "odd", id="error_in_a_200"),
    pytest.param((answer({"done": False}),), "Ollama did not say that the model is loaded", id="not_done"),
    pytest.param((CLOSE,), "the connection to Ollama broke: it was closed without an answer", id="ollama_was_stopped"),
    pytest.param((CUT,), "the connection to Ollama broke: Connection reset by peer", id="ollama_was_killed"),
]


@pytest.mark.parametrize(("script", "text"), LOADS)
async def test_load_that_fails(upstream, script, text):
    """A load that fails has Ollama's own error, or says how the connection ended."""
    upstream.answers(*script)
    assert str(await failing(at(upstream).load, "m", -1)) == text


async def test_load_has_no_limit(upstream):
    """A silent Ollama is waited for, and that is reported again and again."""
    upstream.answers(NEXT, answer({"done": True}))
    passed = []

    def silent(seconds):
        passed.append(seconds)
        if len(passed) == 3:
            loop.call_soon_threadsafe(upstream.proceed)

    loop = asyncio.get_running_loop()
    await asyncio.to_thread(lambda: at(upstream).load("m", -1, silent=silent, each=0.01))
    assert passed[:3] == pytest.approx([0.01, 0.02, 0.03])
    head = upstream.requests[0]
    assert head.startswith(b"POST /api/generate HTTP/1.1\r\n")
    assert json.loads(head.partition(b"\r\n\r\n")[2]) == {"model": "m", "keep_alive": -1, "stream": False}
