"""The machines of these tests themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.mac.fake_launchd import until
from tests.tailnet.machines import ROOT

if TYPE_CHECKING:
    from tests.tailnet.machines import Machine
    from tests.tailnet.served import Served

RUN = """
import signal, sys, time
from contextlib import ExitStack
from pathlib import Path
from tests.tailnet.machines import Tailnet
tailnet = Tailnet(Path(sys.argv[1]), ExitStack())
mac, neighbour = tailnet.join("mac"), tailnet.neighbour("neighbour")
mac.tailscaled.signal(signal.SIGSTOP)
print(mac.pid, neighbour.pid, flush=True)
time.sleep(600)
"""


def test_killed_run(tmp_path: Path) -> None:
    """A run that is killed leaves no machine behind, and no process in one, not even a stopped one."""
    folder = tmp_path / "killed"
    folder.mkdir()
    run = subprocess.Popen([sys.executable, "-c", RUN, str(folder)], cwd=ROOT, stdout=subprocess.PIPE)
    with run:
        assert run.stdout is not None
        machines = [os.readlink(f"/proc/{pid}/ns/net") for pid in run.stdout.readline().decode().split()]
        assert len(set(machines)) == 2
        assert inside(machines)
        run.kill()
    until(lambda: not inside(machines))


def inside(networks: list[str]) -> list[str]:
    """Return the processes on this host that are in one of these network namespaces."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/ns/net") in networks:
                found.append(pid)
        except OSError:  # it has just ended
            continue
    return found


def test_nothing_of_the_host_changes(mac: Served, laptop: Machine) -> None:
    """A tailnet leaves the host's addresses, resolver and network settings alone."""
    shown = [host_view()]
    mac.machine.must("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; echo x > /etc/resolv.conf")
    mac.machine.must("ip", "addr", "add", "192.0.2.1/32", "dev", "lo")
    mac.machine.must("hostname", "changed")
    shown.append(host_view())
    assert shown[0] == shown[1]


def host_view() -> list[str]:
    """Return what the host shows of its addresses, names and settings."""
    files = ("/etc/resolv.conf", "/etc/hosts", "/proc/sys/net/ipv6/conf/all/disable_ipv6", "/proc/sys/kernel/hostname")
    addresses = subprocess.run(["ip", "-o", "address"], capture_output=True, text=True, check=True).stdout
    texts = [Path(each).read_text() for each in files]
    return [*texts, *(line.partition("valid_lft")[0] for line in addresses.splitlines())]
