"""The tools that `connect` knows, as `tools.toml` lists them: what to paste into each, and which rows each asks for."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from string import Template

from pydantic import ConfigDict, TypeAdapter, with_config

from proxy.policy.routes import Surface

ORIGIN, MODEL, CONTEXT = "http://NAME:11434", "MODEL", 32768
"""Placeholders for values that are unknown."""

FOR_EVER = "without limit"
"""The patience of a tool that never gives up by itself."""


@dataclass(frozen=True, slots=True)
class Extra:
    """What else a tool can do once the owner has opened a route for it."""

    purpose: str
    row: str


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True)
class Tool:
    """One tool: its settings, and the requests that it sends."""

    name: str
    title: str
    surface: Surface
    asks: tuple[str, ...]  # rows that it can't do without
    path: str  # the file that the text is for
    language: str
    text: str
    then: str  # how to go on from there
    patience: str  # how long it waits for a first token with these settings: what follows "waits"
    otherwise: str  # how long without them, and what it does then
    aliases: tuple[str, ...] = ()
    coding: bool = False  # wants a model that calls tools, and much context
    notes: tuple[str, ...] = ()
    extras: tuple[Extra, ...] = ()
    instead: str = ""  # another tool of the table, which does the same without rows that are closed

    def base_url(self, origin: str) -> str:
        """Return the base URL that the tool is given."""
        return f"{origin}/v1" if self.surface is Surface.OPENAI else origin

    def filled(self, text: str, origin: str = ORIGIN, model: str = MODEL, context: int = CONTEXT) -> str:
        """Return one of the tool's texts with the values of this machine."""
        return Template(text).substitute(origin=origin, model=model, context=context)


_LISTED = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))

TOOLS = TypeAdapter(tuple[Tool, ...]).validate_python(_LISTED["tool"])
"""All of them, in the order in which they are listed."""
