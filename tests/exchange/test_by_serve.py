"""The port for `tailscale serve`: which device each request is from, and why all other requests are refused."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from proxy.exchange.by_serve import peer_of
from proxy.policy import refusals
from proxy.serving.binding import bind
from proxy.tailnet.device import Who
from proxy.tailnet.whois import Whois
from tests.support.asked_tailscale import AskedTailscale, Reports
from tests.support.raw_http import Proxy, Wire, ok

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.raw_http import Answer, Upstream

LAPTOP, LAPTOP6 = "100.64.0.7", "fd7a:115c:a1e0::7"
FOR = b"X-Forwarded-For"
FUNNEL = (b"Tailscale-Funnel-Request", b"?1")


# --- one request ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "peer"),
    [
        pytest.param([(FOR, b"100.64.0.7")], LAPTOP, id="ipv4"),
        pytest.param([(FOR, b"fd7a:115c:a1e0::7")], LAPTOP6, id="ipv6"),
        pytest.param([(b"x-forwarded-for", b"100.64.0.7")], LAPTOP, id="any_case"),
        pytest.param([(FOR, b"::ffff:100.64.0.7")], LAPTOP, id="ipv4_in_ipv6"),
        pytest.param(
            [(b"Host", b"mac"), (FOR, b"100.64.0.7"), (b"X-Forwarded-Proto", b"https")], LAPTOP, id="as_serve"
        ),
        # What else a client sends changes nothing: tailscaled replaces the one field that is read.
        pytest.param([(FOR, b"100.64.0.7"), (b"X_Forwarded_For", b"100.64.0.9")], LAPTOP, id="with_underscores"),
        pytest.param([(FOR, b"100.64.0.7"), (b"Tailscale-User-Login", b"eve@example.com")], LAPTOP, id="a_user_beside"),
        pytest.param([(FOR, b"100.64.0.7"), (b"X-Real-IP", b"100.64.0.9")], LAPTOP, id="another_address_beside"),
    ],
)
def test_device(fields, peer):
    """The one address of the tailnet that X-Forwarded-For names is the device; nothing else is read."""
    assert peer_of(fields) == peer


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param([], id="none"),
        pytest.param([(FOR, b"")], id="empty"),
        pytest.param([(FOR, b"100.64.0.7"), (FOR, b"100.64.0.7")], id="twice"),
        pytest.param([(FOR, b"100.64.0.7"), (b"x-forwarded-for", b"100.64.0.9")], id="twice_in_two_spellings"),
        pytest.param([(FOR, b"100.64.0.7, 100.64.0.9")], id="a_list"),
        pytest.param([(FOR, b"100.64.0.7,")], id="a_list_of_one"),
        pytest.param([(FOR, b"100.64.0.7:443")], id="with_a_port"),
        pytest.param([(FOR, b"[fd7a:115c:a1e0::7]")], id="in_brackets"),
        pytest.param([(FOR, b"100.64.0.7%lo0")], id="with_a_zone"),
        pytest.param([(FOR, b"fd7a:115c:a1e0::7%lo0")], id="ipv6_with_a_zone"),
        pytest.param([(FOR, b"fd7a:115c:a1e0::7%" + b"x" * 5000)], id="ipv6_with_a_long_zone"),
        pytest.param([(FOR, b"fd7a:115c:a1e0::7%")], id="ipv6_with_an_empty_zone"),
        pytest.param([(FOR, b" 100.64.0.7")], id="with_a_space"),
        pytest.param([(FOR, b"100.064.0.7")], id="with_a_zero_in_front"),
        pytest.param([(FOR, b"1681915911")], id="as_one_number"),
        pytest.param([(FOR, b"127.0.0.1")], id="loopback"),
        pytest.param([(FOR, b"192.168.1.7")], id="lan"),
        pytest.param([(FOR, b"203.0.113.7")], id="internet"),
        pytest.param([(FOR, b"100.128.0.1")], id="just_outside"),
        pytest.param([(FOR, b"fd7a:115c:a1e1::1")], id="another_prefix"),
        pytest.param([(FOR, b"unknown")], id="no_address"),
        pytest.param([(FOR, b"100.64.0.7\xff")], id="no_ascii"),
        pytest.param([(b"X_Forwarded_For", b"100.64.0.7")], id="with_underscores_only"),
        pytest.param([(b"Forwarded", b"for=100.64.0.7")], id="of_another_standard"),
        pytest.param([(b"X-Real-IP", b"100.64.0.7")], id="of_another_proxy"),
        pytest.param([(b"Tailscale-User-Login", b"alice@example.com")], id="a_user_only"),
    ],
)
def test_not_by_serve(fields):
    """Without exactly one address of the tailnet in exactly one field nobody is known, and nothing is served."""
    assert peer_of(fields) is refusals.NOT_BY_SERVE


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param([FUNNEL, (FOR, b"203.0.113.7")], id="as_funnel"),
        pytest.param([(FOR, b"100.64.0.7"), FUNNEL], id="with_a_device"),
        pytest.param([(FOR, b"100.64.0.7"), (b"tailscale-funnel-request", b"")], id="empty_and_in_small_letters"),
    ],
)
def test_by_funnel(fields):
    """Requests from the internet are never served, whatever address they claim."""
    assert peer_of(fields) is refusals.BY_FUNNEL


# --- a connection -----------------------------------------------------------------------------------------------------


class Door:
    """The port for serve of a gateway."""

    def __init__(self, gateway: Proxy, port: int) -> None:
        self.gateway = gateway
        self.port = port

    async def connect(self) -> Wire:
        """Return a connection of tailscaled's."""
        self.gateway.wires.append(await Wire.open(self.port))
        return self.gateway.wires[-1]

    async def ask(self, method: str = "GET", target: str = "/v1/models", **fields: str) -> Answer:
        """Return the answer to a request on a connection of its own."""
        client = await self.connect()
        await client.request(method, target, **fields)
        return await client.answer()


