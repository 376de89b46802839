"""What one client's connection does by itself, on a transport that remembers it: how it ends, and its limits."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from proxy.event_loop import sockets
from proxy.exchange.client import client_socket, connection
from proxy.exchange.client.client_socket import Ending, Mode
from proxy.exchange.client.connection import FRAMING_LIMIT, PIPELINE_OCTETS, Connection
from proxy.exchange.client.deadlines import IDLE_FOR, LINGER_FOR
from proxy.exchange.client.server import Server
from proxy.exchange.message.exchange import Party, Stop
from proxy.policy import refusals
from proxy.policy.refusals import Reason
from tests.support.one_exchange import turns
from tests.support.raw_http import LIMITS, Line, chunk

if TYPE_CHECKING:
    from proxy.exchange.message.known_heads import Request
    from proxy.policy.refusals import Refusal

GET = b"GET /v1/models HTTP/1.1\r\nHost: mac\r\n\r\n"
LAST = GET[:-2] + b"Connection: close\r\n\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: mac\r\n"


class Nothing:
    """A poll that reports nothing."""

    def poll(self, _: int) -> list[object]:
        """Return what waits."""
        return []


class Transport(Line):
    """A client's transport, which remembers how it was ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[str] = []
        self.waiting = 0

    def get_extra_info(self, name: str) -> Any:
        """Return an address."""
        return {"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)}.get(name)

    def get_write_buffer_size(self) -> int:
        """Return how much the client hasn't taken."""
        return self.waiting

    def write_eof(self) -> None:
        """End our side, and read on."""
        self.ends.append("linger")

    def close(self) -> None:
        """End when all is written."""
        self.ends.append("close")
        self.gone = True

    def abort(self) -> None:
        """End at once."""
        self.ends.append("abort")
        self.gone = True


class Stage:
    """A connection, and a server whose exchanges end when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **limits: Any) -> None:
        self.now = 1000.0
        self.stops: list[object] = []
        self.served: list[tuple[Request, float]] = []
        self.refused: list[tuple[Refusal, float, Party]] = []
        self.parties: list[Connection] = []
        self.of_peer: Refusal | None = None
        self.admits = False
        self.ending: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self.dead = False
        for module in (connection, client_socket):
            monkeypatch.setattr(module, "monotonic", lambda: self.now)
        monkeypatch.setattr(sockets, "watch", lambda _: Nothing())
        monkeypatch.setattr(sockets, "accepted", lambda _: None)
        monkeypatch.setattr(sockets, "was_reset", lambda _: self.dead)
        monkeypatch.setattr(sockets, "reset", self._reset)
        self.server = Server(self._serve, self._unparsable, self._refused_peer, replace(LIMITS, **limits))
        self.client = Connection(self.server)
        self.transport = Transport()
        self.client.connection_made(self.transport)  # type: ignore[arg-type]

    def _reset(self, transport: Transport) -> None:
        transport.ends.append("reset")
        transport.gone = True

    async def _serve(self, client: Connection, request: Request, arrived: float) -> Ending:
        self.served.append((request, arrived))
        try:
            if self.admits:
                client.admitted()
            return await self.ending
        except asyncio.CancelledError as error:
            self.stops.append(error.args[0])
            return Ending.LEFT

    def _unparsable(self, client: Connection, refusal: Refusal, arrived: float, party: Party) -> None:
        self.parties.append(client)
        self.refused.append((refusal, arrived, party))

    async def _refused_peer(self, client: Connection) -> Refusal | None:
        return self.of_peer if client is self.client else None

    async def ends(self, ending: Ending) -> list[str]:
        """Let the exchange end so; return what becomes of the transport."""
        over, self.ending = self.ending, asyncio.get_running_loop().create_future()
        over.set_result(ending)
        await turns()
        return self.transport.ends


@pytest.fixture
async def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Give a connection."""
    return Stage(monkeypatch)


# --- how it ends ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("octets", "ending", "draining", "ends", "mode"),
    [
        pytest.param(GET, Ending.KEEP, False, [], Mode.IDLE, id="kept"),
        pytest.param(GET, Ending.KEEP, True, ["close"], Mode.FLUSH, id="kept_in_a_drain"),
        pytest.param(GET, Ending.CLOSE, False, ["linger"], Mode.LINGER, id="more_may_come"),
        pytest.param(LAST, Ending.CLOSE, False, ["close"], Mode.FLUSH, id="last"),
        pytest.param(GET, Ending.CLOSE, True, ["close"], Mode.FLUSH, id="drain"),
        pytest.param(GET + GET, Ending.CLOSE, True, ["linger"], Mode.LINGER, id="drain_with_another_behind"),
        pytest.param(GET + b"\0\r\n\r\n", Ending.CLOSE, True, ["linger"], Mode.LINGER, id="drain_with_garbage_behind"),
        pytest.param(
            POST + b"Connection: close\r\nContent-Length: 9\r\n\r\n{}",
            Ending.CLOSE,
            False,
            ["linger"],
            Mode.LINGER,
            id="last_with_unread_content",
        ),
        pytest.param(
            POST + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}",
            Ending.CLOSE,
            False,
            ["close"],
            Mode.FLUSH,
            id="last_with_all_its_content",
        ),
        pytest.param(GET, Ending.CUT, False, ["close"], Mode.FLUSH, id="cut"),
        pytest.param(GET, Ending.RESET, False, ["reset"], Mode.FLUSH, id="reset"),
        pytest.param(GET, Ending.LEFT, False, ["abort"], Mode.FLUSH, id="left"),
    ],
)
async def test_end_of_an_exchange(
    stage: Stage, octets: bytes, ending: Ending, draining: bool, ends: list[str], mode: Mode
) -> None:
    """After an answer we read on where anything may still come: a reset for unread bytes would destroy the answer."""
    stage.client.data_received(octets)
    stage.server.draining = draining
    assert await stage.ends(ending) == ends
    assert stage.client.mode is mode


