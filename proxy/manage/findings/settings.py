"""What can be wrong with settings, and with the other requirements of a start."""

from __future__ import annotations

import math
import resource
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy import PROGRAM
from proxy.exchange.client.downstream import C_PARSER
from proxy.policy import gate
from proxy.policy.origins import NULL_WARNING, allows_null
from proxy.serving.descriptors import connections_for, descriptors_for
from proxy.serving.descriptors import most as files_for_one_process
from proxy.settings.kinds import printable
from proxy.settings.settings import written
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from proxy.manage.facts.facts import Facts
    from proxy.settings.settings import Loaded, SettingsError


def mistakes(error: SettingsError) -> tuple[Finding, ...]:
    """Return a finding for each mistake in settings."""
    hint = f"{PROGRAM} --help"
    return tuple(Finding("settings", Outcome.FAIL, str(problem), hint) for problem in error.problems)


def values(loaded: Loaded) -> list[tuple[str, str, str]]:
    """Return each option with its value as people write it, and its source."""
    return [(name, value, loaded.sources[name]) for name, value in written(loaded.settings).items()]


def rows(loaded: Loaded) -> list[tuple[str, str, str, str]]:
    """Return each row of the allowlist that is open: method, path, surface, and what opened it."""
    opened = f"allow ({loaded.sources['allow']})"
    served = gate.open_rows(loaded.settings.allow)
    return [(row.method, row.path, row.surface.value, opened if row.opt_in else "always") for row in served]


def readable(facts: Facts) -> Iterator[Finding]:
    """Find settings that prevent serving."""
    config = Path(facts.settings.config)
    hint = f"open -t '{facts.machine.config}'" if facts.is_install else f"{PROGRAM} --check"
    for problem in facts.problems:
        yield Finding("settings", Outcome.FAIL, str(problem), hint)
    if not facts.problems:
        source = str(config) if config.exists() else "the defaults"
        yield Finding("settings", Outcome.PASS, f"{source}: no mistakes")


def effective(facts: Facts) -> Iterator[Finding]:
    """Report every effective setting, and variables that look like one but aren't."""
    if facts.loaded is None:
        return
    shown = "; ".join(f"{name} = {value} ({source})" for name, value, source in values(facts.loaded))
    yield Finding("settings", Outcome.PASS, shown)
    for warning in facts.loaded.warnings:
        yield Finding("environment", Outcome.WARN, warning, f"{PROGRAM} --help")


def of_this_shell(facts: Facts) -> Iterator[Finding]:
    """Find settings that only this shell has."""
    for name in sorted(name for name in facts.machine.environ if name.startswith("PROXY_")):
        detail = f"{name} is set in this shell; the installed proxy won't see it"
        yield Finding("settings", Outcome.WARN, detail, f"write it into {facts.machine.config}")


def allowlist(facts: Facts) -> Iterator[Finding]:
    """Report how much passes, and which of it the owner opened."""
    served = gate.open_rows(facts.settings.allow)
    more = [row.name for row in served if row.opt_in]
    opened = f", of which `allow` opened {', '.join(more)}" if more else ", none of them opened by `allow`"
    yield Finding("allowlist", Outcome.PASS, f"{len(served)} rows{opened}")


def null_origin(facts: Facts) -> Iterator[Finding]:
    """Find `null` in `allowed_origins`: it is valid, but opens much."""
    if allows_null(facts.settings.allowed_origins):
        hint = 'take "null" out of `allowed_origins`, unless an app needs it'
        yield Finding("allowed_origins", Outcome.WARN, NULL_WARNING, hint)


def opened(facts: Facts) -> Iterator[Finding]:
    """Find which of the two settings that open the proxy further than intended are on."""
    settings = facts.settings
    for option, on, then in (
        (
            "allow_any_address",
            settings.allow_any_address,
            f"{', '.join(settings.listen)} serves anyone who can reach it",
        ),
        ("allow_any_upstream", settings.allow_any_upstream, f"requests go to {settings.upstream}"),
    ):
        if on and facts.loaded is not None:
            detail = f"is on ({facts.loaded.sources[option]}): {then}"
            yield Finding(option, Outcome.WARN, detail, f"{PROGRAM} --no-{option.replace('_', '-')} --check")


def parser(_: Facts, c_parser: bool = C_PARSER) -> Iterator[Finding]:
    """Report whether aiohttp's C parser is loaded: only that one is strict enough, and measured."""
    if c_parser:
        yield Finding("parser", Outcome.PASS, "aiohttp's C parser is loaded")
    else:
        detail = "aiohttp's C parser is not loaded; its Python fallback accepts ambiguous requests"
        hint = "unset AIOHTTP_NO_EXTENSIONS; pip install --force-reinstall --only-binary aiohttp aiohttp"
        yield Finding("parser", Outcome.FAIL, detail, hint)


def descriptors(facts: Facts) -> Iterator[Finding]:
    """Report whether `max_connections` fit into the limit of open files; the soft limit is raised at start.

    If the proxy is installed, the limits are those from launchd, otherwise this shell's.
    """
    yield enough_files(facts.settings.max_connections, _limits(facts.plists["proxy"]))


def _limits(plist: Mapping[str, Any] | None) -> tuple[int, int]:
    """Return the soft and the hard limit of open files."""
    if plist is None:
        return resource.getrlimit(resource.RLIMIT_NOFILE)

    def limit(kind: str, usual: int) -> int:
        found = plist.get(f"{kind}ResourceLimits")
        files = found.get("NumberOfFiles") if isinstance(found, dict) else None
        return files if isinstance(files, int) else usual

    return limit("Soft", 256), limit("Hard", 2**31)


def enough_files(connections: int, limits: tuple[int, int]) -> Finding:
    """Return whether this many connections fit into a soft and a hard limit."""
    needed = descriptors_for(connections)
    soft, hard = (math.inf if limit == resource.RLIM_INFINITY else limit for limit in limits)
    allowed = min(max(soft, hard), files_for_one_process())
    if allowed < needed:
        fit = connections_for(int(allowed))
        detail = (
            f"only {fit} connections instead of {connections}: {needed} open files are needed, and {allowed} allowed"
        )
        return Finding("descriptors", Outcome.WARN, detail, f"ulimit -Hn {needed}")
    how = "are allowed" if soft >= needed else f"are available (now {soft})"
    return Finding("descriptors", Outcome.PASS, f"{needed} open files for {connections} connections {how}")


# --- what runs --------------------------------------------------------------------------------------------------------


def reload(facts: Facts) -> Iterator[Finding]:
    """Report whether the running proxy has the settings that are in the file now."""
    config, pid = Path(facts.settings.config), facts.pid("proxy")
    begun = facts.since(pid)
    if begun is None:
        yield Finding("reload", Outcome.SKIP, "the start time of the proxy is unknown")
        return
    read, refused, pending = _last_reload(facts.events, begun.timestamp())
    if refused:
        yield Finding("reload", Outcome.WARN, f"the last one was refused: {refused}", f"{PROGRAM} --check")
    elif config.exists() and config.stat().st_mtime > read + 1:  # starts are known to the second
        detail = f"{config} was changed since the proxy read it: the running proxy has the earlier settings"
        yield Finding("reload", Outcome.WARN, detail, f"{PROGRAM} --check && kill -HUP {pid}")
    elif pending:
        detail = f"changes of {pending} wait for a restart"
        yield Finding("reload", Outcome.WARN, detail, facts.start("proxy", "restart"))
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
