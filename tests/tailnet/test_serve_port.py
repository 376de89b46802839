"""The port for `tailscale serve`: who asks there, and when nothing is served on it."""

from __future__ import annotations

import http.client
import json
import ssl
from typing import TYPE_CHECKING

import pytest

from tests.support.mac.fake_launchd import until
from tests.support.patience import PATIENCE
from tests.tailnet.served import OLLAMA, Served, asks, story

if TYPE_CHECKING:
    from pathlib import Path

    from tests.tailnet.machines import Machine, Tailnet

SERVE_PORT = 11435
OWN = ("127.0.0.1", SERVE_PORT)
HTTP = f"http://127.0.0.1:{SERVE_PORT}"
TCP = f"tcp://127.0.0.1:{SERVE_PORT}"
NAME = "mac.tail1234.ts.net"
COMMANDS = (["--check"], ["status"], ["verify", "--skip-model-tests"])


@pytest.fixture
def behind(mac: Served) -> Served:
    """Give the machine with the proxy listening on its port for serve too."""
    mac.settings.write_text(f"serve_port = {SERVE_PORT}\n")
    mac.serve()
    until(lambda: OWN in mac.machine.listens())
    return mac


def status(machine: Machine, address: str, port: int = 80, **fields: str) -> int:
    """Return the status of the answer to a request through a rule of serve; 0 where no answer comes."""
    return asks(machine, address, port, **{"Host": NAME, **fields})


def secure(machine: Machine, served: Served, authority: Path, content: object) -> http.client.HTTPResponse:
    """Return the answer to a chat request by https, whose certificate is looked at."""
    asking = http.client.HTTPConnection(NAME)
    context = ssl.create_default_context(cafile=str(authority))
    asking.sock = context.wrap_socket(machine.connect(served.machine.ipv4, 443, PATIENCE), server_hostname=NAME)
    asking.request("POST", "/v1/chat/completions", json.dumps(content), {"Connection": "close"})
    answer = asking.getresponse()
    asking.close()
    return answer


def test_https(behind: Served, laptop: Machine, tailnet: Tailnet) -> None:
    """By https a device is served and named, a stream arrives as it is made, and `connect` prints the address."""
    authority = tailnet.certify(behind.machine)
    behind.machine.tailscale("serve", "--bg", "--https=443", HTTP)
    with secure(laptop, behind, authority, story(2)) as answer:
        assert answer.status == 200
        assert answer.readline().startswith(b"data: ")
        assert not behind.lines(route="POST /v1/chat/completions")  # it isn't over yet
        assert answer.read().endswith(b"data: [DONE]\n\n")
    line = behind.line(route="POST /v1/chat/completions")
    assert (line["device"], line["peer"], line["ended"]) == ("laptop", laptop.ipv4, "complete")
    printed = behind.machine.proxy("connect", "codex")
    assert f"https://{NAME}" in printed.stdout + printed.stderr


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize(
    ("asker", "user"),
    [
        pytest.param("laptop", "user-2@fake-control.example.net", id="of-a-user"),
        pytest.param("robot", "tag:robot", id="tagged"),
        pytest.param("mac", "user-1@fake-control.example.net", id="the-machine-itself"),
    ],
)
def test_device_by_http(behind: Served, laptop: Machine, tailnet: Tailnet, family: str, asker: str, user: str) -> None:
    """Through a rule of serve a device is looked up like any peer, by both families."""
    behind.machine.tailscale("serve", "--bg", "--http=80", HTTP)
    robot = tailnet.join("robot", "--advertise-tags=tag:robot")
    machine = {"laptop": laptop, "robot": robot, "mac": behind.machine}[asker]
    wanted = {"device": asker, "user": user, "peer": getattr(machine, family)}
    until(lambda: status(machine, getattr(behind.machine, family)) == 200 and behind.lines(**wanted))


@pytest.mark.parametrize(
    ("rule", "port", "path"),
    [
        pytest.param(["--bg", "--http=80", "--set-path=/ai", HTTP], 80, "/ai/v1/models", id="below-a-path"),
        pytest.param(["--bg", "--http=80", "--set-path=/v1", f"{HTTP}/v1"], 80, "/v1/models", id="a-part-of-it"),
        pytest.param(["--bg", "--http=8080", str(SERVE_PORT)], 8080, "/v1/models", id="by-a-number"),
        pytest.param(["--http=80", HTTP], 80, "/v1/models", id="in-a-terminal"),
    ],
)
def test_other_rules_that_say_who(behind: Served, laptop: Machine, rule: list[str], port: int, path: str) -> None:
    """Every way to write a rule that says who asks is served."""
    behind.machine.start("tailscale", "serve", *rule, said="serve")
    until(lambda: asks(laptop, behind.machine.ipv4, port, path, Host=NAME) == 200)
    assert behind.line(status=200)["peer"] == laptop.ipv4
    assert not closed(behind)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"X-Forwarded-For": "100.64.0.1"}, id="address"),
        pytest.param({"X_Forwarded_For": "100.64.0.1"}, id="address-with-underscores"),
        pytest.param({"Forwarded": "for=100.64.0.1", "X-Real-IP": "100.64.0.1"}, id="address-elsewhere"),
        pytest.param({"Tailscale-User-Login": "user-1@fake-control.example.net"}, id="login"),
    ],
)
def test_forged_fields(behind: Served, laptop: Machine, fields: dict[str, str]) -> None:
    """No field that a device sends makes it another one."""
    behind.machine.tailscale("serve", "--bg", "--http=80", HTTP)
    until(lambda: status(laptop, behind.machine.ipv4, **fields) == 200 and behind.lines(device="laptop"))
    assert {line["peer"] for line in behind.lines()} == {laptop.ipv4}
    assert {line.get("device", "laptop") for line in behind.lines()} == {"laptop"}


