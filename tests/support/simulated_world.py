"""Both sides of the gateway and the network between, without sockets and with a clock that tests turn.

The gateway, its connections and its parsers are the real ones; what is made up is what lies outside of the process: the
transports, Ollama, the clients, and time. h11, which shares nothing with the parsers that the gateway uses, reads what
arrives on either side.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import h11

from proxy.exchange.gateway import Gateway
from proxy.exchange.message.failures import ClosedEarly, Unreachable
from proxy.exchange.upstream.asking import Response
from proxy.exchange.upstream.pool import Pool
from proxy.exchange.upstream.target import Target
from proxy.exchange.upstream.upstream import Upstream
from proxy.exchange.waiting.room import Room
from proxy.exchange.waiting.rules import Rules
from proxy.exchange.waiting.stuck import Watch
from proxy.policy.gate import Policy
from proxy.policy.routes import Route
from proxy.serving.clients import Clients
from tests.support.raw_http import LIMITS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from proxy.exchange.message.exchange import Record

FIN, RESET = "fin", "reset"
AUTHORITY = b"127.0.0.1:11434"


class Clock(asyncio.SelectorEventLoop):
    """A loop whose time is set from outside."""

    now = 1000.0

    def time(self) -> float:
        """Return the time."""
        return self.now

    def settle(self) -> None:
        """Turn until nothing is left to be done now."""
        for _ in range(200):
            self.call_soon(self.stop)
            self.run_forever()
            due = [timer for timer in self._scheduled if timer._when <= self.now and not timer._cancelled]  # type: ignore[attr-defined]
            if not self._ready and not due:  # type: ignore[attr-defined]
                return
        raise AssertionError("the loop doesn't come to rest")


class Link:
    """The transport of one of our connections; what isn't ours of it is called by the test.

    It is as strict as uvloop's: a closed one is neither written to nor paused.
    """

    def __init__(self, clock: Clock, protocol: Any, peer: tuple[str, int] = ("127.0.0.1", 1)) -> None:
        self.clock = clock
        self.protocol = protocol
        self.out = bytearray()  # written, and not taken by the peer yet
        self.taken = bytearray()
        self.taking = True
        self.waiting: deque[bytes | str] = deque()  # sent by the peer, and not read yet
        self.reading = True
        self.closing = self.lost = self.full = self.eof_written = False
        self.high = 65536
        self.end: str | None = None  # how the peer sees it end, behind what it takes
        self.peer = peer
        protocol.connection_made(self)

    # what ours calls

    def get_extra_info(self, name: str) -> Any:
        """Return an address."""
        return {"peername": self.peer, "sockname": ("127.0.0.1", 2)}.get(name)

    def set_write_buffer_limits(self, high: int) -> None:
        """Keep the limit."""
        self.high = high

    def get_write_buffer_size(self) -> int:
        """Return how much the peer hasn't taken."""
        return len(self.out)

    def is_closing(self) -> bool:
        """Return whether it is closed, or about to be."""
        return self.closing

    def write(self, octets: bytes) -> None:
        """Take bytes."""
        assert not self.closing
        assert not self.eof_written
        if self.waiting and self.waiting[0] is RESET:
            self.clock.call_soon(self._deliver, True)
            return
        self.out += octets
        self._take()
        if len(self.out) > self.high and not self.full:
            self.full = True
            self.protocol.pause_writing()

    def write_eof(self) -> None:
        """End our side."""
        assert not self.closing
        self.eof_written = True

    def close(self) -> None:
        """Close once all is taken."""
        if not self.closing:
            self.closing = True
            if not self.out:
                self._end(FIN)

    def abort(self, end: str = FIN) -> None:
        """Close now."""
        if not self.lost:
            self.closing = True
            self.eof_written = self.eof_written and not self.out  # it was to come behind what is lost
            self.out.clear()
            self._end(end)

    def pause_reading(self) -> None:
        """Read no more."""
        assert not self.closing
        self.reading = False

    def resume_reading(self) -> None:
        """Read on."""
        assert not self.closing
        self.reading = True
        self.clock.call_soon(self._deliver)

    def poll(self, timeout: int) -> bool:
        """Return whether something is to be read."""
        return bool(self.waiting)

    # what the peer does

    def send(self, item: bytes | str) -> None:
        """Send bytes, or an end."""
        if item is RESET:
            self.waiting.clear()
            self.taking = False
        self.waiting.append(item)
        self.clock.call_soon(self._deliver)

    def take(self, taking: bool) -> None:
        """Take what was written, or nothing more."""
        self.taking = taking
        self.clock.call_soon(self._drained)

    def _drained(self) -> None:
        self._take()
        if self.full and len(self.out) <= self.high // 4:
            self.full = False
            self.protocol.resume_writing()

    def _take(self) -> None:
        if self.taking:
            self.taken += self.out
            self.out.clear()
            if self.closing:
                self._end(FIN)

    def _deliver(self, at_once: bool = False) -> None:
        if self.closing or not self.waiting or not (self.reading or at_once):
            return
        item = self.waiting.popleft()
        if isinstance(item, bytes):
            self.protocol.data_received(item)
        elif item is FIN:
            self.protocol.eof_received()
            self.close()
        else:
            self.closing = True
            self.out.clear()
            self._end(RESET, ConnectionResetError())
        if self.waiting:
            self.clock.call_soon(self._deliver)

    def _end(self, end: str, error: Exception | None = None) -> None:
        if self.end is None:
            self.end = RESET if RESET in self.waiting else end  # who has reset it sees no end of ours
            self.clock.call_soon(self._lost, error)

    def _lost(self, error: Exception | None) -> None:
        self.lost = True
        self.protocol.connection_lost(error)


