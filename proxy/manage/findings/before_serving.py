"""What can be found out before serving: each check looks at one thing and returns findings.

They change nothing: a socket that is bound to try an address is closed at once, and no log is opened.
"""

from __future__ import annotations

import asyncio
import errno
import http.client
import json
import math
import os
import re
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from proxy import PROGRAM
from proxy.exchange.client.downstream import C_PARSER
from proxy.manage.findings import agents as findings_agents
from proxy.manage.findings import firewall as findings_firewall
from proxy.manage.findings import ports as findings_ports
from proxy.manage.findings import tailscale as findings_tailscale
from proxy.manage.findings.origins import null_origin
from proxy.manage.machine.launchd import PROXY
from proxy.manage.machine.machine import Machine
from proxy.manage.machine.services import DAEMONS, plist_of
from proxy.policy import gate
from proxy.serving.descriptors import connections_for, descriptors_for
from proxy.serving.descriptors import most as files_for_one_process
from proxy.settings.addresses import TAILSCALE, is_loop, joined, parse, split
from proxy.settings.kinds import printable
from proxy.settings.settings import Loaded, SettingsError, written
from proxy.tailnet.tailscale import Tailscale
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from proxy.manage.findings.ports import Listener

VERSION_TIMEOUT = 2.0
"""Seconds that Ollama may take to return its version; it answers from memory, even while it loads a model."""

_ANSWER_LIMIT = 65536  # bytes of an answer to /api/version that are read: Ollama's has about 20


def check(loaded: Loaded) -> tuple[Finding, ...]:
    """Return what all checks find, in the order in which a start would come upon it."""
    return tuple(finding for look in CHECKS for finding in look(loaded))


def mistakes(error: SettingsError) -> tuple[Finding, ...]:
    """Return a finding for each mistake in settings that can't be served with."""
    hint = f"{PROGRAM} --help"
    return tuple(Finding("settings", Outcome.FAIL, str(problem), hint) for problem in error.problems)


def effective(loaded: Loaded) -> list[tuple[str, str, str]]:
    """Return each option with its value as one would write it, and where that is from."""
    return [(name, value, loaded.sources[name]) for name, value in written(loaded.settings).items()]


def rows(loaded: Loaded) -> list[tuple[str, str, str, str]]:
    """Return each row of the allowlist that is open: method, path, surface, and what opened it."""
    opened = f"allow ({loaded.sources['allow']})"
    served = gate.open_rows(loaded.settings.allow)
    return [(row.method, row.path, row.surface.value, opened if row.opt_in else "always") for row in served]


def settings(loaded: Loaded) -> Iterator[Finding]:
    """Report every effective setting, and variables that look like one but aren't."""
    values = "; ".join(f"{name} = {value} ({source})" for name, value, source in effective(loaded))
    yield Finding("settings", Outcome.PASS, values)
    for warning in loaded.warnings:
        yield Finding("environment", Outcome.WARN, warning, f"{PROGRAM} --help")


def allowlist(loaded: Loaded) -> Iterator[Finding]:
    """Report every row that is served."""
    names = [row.name for row in gate.open_rows(loaded.settings.allow)]
    yield Finding("allowlist", Outcome.PASS, f"{len(names)} rows: {', '.join(names)}")


def origins(loaded: Loaded) -> Iterator[Finding]:
    """Look for origins that open more than they seem to."""
    yield from null_origin(loaded.settings)


def addresses(loaded: Loaded) -> Iterator[Finding]:
    """Bind each address for a moment; one that is taken may well be taken by the proxy that runs already."""
    port, serve_port = loaded.settings.port, loaded.settings.serve_port
    facts: findings_tailscale.Facts | None = None
    if TAILSCALE in loaded.settings.listen or serve_port:
        facts = asyncio.run(findings_tailscale.look(Tailscale(), loaded.settings))
    for address in loaded.settings.listen:
        if address == TAILSCALE and facts is not None:
            yield from _tailscale(loaded, facts)
        else:
            yield _bindable(address, port)
    if serve_port and facts is not None:
        yield _bindable("127.0.0.1", serve_port)
        yield from findings_tailscale.serve_port(facts, loaded.settings)
    yield from _firewall(loaded)


