"""What the gateway decides about one exchange: how each failure ends, and what its own answers and its log say."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import pytest

from proxy.exchange import gateway
from proxy.exchange.message.exchange import Party
from proxy.exchange.message.failures import ClosedEarly, Malformed, OutOfFiles, Unreachable, UpstreamFailure
from proxy.exchange.streams import Events
from proxy.policy import refusals
from proxy.policy.identity import Standing
from proxy.policy.refusals import Reason
from proxy.tailnet.device import Who
from tests.support.one_exchange import DATE, Alone
from tests.support.raw_http import LAST_CHUNK, chunk, ok, stream_head

if TYPE_CHECKING:
    from proxy.policy.gate import Verdict
    from proxy.policy.refusals import Refusal

PAGE = b"http://localhost:3000"
EVENT = chunk(b'data: {"model":"m"}\n\n')
DONE = chunk(b"data: [DONE]\n\n")


# --- every way to fail ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "party", "refusal"),
    [
        pytest.param(Unreachable("", refused=True), Party.UPSTREAM, refusals.UPSTREAM_UNREACHABLE, id="refused"),
        pytest.param(Unreachable("", refused=False), Party.UPSTREAM, refusals.UPSTREAM_TIMEOUT, id="no_connection"),
        pytest.param(Malformed(), Party.UPSTREAM, refusals.UPSTREAM_MALFORMED, id="malformed"),
        pytest.param(ClosedEarly(), Party.UPSTREAM, refusals.UPSTREAM_CLOSED, id="closed_early"),
        pytest.param(UpstreamFailure(), Party.UPSTREAM, refusals.UPSTREAM_CLOSED, id="any_other"),
        pytest.param(OutOfFiles(), Party.PROXY, refusals.OUT_OF_FILES, id="out_of_files"),
        pytest.param(asyncio.CancelledError(), Party.PROXY, refusals.DRAINING, id="cancelled"),
        pytest.param(asyncio.CancelledError("why"), Party.PROXY, refusals.DRAINING, id="cancelled_for_another_reason"),
        pytest.param(ZeroDivisionError(), Party.PROXY, refusals.INTERNAL, id="mistake"),
    ],
)
async def test_failure_before_the_answer(
    monkeypatch: pytest.MonkeyPatch, failure: BaseException, party: Party, refusal: Refusal
) -> None:
    """Each failure has one answer, and its line says the same: the status, whose fault it is, and the reason."""
    alone = Alone(monkeypatch)

    async def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(alone.pool, "open", fail)
    await alone.begin(b"{}")
    ending, record = await alone.end()
    assert (record.status, record.ended_by, record.reason) == (refusal.status, party, refusal.reason)
    assert alone.client.written.startswith(b"HTTP/1.1 %d " % refusal.status)
    assert refusal.message.encode() in alone.client.content
    assert ending == ("CLOSE" if refusal.closes else "KEEP")
    assert (record.response_octets, record.first_octet is not None) == (len(alone.client.content), True)


async def test_stale_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A POST that was lost with a stale connection is answered so that an SDK sends it again."""
    alone = Alone(monkeypatch)
    connection, _ = alone.kept()
    connection.octets_in = 0
    await alone.begin(b"{}")
    connection.connection_lost(None)
    _, record = await alone.end()
    assert (record.status, record.ended_by, record.reason) == (502, Party.UPSTREAM, "upstream_closed")
    assert refusals.UPSTREAM_STALE.message.encode() in alone.client.content
    assert alone.client.lines(b"x-should-retry") == []


