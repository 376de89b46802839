"""The listening socket for `tailscale serve`: when it is there, and what is said while it isn't."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from proxy.serving import serve_port
from proxy.serving.serve_port import ServePort, why_closed
from proxy.settings.settings import SettingsError, load
from proxy.tailnet.serve_rules import Kind, Ports, Rule, Serving, of_serve
from proxy.tailnet.tailscale import Tailnet
from tests.fakes.scripted_tailscale import STOPPED, ScriptedTailscale
from tests.support.proxy_process import free_port
from tests.support.raw_http import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

UP = Tailnet("Running", ("100.64.0.1",), tun=True)
USERSPACE = Tailnet("Running", tun=False, problem="Tailscale runs in userspace networking", hint="restart it")
BLIND = Rule("`tailscale serve` passes on bytes", "tailscale serve --tcp=443 off", Kind.BLIND)
PORT = 11500
HOST = "mac.tail1234.ts.net"


# --- rules ------------------------------------------------------------------------------------------------------------


def web(target: str, port: int = 443, mount: str = "/", protocol: str = "HTTPS", **more: Any) -> dict[str, Any]:
    """Return a configuration that serves `target` as a web site."""
    handlers = {f"{HOST}:{port}": {"Handlers": {mount: {"Proxy": target}}}}
    return {"TCP": {str(port): {protocol: True}}, "Web": handlers, **more}


@pytest.mark.parametrize(
    ("config", "urls"),
    [
        pytest.param(web(f"http://127.0.0.1:{PORT}"), (f"https://{HOST}",), id="https"),
        pytest.param(web(f"{PORT}", 8443), (f"https://{HOST}:8443",), id="https_on_another_port"),
        pytest.param(web(f"{PORT}", 443, "/ai"), (f"https://{HOST}/ai",), id="mounted"),
        pytest.param(web(f"{PORT}", 80, "/", "HTTP"), (f"http://{HOST}",), id="http"),
        pytest.param({"Services": {"svc:ai": web(f"{PORT}")}}, (f"https://{HOST}",), id="service"),
        pytest.param({"Foreground": {"5e": web(f"localhost:{PORT}")}}, (f"https://{HOST}",), id="foreground"),
        pytest.param(web(f"{PORT}", 11434, "/", "HTTP"), (f"http://{HOST}:11434",), id="on_the_proxys_port"),
        pytest.param(web("http://127.0.0.1:3000"), (), id="elsewhere"),
        pytest.param({}, (), id="none"),
    ],
)
def test_rules_that_say_who_comes(config: dict[str, Any], urls: tuple[str, ...]) -> None:
    """Rules for http and https make the port reachable under a URL, and none of them is a fault."""
    assert of_serve(config, Ports(7777, 11434, PORT)) == Serving((), urls)


@pytest.mark.parametrize(
    ("config", "hint"),
    [
        pytest.param({"TCP": {"443": {"TCPForward": f"127.0.0.1:{PORT}"}}}, "tailscale serve --tcp=443 off", id="tcp"),
        pytest.param(
            {"TCP": {"443": {"TCPForward": f"127.0.0.1:{PORT}", "TerminateTLS": HOST}}},
            "tailscale serve --tls-terminated-tcp=443 off",
            id="tls_terminated_tcp",
        ),
        pytest.param(
            web(f"{PORT}", AllowFunnel={f"{HOST}:443": True}), "tailscale funnel --https=443 off", id="funnel"
        ),
        pytest.param(
            {"TCP": {"443": {"TCPForward": f"localhost:{PORT}"}}, "AllowFunnel": {f"{HOST}:443": True}},
            "tailscale funnel --tcp=443 off",
            id="tcp_funnel",
        ),
        pytest.param(
            web(f"{PORT}", Foreground={"5e": {"AllowFunnel": {f"{HOST}:443": True}}}),
            "tailscale funnel --https=443 off",
            id="funnel_of_a_terminal",
        ),
        pytest.param(
            {"AllowFunnel": {f"{HOST}:443": True}, "Foreground": {"5e": web(f"{PORT}")}},
            "Ctrl-C",
            id="funnel_for_a_terminal",
        ),
        pytest.param(
            {"Services": {"svc:ai": {"TCP": {"443": {"TCPForward": f"127.0.0.1:{PORT}"}}}}},
            "tailscale serve --service=svc:ai --tcp=443 off",
            id="tcp_of_a_service",
        ),
        pytest.param(
            {"Foreground": {"5e": {"TCP": {"443": {"TCPForward": f"127.0.0.1:{PORT}"}}}}}, "Ctrl-C", id="tcp_foreground"
        ),
        pytest.param(
            web(f"{PORT}") | {"TCP": {"443": {"HTTPS": True}, "9000": {"TCPForward": f"127.0.0.1:{PORT}"}}},
            "tailscale serve --tcp=9000 off",
            id="tcp_beside_https",
        ),
    ],
)
def test_rules_that_say_nothing(config: dict[str, Any], hint: str) -> None:
    """A rule that passes on bytes, or lets the internet in, makes the port unsafe, whatever other rules there are."""
    serving = of_serve(config, Ports(7777, 11434, PORT))
    assert serving.blind is not None
    assert hint in serving.blind.hint
    assert why_closed(UP, serving) is not None


@pytest.mark.parametrize(
    ("tailnet", "serving", "words"),
    [
        pytest.param(UP, Serving(), None, id="well"),
        pytest.param(STOPPED, Serving(), None, id="stopped"),
        pytest.param(USERSPACE, Serving(), "userspace networking", id="userspace"),
        pytest.param(UP, None, "can't be read", id="rules_unknown"),
        pytest.param(UP, Serving((BLIND,), (f"https://{HOST}",)), "passes on bytes", id="blind_rule"),
        pytest.param(UP, Serving((Rule("leads past", "off"),)), None, id="rule_that_concerns_others"),
    ],
)
def test_why_closed(tailnet: Tailnet, serving: Serving | None, words: str | None) -> None:
    """Only while each way here is known to say who comes by it is anything served; every reason has a remedy."""
    found = why_closed(tailnet, serving)
    assert (found is None) is (words is None)
    assert found is None or (words or "") in found[0]
    assert found is None or found[1]


# --- the socket -------------------------------------------------------------------------------------------------------


class Said:
    """A log that is remembered."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []  # level, event

    def info(self, event: str, **_: object) -> None:
        """Remember it."""
        self.events.append(("info", event))

    def warning(self, event: str, **_: object) -> None:
        """Remember it."""
        self.events.append(("warning", event))

    def error(self, event: str, **_: object) -> None:
        """Remember it."""
        self.events.append(("error", event))

    exception = error