@pytest.fixture
async def gateway(upstream: Upstream) -> AsyncIterator[Proxy]:
    """Give a gateway that knows who is asking."""
    laptop, robot = Who("laptop", "alice@example.com", (LAPTOP,)), Who("robot", "tag:robot", (LAPTOP6,))
    proxy = Proxy(upstream.port, identities=Whois(AskedTailscale(laptop, robot).who, Reports()))
    await proxy.start()
    yield proxy
    await proxy.stop()


@pytest.fixture
async def door(gateway: Proxy, upstream: Upstream) -> AsyncIterator[Door]:
    """Give the port for serve, open, before an Ollama that answers."""
    upstream.answers(ok(b'{"data":[]}'))
    gateway.gateway.serve_open = True
    sock = bind("127.0.0.1", 0)
    server = await asyncio.get_running_loop().create_server(gateway.clients.by_serve, sock=sock)
    yield Door(gateway, sock.getsockname()[1])
    server.close()


@pytest.mark.parametrize(
    ("peer", "device", "user"),
    [
        pytest.param(LAPTOP, "laptop", "alice@example.com", id="of_a_person"),
        pytest.param(LAPTOP6, "robot", "tag:robot", id="tagged"),
    ],
)
async def test_line_shows_the_device(door: Door, peer: str, device: str, user: str) -> None:
    """The line names the device that serve names, looked up like any peer; its port isn't known."""
    answer = await door.ask(X_Forwarded_For=peer, Tailscale_User_Login="eve@example.com", Tailscale_User_Name="Eve")
    assert answer.status == 200
    (line,) = await door.gateway.lines()
    assert (line["peer"], line.get("device"), line.get("user")) == (peer, device, user)
    assert line["verdict"] == "allowed"
    assert "peer_port" not in line


