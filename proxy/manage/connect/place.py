"""Where a client reaches this machine's proxy, and with which model: the value, or a placeholder and a note.

The name comes from Tailscale, the port from the installed proxy's settings, the models from Ollama. Nothing is sent to
the proxy, so this leaves no line in its access log, and works even if nothing is running.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from proxy import PROGRAM
from proxy.manage.connect.tools import CONTEXT, FOR_EVER, MODEL
from proxy.manage.facts.ruled import own_access, own_rule
from proxy.manage.machine.launchd import OLLAMA, PROXY, plist_path
from proxy.manage.machine.plists import read_plist, variables
from proxy.manage.ollama.api import Ollama, OllamaError
from proxy.policy.access import Rule
from proxy.reading.names import ModelNameError, is_cloud, normal_name
from proxy.serving.serve_port import why_closed
from proxy.settings.addresses import TAILSCALE, bracketed, in_tailnet
from proxy.tailnet.serve_rules import Ports

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from proxy.manage.connect.tools import Tool
    from proxy.manage.machine.machine import Machine
    from proxy.manage.ollama.api import Listed, Loaded
    from proxy.settings.settings import Settings
    from proxy.tailnet.tailscale import Tailnet, Tailscale

ANSWER_TIME = 2.0
"""Seconds that Ollama may take to list its models, which are in memory or on disk."""

ENOUGH = 32768
"""The least context in tokens that a coding tool's settings get.

With less than its own instructions take (about 12,000, and room for the answer), Claude Code refuses to start, and
OpenCode and Continue shorten the chat and retry forever.
"""

TOLD = 5
"""How many other models are named."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*").fullmatch  # no other character needs quoting


@dataclass(frozen=True, slots=True)
class Note:
    """A note for the owner, and a command that helps if there is one. A warning is about something that won't work."""

    text: str
    hint: str = ""
    warns: bool = False

    @property
    def line(self) -> str:
        """All of it."""
        return f"{self.text} ({self.hint})" if self.hint else self.text


@dataclass(frozen=True, slots=True)
class Place:
    """The address to use, and the model."""

    origin: str
    model: str
    context: int
    notes: tuple[Note, ...]  # on these


def place(tool: Tool, machine: Machine, settings: Settings, tailscale: Tailscale, wanted: str | None) -> Place:
    """Return the address and model for `tool`: the `wanted` model, or one that suits it. Takes seconds."""
    notes: list[Note] = []
    models = _Models.of(settings.upstream)
    if models is not None:
        models = _allowed(models, settings, wanted, notes)
    host = _host(settings, tailscale, notes)
    if models is None and read_plist(plist_path(PROXY, machine.home)) is None:
        text = (
            "no proxy is installed here, and no Ollama answers: if they are on another machine, run this command there"
        )
        notes.append(Note(text))
    name = _model(tool, models, wanted, settings.upstream, notes)
    loaded = models.in_memory(name) if models else None
    context = _context(tool, name, loaded, machine, notes)
    if tool.patience != FOR_EVER and loaded is None:
        text = f"while a model loads, {tool.title} waits {tool.patience}; to load it beforehand, on the Mac"
        notes.append(Note(text, f"{PROGRAM} warm {name}"))
    return Place(f"http://{host}:{settings.port}", name, context, tuple(notes))


# --- host -------------------------------------------------------------------------------------------------------------


def _host(settings: Settings, tailscale: Tailscale, notes: list[Note]) -> str:
    """Return the name that clients use for this machine: its name in the tailnet if it listens there, or an address."""
    named = [each for each in settings.listen if each != TAILSCALE]
    everywhere = any(ip_address(each).is_unspecified for each in named)
    if in_tailnet(settings.listen):
        tailnet = asyncio.run(tailscale.look())
        mine = [each for each in tailnet.addresses if TAILSCALE in settings.listen or everywhere or each in named]
        _https(settings, tailscale, tailnet, notes)
        if mine and tailnet.known_as:
            address = bracketed(mine[0])
            notes.append(Note(f"{tailnet.known_as} is {address}: use that where the name isn't known"))
            return tailnet.known_as
        if mine:
            return bracketed(mine[0])
        if TAILSCALE in settings.listen and not named:
            text = f"NAME is this machine's name in its tailnet, which is unknown now: {tailnet.problem}"
            notes.append(Note(text, tailnet.hint))
            return "NAME"
    if everywhere:
        text = "NAME is an address of this machine: the proxy listens on all of them, and Tailscale reports none"
        notes.append(Note(text, "ifconfig"))
        return "NAME"
    if ip_address(named[0]).is_loopback:
        text = f"{named[0]} can be reached from this machine only, because the proxy listens nowhere else"
        notes.append(Note(text, f"{PROGRAM} --check"))
    return bracketed(named[0])


def _https(settings: Settings, tailscale: Tailscale, tailnet: Tailnet, notes: list[Note]) -> None:
    """Note the https address, if a `tailscale serve` rule leads from one to the proxy and works."""
    serving = asyncio.run(tailscale.serving(Ports.of(settings))) if settings.serve_port else None
    if serving is not None and serving.urls and why_closed(tailnet, serving) is None:
        text = f"apps and web pages that need https use {serving.urls[0]} instead, from any device in the tailnet"
        notes.append(Note(text))


