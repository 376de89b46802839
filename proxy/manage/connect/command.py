"""`connect`: print what to paste into a tool, so that it uses this machine's proxy.

The text to paste goes to standard output, for a file or a pipe. Notes about it go to standard error.
"""

from __future__ import annotations

import difflib
import json
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxy import PROGRAM
from proxy.manage.connect.place import Note, is_name, place
from proxy.manage.connect.tools import TOOLS
from proxy.manage.machine.services import settings_environ
from proxy.policy.gate import open_rows
from proxy.policy.routes import OPT_IN
from proxy.settings.kinds import quoted
from proxy.settings.settings import load
from proxy.tailnet.tailscale import Tailscale
from proxy.terminal.output import unwritable
from proxy.terminal.result import CommandError, Exit, Result

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from proxy.manage.connect.place import Place
    from proxy.manage.connect.tools import Tool
    from proxy.manage.machine.machine import Machine
    from proxy.settings.settings import Loaded
    from proxy.terminal.printer import Printer


@dataclass(frozen=True, slots=True)
class Need:
    """A closed route that a tool uses."""

    route: str
    purpose: str  # nothing: the tool can't do without
    allow: tuple[str, ...]  # the value of `allow` that opens it, in addition to what is open now

    @property
    def toml(self) -> str:
        """The line for config.toml."""
        return f"allow = [{', '.join(map(json.dumps, self.allow))}]"

    @property
    def environment(self) -> str:
        """The variable, as a shell sets it."""
        return f"PROXY_ALLOW={shlex.quote(','.join(self.allow))}"


def run(
    flags: Mapping[str, str],
    args: argparse.Namespace,
    machine: Machine,
    out: Printer,
    tailscale: Tailscale | None = None,
) -> Result:
    """Print a tool's settings, or the list of tools."""
    if args.tool is None:
        return _list(out)
    tool = find(args.tool)
    if tool is None:
        text = f"{quoted(args.tool)}: there are no settings for that"
        raise CommandError(text, f"{PROGRAM} connect{_nearest(args.tool)}", Exit.WRONG)
    if args.model is not None and not is_name(args.model):
        raise CommandError(f"--model {quoted(args.model)}: that can't be a model's name", "ollama list", Exit.WRONG)
    loaded = load(flags, settings_environ(machine))
    here = place(tool, machine, loaded.settings, tailscale or Tailscale(), args.model)
    needs = closed(tool, loaded)
    if not out.as_json:
        _print(tool, here, needs, loaded, out)
    return Result(data=_data(tool, here, needs, loaded))


def find(name: str) -> Tool | None:
    """Return the tool with that name, or with a name that people use for it."""
    written = "-".join(name.lower().split())
    return next((tool for tool in TOOLS if written in (tool.name, *tool.aliases)), None)


def _nearest(name: str) -> str:
    """Return the nearest existing name, after a space; nothing if none is near."""
    known = {each: tool.name for tool in TOOLS for each in (tool.name, *tool.aliases)}
    near = difflib.get_close_matches(name.lower(), known, n=1)
    return f" {known[near[0]]}" if near else ""


def closed(tool: Tool, loaded: Loaded) -> tuple[Need, ...]:
    """Return the closed routes that a tool needs, then those that it could use."""
    allow = loaded.settings.allow
    opened = {row.name for row in open_rows(allow)}
    must = [row for row in tool.asks if row not in opened]
    needs = [Need(row, "", (*allow, *must)) for row in must]
    needs += [Need(extra.row, extra.purpose, (*allow, extra.row)) for extra in tool.extras if extra.row not in opened]
    return tuple(needs)


# --- printing ---------------------------------------------------------------------------------------------------------


def _list(out: Printer) -> Result:
    """Print the list of tools."""
    out.tables([("tools", [(tool.name, tool.title, _needed(tool)) for tool in TOOLS])])
    out.say("example", "bold")
    out.say(f"  {PROGRAM} connect codex > ~/.codex/home.config.toml")
    keys = ("name", "title", "aliases", "path", "asks")
    return Result(data={"tools": [{key: getattr(tool, key) for key in keys} for tool in TOOLS]})


def _needed(tool: Tool) -> str:
    """Return the routes that the owner must open for a tool."""
    rows = [f"`{row}`" for row in tool.asks if row in OPT_IN]
    return f"needs {', '.join(rows)} opened" if rows else ""


def _print(tool: Tool, here: Place, needs: tuple[Need, ...], loaded: Loaded, out: Printer) -> None:
    """Print a tool's settings, and the notes about them."""
    out.note(f"{tool.title}: {tool.path}", "bold")
    out.text(_filled(tool, tool.text, here))
    if unwritable():
        return
    out.note(f"then: {_filled(tool, tool.then, here)}")
    for note in notes(tool, here, needs, loaded):
        out.note(f"{'warning' if note.warns else 'note'}: {note.text}", "yellow" if note.warns else "")
        if note.hint:
            out.note(f"  hint: {note.hint}")


def notes(tool: Tool, here: Place, needs: tuple[Need, ...], loaded: Loaded) -> list[Note]:
    """Return what the owner should know about the place, the tool, and the closed routes."""
    found = [*here.notes, *(Note(_filled(tool, note, here)) for note in tool.notes)]
    if must := [need for need in needs if not need.purpose]:
        rows = ", ".join(f"`{need.route}`" for need in must)
        how, hint = _opening(must[0], loaded)
        found.append(Note(f"{tool.title} needs {rows}, which the proxy refuses: {how}", hint, warns=True))
        if tool.instead:
            found.append(Note("another tool needs no route opened", f"{PROGRAM} connect {tool.instead}"))
    if may := [f"`{need.route}` for {need.purpose}" for need in needs if need.purpose]:
        found.append(Note(f"it could also use these closed routes, if `allow` opened them: {', '.join(may)}"))
    return found


def _opening(need: Need, loaded: Loaded) -> tuple[str, str]:
    """Return how to open a route in this proxy's source of settings, and the command that applies it."""
    source = loaded.sources["allow"]
    if source.startswith("flag"):
        allow = shlex.quote(",".join(need.allow))
        return f"start it with --allow {allow}", f"{PROGRAM} --allow {allow}"
    if source.startswith("environment"):
        return f"start it with {need.environment}", f"{need.environment} {PROGRAM}"
    return f"write {need.toml} in {loaded.settings.config}", f"{PROGRAM} restart proxy"


def _filled(tool: Tool, text: str, here: Place) -> str:
    return tool.filled(text, here.origin, here.model, here.context)


def _data(tool: Tool, here: Place, needs: tuple[Need, ...], loaded: Loaded) -> dict[str, object]:
    """Return all of it as one object."""
    return {
        "tool": tool.name,
        "base_url": tool.base_url(here.origin),
        "model": here.model,
        "files": [{"path": tool.path, "text": _filled(tool, tool.text, here)}],
        "then": _filled(tool, tool.then, here),
        "notes": [note.line for note in notes(tool, here, needs, loaded)],
        "needs": [
            {
                "route": need.route,
                "required": not need.purpose,
                "purpose": need.purpose,
                "toml": need.toml,
                "environment": need.environment,
            }
            for need in needs
        ],
    }
