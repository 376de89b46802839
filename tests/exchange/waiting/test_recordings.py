"""Recorded streams of a real Ollama pass while a ping is due at every moment, and no byte of them changes."""

from __future__ import annotations

import re
from itertools import accumulate
from typing import TYPE_CHECKING

import pytest

from proxy.exchange.waiting.pings import Times
from proxy.exchange.waiting.rules import Rules
from proxy.policy.refusals import Reason
from proxy.policy.routes import ROUTES
from tests.exchange.test_traces_relay import route_for
from tests.support.ollama_recordings import NAMES, recording
from tests.support.raw_http import LAST_CHUNK, chunk
from tests.support.simulated_world import FIN, Asked, World, outside, read_response

if TYPE_CHECKING:
    from proxy.exchange.message.exchange import Record
    from tests.support.simulated_world import Read

# As the facts about clients have them. The model is the one that the request named, which no recording has.
PINGS = {
    "/v1/messages": rb'event: ping\ndata: {"type": "ping"}\n\n',
    "/v1/chat/completions": rb'data: {"id":"chatcmpl-wait","object":"chat.completion.chunk","created":\d+,"model":"m",'
    rb'"choices":\[{"index":0,"delta":{"content":""},"finish_reason":null}\]}\n\n',
    "/v1/responses": rb': waiting\n\n|event: keepalive\ndata: {"type":"keepalive","sequence_number":(\d+)}\n\n',
    "/api/chat": rb'{"model":"m","created_at":"[-\dT:.]+Z","message":{"role":"assistant","content":""},"done":false}\n',
    "/api/generate": rb'{"model":"m","created_at":"[-\dT:.]+Z","response":"","done":false}\n',
}
TERMINATORS = {
    "/v1/messages": rb"event: (message_stop|error)\n",
    "/v1/chat/completions": rb"data: \[DONE\]\n",
    "/v1/responses": rb"event: response\.(completed|failed|incomplete)\n",
    "/api/chat": rb'"done":true|"error":',
    "/api/generate": rb'"done":true|"error":',
}
NOT_STREAMED = (
    "chat-nonstream",
    "messages-nonstream",
    "responses-nonstream",
    "apichat-nonstream",
    "generate-nonstream",
)
PINGS_ON, NO_PINGS = Times(after=15.0, every=30.0), Times(after=0.0)


def path_for(name: str) -> str:
    """Return the path under which a recording is asked for."""
    return route_for(name)[1].partition("?")[0]


def is_stream(name: str) -> bool:
    """Return whether a recording is a stream in chunks of a route that streams."""
    kind = recording(name).field("content-type") or ""
    streams = kind.startswith(("text/event-stream", "application/x-ndjson"))
    chunked = recording(name).field("transfer-encoding") == "chunked"
    return recording(name).status == 200 and streams and chunked and path_for(name) in PINGS


STREAMED = [name for name in NAMES if is_stream(name)]


