"""Security: who owns the files and can change them, what Ollama's environment opens, what may leave this Mac."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy import PROGRAM
from proxy.manage.findings import stubs as findings_stubs
from proxy.manage.machine.services import LABELS
from proxy.manage.verify.services import NAMES
from proxy.settings.addresses import parse
from proxy.settings.kinds import printable
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from proxy.manage.findings.running import Running
    from proxy.manage.machine.machine import Machine

_PRIVATE = 0o077  # bits that are nobody's but the user's
_ADMINS = {0, 80}  # wheel, admin: groups whose members may become root anyway; python.org's files are admin's

CLOUD_SINCE = "0.16.2"
"""The release of Ollama that first reports, at /api/status, whether its cloud is off."""


# --- files ------------------------------------------------------------------------------------------------------------


def access_log_file(running: Running) -> Iterator[Finding]:
    """Report whether the access log, with those set aside, is of regular files that are this user's alone."""
    log = running.settings.access_log
    yield from _logs("access log file", None if log == "-" else log, running.machine)


def diagnostics_log_file(running: Running) -> Iterator[Finding]:
    """Report the same of the diagnostics log."""
    yield from _logs("diagnostics log file", running.settings.diagnostics_log, running.machine)


def _logs(name: str, log: str | None, machine: Machine) -> Iterator[Finding]:
    if log is None:
        yield Finding(name, Outcome.SKIP, "it goes to a standard stream, not to a file")
        return
    path = Path(log)
    there = [each for each in (path, *sorted(path.parent.glob(f"{path.name}.*"))) if each.exists() or each.is_symlink()]
    if not there:
        yield Finding(name, Outcome.SKIP, f"there is no {log} yet")
        return
    faults = [fault for each in there if (fault := _log_fault(name, each, machine))]
    faults += [fault for fault in [_folder_fault(name, path.parent, machine)] if fault]
    yield from faults
    if not faults:
        others = f" and {len(there) - 1} set aside" if len(there) > 1 else ""
        yield Finding(name, Outcome.PASS, f"{machine.shown(path)}{others}: yours alone, in a folder of yours alone")


def _log_fault(name: str, path: Path, machine: Machine) -> Finding | None:
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        return Finding(name, Outcome.FAIL, f"{path} is not a regular file", f"ls -l '{path}'")
    if found.st_uid != machine.uid:
        return Finding(
            name, Outcome.FAIL, f"{path} belongs to user {found.st_uid}", f"sudo chown {machine.uid} '{path}'"
        )
    if found.st_mode & _PRIVATE:
        detail = f"{path} has mode {stat.S_IMODE(found.st_mode):04o}: others may read who asked what"
        return Finding(name, Outcome.FAIL, detail, f"chmod 600 '{path}'")
    return None


def _folder_fault(name: str, folder: Path, machine: Machine) -> Finding | None:
    """Return what is wrong with a log's folder: if others can write to it, they can replace its files."""
    if fault := _writable(folder, machine):
        return Finding(name, Outcome.FAIL, fault, f"chmod 700 '{folder}'")
    if (mode := folder.stat().st_mode) & _PRIVATE:
        detail = f"{folder} has mode {stat.S_IMODE(mode):04o}: others may see that there are logs, and how large"
        return Finding(name, Outcome.WARN, detail, f"chmod 700 '{folder}'")
    return None


def _writable(path: Path, machine: Machine) -> str | None:
    """Return why someone else can change a file or folder, or None. Root and the admins always can."""
    found = path.stat()
    if found.st_uid not in {machine.uid, 0}:
        return f"{path} belongs to user {found.st_uid}, who may change it"
    sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
    if found.st_mode & stat.S_IWOTH and not sticky:
        return f"{path} has mode {stat.S_IMODE(found.st_mode):04o}: everyone on this machine may change it"
    if found.st_mode & stat.S_IWGRP and found.st_gid not in _ADMINS and not sticky:
        return f"{path} has mode {stat.S_IMODE(found.st_mode):04o}: group {found.st_gid} may change it"
    return None


def plists(running: Running) -> Iterator[Finding]:
    """Report whether both plists are the user's own, are complete, and name a program that others can't change."""
    for name in LABELS:
        if not running.paths[name].exists():
            yield Finding(f"{NAMES[name]} plist", Outcome.SKIP, f"there is no agent {LABELS[name]} of yours")
            continue
        faults = [replace(each, name=f"{NAMES[name]} plist") for each in _plist_faults(running, name)]
        yield from faults
        if not faults:
            detail = "yours, well-formed, started at login and kept running; its program is nobody else's to change"
            yield Finding(f"{NAMES[name]} plist", Outcome.PASS, detail)


