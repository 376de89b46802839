"""What would keep an install from working, all of it at once, each with its fix. Pure: facts in, findings out.

A `fail` keeps the install from beginning; a `warn` is to be known, and doesn't.
"""

from __future__ import annotations

import os
import plistlib
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from proxy import PROGRAM
from proxy.manage.findings import agents as findings_agents
from proxy.manage.findings import firewall as findings_firewall
from proxy.manage.findings import ports as findings_ports
from proxy.manage.findings import tailscale as findings_tailscale
from proxy.manage.findings.origins import null_origin
from proxy.manage.findings.survey import APP, BREW_OLLAMA, HAPROXY
from proxy.manage.install.agents import variables
from proxy.manage.machine import interpreter, launchd
from proxy.manage.machine.machine import spelled
from proxy.settings.addresses import TAILSCALE, split, upstream_fault
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from proxy.manage.findings.ports import Listener
    from proxy.manage.findings.survey import Survey

OLDEST_MACOS = 14
OLDEST_OLLAMA = (0, 14, 0)
"""The release that first served /v1/messages."""


def findings(survey: Survey) -> tuple[Finding, ...]:
    """Return what all checks find, in an order in which it can be corrected."""
    if survey.machine.is_mac:
        return tuple(finding for check in CHECKS for finding in check(survey))
    unseen = "macOS, Ollama, Tailscale, launchd, the port, the firewall and sleep"
    detail = f"this is {survey.machine.system}: {unseen} can't be looked at; what follows is for a new Mac"
    return (Finding("machine", Outcome.SKIP, detail), *settings(survey), *build(survey))


def machine(survey: Survey) -> Iterator[Finding]:
    """Look for macOS 14 or newer on Apple silicon, as the user whose agents these are."""
    release = survey.macos.partition(".")[0]
    old = not release.isdecimal() or int(release) < OLDEST_MACOS
    if old:
        detail = f"macOS {survey.macos or 'of an unknown version'}; this needs {OLDEST_MACOS} or newer"
        yield Finding("macos", Outcome.FAIL, detail, "softwareupdate --list")
    if not survey.apple_silicon:
        detail = "this Mac has no Apple silicon: Ollama would run models on its processor only"
        yield Finding("chip", Outcome.FAIL, detail, "install on a Mac with an M-series chip")
    if not old and survey.apple_silicon:
        yield Finding("macos", Outcome.PASS, f"macOS {survey.macos} on Apple silicon")
    if survey.machine.environ.get("SUDO_USER"):
        detail = "under sudo this would install for root, who never logs in at the screen"
        yield Finding("user", Outcome.FAIL, detail, f"{PROGRAM} install")


def python(survey: Survey) -> Iterator[Finding]:
    """A Python whose binary doesn't move."""
    if survey.gone:
        detail = f"the installed proxy was built on {survey.gone}, which no longer runs: it will be rebuilt"
        yield Finding("python", Outcome.WARN, detail)
    yield interpreter.judge(survey.interpreter)


def build(survey: Survey) -> Iterator[Finding]:
    """Something to install from: a clone that can make a wheel, a wheel that was unpacked, or an installed copy."""
    if survey.installed is not None:
        yield Finding("source", Outcome.PASS, f"the installed copy {survey.installed.name} stays as it is")
    elif survey.source is None:
        detail = (
            "this runs neither from a checkout, nor from a wheel that uv, pipx or pip installed, nor from an install"
        )
        yield Finding(
            "source", Outcome.FAIL, detail, "uv tool install WHEEL; or make install in a clone of the project"
        )
    elif fault := survey.source.fault():
        yield Finding("source", Outcome.FAIL, fault, "make setup; then make install")
    else:
        yield Finding("source", Outcome.PASS, f"{survey.source}, version {survey.source.version}")


def settings(survey: Survey) -> Iterator[Finding]:
    """Settings that can be served with, and none that only this shell has."""
    for problem in survey.mistakes:
        hint = f"open -t '{survey.machine.config}'"
        yield Finding("settings", Outcome.FAIL, str(problem), hint)
    for name in sorted(name for name in survey.machine.environ if name.startswith("PROXY_")):
        detail = f"{name} is set in this shell; the installed proxy won't see it"
        yield Finding("settings", Outcome.WARN, detail, f"say it in {survey.machine.config}")
    if not survey.mistakes:
        there = "is kept" if survey.machine.config.exists() else "will be made"
        yield Finding("settings", Outcome.PASS, f"{survey.machine.config} {there}")
    yield from null_origin(survey.settings)
    if not survey.options.proxy_only and upstream_fault(survey.settings.upstream, allow_any=False):
        detail = f"upstream = {survey.settings.upstream} is on another machine; no Ollama can be installed there"
        yield Finding("upstream", Outcome.FAIL, detail, "make install ARGS=--proxy-only")


