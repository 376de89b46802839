"""Which command runs, and its exit code.

Exit codes: 0 well, 1 a check or step failed, 2 wrong usage or settings, 3 macOS or another thing is missing.

Data goes to standard output, messages go to standard error. A command imports what it needs when it runs, so serving
starts without rich and the owner's commands.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from importlib import import_module
from typing import TYPE_CHECKING

from proxy import PROGRAM
from proxy.command_line import commands
from proxy.logs.stdio import hold_standard_streams
from proxy.settings.settings import SPELLED, SettingsError, flag, load
from proxy.terminal.console import complain, console, print_findings, print_tables
from proxy.terminal.output import written

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from proxy.settings.settings import Loaded

_WELL, _FAILED, _WRONG, _MISSING = 0, 1, 2, 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` (default: the process's arguments); return the exit code."""
    hold_standard_streams()
    return written(lambda: _run(argv), lambda error, hint: complain([error], hint))


def _run(argv: Sequence[str] | None) -> int:
    settings = commands.options()
    found, rest = settings.parse_known_args(argv)
    flags = {option: _as_text(value) for option, value in vars(found).items() if value is not None}
    parser, known = commands.commands(settings)
    args = parser.parse_args(_without_unknown(rest, known, flags))
    try:
        if args.command == "explain":
            return _explain(load(flags, os.environ), args)
        if args.command == "demo":
            return _demo(flags, args)
        if args.command == "completion":
            return _completion(parser, flags, args)
        if args.command in {"install", "uninstall"}:
            return _install(flags, args)
        if args.command == "status":
            return _status(flags, args)
        if args.command in commands.VERBS:
            return _act(flags, args)
        if args.command in commands.OWNERS:
            return int(import_module(f"proxy.manage.{args.command}.command").main(flags, args))
        if args.json and not args.check:
            parser.error("--json goes with --check")
        return _check(flags, as_json=args.json) if args.check else _serve(flags)
    except SettingsError as error:
        complain(map(str, error.problems), f"{PROGRAM} --help")
        return _WRONG


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


def _serve(flags: Mapping[str, str]) -> int:
    loaded = load(flags, os.environ)
    from proxy.serving import listener  # noqa: PLC0415

    return listener.serve(loaded, lambda: load(flags, os.environ))


def _demo(flags: Mapping[str, str], args: argparse.Namespace) -> int:
    if flags:
        complain(
            [f"demo has settings of its own and takes no {', '.join(map(_spelled, flags))}"], f"{PROGRAM} demo --help"
        )
        return _WRONG
    from proxy.manage.demo import command as demo  # noqa: PLC0415

    return demo.main(args)


def _completion(parser: commands.Parser, flags: Mapping[str, str], args: argparse.Namespace) -> int:
    if flags:
        complain([f"completion takes no {', '.join(map(_spelled, flags))}"], f"{PROGRAM} completion --help")
        return _WRONG
    from proxy.command_line import completion  # noqa: PLC0415

    print(completion.script(parser, args.shell))
    return _WELL


def _status(flags: Mapping[str, str], args: argparse.Namespace) -> int:
    from proxy.manage.machine.machine import Machine  # noqa: PLC0415
    from proxy.manage.status import status  # noqa: PLC0415
    from proxy.manage.status_shown import print_status  # noqa: PLC0415

    found = status(Machine.here(), flags)
    if args.json:
        print(json.dumps(asdict(found), indent=2))
    else:
        print_status(found)
    return _WELL if found.well else _FAILED


