"""What clients are told to call the machine by, and whether that works from another one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.tailnet.served import PORT, Served, findings

if TYPE_CHECKING:
    from tests.tailnet.machines import Machine


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
