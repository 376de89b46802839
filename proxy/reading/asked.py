"""Describe what a request asks of Ollama: the result of reading its body."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Naming(StrEnum):
    """How certain it is which model a body names."""

    NAMED = "named"
    MISSING = "missing"  # Ollama finds no model in it either
    AMBIGUOUS = "ambiguous"  # Ollama's two readers may find different models
    UNREADABLE = "unreadable"  # broken, or more than the reader takes


@dataclass(frozen=True, slots=True)
class Asked:
    """What one request asks for. Without a named model, `why` explains it, and the other fields are best guesses."""

    naming: Naming
    model: str | None = None  # as the client wrote it; only if NAMED
    why: str = ""
    streams: bool = False
    tools: bool = False
    web_search: bool = False  # offers the tool for which Ollama itself asks ollama.com
    thinking: bool = False  # asks for it; a model that can think does so without being asked
    images: bool = False
    prompt: bool = False  # has something to answer; without it Ollama only loads or unloads the model
    needs: tuple[str, ...] = ()  # capabilities, as /api/tags calls them, without which Ollama refuses the request
    keep_alive: float | str | None = None  # the request's own, in seconds or as a Go duration
    options: Mapping[str, float | bool | str | None] = field(
        default_factory=dict
    )  # those that decide how a model is loaded

    @property
    def reloads(self) -> tuple[str, ...]:
        """The names of all fields that can load, reload, unload or pin a model for everyone."""
        return (*(("keep_alive",) if self.keep_alive is not None else ()), *self.options)
