"""The command tree: what can be typed, and the help for it. What a command does is its own module's business."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, NoReturn

from proxy import PROGRAM, __version__
from proxy.settings.kinds import takes
from proxy.settings.settings import OPTIONS, SPELLED, Settings, flag, written
from proxy.terminal.console import complain
from proxy.terminal.result import Exit

if TYPE_CHECKING:
    from collections.abc import Mapping

_EXAMPLES = f"""examples:
  {PROGRAM} --listen 127.0.0.1 --port 21500
  {PROGRAM} --check
  {PROGRAM} explain POST /api/pull
"""
_SETTINGS_TOO = f"You can add settings: {PROGRAM} --help lists them.\n\n"


class Parser(argparse.ArgumentParser):
    """A parser that knows every flag, to suggest the nearest, and reports an error like the rest of the program."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **kwargs)

    @property
    def flags(self) -> set[str]:
        """Every flag, including those in groups, which only argparse's internals list together."""
        return {*self._option_string_actions}

    def action(self, name: str) -> argparse.Action:
        """Return the flag, positional argument or row of commands whose value is called `name`."""
        return next(each for each in self._actions if each.dest == name)

    def error(self, message: str) -> NoReturn:
        """Print what is wrong with the usage, and exit with 2."""
        complain([message], f"{self.prog} --help")
        raise SystemExit(int(Exit.WRONG))


def options() -> Parser:
    """Return the parser of the options, which may come before or after a command."""
    parser = Parser(prog=PROGRAM, add_help=False)
    elsewhere = "also PROXY_NAME in the environment, and name = value in a TOML file; in the file only: "
    group = parser.add_argument_group("settings", elsewhere + "[[access]] rules and [ollama_env], see docs/settings.md")
    defaults = Settings()
    shown = written(defaults)
    for option in SPELLED:
        value = getattr(defaults, option)
        text = (
            f"{OPTIONS[option]}; {takes(Settings.model_fields[option])} (default: {shown[option] or 'none'})".replace(
                "%", "%%"
            )
        )
        if isinstance(value, bool):
            group.add_argument(flag(option), action=argparse.BooleanOptionalAction, help=text)
        elif isinstance(value, tuple):
            group.add_argument(flag(option), action="append", metavar="LIST", help=text)
        else:
            group.add_argument(flag(option), metavar="VALUE", help=text)
    return parser


def commands(settings: Parser) -> tuple[Parser, set[str]]:
    """Return the parser of everything else, and the flags and commands that it knows."""
    parser = Parser(
        prog=PROGRAM,
        parents=[settings],
        usage=f"{PROGRAM} [settings] [--check [--json] | COMMAND ...]",
        description="Serve: forward listed requests, and no others, to the Ollama on this machine.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"remote-ollama-proxy {__version__}")
    check = "don't serve; show the settings, the allowlist, the access rules and the findings"
    parser.add_argument("--check", dest="run", action="store_const", const="proxy.manage.check", help=check)
    parser.set_defaults(run=None, without_settings="")  # serve
    parser.add_argument("--json", action="store_true", help="with --check: print one array of findings")
    tree = parser.add_subparsers(prog=PROGRAM, dest="command", metavar="COMMAND", title="commands", parser_class=Parser)
    _add_shows(tree)
    _add_services(tree)
    _add_installing(tree)
    _add_warm(tree)
    _add_owners(tree)
    return parser, {*tree.choices}.union(parser.flags, *(each.flags for each in tree.choices.values()))


_FINDINGS = "print one array of findings"


def _add(
    tree: argparse._SubParsersAction[Parser],
    name: str,
    module: str,
    purpose: str,
    description: str,
    *examples: str,
    json: str = "print one object",
    without_settings: str = "",
    remark: str = _SETTINGS_TOO,
) -> Parser:
    """Add a command. `module` has its `run`, `json` is the help of its `--json`, and `remark` stands above `examples`.

    `without_settings` is the error for a command that takes no settings but got some.
    """
    above = "" if without_settings else remark
    title = "examples" if len(examples) > 1 else "example"
    epilog = f"{above}{title}:\n" + "\n".join(f"  {PROGRAM} {each}" for each in examples)
    parser = tree.add_parser(name, help=purpose, description=description, epilog=epilog)
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=json)
    parser.set_defaults(run=module, without_settings=without_settings)
    return parser


def _switches(parser: argparse._ActionsContainer, **purposes: str) -> None:
    """Add flags without a value, each with what it is for."""
    for name, purpose in purposes.items():
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=purpose)