def _tailscale(loaded: Loaded, facts: findings_tailscale.Facts) -> Iterator[Finding]:
    """Ask Tailscale for this machine's addresses, for rules that lead past the proxy, and for what else is amiss."""
    if facts.tailnet.problem is not None:
        yield findings_tailscale.address(facts.tailnet, Outcome.WARN)
    yield from findings_tailscale.absence(facts)
    for address in facts.held:
        if is_loop(loaded.settings.upstream, (address,), loaded.settings.port):
            detail = "upstream is where the proxy itself would listen"
            yield Finding("address", Outcome.FAIL, detail, f"{PROGRAM} --check --upstream http://127.0.0.1:11434")
        else:
            yield _bindable(address, loaded.settings.port)
    yield from findings_tailscale.serve(facts.serving)
    yield from findings_tailscale.amiss(facts.concerns, Outcome.WARN)


def _bindable(address: str, port: int) -> Finding:
    """Bind an address for a moment; if it is in use, find out by whom."""
    machine, shown = Machine.here(), joined(address, port)
    error = machine.bind(address, port)
    if error is None:
        return Finding("address", Outcome.PASS, f"{shown} would be bound")
    seen = findings_ports.listeners(machine, [port]) if error.errno == errno.EADDRINUSE else None
    return unbound(address, port, error, seen)


def unbound(address: str, port: int, error: OSError, seen: Sequence[Listener] | None = None) -> Finding:
    """Report why an address could not be bound, now or permanently; `seen` is who listens on the port."""
    shown = joined(address, port)
    if error.errno == errno.EADDRINUSE:
        if (hidden := findings_ports.unseen("address", address, port, seen)) is not None:
            return hidden
        detail = f"{shown} is in use, by a proxy that runs already or by another program"
        holder = next((each for each in seen or () if each.port == port and each.address in {address, "*"}), None)
        if holder is not None:
            detail = f"{shown} is in use by {holder.who}: a proxy that runs already, or another program"
        return Finding("address", Outcome.WARN, detail, findings_ports.who_listens(port))
    if error.errno == errno.EADDRNOTAVAIL:
        return Finding("address", Outcome.WARN, f"{shown} is not an address of this machine now", "ifconfig -a")
    if error.errno == errno.EACCES:
        detail = f"{shown} may not be bound by this user"
        return Finding("address", Outcome.FAIL, detail, f"{PROGRAM} --check --port 11434")
    return Finding("address", Outcome.FAIL, f"{shown} can't be bound: {error.strerror}", f"{PROGRAM} --help")


def _firewall(loaded: Loaded) -> Iterator[Finding]:
    """Ask macOS's firewall about the Python that runs this, unless it would be reached on loopback only."""
    machine = Machine.here()
    if machine.is_mac and not all(each != TAILSCALE and parse(each).is_loopback for each in loaded.settings.listen):
        yield findings_firewall.of_program(machine, sys.executable)


def upstream(loaded: Loaded) -> Iterator[Finding]:
    """Ask Ollama for its version; an Ollama that isn't running yet doesn't keep the proxy from starting."""
    host, port = split(loaded.settings.upstream)
    connection = http.client.HTTPConnection(host, port, timeout=VERSION_TIMEOUT)
    try:
        connection.request("GET", "/api/version")
        told = json.loads(connection.getresponse().read(_ANSWER_LIMIT))["version"]
    except (OSError, http.client.HTTPException) as error:
        detail = (
            f"{loaded.settings.upstream} does not answer: {getattr(error, 'strerror', None) or type(error).__name__}"
        )
        yield Finding("upstream", Outcome.WARN, detail, "ollama serve")
    except (ValueError, KeyError, TypeError):
        detail = f"{loaded.settings.upstream} answers, but not as Ollama does"
        yield Finding("upstream", Outcome.WARN, detail, f"curl {loaded.settings.upstream}/api/version")
    else:
        yield of_version(loaded.settings.upstream, str(told))
    finally:
        connection.close()


