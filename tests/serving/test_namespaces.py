"""Who reaches what, as the kernel has it: a machine, a device of its tailnet, and a neighbour in its LAN.

Each is a network namespace of its own, made and removed here. Linux only, as root.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from proxy.tailnet.localapi import Places
from tests.fakes.localapi import Tailnet, person
from tests.support.linux import namespaces
from tests.support.linux.kernel_sockets import listened
from tests.support.linux.namespaces import IP, ip
from tests.support.mac.fake_launchd import until

if TYPE_CHECKING:
    import http.client
    import socket
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
FAKES = Path(__file__).parent.parent / "fakes"

MAC, DEVICE = "100.64.0.1", "100.64.0.2"  # in the tailnet
MAC_IN_LAN, NEIGHBOUR = "192.168.77.1", "192.168.77.2"
OLLAMA = ("127.0.0.1", 11434)
PORT = 11434


class Net:
    """Three machines: `mac` has an address in the tailnet and one in the LAN."""

    def __init__(self) -> None:
        self.mac, self.device, self.neighbour = (f"rop{os.getpid()}{name}" for name in ("mac", "device", "neighbour"))

    def make(self, undo: ExitStack) -> None:
        """Make namespaces and cables; `undo` removes them. OSError where that is not allowed."""
        for name in (self.mac, self.device, self.neighbour):
            ip("netns", "add", name)
            undo.callback(ip, "netns", "del", name)
            ip("-n", name, "link", "set", "lo", "up")
        for ours, theirs in (("tailscale0", self.device), ("lan0", self.neighbour)):
            ip("-n", self.mac, "link", "add", ours, "type", "veth", "peer", "name", "eth0", "netns", theirs)
            ip("-n", self.mac, "link", "set", ours, "up")
            ip("-n", theirs, "link", "set", "eth0", "up")
        self.give_address()
        ip("-n", self.device, "addr", "add", f"{DEVICE}/32", "dev", "eth0")
        ip("-n", self.device, "route", "add", MAC, "dev", "eth0")
        ip("-n", self.mac, "addr", "add", f"{MAC_IN_LAN}/24", "dev", "lan0")
        ip("-n", self.neighbour, "addr", "add", f"{NEIGHBOUR}/24", "dev", "eth0")
        ip("-n", self.neighbour, "route", "add", MAC, "via", MAC_IN_LAN)

    def give_address(self) -> None:
        """Give the machine its address in the tailnet."""
        ip("-n", self.mac, "addr", "add", f"{MAC}/32", "dev", "tailscale0")
        ip("-n", self.mac, "route", "replace", DEVICE, "dev", "tailscale0", "src", MAC)

    def take_address(self) -> None:
        """Take it away."""
        ip("-n", self.mac, "addr", "del", f"{MAC}/32", "dev", "tailscale0")


def entrance(namespace: str) -> str:
    """Return the file that stands for a namespace of that name."""
    return f"/run/netns/{namespace}"


def connect(namespace: str, address: str, port: int) -> socket.socket:
    """Return a connection that is made in `namespace`."""
    return namespaces.connect(entrance(namespace), address, port)


def request(namespace: str, method: str, path: str, content: object = None) -> http.client.HTTPResponse:
    """Return the proxy's answer to a request that comes from `namespace`."""
    return namespaces.request(entrance(namespace), method, MAC, PORT, path, content)


class Mac:
    """The machine that serves: a simulated Ollama on loopback, and the proxy."""

    def __init__(self, net: Net, folder: Path, undo: ExitStack) -> None:
        self.net = net
        self.folder = folder
        self._undo = undo
        self.tailnet = Tailnet(folder)
        self.tailnet.change(peers={DEVICE: person("laptop", "alice@example.com")})
        (folder / "bin").mkdir()
        (folder / "bin" / "tailscale").symlink_to(FAKES / "tailscale")

    def start(self, *words: str, **environ: str) -> subprocess.Popen[bytes]:
        """Start a module of this package in the machine."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PROXY_")}
        own = {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "FAKE_TAILSCALE": str(self.folder)}
        assert IP is not None
        with (self.folder / "said").open("ab") as said:
            process = subprocess.Popen(
                [IP, "netns", "exec", self.net.mac, sys.executable, "-m", *words],
                cwd=ROOT,
                env=kept | own | environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
            )
        self._undo.callback(process.wait)
        self._undo.callback(process.terminate)
        return process

    def serve(self, listen: str) -> None:
        """Start both, and wait until they listen."""
        ollama = self.start("proxy.simulated_ollama", "--tokens-per-second", "10")
        self.start(
            "proxy",
            PROXY_LISTEN=listen,
            PROXY_ACCESS_LOG=str(self.folder / "access.log"),
            PROXY_CONFIG=str(self.folder / "config.toml"),
            PROXY_DRAIN_TIMEOUT="1",
        )
        self.pid = ollama.pid
        until(lambda: self.listens() == {OLLAMA, (MAC, PORT)})

    def listens(self) -> set[tuple[str, int]]:
        """Return every socket that listens in the machine."""
        return listened(self.pid)

    def lines(self) -> list[dict[str, Any]]:
        """Return the access log."""
        log = self.folder / "access.log"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def said(self, event: str) -> int:
        """Return how often the proxy said `event`."""
        return sum(event in line for line in (self.folder / "said").read_text().splitlines())


@pytest.fixture
def mac(tmp_path: Path) -> Iterator[Mac]:
    """Give the machine, nothing running on it yet; or skip, saying what is missing."""
    if sys.platform != "linux" or IP is None:
        pytest.skip("needs Linux, with `ip` of iproute2")
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces: sudo make test-net")
    with ExitStack() as undo:
        net = Net()
        try:
            net.make(undo)
        except OSError as error:
            pytest.skip(f"needs network namespaces: {error}")
        (tmp_path / "config.toml").touch()
        yield Mac(net, tmp_path, undo)


def test_device_of_the_tailnet(mac: Mac) -> None:
    """A device reaches what the allowlist serves, and nothing else on the machine: no other path, port or address."""
    mac.serve(MAC)
    device = mac.net.device
    models = request(device, "GET", "/v1/models")
    assert models.status == 200
    assert json.loads(models.read())["data"]
    refused = []
    for method, path in (("POST", "/api/pull"), ("DELETE", "/api/delete"), ("POST", "/api/chat"), ("GET", "/metrics")):
        answer = request(device, method, path, {"model": "llama3.2"})
        refused.append(answer.status)
    assert refused == [403] * 4
    lines = until(lambda: (found := mac.lines()) and len(found) == 5 and found)
    assert [line["verdict"] for line in lines] == ["allowed", *["refused"] * 4]
    assert {line["peer"] for line in lines} == {DEVICE}
    for address, port in ((MAC, PORT - 1), (MAC, PORT + 1), (MAC, 80), OLLAMA):
        with pytest.raises(ConnectionRefusedError):
            connect(device, address, port)
    assert mac.listens() == {OLLAMA, (MAC, PORT)}


def test_ollama_beside_the_port_of_the_proxy(mac: Mac) -> None:
    """Without the proxy there is nobody at Ollama's port but on loopback: it is the proxy alone that lets in."""
    mac.pid = mac.start("proxy.simulated_ollama").pid
    until(lambda: mac.listens() == {OLLAMA})
    connect(mac.net.mac, *OLLAMA).close()
    for namespace, address in (
        (mac.net.device, MAC),
        (mac.net.device, "127.0.0.1"),
        (mac.net.neighbour, MAC),
        (mac.net.neighbour, MAC_IN_LAN),
    ):
        with pytest.raises(ConnectionRefusedError):
            connect(namespace, address, OLLAMA[1])


