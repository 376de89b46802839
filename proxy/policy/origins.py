"""Which web pages and apps may use the proxy: what Ollama allows by default, and the entries of `allowed_origins`.

Pure. Schemes and hosts have no case (RFC 3986, 6.2.2.1), so an entry and an Origin are compared in lower case.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

NULL = b"null"
"""The Origin of everything without one of its own: sandboxed frames, local files, some apps. Any page can send it."""

NULL_WARNING = (
    "`null` is allowed, which any web page can send: "
    "each page that a browser on an allowed device opens can use this proxy"
)

CHANGING_IDS = frozenset({"moz-extension", "safari-web-extension"})
"""Schemes of extensions whose id, which is their host, differs in each installation. Chrome's ids don't differ."""

# The origins that Ollama itself allows, so that what works without the proxy works through it.
_OLLAMA_ORIGIN = re.compile(
    rb"https?://(?:localhost|127\.0\.0\.1|0\.0\.0\.0)(?::[0-9]{1,5})?|(?:app|file|tauri|vscode-webview|vscode-file)://[!-~]*"
).fullmatch
_ENTRY = re.compile(r"[a-z][a-z0-9+.-]*://(?:\*|(?:\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::[0-9]{1,5})?)").fullmatch
_EVERY_PAGE = frozenset({"*", "http://*", "https://*"})
_VISIBLE = re.compile(rb"[!-~]*").fullmatch


def origin_pattern_fault(text: str) -> str | None:
    """Return what is wrong with `text` as an entry of `allowed_origins`, or None."""
    entry = text.lower()
    if entry in _EVERY_PAGE:
        return (
            f"`{text}` would let every web page use this proxy; name each as `scheme://host[:port]`, "
            "and an app's or extension's scheme as `scheme://*`"
        )
    if entry != NULL.decode() and not _ENTRY(entry):
        return f"`{text}` is not an origin; write `scheme://host[:port]` or `scheme://*`, without a path or final slash"
    return None


def as_browsers_send(entry: str) -> bytes:
    """Return an entry as browsers write an Origin: in lower case, without the scheme's default port (RFC 6454, 6.2)."""
    lowered = entry.lower()
    for scheme, port in (("http://", ":80"), ("https://", ":443")):
        if lowered.startswith(scheme):
            lowered = lowered.removesuffix(port)
    return lowered.encode()


def allows_null(entries: Iterable[str]) -> bool:
    """Return whether `allowed_origins` has `null`, which needs a warning."""
    return any(entry.lower().encode() == NULL for entry in entries)


def is_allowed(origin: bytes, listed: frozenset[bytes], schemes: tuple[bytes, ...]) -> bool:
    """Return whether a page or app at `origin` may use the proxy; `listed` and `schemes` are lower-case entries.

    It decides like Ollama, but without Ollama's same-origin rule, which a page with a rebound name would satisfy.
    """
    folded = origin.lower()
    if _OLLAMA_ORIGIN(folded) or folded in listed:
        return True
    return bool(schemes) and folded.startswith(schemes) and _VISIBLE(folded) is not None