def ollama(survey: Survey) -> Iterator[Finding]:
    """An Ollama that is new enough, whose place is known."""
    if survey.options.proxy_only:
        yield Finding("ollama", Outcome.SKIP, "someone else manages Ollama (--proxy-only)")
        return
    if survey.ollama is None:
        yield Finding("ollama", Outcome.FAIL, "no ollama command was found", "brew install ollama")
        return
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", survey.ollama_version, re.ASCII)
    if match is None:
        detail = f"{survey.ollama} doesn't tell its version"
        yield Finding("ollama", Outcome.FAIL, detail, f"'{survey.ollama}' --version")
    elif (0, 0, 0) < tuple(map(int, match.groups())) < OLDEST_OLLAMA:
        oldest = ".".join(map(str, OLDEST_OLLAMA))
        detail = f"{survey.ollama} is version {survey.ollama_version}; this needs {oldest} or newer"
        yield Finding("ollama", Outcome.FAIL, detail, "brew upgrade ollama")
    else:
        yield Finding("ollama", Outcome.PASS, f"{survey.ollama}, version {survey.ollama_version}")
    if survey.ollama_plist is not None:
        try:
            plistlib.loads(survey.ollama_plist)
        except Exception:
            detail = "the existing com.ollama.plist can't be read: it is put aside, its environment can't be kept"
            yield Finding("ollama", Outcome.WARN, detail, "plutil -lint ~/Library/LaunchAgents/com.ollama.plist")


def other_servers(survey: Survey) -> Iterator[Finding]:
    """No other Ollama also serves: the second one can't have the port, and retries forever."""
    host, port = split(survey.settings.upstream)
    host = "127.0.0.1" if host == "localhost" else host
    if (host, port) in survey.in_use:
        outcome = Outcome.WARN if survey.options.proxy_only else Outcome.FAIL
        if (hidden := findings_ports.unseen("ollama server", host, port, survey.listeners, outcome)) is not None:
            yield hidden
    if survey.options.proxy_only:
        return
    if survey.job(BREW_OLLAMA).loaded:
        detail = "Homebrew's service of Ollama is loaded, and would fight with com.ollama over the port"
        yield Finding("ollama service", Outcome.FAIL, detail, "brew services stop ollama")
    if survey.app_runs:
        detail = "Ollama.app runs, with a server of its own; it must not start at login either"
        hint = "osascript -e 'quit app \"Ollama\"'; then System Settings, General, Login Items: remove Ollama"
        yield Finding("ollama app", Outcome.FAIL, detail, hint)
    ours = {survey.job(label).pid for label in (launchd.OLLAMA, BREW_OLLAMA)} - {None}
    for listener in survey.listeners or ():
        by_app = survey.app_runs and f"{APP.rpartition('/')[2]}/" in listener.program
        if listener.is_ollama and listener.pid not in ours and not by_app:
            detail = f"another Ollama serves on {listener.where}: process {listener.pid}, {listener.program}"
            yield Finding("ollama server", Outcome.FAIL, detail, f"kill {listener.pid}")
        elif not listener.is_ollama and listener.on_loopback and listener.port == port:
            yield _taken(listener)


def exposure(survey: Survey) -> Iterator[Finding]:
    """An Ollama on loopback only: bound beyond, it serves everyone who reaches it, past the proxy."""
    for listener in survey.listeners or ():
        if listener.is_ollama and not listener.on_loopback:
            detail = f"Ollama is bound beyond loopback, to {listener.where}"
            if listener.pid == survey.job(launchd.OLLAMA).pid and not survey.options.proxy_only:
                yield Finding("ollama address", Outcome.WARN, f"{detail}; the install binds it to loopback")
            else:
                hint = "launchctl unsetenv OLLAMA_HOST; in Ollama.app: Settings, Expose Ollama to the network: off"
                yield Finding("ollama address", Outcome.FAIL, detail, hint)


def tailscale(survey: Survey) -> Iterator[Finding]:
    """Tailscale that is up, with an interface of its own, and no rule of its own that leads past the proxy."""
    facts = survey.tailscale
    if facts is None:
        return
    if TAILSCALE in survey.settings.listen:
        yield findings_tailscale.address(facts.tailnet)
        yield from findings_tailscale.absence(facts)
        yield from findings_tailscale.amiss(facts.concerns, Outcome.WARN)
    else:
        yield from findings_tailscale.userspace(facts.tailnet)
    yield from findings_tailscale.serve(facts.serving)
    yield from findings_tailscale.serve_port(facts, survey.settings)