def of_version(upstream: str, version: str) -> Finding:
    """Judge a version by its numbers: what follows them (`-rc2`) is cut; 0.0.0, built from source, is the newest."""
    detail = f"Ollama {printable(version[:40])} answers at {upstream}"
    match = re.match(r"v?(\d+)\.(\d+)\.(\d+)", version, re.ASCII)
    if match is None:
        return Finding("upstream", Outcome.WARN, f"{detail}: no version that can be compared", "ollama --version")
    numbers = tuple(map(int, match.groups()))
    lacking = [path for path, since in _SINCE.items() if (0, 0, 0) < numbers < since]
    if lacking:
        return Finding(
            "upstream", Outcome.WARN, f"{detail}: too old for {' and '.join(lacking)}", "brew upgrade ollama"
        )
    return Finding("upstream", Outcome.PASS, detail)


_SINCE = {"/v1/messages": (0, 14, 0), "/v1/responses": (0, 13, 3)}
"""The release of Ollama that first served a path of the allowlist, where that matters still."""


def parser(_: Loaded, c_parser: bool = C_PARSER) -> Iterator[Finding]:
    """Report whether aiohttp's C parser parses requests: only its strictness was measured and is relied on."""
    if c_parser:
        yield Finding("parser", Outcome.PASS, "aiohttp's C parser is loaded")
    else:
        detail = "aiohttp's C parser is not loaded; its Python fallback lets through what two parsers read differently"
        hint = "unset AIOHTTP_NO_EXTENSIONS; pip install --force-reinstall --only-binary aiohttp aiohttp"
        yield Finding("parser", Outcome.FAIL, detail, hint)


def descriptors(loaded: Loaded, limits: tuple[int, int] | None = None) -> Iterator[Finding]:
    """Report whether `max_connections` fit into the limit on open files, of which the soft one is raised."""
    wanted = loaded.settings.max_connections
    needed = descriptors_for(wanted)
    soft, hard = (
        math.inf if limit == resource.RLIM_INFINITY else limit
        for limit in limits or resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    allowed = min(max(soft, hard), files_for_one_process())
    if allowed < needed:
        fit = connections_for(int(allowed))
        detail = f"only {fit} connections instead of {wanted}: {needed} open files are needed, and {allowed} allowed"
        yield Finding("descriptors", Outcome.WARN, detail, f"ulimit -Hn {needed}")
    else:
        how = "are allowed" if soft >= needed else f"are available (now {soft})"
        yield Finding("descriptors", Outcome.PASS, f"{needed} open files for {wanted} connections {how}")


def logs(loaded: Loaded) -> Iterator[Finding]:
    """Report whether the logs can be written; the proxy needs the access log to start."""
    access, diagnostics = loaded.settings.access_log, loaded.settings.diagnostics_log
    yield Finding("access log", Outcome.PASS, "standard output") if access == "-" else _log("access log", Path(access))
    if diagnostics is not None:
        yield _log("diagnostics log", Path(diagnostics))


def _log(name: str, path: Path) -> Finding:
    if path.is_symlink():
        return Finding(name, Outcome.FAIL, f"{path} is a symbolic link, which is never written to", f"ls -l '{path}'")
    if path.exists():
        if path.is_dir() or not os.access(path, os.W_OK):
            return Finding(name, Outcome.FAIL, f"{path} can't be written", f"ls -ld '{path}'")
        return Finding(name, Outcome.PASS, str(path))
    folder = next(each for each in path.parents if each.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return Finding(name, Outcome.FAIL, f"{path} can't be made in {folder}", f"ls -ld '{folder}'")
    return Finding(name, Outcome.PASS, f"{path} will be made")


def agents(loaded: Loaded, machine: Machine | None = None) -> Iterator[Finding]:
    """Report which of these settings launchd would not let an agent have."""
    machine = machine or Machine.here()
    if machine.is_mac and plist_of(machine, PROXY).parent != machine.at(DAEMONS):
        yield from findings_agents.of_settings(loaded.settings.drain_timeout, dict(loaded.settings.ollama_env))


CHECKS: tuple[Callable[[Loaded], Iterator[Finding]], ...] = (
    settings,
    allowlist,
    origins,
    addresses,
    upstream,
    parser,
    descriptors,
    logs,
    agents,
)
