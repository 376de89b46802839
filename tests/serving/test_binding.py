"""The listening sockets as Tailscale's addresses come and go: what is bound, exactly, and what is said of it."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from proxy.serving import binding, complaints
from proxy.serving.binding import Binding, CannotBindError
from proxy.settings.addresses import TAILSCALE
from proxy.settings.settings import load
from proxy.tailnet.serve_rules import Kind, Ports, Rule
from proxy.tailnet.tailscale import UNKNOWN, Tailnet
from tests.fakes.scripted_tailscale import ScriptedTailscale
from tests.support.linux.kernel_sockets import listened
from tests.support.patience import PATIENCE
from tests.support.ports import free_port
from tests.support.raw_http import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs 127.0.0.2 and /proc, which only Linux has")

# Stand for a machine's addresses in its tailnet: Linux binds any of 127.0.0.0/8.
ONE, TWO = "127.0.0.2", "127.0.0.3"
ABSENT = "100.64.255.254"
IPV6 = Path("/proc/net/if_inet6")  # lists the machine's IPv6 addresses: none, where IPv6 is switched off
IPV6_OFF = not (IPV6.exists() and IPV6.read_text())

DOWN = Tailnet("Stopped", tun=True, problem="Tailscale is stopped", hint="tailscale up")
SILENT = Tailnet(UNKNOWN, problem="Tailscale does not answer", hint="start it")
USERSPACE = Tailnet("Running", tun=False, problem="Tailscale runs in userspace networking", hint="restart it")


def running(*addresses: str) -> Tailnet:
    """Return Tailscale's status on a machine that has `addresses`."""
    return Tailnet("Running", addresses, tun=True)


class Told(ScriptedTailscale):
    """A Tailscale that takes a turn of the loop to answer."""

    async def look(self) -> Tailnet:
        """Return what was set, or raise it."""
        await asyncio.sleep(0)
        return await super().look()


class Said:
    """A log that is remembered: event, and what stands next to it."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        """Remember it."""
        self.events.append((event, fields))

    warning = error = exception = info

    def of(self, event: str) -> list[dict[str, Any]]:
        """Return what stood next to each `event`."""
        return [fields for name, fields in self.events if name == event]


class Echo(asyncio.Protocol):
    """A connection that gives back what it is given."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[attr-defined]


