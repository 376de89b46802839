"""How the proxy finds its addresses, and what it does while Tailscale gives none."""

from __future__ import annotations

from signal import SIGSTOP
from typing import TYPE_CHECKING

import pytest

from tests.support.mac.fake_launchd import until
from tests.tailnet.machines import MOVED, SOCKET
from tests.tailnet.served import OLLAMA, PORT, asks, stream

if TYPE_CHECKING:
    from tests.tailnet.machines import Machine, Tailnet
    from tests.tailnet.served import Served


def test_both_addresses(mac: Served, laptop: Machine) -> None:
    """Without a setting it listens on Tailscale's IPv4 and IPv6 address, and on nothing else."""
    mac.serve()
    assert mac.machine.listens() == {OLLAMA, *mac.addresses}
    assert [asks(laptop, address) for address, _ in mac.addresses] == [200, 200]
    for address in mac.machine.lan:  # the laptop is in the LAN too
        with pytest.raises(ConnectionRefusedError):
            laptop.connect(address, PORT)


@pytest.mark.parametrize("program", ["works", "is not there"])
def test_without_localapi(mac: Served, laptop: Machine, program: str) -> None:
    """If tailscaled's socket is not at its usual place, the CLI gives the addresses, or else the interface."""
    machine = mac.machine
    machine.must("mv", SOCKET, MOVED)
    if program == "works":
        folder = machine.folder / "bin"
        folder.mkdir()
        (folder / "tailscale").write_text(
            f'#!/bin/sh\nexec {machine.path.split(":")[0]}/tailscale --socket={MOVED} "$@"\n'
        )
        (folder / "tailscale").chmod(0o755)
        machine.path = f"{folder}:{machine.path}"
    else:
        machine.path = machine.path.partition(":")[2]
    mac.serve()
    if program == "works":
        until(lambda: asks(laptop, mac.machine.ipv4) == 200 and mac.lines(device="laptop"))
    else:
        assert [asks(laptop, mac.machine.ipv4) for _ in range(3)] == [200] * 3
        assert not any("device" in line for line in mac.lines())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        pytest.param(["down"], "Tailscale is stopped", id="stopped"),
        pytest.param(["logout"], "Tailscale is not logged in", id="logged-out"),
    ],
)
def test_waits_for_tailscale(mac: Served, flags: list[str], words: str) -> None:
    """While Tailscale gives no address it listens nowhere, logs why, and listens as soon as there is one."""
    mac.machine.tailscale(*flags)
    mac.start()
    until(lambda: mac.said("waiting_for_tailscale"))
    assert words in mac.said("waiting_for_tailscale")[0]
    assert mac.machine.listens() == {OLLAMA}
    mac.machine.log_in()
    mac.wait_for(OLLAMA, *mac.addresses)


def test_control_out_of_reach(mac: Served, tailnet: Tailnet) -> None:
    """When tailscaled starts and can't reach its control server, the proxy waits and logs what Tailscale says of it."""
    tailnet.lose_control()
    mac.machine.tailscaled.kill()
    tailnet.start_tailscaled(mac.machine)
    mac.start()
    until(lambda: any("connection refused" in line for line in mac.said("waiting_for_tailscale")))
    assert mac.machine.listens() == {OLLAMA}


def test_two_outages_in_a_row(mac: Served) -> None:
    """Each time that addresses go the log says why, however soon that is after the last time."""
    mac.serve()
    for count in (1, 2):
        mac.machine.tailscale("down")
        mac.wait_for(OLLAMA)
        gone = mac.said("address_gone")
        assert len(gone) == count * len(mac.addresses)
        assert all("Tailscale is stopped" in line for line in gone)
        mac.machine.log_in()
        mac.wait_for(OLLAMA, *mac.addresses)


def test_down_during_a_stream(mac: Served, laptop: Machine) -> None:
    """While Tailscale is down nothing listens; a stream that was under way outlives that, and arrives whole."""
    mac.serve()
    answer = stream(laptop, mac)
    mac.machine.tailscale("down")
    mac.wait_for(OLLAMA)
    mac.machine.log_in()
    mac.wait_for(OLLAMA, *mac.addresses)
    assert answer.read().endswith(b"data: [DONE]\n\n")
    line = mac.line(route="POST /v1/chat/completions")
    assert (line["ended"], line["device"], line["peer"]) == ("complete", "laptop", laptop.ipv4)
    assert not mac.lines(verdict="refused")


def test_another_profile_during_a_stream(mac: Served, laptop: Machine) -> None:
    """With another profile it listens on the addresses of that one alone; a stream on the old one ends whole.

    `tailscale switch` back and forth is what a person with two accounts does all day.
    """
    mac.serve()
    machine, first = mac.machine, mac.addresses
    (profile,) = (line.split()[0] for line in machine.tailscale("switch", "--list").splitlines()[1:])
    answer = stream(laptop, mac)
    machine.log_in(verb="login")
    assert not mac.addresses & first
    mac.wait_for(OLLAMA, *mac.addresses)
    assert asks(laptop, mac.machine.ipv4) == 200
    machine.tailscale("switch", profile)
    machine.learn_addresses()
    assert mac.addresses == first
    mac.wait_for(OLLAMA, *first)
    assert answer.read().endswith(b"data: [DONE]\n\n")
    assert mac.line(route="POST /v1/chat/completions")["ended"] == "complete"


@pytest.mark.parametrize("trouble", ["down", "dead", "hung"])
def test_status_without_tailscale(mac: Served, trouble: str) -> None:
    """While Tailscale is down, dead or hung `status` reports that, with a hint."""
    mac.serve()
    if trouble == "down":
        mac.machine.tailscale("down")
        mac.wait_for(OLLAMA)
    elif trouble == "dead":
        mac.machine.tailscaled.kill()
        until(lambda: mac.machine.run("ip", "link", "show", "tailscale0").returncode)
    else:
        mac.machine.tailscaled.signal(SIGSTOP)
    assert mac.machine.proxy("status").returncode == 1 or trouble == "hung"  # the address of a hung one still works
    bad = [each for each in mac.findings("status") if each.is_bad and "Tailscale" in each.detail]
    assert bad
    assert all(each.hint for each in bad)
