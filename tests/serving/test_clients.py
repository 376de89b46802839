"""Which connections are let in, how many, and what those learn that are not."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from proxy.serving.clients import REFUSED_AT_ONCE, Clients
from tests.support.raw_http import HANG, LIMITS, ok, until

if TYPE_CHECKING:
    from proxy.exchange.message.exchange import Party
    from proxy.policy.refusals import Refusal
    from tests.support.raw_http import Proxy, Upstream, Wire

GET = b"GET /api/version HTTP/1.1\r\nHost: mac\r\n\r\n"


NOBODY = "<Clients 0 connected, 0 turned away, by client {}>"


# --- on the wire ------------------------------------------------------------------------------------------------------


async def test_one_too_many(gateway: Proxy, upstream: Upstream) -> None:
    """Over `max_connections` a connection gets a 503 before it says a word, a line, and its end."""
    gateway.limit(max_connections=2)
    upstream.answers(ok())
    first, second = await gateway.connect(), await gateway.connect()
    await until(lambda: len(gateway.clients.connections) == 2)
    third = await gateway.connect()
    answer = await third.answer()
    assert (answer.status, answer.fields["retry-after"], answer.fields["connection"]) == (503, "1", "close")
    assert b"`max_connections`" in answer.content
    assert await third.read() == b""
    assert [(line["reason"], line["ended"]) for line in gateway.audit] == [("overloaded", "proxy/head")]
    for wire in (first, second):
        await wire.send(GET)
        assert (await wire.answer()).status == 200


async def test_place_is_free_again(gateway: Proxy, upstream: Upstream) -> None:
    """A connection that is gone, however it went, takes no place."""
    gateway.limit(max_connections=1, max_connections_per_client=1)
    upstream.answers(ok())
    for reset in (False, True, False):
        wire = await gateway.connect()
        await wire.send(GET)
        assert (await wire.answer()).status == 200
        wire.close(reset=reset)
        await until(lambda: not gateway.clients.connections)
    assert repr(gateway.clients) == NOBODY


async def test_turned_away_client_that_stays(gateway: Proxy) -> None:
    """A client that gets 503 and stays is cut after a while, and takes no place meanwhile."""
    gateway.limit(max_connections=0)
    wire = await gateway.connect()
    await wire.answer()
    await wire.send(GET)
    assert not gateway.clients.connections
    gateway.pass_time(6)
    await until(lambda: repr(gateway.clients) == NOBODY)
    assert len(gateway.audit) == 1


async def test_stranger_is_closed_without_a_word(gateway: Proxy) -> None:
    """A foreign peer gets no byte, but a line: the port looks dead from outside, not in the log."""
    asked = []

    def nobody(peer: str, peer_port: int, local: str) -> bool:
        asked.append((peer, local))
        return False

    gateway.gateway.peer_allowed = nobody  # type: ignore[method-assign]
    wire = await gateway.connect()
    assert await wire.read_until_closed() == b""
    (line,) = await gateway.lines()
    assert asked == [("127.0.0.1", "127.0.0.1")]
    assert (line["peer"], line["verdict"], line["reason"]) == ("127.0.0.1", "refused", "peer_not_allowed")
    assert "status" not in line
    assert line["bytes_out"] == 0
    await until(lambda: not gateway.clients.connections)


async def test_date(gateway: Proxy, wire: Wire) -> None:
    """Our own answers carry the date of the last tick (RFC 9110, 6.6.1)."""
    gateway.clients.date = b"Thu, 01 Jan 1970 00:00:00 GMT"
    await wire.request("GET", "/api/ps")
    assert (await wire.answer()).fields["date"] == "Thu, 01 Jan 1970 00:00:00 GMT"
    gateway.pass_time(0)
    await wire.request("GET", "/api/ps")
    assert "1970" not in (await wire.answer()).fields["date"]


async def test_exchange_under_way_counts(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """A client that leaves within an exchange frees its place too."""
    upstream.answers(HANG)
    await wire.send(GET)
    await asyncio.wait_for(upstream.arrived.wait(), 5)
    wire.close()
    await until(lambda: not gateway.clients.connections)
    assert repr(gateway.clients) == NOBODY


# --- by itself --------------------------------------------------------------------------------------------------------


class Judge:
    """A gateway that accepts every peer and records which ones it rejects."""

    def __init__(self) -> None:
        self.noted: list[tuple[str, str]] = []

    def serve(self, *_: object) -> None:
        """Serve nobody."""

    async def refused_peer(self, client: Visitor) -> None:
        """Refuse nobody."""

    def peer_allowed(self, peer: str, peer_port: int, local: str) -> bool:
        """Know strangers by their name."""
        return not peer.startswith("stranger")

    def unparsable(self, client: Visitor, refusal: Refusal, arrived: float, party: Party) -> None:
        """Note."""
        self.noted.append((client.peer, refusal.reason))


class Visitor:
    """A connection that notes what becomes of it."""

    def __init__(self, clients: Clients, peer: str) -> None:
        self.peer, self.peer_port = peer, 50000
        self.told: Refusal | None = None
        self.was_cut = False
        clients.admit(self, "127.0.0.1")  # type: ignore[arg-type]

    def refuse_unparsable(self, refusal: Refusal) -> None:
        """Note the rejection."""
        self.told = refusal

    def cut(self, *, reset: bool) -> None:
        """Be cut."""
        self.was_cut = True


@pytest.fixture
def judge() -> Judge:
    """Give a gateway of our own."""
    return Judge()


async def test_share_of_one_client(judge: Judge) -> None:
    """No client may have more than its share, whatever is free; others may have theirs."""
    clients = Clients(judge, replace(LIMITS, max_connections_per_client=2))  # type: ignore[arg-type]
    visitors = [Visitor(clients, peer) for peer in ("one", "one", "one", "two")]
    assert [visitor.told and visitor.told.status for visitor in visitors] == [None, None, 503, None]
    assert "`max_connections_per_client`" in str(visitors[2].told)
    clients.forget(visitors[2])  # type: ignore[arg-type]
    assert Visitor(clients, "one").told is not None
    clients.forget(visitors[0])  # type: ignore[arg-type]
    assert Visitor(clients, "one").told is None
    assert repr(clients).endswith("by client {'one': 2, 'two': 1}>")


async def test_no_share(judge: Judge) -> None:
    """A share of 0 is none: one client may have all there are."""
    clients = Clients(judge, replace(LIMITS, max_connections=50))  # type: ignore[arg-type]
    assert [Visitor(clients, "one").told is None for _ in range(51)] == [*50 * [True], False]


async def test_telling_has_a_limit(judge: Judge) -> None:
    """In a flood of connections most are dropped silently, because a response would cost what they are refused for."""
    clients = Clients(judge, replace(LIMITS, max_connections=0))  # type: ignore[arg-type]
    visitors = [Visitor(clients, "one") for _ in range(REFUSED_AT_ONCE + 2)]
    assert [visitor.told is not None for visitor in visitors] == [*REFUSED_AT_ONCE * [True], False, False]
    assert [visitor.was_cut for visitor in visitors] == [*REFUSED_AT_ONCE * [False], True, True]
    assert judge.noted == 2 * [("one", "overloaded")]
    clients.forget(visitors[0])  # type: ignore[arg-type]
    assert Visitor(clients, "one").told is not None


async def test_strangers_take_no_place(judge: Judge) -> None:
    """A peer that isn't allowed is cut before anything is counted."""
    clients = Clients(judge, replace(LIMITS, max_connections=1))  # type: ignore[arg-type]
    strangers = [Visitor(clients, f"stranger {number}") for number in range(5)]
    assert all(visitor.was_cut and visitor.told is None for visitor in strangers)
    assert repr(clients) == NOBODY
    assert Visitor(clients, "one").told is None