def _plist_faults(running: Running, name: str) -> Iterator[Finding]:
    machine, plist, path = running.machine, running.plists[name], running.paths[name]
    again = f"{PROGRAM} install"
    if fault := _writable(path, machine) or _writable(path.parent, machine):
        yield Finding(name, Outcome.FAIL, fault, f"chmod 644 '{path}'; chmod 755 '{path.parent}'")
    if machine.find("plutil") is not None and (done := machine.run("plutil", "-lint", path)).code == 1:
        yield Finding(name, Outcome.FAIL, f"{path} is no plist: {printable(done.said)}", f"plutil -lint '{path}'")
    if plist is None:
        yield Finding(name, Outcome.FAIL, f"{path} can't be read as a plist", again)
        return
    for key, why in (("RunAtLoad", "it isn't started at login"), ("KeepAlive", "once it ends it stays down")):
        if plist.get(key) is not True:
            yield Finding(name, Outcome.FAIL, f"{key} is not true: {why}", again)
    yield from running.program_faults(name)
    program = Path(running.program(name) or "/nowhere")
    if program.exists():
        places = dict.fromkeys([program, program.parent, program.resolve(), program.resolve().parent])
        for fault in filter(None, (_writable(each, machine) for each in places)):
            yield Finding(name, Outcome.FAIL, fault, f"ls -ld '{program}' '{program.resolve()}'")


def config(running: Running) -> Iterator[Finding]:
    """Report whether nobody else can change the settings, which decide what is let through."""
    path = Path(running.settings.config)
    if not path.exists():
        yield Finding("settings file", Outcome.SKIP, f"there is no {path}")
    elif fault := _writable(path, running.machine) or _writable(path.parent, running.machine):
        yield Finding("settings file", Outcome.FAIL, fault, f"chmod 600 '{path}'; chmod 700 '{path.parent}'")
    else:
        yield Finding("settings file", Outcome.PASS, f"{running.machine.shown(path)} is nobody else's to change")


# --- Ollama's environment ---------------------------------------------------------------------------------------------


def ollama_host(running: Running) -> Iterator[Finding]:
    """Report whether Ollama is set to loopback: by its plist, by launchd for all programs, by this shell."""
    name, plist = "OLLAMA_HOST", running.plists["ollama"]
    if plist is None:
        yield Finding(f"{name} of the agent", Outcome.SKIP, "Ollama is no agent of ours")
    else:
        value = _variables(plist).get(name, "")
        yield _host(f"{name} of the agent", value, Outcome.FAIL, f"{PROGRAM} install")
    if running.unasked is None:
        value = _of_launchd(running, name)
        yield _host(f"{name} of the login session", value, Outcome.FAIL, f"launchctl unsetenv {name}")
    else:
        yield Finding(f"{name} of the login session", Outcome.SKIP, running.unasked.detail)
    value = running.machine.environ.get(name, "")
    yield _host(f"{name} of this shell", value, Outcome.WARN, f"unset {name}")


def _host(name: str, value: str, outcome: Outcome, hint: str) -> Finding:
    if not value.strip():
        return Finding(name, Outcome.PASS, "not set: Ollama's default is 127.0.0.1")
    if on_loopback(value):
        return Finding(name, Outcome.PASS, f"{printable(value)}, on loopback")
    detail = f"{printable(value)} is not on loopback: an Ollama that is started with it lets others past the proxy"
    return Finding(name, outcome, detail, hint)


def on_loopback(value: str) -> bool:
    """Return whether Ollama listens on loopback with that OLLAMA_HOST, which it reads leniently.

    Quotes, a scheme and a path are cut; only a port, as in `:11434`, is every address; a name may be anything.
    """
    text = value.strip().strip("'\"").strip()
    text = text.partition("://")[2] if "://" in text else text
    host = text.partition("/")[0]
    if host.count(":") == 1 or host.startswith("["):
        host = host.rpartition(":")[0] if not host.endswith("]") else host
    elif not host:
        return True
    try:
        return host == "localhost" or parse(host).is_loopback
    except ValueError:
        return False


def ollama_switches(running: Running) -> Iterator[Finding]:
    """Report of variables with which Ollama writes prompts to files, or answers web pages of anyone."""
    places = list(_environments(running))
    if not places:
        for name in _SWITCHES:
            yield Finding(name, Outcome.SKIP, "the environment of Ollama can't be seen")
        return
    for name, (is_wrong, then) in _SWITCHES.items():
        wrong = [(where, mend) for where, variables, mend in places if is_wrong(variables.get(name, ""))]
        for where, mend in wrong:
            yield Finding(name, Outcome.WARN, f"{then}; it is set {where}", mend(name))
        if not wrong:
            yield Finding(name, Outcome.PASS, "not set, or harmless")


