"""What can prevent an install on this Mac. Faults that can also appear later are in the other modules."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from proxy import PROGRAM
from proxy.manage.facts.mac import APP, BREW_OLLAMA, HAPROXY
from proxy.manage.findings.addresses import hidden, taken
from proxy.manage.findings.ollama import SINCE, lacks, numbers
from proxy.manage.machine import interpreter
from proxy.manage.machine.plists import parse
from proxy.settings.addresses import upstream_fault
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.manage.facts.facts import Facts

OLDEST_MACOS = 14


def elsewhere(facts: Facts) -> Finding:
    """Return what a dry run on another system can't check."""
    unseen = "macOS, Ollama, Tailscale, launchd, the port, the firewall and sleep"
    detail = f"this is {facts.machine.system}: {unseen} can't be checked; the rest is for a new Mac"
    return Finding("machine", Outcome.SKIP, detail)


def system(facts: Facts) -> Iterator[Finding]:
    """Look for macOS 14 or newer on Apple silicon, as the user who will own the agents."""
    release = facts.macos.partition(".")[0]
    old = not release.isdecimal() or int(release) < OLDEST_MACOS
    if old:
        detail = f"macOS {facts.macos or 'of an unknown version'}; this needs {OLDEST_MACOS} or newer"
        yield Finding("macos", Outcome.FAIL, detail, "softwareupdate --list")
    if not facts.apple_silicon:
        detail = "this Mac has no Apple silicon: Ollama would run models on the CPU only"
        yield Finding("chip", Outcome.FAIL, detail, "install on a Mac with an M-series chip")
    if not old and facts.apple_silicon:
        yield Finding("macos", Outcome.PASS, f"macOS {facts.macos} on Apple silicon")
    if facts.machine.environ.get("SUDO_USER"):
        detail = "under sudo this would install for root, who never logs in at the screen"
        yield Finding("user", Outcome.FAIL, detail, f"{PROGRAM} install")


def python(facts: Facts) -> Iterator[Finding]:
    """A Python whose binary doesn't move."""
    if facts.gone:
        detail = f"the installed proxy was built on {facts.gone}, which no longer runs: it will be rebuilt"
        yield Finding("python", Outcome.WARN, detail)
    yield interpreter.judge(facts.interpreter)


def source(facts: Facts) -> Iterator[Finding]:
    """Something to install from: a clone that can make a wheel, a wheel that was unpacked, or an installed copy."""
    if facts.installed_as is not None:
        yield Finding("source", Outcome.PASS, f"the installed copy {facts.installed_as.name} stays as it is")
    elif facts.source is None:
        detail = (
            "this runs neither from a checkout, nor from a wheel that uv, pipx or pip installed, nor from an install"
        )
        yield Finding(
            "source", Outcome.FAIL, detail, "uv tool install WHEEL; or make install in a clone of the project"
        )
    elif fault := facts.source.fault():
        yield Finding("source", Outcome.FAIL, fault, "make setup; then make install")
    else:
        yield Finding("source", Outcome.PASS, f"{facts.source}, version {facts.source.version}")


def ollama(facts: Facts) -> Iterator[Finding]:
    """An Ollama that is new enough, whose place is known."""
    if facts.options.proxy_only:
        yield Finding("ollama", Outcome.SKIP, "someone else manages Ollama (--proxy-only)")
        return
    if facts.ollama is None:
        yield Finding("ollama", Outcome.FAIL, "no ollama command was found", "brew install ollama")
        return
    known = numbers(facts.ollama_says)
    if known is None:
        detail = f"{facts.ollama} doesn't report its version"
        yield Finding("ollama", Outcome.FAIL, detail, f"'{facts.ollama}' --version")
    elif lacks(known):
        oldest = ".".join(map(str, max(SINCE.values())))
        detail = f"{facts.ollama} is version {facts.ollama_says}; this needs {oldest} or newer"
        yield Finding("ollama", Outcome.FAIL, detail, "brew upgrade ollama")
    else:
        yield Finding("ollama", Outcome.PASS, f"{facts.ollama}, version {facts.ollama_says}")
    if facts.ollama_plist is not None and parse(facts.ollama_plist) is None:
        detail = "the existing com.ollama.plist can't be read: it is moved away, and its variables can't be kept"
        yield Finding("ollama", Outcome.WARN, detail, "plutil -lint ~/Library/LaunchAgents/com.ollama.plist")


