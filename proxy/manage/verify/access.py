"""Proxy: where it listens, its settings, and its access log, as `verify` checks them."""

from __future__ import annotations

import json
import re
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy import PROGRAM
from proxy.logs.audit import KEYS
from proxy.manage.findings import before_serving as checks
from proxy.manage.findings.ports import NO_LSOF
from proxy.policy.gate import open_rows
from proxy.settings.kinds import printable
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from proxy.manage.findings.running import Running
    from proxy.settings.settings import Loaded

TITLE = "Proxy"

LOG_TIME = 5.0
"""Seconds until the lines of all requests must be in the access log; they come once an answer has left."""

_POLL = 0.1
_LOG_TAIL = 2**23  # bytes of an access log's end that are searched: about 17,000 requests
_ANY = ("0.0.0.0", "::", "*")


def binding(running: Running) -> Iterator[Finding]:
    """Report whether the proxy listens on each address that its settings name, and on no other."""
    name, port = "binding", running.settings.port
    if running.listening is None:
        yield Finding(name, Outcome.SKIP, NO_LSOF)
        return
    pid = running.pid("proxy")
    bound = [each.address for each in running.listening if each.pid == pid and each.port == port]
    expected = running.expected
    wild = [each for each in bound if each in _ANY]
    if wild and not set(_ANY) & set(expected):
        detail = f"it listens on every address of this machine, and its settings say {', '.join(expected) or 'none'}"
        yield Finding(name, Outcome.FAIL, detail, running.start("proxy", "restart"))
        return
    missing = [each for each in expected if each not in bound and not (each in _ANY and wild)]
    more = [each for each in bound if each not in expected and each not in wild]
    if not expected:
        still = f"it still listens on {', '.join(bound)}, where no device reaches it" if bound else "it listens nowhere"
        why = running.tailnet.problem or "its settings name no address"
        yield Finding(name, Outcome.FAIL, f"{still}: {why}", running.tailnet.hint or running.log)
    elif missing:
        detail = f"it doesn't listen on {', '.join(missing)}, port {port}"
        yield Finding(name, Outcome.FAIL, detail, running.log)
    elif more:
        detail = f"it listens on {', '.join(more)} too, which its settings don't name"
        yield Finding(name, Outcome.FAIL, detail, running.start("proxy", "restart"))
    else:
        yield Finding(name, Outcome.PASS, f"exactly as its settings say: {', '.join(expected)}, port {port}")


def settings(running: Running) -> Iterator[Finding]:
    """Report whether the proxy can serve with the settings, by those checks of `--check` that work next to it."""
    for problem in running.problems:
        yield Finding("settings", Outcome.FAIL, str(problem), f"{PROGRAM} --check")
    if running.loaded is None:
        return
    looks = (checks.settings, checks.origins, _descriptors(running), checks.logs)
    found = [finding for look in looks for finding in look(running.loaded)]
    wrong = [finding for finding in found if finding.outcome in {Outcome.WARN, Outcome.FAIL}]
    yield from wrong
    if not wrong:
        config = running.settings.config
        source = config if Path(config).exists() else "the defaults"
        yield Finding("settings", Outcome.PASS, f"{source}: nothing is wrong with them")


def _descriptors(running: Running) -> Callable[[Loaded], Iterator[Finding]]:
    """Return the check of open files, with the limits that launchd gives, not this shell's."""
    plist = running.plists["proxy"]
    if plist is None:
        return checks.descriptors

    def limit(kind: str, usual: int) -> int:
        found = (plist or {}).get(f"{kind}ResourceLimits")
        files = found.get("NumberOfFiles") if isinstance(found, dict) else None
        return files if isinstance(files, int) else usual

    limits = (limit("Soft", 256), limit("Hard", 2**31))
    return lambda loaded: checks.descriptors(loaded, limits)


def allowlist(running: Running) -> Iterator[Finding]:
    """Report how much is let through, and which of it the owner opened."""
    rows = open_rows(running.settings.allow)
    more = [row.name for row in rows if row.opt_in]
    opened = f", of which `allow` opened {', '.join(more)}" if more else ", none of them opened by `allow`"
    yield Finding("allowlist", Outcome.PASS, f"{len(rows)} rows{opened}")