def port(survey: Survey) -> Iterator[Finding]:
    """A port that is free on the addresses that the proxy listens on, or will be."""
    wanted, free = survey.settings.port, True
    taken = [address for address in survey.addresses if (address, wanted) in survey.in_use]
    for listener in survey.listeners or ():
        if listener.port != wanted or listener.is_ollama or listener.pid == survey.job(launchd.PROXY).pid:
            continue
        if listener.pid == survey.job(HAPROXY).pid and not survey.options.keep_haproxy:
            continue
        if listener.address in survey.addresses or (listener.address == "*" and taken):
            free = False
            yield _taken(listener)
        elif listener.address == "*":
            free = False
            detail = f"{listener.where} is held by {listener.who}, which would answer whenever the proxy is down"
            yield Finding("port", Outcome.WARN, detail, _end(listener))
    for address in taken:
        if (hidden := findings_ports.unseen("port", address, wanted, survey.listeners)) is not None:
            free = False
            yield replace(hidden, hint=f"{hidden.hint}; or another port in config.toml")
    if free:
        yield Finding("port", Outcome.PASS, f"{wanted} is free, or will be, on {', '.join(survey.addresses) or 'it'}")


def _taken(listener: Listener) -> Finding:
    detail = f"{listener.where} is taken by process {listener.pid}, {listener.program or 'of another user'}"
    return Finding("port", Outcome.FAIL, detail, f"{_end(listener)}; or another port in config.toml")


def _end(listener: Listener) -> str:
    return "brew services stop haproxy" if "haproxy" in listener.program else f"kill {listener.pid}"


def haproxy(survey: Survey) -> Iterator[Finding]:
    """A previous install with HAProxy, to take over or to leave."""
    if not survey.haproxy_is_there:
        return
    if survey.options.keep_haproxy:
        detail = f"{HAPROXY} is left as it is (--keep-haproxy); it must never listen where the proxy does"
        yield Finding("haproxy", Outcome.WARN, detail)
    else:
        detail = f"{HAPROXY} is taken over: it is unloaded, and its plist kept in {survey.machine.backup}"
        yield Finding("haproxy", Outcome.WARN, detail, f"{PROGRAM} install --keep-haproxy, to leave it")


def screen(survey: Survey) -> Iterator[Finding]:
    """A session at the screen: without one launchd has no domain to load an agent into."""
    if survey.screen:
        yield Finding("screen", Outcome.PASS, "you are logged in at the screen")
        return
    detail = "nobody is logged in at this Mac's screen as you, so launchd can't load an agent (over SSH it can't)"
    hint = "log in at the screen or by Screen Sharing, and run it again; docs/setup.md: a Mac without a screen"
    yield Finding("screen", Outcome.FAIL, detail, hint)


def firewall(survey: Survey) -> Iterator[Finding]:
    """A firewall that lets the proxy's Python be reached, before anything is installed that would wait for it."""
    uv = interpreter.uv_of(survey.machine)
    bring = spelled(interpreter.bring_command(survey.machine, uv)) if uv else ""
    yield findings_firewall.judge(survey.firewall, survey.interpreter, bring)


def agents(survey: Survey) -> Iterator[Finding]:
    """Settings that launchd lets an agent have."""
    environment = {**variables(survey.ollama_plist), **dict(survey.settings.ollama_env)}
    ollamas = {} if survey.options.proxy_only else environment
    yield from findings_agents.of_settings(survey.settings.drain_timeout, ollamas)


def sleep(survey: Survey) -> Iterator[Finding]:
    """A Mac that stays awake on mains power."""
    if survey.sleep is None:
        yield Finding("sleep", Outcome.SKIP, "its settings can't be read", "pmset -g custom")
    elif survey.sleep:
        detail = f"this Mac sleeps after {survey.sleep} minutes without use, and then serves nobody"
        yield Finding("sleep", Outcome.WARN, detail, "sudo pmset -c sleep 0 autorestart 1")
    else:
        yield Finding("sleep", Outcome.PASS, "this Mac doesn't sleep on mains power")


def command(survey: Survey) -> Iterator[Finding]:
    """A place for the command that a shell finds, with nothing of someone else's in it."""
    link, home = survey.machine.link, survey.machine.support
    if survey.own_command:
        yield Finding("command", Outcome.PASS, f"{survey.machine.shown(link)} stays the copy that runs now")
    elif os.path.lexists(link) and not (link.is_symlink() and link.readlink().is_relative_to(home)):
        yield Finding("command", Outcome.FAIL, f"{link} is there already, and not ours", f"mv '{link}' '{link}.old'")
    if str(link.parent) not in survey.machine.path.split(os.pathsep):
        detail = f"{survey.machine.shown(link.parent)} is not on your PATH: {link.name} won't be found by its name"
        hint = "echo 'export PATH=\"$HOME/.local/bin:$PATH\"' >> ~/.zprofile"
        yield Finding("command", Outcome.WARN, detail, hint)


CHECKS: tuple[Callable[[Survey], Iterator[Finding]], ...] = (
    machine,
    screen,
    python,
    build,
    settings,
    ollama,
    other_servers,
    exposure,
    tailscale,
    port,
    haproxy,
    firewall,
    agents,
    sleep,
    command,
)
