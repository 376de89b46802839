"""Every recorded answer of a real Ollama comes through the proxy as it was, but for what a gateway must change."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from proxy.policy.routes import ROUTES
from tests.support.ollama_recordings import NAMES, Recording, asked, recording
from tests.support.raw_http import CLOSE, Proxy, within

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.raw_http import Upstream, Wire

# --- recordings that don't pass as they are, and why ------------------------------------------------------------------

NO_ANSWER = {
    "half-close-before-answer": "Ollama never answers a client that half-closes",
    "scn-half-close-at-once": "the same",
    "scn-slowreader-blocks-the-slot": "nothing came while another client held the slot",
}
CUT = {
    "disconnect-mid-stream": "the recording ends where its client left",
    "scn-signal-SIGINT": "Ollama was stopped in the middle",
    "scn-signal-SIGTERM": "the same",
    "scn-signal-SIGKILL": "the same",
    "scn-standin-big-tokens-20000": "only the first 20,000 octets were recorded",
}
UNFINISHED = {
    "scn-half-close-mid-stream-chat": "Ollama ends a stream cleanly when its client half-closes",
    "scn-half-close-mid-stream-responses": "the same",
    "scn-half-close-mid-stream-messages": "the same",
    "scn-runner-dies-chat-stream": "the model died, which only NDJSON tells",
    "scn-runner-dies-responses-stream": "the same",
    "scn-runner-dies-messages-stream": "the same",
    "scn-standin-cut-chat-stream": "the same",
    "scn-standin-cut-responses-stream": "the same",
    "scn-standin-cut-messages-stream": "the same",
    "scn-standin-jinja-die-chat-stream": "the same",
    "scn-standin-repeat-chat-stream": "the model repeated itself, which nobody is told",
    "scn-standin-repeat-responses-stream": "the same",
    "scn-standin-repeat-messages-stream": "the same",
    "scn-standin-repeat-apichat-stream": "the same",
}
TWO = {
    "pipelined-two": "a second answer that nobody asked for is not handed on",
    "request-expect-100": "an interim answer is the proxy's own business",
}
REWORDED = {
    "host-21-a_b": "Go says more behind the status than its reason phrase",
    "host-none-http11": "the same",
    "request-http2-version": "the same",
    "request-space-before-colon": "the same",
}

PASSING = [name for name in NAMES if name not in NO_ANSWER | CUT | UNFINISHED | TWO]

SERVED = {(route.method, route.path) for route in ROUTES}
DIALECTS = {
    "responses": "/v1/responses",
    "messages": "/v1/messages",
    "apichat": "/api/chat",
    "api_chat": "/api/chat",
    "generate": "/api/generate",
    "chat": "/v1/chat/completions",
}


def route_for(name: str) -> tuple[str, str]:
    """Return the method and target under which this recording is asked for: its own where the proxy serves that."""
    method, target = asked(name) or ("", "")
    path = target.partition("?")[0]
    if (method, path) in SERVED or (method == "GET" and re.fullmatch(r"/v1/models/[a-zA-Z:]+", path)):
        return method, target
    if method == "HEAD":
        return "HEAD", "/api/version"
    if name.startswith("scn-"):
        return "POST", next((path for word, path in DIALECTS.items() if word in name), "/v1/chat/completions")
    return "GET", "/api/tags"


@pytest.fixture
async def gateway(upstream: Upstream) -> AsyncIterator[Proxy]:
    """Give a gateway that serves every row."""
    proxy = Proxy(upstream.port, allow=tuple(route.name for route in ROUTES if route.opt_in))
    await proxy.start()
    yield proxy
    await proxy.stop()


async def ask(upstream: Upstream, wire: Wire, name: str) -> None:
    """Send the request that this recording answers; Ollama's connection ends where that ends the answer."""
    recorded = recording(name)
    framed = recorded.field("content-length") or recorded.field("transfer-encoding") or recorded.status in (204, 304)
    upstream.answers(recorded.octets, *(() if framed and recorded.whole else (CLOSE,)))
    method, target = route_for(name)
    await wire.request(method, target, b"{}" if method == "POST" else None)