def other_ollamas(facts: Facts) -> Iterator[Finding]:
    """No other Ollama also serves: the second one can't have the port, and retries forever."""
    host, port = facts.upstream
    outcome = Outcome.WARN if facts.options.proxy_only else Outcome.FAIL
    if facts.local_upstream and (foreign := hidden(facts, "ollama server", host, port, outcome)) is not None:
        yield foreign
    if facts.options.proxy_only:
        return
    if facts.other_job(BREW_OLLAMA).loaded:
        detail = "Homebrew's service of Ollama is loaded, and would compete with com.ollama for the port"
        yield Finding("ollama service", Outcome.FAIL, detail, "brew services stop ollama")
    if facts.app_runs:
        detail = "Ollama.app runs, with a server of its own; it must not start at login either"
        hint = "osascript -e 'quit app \"Ollama\"'; then System Settings, General, Login Items: remove Ollama"
        yield Finding("ollama app", Outcome.FAIL, detail, hint)
    own = facts.jobs.get("ollama")
    ours = {own.pid if own else None, facts.other_job(BREW_OLLAMA).pid} - {None}
    for listener in facts.listening or ():
        by_app = facts.app_runs and f"{APP.rpartition('/')[2]}/" in listener.program
        if listener.is_ollama and listener.pid not in ours and not by_app:
            detail = f"another Ollama serves on {listener.where}: process {listener.pid}, {listener.program}"
            yield Finding("ollama server", Outcome.FAIL, detail, f"kill {listener.pid}")
        elif not listener.is_ollama and listener.on_loopback and listener.port == port:
            yield taken(listener)


def haproxy(facts: Facts) -> Iterator[Finding]:
    """A previous install with HAProxy, to replace or to leave."""
    if not facts.haproxy_is_there:
        return
    if facts.options.keep_haproxy:
        detail = f"{HAPROXY} is left alone (--keep-haproxy); it must never listen where the proxy does"
        yield Finding("haproxy", Outcome.WARN, detail)
    else:
        detail = f"{HAPROXY} is replaced: it is unloaded, and its plist kept in {facts.machine.backup}"
        yield Finding("haproxy", Outcome.WARN, detail, f"{PROGRAM} install --keep-haproxy, to leave it")


def screen(facts: Facts) -> Iterator[Finding]:
    """A session at the screen: without one launchd has no domain to load an agent into."""
    if facts.screen:
        yield Finding("screen", Outcome.PASS, "you are logged in at the screen")
        return
    detail = "nobody is logged in at this Mac's screen as you, so launchd can't load an agent (over SSH it can't)"
    hint = "log in at the screen or with Screen Sharing, and run it again; docs/setup.md: a Mac without a screen"
    yield Finding("screen", Outcome.FAIL, detail, hint)


def sleep(facts: Facts) -> Iterator[Finding]:
    """A Mac that stays awake on mains power."""
    if facts.sleep is None:
        yield Finding("sleep", Outcome.SKIP, "its settings can't be read", "pmset -g custom")
    elif facts.sleep:
        detail = f"this Mac sleeps after {facts.sleep} minutes without use, and then answers no requests"
        yield Finding("sleep", Outcome.WARN, detail, "sudo pmset -c sleep 0 autorestart 1")
    else:
        yield Finding("sleep", Outcome.PASS, "this Mac doesn't sleep on mains power")


def command(facts: Facts) -> Iterator[Finding]:
    """A place on the PATH for the command, with nothing of someone else's in it."""
    link, home = facts.machine.link, facts.machine.support
    if facts.own_command:
        yield Finding("command", Outcome.PASS, f"{facts.machine.shown(link)} stays the copy that runs now")
    elif os.path.lexists(link) and not (link.is_symlink() and link.readlink().is_relative_to(home)):
        yield Finding(
            "command",
            Outcome.FAIL,
            f"{link} exists already, and this program didn't make it",
            f"mv '{link}' '{link}.old'",
        )
    if str(link.parent) not in facts.machine.path.split(os.pathsep):
        detail = f"{facts.machine.shown(link.parent)} is not on your PATH: {link.name} won't be found by its name"
        hint = "echo 'export PATH=\"$HOME/.local/bin:$PATH\"' >> ~/.zprofile"
        yield Finding("command", Outcome.WARN, detail, hint)


def ollama_elsewhere(facts: Facts) -> Iterator[Finding]:
    """Find an Ollama on another machine, which can't be installed."""
    if not facts.options.proxy_only and upstream_fault(facts.settings.upstream, allow_any=False):
        detail = f"upstream = {facts.settings.upstream} is on another machine; no Ollama can be installed there"
        yield Finding("upstream", Outcome.FAIL, detail, "make install ARGS=--proxy-only")
