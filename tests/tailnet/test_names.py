"""Who asks: device, and user or tags, as the audit line names them."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from proxy.tailnet.whois import LIFETIME
from tests.support.mac.fake_launchd import until
from tests.tailnet.served import asks

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.tailnet.machines import Machine, Tailnet
    from tests.tailnet.served import Served

USER = "user-{}@fake-control.example.net"
"""The control server's name for the one who logged in with the device of that number."""

GRANT = {"example.com/cap/ollama": [{"models": ["tiny"], "role": "user"}]}


def named(machine: Machine, served: Served, address: str, **wanted: object) -> None:
    """Ask once: the line of that request has these values."""
    before = len(served.lines())
    assert asks(machine, address) == 200
    line = until(lambda: served.lines()[before:])[0]
    assert wanted.items() <= line.items()


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize(
    ("asker", "device", "user"),
    [
        pytest.param("laptop", "laptop", USER.format(2), id="of-a-user"),
        pytest.param("robot", "robot", "tag:robot", id="tagged"),
        pytest.param("mac", "mac", USER.format(1), id="the-machine-itself"),
    ],
)
def test_device_and_user(
    mac: Served, laptop: Machine, tailnet: Tailnet, family: str, asker: str, device: str, user: str
) -> None:
    """The audit line has the device's name and its user or tags, by either family."""
    machines = {"mac": mac.machine, "laptop": laptop, "robot": tailnet.join("robot", "--advertise-tags=tag:robot")}
    mac.serve()
    machine = machines[asker]
    named(machine, mac, getattr(mac.machine, family), device=device, user=user, peer=getattr(machine, family))


def test_another_name_owner_and_tag(mac: Served, laptop: Machine, tailnet: Tailnet) -> None:
    """A minute after a device got another name, owner or tag no line has the former ones, the first one included."""
    robot = tailnet.join("robot", "--advertise-tags=tag:robot")
    mac.serve()
    named(laptop, mac, mac.machine.ipv4, device="laptop", user=USER.format(2))
    named(robot, mac, mac.machine.ipv4, device="robot", user="tag:robot")
    tailnet.change(laptop, name="stranger", user=1)
    tailnet.change(robot, tag="tag:retired")
    tailnet.change(robot, name="scrap")
    time.sleep(LIFETIME + 1)  # nobody asks meanwhile: a request could renew what is known
    before = len(mac.lines())
    named(laptop, mac, mac.machine.ipv4, device="stranger", user=USER.format(1))
    named(robot, mac, mac.machine.ipv4, device="scrap", user="tag:retired")
    later = mac.lines()[before:]
    assert not [line for line in later if line.get("device") in {"laptop", "robot"}]


def test_grants(make_tailnet: Callable[..., Tailnet]) -> None:
    """A grant's app capability arrives in whois as `CapMap`: capability -> list of values, for IPv4 and IPv6."""
    tailnet = make_tailnet(f"-grant={json.dumps(GRANT)}")
    mac, laptop = tailnet.join("mac"), tailnet.join("laptop")
    for address in (f"{laptop.ipv4}:1", f"[{laptop.ipv6}]:1"):
        granted = mac.localapi(f"whois?addr={address}")["CapMap"]
        assert {name: granted.get(name) for name in GRANT} == GRANT
