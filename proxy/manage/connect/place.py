"""Where a client would reach this machine's proxy, and for which model: found out, or a placeholder and a note.

Tailscale supplies the name, the settings of the installed proxy the port, Ollama itself the models. Nothing is sent to
the proxy, so looking leaves no line in its access log, and nothing has to be running.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from proxy import PROGRAM
from proxy.manage.connect.tools import CONTEXT, FOR_EVER, MODEL
from proxy.manage.facts.answers import ask
from proxy.manage.machine.launchd import OLLAMA, PROXY, plist_path
from proxy.manage.machine.services import read_plist
from proxy.manage.ollama.model_names import is_cloud
from proxy.serving.serve_port import why_closed
from proxy.settings.addresses import TAILSCALE, in_tailnet, split
from proxy.tailnet.serve_rules import Ports

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from proxy.manage.connect.tools import Tool
    from proxy.manage.machine.machine import Machine
    from proxy.settings.settings import Settings
    from proxy.tailnet.tailscale import Tailnet, Tailscale

ANSWER_TIME = 2.0
"""Seconds that Ollama may take to list its models, which are in memory or on disk."""

ENOUGH = 32768
"""The least context in tokens that a coding tool's settings get.

With less than its own instructions take (about 12,000, and room for the answer), Claude Code refuses to start, and
OpenCode and Continue shorten and retry forever.
"""

TOLD = 5
"""How many other models are named."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*").fullmatch  # no other can be a model's; nothing to quote in it


@dataclass(frozen=True, slots=True)
class Model:
    """A model as Ollama lists it."""

    name: str
    abilities: tuple[str, ...] | None  # None: this Ollama doesn't tell
    elsewhere: bool  # it runs off this machine
    loaded: bool = False
    context: int | None = None  # tokens, of a loaded one

    @property
    def chats(self) -> bool:
        """Whether it answers in words; if Ollama doesn't say, it may."""
        return self.abilities is None or "completion" in self.abilities

    @property
    def calls_tools(self) -> bool:
        """Whether it can call tools; if Ollama doesn't say, it may."""
        return self.abilities is None or "tools" in self.abilities


@dataclass(frozen=True, slots=True)
class Note:
    """What the owner should know, and a command that helps if there is one; a warning is about what won't work."""

    text: str
    hint: str = ""
    warns: bool = False

    @property
    def line(self) -> str:
        """All of it."""
        return f"{self.text} ({self.hint})" if self.hint else self.text


@dataclass(frozen=True, slots=True)
class Place:
    """Where to ask, and for what."""

    origin: str
    model: str
    context: int
    notes: tuple[Note, ...]  # on these


def place(tool: Tool, machine: Machine, settings: Settings, tailscale: Tailscale, wanted: str | None) -> Place:
    """Return where `tool` would ask, and for which model: the `wanted` one, or one that suits it. Takes seconds."""
    notes: list[Note] = []
    models = _models(settings.upstream)
    host = _host(settings, tailscale, notes)
    if models is None and read_plist(plist_path(PROXY, machine.home)) is None:
        text = "no proxy is installed here, and no Ollama answers: if they are on another machine, run this there"
        notes.append(Note(text))
    name = _model(tool, models, wanted, settings.upstream, notes)
    found = _find(models or (), name)
    context = _context(tool, name, found, machine, notes)
    if tool.patience != FOR_EVER and (found is None or not found.loaded):
        text = f"{tool.title} waits {tool.patience}; a model that loads sends nothing, so load it first, on the Mac"
        notes.append(Note(text, f"{PROGRAM} warm {name}"))
    return Place(f"http://{host}:{settings.port}", name, context, tuple(notes))


# --- host -------------------------------------------------------------------------------------------------------------


def _host(settings: Settings, tailscale: Tailscale, notes: list[Note]) -> str:
    """Return the name that a client calls this machine by: in the tailnet if it listens there, else its address."""
    named = [each for each in settings.listen if each != TAILSCALE]
    everywhere = any(ip_address(each).is_unspecified for each in named)
    if in_tailnet(settings.listen):
        tailnet = asyncio.run(tailscale.look())
        mine = [each for each in tailnet.addresses if TAILSCALE in settings.listen or everywhere or each in named]
        _https(settings, tailscale, tailnet, notes)
        if mine and tailnet.known_as:
            address = _bracketed(mine[0])
            notes.append(Note(f"{tailnet.known_as} is {address}: use that where the name isn't known"))
            return tailnet.known_as
        if mine:
            return _bracketed(mine[0])
        if TAILSCALE in settings.listen and not named:
            text = f"NAME is this machine's name in its tailnet, which isn't known now: {tailnet.problem}"
            notes.append(Note(text, tailnet.hint))
            return "NAME"
    if everywhere:
        text = "NAME is an address of this machine: the proxy listens on all of them, and Tailscale reports none"
        notes.append(Note(text, "ifconfig"))
        return "NAME"
    if ip_address(named[0]).is_loopback:
        text = f"{named[0]} is reached from this machine only: the proxy is to listen nowhere else"
        notes.append(Note(text, f"{PROGRAM} --check"))
    return _bracketed(named[0])