def reload(running: Running) -> Iterator[Finding]:
    """Report whether the running proxy has the settings that are in the file now."""
    config, pid = Path(running.settings.config), running.pid("proxy")
    begun = running.since(pid)
    if begun is None:
        yield Finding("reload", Outcome.SKIP, "since when the proxy runs can't be seen")
        return
    read, refused, pending = _last_reload(running.events, begun.timestamp())
    if refused:
        yield Finding("reload", Outcome.WARN, f"the last one was refused: {refused}", f"{PROGRAM} --check")
    elif config.exists() and config.stat().st_mtime > read + 1:  # starts are known to the second
        detail = f"{config} was changed since the proxy read it: what runs has the settings of before"
        yield Finding("reload", Outcome.WARN, detail, f"{PROGRAM} --check && kill -HUP {pid}")
    elif pending:
        detail = f"changes of {pending} wait for a restart"
        yield Finding("reload", Outcome.WARN, detail, running.start("proxy", "restart"))
    else:
        yield Finding("reload", Outcome.PASS, "the proxy has read its settings since they were last changed")


def _last_reload(events: Sequence[Mapping[str, Any]], begun: float) -> tuple[float, str, str]:
    """Return when settings were last read, why that was refused if it was, and which options wait for a restart."""
    read, refused, pending, waits = begun, "", "", ""
    for event in reversed(events):
        when = _seconds(event.get("time"))
        if when is None or when < begun:
            continue
        if event.get("event") == "reload_refused":
            refused = printable(str(event.get("problem")))
        elif event.get("event") == "reload_needs_restart":
            waits = printable(str(event.get("options")))
        elif event.get("event") == "reloaded":
            read, refused, pending, waits = when, "", waits, ""
    return read, refused, pending


def _seconds(text: object) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None


def access_log(running: Running, ids: Sequence[str], seconds: float = LOG_TIME) -> Iterator[Finding]:
    """Report whether each request has exactly one line in the access log, with documented keys only."""
    name, log = "access log", running.settings.access_log
    if log == "-":
        yield Finding(name, Outcome.SKIP, "it goes to standard output, which only its reader sees")
        return
    if not ids:
        yield Finding(name, Outcome.SKIP, "no request was answered by the proxy")
        return
    lines = _lines_of(log, set(ids), seconds)
    missing = [each for each in ids if each not in lines]
    twice = [each for each in ids if len(lines.get(each, ())) > 1]
    if missing:
        absent = "" if Path(log).exists() else "; there is no such file: was the proxy started with other settings?"
        detail = f"{len(missing)} of {len(ids)} requests have no line in {log}, as {missing[0]}{absent}"
        yield Finding(name, Outcome.FAIL, detail, f"{PROGRAM} logs --diagnostics")
    if twice:
        detail = f"{len(twice)} of {len(ids)} requests have more than one line in {log}, as {twice[0]}"
        yield Finding(name, Outcome.FAIL, detail, f"grep {twice[0]} '{log}'")
    if not missing and not twice:
        yield Finding(name, Outcome.PASS, f"exactly one line for each of {len(ids)} requests")
    more = sorted({key for found in lines.values() for line in found for key in line if key not in KEYS})
    if more:
        detail = f"lines hold what is not promised: {printable(', '.join(more))}"
        yield Finding("access log keys", Outcome.FAIL, detail, f"{PROGRAM} logs --json --no-follow")
    elif lines:
        yield Finding("access log keys", Outcome.PASS, "nothing but the promised keys: no query, prompt or credential")


def _lines_of(log: str, ids: set[str], seconds: float) -> dict[str, list[dict[str, Any]]]:
    """Return the lines of each id, the log before the last rotation included, as soon as all are there."""
    end = time.monotonic() + seconds
    while True:
        found: dict[str, list[dict[str, Any]]] = {}
        for path in (log, f"{log}.1"):
            for line in _tail(path):
                if (match := _ID.search(line)) and (own := match[1].decode()) in ids:
                    found.setdefault(own, []).append(json.loads(line))
        if len(found) == len(ids) or time.monotonic() >= end:
            return found
        time.sleep(_POLL)


_ID = re.compile(rb'"id":"([!-~]+?)"')


def _tail(path: str) -> list[bytes]:
    """Return the whole lines at the end of a log."""
    try:
        with open(path, "rb") as log:
            begin = log.seek(max(0, log.seek(0, 2) - _LOG_TAIL))
            return log.read(_LOG_TAIL).split(b"\n")[1 if begin else 0 : -1]
    except OSError:
        return []


CHECKS: tuple[Callable[[Running], Iterator[Finding]], ...] = (binding, settings, allowlist, reload)
