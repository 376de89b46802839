"""A Tailscale that is slow, silent, mistaken or restarted opens nothing, and only devices that it doesn't name wait."""

from __future__ import annotations

import http.client
import signal
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from proxy.tailnet.whois import RULES_LIFETIME
from tests.support.mac.fake_launchd import until
from tests.support.patience import PATIENCE
from tests.tailnet.access.between import between, straight
from tests.tailnet.access.home import DEVICES, RULES, USER, open_home
from tests.tailnet.machines import MOVED, SOCKET

if TYPE_CHECKING:
    from tests.tailnet.access.home import Home
    from tests.tailnet.machines import Tailnet

LAPTOP = "100.64.0.2"  # the second device that logs in
BY_ADDRESS = f'[[access]]\nwho = ["{LAPTOP}"]\nmodels = ["*"]\n' + RULES
NOBODY = "100.64.99.99"


def until_refused(home: Home, device: str, model: str, status: int) -> set[tuple[str, int]]:
    """Wait until a device's own model is refused to it. Return how the devices fared with `plain` until then."""
    seen: set[tuple[str, int]] = set()

    def is_refused() -> bool:
        seen.update((each, home.status(each)) for each in DEVICES)
        return home.status(device, model) != 200  # what was known before counts for ten seconds

    until(is_refused)
    assert home.status(device, model) == status
    return seen


@pytest.mark.parametrize(
    ("way", "status", "reason"),
    [
        pytest.param(None, 503, "identity_needed", id="no_answer"),
        pytest.param("laptop", 503, "identity_needed", id="another_device"),
        pytest.param(NOBODY, 403, "peer_unknown", id="no_such_device"),
    ],
)
def test_wrong_answer_about_one_device(home: Home, way: str | None, status: int, reason: str) -> None:
    """Without a right answer about a device it gets nothing, and the others get theirs; with one, all is as before."""
    ipad = home.devices["kids-ipad"].ipv4
    instead = home.devices["laptop"].ipv4 if way == "laptop" else way
    with between(home.mac.machine) as tailscale:
        assert home.status("kids-ipad", "tiny") == 200
        tailscale.way = lambda address: instead if address == ipad else address
        seen = until_refused(home, "kids-ipad", "tiny", status)
        assert seen <= {("laptop", 200), ("robot", 200), ("kids-ipad", 403), ("kids-ipad", status)}
        assert home.mac.line(peer=ipad, status=status)["reason"] == reason
        assert [home.status(device) for device in DEVICES] == [200, 200, status]
        tailscale.way = straight
        until(lambda: home.status("kids-ipad", "tiny") == 200)
        assert home.status("kids-ipad") == 403


def test_slow_answer_about_one_device(home: Home) -> None:
    """While Tailscale takes long about one device, that one is refused, and the others are named and served."""
    ipad, release = home.devices["kids-ipad"].ipv4, threading.Event()

    def slow(address: str) -> str:
        if address == ipad:
            release.wait(PATIENCE)
        return address

    with between(home.mac.machine) as tailscale:
        tailscale.way = slow
        got: list[int] = []
        asking = threading.Thread(target=lambda: got.append(home.status("kids-ipad", "tiny")))
        asking.start()
        until(lambda: ipad in tailscale.asked)
        assert [home.status(device) for device in ("laptop", "robot")] == [200, 200]
        assert {home.devices[device].ipv4 for device in ("laptop", "robot")} <= {*tailscale.asked}
        asking.join()
        assert got == [503]
        release.set()
        until(lambda: home.status("kids-ipad", "tiny") == 200)
        assert home.status("kids-ipad") == 403


def test_absent_localapi(tailnet: Tailnet) -> None:
    """Where Tailscale can't be asked at all, only a rule that needs no name lets its device in."""
    home = open_home(tailnet, BY_ADDRESS)
    machine = home.mac.machine
    assert home.devices["laptop"].ipv4 == LAPTOP
    assert [home.status(device) for device in DEVICES] == [200, 200, 403]
    machine.must("mv", SOCKET, MOVED)
    seen = until_refused(home, "robot", "plain", 503) | until_refused(home, "kids-ipad", "tiny", 503)
    assert {status for device, status in seen if device == "laptop"} == {200}
    assert {status for device, status in seen if device == "kids-ipad"} <= {403, 503}
    assert [home.status(device) for device in (*DEVICES, "mac")] == [200, 503, 503, 503]
    assert home.mac.said("peers_not_identified")
    machine.must("mv", MOVED, SOCKET)
    until(lambda: home.status("robot") == 200)
    assert [home.status(device) for device in ("laptop", "kids-ipad")] == [200, 403]


@pytest.mark.parametrize("seconds", [0, RULES_LIFETIME], ids=["at_once", "when_no_answer_is_valid_any_more"])
def test_restarted_tailscaled(home: Home, tailnet: Tailnet, seconds: float) -> None:
    """While tailscaled restarts nobody gets more than a rule allows, and afterwards each device gets its own again."""
    machine, seen = home.mac.machine, set()

    def tries() -> bool:
        for device in ("kids-ipad", "mac", "laptop"):
            with suppress(OSError, http.client.HTTPException):
                seen.add((device, home.status(device)))
        return ("laptop", 200) in seen

    assert tries()
    seen.clear()
    machine.tailscaled.kill()
    until(lambda: machine.run("ip", "link", "show", "tailscale0").returncode)  # without it no packet gets through
    time.sleep(seconds)
    tailnet.start_tailscaled(machine)
    until(tries)
    assert {status for device, status in seen if device != "laptop"} <= {403, 503}
    until(lambda: home.status("kids-ipad", "tiny") == 200)


def test_silent_tailscaled(home: Home) -> None:
    """With a Tailscale that doesn't answer, what a name allows ends after ten seconds, and returns with its answer."""
    home.reload(RULES + f'[[access]]\nwho = ["{USER.format(1)}"]\nmodels = ["*"]\n')
    until(lambda: home.ask("mac", "GET", "/v1/models")[0] == 200)
    home.mac.machine.tailscaled.signal(signal.SIGSTOP)
    until(lambda: home.ask("mac", "GET", "/v1/models")[0] == 503)
    assert home.mac.said("peers_not_identified")
    home.mac.machine.tailscaled.signal(signal.SIGCONT)
    until(lambda: home.ask("mac", "GET", "/v1/models")[0] == 200)