def test_neighbour_with_an_address_of_the_tailnet(mac: Mac) -> None:
    """A neighbour that gives itself an address of the tailnet's ranges is refused: Tailscale knows no such device."""
    mac.tailnet.change(ips=[MAC])
    mac.serve("tailscale")
    ip("-n", mac.net.neighbour, "addr", "add", "100.64.7.7/32", "dev", "eth0")
    ip("-n", mac.net.neighbour, "route", "replace", MAC, "via", MAC_IN_LAN, "src", "100.64.7.7")
    ip("-n", mac.net.mac, "route", "add", "100.64.7.7", "dev", "lan0")
    until(lambda: request(mac.net.neighbour, "GET", "/v1/models").status == 403)  # at the latest when the tool is done
    assert until(mac.lines)[-1]["reason"] == "peer_unknown"


def test_neighbour_in_the_lan(mac: Mac) -> None:
    """A neighbour who reaches the tailnet's address across the LAN gets no byte, and has its line."""
    mac.serve(MAC)
    neighbour = connect(mac.net.neighbour, MAC, PORT)  # the kernel takes it in: the weak host model
    with neighbour, suppress(ConnectionResetError):
        with suppress(BrokenPipeError):
            neighbour.sendall(b"GET /v1/models HTTP/1.1\r\nHost: 100.64.0.1\r\n\r\n")
        assert neighbour.recv(1) == b""
    (line,) = until(mac.lines)
    assert (line["verdict"], line["reason"], line["peer"]) == ("refused", "peer_not_allowed", NEIGHBOUR)
    assert line["bytes_out"] == 0
    assert "status" not in line or line["status"] == 0
    with pytest.raises(ConnectionRefusedError):
        connect(mac.net.neighbour, MAC_IN_LAN, PORT)
    assert request(mac.net.device, "GET", "/v1/models").status == 200


def test_address_goes_and_comes_back(mac: Mac) -> None:
    """When the machine leaves its tailnet nothing is listened on there; 10 s after its return all is as before.

    A stream that was under way outlives a short absence, and has its line.
    """
    if any(map(os.path.exists, Places().sockets)):
        pytest.skip("needs a machine without Tailscale: its answers would be taken for the fake one's")
    mac.tailnet.change(ips=[MAC])
    mac.serve("tailscale")
    model = json.loads(request(mac.net.device, "GET", "/v1/models").read())["data"][0]["id"]
    asked = {"model": model, "stream": True, "messages": [{"role": "user", "content": "Tell me a story"}]}
    stream = request(mac.net.device, "POST", "/v1/chat/completions", asked)
    assert stream.status == 200
    assert stream.readline().startswith(b"data: ")
    mac.tailnet.change(state="Stopped")
    mac.net.take_address()
    until(lambda: mac.listens() == {OLLAMA})
    assert mac.said("address_gone") == 1
    mac.net.give_address()
    mac.tailnet.change(state="Running")
    until(lambda: mac.listens() == {OLLAMA, (MAC, PORT)})
    assert request(mac.net.device, "GET", "/v1/models").status == 200
    assert stream.read().endswith(b"data: [DONE]\n\n")
    line = until(lambda: [line for line in mac.lines() if line.get("route") == "POST /v1/chat/completions"])[0]
    assert (line["ended"], line["status"], line["peer"]) == ("complete", 200, DEVICE)
    assert (line["device"], line["user"]) == ("laptop", "alice@example.com")
