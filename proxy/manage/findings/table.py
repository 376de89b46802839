"""Which checks each command runs, and how severe their findings are there: one table for all commands.

Each check judges one thing, from the facts alone, and yields findings. Only the check words what is wrong.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from proxy.manage.findings import (
    access,
    addresses,
    agents,
    files,
    firewall,
    mac,
    ollama,
    ollama_environment,
    proof,
    services,
    settings,
    tailscale,
)
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from proxy.manage.facts.facts import Facts


class When(StrEnum):
    """The moments at which the machine is looked at."""

    CHECK = "--check"
    INSTALL = "before an install"
    PROOF = "after an install"
    STATUS = "status"
    VERIFY = "verify"


class Counts(StrEnum):
    """How findings of a check count at a moment."""

    FULLY = "as found"
    SOFTLY = "a failure is a warning"  # it would serve, or wait
    IF_WRONG = "warnings and failures only"
    SOFTLY_IF_WRONG = "warnings and failures only, as warnings"
    NEVER = "not looked at"


_, FULL, SOFT, WRONG, SOFT_WRONG = Counts.NEVER, Counts.FULLY, Counts.SOFTLY, Counts.IF_WRONG, Counts.SOFTLY_IF_WRONG


@dataclass(frozen=True, slots=True)
class Row:
    """One check, and how it counts at each moment."""

    group: str
    look: Callable[[Facts], Iterator[Finding]]
    check: Counts
    install: Counts
    proof: Counts
    status: Counts
    verify: Counts

    def counts(self, when: When) -> Counts:
        """Return how it counts at a moment."""
        return {
            When.CHECK: self.check,
            When.INSTALL: self.install,
            When.PROOF: self.proof,
            When.STATUS: self.status,
            When.VERIFY: self.verify,
        }[when]


SERVICES, SECURITY, NETWORK, PROXY, MAC = "Service status", "Security", "Network", "Proxy", "Mac"
GROUPS = (SERVICES, SECURITY, NETWORK, PROXY)
"""The groups of `verify`, in the best order for corrections."""

# fmt: off
TABLE = (
    #   group     check                          --check     install  proof  status  verify
    Row(PROXY,    addresses.binding,             _,          _,       _,     WRONG,  FULL),
    Row(PROXY,    settings.readable,             _,          FULL,    _,     WRONG,  FULL),
    Row(PROXY,    settings.effective,            FULL,       _,       _,     _,      WRONG),
    Row(PROXY,    settings.of_this_shell,        _,          WRONG,   _,     _,      _),
    Row(PROXY,    settings.allowlist,            FULL,       _,       _,     _,      FULL),
    Row(PROXY,    access.rules,                  FULL,       _,       _,     _,      FULL),
    Row(PROXY,    access.unreachable,            WRONG,      WRONG,   _,     _,      WRONG),
    Row(PROXY,    access.device_names,           WRONG,      WRONG,   _,     _,      WRONG),
    Row(PROXY,    access.strangers,              WRONG,      WRONG,   _,     _,      WRONG),
    Row(PROXY,    access.passed_on,              WRONG,      WRONG,   _,     WRONG,  WRONG),
    Row(PROXY,    access.models,                 WRONG,      _,       _,     _,      WRONG),
    Row(PROXY,    access.native_options,         WRONG,      WRONG,   _,     _,      WRONG),
    Row(PROXY,    settings.null_origin,          WRONG,      WRONG,   _,     WRONG,  WRONG),
    Row(PROXY,    settings.reload,               _,          _,       _,     _,      FULL),
    Row(MAC,      mac.system,                    _,          FULL,    _,     _,      _),
    Row(MAC,      mac.screen,                    _,          FULL,    _,     _,      _),
    Row(MAC,      mac.python,                    _,          FULL,    _,     _,      _),
    Row(MAC,      mac.source,                    _,          FULL,    _,     _,      _),
    Row(MAC,      mac.ollama_elsewhere,          _,          WRONG,   _,     _,      _),
    Row(MAC,      mac.ollama,                    _,          FULL,    _,     _,      _),
    Row(MAC,      mac.other_ollamas,             _,          FULL,    _,     _,      _),
    Row(SERVICES, services.agents,               _,          _,       _,     FULL,   FULL),
    Row(SERVICES, services.programs,             _,          _,       _,     WRONG,  WRONG),
    Row(SERVICES, agents.limits,                 WRONG,      WRONG,   _,     WRONG,  WRONG),
    Row(SERVICES, agents.large_log,              _,          _,       _,     WRONG,  WRONG),
    Row(SERVICES, services.processes,            _,          _,       _,     _,      FULL),
    Row(SERVICES, services.ports,                _,          _,       _,     FULL,   FULL),
    Row(SERVICES, services.proxy_answers,        _,          _,       _,     _,      FULL),
    Row(SERVICES, ollama.answers,                SOFT,       _,       _,     FULL,   FULL),
    Row(SERVICES, ollama.stuck,                  _,          _,       _,     WRONG,  WRONG),
    Row(SERVICES, services.versions,             _,          _,       _,     _,      FULL),
    Row(SECURITY, files.access_log,              _,          _,       _,     _,      FULL),
    Row(SECURITY, files.diagnostics_log,         _,          _,       _,     _,      FULL),
    Row(SECURITY, files.plists,                  _,          _,       _,     _,      FULL),
    Row(SECURITY, files.config,                  _,          _,       _,     _,      FULL),
    Row(SECURITY, ollama_environment.host,       _,          _,       _,     _,      FULL),
    Row(SECURITY, ollama_environment.switches,   _,          _,       _,     _,      FULL),
    Row(SECURITY, ollama.cloud,                  _,          _,       _,     FULL,   FULL),
    Row(SECURITY, ollama.unusable_models,        _,          _,       FULL,  WRONG,  _),
    Row(SECURITY, ollama.remote_models,          _,          _,       _,     _,      FULL),
    Row(NETWORK,  ollama.exposure,               _,          WRONG,   FULL,  WRONG,  FULL),
    Row(NETWORK,  tailscale.userspace,           WRONG,      WRONG,   _,     WRONG,  WRONG),
    Row(NETWORK,  tailscale.address,             SOFT_WRONG, FULL,    _,     WRONG,  FULL),
    Row(NETWORK,  tailscale.absence,             FULL,       FULL,    _,     _,      FULL),
    Row(NETWORK,  addresses.bindable,            FULL,       _,       _,     _,      _),
    Row(NETWORK,  addresses.free,                _,          FULL,    _,     _,      _),
    Row(NETWORK,  tailscale.serve,               FULL,       FULL,    _,     FULL,   FULL),
    Row(NETWORK,  tailscale.serve_port,          FULL,       FULL,    _,     FULL,   FULL),
    Row(NETWORK,  tailscale.concerns,            SOFT,       SOFT,    _,     FULL,   FULL),
    Row(NETWORK,  mac.haproxy,                   _,          FULL,    _,     _,      _),
    Row(NETWORK,  proof.reachable,               _,          _,       FULL,  _,      FULL),
    Row(NETWORK,  proof.ollama_directly,         _,          _,       FULL,  _,      FULL),
    Row(NETWORK,  firewall.check,                WRONG,      FULL,    _,     WRONG,  FULL),
    Row(NETWORK,  settings.opened,               _,          _,       _,     _,      FULL),
    Row(PROXY,    settings.parser,               FULL,       _,       _,     _,      _),
    Row(PROXY,    settings.descriptors,          FULL,       _,       _,     _,      WRONG),
    Row(PROXY,    files.writable_logs,           FULL,       _,       _,     _,      WRONG),
    Row(SERVICES, services.keep_awake,           _,          _,       _,     FULL,   _),
    Row(MAC,      mac.sleep,                     _,          FULL,    _,     _,      _),
    Row(MAC,      mac.command,                   _,          FULL,    _,     _,      _),
)
# fmt: on
"""All checks, in an order in which faults can be corrected."""

_WITHOUT_MACOS = {settings.readable, settings.null_origin, settings.of_this_shell, mac.source, mac.ollama_elsewhere}
"""What a dry run on another system can check."""


def findings(facts: Facts, when: When) -> Iterator[Finding]:
    """Yield what all checks of a moment find, in the order of the table."""
    if when is When.INSTALL and facts.only_shown:
        yield mac.elsewhere(facts)
    for row in TABLE:
        if not (facts.only_shown and row.look not in _WITHOUT_MACOS):
            yield from _counted(row.look(facts), row.counts(when))


def timed(facts: Facts, when: When) -> Iterator[tuple[str, Finding, float]]:
    """Yield (group, finding, seconds it took), group after group."""
    for group in GROUPS:
        for row in TABLE:
            if row.group == group and row.counts(when) is not Counts.NEVER:
                begun = time.perf_counter()
                for finding in _counted(row.look(facts), row.counts(when)):
                    yield group, finding, time.perf_counter() - begun
                    begun = time.perf_counter()


def _counted(found: Iterator[Finding], counts: Counts) -> Iterator[Finding]:
    if counts is Counts.NEVER:
        return
    for each in found:
        if each.outcome not in {Outcome.WARN, Outcome.FAIL} and counts in {WRONG, SOFT_WRONG}:
            continue
        soft = counts in {SOFT, SOFT_WRONG} and each.outcome is Outcome.FAIL
        yield replace(each, outcome=Outcome.WARN) if soft else each