def _add_shows(tree: argparse._SubParsersAction[Parser]) -> None:
    """Add the commands that show something on any machine: explain, demo, completion."""
    explain = _add(
        *(tree, "explain", "proxy.manage.explain", "explain what happens to a request"),
        "Show which rule decides a request, what reaches Ollama, and what the client gets.",
        "explain GET /v1/models --host mac.example.org --origin https://example.org",
        "explain POST /v1/chat/completions --from kids-ipad --model qwen3:8b",
    )
    explain.add_argument("method", metavar="METHOD", help="as sent: GET, POST, OPTIONS for a preflight, ...")
    explain.add_argument("target", metavar="TARGET", help="path and query as sent; nothing is decoded")
    explain.add_argument("--host", help="value of the Host field (default: localhost and the port)")
    explain.add_argument("--origin", help="value of a browser's Origin field (default: no such field)")
    explain.add_argument(
        "--header", action="append", default=[], metavar="'NAME: VALUE'", help="another field; may be repeated"
    )
    explain.add_argument(
        "--from", dest="device", metavar="DEVICE", help="who asks: a login, tag:NAME, device, node:ID, address, or self"
    )
    explain.add_argument("--model", help="the model that it asks for")
    demo = _add(
        *(tree, "demo", "proxy.manage.demo.command", "take a tour on loopback with a simulated Ollama"),
        "Start the proxy in front of a simulated Ollama, both on loopback, and show what passes.",
        "demo --keep",
        json=_FINDINGS,
        without_settings="demo has settings of its own and takes no {}",
    )
    _switches(demo, keep="keep serving after the tour")
    completion = _add(
        *(tree, "completion", "proxy.command_line.completion"),
        "print a script that completes commands and flags in a shell",
        "Print a script that lets a shell complete this program's commands and flags.",
        "completion fish > ~/.config/fish/completions/remote-ollama-proxy.fish",
        json="print one object with the script",
        without_settings="completion takes no {}",
    )
    completion.add_argument("shell", choices=SHELLS, help="which shell it is for")


def _add_services(tree: argparse._SubParsersAction[Parser]) -> None:
    """Add the commands for the two services under launchd."""
    _add(
        *(tree, "status", "proxy.manage.status", "show whether the proxy and Ollama are running"),
        "Show for both services whether they run and since when, where they listen, and what is wrong.",
        "status --json",
        remark="Exit code 0: all is well; 1: something is wrong.\n\n",
    )
    for verb, purpose in VERBS.items():
        each = _add(
            *(tree, verb, "proxy.manage.machine.services", purpose),
            f"{purpose.capitalize()}. It returns when that is done. Needs macOS.",
            f"{verb} proxy",
            json=_FINDINGS,
            without_settings=f"{verb} takes no {{}}",
        )
        which = ("proxy", "ollama", "both")
        each.add_argument("service", nargs="?", choices=which, default="both", help="which (default: both)")
        if verb == "restart":
            _switches(each, now="restart at once: cuts streams, and doesn't read the plist again")
        if verb in {"stop", "restart", "disable"}:
            _switches(each, yes="don't ask, even if requests are lost; for scripts")


def _add_installing(tree: argparse._SubParsersAction[Parser]) -> None:
    """Add the commands that install and uninstall."""
    install = _add(
        *(tree, "install", "proxy.manage.install.install", "install on this Mac, or upgrade an install"),
        "Install the proxy and Ollama as agents of launchd. Settings come from config.toml.",
        "install --dry-run",
        without_settings="install takes no {}: settings belong in config.toml",
    )
    _switches(
        install,
        dry_run="change nothing; show every file and command",
        proxy_only="leave Ollama alone; you manage it yourself",
        keep_haproxy="leave an existing com.haproxy agent alone",
        yes="don't ask; for scripts",
    )
    uninstall = _add(
        *(tree, "uninstall", "proxy.manage.install.uninstall", "remove what the installer made"),
        "Remove what the installer made, and restore what it replaced. Models, settings and logs stay.",
        "uninstall --purge",
        without_settings="uninstall takes no {}: settings belong in config.toml",
    )
    _switches(
        uninstall,
        dry_run="change nothing; show what would be removed",
        purge="remove settings and logs too",
        yes="don't ask; for scripts",
    )


def _add_warm(tree: argparse._SubParsersAction[Parser]) -> None:
    """Add the command that loads models."""
    warm = _add(
        *(tree, "warm", "proxy.manage.warm.command", "load models before someone needs them"),
        "Pull missing models, load them, and keep them loaded. Talks to Ollama itself, not to the proxy.",
        *("warm qwen3:8b gpt-oss:120b --keep-alive 12h", "warm qwen3:8b --at-login", "warm --no-at-login"),
    )
    warm.add_argument("models", nargs="*", metavar="MODEL", help="a name that `ollama list` prints")
    warm.add_argument(
        "--keep-alive", default="-1", metavar="TIME", help="how long they stay after their last use (default: forever)"
    )
    warm.add_argument(
        "--wait", metavar="TIME", help="how long to wait for an Ollama that doesn't answer yet (default: 0)"
    )
    warm.add_argument(
        "--at-login", action=argparse.BooleanOptionalAction, help="also do this at each login; --no-at-login stops that"
    )


