"""Requests wait for who asks: every line has its name, a peer that Tailscale doesn't know is refused, and all ends."""

from __future__ import annotations

import asyncio
import json
from ipaddress import IPv4Network
from typing import TYPE_CHECKING

import pytest

from proxy.exchange import gateway
from proxy.policy.peers import vouched
from proxy.serving.binding import bind
from proxy.tailnet import whois
from proxy.tailnet.device import Who
from proxy.tailnet.localapi import SilentError
from proxy.tailnet.whois import LIFETIME, UNKNOWN_LIFETIME, Whois
from tests.support.asked_tailscale import ALICE, LAPTOP, NOBODY, AskedTailscale, Clock, Reports
from tests.support.raw_http import Proxy, Wire, ok, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.raw_http import Answer, Upstream

HERE = "127.0.0.1"
ALICE_HERE = ALICE._replace(addresses=(*ALICE.addresses, HERE))
CHAT = b'{"model":"tiny","messages":[]}'
PAGE = {"Origin": "http://localhost", "Access_Control_Request_Method": "GET"}


class Stage:
    """A gateway, its Tailscale, and its port for serve, where requests come from any device."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.tailscale = AskedTailscale()
        self.tailscale.join(ALICE_HERE)  # as if loopback were a device, for connections to the usual port
        self.clock = Clock()
        self.reports = Reports()
        self.whois = Whois(self.tailscale.who, self.reports, self.clock, own=lambda _: False)
        self.proxy = Proxy(upstream.port, identities=self.whois)

    async def open(self) -> None:
        """Listen."""
        self.upstream.answers(ok(b'{"data":[]}'))
        await self.proxy.start()
        self.proxy.gateway.serve_open = True
        sock = bind(HERE, 0)
        self._server = await asyncio.get_running_loop().create_server(self.proxy.clients.by_serve, sock=sock)
        self._port = sock.getsockname()[1]

    async def close(self) -> None:
        """Stop."""
        self._server.close()
        await self.proxy.stop()
        await self.whois.close()

    async def by_serve(self) -> Wire:
        """Return a connection to the port for serve."""
        self.proxy.wires.append(await Wire.open(self._port))
        return self.proxy.wires[-1]

    async def asks(self, peer: str, method: str = "GET", target: str = "/v1/models", **fields: str) -> Answer:
        """Return the answer to a request of a device."""
        client = await self.by_serve()
        await client.request(method, target, X_Forwarded_For=peer, **fields)
        return await client.answer()

    async def asked(self, count: int = 1) -> None:
        """Wait until Tailscale was asked so often."""
        while len(self.tailscale.asked) < count:
            await asyncio.sleep(0)

    async def named(self, count: int = 1) -> list[tuple[str | None, str | None]]:
        """Return device and reason of each line, once there are so many."""
        return [(line.get("device"), line.get("reason")) for line in await self.proxy.lines(count)]


@pytest.fixture
async def stage(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    """Give a gateway whose Tailscale answers."""
    is_device = whois.is_device
    monkeypatch.setattr(whois, "is_device", lambda address: address == HERE or is_device(address))
    stage = Stage(upstream)
    await stage.open()
    yield stage
    await stage.close()


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "target", "fields", "verdict"),
    [
        pytest.param("GET", "/v1/models", {}, "allowed", id="allowed"),
        pytest.param("POST", "/api/pull", {}, "refused", id="refused"),
        pytest.param("GET", "//v1/models", {}, "redirected", id="redirected"),
        pytest.param("OPTIONS", "/v1/models", PAGE, "preflight", id="preflight"),
    ],
)
async def test_first_line_has_its_name(
    stage: Stage, method: str, target: str, fields: dict[str, str], verdict: str
) -> None:
    """The first request of a device waits for its name, whatever becomes of it."""
    stage.tailscale.hang()
    client = await stage.proxy.connect()
    await client.request(method, target, **fields)
    await stage.asked()
    stage.tailscale.answer()
    await client.answer()
    (line,) = await stage.proxy.lines()
    assert (line["verdict"], line["device"], line["user"]) == (verdict, "laptop", "alice@example.com")


@pytest.mark.parametrize(("device", "user"), [("server", None), (None, "tag:ci,tag:gpu")], ids=["device", "tags"])
async def test_half_a_name(stage: Stage, device: str | None, user: str | None) -> None:
    """If only the device or only its user is known, the line has that."""
    stage.tailscale.join(Who(device, user, (HERE,)))
    client = await stage.proxy.connect()
    await client.request("GET", "/api/nothing")
    await client.answer()
    (line,) = await stage.proxy.lines()
    assert (line.get("device"), line.get("user")) == (device, user)


async def test_lookup_begins_with_the_connection(stage: Stage) -> None:
    """Tailscale is asked about a device that connects, and not about a peer whose connection isn't taken."""
    assert not stage.proxy.gateway.peer_allowed("192.168.77.2", 5, "100.64.0.1")
    assert stage.proxy.gateway.peer_allowed(LAPTOP, 5, "100.64.0.1")
    await stage.asked()
    assert stage.tailscale.asked == [LAPTOP]