class Stage:
    """A ServePort with a scripted Tailscale."""

    def __init__(self) -> None:
        self.port = free_port()
        self.tailscale = ScriptedTailscale(UP)
        self.said = Said()
        self.opened: list[bool] = []
        flags = {"serve_port": str(self.port), "upstream": "http://127.0.0.1:7777"}
        settings = load(flags, {"HOME": "/nowhere"}).settings
        made = (asyncio.Protocol, settings, self.tailscale, self.said, self.opened.append)
        self.serve_port = ServePort(*made)  # type: ignore[arg-type]

    async def tell(self, tailnet: Tailnet | Exception = UP, leads: tuple[Rule, ...] | None = ()) -> None:
        """Change Tailscale's rules, and wait until they were read."""
        self.tailscale.tailnet, self.tailscale.leads = tailnet, leads
        now = self.tailscale.looks
        await until(lambda: self.tailscale.looks >= now + 2)

    async def listens(self) -> bool:
        """Return whether connections are taken."""
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except ConnectionRefusedError:
            return False
        writer.close()
        return True


@pytest.fixture
async def stage(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    """Give a stage, and clear it."""
    monkeypatch.setattr(serve_port, "FOLLOW_EACH", 0.005)
    stage = Stage()
    yield stage
    stage.serve_port.close()


@pytest.mark.parametrize(
    ("tailnet", "leads"),
    [
        pytest.param(UP, (BLIND,), id="blind_rule"),
        pytest.param(UP, None, id="rules_unknown"),
        pytest.param(USERSPACE, (), id="userspace"),
        pytest.param(OSError("unheard of"), (), id="raises"),
    ],
)
async def test_open_and_shut(stage: Stage, tailnet: Tailnet | Exception, leads: tuple[Rule, ...] | None) -> None:
    """The port is listened on only while serve can be trusted; that it isn't is an error in the log."""
    stage.serve_port.open()
    await stage.tell()
    assert await stage.listens()
    assert stage.opened[-1] is True
    await stage.tell(tailnet, leads)
    assert not await stage.listens()
    assert stage.opened[-1] is False
    assert stage.said.events[-1][0] == "error"
    await stage.tell()
    assert await stage.listens()
    assert stage.opened[-1] is True


async def test_shut_from_the_beginning(stage: Stage) -> None:
    """Before the rules are known nothing is listened on."""
    stage.tailscale.leads = (BLIND,)
    stage.serve_port.open()
    await stage.tell(UP, (BLIND,))
    assert True not in stage.opened
    assert not await stage.listens()
    assert stage.said.events == [("error", "serve_port_closed")]


async def test_ports_that_count(stage: Stage) -> None:
    """The rules are read with the port for serve among those that count."""
    stage.serve_port.open()
    await stage.tell()
    assert stage.tailscale.asked[-1] == Ports(7777, 11434, stage.port, 11434)


async def test_no_port_by_default() -> None:
    """Without the setting nothing is asked or listened on."""
    tailscale = ScriptedTailscale(UP)
    settings = load({}, {"HOME": "/nowhere"}).settings
    unused = ServePort(asyncio.Protocol, settings, tailscale, Said(), print)  # type: ignore[arg-type]
    unused.open()
    await asyncio.sleep(0)
    unused.close()
    assert tailscale.looks == 0


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        pytest.param({"serve_port": "11434"}, "is Ollama's port", id="of_ollama"),
        pytest.param(
            {"serve_port": "21500", "port": "21500", "listen": "127.0.0.1"}, "where the proxy itself listens", id="own"
        ),
        pytest.param({"serve_port": "70000"}, "out of range", id="no_port"),
    ],
)
def test_port_that_is_taken(flags: dict[str, str], words: str) -> None:
    """A port that Ollama or the proxy itself has on loopback is a settings error."""
    with pytest.raises(SettingsError) as raised:
        load(flags, {"HOME": "/nowhere"})
    assert any(words in str(problem) for problem in raised.value.problems)


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param({"serve_port": "11435"}, id="of_its_own"),
        pytest.param({"serve_port": "21500", "port": "21500"}, id="the_same_at_another_address"),
    ],
)
def test_port_that_is_free(flags: dict[str, str]) -> None:
    """Any other port will do."""
    assert load(flags, {"HOME": "/nowhere"}).settings.serve_port == int(flags["serve_port"])