def _add_watching(tree: argparse._SubParsersAction[Parser]) -> None:
    """Add the commands that show running requests and end them."""
    dashboard = _add(
        *(tree, "dashboard", "proxy.dashboard.command", "see requests and history on a page"),
        "Serve a page on this machine only, with requests as they run and what the access log holds. Ctrl-C ends it.",
        *("dashboard", "dashboard --export week.html"),
        json="print the link as one object",
        remark=f"{_SETTINGS_TOO}All of them except --port, which is the page's here.\n\n",
    )
    dashboard.add_argument("--port", metavar="PORT", help="the page's port (default: a free one)")
    _switches(dashboard, no_open="don't open a browser; print the link")
    dashboard.add_argument("--export", metavar="FILE", help="write what the log holds as one file, and stop")
    top = _add(
        *(tree, "top", "proxy.manage.top.command", "watch requests as they run and wait"),
        "Show each second which requests run or wait and why, and which models are in memory.",
        *("top", "top --once"),
        remark=f"{_SETTINGS_TOO}On a terminal the arrows choose a request, k ends it, and q quits.\n\n",
    )
    _switches(top, once="print it once and stop")
    cancel = _add(
        *(tree, "cancel", "proxy.manage.top.cancel", "end a request that runs or waits"),
        "End a request. Ollama stops working on it, and its client gets an error.",
        "cancel 7d1f0c93ab00002a",
    )
    cancel.add_argument("id", metavar="ID", help="its id, as `top` shows it")


def _add_owners(tree: argparse._SubParsersAction[Parser]) -> None:
    """Add the commands for a running proxy: verify, logs, connect."""
    verify = _add(
        *(tree, "verify", "proxy.manage.verify.command", "test that a running proxy does what it promises"),
        "Test the running proxy and Ollama with about 130 requests, and check the machine around them.",
        "verify --skip-model-tests",
        *("verify --from-client http://mac:11434", "verify --client-script > check.py"),
        json=_FINDINGS,
    )
    where = verify.add_mutually_exclusive_group()
    where.add_argument("--from-client", metavar="URL", help="test the proxy at URL from this machine, as a client")
    _switches(where, client_script="print the same tests as one file that needs only Python")
    verify.add_argument("--model", metavar="NAME", help="the model to use (default: the smallest)")
    _switches(
        verify,
        skip_anthropic_tests="leave out /v1/messages",
        skip_model_tests="leave out tests that a model must answer",
        verbose="show each request and its response",
    )
    logs = _add(
        *(tree, "logs", "proxy.manage.logs.command", "read or follow the access log"),
        "Show who asked for what. On a terminal: the last lines, then new ones; otherwise all lines.",
        *("logs --refused --since 2h", "logs --summary --since 7d", "logs --verify"),
        json="print unchanged lines, or totals or findings as one object",
    )
    _switches(
        logs,
        summary="totals: requests, tokens, speed, refusals and devices",
        no_follow="print the log and stop",
    )
    logs.add_argument("--since", metavar="TIME", help="how far back: 90s, 30m, 2h, 7d, or a date")
    logs.add_argument("--device", metavar="NAME", help="only one device, by its name, user or address")
    logs.add_argument("--model", metavar="NAME", help="only one model, with or without its tag")
    _switches(logs, refused="only refused requests")
    which = logs.add_mutually_exclusive_group()
    _switches(
        which,
        verify="check that no line is missing",
        diagnostics="show the diagnostics log instead",
        ollama="show Ollama's output instead",
    )
    _add_watching(tree)
    connect = _add(
        *(tree, "connect", "proxy.manage.connect.command", "print the settings for a client"),
        "Print what to paste into a tool, so that it uses this machine's models.",
        "connect claude-code --model qwen3:8b",
    )
    connect.add_argument("tool", nargs="?", metavar="TOOL", help="the tool (default: list all tools)")
    connect.add_argument("--model", metavar="NAME", help="the model to use (default: one that Ollama has)")


SHELLS = ("bash", "fish", "zsh")

VERBS: Mapping[str, str] = {
    "start": "start services that are down",
    "stop": "stop services until the next login, or `start`",
    "restart": "restart services; `restart proxy` lets streams finish first",
    "disable": "stop services and keep them from starting at login",
    "enable": "start services, now and at each login",
}
