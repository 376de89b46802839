"""The settings of the room: how exchanges wait, and what is refused before they do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from proxy.exchange.waiting.pings import Times
from proxy.reading.native import NativeOptions

if TYPE_CHECKING:
    from proxy.exchange.message.limits import Key


@dataclass(frozen=True, slots=True)
class Rules:
    """How exchanges wait. In seconds and requests."""

    parallel: int | None = None  # requests for a model that Ollama has at once; None: no limit
    swap_after: float = 60.0
    max_waiting: int = 64
    times: Times = field(default_factory=Times)
    stuck_after: float = 300.0  # Ollama's silence, with a loaded model, after which it may be stuck; 0: never
    native: NativeOptions = NativeOptions.DROP  # native requests that would load a model in another way
    local_only: bool = True  # what would leave the Mac is refused
    limits: dict[Key, int | None] = field(default_factory=dict)  # `max_active` of access rules
    shield: bool = True  # False where Ollama's keep-alive is 0, so that a load by itself would load nothing