async def test_each_request_has_its_own_device(door: Door) -> None:
    """Tailscaled sends requests of several devices on one connection: none passes for the one before it."""
    client = await door.connect()
    for peer in (LAPTOP, LAPTOP6, LAPTOP):
        await client.request("GET", "/v1/models", X_Forwarded_For=peer)
        assert (await client.answer()).status == 200
    await client.request("GET", "/v1/models")
    assert (await client.answer()).status == 403
    lines = await door.gateway.lines(4)
    assert [line.get("device") for line in lines] == ["laptop", "robot", "laptop", None]
    assert lines[3]["peer"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("fields", "status", "reason"),
    [
        pytest.param({}, 403, "not_by_serve", id="straight_from_this_machine"),
        pytest.param({"X_Forwarded_For": "203.0.113.7"}, 403, "not_by_serve", id="from_elsewhere"),
        pytest.param(
            {"X_Forwarded_For": LAPTOP, "Tailscale_Funnel_Request": "?1"}, 403, "by_funnel", id="from_the_internet"
        ),
        pytest.param(
            {"X_Forwarded_For": LAPTOP, "Origin": "https://evil.example"}, 403, "origin_not_allowed", id="page"
        ),
    ],
)
async def test_refused(door: Door, upstream: Upstream, fields: dict[str, str], status: int, reason: str) -> None:
    """Who isn't known is refused before anything else; a device that is known is judged like on any port."""
    answer = await door.ask(**fields)
    assert answer.status == status
    (line,) = await door.gateway.lines()
    assert line["reason"] == reason
    assert upstream.requests == []


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(b"", id="from_nobody"),
        pytest.param(b"X-Forwarded-For: 100.64.0.7\r\nTailscale-Funnel-Request: ?1\r\n", id="from_the_internet"),
    ],
)
async def test_nothing_behind_doubtful_framing(door: Door, upstream: Upstream, fields: bytes) -> None:
    """Who isn't known is refused before the framing is judged, so nothing that follows on the connection is read."""
    client = await door.connect()
    behind = b"GET /v1/models HTTP/1.1\r\nHost: mac\r\nX-Forwarded-For: 100.64.0.7\r\n\r\n"
    await client.send(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: mac\r\nContent-Length: 02\r\n%b\r\n{}%b" % (fields, behind)
    )
    answers = await client.read_until_closed()
    assert answers.count(b"HTTP/1.1 ") == 1
    assert answers.startswith(b"HTTP/1.1 403 ")
    assert upstream.requests == []


@pytest.mark.parametrize(("method", "target"), [("POST", "/api/pull"), ("DELETE", "/api/delete"), ("GET", "/metrics")])
async def test_same_allowlist(door: Door, method: str, target: str) -> None:
    """The table is the same as on any port."""
    assert (await door.ask(method, target, X_Forwarded_For=LAPTOP)).status == 403
    (line,) = await door.gateway.lines()
    assert (line["reason"], line["device"]) == ("path_not_served", "laptop")


async def test_nothing_is_served_while_closed(door: Door, upstream: Upstream) -> None:
    """Once serve can't be trusted, connections that are there already bring nothing more."""
    client = await door.connect()
    await client.request("GET", "/v1/models", X_Forwarded_For=LAPTOP)
    assert (await client.answer()).status == 200
    door.gateway.gateway.serve_open = False
    await client.request("GET", "/v1/models", X_Forwarded_For=LAPTOP)
    assert (await client.answer()).status == 503
    assert (await door.gateway.lines(2))[1]["reason"] == "serve_closed"
    assert len(upstream.requests) == 1


async def test_other_ports_believe_nobody(door: Door) -> None:
    """On the proxy's own port the field is a client's own, and read by nobody."""
    client = await door.gateway.connect()
    await client.request("GET", "/v1/models", X_Forwarded_For=LAPTOP)
    assert (await client.answer()).status == 200
    (line,) = await door.gateway.lines()
    assert line["peer"] == "127.0.0.1"
    assert "device" not in line


async def test_ollama_never_learns_of_it(door: Door, upstream: Upstream) -> None:
    """What serve adds is for the proxy, and goes no further."""
    client = await door.connect()
    await client.request(
        "GET", "/v1/models", X_Forwarded_For=LAPTOP, X_Forwarded_Proto="https", Tailscale_User_Login="alice@example.com"
    )
    assert (await client.answer()).status == 200
    seen = b"".join(upstream.requests).lower()
    assert b"/v1/models" in seen
    assert b"forwarded" not in seen
    assert b"tailscale-user" not in seen
