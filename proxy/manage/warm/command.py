"""Load models before someone waits for them: pull missing ones, load each, and report until when it stays.

A cold model of 100 GB takes minutes, for which every client waits. So this command waits instead. `models` warms a
model, `warm_agent` works at login.
"""

from __future__ import annotations

import re
import sys
import time
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from proxy import PROGRAM
from proxy.manage.facts.facts import Facts
from proxy.manage.install import warm_agent
from proxy.manage.ollama.api import Ollama
from proxy.manage.warm.models import FOR_EVER, Warming
from proxy.manage.warm.progress import display, duration
from proxy.reading.names import ModelNameError, full_name, is_cloud
from proxy.settings.kinds import Duration, quoted, reader
from proxy.settings.settings import SettingsError, flag
from proxy.terminal.finding import Outcome
from proxy.terminal.result import CommandError, Exit, Result

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

    from proxy.manage.machine.machine import Machine
    from proxy.terminal.printer import Printer

LONGEST = 3650 * 86400.0
"""The longest keep-alive in seconds: ten years. Anything longer means forever."""

_SERVER_SAYS = "see the output of `ollama serve`"


def run(flags: Mapping[str, str], args: argparse.Namespace, machine: Machine, out: Printer) -> Result:
    """Load models, now and at each login, or no longer at login."""
    if mistakes := tuple(_mistakes(args)):
        return Result(Exit.WRONG, None, mistakes, f"{PROGRAM} warm --help")
    if args.at_login is False:
        return Result(data={"removed": warm_agent.take_away(machine, out)})
    wish = Wish.of(args)
    try:
        python = warm_agent.interpreter(machine) if args.at_login else None  # before minutes are spent on models
        data = _warm(_running(machine, flags), wish, out)
    except KeyboardInterrupt:
        raise CommandError("interrupted", f"{PROGRAM} warm {' '.join(wish.names)}") from None
    code = Exit.FAILED if data["failed"] else Exit.WELL
    if python is None:
        return Result(code, data)
    if data["failed"]:
        error = "the login was not changed, because all models must load first"
        return Result(code, data, (error,), "as above, then again")
    try:
        warm_agent.put(machine, python, wish.words(flags), out)
    except CommandError as error:
        return replace(error.result, data=data)
    return Result(data={**data, "at_login": True})


@dataclass(frozen=True, slots=True)
class Wish:
    """What to warm."""

    names: tuple[str, ...]  # each once
    keep_alive: float  # seconds, or FOR_EVER
    wait: float  # seconds for Ollama to answer
    said: tuple[str, str]  # how keep_alive and wait were given

    @classmethod
    def of(cls, args: argparse.Namespace) -> Wish:
        """Return the wish of a usage without mistakes."""
        names: dict[str, str] = {}
        for name in map(_name, args.models):
            names.setdefault(name.lower(), name)
        wait = _WAIT(args.wait or "0")
        said = (args.keep_alive, args.wait or warm_agent.WAIT)
        return cls(tuple(names.values()), keep_alive(args.keep_alive), wait, said)

    def words(self, flags: Mapping[str, str]) -> list[str]:
        """Return the arguments with which the command does the same again, at a time when Ollama may only start."""
        stay, wait = self.said
        settings = [f"{flag(option)}={value}" for option, value in flags.items()]
        return [*self.names, f"--keep-alive={stay}", f"--wait={wait}", *settings]


_WAIT = reader(Annotated[Duration, Field(ge=0, le=86400)])


def keep_alive(text: str) -> float:
    """Return the seconds that a model is to stay, or FOR_EVER; a ValueError says what is wrong, after the value."""
    word = text.strip().lower()
    if word in {"forever", "for ever"} or re.fullmatch(r"-\d+(\.\d+)?(d|h|m|s)?", word, re.ASCII):
        return FOR_EVER
    part = r"(\d{1,9}(?:\.\d{1,3})?)"
    match = re.fullmatch(rf"(?:{part}d)?(?:{part}h)?(?:{part}m)?(?:{part}s)?|{part}", word, re.ASCII)
    if not word or match is None:
        raise ValueError("is not a time: use seconds, or units as in 30m, 2h, 1h30m or 7d; -1 or forever means forever")
    days, hours, minutes, seconds, plain = (float(each or 0) for each in match.groups())
    whole = days * 86400 + hours * 3600 + minutes * 60 + seconds + plain
    if not whole:
        raise ValueError("would unload it at once, as `ollama stop` does")
    if whole > LONGEST:
        raise ValueError("is longer than ten years: use forever")
    return whole


def _name(sent: str) -> str:
    """Return a name as it may be sent; one that leads to another machine is kept, to be reported. May raise."""
    return sent.strip() if is_cloud(sent) else full_name(sent)


def _mistakes(args: argparse.Namespace) -> Iterator[str]:
    """Yield what is wrong with the usage."""
    if args.at_login is False and args.models:
        yield "--no-at-login takes no MODEL: it stops loading any at login"
    if args.at_login is not False and not args.models:
        yield "which models should be loaded? `ollama list` shows the available ones"
    for sent in args.models:
        try:
            _name(sent)
        except ModelNameError:
            yield f"{quoted(sent)} is not a model's name"
    for option, value, read in (("--keep-alive", args.keep_alive, keep_alive), ("--wait", args.wait or "0", _WAIT)):
        try:
            read(value)
        except ValueError as error:
            yield f"{option} {quoted(value)} {error}"


def _running(machine: Machine, flags: Mapping[str, str]) -> Facts:
    """Return what runs here, with settings as the service has them. Raises SettingsError."""
    running = Facts.of_services(machine, flags)
    if running.problems:
        raise SettingsError(running.problems)
    return running


def _warm(running: Facts, wish: Wish, out: Printer) -> dict[str, object]:
    """Warm models, print how it went, and return it as data."""
    begun = time.monotonic()
    ollama, start = Ollama(running.settings.upstream), running.start("ollama")
    log = f"{PROGRAM} logs --ollama" if running.plists["ollama"] else _SERVER_SAYS
    if not sys.stderr.isatty():  # a log, that is to be read some day
        out.note(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S} warming {', '.join(wish.names)}")
    if not _answers(ollama, wish.wait, out):
        waited = f" within {duration(wish.wait)}" if wish.wait else ""
        raise CommandError(f"Ollama does not answer at {ollama.url}{waited}", start)
    warming = Warming(ollama, wish.keep_alive, display(), out.note, log=log, start=start)
    for name in wish.names:
        warming.one(name)
    found = list(warming.findings())
    out.findings(found, "models")
    seconds, failed = time.monotonic() - begun, sum(each.outcome is Outcome.FAIL for each in found)
    counts = f"{len(found) - failed} loaded, {warming.pulled} pulled, {failed} failed"
    out.say(f"{counts}, in {duration(seconds)}")
    return {
        "models": found,
        "loaded": len(found) - failed,
        "pulled": warming.pulled,
        "failed": failed,
        "seconds": round(seconds, 3),
        "at_login": False,
    }


def _answers(ollama: Ollama, wait: float, out: Printer) -> bool:
    """Return whether Ollama answers, now or within `wait` seconds."""
    if wait and not ollama.answers():
        out.note(f"waiting for Ollama at {ollama.url}, {duration(wait)} at most")
    return ollama.wait(wait)