# --- readers of their own ---------------------------------------------------------------------------------------------


@dataclass
class Read:
    """A message as h11 reads it. `whole`: its framing says that nothing is missing."""

    head: Any = None
    content: bytes = b""
    whole: bool = False
    rest: bytes = b""
    error: str = ""

    def field(self, name: bytes) -> list[bytes]:
        """Return the values of a field."""
        return [value for each, value in self.head.headers if each == name]

    @property
    def streams(self) -> bool:
        """Whether it is a response that is a stream."""
        kinds = () if self.head is None else self.field(b"content-type")
        return any(each.startswith((b"text/event-stream", b"application/x-ndjson")) for each in kinds)


def read(connection: h11.Connection, octets: bytes, *, ended: bool) -> Read:
    """Return one message; `ended` when its connection ends cleanly behind `octets`."""
    found = Read()
    try:
        connection.receive_data(octets)
        if ended and octets:
            connection.receive_data(b"")
        while True:
            event = connection.next_event()
            if event in (h11.NEED_DATA, h11.PAUSED) or isinstance(event, h11.ConnectionClosed):
                return found
            if isinstance(event, (h11.Request, h11.Response)):
                found.head = event
            elif isinstance(event, h11.Data):
                found.content += event.data
            elif isinstance(event, h11.EndOfMessage):
                found.whole = True
                found.rest = connection.trailing_data[0]
                return found
    except h11.RemoteProtocolError as error:
        found.error = str(error) or "?"
        return found


def read_request(octets: bytes) -> Read:
    """Return what a strict server reads."""
    return read(h11.Connection(h11.SERVER, max_incomplete_event_size=2**20), octets, ended=False)


