"""Advice about a path that isn't served: the common wrong addresses, and the right one for each.

Pure: a path in, the second half of a sentence out. `refusals` writes the first half. The advice quotes at most
`QUOTE_LIMIT` characters of a client's text, and nothing of a query, which may contain secrets.
"""

from __future__ import annotations

import re

from proxy import PROGRAM
from proxy.policy.routes import OPT_IN, ROUTES

QUOTE_LIMIT = 120
"""The most characters of a client's text that a message repeats: enough to recognise it."""

_PATHS = frozenset(route.path for route in ROUTES if route.path != "/")
_SERVED = frozenset(route.path for route in ROUTES if not route.opt_in)
MODELS = "/v1/models/"
SLASHED_NAME = "; Ollama can't look up a name with a slash here: use `GET /v1/models` or `POST /api/show`"

# Management paths, and the command that the owner runs on the server instead.
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

# For clients that use Ollama's own API: the prefix or provider with which the same client uses /v1.
_USE_V1 = (
    ", or choose the client's OpenAI provider, which uses /v1: "
    "in aider `openai/MODEL` instead of `ollama/MODEL` or `ollama_chat/MODEL`, in Continue `provider: openai`"
)


# Paths that Ollama doesn't have either, and what its clients do instead.
_ELSEWHERE = (
    (
        "/v1/responses/compact",
        "Ollama has no such path either: define a provider of your own for Codex, which then shortens conversations by "
        f"itself (`{PROGRAM} connect codex` on the server prints one)",
    ),
    (
        "/v1/responses",
        "Ollama has no such path either: it stores no responses, so the client must send the whole conversation",
    ),
    ("/v1/messages", "Ollama has no such path either: clients work without it, and estimate the number of tokens"),
    ("/v1beta", "that is Gemini's API, which Ollama doesn't have: choose the client's OpenAI or Anthropic provider"),
)

# What the `ollama` command prints if its first request, HEAD /, gets any status but 200. It shows nothing of a refusal.
_COMMAND_SHOWS = "something went wrong, please see the ollama server logs for details"


def advice(method: str, path: str) -> str:
    """Return what to do about a `path` that is not served, as the second half of a sentence."""
    clean = once_clean(path)
    if clean is not None:
        return f"{slashes_advice(path, clean)}{_then(method, clean)}"
    return _wrong_base(method, path) or _no_row(method, path)


def slashes_advice(path: str, clean: str) -> str:
    """Return what to do about the extra slashes in `path`; `clean` is the path without them."""
    if "//" in path:
        return f"your base URL ends in `/`: remove it there, so that the path becomes `{quoted(clean)}`"
    return f"the path ends in `/`: remove it, so that it becomes `{quoted(clean)}`"


def _wrong_base(method: str, path: str) -> str | None:
    """Return what to do about a base URL with too many or too few segments before a known path."""
    short = below_v1(path)
    if path.startswith("/v1/v1/"):
        right = short if short.startswith("/api/") else f"/v1{short}"
        return f"your base URL already ends in /v1: remove it there, so that the path becomes `{quoted(right)}`"
    prefix, right = _prefixed(path)
    if path.startswith("/v1/api/") and not right.startswith("/v1/"):
        return f"your base URL ends in /v1, but `/api` is not below it: remove it there{_then(method, short)}"
    if f"/v1{path}" in _PATHS or path.startswith("/models/"):
        return f"your base URL lacks /v1: add it there, so that the path becomes `{quoted(f'/v1{path}')}`"
    if _is_known(path):
        return None
    if not right:
        return None
    if right == path[len(prefix) :]:
        what = f"remove `{quoted(prefix)}` from your base URL"
    else:
        what = f"replace `{quoted(prefix)}` with `/v1` in your base URL"
    return f"{what}, so that the path becomes `{quoted(right)}`{_then(method, right)}"


def _no_row(method: str, path: str) -> str:
    """Return what to do about a path that the client really means."""
    if path == "/" and method == "HEAD":
        shows = f"until then the `ollama` command shows only `Error: {_COMMAND_SHOWS}`"
        return f'the owner can open it on the server with `allow = ["HEAD /"]`; {shows}'
    rows = [row for row in OPT_IN.values() if row.path == path]
    if rows := [row for row in rows if row.method == method] or rows:
        entries = " or ".join(f'`allow = ["{row.name}"]`' for row in rows)
        kind = _USE_V1 if path in ("/api/chat", "/api/generate") else ""
        return f"the owner can open it on the server with {entries}{kind}"
    for managed, command in COMMANDS.items():
        if _is_below(path, managed):
            return f"run `{command}` on the server"
    for beginning, what in _ELSEWHERE:
        if _is_below(path, beginning):
            return what
    if path.startswith(MODELS) and path != MODELS:
        return f"a model's name is a single segment{SLASHED_NAME}"
    tidy = path.rstrip("/").lower()
    if tidy != path and tidy in _PATHS:
        return f"paths are compared as sent: write `{tidy}`"
    return f"`{PROGRAM} --check` on the server shows the allowlist"


def _then(method: str, path: str) -> str:
    """Return what else to do if `path` isn't served either."""
    return "" if path in _SERVED or path.startswith(MODELS) else f"; after that, {_no_row(method, path)}"


def _is_below(path: str, beginning: str) -> bool:
    return path == beginning or path.startswith(f"{beginning}/")


def _is_known(path: str) -> bool:
    """Return whether `path` is one that a client may mean: a row's, a model's, or a management path."""
    model = path.removeprefix(MODELS)
    return path in _PATHS or "/" not in model or any(_is_below(path, managed) for managed in COMMANDS)


def _prefixed(path: str) -> tuple[str, str]:
    """Return the extra segments of a base URL, such as other servers use, and the path that the client means."""
    at = path.find("/", 1)
    while at > 0:
        rest = path[at:]
        if _is_known(rest):
            return path[:at], rest
        if f"/v1{rest}" in _PATHS:
            return path[:at], f"/v1{rest}"
        at = path.find("/", at + 1)
    return "", ""


_SLASHES = re.compile("/{2,}")
_PLAIN = re.compile(r"(?!.*/\.{1,2}(?:/|\Z))[A-Za-z0-9\-._~:@/]*").fullmatch
_LEADING_V1 = re.compile(r"(?:/v1(?=/))*")


def without_slashes(path: str) -> str:
    """Return `path` with single slashes, and none at its end."""
    return _SLASHES.sub("/", path).removesuffix("/") or "/"


def once_clean(path: str) -> str | None:
    """Return the known path that `path` becomes without its extra slashes; None if it has other faults."""
    clean = without_slashes(path)
    return clean if clean != path and _is_known(clean) and _PLAIN(clean) else None


def below_v1(path: str) -> str:
    """Return `path` without its leading `/v1` segments; a wrong base URL produces none or two of them."""
    return _LEADING_V1.sub("", path, count=1)


def meant(path: str) -> str:
    """Return the path that a client means by `path`, as far as it shows which API the client uses."""
    clean = without_slashes(path)
    return clean if _is_known(clean) else _prefixed(clean)[1] or _SLASHES.sub("/", path)


def quoted(text: str) -> str:
    """Return a client's `text` cut to `QUOTE_LIMIT`, with unprintable characters replaced."""
    cut = text if len(text) <= QUOTE_LIMIT else f"{text[: QUOTE_LIMIT - 1]}…"
    return (
        cut
        if cut.isprintable()
        else "".join(mark if mark.isprintable() else "\N{REPLACEMENT CHARACTER}" for mark in cut)
    )
