"""Where Ollama is, and how requests reach it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from proxy.exchange.message.forwarding import request_head
from proxy.settings.addresses import joined

if TYPE_CHECKING:
    from proxy.exchange.message.known_heads import Request
    from proxy.policy.heads import RequestHead


@dataclass(frozen=True)
class Target:
    """Where Ollama is and how requests reach it. Times in seconds."""

    host: str
    port: int
    connect_timeout: float
    forward_credentials: bool = False

    @cached_property
    def authority(self) -> bytes:
        """Ollama's own name: it answers only to names that mean loopback."""
        return joined(self.host, self.port).encode()

    def head_of(self, request: Request, replaced: int | None) -> bytes:
        """Return a request's head for Ollama. `replaced` is the length of other content that goes on."""
        if request.known is not None and replaced is None:
            return request.known.forwarded(request, self, self._forwarded)
        return self._forwarded(request.exact_head(), replaced)

    def _forwarded(self, head: RequestHead, replaced: int | None = None) -> bytes:
        return request_head(head, self.authority, forward_credentials=self.forward_credentials, replaced=replaced)