def _act(flags: Mapping[str, str], args: argparse.Namespace) -> int:
    from proxy.manage.machine.launchd import Launchd, LaunchdError  # noqa: PLC0415
    from proxy.manage.machine.machine import Machine  # noqa: PLC0415
    from proxy.manage.machine.services import Services  # noqa: PLC0415

    if flags:
        complain([f"{args.command} takes no {', '.join(map(_spelled, flags))}"], f"{PROGRAM} {args.command} --help")
        return _WRONG
    machine = Machine.here()
    if machine.find("launchctl") is None:
        complain([f"{args.command} needs macOS and its launchctl; this is {machine.system}"], PROGRAM)
        return _MISSING
    services = Services(Launchd(machine.uid, machine.run), machine.home)
    try:
        findings = list(services.act(args.command, args.service, now=getattr(args, "now", False)))
    except LaunchdError as error:
        complain([str(error)], error.hint)
        return _FAILED
    print_findings(findings, args.command)
    return _FAILED if any(finding.outcome == "fail" for finding in findings) else _WELL


def _install(flags: Mapping[str, str], args: argparse.Namespace) -> int:
    if flags:
        words = ", ".join(map(_spelled, flags))
        complain(
            [f"{args.command} takes no {words}: settings are said in config.toml"], f"{PROGRAM} {args.command} --help"
        )
        return _WRONG
    from proxy.manage.facts.mac import Options  # noqa: PLC0415
    from proxy.manage.install import install, uninstall  # noqa: PLC0415
    from proxy.manage.machine.machine import Machine  # noqa: PLC0415

    machine = Machine.here()
    talk = install.Talk(console(), print_findings, lambda text, hint: complain([text], hint), _asker(args))
    if args.command == "uninstall":
        return uninstall.main(uninstall.Uninstaller(machine, purge=args.purge), talk)
    options = Options(proxy_only=args.proxy_only, keep_haproxy=args.keep_haproxy)
    return install.main(install.Installer(machine), options, talk, dry_run=args.dry_run)


def _asker(args: argparse.Namespace) -> Callable[[str], bool]:
    """Return a function that asks a y/n question; without a terminal to ask on, the owner must give --yes."""

    def agree(question: str) -> bool:
        if args.yes:
            return True
        if sys.stdin is None or not sys.stdin.isatty():  # None if it was closed
            complain(["there is no terminal to ask at"], f"{PROGRAM} {args.command} --yes")
            raise SystemExit(_WRONG)
        print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in {"y", "yes"}

    return agree


def _spelled(option: str) -> str:
    return flag(option) if option in SPELLED else option


def _check(flags: Mapping[str, str], *, as_json: bool) -> int:
    from proxy.manage.facts.facts import Facts  # noqa: PLC0415
    from proxy.manage.findings import settings as checks  # noqa: PLC0415
    from proxy.manage.findings.table import When, findings  # noqa: PLC0415
    from proxy.manage.machine.machine import Machine  # noqa: PLC0415
    from proxy.terminal.finding import Outcome  # noqa: PLC0415

    try:
        loaded = load(flags, os.environ)
    except SettingsError as error:
        if not as_json:
            raise
        found = checks.mistakes(error)
    else:
        found = tuple(findings(Facts(Machine.here(), loaded, python=sys.executable), When.CHECK))
        if not as_json:
            print_tables((("settings", checks.values(loaded)), ("allowlist", checks.rows(loaded))))
    if as_json:
        print(json.dumps([asdict(finding) for finding in found], indent=2))
    else:
        print_findings(found, above={"settings", "allowlist"})
    return _WRONG if any(finding.outcome is Outcome.FAIL for finding in found) else _WELL


def _explain(loaded: Loaded, args: argparse.Namespace) -> int:
    from proxy.manage.explain import explain, own_name  # noqa: PLC0415

    name = own_name(loaded.settings, args.host)
    found = explain(loaded, args.method, args.target, args.host, args.origin, args.header, name)
    if args.json:
        print(json.dumps(asdict(found), indent=2))
        return _WELL
    say = console()
    parts = {
        "request": found.request,
        f"{found.verdict} by this rule": found.rule,
        "reaches Ollama": found.forwarded or "nothing",
        "the client gets": found.answer,
    }
    for title, text in parts.items():
        say(title, "bold")
        for line in text.split("\n"):
            say(f"  {line}".rstrip())
        say("")
    return _WELL
