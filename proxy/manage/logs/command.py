"""`logs`: which log is shown, which of its lines, and whether it is followed, as on a terminal."""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from proxy import PROGRAM
from proxy.logs.logfile import utc
from proxy.manage.logs.files import Log, LogError
from proxy.manage.logs.lines import Wanted
from proxy.manage.logs.views import Checked, Diagnostics, Kept, Rows, Sum, Texts
from proxy.manage.machine.launchd import OLLAMA
from proxy.manage.machine.plists import STREAMS, read_plist
from proxy.manage.machine.services import plist_of, settings_environ
from proxy.settings import kinds
from proxy.settings.settings import load
from proxy.terminal.output import unwritable
from proxy.terminal.result import CommandError, Exit, Result

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence

    from proxy.manage.logs.views import View
    from proxy.manage.machine.machine import Machine
    from proxy.terminal.printer import Printer

LAST = 20
"""Lines that are shown before it follows, unless it was said how far back they are to go."""

POLL = 0.2
"""Seconds between two looks for new lines: at once, to a person."""

_AGE = kinds.reader(Annotated[kinds.Age, Field(ge=1, le=36500 * 86400)])
_COMMAND = f"{PROGRAM} logs"


def run(flags: Mapping[str, str], args: argparse.Namespace, machine: Machine, out: Printer) -> Result:
    """Show the lines that are asked for, or their summary. Ctrl-C is how following ends."""
    whole = args.summary or args.verify
    if not whole or args.ollama:
        out.lines_only()
    follow = sys.stdout.isatty() and not args.no_follow and not whole
    try:
        wanted = _wanted(args, time.time())
    except ValueError as error:
        raise CommandError(str(error), f"{_COMMAND} --help", Exit.WRONG) from error
    try:
        view = _show(machine, flags, args, wanted, out, follow=follow)
    except KeyboardInterrupt:
        return Result(Exit.FAILED)
    return Result(view.code, view.data)


def _wanted(args: argparse.Namespace, now: float) -> Wanted:
    """Return which lines are asked for. ValueError for flags that make no sense together, or a wrong --since."""
    filters = {f"--{name}": getattr(args, name) for name in ("since", "device", "model", "refused", "summary")}
    if args.verify:
        _without("--verify", filters, "it needs all lines")
    if args.ollama:
        _without("--ollama", {**filters, "--json": args.json}, "its lines are Ollama's own")
    if args.diagnostics:
        del filters["--since"]
        _without("--diagnostics", filters, "they are about the proxy, not about requests")
    narrow = bool(args.device or args.model or args.refused)
    gaps = not (args.json and narrow)  # what picks out lines for a program is not to get others
    return Wanted(_since(args.since, now), args.device or "", args.model or "", args.refused, gaps)


def _without(flag: str, others: Mapping[str, object], why: str) -> None:
    if given := [name for name, value in others.items() if value]:
        raise ValueError(f"{' and '.join(given)} can't be combined with {flag}: {why}")


def _since(given: str | None, now: float) -> str:
    """Return the time of the first line that is wanted, as lines have it: so long before `now`, or a date."""
    if given is None:
        return ""
    try:
        return utc(datetime.fromisoformat(given).timestamp() if "-" in given else now - _AGE(given))
    except (ValueError, OverflowError) as error:
        fault = "is not a date such as 2026-11-23 or 2026-11-23T20:00" if "-" in given else error
        raise ValueError(f"--since {kinds.quoted(given)} {fault}") from None


