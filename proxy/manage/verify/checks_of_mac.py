"""What `verify` checks in addition to its questions: the machine before them, the access log after them.

Each check is a function of the running services that yields findings. The groups and their order are here. Nothing is
changed, and the requests to the proxy are harmless, and leave their lines in its access log.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from proxy.manage.findings.proof import ask
from proxy.manage.findings.running import Running
from proxy.manage.verify import access as verify_proxy
from proxy.manage.verify import network as verify_network
from proxy.manage.verify import security as verify_security
from proxy.manage.verify import services as verify_services

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from proxy.manage.findings.proof import Answer
    from proxy.manage.machine.machine import Machine
    from proxy.tailnet.tailscale import Tailscale
    from proxy.terminal.finding import Finding

    Check = Callable[[Running], Iterator[Finding]]

GROUPS: tuple[tuple[str, tuple[Check, ...]], ...] = (
    ("Service status", verify_services.CHECKS),
    ("Security", verify_security.CHECKS),
    ("Network", verify_network.CHECKS),
    (verify_proxy.TITLE, verify_proxy.CHECKS),
)
"""Title of a group -> its checks, in the order in which faults are best corrected."""


def before(
    machine: Machine,
    flags: Mapping[str, str],
    tailscale: Tailscale | None = None,
    ask: Callable[..., Answer] = ask,
) -> list[tuple[str, Finding, float]]:
    """Return (group, finding, seconds it took) of each check. Not to be called inside an event loop."""
    running = Running(machine, flags, tailscale, ask)
    return [(title, *each) for title, checks in GROUPS for check in checks for each in _timed(check(running))]


def after(machine: Machine, flags: Mapping[str, str], ids: Sequence[str]) -> list[tuple[str, Finding, float]]:
    """Return the findings after the questions: `ids` are the ids of the requests."""
    found = verify_proxy.access_log(Running(machine, flags), ids)
    return [(verify_proxy.TITLE, *each) for each in _timed(found)]


def _timed(findings: Iterator[Finding]) -> Iterator[tuple[Finding, float]]:
    """Yield findings and the seconds that each took."""
    begun = time.perf_counter()
    for finding in findings:
        yield finding, time.perf_counter() - begun
        begun = time.perf_counter()