class Player:
    """A client that asks for one thing, an Ollama that answers with a recording, and a clock between them."""

    def __init__(
        self, path: str, times: Times, *, load_takes: int = 0, version: str = "1.1", stream: bool = True
    ) -> None:
        """Begin. `load_takes`: seconds for which the request waits until its model is loaded."""
        world = self.world = World(waits=True)
        world.gateway.policy = world.policy(*(route.name for route in ROUTES if route.opt_in))
        assert world.room is not None
        world.room.apply(Rules(times=times))
        world.connect()
        self.client = world.clients[0]
        content = b'{"model":"m","stream":%b,"messages":[{"role":"user","content":"Hi"}],"input":"Hi","prompt":"Hi"}'
        content %= b"true" if stream else b"false"
        lines = ("Host: mac", "X-Request-Id: only", f"Content-Length: {len(content)}", "", "")
        octets = "\r\n".join((f"POST {path} HTTP/{version}", *lines)).encode() + content
        world.asked["only"] = Asked("only", "POST", path, content, octets)
        self.client.asked.append(world.asked["only"])
        world.do(self.client.link.send, octets)
        self.pass_time(*[1] * load_takes)
        world.do(world.desk.end_load, "well")
        (self.served,) = world.served

    def pass_time(self, *seconds: float) -> None:
        """Turn the wheel after each of these times."""
        for each in seconds:
            self.world.pass_time(each)

    def say(self, octets: bytes) -> None:
        """Let Ollama send this."""
        self.served.pending = octets
        self.world.push(self.served, len(octets))

    def begin(self, name: str) -> None:
        """Let Ollama send a recording's head."""
        self.say(recording(name).octets.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")

    def end(self, *, cut: bool = False) -> tuple[Read, Record]:
        """End it, or cut Ollama's connection; return what the client got, and the record."""
        if cut:
            self.world.hang_up(self.served, FIN)
        self.world.close()
        (line,) = self.world.lines
        return read_response(bytes(self.client.link.taken), ended=True, method="POST"), line


@pytest.fixture(autouse=True)
def _world(monkeypatch: pytest.MonkeyPatch) -> None:
    outside(monkeypatch)


def test_every_surface_is_recorded() -> None:
    """Each surface that streams has recordings, whole ones and unfinished ones."""
    assert {path_for(name) for name in STREAMED} == set(PINGS)
    assert len(STREAMED) >= 60


EVENTS = [
    pytest.param(name, 0, takes, id=f"{name}{word}") for name in STREAMED for takes, word in ((0, ""), (80, "-early"))
]
BYTES = [pytest.param(name, 1, 0, id=f"{name}-bytes") for name in STREAMED if len(recording(name).content) < 1200]


@pytest.mark.parametrize(("name", "size", "load_takes"), EVENTS + BYTES)
def test_pings_stand_between_the_events_of_a_recording(name: str, size: int, load_takes: int) -> None:
    """With silence after each event, or each byte, a ping follows each event but the terminator, and nothing else.

    What the client gets is Ollama's content with a ping at each border, which is written as `<number>` here.
    """
    recorded, path = recording(name), path_for(name)
    border = b"\n" if path.startswith("/api/") else b"\n\n"
    content = recorded.content
    events = [each for each in re.split(b"(?<=%b)" % border, content) if each]
    pieces = [content[at : at + size] for at in range(0, len(content), size)] if size else events
    player = Player(path, PINGS_ON, load_takes=load_takes)
    expected = b"<>" * ((load_takes - 15) // 30)
    player.pass_time(1, 14)  # not for 30 s after the last ping
    player.begin(name)
    player.pass_time(1, 30)
    expected += b"<>"
    for piece, so_far in zip(pieces, accumulate(pieces), strict=True):
        player.say(chunk(piece))
        player.pass_time(1, 30)
        expected += piece
        if so_far.endswith(border) and not re.search(TERMINATORS[path], so_far):
            numbers = re.findall(rb'"sequence_number":(\d+)', so_far) if path == "/v1/responses" else []
            expected += b"<%b>" % (numbers[-1] if numbers else b"")
    if recorded.whole:
        player.say(LAST_CHUNK)
    got, line = player.end(cut=not recorded.whole)
    pings = re.compile(PINGS[path])
    shown = pings.sub(lambda found: b"<%b>" % (found[1] if found.lastindex and found[1] else b""), got.content)
    assert shown.startswith(expected)
    assert line.pings == len(pings.findall(got.content))
    if got.whole:
        assert shown == expected


@pytest.mark.parametrize("name", STREAMED)
def test_the_line_ignores_pings(name: str) -> None:
    """A recording's model, tokens, events and bytes are the same in the line, with pings and without."""
    facts = []
    for times in (PINGS_ON, NO_PINGS):
        player = Player(path_for(name), times, load_takes=80)
        player.begin(name)
        for event in recording(name).content.splitlines(keepends=True):
            player.say(chunk(event))
            player.pass_time(1, 30)
        if recording(name).whole:
            player.say(LAST_CHUNK)
        _, line = player.end(cut=not recording(name).whole)
        assert bool(line.pings) is (times is PINGS_ON)
        told = (line.model, line.tokens_in, line.tokens_out, line.events, line.response_octets)
        facts.append((*told, line.ended_by, line.reason, line.upstream_status))
    assert facts[0] == facts[1]


# --- where no ping may be ---


@pytest.mark.parametrize(
    ("name", "version", "stream"),
    [
        *((name, "1.1", False) for name in NOT_STREAMED),
        *((name, "1.0", True) for name in ("chat-stream", "messages-stream", "responses-stream", "apichat-stream")),
    ],
)
def test_no_ping_without_chunks_of_a_stream(name: str, version: str, stream: bool) -> None:
    """A response that isn't a stream, or whose end is the end of the connection, gets no early head and no ping."""
    player = Player(path_for(name), PINGS_ON, load_takes=80, version=version, stream=stream)
    octets = recording(name).octets
    for piece in (octets[:300], octets[300:]):
        player.pass_time(*[10] * 6)
        player.say(piece)
    got, line = player.end()
    assert got.content == recording(name).content
    assert line.pings == 0


def test_one_ping_is_unsent_at_most() -> None:
    """A client that takes nothing gets no second ping, and the one that it has doesn't keep it from being cut."""
    player = Player("/v1/messages", PINGS_ON)
    player.begin("messages-stream")
    player.world.do(player.client.link.take, False)
    player.pass_time(*[1] * 89)
    assert bytes(player.client.link.out).count(b"event: ping") == 1
    assert not player.client.link.lost
    player.pass_time(*[1] * 5)
    assert player.client.link.lost
    _, line = player.end()
    assert (line.pings, line.reason) == (1, Reason.STALLED)


def test_a_client_that_has_not_taken_an_event_gets_no_ping() -> None:
    """While a byte of Ollama's is unsent there is no silence to break."""
    player = Player("/v1/messages", PINGS_ON)
    player.begin("messages-stream")
    player.world.do(player.client.link.take, False)
    player.say(chunk(b'event: message_start\ndata: {"type":"message_start"}\n\n'))
    player.pass_time(*[1] * 59)
    player.world.do(player.client.link.take, True)
    assert b"event: ping" not in player.client.link.taken
    player.pass_time(1)
    assert player.client.link.taken.count(b"event: ping") == 1
    player.end()


def test_the_proxys_own_farewell_ends_the_pings() -> None:
    """After an error event of the proxy's own no ping follows, while what is written is on its way."""
    player = Player("/v1/messages", PINGS_ON)
    player.begin("messages-stream")
    player.pass_time(1)
    player.world.do(player.client.link.take, False)
    player.world.hang_up(player.served, FIN)
    player.pass_time(1, 1, 1, 1)
    got, line = player.end()
    assert b"event: ping" not in got.content
    assert line.pings == 0


@pytest.mark.parametrize("path", PINGS)
def test_an_error_that_breaks_off_after_the_head_is_an_event(path: str) -> None:
    """When Ollama's error is cut after an early head, an event of the surface says so."""
    player = Player(path, PINGS_ON, load_takes=20)
    player.say(b'HTTP/1.1 500 Internal Server Error\r\nContent-Length: 100\r\n\r\n{"error":"it')
    got, line = player.end(cut=True)
    assert b"Ollama stopped before its answer was complete" in got.content
    assert not got.whole
    assert (line.status, line.upstream_status, line.reason) == (200, 500, Reason.UPSTREAM_CLOSED)
