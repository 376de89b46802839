"""What to do about a path that isn't served: the usual wrong addresses, and the right one for each.

Pure: a path in, the second half of a sentence out; `refusals` has the first. It quotes at most `QUOTE_LIMIT` characters
of a client's text, and nothing of a query, which may hold secrets.
"""

from __future__ import annotations

import re

from proxy import PROGRAM
from proxy.routes import OPT_IN, ROUTES

QUOTE_LIMIT = 120
"""Characters of a client's text that one of our messages repeats: enough to recognise it by."""

_PATHS = frozenset(route.path for route in ROUTES)
_SERVED = frozenset(route.path for route in ROUTES if not route.opt_in)
MODELS = "/v1/models/"
SLASHED_NAME = "; Ollama looks up no model name with a slash here: use `GET /v1/models` or `POST /api/show`"

# Management, and what the owner types on the server instead.
COMMANDS = {
    "/api/pull": "ollama pull",
    "/api/push": "ollama push",
    "/api/create": "ollama create",
    "/api/copy": "ollama cp",
    "/api/delete": "ollama rm",
    "/api/blobs": "ollama create",
    "/api/me": "ollama signin",
    "/api/signout": "ollama signout",
    "/api/user/keys": "ollama signout",
}

# For clients' native kinds: the prefix or provider of the same client that asks below /v1.
_USE_V1 = (
    ", or pick the client's OpenAI kind, which asks below /v1: "
    "in aider `openai/MODEL` instead of `ollama/MODEL` or `ollama_chat/MODEL`, in Continue `provider: openai`"
)


def without_slashes(path: str, clean: str) -> str:
    """Return what to do about the slashes that `path` has more than `clean`."""
    if "//" in path:
        return f"your base URL ends in `/`: take it off there, so that the path becomes `{quoted(clean)}`"
    return f"the path ends in `/`: take it off, so that it becomes `{quoted(clean)}`"


def advice(path: str) -> str:
    """Return what to do about a `path` that is not served, as the second half of a sentence."""
    short = below_v1(path)
    if path.startswith("/v1/v1/"):
        right = short if short.startswith("/api/") else f"/v1{short}"
        return f"your base URL ends in /v1 already: take it off there, so that the path becomes `{quoted(right)}`"
    if path.startswith("/v1/api/"):
        then = "" if short in _SERVED else f"; then, {advice(short)}"
        return f"your base URL ends in /v1, but `/api` is not below it: take it off there{then}"
    if f"/v1{path}" in _PATHS or path.startswith("/models/"):
        return f"your base URL lacks /v1: add it there, so that the path becomes `{quoted(f'/v1{path}')}`"
    if rows := [f'`allow = ["{row.name}"]`' for row in OPT_IN.values() if row.path == path]:
        kind = _USE_V1 if path in ("/api/chat", "/api/generate") else ""
        return f"the owner can open it on the server with {' or '.join(rows)}{kind}"
    for managed, command in COMMANDS.items():
        if path == managed or path.startswith(f"{managed}/"):
            return f"run `{command}` on the server"
    if path.startswith("/v1/messages/"):
        return "Ollama has no such path either: clients do without, and estimate a count of tokens"
    if path.startswith(MODELS) and path != MODELS:
        return f"a model's name is one segment{SLASHED_NAME}"
    tidy = path.rstrip("/").lower()
    if tidy != path and tidy in _PATHS:
        return f"paths are compared as sent: write `{tidy}`"
    return f"`{PROGRAM} --check` on the server lists what is"


_LEADING_V1 = re.compile(r"(?:/v1(?=/))*")


def below_v1(path: str) -> str:
    """Return `path` without its leading `/v1` segments, of which a wrong base URL makes none or two."""
    return _LEADING_V1.sub("", path, count=1)


def quoted(text: str) -> str:
    """Return a client's `text` cut to `QUOTE_LIMIT`, what can't be printed replaced: safe in JSON and on a terminal."""
    cut = text if len(text) <= QUOTE_LIMIT else f"{text[: QUOTE_LIMIT - 1]}…"
    return (
        cut
        if cut.isprintable()
        else "".join(mark if mark.isprintable() else "\N{REPLACEMENT CHARACTER}" for mark in cut)
    )
