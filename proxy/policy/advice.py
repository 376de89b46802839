"""What to do about a path that isn't served: the usual wrong addresses, and the right one for each.

Pure: a path in, the second half of a sentence out; `refusals` has the first. It quotes at most `QUOTE_LIMIT` characters
of a client's text, and nothing of a query, which may hold secrets.
"""

from __future__ import annotations

import re

from proxy import PROGRAM
from proxy.policy.routes import OPT_IN, ROUTES

QUOTE_LIMIT = 120
"""Characters of a client's text that one of our messages repeats: enough to recognise it by."""

_PATHS = frozenset(route.path for route in ROUTES if route.path != "/")
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


# What Ollama doesn't have either, and what its clients do instead.
_ELSEWHERE = (
    (
        "/v1/responses/compact",
        "Ollama has no such path either: give Codex a provider of its own, with which it shortens a conversation by "
        f"itself (`{PROGRAM} connect codex` on the server prints one)",
    ),
    ("/v1/responses", "Ollama has no such path either: it keeps no responses, so the client must send all of them"),
    ("/v1/messages", "Ollama has no such path either: clients do without, and estimate a count of tokens"),
    ("/v1beta", "that is Gemini's API, which Ollama doesn't have: choose the client's OpenAI or Anthropic kind"),
)

# What the `ollama` command prints where its first question, HEAD /, gets anything but 200: no word of a refusal.
_COMMAND_SHOWS = "something went wrong, please see the ollama server logs for details"


def advice(method: str, path: str) -> str:
    """Return what to do about a `path` that is not served, as the second half of a sentence."""
    clean = once_clean(path)
    if clean is not None:
        return f"{slashes_advice(path, clean)}{_then(method, clean)}"
    return _wrong_base(method, path) or _no_row(method, path)


def slashes_advice(path: str, clean: str) -> str:
    """Return what to do about the slashes that `path` has more than `clean`."""
    if "//" in path:
        return f"your base URL ends in `/`: take it off there, so that the path becomes `{quoted(clean)}`"
    return f"the path ends in `/`: take it off, so that it becomes `{quoted(clean)}`"


def _wrong_base(method: str, path: str) -> str | None:
    """Return what to do about a base URL that has too much or too little before a known path."""
    short = below_v1(path)
    if path.startswith("/v1/v1/"):
        right = short if short.startswith("/api/") else f"/v1{short}"
        return f"your base URL ends in /v1 already: take it off there, so that the path becomes `{quoted(right)}`"
    prefix, right = _prefixed(path)
    if path.startswith("/v1/api/") and not right.startswith("/v1/"):
        return f"your base URL ends in /v1, but `/api` is not below it: take it off there{_then(method, short)}"
    if f"/v1{path}" in _PATHS or path.startswith("/models/"):
        return f"your base URL lacks /v1: add it there, so that the path becomes `{quoted(f'/v1{path}')}`"
    if _is_known(path):
        return None
    if not right:
        return None
    if right == path[len(prefix) :]:
        what = f"take `{quoted(prefix)}` off your base URL"
    else:
        what = f"write `/v1` in place of `{quoted(prefix)}` in your base URL"
    return f"{what}, so that the path becomes `{quoted(right)}`{_then(method, right)}"


def _no_row(method: str, path: str) -> str:
    """Return what to do about a path that is written as its client means it."""
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
        return f"a model's name is one segment{SLASHED_NAME}"
    tidy = path.rstrip("/").lower()
    if tidy != path and tidy in _PATHS:
        return f"paths are compared as sent: write `{tidy}`"
    return f"`{PROGRAM} --check` on the server lists what is"


def _then(method: str, path: str) -> str:
    """Return what is to be done besides, where `path` isn't served either."""
    return "" if path in _SERVED or path.startswith(MODELS) else f"; then, {_no_row(method, path)}"


def _is_below(path: str, beginning: str) -> bool:
    return path == beginning or path.startswith(f"{beginning}/")


def _is_known(path: str) -> bool:
    """Return whether a client may mean `path` as it is: a row's, a model's, or one of management."""
    model = path.removeprefix(MODELS)
    return path in _PATHS or "/" not in model or any(_is_below(path, managed) for managed in COMMANDS)


def _prefixed(path: str) -> tuple[str, str]:
    """Return the segments that a base URL has too many, as other servers have them, and the path that is meant."""
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
    """Return the known path that `path` becomes without the slashes that it has too many; None if they aren't all."""
    clean = without_slashes(path)
    return clean if clean != path and _is_known(clean) and _PLAIN(clean) else None


def below_v1(path: str) -> str:
    """Return `path` without its leading `/v1` segments, of which a wrong base URL makes none or two."""
    return _LEADING_V1.sub("", path, count=1)


def meant(path: str) -> str:
    """Return the path that a client means by any `path`, as far as its API shows in it."""
    clean = without_slashes(path)
    return clean if _is_known(clean) else _prefixed(clean)[1] or _SLASHES.sub("/", path)


def quoted(text: str) -> str:
    """Return a client's `text` cut to `QUOTE_LIMIT`, what can't be printed replaced: safe in JSON and on a terminal."""
    cut = text if len(text) <= QUOTE_LIMIT else f"{text[: QUOTE_LIMIT - 1]}…"
    return (
        cut
        if cut.isprintable()
        else "".join(mark if mark.isprintable() else "\N{REPLACEMENT CHARACTER}" for mark in cut)
    )