def _https(settings: Settings, tailscale: Tailscale, tailnet: Tailnet, notes: list[Note]) -> None:
    """Note the https address, if `tailscale serve` leads from one to the proxy and the proxy serves it."""
    serving = asyncio.run(tailscale.serving(Ports.of(settings))) if settings.serve_port else None
    if serving is not None and serving.urls and why_closed(tailnet, serving) is None:
        text = (
            f"apps and web pages that take no plain http ask {serving.urls[0]} instead, from any device of the tailnet"
        )
        notes.append(Note(text))


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


# --- model ------------------------------------------------------------------------------------------------------------


def is_name(text: str) -> bool:
    """Return whether `text` can be a model's name."""
    return _NAME(text) is not None


def _model(tool: Tool, models: tuple[Model, ...] | None, wanted: str | None, upstream: str, notes: list[Note]) -> str:
    """Return the model to name: the wanted one, a loaded one, the newest one, or a word in its place."""
    if wanted is not None:
        notes.extend(_doubts(wanted, _find(models or (), wanted), tool, known=models is not None))
        return wanted
    if models is None:
        text = f"MODEL is a name that `ollama list` prints: Ollama doesn't answer at {upstream}"
        notes.append(Note(text, f"{PROGRAM} start ollama"))
        return MODEL
    local = [each for each in models if each.chats and not each.elsewhere]
    if not local:
        notes.append(Note("MODEL is yet to come: Ollama has none here that chats", "ollama pull NAME"))
        return MODEL
    # Stable: loaded models, then the newest, as Ollama lists them.
    best, *others = sorted(local, key=lambda each: (tool.coding and not each.calls_tools, not each.loaded))
    state = "it is loaded" if best.loaded else "the newest that suits"
    more = f"; --model names another: {', '.join(each.name for each in others[:TOLD])}" if others else ""
    notes.append(Note(f"the model is {best.name}, {state}{more}"))
    notes.extend(_doubts(best.name, best, tool, known=True))
    return best.name


def _doubts(name: str, found: Model | None, tool: Tool, *, known: bool) -> Iterator[Note]:
    """Return the reasons against a model."""
    if found.elsewhere if found else is_cloud(name):
        text = f"{name} runs at ollama.com: what you ask it leaves this machine; with OLLAMA_NO_CLOUD it is refused"
        yield Note(text, f"{PROGRAM} connect {tool.name}", warns=True)
    elif known and found is None:
        yield Note(f"{name} is not on this machine", f"ollama pull {name}", warns=True)
    elif found is not None and not found.chats:
        yield Note(f"{name} only embeds: it answers nothing", f"{PROGRAM} connect {tool.name}", warns=True)
    elif found is not None and tool.coding and not found.calls_tools:
        text = f"{name} calls no tools, and {tool.title} works by them"
        yield Note(text, f"ollama show {name}", warns=True)


def _find(models: Iterable[Model], name: str) -> Model | None:
    """Return the model that a name means: in any case, and `latest` unless it has a tag."""
    return next((each for each in models if _whole(each.name) == _whole(name)), None)


def _whole(name: str) -> str:
    return (name if ":" in name.rpartition("/")[2] else f"{name}:latest").lower().removeprefix("library/")


def _context(tool: Tool, name: str, found: Model | None, machine: Machine, notes: list[Note]) -> int:
    """Return how many tokens the model has room for: as loaded, as configured, or as is likely."""
    if not tool.coding:
        return CONTEXT
    variables = (read_plist(plist_path(OLLAMA, machine.home)) or {}).get("EnvironmentVariables", {})
    configured = str(variables.get("OLLAMA_CONTEXT_LENGTH", ""))
    context = (found and found.context) or (
        int(configured) if re.fullmatch(r"[1-9]\d{0,8}", configured, re.ASCII) else None
    )
    if context is None:
        text = f"{CONTEXT} tokens of context are a guess: once {name} is loaded, `connect` prints the real number"
        notes.append(Note(text))
        return CONTEXT
    if context < ENOUGH:
        text = (
            f"Ollama gives {name} {context} tokens of context, too few for {tool.title}, which gets {ENOUGH}: "
            "write OLLAMA_CONTEXT_LENGTH = 65536 in config.toml, below [ollama_env]"
        )
        notes.append(Note(text, f"{PROGRAM} install", warns=True))
    return max(context, ENOUGH)


def _models(upstream: str) -> tuple[Model, ...] | None:
    """Return Ollama's models, the newest first; None if it doesn't list them."""
    listed = _ask(upstream, "/api/tags")
    if listed is None:
        return None
    loaded = {str(each.get("name")): each.get("context_length") for each in _ask(upstream, "/api/ps") or ()}
    found = []
    for each in listed:
        name, abilities = each.get("name"), each.get("capabilities")
        if isinstance(name, str) and is_name(name):
            context = loaded.get(name)
            found.append(
                Model(
                    name,
                    tuple(map(str, abilities)) if isinstance(abilities, list) else None,
                    bool(each.get("remote_host")) or is_cloud(name),
                    name in loaded,
                    context if isinstance(context, int) and context > 0 else None,
                )
            )
    return tuple(found)


def _ask(upstream: str, path: str) -> list[Mapping[str, Any]] | None:
    """Return the list of models in an answer of Ollama's; None when there is none."""
    try:
        models = json.loads(ask(*split(upstream), "GET", path, timeout=ANSWER_TIME).content)["models"]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return None
    return [each for each in models if isinstance(each, dict)] if isinstance(models, list) else []
