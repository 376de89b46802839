"""Lists of models in the gateway: each asker gets its own, whatever the framing, and none that wasn't judged."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import ollama
import openai
import pytest
from orjson import dumps

from proxy.exchange.askers import Askers
from proxy.exchange.listing import LIST_AT_MOST
from proxy.exchange.upstream.asking import Ollama
from proxy.exchange.waiting.room import Room
from proxy.exchange.waiting.rules import Rules
from proxy.policy.access import Access
from proxy.policy.rule_keys import RuleSpec
from tests.exchange.message.test_lists import OPENAI, REAL, TAGS
from tests.support.asked_tailscale import Clock, Reports
from tests.support.raw_http import CLOSE, CUT, HANG, LAST_CHUNK, NEXT, Proxy, chunk, ok, stream_head

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.raw_http import Step, Upstream, Wire

ALL = b'{"object":"list","data":[{"id":"qwen3:8b"},{"id":"secret"}]}\n'
MINE = b'{"object":"list","data":[{"id":"qwen3:8b"}]}\n'
NATIVE = b'{"models":[{"name":"secret"},{"name":"qwen3:8b"}]}'
HEAD = stream_head(b"application/json; charset=utf-8")
OPEN = ("GET /api/ps", "HEAD /api/tags")


@pytest.fixture
async def ruled(upstream: Upstream) -> AsyncIterator[Proxy]:
    """Give a gateway whose only rule lets this machine use one model."""
    proxy = Proxy(upstream.port, allow=OPEN)
    await proxy.start()
    access = Access.of([RuleSpec(("127.0.0.1",), ("qwen3:*",))], proxy.gateway.policy)
    proxy.gateway.askers = Askers(access, Reports(), Clock())
    yield proxy
    await proxy.stop()


def chunked(content: bytes, size: int) -> tuple[bytes, ...]:
    """Return a response in chunks of this size."""
    return (HEAD, *(chunk(content[at : at + size]) for at in range(0, len(content), size)), LAST_CHUNK)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param((ok(ALL),), id="at once"),
        pytest.param((ok(ALL)[:150], ok(ALL)[150:]), id="in two pieces"),
        pytest.param(chunked(ALL, 7), id="in chunks"),
        pytest.param((b"".join(chunked(ALL, 7)),), id="in chunks at once"),
        pytest.param(chunked(ALL, 1), id="byte by byte"),
        pytest.param((b"HTTP/1.1 200 OK\r\n\r\n" + ALL, CLOSE), id="up to the end of the connection"),
    ],
)
async def test_list_is_shortened_in_every_framing(
    ruled: Proxy, upstream: Upstream, script: tuple[bytes | Step, ...]
) -> None:
    """However Ollama frames a list, the client gets the rest of it with the right length, and can go on."""
    upstream.answers(*script)
    wire = await ruled.connect()
    for number in (1, 2):
        await wire.request("GET", "/v1/models")
        answer = await wire.answer()
        assert (answer.status, answer.content, answer.whole) == (200, MINE, True)
        assert answer.fields["content-length"] == str(len(MINE))
        assert "transfer-encoding" not in answer.fields
        line = (await ruled.lines(number))[-1]
        assert (line["bytes_out"], line.get("ended", "complete")) == (len(MINE), "complete")


@pytest.mark.parametrize("path", ["/api/tags", "/api/ps"])
async def test_native_lists_are_shortened(ruled: Proxy, upstream: Upstream, path: str) -> None:
    """So are the lists of Ollama's own API."""
    upstream.answers(ok(NATIVE))
    wire = await ruled.connect()
    await wire.request("GET", path)
    assert (await wire.answer()).content == b'{"models":[{"name":"qwen3:8b"}]}'


async def test_pipelined_requests_get_their_answers_in_turn(ruled: Proxy, upstream: Upstream) -> None:
    """Requests that were sent ahead are answered behind a list."""
    upstream.answers_in_turn((ok(ALL),), (ok(b'{"version":"1"}'),), (ok(NATIVE),))
    wire = await ruled.connect()
    await wire.send(
        b"".join(
            b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path for path in (b"/v1/models", b"/api/version", b"/api/tags")
        )
    )
    found = [(await wire.answer()).content for _ in range(3)]
    assert found == [MINE, b'{"version":"1"}', b'{"models":[{"name":"qwen3:8b"}]}']