async def test_stream_without_its_terminator(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that ends properly, but without its terminator, is Ollama's fault, and is cut."""
    alone = Alone(monkeypatch)
    await alone.begin(b"{}")
    connection, _ = await alone.connected()
    connection.data_received(stream_head() + EVENT + LAST_CHUNK)
    ending, record = await alone.end()
    assert (ending, record.status) == ("CUT", 200)
    assert (record.ended_by, record.reason) == (Party.UPSTREAM, "missing_terminator")
    assert not alone.client.written.endswith(LAST_CHUNK)


@pytest.mark.parametrize(
    ("version", "persistent", "sent", "blocked", "refusal", "expected"),
    [
        pytest.param((1, 1), True, b"", False, None, ("LEFT", None, Party.DOWNSTREAM), id="left_before_the_answer"),
        pytest.param((1, 1), True, EVENT, False, None, ("LEFT", 200, Party.DOWNSTREAM), id="left_within"),
        pytest.param((1, 1), True, EVENT + DONE, False, None, ("LEFT", 200, None), id="left_with_the_terminator"),
        pytest.param(
            (1, 1), True, EVENT + DONE, True, None, ("LEFT", 200, Party.DOWNSTREAM), id="left_without_reading_it"
        ),
        pytest.param((1, 1), True, b"", False, refusals.INTERNAL, ("KEEP", 500, Party.PROXY), id="stopped_before"),
        pytest.param((1, 1), False, b"", False, refusals.INTERNAL, ("CLOSE", 500, Party.PROXY), id="stopped_last"),
        pytest.param((1, 1), True, b"", False, refusals.DRAINING, ("CLOSE", 503, Party.PROXY), id="stopped_closing"),
        pytest.param((1, 1), True, EVENT, False, refusals.DRAINING, ("CUT", 200, Party.PROXY), id="stopped_within"),
        pytest.param(
            (1, 0), True, EVENT, False, refusals.DRAINING, ("RESET", 200, Party.PROXY), id="stopped_within_1.0"
        ),
    ],
)
async def test_stopped(
    monkeypatch: pytest.MonkeyPatch,
    version: tuple[int, int],
    persistent: bool,
    sent: bytes,
    blocked: bool,
    refusal: Refusal | None,
    expected: tuple[str, int | None, Party | None],
) -> None:
    """An exchange that is stopped is complete if nothing was missing, and otherwise ends so that the client sees it."""
    alone = Alone(monkeypatch, version=version, persistent=persistent)
    await alone.begin(b"{}")
    connection, _ = await alone.connected()
    alone.client.blocked = blocked
    party = Party.DOWNSTREAM if refusal is None else Party.PROXY
    if sent:
        connection.data_received(stream_head() + sent)
    alone.stop(party, None if refusal is None else refusal.reason, refusal)
    ending, record = await alone.end()
    assert (ending, record.status, record.ended_by) == expected
    reason = None if refusal is None or record.ended_by is None else refusal.reason
    assert record.reason == reason
    farewell = b"data: " + b'{"error":{"message":' in alone.client.content
    assert farewell is (ending == "CUT")


@pytest.mark.parametrize("persistent", [True, False])
async def test_mistake_after_the_answer(monkeypatch: pytest.MonkeyPatch, persistent: bool) -> None:
    """A mistake after the last byte of an answer changes nothing about the answer, and the log has its traceback."""

    def mistake(*_: object) -> None:
        raise ZeroDivisionError

    alone = Alone(monkeypatch, persistent=persistent)
    monkeypatch.setattr(alone.pool, "put", mistake)
    await alone.begin(b"{}")
    connection, _ = await alone.connected()
    connection.data_received(ok())
    ending, record = await alone.end()
    assert (ending, record.status) == ("KEEP" if persistent else "CLOSE", 200)
    assert (record.ended_by, record.reason) == (None, None)
    assert alone.notes == [("internal", {"exc_info": True})]


@pytest.mark.parametrize(("sent", "status"), [(b"", None), (EVENT, 200)], ids=["before_the_answer", "within_it"])
async def test_stopped_where_nobody_listens(monkeypatch: pytest.MonkeyPatch, sent: bytes, status: int | None) -> None:
    """An exchange that ends because the client takes nothing has its reason in its line, and writes nothing more."""
    alone = Alone(monkeypatch)
    await alone.begin(b"{}")
    connection, _ = await alone.connected()
    if sent:
        connection.data_received(stream_head() + sent)
    before = alone.client.written
    alone.stop(Party.PROXY, Reason.STALLED)
    ending, record = await alone.end()
    assert (ending, record.status, record.ended_by, record.reason) == ("LEFT", status, Party.PROXY, "stalled")
    assert alone.client.written == before


async def test_broken_off_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exchange that is dropped without a reason, as at the end of the program, has its line all the same."""
    alone = Alone(monkeypatch)
    serving = alone.gateway.serve(alone.client, alone.request, 0.0)  # type: ignore[arg-type]
    serving.send(None)
    serving.close()
    (record,) = alone.records
    assert (record.status, record.ended_by, record.reason) == (None, Party.PROXY, "internal")
    assert (record.phase, alone.client.written) == ("connect", b"")


async def test_mistake_in_reading_an_answer_that_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason of a cut stands, even if the proxy also failed to read the answer."""

    def mistake(*_: object) -> None:
        raise ZeroDivisionError

    alone = Alone(monkeypatch)
    monkeypatch.setattr(Events, "feed", mistake)
    await alone.begin(b"{}")
    connection, _ = await alone.connected()
    connection.data_received(stream_head() + EVENT)
    alone.stop(Party.PROXY, Reason.DRAINING, refusals.DRAINING)
    ending, record = await alone.end()
    assert (ending, record.ended_by, record.reason) == ("CUT", Party.PROXY, "draining")


# --- answers of the proxy's own ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("persistent", [True, False], ids=["persistent", "last"])
@pytest.mark.parametrize("version", [(1, 1), (1, 0)], ids=["1.1", "1.0"])
@pytest.mark.parametrize(
    ("method", "path", "fields", "status"),
    [
        pytest.param("GET", "/api/pull", {}, 403, id="refusal"),
        pytest.param("HEAD", "/api/pull", {}, 403, id="refusal_of_head"),
        pytest.param("GET", "/v1/messages", {}, 405, id="refusal_to_anthropic"),
        pytest.param("GET", "/api/pull", {b"Origin": PAGE}, 403, id="refusal_to_a_page"),
        pytest.param("OPTIONS", "/x", {b"Origin": PAGE, b"Access-Control-Request-Method": b"GET"}, 204, id="preflight"),
    ],
)
async def test_own_answer(
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    path: str,
    fields: dict[bytes, bytes],
    status: int,
    version: tuple[int, int],
    persistent: bool,
) -> None:
    """An answer of the proxy's own names its id, date and Origin, and says what the request's version needs."""
    alone = Alone(monkeypatch, method=method, path=path, version=version, fields=fields, persistent=persistent)
    await alone.begin(b"")
    ending, record = await alone.end()
    client = alone.client
    assert (record.status, client.written.startswith(b"HTTP/1.1 %d " % status)) == (status, True)
    said = ([] if version == (1, 1) else [b"keep-alive"]) if persistent else [b"close"]
    assert (ending, client.lines(b"connection")) == ("KEEP" if persistent else "CLOSE", said)
    assert (client.lines(b"date"), client.lines(b"x-request-id")) == ([DATE], [record.id.encode()])
    assert client.lines(b"request-id") == ([record.id.encode()] if path == "/v1/messages" else [])
    assert client.lines(b"access-control-allow-origin") == ([PAGE] if fields else [])
    assert bool(client.content) is (method == "GET")
    assert record.response_octets == len(client.content)
    assert record.first_octet is not None


async def test_answer_that_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal that leaves the framing in doubt ends the connection, though the client would keep it."""
    alone = Alone(monkeypatch, fields={b"Content-Length ": b"5", b"Transfer-Encoding": b"chunked"})
    await alone.begin(b"")
    ending, record = await alone.end()
    assert (ending, record.status, alone.client.lines(b"connection")) == ("CLOSE", 400, [b"close"])


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        pytest.param(None, False, id="none"),
        pytest.param(b"mine-1.~", True, id="plain"),
        pytest.param(b"x" * 128, True, id="longest"),
        pytest.param(b"x" * 129, False, id="too_long"),
        pytest.param(b"a b", False, id="a_space"),
    ],
)
async def test_record_of_a_request(monkeypatch: pytest.MonkeyPatch, asked: bytes | None, kept: bool) -> None:
    """The line has the request, its peer, its time, and the client's id if any log can carry that, else one of ours."""
    alone = Alone(monkeypatch, method="GET", fields={} if asked is None else {b"X-Request-Id": asked})
    await alone.begin(b"")
    connection, _ = await alone.connected()
    connection.data_received(ok())
    _, record = await alone.end()
    assert (record.peer, record.peer_port, record.arrived, record.head) == ("127.0.0.1", 1, 0.0, alone.request.head)
    assert (record.id.encode() == asked) is kept
    assert kept or re.fullmatch("[0-9a-f]{10}000001", record.id)


async def test_port_for_serve_is_closed_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is known that `tailscale serve` identifies devices, nothing is served through it."""
    alone = Alone(monkeypatch, fields={b"X-Forwarded-For": b"100.64.0.7"})
    alone.client.by_serve = True
    await alone.begin(b"{}")
    ending, record = await alone.end()
    assert (ending, record.status, record.reason) == ("CLOSE", 503, None)
    assert (record.verdict, alone.connects) == (refusals.SERVE_CLOSED, 0)


# --- the diagnostics log ----------------------------------------------------------------------------------------------


async def test_mistake_has_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake of the proxy's own in an exchange goes to the log with its traceback."""
    alone = Alone(monkeypatch)
    await alone.begin(b"{}")
    alone.waiting.set_exception(ZeroDivisionError())
    await alone.end()
    assert alone.notes == [("internal", {"exc_info": True})]


async def test_mistake_in_judging(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that can't be judged doesn't pass, and the log has the traceback."""

    def mistake(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(gateway, "decide", mistake)
    alone = Alone(monkeypatch)
    await alone.begin(b"{}")
    ending, record = await alone.end()
    assert (ending, record.status, record.verdict) == ("KEEP", 500, refusals.INTERNAL)
    assert (alone.notes, alone.connects) == ([("internal", {"exc_info": True})], 0)


async def test_used_up_descriptors_are_reported_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log reports used-up descriptors once, and after a minute again; other failures never."""
    alone = Alone(monkeypatch)
    now, failure = 0.0, UpstreamFailure("")

    async def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(alone.pool, "open", fail)
    monkeypatch.setattr(gateway, "monotonic", lambda: now)
    noted = []
    for now, failure in (  # noqa: B007 - `fail` and the clock read them
        (0.0, UpstreamFailure("")),
        (0.0, OutOfFiles("")),
        (59.9, OutOfFiles("")),
        (60.0, OutOfFiles("")),
        (119.9, OutOfFiles("")),
    ):
        await alone.gateway.serve(alone.client, alone.request, 0.0)  # type: ignore[arg-type]
        noted.append([event for event, _ in alone.notes])
        hints = [facts["hint"] for _, facts in alone.notes]
        assert all(re.match("raise `ulimit -n`, or NumberOfFiles .* lsof -p PID$", hint) for hint in hints)
        alone.notes.clear()
    assert noted == [[], ["descriptors_used_up"], [], ["descriptors_used_up"], []]


# --- whoever looks on -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/models", "/api/pull"], ids=["relayed", "refused"])
async def test_machine_stays_awake(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """The machine is kept awake from the moment that a request passes, and let go at the end with the same verdict."""

    class Awake:
        def __init__(self) -> None:
            self.begun: list[Verdict] = []
            self.over: list[Verdict | None] = []

        def begin(self, verdict: Verdict) -> None:
            self.begun.append(verdict)

        def end(self, verdict: Verdict | None) -> None:
            self.over.append(verdict)

    alone = Alone(monkeypatch, method="GET", path=path)
    awake = Awake()
    alone.gateway.awake = awake  # type: ignore[assignment]
    await alone.begin(b"")
    if path == "/v1/models":
        connection, _ = await alone.connected()
        connection.data_received(ok())
    _, record = await alone.end()
    assert awake.begun == ([record.verdict] if path == "/v1/models" else [])
    assert awake.over == [record.verdict]


class Known:
    """Who is known already."""

    def __init__(self, who: Who | None) -> None:
        self.who = who
        self.expected: list[tuple[str, int]] = []

    def known(self, ip: str, port: int) -> Standing | None:
        """Return what is known about the one peer."""
        return Standing(self.who) if self.who is not None and (ip, port) == ("127.0.0.1", 1) else None

    def expect(self, ip: str, port: int) -> None:
        """Note a peer to come."""
        self.expected.append((ip, port))


def knowing(alone: Alone, who: Who | None) -> gateway.Gateway:
    """Return the gateway of `alone`, to which every peer is `who`."""
    own = alone.gateway
    return gateway.Gateway(own.policy, own.target, alone.records.append, own.note, Known(who))  # type: ignore[arg-type]


@pytest.mark.parametrize("who", [None, Who("laptop", "alice@example.com")], ids=["nobody", "a_device"])
@pytest.mark.parametrize(
    ("refusal", "party", "status", "notes"),
    [
        pytest.param(refusals.MALFORMED, Party.PROXY, 400, [], id="malformed"),
        pytest.param(refusals.MALFORMED, Party.DOWNSTREAM, None, [], id="left"),
        pytest.param(refusals.PEER_NOT_ALLOWED, Party.PROXY, None, [], id="stranger"),
        pytest.param(
            refusals.TLS,
            Party.PROXY,
            400,
            [
                (
                    "tls_on_plain_port",
                    {"peer": "127.0.0.1", "hint": "use http:// instead of https:// in that client"},
                )
            ],
            id="tls",
        ),
    ],
)
async def test_bytes_that_are_no_request(
    monkeypatch: pytest.MonkeyPatch,
    refusal: Refusal,
    party: Party,
    status: int | None,
    notes: list[tuple[str, dict[str, Any]]],
    who: Who | None,
) -> None:
    """Bytes that made no request have a line with all that is known, and an answer that closes where one is due."""
    alone = Alone(monkeypatch)
    server = knowing(alone, who)
    server.unparsable(alone.client, refusal, 7.0, party)  # type: ignore[arg-type]
    (record,) = alone.records
    assert (record.peer, record.peer_port, record.arrived, record.head) == ("127.0.0.1", 1, 7.0, None)
    assert (record.verdict, record.status, record.ended_by, record.who) == (refusal, status, party, who)
    assert alone.notes == notes
    if status is None:
        assert alone.client.written == b""
    else:
        assert alone.client.written.startswith(b"HTTP/1.1 400 ")
        assert (alone.client.lines(b"connection"), alone.client.lines(b"date")) == ([b"close"], [DATE])
        assert alone.client.lines(b"x-request-id") == [record.id.encode()]
        assert record.response_octets == len(alone.client.content)


async def test_known_peer_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request of a peer that is known already doesn't wait for Tailscale, and its line has the name."""
    alone, who = Alone(monkeypatch, method="GET", path="/api/pull"), Who("laptop", "alice@example.com")
    server = knowing(alone, who)
    await server.serve(alone.client, alone.request, 0.0)  # type: ignore[arg-type]
    (record,) = alone.records
    assert (record.who, record.status, alone.notes) == (who, 403, [])


async def test_idle_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tick closes the connections to Ollama that are too old at its time, and `close` closes the rest."""
    alone = Alone(monkeypatch)
    _, line = alone.kept()
    alone.gateway.tick(60.0)
    assert not line.gone
    alone.gateway.tick(60.1)
    assert line.gone
    _, line = alone.kept()
    alone.gateway.close()
    assert line.gone