def read_response(octets: bytes, *, ended: bool, method: str = "GET") -> Read:
    """Return what a strict client reads."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=2**20)
    connection.send(h11.Request(method=method, target="/", headers=[("Host", "mac")]))
    connection.send(h11.EndOfMessage())
    return read(connection, octets, ended=ended)


# --- the two sides ----------------------------------------------------------------------------------------------------


@dataclass
class Asked:
    """A request that a client has written, if not sent yet. Its token stands in each part of it and of its answer."""

    token: str
    method: str
    target: str
    content: bytes
    octets: bytes  # as on the wire
    hostile: bool = False  # bytes that nobody may take for a request, or for how many


@dataclass
class Client:
    """A client: `pending` is what it has written and not sent."""

    link: Link
    asked: list[Asked] = field(default_factory=list)
    pending: bytes = b""
    sent: int = 0
    left: str | None = None


@dataclass
class Served:
    """One connection as Ollama has it."""

    link: Link
    seen: int = 0  # bytes of requests that are read and answered
    whole_at: int = 0  # bytes by the end of the request under way
    request: Read | None = None  # the one under way, from its head on
    token: str | None = None
    answer: bytes | None = None  # what is sent of the answer to it
    pending: bytes = b""
    end: str | None = None  # how it ends behind `pending`
    ended: str | None = None

    def look(self, world: World) -> None:
        """Read what has come."""
        if not world.judges:
            return
        if self.request is not None and self.request.whole and len(self.link.taken) > self.whole_at:
            assert self.answer, "a request before any answer to the one before"
            # The gateway calls that answer whole; what Ollama still had to say would be no answer to this one.
            self.seen, self.pending, self.end = self.whole_at, b"", None
            self.request = self.token = self.answer = None
        octets = bytes(self.link.taken[self.seen :])
        if not octets or (self.request is not None and self.request.whole):
            return
        found = self.request = read_request(octets)
        assert not found.error, f"Ollama got no HTTP: {found.error}"
        assert not found.rest, "a request before any answer to the one before"
        self.whole_at = self.seen + len(octets)
        if found.head is not None:
            self.token = world.judge(found)
            before = world.sent_up.setdefault(self.token, self)
            if before is not self:  # sent again: only what a stale connection, one that had been idle, never answered
                assert before.link.protocol.idle_since, "sent again, though the connection was fresh"
                assert not before.answer, "sent again, though there was some of an answer"
                world.sent_up[self.token] = self


class Counted(Gateway):
    """The gateway; it counts the exchanges that it opens."""

    opened = 0

    async def serve(self, *args: Any) -> Any:
        self.opened += 1
        return await super().serve(*args)

    def unparsable(self, *args: Any) -> None:
        self.opened += 1
        super().unparsable(*args)


class Desk:
    """Where the room asks Ollama: it has two models, and room for one or both. Loads and lists do what a test says."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.room = 1  # models that fit
        self.loaded: list[str] = []
        self._lists = "well"
        self._hanging: asyncio.Future[None] | None = None
        self.loading: dict[asyncio.Future[Response], str] = {}

    @property
    def lists(self) -> str:
        """How it answers questions: `well`, `refused`, `garbled`, `never`."""
        return self._lists

    @lists.setter
    def lists(self, how: str) -> None:
        self._lists = how
        if self._hanging is not None and how != "never":
            self._hanging.set_result(None)
            self._hanging = None

    async def ask(self, method: str, path: str, body: bytes = b"") -> Response:
        """Answer as Ollama does; a load takes until `end_load`."""
        if path in ("/api/status", "/api/show"):
            return await self._said(path, body)
        if method == "GET":
            return await self._list(MODELS if path == "/api/tags" else self.loaded)
        assert not self.loading, "two loads at once"
        load: asyncio.Future[Response] = self.clock.create_future()
        self.loading[load] = json.loads(body)["model"]
        try:
            return await load
        finally:
            del self.loading[load]

    async def _said(self, path: str, body: bytes) -> Response:
        """Answer that the cloud is off, or that a model runs here, if there is one of that name."""
        await self._answers()
        if path == "/api/status":
            return Response(200, b'{"cloud":{"disabled":true}}')
        return Response(200 if json.loads(body)["model"].partition(":")[0] in ("m", "n") else 404, b"{}")

    async def _answers(self) -> None:
        if self.lists == "refused":
            raise Unreachable("no", refused=True)
        while self.lists == "never":
            self._hanging = self._hanging or self.clock.create_future()
            await asyncio.shield(self._hanging)

    async def _list(self, names: Sequence[str]) -> Response:
        await self._answers()
        entries = [{"name": name, "size": 1, "context_length": 64} for name in names]
        return Response(200, b"[]" if self.lists == "garbled" else json.dumps({"models": entries}).encode())

    def end_load(self, how: str) -> None:
        """End the load that is under way: `well`, `badly`, or because Ollama is `gone`."""
        for load, name in tuple(self.loading.items()):
            if how == "gone":
                self.loaded = []
                load.set_exception(ClosedEarly("gone"))
            elif how == "badly":
                load.set_result(Response(500, b'{"error":"out of memory"}'))
            else:
                self.loaded = [*(each for each in self.loaded if each != name), name][-self.room :]
                load.set_result(Response(200, b"{}"))


MODELS = ("m:latest", "n:latest")


