"""Whether the fake Tailscale of the other tests answers like this real one: the same keys, the same kinds of values."""

from __future__ import annotations

import json
import socket
import tempfile
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from proxy.tailnet.device import of_neighbours, of_whois
from tests.fakes.localapi import Tailnet as Fake
from tests.fakes.localapi import person, shared_in, sharee, tagged, tailscaled
from tests.support.mac.fake_launchd import until
from tests.support.patience import PATIENCE
from tests.tailnet.machines import Tailnet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.tailnet.machines import Machine
    from tests.tailnet.served import Served

OTHERWISE = {
    "Health",  # comes and goes with what tailscaled has just found out
    "Endpoints",  # of this second
    "Hostinfo",  # whatever the other device says of its system and network
    "Online",
}
"""Keys that one Tailscale has at one time, and not at another."""

VARIES = {"Date", "Server", "Tailscale-Version", "Etag"}
"""Header fields whose value is of one moment or of one program."""


class Answered(NamedTuple):
    """An answer of a LocalAPI."""

    status: int
    fields: dict[str, str]
    content: bytes


def answer(path: str, target: str, **fields: str) -> Answered:
    """Return the answer of the LocalAPI at a socket to a question that is asked as the proxy does, by HTTP/1.0."""
    sent = {"Host": "local-tailscaled.sock"} | fields
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(PATIENCE)
        asking.connect(path)
        lines = (f"GET /localapi/v0/{target} HTTP/1.0", *(f"{name}: {value}" for name, value in sent.items()), "", "")
        asking.sendall("\r\n".join(lines).encode())
        with asking.makefile("rb") as file:
            head, _, content = file.read().partition(b"\r\n\r\n")
    first, *rest = head.decode().split("\r\n")
    found = dict(line.split(": ", 1) for line in rest)
    if len(content) > 2048 or first.split()[1] == "200":
        found.pop("Content-Length", None)  # the two answers are not of one size
    return Answered(int(first.split()[1]), {name: found[name] for name in found.keys() - VARIES}, content)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Give the sockets of a real tailscaled and of the fake, in whose tailnets is the same laptop."""
    with ExitStack() as undo:
        tailnet = Tailnet(tmp_path_factory.mktemp("pair"), undo)
        mac, laptop = tailnet.join("mac"), tailnet.join("laptop")
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(dir="/tmp")))  # a path that is short enough
        Fake(folder).change(peers=dict.fromkeys((laptop.ipv4, laptop.ipv6), person("laptop", "alice@example.com")))
        undo.enter_context(tailscaled(folder, folder / "socket"))
        until(lambda: mac.localapi(f"whois?addr={laptop.ipv4}:1"))
        yield mac.socket, str(folder / "socket")


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


@pytest.mark.parametrize(
    "target",
    [
        pytest.param("whois?addr=100.64.0.2:1", id="known"),
        pytest.param("whois?addr=100.64.0.2", id="without_port"),
        pytest.param("whois?addr=100.64.99.99:1", id="unknown"),
        pytest.param("whois?addr=127.0.0.1:1", id="loopback"),
        pytest.param("whois?addr=[fd7a:115c:a1e0::9]:1", id="unknown_ipv6"),
        pytest.param("whois?addr=[fd7a:115c:a1e0::9]", id="brackets_without_port"),
        pytest.param("whois?addr=FD7A:115C:A1E0::9", id="upper_case"),
        pytest.param("whois?addr=nonsense", id="bad_address"),
        pytest.param("whois?addr=100.64.0.300:1", id="no_such_number"),
        pytest.param("whois?addr=100.64.0.2:99999", id="no_such_port"),
        pytest.param("whois?addr=[100.64.0.2]:1", id="brackets_round_ipv4"),
        pytest.param("whois?addr=", id="empty_address"),
        pytest.param("whois", id="no_address"),
        pytest.param("nothing", id="unknown_path"),
        pytest.param("status?peers=false", id="status"),
        pytest.param("serve-config", id="serve_config"),
    ],
)
def test_answers(pair: tuple[str, str], target: str) -> None:
    """The fake LocalAPI answers a question with the status, the text and the header fields of the real one."""
    real, fake = (answer(path, target) for path in pair)
    assert fake.status == real.status
    assert fake.fields == real.fields
    assert real.status == 200 or fake.content == real.content


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"Origin": "http://example.org"}, id="origin"),
        pytest.param({"Referer": "http://example.org"}, id="referer"),
        pytest.param({"Host": "example.org"}, id="host"),
    ],
)
def test_refusal_of_a_browser(pair: tuple[str, str], fields: dict[str, str]) -> None:
    """Both refuse in the same words what a browser may have sent."""
    real, fake = (answer(path, "status?peers=false", **fields) for path in pair)
    assert (fake.status, fake.content) == (real.status, real.content) == (403, b"invalid localapi request\n")


def test_grant(make_tailnet: Callable[..., Tailnet]) -> None:
    """The values of a grant are read from a real answer, where Tailscale has added capabilities of its own."""
    values = [{"models": ["tiny"]}, {"models": ["plain"], "max_active": 1}]
    tailnet = make_tailnet(f"-grant={json.dumps({'example.com/cap/ollama': values})}")
    machine = tailnet.join("mac")
    found = machine.localapi(f"whois?addr={tailnet.join('laptop').ipv4}:1")
    who = of_whois(found, "example.com/cap/ollama")
    assert who is not None
    assert who.capabilities == {"example.com/cap/ollama": tuple(values)}
    assert [*invented(person("laptop", "alice@example.com") | {"CapMap": found["CapMap"]}, found)] == []


def test_status_with_peers(mac: Served, laptop: Machine, tailnet: Tailnet, tmp_path: Path) -> None:
    """The fake status has its peers as the real one has, and both list the same devices, users and tags."""
    robot, fake = tailnet.join("robot", "--advertise-tags=tag:robot"), Fake(tmp_path)
    people = {
        **dict.fromkeys((laptop.ipv4, laptop.ipv6), person("laptop", "user-2@fake-control.example.net")),
        **dict.fromkeys((robot.ipv4, robot.ipv6), tagged("robot", "tag:robot")),
    }
    fake.change(peers=people)
    real = until(lambda: (found := mac.machine.localapi("status")) and len(found["Peer"] or ()) == 2 and found)
    made = fake.status_with_peers()
    for name, peer in (("laptop", laptop), ("robot", robot)):
        its = [next(each for each in doc["Peer"].values() if peer.ipv4 in each["TailscaleIPs"]) for doc in (made, real)]
        assert [*invented(*its)] == [], name
    listed = [
        {(who.device, who.addresses, who.login, who.tags, who.shared) for who in of_neighbours(doc)[1:]}
        for doc in (made, real)
    ]
    assert listed[0] == listed[1]


@pytest.mark.parametrize(("way", "listed"), [("in", ["laptop.tail99.ts.net"]), ("out", [])])
def test_neighbours_of_another_tailnet(
    mac: Served, laptop: Machine, tailnet: Tailnet, way: str, listed: list[str]
) -> None:
    """In a real status a shared-in device has its whole name; one that comes to a shared machine has none."""
    tailnet.change(laptop, shared=way)

    def found() -> dict[str, Any]:
        (peer,) = mac.machine.localapi("status")["Peer"].values()
        return peer

    until(lambda: found()["DNSName"] != "laptop.tail1234.ts.net.")
    neighbours = of_neighbours(mac.machine.localapi("status"))[1:]
    assert [(who.device, who.shared) for who in neighbours] == [(name, True) for name in listed]


def test_tailscaled_that_starts(mac: Served, laptop: Machine, tailnet: Tailnet) -> None:
    """A tailscaled that has just started answers about nobody but with "no match", until it has its netmap.

    Other tests play that: `tests/exchange/test_askers.py`, `test_tailscaled_that_starts_opens_nothing`.
    """
    path, seen = mac.machine.socket, set()
    mac.machine.tailscaled.kill()
    starting = threading.Thread(target=tailnet.start_tailscaled, args=(mac.machine,))
    starting.start()

    def is_known() -> bool:
        with suppress(OSError):  # nobody listens yet
            answers = [answer(path, f"whois?addr={machine.ipv4}:1") for machine in (laptop, mac.machine)]
            seen.update((each.status, each.content) for each in answers if each.status != 200)
            return all(each.status == 200 for each in answers)
        return False

    until(is_known)
    starting.join()
    assert seen <= {(404, b"no match for IP:port\n")}


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