async def test_bytes_that_are_no_request_have_a_name(stage: Stage) -> None:
    """A line about bytes that don't parse has the name that is known by then."""
    client = await stage.proxy.connect()
    await client.request("GET", "/v1/models")
    await client.answer()
    await client.send(b"\x16\x03\x01\x00\x05hello")
    await client.read_until_closed()
    assert await stage.named(2) == [("laptop", None), ("laptop", "malformed")]


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        pytest.param(b"GET / HTTP/1.1\r\nno colon\r\n\r\n", "malformed", id="malformed"),
        pytest.param(b"\x16\x03\x01\x00\x05hello", "malformed", id="tls"),
        pytest.param(b"GET /" + b"x" * 100_000, "target_too_long", id="too_long"),
    ],
)
@pytest.mark.parametrize("half_closed", [False, True], ids=["open", "half_closed"])
async def test_bytes_that_are_no_request_wait_too(stage: Stage, octets: bytes, reason: str, half_closed: bool) -> None:
    """A connection that begins with bytes that don't parse waits for its name before it is answered."""
    stage.tailscale.hang()
    client = await stage.proxy.connect()
    await client.send(octets)
    if half_closed:
        client.half_close()
    await stage.asked()
    stage.tailscale.answer()
    assert (await client.read_until_closed()).startswith(b"HTTP/1.1 4")
    assert await stage.named() == [("laptop", reason)]


