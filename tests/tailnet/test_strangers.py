"""Who is not in the tailnet, and what shields the machine from those who are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from tests.support.mac.fake_launchd import until
from tests.tailnet.served import PORT, asks

if TYPE_CHECKING:
    from tests.tailnet.machines import Machine, Tailnet
    from tests.tailnet.served import Served


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_neighbour_in_the_lan(mac: Served, tailnet: Tailnet, family: int) -> None:
    """A neighbour that sends packets for the Tailscale address through the LAN gets no byte, and has its line."""
    neighbour = tailnet.neighbour("neighbour")
    mac.serve()
    address = (mac.machine.ipv4, mac.machine.ipv6)[family]
    neighbour.ip("-6" if family else "-4", "route", "add", address, "via", mac.machine.lan[family], "dev", "lan0")
    with neighbour.connect(address, PORT) as sock:  # the kernel takes it in: the weak host model
        try:
            sock.sendall(b"GET /v1/models HTTP/1.1\r\nHost: mac\r\n\r\n")
            got = sock.recv(1)
        except OSError:  # closed so soon that it could not be sent
            got = b""
    assert got == b""
    line = mac.line(verdict="refused")
    assert (line["reason"], line["peer"], line["bytes_out"]) == ("peer_not_allowed", neighbour.lan[family], 0)
    assert not {"device", "user"} & line.keys()
    with pytest.raises(ConnectionRefusedError):
        neighbour.connect(mac.machine.lan[family], PORT)


def test_neighbour_with_an_address_of_the_tailnet(mac: Served, laptop: Machine, tailnet: Tailnet) -> None:
    """Without Tailscale's packet filter, a neighbour with an address from the tailnet's ranges is refused."""
    neighbour = tailnet.neighbour("neighbour")
    mac.serve()
    mac.machine.tailscale("set", "--netfilter-mode=off")
    neighbour.ip("addr", "add", "100.72.1.9/24", "dev", "lan0")
    mac.machine.ip("addr", "add", "100.72.1.2/24", "dev", "lan0")
    neighbour.ip("route", "replace", mac.machine.ipv4, "via", "100.72.1.2")
    assert asks(neighbour, mac.machine.ipv4) == 403
    line = mac.line(peer="100.72.1.9")
    assert (line["verdict"], line["reason"]) == ("refused", "peer_unknown")
    assert asks(laptop, mac.machine.ipv4) == 200


def test_shields_up(mac: Served, laptop: Machine) -> None:
    """With shields up no device arrives, and `--check`, `status` and `verify` say so."""
    mac.serve()
    mac.machine.tailscale("set", "--shields-up")
    with pytest.raises(TimeoutError):
        laptop.connect(mac.machine.ipv4, PORT, timeout=2)
    for command in (["--check"], ["status"], ["verify", "--skip-model-tests"]):
        found = [each for each in mac.findings(*command) if each.is_bad and "shields" in each.detail.lower()]
        assert found, command
        assert "tailscale set --shields-up=false" in found[0].hint
    mac.machine.tailscale("set", "--shields-up=false")
    until(lambda: asks(laptop, mac.machine.ipv4) == 200)
    assert not any("shields" in each.detail.lower() for each in mac.findings("status"))


def test_key_expires_soon(mac: Served, tailnet: Tailnet) -> None:
    """When the machine's own key expires within 30 days, `--check`, `status` and `verify` say so, and not before."""
    mac.serve()
    commands = (["--check"], ["status"], ["verify", "--skip-model-tests"])
    for days, count in ((40, 0), (20, 1)):
        tailnet.change(mac.machine, expires_in_days=days)
        day = (datetime.now(UTC) + timedelta(days=days)).date().isoformat()
        until(lambda day=day: day in mac.machine.localapi("status")["Self"].get("KeyExpiry", ""))
        for command in commands:
            found = [each for each in mac.findings(*command) if each.is_bad and "expires on" in each.detail]
            assert len(found) == count, (days, command, found)
            assert all(day in each.detail for each in found)
