"""Check who owns the logs, plists and settings file, and who may change them."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from proxy import PROGRAM
from proxy.manage.findings.services import NAMES
from proxy.manage.machine.services import LABELS
from proxy.settings.kinds import printable
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.manage.facts.facts import Facts
    from proxy.manage.machine.machine import Machine

_PRIVATE = 0o077  # bits that are nobody's but the user's
_ADMINS = {0, 80}  # wheel, admin: groups whose members may become root anyway; python.org's files are admin's

# --- files ------------------------------------------------------------------------------------------------------------


def access_log(facts: Facts) -> Iterator[Finding]:
    """Report whether the access log and its rotated files are regular files that only this user can read."""
    log = facts.settings.access_log
    yield from _logs("access log file", None if log == "-" else log, facts.machine)


def diagnostics_log(facts: Facts) -> Iterator[Finding]:
    """Report the same of the diagnostics log."""
    yield from _logs("diagnostics log file", facts.settings.diagnostics_log, facts.machine)


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
        others = f" and {len(there) - 1} rotated" if len(there) > 1 else ""
        yield Finding(name, Outcome.PASS, f"{machine.shown(path)}{others}: only you can read it and its folder")


def _log_fault(name: str, path: Path, machine: Machine) -> Finding | None:
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        return Finding(name, Outcome.FAIL, f"{path} is not a regular file", f"ls -l '{path}'")
    if found.st_uid != machine.uid:
        return Finding(
            name, Outcome.FAIL, f"{path} belongs to user {found.st_uid}", f"sudo chown {machine.uid} '{path}'"
        )
    if found.st_mode & _PRIVATE:
        detail = f"{path} has mode {stat.S_IMODE(found.st_mode):04o}: others may read the log"
        return Finding(name, Outcome.FAIL, detail, f"chmod 600 '{path}'")
    return None


def _folder_fault(name: str, folder: Path, machine: Machine) -> Finding | None:
    """Return what is wrong with a log's folder: if others can write to it, they can replace its files."""
    if fault := _writable(folder, machine):
        return Finding(name, Outcome.FAIL, fault, f"chmod 700 '{folder}'")
    if (mode := folder.stat().st_mode) & _PRIVATE:
        detail = f"{folder} has mode {stat.S_IMODE(mode):04o}: others may list the logs and their sizes"
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


def plists(facts: Facts) -> Iterator[Finding]:
    """Report whether both plists are the user's own and complete, and name programs that only this user can change."""
    for name in LABELS:
        if not facts.paths[name].exists():
            yield Finding(f"{NAMES[name]} plist", Outcome.SKIP, f"you have no agent {LABELS[name]}")
            continue
        faults = [replace(each, name=f"{NAMES[name]} plist") for each in _plist_faults(facts, name)]
        yield from faults
        if not faults:
            detail = "yours, well-formed, started at login and kept facts; its program can be changed by you only"
            yield Finding(f"{NAMES[name]} plist", Outcome.PASS, detail)


def _plist_faults(facts: Facts, name: str) -> Iterator[Finding]:
    machine, plist, path = facts.machine, facts.plists[name], facts.paths[name]
    again = f"{PROGRAM} install"
    if fault := _writable(path, machine) or _writable(path.parent, machine):
        yield Finding(name, Outcome.FAIL, fault, f"chmod 644 '{path}'; chmod 755 '{path.parent}'")
    if machine.find("plutil") is not None and (done := machine.run("plutil", "-lint", path)).code == 1:
        yield Finding(name, Outcome.FAIL, f"{path} is not a plist: {printable(done.said)}", f"plutil -lint '{path}'")
    if plist is None:
        yield Finding(name, Outcome.FAIL, f"{path} can't be read as a plist", again)
        return
    for key, why in (("RunAtLoad", "it isn't started at login"), ("KeepAlive", "if it ends, it isn't restarted")):
        if plist.get(key) is not True:
            yield Finding(name, Outcome.FAIL, f"{key} is not true: {why}", again)
    program = Path(facts.program(name) or "/nowhere")
    if program.exists():
        places = dict.fromkeys([program, program.parent, program.resolve(), program.resolve().parent])
        for fault in filter(None, (_writable(each, machine) for each in places)):
            yield Finding(name, Outcome.FAIL, fault, f"ls -ld '{program}' '{program.resolve()}'")


def config(facts: Facts) -> Iterator[Finding]:
    """Report whether only this user can change the settings, which decide what passes."""
    path = Path(facts.settings.config)
    if not path.exists():
        yield Finding("settings file", Outcome.SKIP, f"there is no {path}")
    elif fault := _writable(path, facts.machine) or _writable(path.parent, facts.machine):
        yield Finding("settings file", Outcome.FAIL, fault, f"chmod 600 '{path}'; chmod 700 '{path.parent}'")
    else:
        yield Finding("settings file", Outcome.PASS, f"{facts.machine.shown(path)} can be changed by you only")


def writable_logs(facts: Facts) -> Iterator[Finding]:
    """Report whether the logs can be written; the access log must be, for the proxy to start."""
    access, diagnostics = facts.settings.access_log, facts.settings.diagnostics_log
    if access == "-":
        yield Finding("access log", Outcome.PASS, "standard output")
    else:
        yield _writable_log("access log", Path(access))
    if diagnostics is not None:
        yield _writable_log("diagnostics log", Path(diagnostics))


def _writable_log(name: str, path: Path) -> Finding:
    if path.is_symlink():
        return Finding(
            name,
            Outcome.FAIL,
            f"{path} is a symbolic link, and the installer never writes through one",
            f"ls -l '{path}'",
        )
    if path.exists():
        if path.is_dir() or not os.access(path, os.W_OK):
            return Finding(name, Outcome.FAIL, f"{path} can't be written", f"ls -ld '{path}'")
        return Finding(name, Outcome.PASS, str(path))
    folder = next(each for each in path.parents if each.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return Finding(name, Outcome.FAIL, f"{path} can't be made in {folder}", f"ls -ld '{folder}'")
    return Finding(name, Outcome.PASS, f"{path} will be made")
