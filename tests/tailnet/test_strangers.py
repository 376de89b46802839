"""Who is not in the tailnet, and what shields the machine from those who are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.tailnet.served import PORT

if TYPE_CHECKING:
    from tests.tailnet.machines import Tailnet
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