class World:
    """All there is. `current` is the one that the gateway's doors to the outside lead to."""

    current: World

    def __init__(self, *, waits: bool = False) -> None:
        """`waits`: exchanges go through a room, which asks `desk`."""
        World.current = self
        self.judges = True
        self.clock = Clock()
        self.busy = False  # Ollama accepts no connection until the test allows it
        self.errors: list[Any] = []
        self.clock.set_exception_handler(lambda _, context: self.errors.append(context))
        self.clients: list[Client] = []
        self.served: list[Served] = []
        self.opening: list[asyncio.Future[Upstream]] = []
        self.asked: dict[str, Asked] = {}
        self.sent_up: dict[str, Served] = {}  # tokens of requests that have reached Ollama, and where
        self.answers: dict[str, tuple[bytes, str | None]] = {}  # token -> bytes, and how the connection ended
        self.lines: list[Record] = []
        self.notes: list[Any] = []
        self.ever_open: set[str] = set()
        self.pool = Pool()
        self.gateway = Counted(
            self.policy(), Target("127.0.0.1", 11434, 5.0), self.lines.append, self._note, pool=self.pool
        )
        self.desk = Desk(self.clock)
        self.room = Room(self.desk, Rules(parallel=1, max_waiting=4)) if waits else None  # type: ignore[arg-type]
        self.gateway.room = self.room
        if self.room is not None:
            self.room.watch = Watch(lambda *_, **__: None, _sampled)

        async def make() -> Clients:
            return Clients(self.gateway, LIMITS)

        self.door = self.clock.run_until_complete(make())

    def _note(self, *what: Any, **fields: Any) -> None:
        self.notes.append((what, fields))

    def policy(self, *rows: str) -> Policy:
        """Return a policy with these rows open."""
        self.ever_open |= set(rows)
        return Policy.of(allow=rows, max_body=LIMITS.max_body)

    def do(self, step: Any, *args: Any) -> None:
        """Do one thing on the loop, and all that comes of it."""
        self.clock.call_soon(step, *args)
        self.settle()

    def settle(self) -> None:
        """Let everything happen that happens without us, and look at what has come."""
        self.clock.settle()
        assert not self.errors, self.errors
        assert not self.notes, self.notes
        for served in self.served:
            served.look(self)
        for client in self.clients if self.room is not None else ():
            assert len(PING.findall(client.link.out)) <= 1, "two pings are unsent"

    def connect(self) -> None:
        """Let a client connect."""
        peer = (f"127.0.0.{1 + len(self.clients) % 2}", 10_000 + len(self.clients))
        self.do(lambda: self.clients.append(Client(Link(self.clock, self.door(), peer))))

    async def open(self) -> Upstream:
        """Open a connection to Ollama, when it takes one; stands in for `upstream.connect`."""
        waiting = self.clock.create_future()
        self.opening.append(waiting)
        if not self.busy:
            self.clock.call_soon(self.accept)
        return await waiting

    def accept(self) -> None:
        """Let Ollama take the connection that has waited longest."""
        if not self.opening:
            return
        waiting = self.opening.pop(0)
        protocol = Upstream()
        self.served.append(Served(Link(self.clock, protocol)))
        waiting.set_result(protocol)

    def refuse(self, refused: bool) -> None:
        """Let it take none."""
        self.opening.pop(0).set_exception(Unreachable("no", refused=refused))

    def judge(self, request: Read) -> str:
        """Hold a request that has reached Ollama against what was asked; return its token."""
        (token,) = [value.decode() for value in request.field(b"x-request-id")] or ["?"]
        assert token in self.asked, f"nobody asked: {request.head}"
        asked = self.asked[token]
        method, target = request.head.method.decode(), request.head.target.decode()
        assert (method, target) == (asked.method, asked.target)
        row = f"{method} {target}"
        assert row in TABLE or row in self.ever_open, f"off the table: {row}"
        assert request.field(b"host") == [AUTHORITY]
        assert not request.field(b"authorization")
        if request.whole:
            assert request.content == asked.content
        else:
            assert asked.content.startswith(request.content)
        return token

    def push(self, served: Served, count: int) -> None:
        """Send so many bytes of an answer, and the end behind them if it was to come."""
        if not served.pending:
            return
        octets, served.pending = served.pending[:count], served.pending[count:]
        served.answer = (served.answer or b"") + octets
        token, end = str(served.token), served.end
        self.answers[token] = (served.answer, None)
        if not served.link.lost:
            self.do(served.link.send, octets)
        if not served.pending and end and served.token == token:
            self.hang_up(served, end)

    def hang_up(self, served: Served, how: str) -> None:
        """End a connection from Ollama's side."""
        served.end, served.ended, served.pending = None, how, b""
        if served.token is not None:
            self.answers[served.token] = (served.answer or b"", how)
        self.do(served.link.send, how)

    def pass_time(self, seconds: float) -> None:
        """Turn the clock and the wheel."""
        self.clock.now += seconds
        self.do(self._tick)

    def _tick(self) -> None:
        self.door.tick(self.clock.now)
        self.gateway.tick(self.clock.now)

    def line(self, token: str) -> Record | None:
        """Return the one audit line of a request."""
        (found,) = [each for each in self.lines if each.id == token] or [None]
        return found

    # what must hold in the end

    def close(self) -> None:
        """End everything, and see that nothing is left."""
        there = [client for client in self.clients if client.left is None]
        for client in there:
            if not client.link.lost:
                self.do(client.link.take, True)
        self.busy = False
        while self.opening:
            self.do(self.accept)
        for client in there:
            if not client.link.lost:
                self.do(client.link.send, RESET)
        for seconds in (0.1, 1, 10):
            self.pass_time(seconds)
        self.clock.create_task(self.door.drain(0))
        for _ in range(5):
            self.settle()
            self.pass_time(2)
        self.do(self.gateway.close)
        self.settle()
        self.close_room(self.room)
        assert repr(self.door) == "<Clients 0 connected, 0 turned away, by client {}>"
        assert all(client.link.lost for client in self.clients)
        assert [served for served in self.served if not served.link.lost] == []
        assert not len(self.pool)
        assert [task for task in asyncio.all_tasks(self.clock) if not task.done()] == []
        assert [timer for timer in self.clock._scheduled if not timer._cancelled] == []  # type: ignore[attr-defined]
        assert len(self.lines) == self.gateway.opened == len({id(line) for line in self.lines})
        assert all(line.ended is not None for line in self.lines)
        for token in self.sent_up:
            assert self.line(token) is not None, "a request without a line"
        for client in self.clients:
            self.judge_client(client)
        self.clock.close()

    def abandon(self) -> None:
        """End everything after a failure without judging it again, so that none of it ends within the next world."""
        self.judges = False
        with suppress(AssertionError):
            self.close()

    def close_room(self, room: Room | None) -> None:
        """End what the room asks for, and see that nobody is left in it."""
        if room is None:
            return
        assert room.watch is not None
        for closing in (room.loads.close, room.watch.close):
            self.do(self.clock.create_task, closing())
        shown = room.snapshot()
        assert (shown.exchanges, shown.held) == ((), 0)
        assert not any(each.waiting or each.sent for each in shown.models)

    def judge_client(self, client: Client) -> None:
        """Hold all that a client got against what it asked and what Ollama said."""
        octets, end = bytes(client.link.taken), client.link.end
        ended = end == FIN or client.link.eof_written
        for asked in client.asked:
            if asked.hostile or not octets:
                break
            got = read_response(octets, ended=ended, method=asked.method)
            if got.head is None:
                assert not got.error, f"the client got no HTTP: {got.error}"
                return
            self.judge_answer(asked, got)
            if not got.whole:
                return
            octets = got.rest
        else:
            assert not octets, "more answers than requests"
        own = {asked.token for asked in client.asked}
        for token in self.asked.keys() - own:
            assert token.encode() not in octets, "octets of another exchange"

    def judge_answer(self, asked: Asked, got: Read) -> None:
        """Hold one answer against what Ollama said to that request, and the audit against both."""
        line = self.line(asked.token)
        for token in self.asked.keys() - {asked.token}:
            assert token.encode() not in got.content, "octets of another exchange"
        if line is None:  # an answer to what made no request, such as a head that came too late
            assert got.head.status_code in (400, 408, 503)
            return
        assert got.field(b"x-request-id") == [asked.token.encode()]
        assert line.status == got.head.status_code
        said, how = self.answers.get(asked.token, (b"", None))
        reported = read_response(said, ended=how == FIN, method=asked.method)
        relayed = isinstance(line.verdict, Route) and line.phase.value in ("content", "done") and line.status != 502
        got.content = without_pings(got.content)
        streams = reported.streams and reported.head.status_code == 200
        if self.room is not None and got.head.status_code == 200 and got.streams and not (relayed and streams):
            # It got its head while it waited, and what came then is no stream.
            assert not got.content or is_error_event(got.content)
            assert relayed or not got.whole
            return
        if not relayed:
            assert got.head.status_code >= 308
            return
        if got.whole:
            assert reported.whole, f"not whole, and looks so: {reported.error}"
            assert got.content == reported.content
            assert line.ended_by is None
        if line.ended_by is None:
            left_with_all = reported.streams and any(mark in reported.content for mark in TERMINATORS)
            assert reported.whole or left_with_all
            assert line.response_octets == len(reported.content)
        if got.whole and reported.streams and line.verdict.dialect is not None and got.head.status_code == 200:
            assert any(mark in got.content for mark in TERMINATORS), "a stream without its terminator looks whole"
        if not got.whole and not reported.error:
            assert is_cut(got.content, reported.content), (got.content[-80:], reported.content[-80:])