async def test_client_of_http_1_0(ruled: Proxy, upstream: Upstream) -> None:
    """A client of HTTP/1.0 gets a length too, where Ollama's chunks would have no end for it."""
    upstream.answers(*chunked(ALL, 9))
    wire = await ruled.connect()
    await wire.send(b"GET /v1/models HTTP/1.0\r\nHost: a\r\n\r\n")
    answer = await wire.answer()
    assert (answer.content, answer.fields["content-length"]) == (MINE, str(len(MINE)))


async def test_length_of_the_whole_list_is_hidden(ruled: Proxy, upstream: Upstream) -> None:
    """HEAD has no list to shorten, so its answer has no length, and the connection goes on."""
    upstream.answers_in_turn((b'HTTP/1.1 200 OK\r\nETag: "x"\r\nContent-Length: 9999\r\n\r\n',), (ok(ALL),))
    wire = await ruled.connect()
    await wire.request("HEAD", "/api/tags")
    answer = await wire.answer(to_head=True)
    assert (answer.status, answer.fields.get("content-length"), answer.fields.get("etag")) == (200, None, None)
    await wire.request("GET", "/v1/models")
    assert (await wire.answer()).content == MINE


@pytest.mark.parametrize(
    "script",
    [
        pytest.param((ok(b"<html>"),), id="no JSON"),
        pytest.param((ok(b'{"models":[{"name":"secret"}]}'),), id="another kind of list"),
        pytest.param((HEAD, chunk(ALL[:30]), CUT), id="reset"),
        pytest.param((HEAD, chunk(ALL[:30]), CLOSE), id="closed in the middle"),
        pytest.param((ok(ALL)[:-10], CLOSE), id="shorter than it says"),
        pytest.param((b"HTTP/1.1 200 OK\r\n\r\n" + ALL[:-3], CLOSE), id="cut without a length"),
        pytest.param((HEAD, chunk(ALL), b"nonsense\r\n"), id="broken chunks"),
        pytest.param((ok(ALL[9:]).replace(b"200 OK", b"206 Partial Content"),), id="a part"),
        pytest.param((ok(ALL).replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n"),), id="encoded"),
        pytest.param((HEAD, *(chunk(b" " * 65536),) * (LIST_AT_MOST // 65536), chunk(ALL), LAST_CHUNK), id="too large"),
    ],
)
async def test_list_that_cannot_be_judged_is_502(
    ruled: Proxy, upstream: Upstream, script: tuple[bytes | Step, ...]
) -> None:
    """No byte of a list that is broken, unreadable or too large reaches the client."""
    upstream.answers(*script)
    wire = await ruled.connect()
    await wire.request("GET", "/v1/models")
    answer = await wire.answer()
    assert answer.status == 502
    assert b"secret" not in answer.content
    line = (await ruled.lines())[0]
    assert (line["status"], line["ended"]) == (502, "upstream/wait")


async def test_client_can_go_on_after_a_list_that_cannot_be_judged(ruled: Proxy, upstream: Upstream) -> None:
    """The refusal says what is wrong, and the connection stays."""
    upstream.answers_in_turn((ok(b"[]"),), (ok(ALL),))
    wire = await ruled.connect()
    await wire.request("GET", "/v1/models")
    assert "can't be read" in json.loads((await wire.answer()).content)["error"]["message"]
    await wire.request("GET", "/v1/models")
    assert (await wire.answer()).content == MINE


async def test_failure_of_ollama_passes(ruled: Proxy, upstream: Upstream) -> None:
    """A response with another status is no list, and passes as it is."""
    script = ok(b'{"error":"disk"}').replace(b"200 OK", b"500 Internal Server Error")
    upstream.answers(script)
    wire = await ruled.connect()
    await wire.request("GET", "/api/tags")
    answer = await wire.answer()
    assert (answer.status, answer.content) == (500, b'{"error":"disk"}')


async def test_client_that_leaves_ends_the_collecting(ruled: Proxy, upstream: Upstream) -> None:
    """While a list is collected, the client may leave as at any other time."""
    upstream.answers(HEAD, chunk(ALL), HANG)
    wire = await ruled.connect()
    await wire.request("GET", "/v1/models")
    await upstream.arrived.wait()
    wire.close()
    line = (await ruled.lines())[0]
    assert line["ended"].startswith("downstream/")
    await upstream.peers[0].closed.wait()


STUB = {"name": "stub:latest", "model": "stub:latest", "remote_host": "https://ollama.com:443", "remote_model": "big"}
HERE = {"name": "qwen3:8b", "model": "qwen3:8b"}


def with_stub(path: str) -> bytes:
    """Return what an Ollama lists that has a model here, and a stub for one elsewhere."""
    if path == "/v1/models":
        return ok(dumps({"object": "list", "data": [{"id": "stub:latest"}, {"id": "qwen3:8b"}]}))
    return ok(dumps({"models": [] if path == "/api/ps" else [STUB, HERE]}))


@pytest.fixture
async def local(upstream: Upstream) -> AsyncIterator[Proxy]:
    """Give a gateway without rules that lets nothing leave the Mac."""
    proxy = Proxy(upstream.port)
    await proxy.start()
    proxy.gateway.room = Room(Ollama(proxy.pool, proxy.gateway.target), Rules())
    yield proxy
    await proxy.gateway.room.loads.close()
    await proxy.stop()


@pytest.mark.parametrize("path", ["/v1/models", "/api/tags"])
async def test_lists_leave_out_models_that_run_elsewhere(local: Proxy, upstream: Upstream, path: str) -> None:
    """With `local_only`, no list shows a stub, under whatever name; /v1/models doesn't mark it, but /api/tags does."""
    asked = ("/api/tags", "/api/ps", path) if path == "/v1/models" else (path,)
    upstream.answers_in_turn(*((with_stub(each),) for each in asked))
    wire = await local.connect()
    await wire.request("GET", path)
    content = (await wire.answer()).content
    assert b"stub" not in content
    assert b"qwen3:8b" in content


async def test_openai_list_needs_to_know_the_stubs(local: Proxy, upstream: Upstream) -> None:
    """With `local_only`, the list that doesn't mark stubs isn't shown unless Ollama says which they are."""
    refused = ok(b"{}").replace(b"200 OK", b"500 Internal Server Error")
    upstream.answers_in_turn((refused,), (refused,), (with_stub("/v1/models"),))
    wire = await local.connect()
    await wire.request("GET", "/v1/models")
    assert (await wire.answer()).status == 502


async def test_everything_is_listed_without_local_only(local: Proxy, upstream: Upstream) -> None:
    """After `local_only = false` and a reload, lists have all models again, and nothing more is asked."""
    local.gateway.room.apply(Rules(local_only=False))
    upstream.answers(with_stub("/v1/models"))
    wire = await local.connect()
    await wire.request("GET", "/v1/models")
    assert b"stub" in (await wire.answer()).content
    assert len(upstream.requests) == 1


async def test_without_rules_nothing_is_collected(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """Without rules each piece of a list goes on at once, as Ollama frames it."""
    upstream.answers(HEAD, chunk(ALL), NEXT, LAST_CHUNK)
    await wire.request("GET", "/v1/models")
    assert (await wire.read_until(ALL)).endswith(ALL)
    upstream.proceed()
    await gateway.lines()


async def test_sdks_list_the_models_of_their_asker(ruled: Proxy, upstream: Upstream) -> None:
    """The SDKs of OpenAI and Ollama read a shortened list like a whole one."""
    upstream.answers_in_turn((ok(REAL[OPENAI]),), (ok(REAL[TAGS]),))
    base, plain = f"http://127.0.0.1:{ruled.port}", {"mounts": {"http://": None}, "verify": False}
    http = openai.DefaultAsyncHttpxClient(**plain)
    async with openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="k", http_client=http) as client:
        assert [each.id async for each in client.models.list()] == ["qwen3:8b"]
    found = await ollama.AsyncClient(base, trust_env=False, **plain).list()
    assert [each.model for each in found.models] == ["qwen3:8b"]