def kept(recorded: Recording) -> list[tuple[str, str]]:
    """Return the fields that a gateway may not touch."""
    framing = {"connection", "transfer-encoding", "content-length"}
    return [
        (name, value)
        for name, value in recorded.fields
        if name.lower() not in framing and not name.lower().startswith("access-control-")
    ]


def test_lists() -> None:
    """Every exception is a recording that exists, and the rest, which passes, are nearly all."""
    assert set(NO_ANSWER | CUT | UNFINISHED | TWO | REWORDED) <= set(NAMES)
    assert len(PASSING) > 0.9 * len(NAMES)


@pytest.mark.parametrize("name", PASSING)
async def test_passes(gateway: Proxy, upstream: Upstream, wire: Wire, name: str) -> None:
    """Status, fields, their order and the content are Ollama's; framing, CORS and request ids are the proxy's."""
    recorded = recording(name)
    method, _ = route_for(name)
    await ask(upstream, wire, name)
    answer = await wire.answer(to_head=method == "HEAD")
    start, *lines = answer.head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    if name not in REWORDED:
        assert start.encode() == b"HTTP/1.1" + recorded.octets.split(b"\r\n")[0][8:]
    fields = [(key, value) for key, _, value in (line.partition(": ") for line in lines)]
    expected = kept(recorded)
    assert fields[: len(expected)] == expected
    added = [key for key, _ in fields[len(expected) :]]
    assert set(added) <= {"Content-Length", "Transfer-Encoding", "x-request-id", "request-id"}
    assert len(added) == len(set(added))
    if recorded.status != 204:
        assert answer.fields.get("content-length") == recorded.field("content-length")
    assert (answer.status, answer.content, answer.whole) == (recorded.status, recorded.content, True)
    (line,) = await gateway.lines()
    assert (line["ended"], line["status"], line["bytes_out"]) == ("complete", recorded.status, len(recorded.content))


@pytest.mark.parametrize("name", UNFINISHED)
async def test_unfinished(gateway: Proxy, upstream: Upstream, wire: Wire, name: str) -> None:
    """A stream that Ollama ends cleanly without finishing it comes through to the last byte, and then breaks off."""
    await ask(upstream, wire, name)
    answer = await wire.answer()
    assert not answer.whole
    assert answer.content.startswith(recording(name).content)
    assert b"without finishing it" in answer.content[len(recording(name).content) :]
    (line,) = await gateway.lines()
    assert (line["ended"], line["reason"]) == ("upstream/content", "missing_terminator")


@pytest.mark.parametrize("name", CUT)
async def test_cut(gateway: Proxy, upstream: Upstream, wire: Wire, name: str) -> None:
    """A stream that is cut comes through to the last byte that came, and is cut for the client too."""
    await ask(upstream, wire, name)
    answer = await wire.answer()
    content = recording(name).content
    assert not answer.whole
    assert answer.content.startswith(content)
    assert (b'"error":' in answer.content[len(content) :]) is content.endswith(b"\n\n")
    (line,) = await gateway.lines()
    assert (line["ended"], line["reason"]) == ("upstream/content", "upstream_closed")


@pytest.mark.parametrize("name", NO_ANSWER)
async def test_no_answer(gateway: Proxy, upstream: Upstream, wire: Wire, name: str) -> None:
    """If no byte arrived, the client gets an error."""
    await ask(upstream, wire, name)
    assert (await wire.answer()).status == 502
    assert (await gateway.lines())[0]["reason"] == "upstream_closed"


async def test_two_answers(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """Of two answers the first comes through, and the connection that brought both is used no more."""
    await ask(upstream, wire, "pipelined-two")
    answer = await wire.answer()
    assert (answer.content, answer.whole) == (b'{"version":"0.32.15"}', True)
    await within(upstream.peers[0].closed.wait())
    assert (await gateway.lines())[0]["ended"] == "complete"


async def test_interim_answer(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """An interim answer of Ollama's is passed over: `Expect` is answered by the proxy itself."""
    await ask(upstream, wire, "request-expect-100")
    answer = await wire.answer()
    octets = recording("request-expect-100").octets
    assert (answer.status, answer.whole) == (200, True)
    assert answer.content == octets.split(b"\r\n\r\n", 2)[2]