async def test_left_where_the_end_is_the_contents(stage: Stage) -> None:
    """Where the end of the connection would end the content, a client that left sees a reset."""
    stage.client.data_received(GET)
    stage.client.delimits = True
    assert await stage.ends(Ending.LEFT) == ["reset"]


@pytest.mark.parametrize(("waiting", "end"), [(0, "abort"), (1, "reset")], ids=["all_taken", "bytes_wait"])
@pytest.mark.parametrize("ending", [Ending.CUT, Ending.CLOSE])
async def test_time_for_the_last_bytes(stage: Stage, ending: Ending, waiting: int, end: str) -> None:
    """A connection that lingers, or whose last bytes are on their way, is cut when its time is over."""
    stage.client.data_received(GET)
    before = list(await stage.ends(ending))
    stage.transport.waiting = waiting
    stage.client.tick(stage.now + LINGER_FOR)
    assert stage.transport.ends == before
    stage.client.tick(stage.now + LINGER_FOR + 0.1)
    assert stage.transport.ends == [*before, end]


async def test_all_is_delivered_after_a_whole_answer(stage: Stage) -> None:
    """A connection that ended in order has all the time to deliver its answer."""
    stage.client.data_received(LAST)
    assert await stage.ends(Ending.CLOSE) == ["close"]
    stage.client.tick(stage.now + LINGER_FOR + 0.1)
    assert stage.transport.ends == ["close"]


@pytest.mark.parametrize(
    ("octets", "end"),
    [
        pytest.param(b"", ["close"], id="idle"),
        pytest.param(b"GET", ["linger"], id="head"),
    ],
)
async def test_too_long_without_a_request(stage: Stage, octets: bytes, end: list[str]) -> None:
    """An idle connection is closed when its time is over, and a head that began is refused."""
    if octets:
        stage.client.data_received(octets)
    limit = LIMITS.head_timeout if octets else IDLE_FOR
    began = stage.now
    stage.client.tick(began + limit)
    assert stage.transport.ends == []
    stage.now += limit
    stage.client.tick(began + limit + 0.1)
    assert stage.transport.ends == end
    refusal = refusals.head_timeout(LIMITS.head_timeout)
    assert stage.refused == ([(refusal, began, Party.PROXY)] if octets else [])


async def test_stalled(stage: Stage) -> None:
    """A client that takes nothing for too long is reset, and its exchange knows the reason."""
    stage.client.data_received(GET)
    stage.transport.waiting = 1
    stage.client.tick(stage.now)
    stage.client.tick(stage.now + LIMITS.stall_timeout + 0.1)
    assert (stage.stops, stage.transport.ends[0]) == ([Stop(Party.PROXY, Reason.STALLED)], "reset")


async def test_reset_while_it_is_not_read(stage: Stage) -> None:
    """A client that resets a connection which isn't read has left, and needs no reset from us."""
    stage.admits = True
    stage.client.data_received(POST + b"Content-Length: 9\r\n\r\n{}")
    stage.client.hold()
    stage.client.tick(stage.now)
    assert stage.stops == []
    stage.dead = True
    stage.client.tick(stage.now)
    assert (stage.stops, set(stage.transport.ends)) == ([Stop(Party.DOWNSTREAM)], {"abort"})


async def test_mistake_with_a_connection(stage: Stage) -> None:
    """A mistake of the proxy's own with a connection resets it, and its exchange has its line."""
    stage.client.data_received(GET)
    stage.client.failed()
    assert (stage.stops, stage.transport.ends[-1]) == ([Stop(Party.PROXY, Reason.INTERNAL)], "reset")


