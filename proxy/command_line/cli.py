"""Reads what was typed, and runs the command that it names. Data goes to standard output, messages to standard error.

A command is the function `run` of its module, which takes the settings' flags, the other arguments, the machine and the
printer, and returns a Result. It is imported when it runs, so serving starts without rich and the owner's commands.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

from proxy import PROGRAM
from proxy.command_line import commands
from proxy.logs.stdio import hold_standard_streams
from proxy.settings.settings import SPELLED, SettingsError, flag, load
from proxy.terminal.console import complain
from proxy.terminal.output import written
from proxy.terminal.printer import Printer
from proxy.terminal.result import CommandError, Exit, Result

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping, Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` (default: the process's arguments); return the exit code."""
    hold_standard_streams()
    return written(lambda: _run(argv), lambda error, hint: complain([error], hint))


def _run(argv: Sequence[str] | None) -> int:
    settings = commands.options()
    found, rest = settings.parse_known_args(argv)
    flags = {option: _as_text(value) for option, value in vars(found).items() if value is not None}
    args = _others(settings, rest, flags) if rest else None  # serving has none, and saves the time for their parsers
    out = Printer(as_json=args is not None and args.json)
    try:
        return _serve(flags) if args is None or args.run is None else out.end(_result(flags, args, out))
    except SettingsError as error:
        return out.end(Result(Exit.WRONG, None, tuple(map(str, error.problems)), f"{PROGRAM} --help"))
    except CommandError as error:
        return out.end(error.result)


def _others(settings: commands.Parser, words: Iterable[str], flags: dict[str, str]) -> argparse.Namespace:
    """Return what `words` mean that set no option. Unknown flags among them join `flags`."""
    parser, known = commands.commands(settings)
    args = parser.parse_args(_without_unknown(words, known, flags))
    if args.json and args.run is None:
        parser.error("--json goes with --check")
    return args


def _serve(flags: Mapping[str, str]) -> int:
    loaded = load(flags, os.environ)
    from proxy.serving import listener  # noqa: PLC0415

    return listener.serve(loaded, lambda: load(flags, os.environ))


def _result(flags: Mapping[str, str], args: argparse.Namespace, out: Printer) -> Result:
    """Run a command. Raises SettingsError or CommandError."""
    if flags and args.without_settings:
        words = ", ".join(flag(option) if option in SPELLED else option for option in flags)
        raise CommandError(args.without_settings.format(words), f"{PROGRAM} {args.command} --help", Exit.WRONG)
    from proxy.manage.machine.machine import Machine  # noqa: PLC0415

    result: Result = import_module(args.run).run(flags, args, Machine.here(), out)
    return result


def _as_text(value: object) -> str:
    """Return the value of a flag as the text of an option; the flag of a list may be repeated."""
    return ",".join(value) if isinstance(value, list) else str(value)


def _without_unknown(words: Iterable[str], known: set[str], flags: dict[str, str]) -> list[str]:
    """Return `words` without unknown flags, which join `flags` and are reported with all other mistakes."""
    kept: list[str] = []
    unknown = None
    for word in words:
        name, _, value = word.partition("=")
        if name.startswith("--") and name not in known:
            unknown, flags[name] = name, value
            continue
        if unknown is not None and not word.startswith("-") and word not in known:
            flags[unknown] = word
        else:
            kept.append(word)
        unknown = None
    return kept
