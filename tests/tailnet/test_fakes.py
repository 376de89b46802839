"""Whether the fake Tailscale of the other tests answers like this real one: the same keys, the same kinds of values."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from proxy.tailnet.device import of_whois
from tests.fakes.localapi import Tailnet as Fake
from tests.fakes.localapi import person, shared_in, sharee, tagged
from tests.support.mac.fake_launchd import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.tailnet.machines import Machine, Tailnet
    from tests.tailnet.served import Served

OTHERWISE = {
    "Health",  # comes and goes with what tailscaled has just found out
    "Endpoints",  # of this second
    "Hostinfo",  # whatever the other device says of its system and network
    "Online",
}
"""Keys that one Tailscale has at one time, and not at another."""


def invented(fake: Any, real: Any, where: str = "") -> Iterator[str]:
    """Yield each field of the fake that the real one lacks, or has as another kind of value. Null is of any kind."""
    if fake is None or real is None:
        return
    if type(fake) is not type(real):
        yield f"{where}: {type(fake).__name__}, and {type(real).__name__} is real"
    elif isinstance(fake, list):
        yield from invented(fake[0], real[0], f"{where}[]") if fake and real else ()
    elif isinstance(fake, dict):
        by_id = fake.keys() != real.keys() and all(map(str.isdigit, [*fake, *real]))
        for key in fake.keys() - OTHERWISE:
            if by_id and real:
                yield from invented(fake[key], next(iter(real.values())), f"{where}.ID")
            elif key not in real:
                yield f"{where}.{key}: is missing"
            else:
                yield from invented(fake[key], real[key], f"{where}.{key}")


@pytest.mark.parametrize("state", ["Running", "Stopped"])
def test_status(mac: Served, tmp_path: Path, state: str) -> None:
    """The fake status has only fields of a real one, while Tailscale runs and when it is stopped."""
    if state == "Stopped":
        mac.machine.tailscale("down")
    fake = Fake(tmp_path)
    fake.change(state=state)
    real = mac.machine.localapi("status?peers=false")
    assert real["BackendState"] == state
    assert [*invented(fake.status(), real)] == []


def test_preferences(mac: Served, tmp_path: Path) -> None:
    """The fake preferences have only fields of real ones."""
    assert [*invented(Fake(tmp_path).prefs(), mac.machine.localapi("prefs"))] == []


def test_whois(mac: Served, laptop: Machine, tailnet: Tailnet) -> None:
    """The fake whois has only fields of the real one, for a user's device and for a tagged one."""
    robot = tailnet.join("robot", "--advertise-tags=tag:robot")
    for fake, machine in ((person("laptop", "alice@example.com"), laptop), (tagged("robot", "tag:robot"), robot)):
        assert [*invented(fake, mac.machine.localapi(f"whois?addr={machine.ipv4}:1"))] == []
    assert mac.machine.localapi("whois?addr=100.64.99.99:1") is None


@pytest.mark.parametrize(("way", "made"), [("in", shared_in), ("out", sharee)])
def test_whois_of_another_tailnet(
    mac: Served, laptop: Machine, tailnet: Tailnet, way: str, made: Callable[..., Any]
) -> None:
    """The fakes name a device of another tailnet as tailscaled does, and it counts as one."""
    tailnet.change(laptop, shared=way)
    target, fake = f"whois?addr={laptop.ipv4}:1", made("laptop", "bob@example.org")
    names = ("Name", "ComputedName", "Sharer")
    wanted = [fake["Node"].get(name) and bool(fake["Node"][name]) for name in names]
    real = until(
        lambda: (found := mac.machine.localapi(target)) and found["Node"]["Name"] != "laptop.tail1234.ts.net." and found
    )
    assert [*invented(fake | {"UserProfile": real["UserProfile"]}, real)] == []
    assert [real["Node"].get(name) and bool(real["Node"][name]) for name in names] == wanted
    assert of_whois(real).shared
    assert of_whois(real).device == fake["Node"]["ComputedName"]


def test_cli_prints_the_same(mac: Served, laptop: Machine) -> None:
    """The CLI's JSON is the LocalAPI's, for each question that the program may have to ask it."""
    address = f"{laptop.ipv4}:1"
    for words, target in (
        (("status", "--json", "--peers=false"), "status?peers=false"),
        (("whois", "--json", address), f"whois?addr={address}"),
        (("debug", "prefs"), "prefs"),
    ):
        assert json.loads(mac.machine.tailscale(*words)).keys() == mac.machine.localapi(target).keys(), words
    assert json.loads(mac.machine.tailscale("serve", "status", "--json")) == {}