# By the name of the event, or by the type in its data: one of the two may be garbled.
TERMINATORS = (
    *(b"data: [DONE]", b"event: message_stop\n", b"event: response.completed\n", b"event: response.incomplete\n"),
    *(b'data: {"type":"message_stop"', b'data: {"type":"response.completed"', b'"done":true', b'{"error":'),
)


def is_error_event(octets: bytes) -> bool:
    """Return whether this is one event of the gateway's own."""
    if octets.startswith(b'{"error":"'):
        return octets.count(b"\n") == 1 and octets.endswith(b'"}\n')
    kinds = (b'"api_error"', b'"invalid_request_error"', b'"overloaded_error"', b'"not_found_error"')
    return octets.count(b"\n\n") == 1 and octets.endswith(b"\n\n") and any(kind in octets for kind in kinds)


def is_cut(got: bytes, content: bytes) -> bool:
    """Return whether `got` is a beginning of `content`, with or without an event of the gateway's own at a border."""
    border = b"\n" if got.startswith(b"{") else b"\n\n"
    borders = [0, *(each.end() for each in re.finditer(border, got))]
    events = [at for at in borders if is_error_event(got[at:])]
    return content.startswith(got) or any(content.startswith(got[:at]) for at in events)


PING = re.compile(
    rb'event: ping\ndata: {"type": "ping"}\n\n|: waiting\n\n|event: keepalive\ndata: {[^}]*}\n\n'
    rb'|data: {"id":"chatcmpl-wait",[^\n]*\n\n'
    rb'|{"model":"[mn]","created_at":"[^"]*",(?:"message":{"role":"assistant","content":""}|"response":""),"done":false}\n'
)


