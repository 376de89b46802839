"""The command tree and exit codes; how results look is `console`'s.

Exit codes: 0 well, 1 a check or step failed, 2 wrong usage or settings, 3 macOS or another thing is missing.
Data goes to standard output, talk to standard error. What a command needs is imported when it runs: serving starts
without rich and ops.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NoReturn

from proxy import PROGRAM, __version__
from proxy.console import complain, console, print_findings, print_status, print_tables
from proxy.settings import OPTIONS, SPELLED, Settings, SettingsError, flag, kind, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from proxy.settings import Loaded

_WELL, _FAILED, _WRONG, _MISSING = 0, 1, 2, 3

_EXAMPLES = f"""examples:
  {PROGRAM} --listen 127.0.0.1 --port 21500
  {PROGRAM} --check
  {PROGRAM} explain POST /api/pull
"""


_SETTINGS_TOO = f"Settings may be given too: {PROGRAM} --help lists them.\n\n"


class _Parser(argparse.ArgumentParser):
    """Notes every flag, to suggest the nearest; ends an error as all our errors end."""

    def __init__(self, **kwargs: Any) -> None:
        self.flags: set[str] = set()
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **kwargs)

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
        """Add an argument as argparse does."""
        self.flags.update(args)
        return super().add_argument(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Print what is wrong with the usage, and exit 2."""
        complain([message], f"{self.prog} --help")
        raise SystemExit(_WRONG)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` (default: the process's) asks for; return the exit code."""
    options = _options()
    found, rest = options.parse_known_args(argv)
    flags = {option: _as_text(value) for option, value in vars(found).items() if value is not None}
    commands, known = _commands(options)
    args = commands.parse_args(_without_unknown(rest, known, flags))
    try:
        if args.command == "explain":
            return _explain(load(flags, os.environ), args)
        if args.command == "demo":
            return _demo(flags, args)
        if args.command in {"install", "uninstall"}:
            return _install(flags, args)
        if args.command == "status":
            return _status(flags, args)
        if args.command in _VERBS:
            return _act(flags, args)
        if args.json and not args.check:
            commands.error("--json goes with --check")
        return _check(flags, as_json=args.json) if args.check else _serve(flags)
    except SettingsError as error:
        complain(map(str, error.problems), f"{PROGRAM} --help")
        return _WRONG


def _options() -> _Parser:
    """Return the parser of the options, which may stand before or after a command."""
    parser = _Parser(prog=PROGRAM, add_help=False)
    group = parser.add_argument_group("settings", "also PROXY_NAME in the environment, and name = value in a TOML file")
    defaults = Settings()
    for option in SPELLED:
        rule, value = kind(option), getattr(defaults, option)
        text = f"{OPTIONS[option]}; {rule.takes} (default: {rule.show(value) or 'none'})".replace("%", "%%")
        if isinstance(value, bool):
            group.add_argument(flag(option), action=argparse.BooleanOptionalAction, help=text)
        elif isinstance(value, tuple):
            group.add_argument(flag(option), action="append", metavar="LIST", help=text)
        else:
            group.add_argument(flag(option), metavar="VALUE", help=text)
    return parser


def _as_text(value: object) -> str:
    """Return what argparse made of a flag as the text of an option; a list's flag may be given more than once."""
    return ",".join(value) if isinstance(value, list) else str(value)


def _commands(options: _Parser) -> tuple[_Parser, set[str]]:
    """Return the parser of all that isn't an option, and the flags and commands it knows."""
    parser = _Parser(
        prog=PROGRAM,
        parents=[options],
        usage=f"{PROGRAM} [settings] [--check [--json] | COMMAND ...]",
        description="Serve: let chosen requests, and no others, through to the Ollama on this machine.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"remote-ollama-proxy {__version__}")
    parser.add_argument("--check", action="store_true", help="don't serve: show settings, allowlist and findings")
    parser.add_argument("--json", action="store_true", help="with --check: one array of findings")
    tree = parser.add_subparsers(
        prog=PROGRAM, dest="command", metavar="COMMAND", title="commands", parser_class=_Parser
    )
    explain = tree.add_parser(
        "explain",
        help="say what would become of a request",
        description="Say which rule decides over a request, what of it reaches Ollama, and what the client gets.",
        epilog=f"{_SETTINGS_TOO}example:\n  {PROGRAM} explain GET /v1/models --host mac.example.org --origin https://example.org",
    )
    explain.add_argument("method", metavar="METHOD", help="as sent: GET, POST, OPTIONS for a preflight, ...")
    explain.add_argument("target", metavar="TARGET", help="path and query, as sent: nothing is decoded")
    explain.add_argument("--host", help="what the Host field says (default: localhost and the port)")
    explain.add_argument("--origin", help="what the Origin field of a browser says (default: no such field)")
    explain.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="one object")
    demo = tree.add_parser(
        "demo",
        help="a tour on loopback with a simulated Ollama",
        description="Start the proxy before a simulated Ollama, both on loopback, and show what is let through.",
        epilog=f"example:\n  {PROGRAM} demo --keep",
    )
    demo.add_argument("--keep", action="store_true", help="go on serving after the tour")
    _add_services(tree)
    _add_installing(tree)
    return parser, {*tree.choices}.union(parser.flags, *(each.flags for each in tree.choices.values()))


def _add_services(tree: argparse._SubParsersAction[_Parser]) -> None:
    """Add the commands for the two services under launchd."""
    status = tree.add_parser(
        "status",
        help="how the proxy and Ollama are",
        description="Say of both services whether they run and since when, where they listen, and what is wrong.",
        epilog=f"Exit code 0: all is well; 1: something isn't.\n\nexample:\n  {PROGRAM} status --json",
    )
    status.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="one object")
    for verb, purpose in _VERBS.items():
        each = tree.add_parser(
            verb,
            help=purpose,
            description=f"{purpose.capitalize()}. It ends when that is so; needs macOS.",
            epilog=f"example:\n  {PROGRAM} {verb} proxy",
        )
        which = ("proxy", "ollama", "both")
        each.add_argument("service", nargs="?", choices=which, default="both", help="which (default: both)")
        if verb == "restart":
            each.add_argument("--now", action="store_true", help="kill it: streams are cut, the plist isn't read again")


def _add_installing(tree: argparse._SubParsersAction[_Parser]) -> None:
    """Add the commands that install and uninstall."""
    install = tree.add_parser(
        "install",
        help="install it on this Mac, or bring an install up to date",
        description="Install the proxy and Ollama as agents of launchd. Its settings are those of config.toml.",
        epilog=f"example:\n  {PROGRAM} install --dry-run",
    )
    install.add_argument("--dry-run", action="store_true", help="change nothing: show every file and command")
    install.add_argument("--proxy-only", action="store_true", help="leave Ollama alone: someone else manages it")
    install.add_argument("--keep-haproxy", action="store_true", help="leave an agent com.haproxy as it is")
    uninstall = tree.add_parser(
        "uninstall",
        help="remove what install made",
        description="Remove what install made, and put back what it replaced. Models, Ollama, settings and logs stay.",
        epilog=f"example:\n  {PROGRAM} uninstall --purge",
    )
    uninstall.add_argument("--purge", action="store_true", help="remove settings and logs too")
    for each in (install, uninstall):
        each.add_argument("--yes", action="store_true", help="don't ask, as a script wants it")


_VERBS = {
    "start": "start services that are down",
    "stop": "stop services until the next login, or `start`",
    "restart": "restart services, after streams have finished",
    "disable": "stop services, and keep them from starting at login",
    "enable": "start services, now and at each login",
}


def _without_unknown(words: Iterable[str], known: set[str], flags: dict[str, str]) -> list[str]:
    """Return `words` without flags that nobody knows, which join `flags`, to be told with all other mistakes."""
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
    from proxy import listener  # noqa: PLC0415

    return listener.serve(loaded, lambda: load(flags, os.environ))


def _demo(flags: Mapping[str, str], args: argparse.Namespace) -> int:
    if flags:
        complain(
            [f"demo has settings of its own and takes no {', '.join(map(_spelled, flags))}"], f"{PROGRAM} demo --help"
        )
        return _WRONG
    from proxy.ops import demo  # noqa: PLC0415

    return demo.main(args)


def _status(flags: Mapping[str, str], args: argparse.Namespace) -> int:
    from proxy.ops.machine import Machine  # noqa: PLC0415
    from proxy.ops.status import status  # noqa: PLC0415

    found = status(Machine.here(), flags)
    if args.json:
        print(json.dumps(asdict(found), indent=2))
    else:
        print_status(found)
    return _WELL if found.well else _FAILED


def _act(flags: Mapping[str, str], args: argparse.Namespace) -> int:
    from proxy.ops.launchd import Launchd, LaunchdError  # noqa: PLC0415
    from proxy.ops.machine import Machine  # noqa: PLC0415
    from proxy.ops.services import Services  # noqa: PLC0415

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
    from proxy.ops import install, uninstall  # noqa: PLC0415
    from proxy.ops.machine import Machine  # noqa: PLC0415
    from proxy.ops.survey import Options  # noqa: PLC0415

    machine = Machine.here()
    talk = install.Talk(console(), print_findings, lambda text, hint: complain([text], hint), _asker(args))
    if args.command == "uninstall":
        return uninstall.main(uninstall.Uninstaller(machine, purge=args.purge), talk)
    options = Options(proxy_only=args.proxy_only, keep_haproxy=args.keep_haproxy)
    return install.main(install.Installer(machine), options, talk, dry_run=args.dry_run)


def _asker(args: argparse.Namespace) -> Callable[[str], bool]:
    """Return what asks a question that is answered with y or n; without a terminal to ask at, --yes is needed."""

    def agree(question: str) -> bool:
        if args.yes:
            return True
        if not sys.stdin.isatty():
            complain(["there is no terminal to ask at"], f"{PROGRAM} {args.command} --yes")
            raise SystemExit(_WRONG)
        print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in {"y", "yes"}

    return agree


def _spelled(option: str) -> str:
    return flag(option) if option in SPELLED else option


def _check(flags: Mapping[str, str], *, as_json: bool) -> int:
    from proxy.ops import checks  # noqa: PLC0415

    try:
        loaded = load(flags, os.environ)
    except SettingsError as error:
        if not as_json:
            raise
        findings = checks.mistakes(error)
    else:
        findings = checks.check(loaded)
        if not as_json:
            print_tables((("settings", checks.effective(loaded)), ("allowlist", checks.rows(loaded))))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        print_findings(findings, above={"settings", "allowlist"})
    return _WRONG if any(finding.outcome is checks.Outcome.FAIL for finding in findings) else _WELL


def _explain(loaded: Loaded, args: argparse.Namespace) -> int:
    from proxy.ops.explain import explain  # noqa: PLC0415

    found = explain(loaded, args.method, args.target, args.host, args.origin)
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
