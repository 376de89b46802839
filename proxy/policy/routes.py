"""Everything that is let through to Ollama, on one page.

Everything that isn't a row here is refused, and no setting adds a row: `allow` only opens rows marked `opt_in`.
Management (pull, push, create, copy, delete, blobs), the owner's account (me, signout, keys), outbound fetches
(experimental) and debug have no row on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property


class Surface(StrEnum):
    """The API that a client means by a path. It decides the format of the proxy's own responses."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    NATIVE = "native"


class Dialect(StrEnum):
    """How a streamed response on a route is written: its events, its terminator, and its error event."""

    CHAT = "chat"  # data-only events, ended by `data: [DONE]`
    RESPONSES = "responses"  # named events, ended by response.completed, response.failed or response.incomplete
    MESSAGES = "messages"  # named events, ended by message_stop or error
    NDJSON = "ndjson"  # one JSON object a line, ended by one with "done":true or "error"


@dataclass(frozen=True)
class Route:
    """One row: a method on a path."""

    method: str
    path: str  # compared as sent, never decoded; a final "*" stands for exactly one segment, a model's name
    surface: Surface
    dialect: Dialect | None = None  # None: never streamed
    opt_in: bool = False  # served only if the owner names it in `allow`

    @cached_property
    def name(self) -> str:
        """The name in `allow` and in the log line."""
        return f"{self.method} {self.path}"

    @property
    def codings(self) -> tuple[bytes, ...]:
        """The codings of a request body that Ollama reads: zstd (since 0.18.0) where SDKs send JSON."""
        json_of_sdks = self.method == "POST" and self.path.startswith("/v1/") and "/audio/" not in self.path
        return (b"zstd", b"identity") if json_of_sdks else (b"identity",)

    @cached_property
    def needs_model(self) -> bool:
        """Whether a model must work for the response. Lists, versions and descriptions need none."""
        return self.method == "POST" and self.path != "/api/show"

    @cached_property
    def names_model(self) -> bool:
        """Whether a request names one model, in its body or in its path."""
        return self.method == "POST" or self.path.endswith("*")

    @cached_property
    def lists_models(self) -> bool:
        """Whether the response names models that the request doesn't."""
        return self.path in ("/v1/models", "/api/tags", "/api/ps")

    @property
    def marks_remote(self) -> bool:
        """Whether a list says which of its models run elsewhere. Ollama's own lists do."""
        return self.surface is Surface.NATIVE


ROUTES = (
    Route("POST", "/v1/chat/completions", Surface.OPENAI, Dialect.CHAT),
    Route("GET", "/v1/models", Surface.OPENAI),
    Route("GET", "/v1/models/*", Surface.OPENAI),
    Route("POST", "/v1/responses", Surface.OPENAI, Dialect.RESPONSES),
    Route("POST", "/v1/messages", Surface.ANTHROPIC, Dialect.MESSAGES),
    Route("GET", "/api/version", Surface.NATIVE),
    Route("GET", "/api/tags", Surface.NATIVE),
    Route("POST", "/api/show", Surface.NATIVE),
    # Probes: the ollama command and Claude Code send these first.
    Route("GET", "/", Surface.NATIVE, opt_in=True),
    Route("HEAD", "/", Surface.NATIVE, opt_in=True),
    Route("HEAD", "/api/version", Surface.NATIVE, opt_in=True),
    Route("HEAD", "/api/tags", Surface.NATIVE, opt_in=True),
    # Read-only, but shows what else runs on the Mac.
    Route("GET", "/api/ps", Surface.NATIVE, opt_in=True),
    Route("GET", "/api/status", Surface.NATIVE, opt_in=True),
    # Native inference: lets a caller set raw templates, and with `native_options` reload, unload or pin models.
    Route("POST", "/api/chat", Surface.NATIVE, Dialect.NDJSON, opt_in=True),
    Route("POST", "/api/generate", Surface.NATIVE, Dialect.NDJSON, opt_in=True),
    Route("POST", "/api/embed", Surface.NATIVE, opt_in=True),
    Route("POST", "/api/embeddings", Surface.NATIVE, opt_in=True),
    Route("POST", "/v1/embeddings", Surface.OPENAI, opt_in=True),
    Route("POST", "/v1/completions", Surface.OPENAI, Dialect.CHAT, opt_in=True),
    Route("POST", "/v1/audio/transcriptions", Surface.OPENAI, opt_in=True),
)

OPT_IN = {route.name: route for route in ROUTES if route.opt_in}

if len({route.name for route in ROUTES}) != len(ROUTES):
    raise RuntimeError("routes.py lists a method and path twice")