def _show(
    machine: Machine, flags: Mapping[str, str], args: argparse.Namespace, wanted: Wanted, out: Printer, *, follow: bool
) -> View:
    """Show the lines, and return the first log's form, which knows what they add up to."""
    with ExitStack() as stack:
        shown: list[tuple[Log, View]] = []
        if args.ollama:
            paths = _ollamas(machine)
            names = ("stdout  ", "stderr  ") if len(paths) > 1 else ("",)
            for path, name in zip(paths, names, strict=True):
                shown.append((stack.enter_context(Log(path, rotated=0)), Texts(out, name)))
        else:
            log = stack.enter_context(Log(_path(machine, flags, args)))
            shown.append((log, Checked(out, log) if args.verify else _view(args, wanted, out)))
        if follow:
            _follow(shown, None if wanted.since else LAST, out)
        else:
            _all(shown)
        return shown[0][1]


def _view(args: argparse.Namespace, wanted: Wanted, out: Printer) -> View:
    """Return the form that is asked for."""
    if args.summary:
        return Sum(out, wanted)
    if args.json:
        return Kept(out, wanted)
    return Diagnostics(out, wanted) if args.diagnostics else Rows(out, wanted)


def _path(machine: Machine, flags: Mapping[str, str], args: argparse.Namespace) -> str:
    """Return where the log is that is asked for."""
    settings = load(flags, settings_environ(machine)).settings
    if not args.diagnostics:
        if settings.access_log == "-":
            text = "the access log goes to standard output (access_log is `-`), so it isn't kept anywhere"
            raise LogError(text, f"{_COMMAND} --access-log FILE")
        return settings.access_log
    if settings.diagnostics_log is None:
        text = "diagnostics go to standard error, unless diagnostics_log names a file, as it does once installed"
        raise LogError(text, f"{_COMMAND} --diagnostics --diagnostics-log FILE")
    return settings.diagnostics_log


def _ollamas(machine: Machine) -> list[str]:
    """Return the files that launchd writes what our Ollama says to. LogError where it isn't ours."""
    plist = read_plist(plist_of(machine, OLLAMA))
    if plist is not None:
        paths = [plist[stream] for stream in STREAMS if isinstance(plist.get(stream), str)]
        if paths := list(dict.fromkeys(path for path in paths if path != os.devnull)):
            return paths
        raise LogError(f"the plist of {OLLAMA} names no file for Ollama's output", f"{PROGRAM} install")
    app, brew = machine.home / ".ollama/logs/server.log", machine.at("/opt/homebrew/var/log/ollama.log")
    text = "Ollama isn't one of our services here, so its log is elsewhere: "
    text += f"the app in {machine.shown(app)}, Homebrew in {brew}"
    if not machine.is_mac:
        raise LogError(f"{text}, systemd in its journal", "journalctl -u ollama -f")
    known = next((path for path in (app, brew) if path.exists()), app)
    raise LogError(text, f"tail -F '{known}'")


# --- showing ----------------------------------------------------------------------------------------------------------


def _all(shown: Sequence[tuple[Log, View]]) -> None:
    """Show what there is."""
    if not any(log.found for log, _ in shown):
        raise LogError(f"there is no {' or '.join(log.path for log, _ in shown)} yet", f"{PROGRAM} status")
    for log, view in shown:
        for line in _lines(log):
            view.show(line)
            if unwritable():
                return
        view.end()


def _lines(log: Log) -> Iterator[bytes]:
    """Yield the lines that there are, and a half one at the end unless it was just being written."""
    yield from log.read()
    if log.half():
        time.sleep(POLL)
        yield from log.read()
    if half := log.half():
        yield half


def _follow(shown: Sequence[tuple[Log, View]], back: int | None, out: Printer) -> None:
    """Show the last lines, at most `back` of each log, and then what comes, until Ctrl-C."""
    try:
        for log, view in shown:
            view.begin()
            if not log.found:
                out.note(f"there is no {log.path} yet; waiting for it", "yellow")
            elif back is not None:
                for line in log.last(back, view.wants):
                    view.show(line)
        while not unwritable():
            for log, view in shown:
                for line in log.read():
                    view.show(line)
            sys.stdout.flush()
            time.sleep(POLL)
    except KeyboardInterrupt:
        for _, view in shown:
            view.end()