# --- model ------------------------------------------------------------------------------------------------------------


def is_name(text: str) -> bool:
    """Return whether `text` can be a model's name."""
    return _NAME(text) is not None


def _normal(name: str) -> str:
    try:
        return normal_name(name)
    except ModelNameError:  # as of a name with two tags, which Ollama lists nowhere
        return name


def _model(tool: Tool, models: _Models | None, wanted: str | None, upstream: str, notes: list[Note]) -> str:
    """Return the model to name: the wanted one, a loaded one, the newest one, or a word in its place."""
    if wanted is not None:
        notes.extend(_doubts(wanted, models.find(wanted) if models else None, tool, known=models is not None))
        return wanted
    if models is None:
        text = f"MODEL is a name that `ollama list` prints: Ollama doesn't answer at {upstream}"
        notes.append(Note(text, f"{PROGRAM} start ollama"))
        return MODEL
    local = [each for each in models.listed.values() if each.may("completion") and not _elsewhere(each.name, each)]
    if not local:
        notes.append(Note("MODEL is a placeholder: Ollama has no model here that can chat", "ollama pull NAME"))
        return MODEL
    # Stable: loaded models, then the newest, as Ollama lists them.
    best, *others = sorted(
        local, key=lambda each: (tool.coding and not each.may("tools"), models.in_memory(each.name) is None)
    )
    state = "it is loaded" if models.in_memory(best.name) else "the newest suitable one"
    more = f"; --model names another: {', '.join(each.name for each in others[:TOLD])}" if others else ""
    notes.append(Note(f"the model is {best.name}, {state}{more}"))
    notes.extend(_doubts(best.name, best, tool, known=True))
    return best.name


def _elsewhere(name: str, found: Listed | None) -> bool:
    return is_cloud(name) or (found is not None and bool(found.elsewhere))


def _doubts(name: str, found: Listed | None, tool: Tool, *, known: bool) -> Iterator[Note]:
    """Return the reasons against a model."""
    if _elsewhere(name, found):
        text = f"{name} runs at ollama.com: your prompts leave this machine; with OLLAMA_NO_CLOUD it is refused"
        yield Note(text, f"{PROGRAM} connect {tool.name}", warns=True)
    elif known and found is None:
        yield Note(f"{name} is not on this machine", f"ollama pull {name}", warns=True)
    elif found is not None and not found.may("completion"):
        yield Note(f"{name} only makes embeddings: it can't chat", f"{PROGRAM} connect {tool.name}", warns=True)
    elif found is not None and tool.coding and not found.may("tools"):
        text = f"{name} can't call tools, which {tool.title} needs"
        yield Note(text, f"ollama show {name}", warns=True)


def _context(tool: Tool, name: str, loaded: Loaded | None, machine: Machine, notes: list[Note]) -> int:
    """Return how many tokens the model has room for: as loaded, as configured, or as is likely."""
    if not tool.coding:
        return CONTEXT
    environment = variables(read_plist(plist_path(OLLAMA, machine.home)))
    configured = re.fullmatch(r"[1-9]\d{0,8}", environment.get("OLLAMA_CONTEXT_LENGTH", ""), re.ASCII)
    context = (loaded and loaded.context) or (int(configured[0]) if configured else None)
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


def _allowed(models: _Models, settings: Settings, wanted: str | None, notes: list[Note]) -> _Models:
    """Return the models that an access rule lets this machine use; if none names it, those that any rule allows."""
    rule = own_rule(settings)
    if rule is None:
        return models
    rules = (rule,) if isinstance(rule, Rule) else own_access(settings).rules
    if not isinstance(rule, Rule):
        text = "access rules say which device may use which model, and none is sure to name this machine"
        notes.append(Note(text, f"{PROGRAM} explain POST /v1/chat/completions --from DEVICE --model NAME"))
    listed = {name: each for name, each in models.listed.items() if any(rule.allows(each.name) for rule in rules)}
    if wanted is not None and (there := models.find(wanted)) is not None and _normal(wanted) not in listed:
        which = f"{rule.title}, which counts for this machine, doesn't allow" if isinstance(rule, Rule) else None
        notes.append(Note(f"{which or 'no access rule allows'} {wanted}", f"{PROGRAM} --check", warns=True))
        listed[_normal(wanted)] = there
    return models._replace(listed=listed)


class _Models(NamedTuple):
    """Ollama's models, the newest first, and those that are in memory, by their normal names."""

    listed: Mapping[str, Listed]
    loaded: Mapping[str, Loaded]

    @classmethod
    def of(cls, upstream: str) -> _Models | None:
        """Return what Ollama answers; None if it doesn't list its models."""
        ollama = Ollama(upstream, ANSWER_TIME)
        try:
            listed = {name: each for name, each in ollama.listed().items() if is_name(each.name)}
        except OllamaError:
            return None
        with suppress(OllamaError):
            return cls(listed, ollama.loaded())
        return cls(listed, {})

    def find(self, name: str) -> Listed | None:
        """Return the model that a name means: in any case, and `latest` unless it has a tag."""
        return self.listed.get(_normal(name))

    def in_memory(self, name: str) -> Loaded | None:
        """Return the same while it is loaded."""
        return self.loaded.get(_normal(name))