@pytest.mark.parametrize("busy", [True, False])
async def test_end_of_a_drain(stage: Stage, busy: bool) -> None:
    """At the end of a drain a running exchange is stopped, and any other connection is closed."""
    if busy:
        stage.client.data_received(GET)
    stage.client.drain_over()
    stops = [Stop(Party.PROXY, Reason.DRAINING, refusals.DRAINING)] if busy else []
    assert (stage.stops, stage.transport.ends) == (stops, ["abort"])


async def test_stopped_once(stage: Stage) -> None:
    """An exchange is asked to end once, and a connection without one isn't asked at all."""
    stage.client.stop(Stop(Party.DOWNSTREAM))
    assert stage.client.mode is Mode.IDLE
    stubborn: list[object] = []

    async def serve(*_: object) -> Ending:
        for _ in range(2):
            try:
                await stage.ending
            except asyncio.CancelledError as error:
                stubborn.append(error.args[0])
                stage.ending = asyncio.get_running_loop().create_future()
        return Ending.LEFT

    stage.server.serve = serve
    stage.client.data_received(GET)
    stage.client.stop(Stop(Party.PROXY, Reason.STALLED))
    stage.client.stop(Stop(Party.DOWNSTREAM))
    assert stubborn == [Stop(Party.PROXY, Reason.STALLED)]


@pytest.mark.parametrize(("delimits", "end"), [(False, "abort"), (True, "reset")], ids=["framed", "to_the_end"])
async def test_half_close_within_an_exchange(stage: Stage, delimits: bool, end: str) -> None:
    """A client that ends its side has left; where the end would end the content it sees a reset."""
    stage.client.data_received(GET)
    stage.client.delimits = delimits
    assert not stage.client.eof_received()
    assert (stage.stops, set(stage.transport.ends)) == ([Stop(Party.DOWNSTREAM)], {end})


async def test_half_close_without_a_request(stage: Stage) -> None:
    """A client that ends its side without a request keeps nothing open."""
    assert not stage.client.eof_received()
    assert not stage.client.has_left


@pytest.mark.parametrize("octets", [GET, b"\0\r\n\r\n"], ids=["a_request", "garbage"])
async def test_half_close_behind_what_waits(stage: Stage, octets: bytes) -> None:
    """A client that ends its side while its bytes wait for their turn gets its answer, and then the end."""
    stage.client.pause_writing()
    stage.client.data_received(octets)
    assert stage.client.eof_received()
    assert stage.client.has_left
    stage.client.resume_writing()
    await turns()
    assert (len(stage.served), len(stage.refused)) == ((1, 0) if octets == GET else (0, 1))
    assert await stage.ends(Ending.KEEP) == ["close"]


@pytest.mark.parametrize("how", ["lost", "reset"])
async def test_leaving_inside_a_head(stage: Stage, how: str) -> None:
    """A client that leaves within a head has a line, with the time at which the head began."""
    stage.now = 2000.0
    stage.client.data_received(b"GET")
    stage.now = 2003.0
    stage.client.connection_lost(ConnectionResetError() if how == "reset" else None)
    assert stage.refused == [(refusals.MALFORMED, 2000.0, Party.DOWNSTREAM)]
    assert stage.parties == [stage.client]
    assert stage.client.mode is Mode.GONE


# --- when a request arrived -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pieces", "took"), [((GET,), 0.0), ((GET[:9], GET[9:]), 3.0)], ids=["one_read", "two_reads"])
async def test_arrival(stage: Stage, pieces: tuple[bytes, ...], took: float) -> None:
    """A request arrived when its head began."""
    stage.now = 2000.0
    for piece in pieces:
        stage.client.data_received(piece)
        stage.now += 3.0
    ((request, arrived),) = stage.served
    assert (request.head.method, request.head.target) == ("GET", "/v1/models")
    assert arrived == 2000.0
    assert stage.now - arrived == took + 3.0


@pytest.mark.parametrize("begun", [True, False], ids=["begun", "at_once"])
async def test_arrival_of_what_is_no_request(stage: Stage, begun: bool) -> None:
    """Bytes that make no request arrived when the first of them did; a drain refuses a head that began."""
    stage.now = 2000.0
    stage.client.data_received(b"GET")
    stage.now = 2003.0
    if begun:
        stage.client.data_received(b"\0\r\n\r\n")
        await turns()
    else:
        stage.client.drain()
    refusal = refusals.MALFORMED if begun else refusals.DRAINING
    assert (stage.refused, stage.transport.ends) == ([(refusal, 2000.0, Party.PROXY)], ["linger"])


async def test_peer_of_what_is_no_request(stage: Stage) -> None:
    """Bytes that make no request, from a peer that is refused, get the refusal of the peer."""
    stage.of_peer = refusals.PEER_NOT_ALLOWED
    stage.client.data_received(b"\0\r\n\r\n")
    await turns()
    assert [refusal for refusal, _, _ in stage.refused] == [refusals.PEER_NOT_ALLOWED]