class Stage:
    """A Binding with a scripted Tailscale, and a clock that stands still."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(binding, "FOLLOW_EACH", 0.005)
        for module in (binding, complaints):
            monkeypatch.setattr(module, "monotonic", lambda: self.now)
        self.now = 1000.0
        self.port = free_port()
        self.tailscale = Told()
        self.said = Said()
        self.names: list[str] = []  # of this machine, as they were handed on
        self.binding: Binding

    async def open(self, tailnet: Tailnet | Exception = DOWN, **flags: str) -> None:
        """Begin, at `tailnet`, with settings of our own."""
        self.tailscale.tailnet = tailnet
        own = {"listen": TAILSCALE, "port": str(self.port)}
        settings = load(own | flags, {"HOME": "/nowhere"}).settings
        self.binding = Binding(Echo, settings, self.tailscale, self.said, self.names.append)  # type: ignore[arg-type]
        await self.binding.open()
        await self.looked()

    async def looked(self) -> None:
        """Wait until Tailscale's current status has been read."""
        now = self.tailscale.looks
        await until(lambda: self.tailscale.looks >= now + 2)

    async def tell(self, tailnet: Tailnet | Exception) -> None:
        """Change Tailscale's status, and wait until it was read."""
        self.tailscale.tailnet = tailnet
        await self.looked()

    def bound(self) -> set[str]:
        """Return every address that this machine listens on at our port, wildcards too: what the kernel says."""
        return {address for address, port in listened() if port == self.port}

    async def is_bound(self, *addresses: str) -> None:
        """Wait until these are bound, and no others; uvloop closes a socket when the loop has turned."""
        try:
            await until(lambda: self.bound() == set(addresses))
        except TimeoutError:
            assert self.bound() == set(addresses)
        assert set(self.binding.addresses) <= set(addresses)

    async def talks(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Return whether a connection is alive both ways."""
        writer.write(b"hello")
        return await reader.readexactly(5) == b"hello"


@pytest.fixture
async def stage(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    """Give a stage, and clear it."""
    stage = Stage(monkeypatch)
    yield stage
    stage.binding.close()
    await stage.is_bound()


# --- waiting ----------------------------------------------------------------------------------------------------------


async def test_waits_for_tailscale(stage: Stage) -> None:
    """While Tailscale is down nothing is bound, which is said once, and once a minute; when it comes, so are we."""
    await stage.open(DOWN)
    await stage.looked()
    await stage.is_bound()
    complaint = ("waiting_for_tailscale", {"problem": "Tailscale is stopped", "hint": "tailscale up"})
    assert stage.said.events == [complaint]
    stage.now += 59.9
    await stage.looked()
    assert stage.said.events == [complaint]
    stage.now += 0.1
    await stage.looked()
    assert stage.said.events == [complaint] * 2
    await stage.tell(running(ONE))
    await stage.is_bound(ONE)
    assert stage.binding.addresses == (ONE,)
    assert [fields["address"] for fields in stage.said.of("listening")] == [f"http://{ONE}:{stage.port}"]


async def test_another_problem_is_said_at_once(stage: Stage) -> None:
    """A new reason is logged when it appears. One that comes and goes is logged once a minute."""
    await stage.open(DOWN)
    await stage.tell(SILENT)
    await stage.tell(DOWN)
    problems = ["Tailscale is stopped", "Tailscale does not answer"]
    assert [fields["problem"] for fields in stage.said.of("waiting_for_tailscale")] == problems
    await stage.tell(running(ONE))
    await stage.is_bound(ONE)
    await stage.tell(DOWN)
    await stage.is_bound()
    assert [fields["problem"] for fields in stage.said.of("waiting_for_tailscale")] == problems
    stage.now += 60
    await stage.looked()
    assert [fields["problem"] for fields in stage.said.of("waiting_for_tailscale")] == [*problems, problems[0]]


async def test_userspace_networking(stage: Stage) -> None:
    """With userspace networking nothing is bound, and it is said that Tailscale is of no use so."""
    await stage.open(USERSPACE)
    await stage.is_bound()
    assert stage.said.events == [("tailscale_unusable", {"problem": USERSPACE.problem, "hint": "restart it"})]


async def test_opening_does_not_wait_for_tailscale(stage: Stage) -> None:
    """A Tailscale that takes its time keeps nobody waiting: named addresses are served, and signals heard."""
    never = asyncio.Event()
    stage.tailscale.look = never.wait  # type: ignore[assignment]
    settings = load({"listen": f"127.0.0.1,{TAILSCALE}", "port": str(stage.port)}, {"HOME": "/nowhere"}).settings
    stage.binding = Binding(Echo, settings, stage.tailscale, stage.said)  # type: ignore[arg-type]
    async with asyncio.timeout(PATIENCE):
        await stage.binding.open()
    await stage.is_bound("127.0.0.1")


# --- following --------------------------------------------------------------------------------------------------------


async def test_new_address(stage: Stage) -> None:
    """A new address is bound and the old one no more; a stream that came by the old one lives on."""
    await stage.open(running(ONE))
    await stage.is_bound(ONE)
    stream = await asyncio.open_connection(ONE, stage.port)
    assert await stage.talks(*stream)
    await stage.tell(running(TWO))
    await stage.is_bound(TWO)
    assert stage.said.of("address_gone") == [{"address": ONE, "problem": "this machine has another"}]
    assert await stage.talks(*stream)
    stream[1].close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(ONE, stage.port)
    other = await asyncio.open_connection(TWO, stage.port)
    assert await stage.talks(*other)
    other[1].close()


@pytest.mark.skipif(IPV6_OFF, reason="IPv6 is switched off on this machine")
async def test_several_addresses(stage: Stage) -> None:
    """Each address that Tailscale gives is bound, of IPv6 too; what stays is not touched."""
    await stage.open(running(ONE, "::1"))
    await stage.is_bound(ONE, "::1")
    assert stage.said.of("listening")[1]["address"] == f"http://[::1]:{stage.port}"
    await stage.tell(running(ONE, TWO))
    await stage.is_bound(ONE, TWO)
    assert len(stage.said.of("listening")) == 3


@pytest.mark.parametrize(
    "tailnet",
    [
        pytest.param(SILENT, id="silent"),
        pytest.param(Tailnet("Starting", tun=True, problem="is starting"), id="starting"),
        pytest.param(Tailnet("NoState", tun=True, problem="is starting"), id="no_state"),
        pytest.param(OSError("unheard of"), id="raises"),
    ],
)
async def test_restarting_tailscale(tailnet: Tailnet | Exception, stage: Stage) -> None:
    """While Tailscale is starting, or doesn't answer, bound addresses stay bound and accept connections."""
    await stage.open(running(ONE))
    await stage.is_bound(ONE)
    await stage.tell(tailnet)
    await stage.is_bound(ONE)
    stream = await asyncio.open_connection(ONE, stage.port)
    assert await stage.talks(*stream)
    stream[1].close()
    assert not stage.said.of("address_gone")
    assert len(stage.said.of("listening")) == 1


@pytest.mark.parametrize(
    "tailnet",
    [
        pytest.param(DOWN, id="stopped"),
        pytest.param(Tailnet("NeedsLogin", tun=True, problem="is not logged in"), id="logged_out"),
        pytest.param(USERSPACE, id="userspace"),
    ],
)
async def test_tailscale_goes(tailnet: Tailnet, stage: Stage) -> None:
    """When Tailscale was stopped nothing is listened on; streams live on; when it is back, so are we."""
    await stage.open(running(ONE))
    await stage.is_bound(ONE)
    stream = await asyncio.open_connection(ONE, stage.port)
    assert await stage.talks(*stream)
    await stage.tell(tailnet)
    await stage.is_bound()
    assert stage.binding.addresses == ()
    assert await stage.talks(*stream)
    await stage.tell(running(ONE))
    await stage.is_bound(ONE)
    assert await stage.talks(*stream)
    stream[1].close()


async def test_addresses_that_only_the_interfaces_show(stage: Stage) -> None:
    """Where Tailscale can't be asked but an interface shows its address, that one is bound."""
    await stage.open(Tailnet(UNKNOWN, (ONE,), source="interface"))
    await stage.is_bound(ONE)


async def test_look_that_raises(stage: Stage) -> None:
    """A look that raises, the first one even, is noted and made again."""
    await stage.open(OSError("unheard of"))
    await stage.is_bound()
    assert stage.said.of("internal")
    await stage.tell(running(ONE))
    await stage.is_bound(ONE)


# --- what can't be bound ----------------------------------------------------------------------------------------------


async def test_port_in_use(stage: Stage) -> None:
    """A port that another process has is tried again, and said once a minute; the other address is served."""
    with socket.create_server((ONE, stage.port)):
        await stage.open(running(ONE, TWO))
        await stage.is_bound(ONE, TWO)
        assert stage.binding.addresses == (TWO,)
        (complaint,) = stage.said.of("not_listening")[-1:]
        assert complaint["problem"] == f"{ONE} port {stage.port} is in use by another process"
        assert complaint["hint"].startswith("see which: sudo lsof")
        before = len(stage.said.events)
        await stage.looked()
        assert len(stage.said.events) == before
    await stage.is_bound(ONE, TWO)
    await until(lambda: set(stage.binding.addresses) == {ONE, TWO})


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        pytest.param(ABSENT, f"{ABSENT} is not an address of this machine", id="not_there_yet"),
        pytest.param("fe80::1", "can't listen on fe80::1 port", id="anything_else"),
    ],
)
async def test_address_that_can_not_be_bound(address: str, problem: str, stage: Stage) -> None:
    """An address that Tailscale reports before the interface has it is tried again, and logged once. Nothing else is
    bound.
    """
    await stage.open(running(address))
    await stage.looked()
    await stage.is_bound()
    assert [event for event, _ in stage.said.events] == ["not_listening"]
    assert stage.said.events[0][1]["problem"].startswith(problem)
    await stage.tell(running(ONE))
    await stage.is_bound(ONE)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        pytest.param("bind", errno.EADDRNOTAVAIL, id="switched_off_by_sysctl"),
        pytest.param("__init__", errno.EAFNOSUPPORT, id="no_ipv6_in_the_kernel"),
    ],
)
def test_address_that_this_machine_lacks(call: str, error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """That this machine lacks an address is one kind of failure, wherever the kernel says so."""

    def fails(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(socket, "socket", type("Socket", (socket.socket,), {call: fails}))
    with pytest.raises(CannotBindError, match="fd7a:115c:a1e0::1 is not an address of this machine") as raised:
        binding.bind("fd7a:115c:a1e0::1", 11434)
    assert raised.value.absent


async def test_ipv6_that_only_tailscale_reports(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """An IPv6 address that this machine lacks is reported once and harms nothing; if it comes, it is served."""
    there: list[bool] = []

    def bind(address: str, port: int) -> socket.socket:
        if ":" in address and not there:
            raise CannotBindError(f"{address} is not an address of this machine", "ifconfig", absent=True)
        return really(TWO if ":" in address else address, port)  # IPv6 may be off on the machine of the test

    really = binding.bind
    monkeypatch.setattr(binding, "bind", bind)
    stage.tailscale.leads = (Rule("leads past", "tailscale serve reset"),)
    await stage.open(running(ONE, "fd7a:115c:a1e0::1"))
    for _ in range(3):
        stage.now += 60
        await stage.looked()
    assert stage.bound() == {ONE}
    assert [fields["address"] for fields in stage.said.of("address_absent")] == ["fd7a:115c:a1e0::1"]
    assert not stage.said.of("not_listening")
    there.append(True)
    await until(lambda: stage.bound() == {ONE, TWO})


async def test_ipv6_alone_that_this_machine_lacks(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing else is served, an address that can't be bound is reported each minute."""

    def bind(address: str, port: int) -> socket.socket:
        raise CannotBindError(f"{address} is not an address of this machine", "ifconfig", absent=True)

    monkeypatch.setattr(binding, "bind", bind)
    await stage.open(running("fd7a:115c:a1e0::1"))
    stage.now += 60
    await stage.looked()
    assert len(stage.said.of("not_listening")) == 2
    assert not stage.said.of("address_absent")


async def test_upstream_at_an_address_of_tailscale(stage: Stage) -> None:
    """Where the upstream is, the proxy never listens: it would be its own client."""
    await stage.open(running(ONE, TWO), upstream=f"http://{ONE}:{stage.port}")
    await stage.is_bound(TWO)
    (complaint,) = stage.said.of("not_listening")
    assert complaint["problem"] == "upstream is an address on which the proxy itself would listen"


# --- named addresses --------------------------------------------------------------------------------------------------


async def test_address_that_is_named_and_told(stage: Stage) -> None:
    """An address that is both named and reported is bound once without a complaint, and stays when Tailscale stops."""
    await stage.open(running(ONE, TWO), listen=f"{ONE},{TAILSCALE}")
    await stage.is_bound(ONE, TWO)
    assert stage.binding.addresses == (TWO,)
    assert not stage.said.of("not_listening")
    await stage.tell(DOWN)
    await stage.is_bound(ONE)


async def test_named_addresses_are_bound_all_or_none(stage: Stage) -> None:
    """When one of the named addresses can't be bound none is, and Tailscale is not asked."""
    with pytest.raises(CannotBindError):
        await stage.open(running(TWO), listen=f"{ONE},{ABSENT},{TAILSCALE}")
    await stage.is_bound()
    assert stage.tailscale.looks == 0


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param({"listen": TAILSCALE}, id="tailscale"),
        pytest.param({"listen": "0.0.0.0"}, id="wildcard"),
        pytest.param({"listen": f"{ONE},100.64.255.254"}, id="address"),
        pytest.param({"listen": ONE, "serve_port": "11500"}, id="by_serve_alone"),
    ],
)
async def test_name_of_this_machine(flags: dict[str, str], stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever devices of the tailnet reach the proxy, its name there is handed on, to be an allowed Host."""
    monkeypatch.setattr(binding, "bind", lambda address, port: socket.create_server((ONE, 0)))
    await stage.open(replace(running(ONE), name="mac.mesh.example.com"), allow_any_address="true", **flags)
    assert set(stage.names) == {"mac.mesh.example.com"}


async def test_named_addresses_follow_nothing(stage: Stage) -> None:
    """Where the addresses are named, those that Tailscale reports are neither bound nor waited for."""
    await stage.open(running(TWO), listen="0.0.0.0", allow_any_address="true")
    await stage.tell(DOWN)
    assert [event for event, _ in stage.said.events] == ["listening"]


async def test_named_addresses_alone(stage: Stage) -> None:
    """Where no device of the tailnet can reach the proxy, Tailscale is never asked."""
    settings = load({"listen": ONE, "port": str(stage.port)}, {"HOME": "/nowhere"}).settings
    stage.binding = Binding(Echo, settings, stage.tailscale, stage.said)  # type: ignore[arg-type]
    await stage.binding.open()
    await stage.is_bound(ONE)
    assert (stage.tailscale.looks, stage.tailscale.asked) == (0, [])


# --- ways past the proxy ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "event"),
    [
        pytest.param(Kind.PAST, "tailscale_serve_bypass", id="past_the_proxy"),
        pytest.param(Kind.TAKEN, "tailscale_serve_takes_port", id="takes_its_port"),
    ],
)
async def test_rules_of_serve(kind: Kind, event: str, stage: Stage) -> None:
    """Rules that must not be there are read and logged once a minute; that they can't be read is not logged."""
    stage.tailscale.leads = (Rule("leads past", "tailscale serve reset", kind),)
    await stage.open(running(ONE), upstream="http://127.0.0.1:7777")
    await stage.looked()
    ports = Ports(7777, stage.port, None, stage.port)
    assert stage.tailscale.asked == [ports]
    assert stage.said.of(event) == [{"problem": "leads past", "hint": "tailscale serve reset"}]
    stage.now += 60
    await stage.looked()
    assert stage.tailscale.asked == [ports] * 2
    assert len(stage.said.of(event)) == 2
    stage.tailscale.leads = None
    stage.now += 60
    await stage.looked()
    assert stage.tailscale.asked == [ports] * 3
    assert len(stage.said.of(event)) == 2


async def test_rules_are_read_whatever_else_fails(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at the addresses that ends in an error keeps nobody from hearing of a rule that leads past."""

    async def broken(_: object) -> None:
        raise OSError("unheard of")

    monkeypatch.setattr(Binding, "_rebind", broken)
    stage.tailscale.leads = (Rule("leads past", "tailscale serve reset"),)
    await stage.open(running(ONE))
    assert stage.said.of("tailscale_serve_bypass")
    assert stage.said.of("internal")


async def test_what_is_amiss_is_logged_once_a_day(stage: Stage) -> None:
    """Shields that are up, a key that expires, and what Tailscale reports are logged at once and then daily."""
    stage.tailscale.shields = True
    expiry = datetime.now(UTC) + timedelta(days=3, hours=1)
    await stage.open(replace(running(ONE), health=("clock is wrong",), key_expiry=expiry))
    await stage.looked()
    topics = ["shields", "key", "health"]
    assert [fields["topic"] for fields in stage.said.of("tailscale_amiss")] == topics
    assert all(fields["problem"] and fields["hint"] for fields in stage.said.of("tailscale_amiss"))
    stage.now += 86399
    await stage.looked()
    assert len(stage.said.of("tailscale_amiss")) == 3
    stage.now += 61
    await stage.looked()
    assert [fields["topic"] for fields in stage.said.of("tailscale_amiss")] == topics * 2