def test_neighbour_through_serve(behind: Served, laptop: Machine, tailnet: Tailnet) -> None:
    """A neighbour in the LAN that reaches serve's own port is refused: its address is none of the tailnet's."""
    behind.machine.tailscale("serve", "--bg", "--http=80", HTTP)
    assert status(laptop, behind.machine.ipv4) == 200
    neighbour = tailnet.neighbour("neighbour")
    neighbour.ip("route", "add", behind.machine.ipv4, "via", behind.machine.lan[0], "dev", "lan0")
    assert status(neighbour, behind.machine.ipv4) == 403
    assert behind.line(verdict="refused")["reason"] == "not_by_serve"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        pytest.param({}, "not_by_serve", id="no-address"),
        pytest.param({"X-Forwarded-For": "192.168.88.9"}, "not_by_serve", id="not-of-the-tailnet"),
        pytest.param({"X-Forwarded-For": "100.64.0.2, 100.64.0.1"}, "not_by_serve", id="two-addresses"),
        pytest.param({"X-Forwarded-For": "100.64.0.2", "Tailscale-Funnel-Request": "?1"}, "by_funnel", id="funnel"),
    ],
)
def test_asked_on_loopback(behind: Served, fields: dict[str, str], reason: str) -> None:
    """Without exactly one address of the tailnet, or by funnel, nothing is served."""
    assert status(behind.machine, *OWN, **fields) == 403
    assert behind.line(verdict="refused")["reason"] == reason


each_wrong_rule = pytest.mark.parametrize(
    "rule",
    [
        pytest.param(["serve", "--bg", "--tcp=5000", TCP], id="tcp"),
        pytest.param(["serve", "--bg", "--tls-terminated-tcp=5001", TCP], id="tls-terminated-tcp"),
        pytest.param(["funnel", "--bg", "--https=443", HTTP], id="funnel"),
    ],
)


@each_wrong_rule
def test_rule_that_does_not_say_who(behind: Served, laptop: Machine, rule: list[str]) -> None:
    """While a rule leads there by which a stranger could name itself, nothing is served there, and all say so."""
    behind.machine.tailscale("serve", "--bg", "--http=80", HTTP)
    assert status(laptop, behind.machine.ipv4) == 200
    behind.machine.tailscale(*rule)
    until(lambda: closed(behind))
    assert behind.said("serve_port_closed")
    assert OWN not in behind.machine.listens()
    assert status(laptop, behind.machine.ipv4, 5000, **{"X-Forwarded-For": behind.machine.ipv4}) != 200
    assert asks(laptop, behind.machine.ipv4) == 200  # by the address of its own all is as ever
    for command in COMMANDS:
        found = [each for each in behind.findings(*command) if each.outcome == "fail" and "tailscale" in each.hint]
        assert found, command
    behind.machine.must("sh", "-c", found[0].hint)
    until(lambda: not closed(behind))
    assert status(laptop, behind.machine.ipv4) == 200


def closed(served: Served) -> bool:
    """Return whether nothing is served on the port for serve, not even to one who names a device."""
    return status(served.machine, *OWN, **{"X-Forwarded-For": served.machine.ipv4}) != 200


def test_tailscaled_is_gone(behind: Served) -> None:
    """While Tailscale can't say which rules there are nothing is served there."""
    assert not closed(behind)
    behind.machine.tailscaled.kill()
    until(lambda: closed(behind))
    assert behind.said("serve_port_closed")


def test_userspace_networking(tailnet: Tailnet) -> None:
    """In userspace mode nothing is served there: any device reaches loopback by itself, and could name another."""
    mac = Served(tailnet.join("mac", tun="userspace-networking"))
    laptop = tailnet.join("laptop")
    mac.settings.write_text(f"serve_port = {SERVE_PORT}\n")
    mac.start()
    until(lambda: mac.said("tailscale_unusable"))
    assert status(laptop, mac.machine.ipv4, SERVE_PORT, **{"X-Forwarded-For": mac.machine.ipv4}) != 200
    assert closed(mac)
    assert OLLAMA in mac.machine.listens()