def _environments(running: Running) -> Iterator[tuple[str, Mapping[str, str], Callable[[str], str]]]:
    """Yield each source of Ollama's variables, its variables, and the command that removes one."""
    if (plist := running.plists["ollama"]) is not None:
        config = running.settings.config
        yield (
            "in the agent's plist",
            _variables(plist),
            lambda name: f"take {name} out of [ollama_env] in '{config}' or out of the plist; {PROGRAM} install",
        )
    if running.unasked is None:
        yield (
            "for the login session",
            {name: _of_launchd(running, name) for name in _SWITCHES},
            lambda name: f"launchctl unsetenv {name}",
        )


def _variables(plist: Mapping[str, Any]) -> Mapping[str, str]:
    found = plist.get("EnvironmentVariables")
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def _of_launchd(running: Running, name: str) -> str:
    return running.machine.run("launchctl", "getenv", name).out.strip()


def switched_on(value: str) -> bool:
    """Return whether Ollama reads a switch as on, which includes what it can't parse."""
    text = value.strip().strip("'\"")
    return bool(text) and text not in {"0", "f", "F", "false", "False", "FALSE"}


def _wide(value: str) -> bool:
    """Return whether origins that Ollama allows are those of any web page."""
    return not {"*", "http://*", "https://*"}.isdisjoint(each.strip() for each in value.strip("'\"").split(","))


_SWITCHES: Mapping[str, tuple[Callable[[str], bool], str]] = {
    "OLLAMA_ORIGINS": (_wide, "with a * in it any web page that is open on this Mac may ask Ollama itself"),
    "OLLAMA_DEBUG_LOG_REQUESTS": (switched_on, "with it Ollama writes every prompt to a temporary folder"),
    "OLLAMA_DEBUG": (switched_on, "with it Ollama writes much to its log, in some releases prompts"),
}
"""Variable of Ollama's -> whether a value is one to know of, and why."""


# --- the cloud --------------------------------------------------------------------------------------------------------


def cloud(running: Running) -> Iterator[Finding]:
    """Report whether Ollama's cloud is off: a model's name alone would send a prompt to ollama.com."""
    name = "Ollama's cloud"
    if running.ollama_version is None:
        yield Finding(name, Outcome.SKIP, "Ollama doesn't answer")
        return
    told = running.of_ollama("/api/status")
    disabled = findings_stubs.cloud_is_off(told)
    if told == 404:
        detail = f"Ollama {printable(running.ollama_version)} doesn't tell; {CLOUD_SINCE} and newer do"
        yield Finding(name, Outcome.SKIP, detail, "brew upgrade ollama")
    elif disabled is True:
        yield Finding(name, Outcome.PASS, "is off: no prompt leaves this machine by a model's name")
    elif disabled is False:
        detail = "is on: a model named …:cloud or …-cloud, and web search, send what a client asks to ollama.com"
        yield Finding(name, Outcome.WARN, detail, _no_cloud(running))
    else:
        yield Finding(name, Outcome.SKIP, "Ollama's answer to GET /api/status isn't understood")
    tags = running.of_ollama("/api/tags")
    remote = list(findings_stubs.stubs(tags, off=disabled is True))
    yield from remote
    models = tags.get("models") if isinstance(tags, dict) else None
    if isinstance(models, list) and not remote:
        yield Finding(findings_stubs.NAME, Outcome.PASS, f"none of the {len(models)} models runs elsewhere")


def _no_cloud(running: Running) -> str:
    """Return what turns the cloud off; our agent has OLLAMA_NO_CLOUD=1, and one without it is an old one."""
    plist = running.plists["ollama"]
    if plist is not None and switched_on(_variables(plist).get("OLLAMA_NO_CLOUD", "")):
        return running.start("ollama", "restart")
    if running.machine.is_mac:
        return f"{PROGRAM} install; an Ollama of your own: start it with OLLAMA_NO_CLOUD=1"
    return "OLLAMA_NO_CLOUD=1 ollama serve"


CHECKS: tuple[Callable[[Running], Iterator[Finding]], ...] = (
    access_log_file,
    diagnostics_log_file,
    plists,
    config,
    ollama_host,
    ollama_switches,
    cloud,
)
