"""The name that clients should use for the machine, and whether it works from another one."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.mac.fake_launchd import until
from tests.tailnet.served import OLLAMA, PORT, Served, asks, findings

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.tailnet.machines import Machine, Tailnet


def origin_of(served: Served) -> str:
    """Return the origin that `connect` prints."""
    return next(
        word.strip('"').removesuffix("/v1")
        for word in served.machine.proxy("connect", "codex").stdout.split()
        if word.startswith('"http')
    )


def suggested(served: Served) -> str:
    """Return the URL that `verify` says to ask from a client."""
    return served.machine.proxy("verify", "--skip-model-tests").stdout.split()[-1]


def failed(machine: Machine, url: str) -> list[str]:
    """Return what fails when a machine asks the proxy at a URL all that it promises."""
    found = findings(machine, "verify", "--from-client", url, "--skip-model-tests")
    assert len(found) > 40
    return [each.detail for each in found if each.outcome == "fail"]


@pytest.mark.parametrize("host", ["mac", "mac.tail1234.ts.net", "IPV4", "[IPV6]"])
def test_verify_from_a_client(mac: Served, laptop: Machine, host: str) -> None:
    """`verify --from-client` passes on another machine by each name and address of this one."""
    mac.serve()
    shown = host.replace("IPV4", mac.machine.ipv4).replace("IPV6", mac.machine.ipv6)
    assert failed(laptop, f"http://{shown}:{PORT}") == []


def test_client_script(mac: Served, laptop: Machine) -> None:
    """The file that `verify --client-script` prints passes on another machine, without the rest of the program."""
    mac.serve()
    script = laptop.folder / "check.py"
    script.write_text(mac.machine.must(sys.executable, "-m", "proxy", "verify", "--client-script"))
    done = laptop.run(sys.executable, "-I", str(script), f"http://mac:{PORT}")
    assert done.returncode == 0, done.stdout
    assert "0 failed" in done.stdout


def test_full_name(mac: Served, laptop: Machine) -> None:
    """With MagicDNS `connect` and `verify` print the full name, which other machines resolve."""
    mac.serve()
    assert origin_of(mac) == suggested(mac) == f"http://mac.tail1234.ts.net:{PORT}"
    assert laptop.must("getent", "ahostsv4", "mac.tail1234.ts.net").split()[0] == mac.machine.ipv4


@pytest.fixture
def mute(make_tailnet: Callable[..., Tailnet]) -> tuple[Served, Machine]:
    """Give a machine that serves and a client, in a tailnet without MagicDNS."""
    tailnet = make_tailnet("-magic-dns=false")
    mac = Served(tailnet.join("mac"))
    mac.serve()
    return mac, tailnet.join("laptop")


def test_magic_dns_off(mute: tuple[Served, Machine]) -> None:
    """Without MagicDNS nobody resolves the name: `connect` and `verify` print the address, and it works."""
    mac, laptop = mute
    assert laptop.run("getent", "hosts", "mac.tail1234.ts.net").returncode != 0
    assert origin_of(mac) == suggested(mac) == f"http://{mac.machine.ipv4}:{PORT}"
    assert failed(laptop, suggested(mac)) == []


@pytest.fixture
def mesh(make_tailnet: Callable[..., Tailnet]) -> Tailnet:
    """Give a tailnet whose names don't end in .ts.net."""
    return make_tailnet(domain="mesh.example.com")


@pytest.fixture
def elsewhere(mesh: Tailnet) -> tuple[Served, Machine]:
    """Give a machine that serves and a client there."""
    mac = Served(mesh.join("mac"))
    mac.serve()
    return mac, mesh.join("laptop")


def test_another_domain(elsewhere: tuple[Served, Machine]) -> None:
    """The machine's own name is an allowed Host in any domain; `connect` and `verify` print it, and it works."""
    mac, laptop = elsewhere
    assert origin_of(mac) == suggested(mac) == f"http://mac.mesh.example.com:{PORT}"
    assert failed(laptop, suggested(mac)) == []


def test_names_of_others_in_that_domain(elsewhere: tuple[Served, Machine]) -> None:
    """Other names of such a domain stay refused, because the domain's owner could point one of them here."""
    mac, laptop = elsewhere
    for host, status in (("mac.mesh.example.com", 200), ("MAC.mesh.example.com.", 200), ("nas.mesh.example.com", 403)):
        assert asks(laptop, mac.machine.ipv4, Host=host) == status, host


def test_renamed_in_that_domain(mesh: Tailnet, elsewhere: tuple[Served, Machine]) -> None:
    """When the machine gets another name, that one is allowed, and the former one no longer."""
    mac, laptop = elsewhere
    mesh.change(mac.machine, name="studio")
    hosts = ("studio.mesh.example.com", "mac.mesh.example.com")
    until(lambda: [asks(laptop, mac.machine.ipv4, Host=host) for host in hosts] == [200, 403])


def test_refused_host_is_no_open_route(mac: Served, laptop: Machine) -> None:
    """`verify --from-client` by a name that the proxy refuses says just that, and accuses no route of being open."""
    mac.serve()
    hosts = laptop.folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{mac.machine.ipv4} ollama.example.com\n")
    laptop.must("mount", "--bind", str(hosts), "/etc/hosts")
    found = findings(laptop, "verify", "--from-client", f"http://ollama.example.com:{PORT}", "--skip-model-tests")
    bad = [each for each in found if each.outcome == "fail"]
    assert bad
    assert "allowed_hosts" in json.dumps(bad)
    assert not [each for each in bad if "lets " in each.detail or "through to Ollama" in each.detail]


def test_ipv6_told_but_absent(tailnet: Tailnet, laptop: Machine) -> None:
    """An IPv6 address that Tailscale reports but the machine lacks is reported once. All else works as usual."""
    mac = Served(tailnet.join("other", ipv6=False))
    assert mac.machine.ipv6 in mac.machine.localapi("status")["TailscaleIPs"]
    mac.start()
    mac.wait_for(OLLAMA, (mac.machine.ipv4, PORT))
    until(lambda: mac.machine.ipv6 in mac.program.text())
    assert "internal" not in mac.program.text()
    assert failed(laptop, f"http://{mac.machine.ipv4}:{PORT}") == []
    for command in (["--check"], ["status"], ["verify", "--skip-model-tests"]):
        assert not [each for each in mac.findings(*command) if each.outcome == "fail"], command
