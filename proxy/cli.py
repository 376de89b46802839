"""The command tree, exit codes, and all printing of results.

Exit codes: 0 well, 1 a check or step failed, 2 wrong usage or settings, 3 macOS or another thing is missing.
Data goes to standard output, talk to standard error. What a command needs is imported when it runs: serving starts
without rich and ops.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NoReturn

from proxy import __version__
from proxy.kinds import printable
from proxy.settings import OPTIONS, Settings, SettingsError, flag, kind, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from proxy.ops.checks import Finding
    from proxy.settings import Loaded

_PROG = "python -m proxy"
_WELL, _WRONG = 0, 2

_EXAMPLES = """examples:
  python -m proxy --listen 127.0.0.1 --port 21500
  python -m proxy --check
  python -m proxy explain POST /api/pull
"""


_SETTINGS_TOO = f"Settings may be given too: {_PROG} --help lists them.\n\n"


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
        _complain([message], f"{self.prog} --help")
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
            return _explain(load(flags, os.environ, to_serve=False), args)
        if args.command == "demo":
            return _demo(flags, args)
        if args.json and not args.check:
            commands.error("--json goes with --check")
        return _check(flags, as_json=args.json) if args.check else _serve(flags)
    except SettingsError as error:
        _complain(map(str, error.problems), f"{_PROG} --help")
        return _WRONG


def _options() -> _Parser:
    """Return the parser of the options, which may stand before or after a command."""
    parser = _Parser(prog=_PROG, add_help=False)
    group = parser.add_argument_group("settings", "also PROXY_NAME in the environment, and name = value in a TOML file")
    defaults = Settings()
    for option, purpose in OPTIONS.items():
        rule, value = kind(option), getattr(defaults, option)
        text = f"{purpose}; {rule.takes} (default: {rule.show(value) or 'none'})".replace("%", "%%")
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
        prog=_PROG,
        parents=[options],
        usage=f"{_PROG} [settings] [--check [--json] | explain METHOD TARGET | demo]",
        description="Serve: let chosen requests, and no others, through to the Ollama on this machine.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"remote-ollama-proxy {__version__}")
    parser.add_argument("--check", action="store_true", help="don't serve: show settings, allowlist and findings")
    parser.add_argument("--json", action="store_true", help="with --check: one array of findings")
    tree = parser.add_subparsers(prog=_PROG, dest="command", metavar="COMMAND", title="commands", parser_class=_Parser)
    explain = tree.add_parser(
        "explain",
        help="say what would become of a request",
        description="Say which rule decides over a request, what of it reaches Ollama, and what the client gets.",
        epilog=f"{_SETTINGS_TOO}example:\n  {_PROG} explain GET /v1/models --host mac.example.org --origin https://example.org",
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
        epilog=f"example:\n  {_PROG} demo --keep",
    )
    demo.add_argument("--keep", action="store_true", help="go on serving after the tour")
    return parser, {"explain", "demo"} | parser.flags | explain.flags | demo.flags


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
        _complain(
            [f"demo has settings of its own and takes no {', '.join(map(_spelled, flags))}"], f"{_PROG} demo --help"
        )
        return _WRONG
    from proxy.ops import demo  # noqa: PLC0415

    return demo.main(args)


def _spelled(option: str) -> str:
    return flag(option) if option in OPTIONS else option


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
            _print_tables(checks.effective(loaded), checks.rows(loaded))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _print_findings(findings)
    return _WRONG if any(finding.outcome is checks.Outcome.FAIL for finding in findings) else _WELL


def _print_tables(*tables: Sequence[Sequence[str]]) -> None:
    say = _console()
    for title, table in zip(("settings", "allowlist"), tables, strict=True):
        say(title, "bold")
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for row in table:
            say("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        say("")


def _print_findings(findings: Iterable[Finding]) -> None:
    say = _console()
    say("findings", "bold")
    for finding in findings:
        detail = "as above" if finding.name in {"settings", "allowlist"} else finding.detail
        say(f"  {finding.outcome}  {finding.name}: {detail}", _STYLES[finding.outcome])
        if finding.hint:
            say(f"        hint: {finding.hint}")


_STYLES = {"pass": "green", "warn": "yellow", "fail": "red", "skip": "dim"}


def _explain(loaded: Loaded, args: argparse.Namespace) -> int:
    from proxy.ops.explain import explain  # noqa: PLC0415

    found = explain(loaded, args.method, args.target, args.host, args.origin)
    if args.json:
        print(json.dumps(asdict(found), indent=2))
        return _WELL
    say = _console()
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


def _console(*, stderr: bool = False) -> Callable[..., None]:
    """Return what prints a line in a style: colours on a terminal only, and none if NO_COLOR is set; never wrapped."""
    from rich.console import Console  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console(stderr=stderr)

    def say(line: str, style: str = "") -> None:
        console.print(Text(printable(line), style), soft_wrap=True)

    return say


def _complain(errors: Iterable[str], hint: str) -> None:
    say = _console(stderr=True)
    for error in errors:
        say(f"error: {error}", "red")
    say(f"hint: {hint}")