async def test_bytes_that_are_no_request_of_an_unknown_peer(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that Tailscale doesn't know is refused as such, whatever it sends."""
    del stage.tailscale.peers[HERE]
    monkeypatch.setattr(gateway, "vouched", lambda *_: False)  # as on Tailscale's address
    client = await stage.proxy.connect()
    await client.send(b"GET / HTTP/1.1\r\nno colon\r\n\r\n")
    assert (await client.read_until_closed()).startswith(b"HTTP/1.1 403 ")
    assert await stage.named() == [(None, "peer_unknown")]


@pytest.mark.parametrize("drained", [False, True], ids=["left", "drained"])
async def test_bytes_that_are_no_request_have_one_line(stage: Stage, drained: bool) -> None:
    """If the client leaves, or the proxy drains, while it waits for a name, there is still one line."""
    stage.tailscale.hang()
    client = await stage.proxy.connect()
    await client.send(b"GET / HTTP/1.1\r\nno colon\r\n\r\n")
    (connection,) = stage.proxy.clients.connections
    await until(lambda: "HEAD" in repr(connection))
    if drained:
        connection.drain()
    else:
        client.close(reset=True)
    (line,) = await stage.proxy.lines()
    stage.tailscale.answer()
    assert line["ended"] == ("proxy/head" if drained else "downstream/head")
    other = await stage.proxy.connect()
    await other.request("GET", "/v1/models")
    await other.answer()
    assert len(await stage.named(2)) == 2


async def test_connections_at_once_cause_one_lookup(stage: Stage) -> None:
    """All connections of one device wait for the same answer."""
    stage.tailscale.hang()
    clients = [await stage.proxy.connect() for _ in range(50)]
    for client in clients:
        await client.request("GET", "/v1/models")
    stage.tailscale.answer()
    assert {(await client.answer()).status for client in clients} == {200}
    assert {device for device, _ in await stage.named(50)} == {"laptop"}
    assert stage.tailscale.asked == [HERE]


async def test_address_that_changes_its_owner(stage: Stage) -> None:
    """On one connection, a request names whoever has the address by then."""
    client = await stage.proxy.connect()
    for owner in (ALICE_HERE, Who("stranger", "bob@example.com", (HERE,))):
        stage.tailscale.join(owner)
        stage.clock.now += LIFETIME
        await client.request("GET", "/v1/models")
        assert (await client.answer()).status == 200
    assert await stage.named(2) == [("laptop", None), ("stranger", None)]


# --- nobody -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "shape"),
    [
        pytest.param("/v1/chat/completions", ["error"], id="openai"),
        pytest.param("/v1/messages", ["type", "error", "request_id"], id="anthropic"),
        pytest.param("/api/show", ["error"], id="native"),
    ],
)
async def test_unknown_peer_is_refused(stage: Stage, target: str, shape: list[str]) -> None:
    """A peer that Tailscale doesn't know gets a refusal in its API's form, a line with the reason, and no more."""
    client = await stage.by_serve()
    request = f"POST {target} HTTP/1.1\r\nHost: mac\r\nX-Forwarded-For: {NOBODY}\r\nContent-Length: 2\r\n\r\n{{}}"
    await client.send(request.encode() * 2)
    head, _, content = (await client.read_until_closed()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 403 ")
    assert sorted(json.loads(content)) == sorted(shape)
    assert b"knows no device" in content
    (line,) = await stage.proxy.lines()
    assert (line["verdict"], line["reason"], line["ended"], line["peer"]) == (
        *("refused", "peer_unknown", "complete"),
        NOBODY,
    )
    assert stage.upstream.requests == []


async def test_nothing_behind_doubtful_framing(stage: Stage) -> None:
    """The peer is refused before the framing is judged, so nothing that follows on its connection is read."""
    client = await stage.by_serve()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: mac\r\nX-Forwarded-For: %b\r\nContent-Length: 02\r\n\r\n{}"
    await client.send(head % NOBODY.encode() + b"GET /v1/models HTTP/1.1\r\nHost: mac\r\n\r\n")
    assert (await client.read_until_closed()).count(b"HTTP/1.1 ") == 1
    assert stage.upstream.requests == []


async def test_peer_removed_while_connected(stage: Stage) -> None:
    """A device that leaves the tailnet is refused on the connection that it still has; it may come back."""
    client = await stage.by_serve()
    await client.request("GET", "/v1/models", X_Forwarded_For=LAPTOP)
    assert (await client.answer()).status == 200
    stage.tailscale.remove(ALICE)
    stage.clock.now += LIFETIME
    await client.request("GET", "/v1/models", X_Forwarded_For=LAPTOP)
    assert (await client.answer()).status == 403
    stage.tailscale.join(ALICE)
    stage.clock.now += UNKNOWN_LIFETIME
    assert (await stage.asks(LAPTOP)).status == 200
    assert await stage.named(3) == [("laptop", None), (None, "peer_unknown"), ("laptop", None)]


async def test_unknown_peer_on_another_address_is_served(stage: Stage) -> None:
    """On an address that isn't Tailscale's the peer's address decides, as before: others use 100.64.0.0/10 too."""
    del stage.tailscale.peers[HERE]
    client = await stage.proxy.connect()
    await client.request("GET", "/v1/models")
    assert (await client.answer()).status == 200
    assert await stage.named() == [(None, None)]


@pytest.mark.parametrize(
    ("peer", "local", "allowed", "served"),
    [
        pytest.param(NOBODY, "100.64.0.1", (), False, id="on_tailscales_address"),
        pytest.param(NOBODY, "fd7a:115c:a1e0::1", (), False, id="on_its_ipv6_address"),
        pytest.param(NOBODY, "100.64.0.1", ("100.64.0.0/24",), True, id="listed"),
        pytest.param(NOBODY, "100.64.0.1", ("100.64.1.0/24",), False, id="another_is_listed"),
        pytest.param(NOBODY, "192.168.1.2", (), True, id="in_the_lan"),
        pytest.param(NOBODY, "", ("100.64.0.0/10",), False, id="address_lost"),
        pytest.param("@", "192.168.1.2", (), False, id="no_address"),
    ],
)
def test_vouched(peer: str, local: str, allowed: tuple[str, ...], served: bool) -> None:
    """Tailscale need not know a peer that `allowed_peers` lists, or that came to an address that isn't Tailscale's."""
    assert vouched(peer, local, tuple(map(IPv4Network, allowed))) is served


# --- no answer --------------------------------------------------------------------------------------------------------


async def test_served_without_tailscale(stage: Stage) -> None:
    """While Tailscale doesn't answer the address decides, the line has no name, and the log says why."""
    stage.tailscale.failure = SilentError("nobody answers", "tailscale up")
    for _ in range(3):
        assert (await stage.asks(NOBODY)).status == 200
    assert await stage.named(3) == [(None, None)] * 3
    assert [event for event, _ in stage.reports.events] == ["peers_not_identified"]


# --- what happens meanwhile -------------------------------------------------------------------------------------------


async def test_client_that_leaves_while_it_waits(stage: Stage) -> None:
    """A client that leaves before it is known has its line, and nothing of its request reaches Ollama."""
    stage.tailscale.hang()
    client = await stage.proxy.connect()
    await client.request("POST", "/v1/chat/completions", CHAT)
    await stage.asked()
    client.close()
    (line,) = await stage.proxy.lines()
    assert (line["ended"], line["path"]) == ("downstream/head", "/v1/chat/completions")
    stage.tailscale.answer()
    other = await stage.proxy.connect()
    await other.request("GET", "/v1/models")
    assert (await other.answer()).status == 200
    assert [request.split()[1] for request in stage.upstream.requests] == [b"/v1/models"]


async def test_stop_while_it_waits(stage: Stage) -> None:
    """A drain that is over answers who still waits to be known."""
    stage.tailscale.hang()
    client = await stage.proxy.connect()
    await client.request("GET", "/v1/models")
    await stage.asked()
    draining = asyncio.create_task(stage.proxy.clients.drain(0))
    assert (await client.answer()).status == 503
    client.close()
    await draining
    (line,) = await stage.proxy.lines()
    assert (line["ended"], line["reason"]) == ("proxy/head", "draining")


async def test_pipelined_requests_wait_behind_it(stage: Stage) -> None:
    """Requests that arrive while the first one waits are served after it, in order."""
    stage.tailscale.hang()
    client = await stage.proxy.connect()
    await client.request("GET", "/api/nothing")
    await stage.asked()
    await client.request("GET", "/v1/models")
    await client.request("POST", "/api/pull", b"{}")
    stage.tailscale.answer()
    assert [(await client.answer()).status for _ in range(3)] == [403, 200, 403]
    assert [device for device, _ in await stage.named(3)] == ["laptop"] * 3


@pytest.mark.parametrize("size", [10, 1 << 20], ids=["small", "larger_than_is_held"])
async def test_content_that_arrives_meanwhile(stage: Stage, size: int) -> None:
    """Content that arrives while its request waits reaches Ollama whole, however much it is."""
    stage.tailscale.hang()
    content = b"x" * size
    client = await stage.proxy.connect()
    await client.send(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: mac\r\nContent-Length: %d\r\n\r\n" % size + content[:5]
    )
    await stage.asked()
    client.begin_to_send(content[5:])
    for _ in range(20):
        await asyncio.sleep(0)
    stage.tailscale.answer()
    assert (await client.answer()).status == 200
    assert [request.partition(b"\r\n\r\n")[2] for request in stage.upstream.requests] == [content]


@pytest.mark.parametrize(
    ("limits", "content", "reason"),
    [
        pytest.param({}, b"zz\r\n", "malformed", id="broken_chunk"),
        pytest.param({"max_body": 10}, b"20\r\n" + b"x" * 32 + b"\r\n", "content_too_large", id="too_large"),
        pytest.param({}, b"".join(b"1;%b\r\nx\r\n" % (b"e" * 4000) for _ in range(30)), "malformed", id="framing"),
    ],
)
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
async def test_content_that_breaks_meanwhile(
    stage: Stage, limits: dict[str, int], content: bytes, reason: str, known: bool
) -> None:
    """Content that breaks while its request waits is refused when the name is known, and not instead of the peer."""
    stage.proxy.limit(**limits)
    stage.tailscale.hang()
    client = await stage.by_serve()
    await client.send(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: mac\r\nTransfer-Encoding: chunked\r\nX-Forwarded-For: %b\r\n\r\n"
        % (LAPTOP if known else NOBODY).encode()
    )
    await stage.asked(2)  # about the peer of the connection, and about the request's
    await client.send(content)
    for _ in range(20):
        await asyncio.sleep(0)
    stage.tailscale.answer()
    await client.read_until_closed()
    assert await stage.named() == [("laptop", reason) if known else (None, "peer_unknown")]
    assert stage.upstream.requests == []


async def test_content_is_asked_for_afterwards(stage: Stage) -> None:
    """`100 Continue` isn't sent to a peer that isn't known yet, and never to one that is refused."""
    client = await stage.by_serve()
    await client.send(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: mac\r\nExpect: 100-continue\r\nContent-Length: 2\r\n"
        b"X-Forwarded-For: %b\r\n\r\n" % NOBODY.encode()
    )
    assert (await client.answer()).status == 403