async def test_second_request_is_known(stage: Stage) -> None:
    """A request like the one before is taken from what is known of that one."""
    for _ in range(2):
        stage.client.data_received(GET)
        await stage.ends(Ending.KEEP)
    assert stage.served[1][0].known is not None


async def test_nothing_is_read_behind_the_last_answer(stage: Stage) -> None:
    """What follows the last answer is discarded unread."""
    stage.client.data_received(GET)
    await stage.ends(Ending.CLOSE)
    stage.client.data_received(GET)
    assert "0 waiting" in repr(stage.client)


async def test_nothing_is_read_behind_garbage(stage: Stage) -> None:
    """What follows bytes that make no request is no request either, and these have one line."""
    for octets in (GET, b"\0\r\n\r\n", GET):
        stage.client.data_received(octets)
    await stage.ends(Ending.KEEP)
    assert (len(stage.served), len(stage.refused)) == (1, 1)


async def test_refused_before_its_first_byte(stage: Stage) -> None:
    """A connection that is refused before it sent anything arrived now, not when it was last idle."""
    stage.now = 2000.0
    stage.client.refuse_unparsable(refusals.DRAINING)
    assert stage.refused == [(refusals.DRAINING, 2000.0, Party.PROXY)]


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "passes"), [(10, True), (11, False)], ids=["exactly", "over"])
@pytest.mark.parametrize("whole", [True, False], ids=["at_once", "later"])
async def test_largest_content(monkeypatch: pytest.MonkeyPatch, size: int, passes: bool, whole: bool) -> None:
    """Content may have exactly `max_body` bytes, however it comes."""
    stage = Stage(monkeypatch, max_body=10)
    stage.admits = True
    head, content = POST + b"Content-Length: %d\r\n\r\n" % size, b"x" * size
    for octets in (head + content,) if whole else (head, content):
        stage.client.data_received(octets)
    refusal = refusals.content_too_large(10)
    assert stage.stops == ([] if passes else [Stop(Party.DOWNSTREAM, refusal.reason, refusal)])


async def test_content_that_comes_later(stage: Stage) -> None:
    """An admitted request has no content before some arrives, and then exactly that."""
    stage.admits = True
    sizes = []
    for octets in (POST + b"Content-Length: 3\r\n\r\n", b"ab", b"c"):
        stage.client.data_received(octets)
        sizes.append((stage.client.upload.size, stage.client.upload.done))
    assert sizes == [(0, False), (2, False), (3, True)]


@pytest.mark.parametrize(("over", "passes"), [(0, True), (1, False)], ids=["exactly", "over"])
@pytest.mark.parametrize("again", [False, True], ids=["first", "second"])
async def test_largest_framing(stage: Stage, over: int, passes: bool, again: bool) -> None:
    """Chunk framing may have exactly its limit and 16 bytes for each byte of content, counted for each request."""
    stage.admits = True
    if again:
        stage.client.data_received(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        stage.client.data_received(chunk(b"x" * 100))
        stage.client.data_received(b"0\r\n\r\n")
        await stage.ends(Ending.KEEP)
    stage.client.data_received(POST + b"Transfer-Encoding: chunked\r\n\r\n")
    left = FRAMING_LIMIT + 2 * 16 + over
    for size in (left // 2, left - left // 2):
        piece = b"1;" + b"a" * (size - 7) + b"\r\nx\r\n"
        assert len(piece) == size
        stage.client.data_received(piece)
    assert stage.stops == ([] if passes else [Stop(Party.DOWNSTREAM, Reason.MALFORMED, refusals.MALFORMED)])


@pytest.mark.parametrize(("size", "read"), [(PIPELINE_OCTETS, True), (PIPELINE_OCTETS + 1, False)])
async def test_content_that_waits(stage: Stage, size: int, read: bool) -> None:
    """A connection isn't read while more content waits behind the current request than it may."""
    stage.client.data_received(GET)
    stage.client.data_received(POST + b"Content-Length: %d\r\n\r\n" % size)
    stage.client.data_received(b"x" * (size - 1))
    stage.client.data_received(b"x")
    assert (stage.transport.reading, stage.client.unread) == (read, not read)


async def test_reading_goes_on_when_the_last_begins(stage: Stage) -> None:
    """A connection that isn't read, because too much waits, is read again once the last of its requests begins."""
    stage.client.data_received(GET)
    stage.client.data_received(GET + POST + b"Content-Length: %d\r\n\r\n" % (PIPELINE_OCTETS + 1))
    stage.client.data_received(b"x" * (PIPELINE_OCTETS + 1))
    reading = []
    for _ in range(3):
        reading.append((len(stage.served), stage.transport.reading))
        await stage.ends(Ending.KEEP)
    assert reading == [(1, False), (2, False), (3, True)]