def without_pings(octets: bytes) -> bytes:
    """Return a stream as it would be without pings. One is whole, and between two events or before the first one."""
    found = [(each.start(), b"\n" if each[0].startswith(b"{") else b"\n\n") for each in PING.finditer(octets)]
    assert all(not at or octets[:at].endswith(border) for at, border in found), "a ping inside an event"
    end = _END.search(octets)
    assert end is None or all(at < end.start() for at, _ in found), "a ping after the terminator"
    return PING.sub(b"", octets)


_END = re.compile(
    rb'(?:\A|\n\n)(?:data: \[DONE\]\n\n|event: (?:message_stop|response\.completed)\n)|^{"done":true}\n', re.MULTILINE
)


TABLE = {
    "POST /v1/chat/completions",
    "GET /v1/models",
    "POST /v1/responses",
    "POST /v1/messages",
    "GET /api/version",
    "GET /api/tags",
    "POST /api/show",
}


ROOMS_WITH_A_CLOCK = (
    "event_loop.patience",
    "serving.clients",
    "exchange.gateway",
    "exchange.relay",
    "exchange.client.connection",
    "exchange.client.client_socket",
    "exchange.message.exchange",
    "exchange.upstream.pool",
    "exchange.upstream.upstream",
    "exchange.waiting.loads",
    "exchange.waiting.room",
)


async def _sampled() -> dict[int, float]:
    """Return what Ollama's processes have used, which is nothing."""
    return {1: 0.0}


async def _open(*_: object) -> Upstream:
    return await World.current.open()


def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lead the gateway's doors to the outside to the current world: sockets, connecting, the time."""
    for room in ROOMS_WITH_A_CLOCK:
        monkeypatch.setattr(f"proxy.{room}.monotonic", lambda: World.current.clock.now)
    monkeypatch.setattr("proxy.exchange.upstream.pool.connect", _open)
    monkeypatch.setattr("proxy.event_loop.sockets.watch", lambda link: link)
    monkeypatch.setattr("proxy.event_loop.sockets.unacknowledged", lambda _: 0)
    monkeypatch.setattr("proxy.event_loop.sockets.was_reset", lambda link: RESET in link.waiting)
    monkeypatch.setattr("proxy.event_loop.sockets.reset", lambda link: link.abort(RESET))
