"""The catalogue of what this gateway answers by itself: one code, status and sentence for each refusal and failure.

Values, and small functions that word one refusal each; who decides is `gate`, `downstream` or `relay`, and `replies`
makes octets of it. A message says what was refused, by which rule, and what to do. It quotes at most 120 characters of
a client's text and nothing of a query, which may hold secrets.

Statuses are chosen by what SDKs do with them: they repeat 408, 409, 429 and every 5xx unasked, so a 5xx that a repeat
cannot mend says `x-should-retry: false`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from proxy import PROGRAM
from proxy.policy.advice import MODELS, SLASHED_NAME, advice, once_clean, quoted, slashes_advice
from proxy.policy.origins import CHANGING_IDS, NULL
from proxy.policy.routes import OPT_IN

if TYPE_CHECKING:
    from collections.abc import Iterable


class Reason(StrEnum):
    """Why an exchange was refused, failed or cut: stable codes for the access log, told in docs/api-contract.md."""

    # Judged from the head, by gate, in this order.
    VERSION_NOT_SERVED = "version_not_served"
    FRAMING_AMBIGUOUS = "framing_ambiguous"
    TRANSFER_ENCODING_INVALID = "transfer_encoding_invalid"
    CONTENT_LENGTH_INVALID = "content_length_invalid"
    HOST_REPEATED = "host_repeated"
    ORIGIN_REPEATED = "origin_repeated"
    HOST_MISSING = "host_missing"
    HOST_MALFORMED = "host_malformed"
    HOST_NOT_ALLOWED = "host_not_allowed"
    ORIGIN_NOT_ALLOWED = "origin_not_allowed"
    WEBSOCKET = "websocket"
    TARGET_FORM = "target_form"
    TARGET_NOT_PLAIN = "target_not_plain"
    SLASHES = "slashes"
    PATH_NOT_SERVED = "path_not_served"
    METHOD_NOT_SERVED = "method_not_served"
    LOOP = "loop"
    EXPECTATION_UNKNOWN = "expectation_unknown"
    CONTENT_CODING_UNKNOWN = "content_coding_unknown"
    CONTENT_TOO_LARGE = "content_too_large"
    # On the port for `tailscale serve`, before all else.
    NOT_BY_SERVE = "not_by_serve"
    BY_FUNNEL = "by_funnel"
    SERVE_CLOSED = "serve_closed"
    # The client's connection.
    PEER_NOT_ALLOWED = "peer_not_allowed"
    OVERLOADED = "overloaded"
    DRAINING = "draining"
    MALFORMED = "malformed"
    TARGET_TOO_LONG = "target_too_long"
    HEAD_TOO_LARGE = "head_too_large"
    HEAD_TIMEOUT = "head_timeout"
    CONTENT_TIMEOUT = "content_timeout"
    STALLED = "stalled"
    # Ollama's side, and our own.
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    UPSTREAM_MALFORMED = "upstream_malformed"
    UPSTREAM_CLOSED = "upstream_closed"
    HELD_UPLOAD = "held_upload"
    MISSING_TERMINATOR = "missing_terminator"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that Ollama has no part in. A value, never an exception."""

    reason: Reason
    status: int  # 0: the connection is closed without a word
    message: str  # for the person at the client
    fields: tuple[tuple[bytes, bytes], ...] = ()  # further field lines, such as Allow or Retry-After

    @property
    def closes(self) -> bool:
        """Whether the connection must end with this reply: its framing is in doubt, or its content won't be read."""
        return self.status in _CLOSING or self.reason in _BEFORE_FRAMING

    @property
    def verdict(self) -> str:
        """What the access log calls it: `redirected` where the client is sent to the right path, else `refused`."""
        return "redirected" if self.reason is Reason.SLASHES else "refused"


# Judged before the framing is, on the port for `tailscale serve`.
_BEFORE_FRAMING = frozenset({Reason.NOT_BY_SERVE, Reason.BY_FUNNEL, Reason.SERVE_CLOSED})
_CLOSING = frozenset({400, 408, 413, 414, 417, 426, 431, 503, 504, 505})

_FINAL = ((b"x-should-retry", b"false"),)
_SOON = ((b"retry-after", b"1"),)

# --- by the gate ------------------------------------------------------------------------------------------------------

HTTP_0_9 = Refusal(Reason.VERSION_NOT_SERVED, 400, "This HTTP version is not served; use HTTP/1.1")
HTTP_2 = Refusal(Reason.VERSION_NOT_SERVED, 505, HTTP_0_9.message, _FINAL)
FRAMING_AMBIGUOUS = Refusal(
    Reason.FRAMING_AMBIGUOUS,
    400,
    "The request says more than once how long its content is; send one Content-Length or one Transfer-Encoding",
)
TRANSFER_ENCODING_INVALID = Refusal(
    Reason.TRANSFER_ENCODING_INVALID,
    400,
    "The only Transfer-Encoding served is `chunked` alone, on HTTP/1.1; send that, or a Content-Length",
)
CONTENT_LENGTH_INVALID = Refusal(
    Reason.CONTENT_LENGTH_INVALID,
    400,
    "Content-Length is not a plain decimal number below 2^63; send the exact length",
)
HOST_MISSING = Refusal(Reason.HOST_MISSING, 400, "The request has no Host field, which HTTP/1.1 requires; send one")
HOST_REPEATED = Refusal(Reason.HOST_REPEATED, 400, "The request has more than one Host field; send one")
HOST_MALFORMED = Refusal(
    Reason.HOST_MALFORMED, 400, "The Host field is not a name or IP address with an optional port; correct it"
)
ORIGIN_REPEATED = Refusal(Reason.ORIGIN_REPEATED, 400, "The request has more than one Origin field; send one or none")
WEBSOCKET = Refusal(
    Reason.WEBSOCKET,
    426,
    "This proxy speaks HTTP only, no WebSocket; ask over HTTP (Codex now does so by itself; with the settings that "
    f"`{PROGRAM} connect codex` prints on the server, it doesn't try)",
    ((b"Upgrade", b"HTTP/1.1"),),
)
TARGET_FORM = Refusal(
    Reason.TARGET_FORM,
    400,
    "The request target does not begin with `/`: this is a gateway to one Ollama, no forward proxy; "
    "give its address to the client as a base URL, not as an HTTP proxy",
)
TARGET_MALFORMED = Refusal(
    Reason.MALFORMED,
    400,
    "The request target holds a space, a `#`, a control or a non-ASCII character; percent-encode it",
)
LOOP = Refusal(
    Reason.LOOP,
    508,
    "The request has passed this proxy before, its Via field says; set `upstream` to Ollama's own address",
    _FINAL,
)
NOT_BY_SERVE = Refusal(
    Reason.NOT_BY_SERVE,
    403,
    "This port serves what `tailscale serve` brings, with one X-Forwarded-For that names a device of the tailnet; "
    "ask the proxy at its own address, which `remote-ollama-proxy connect` prints on the server",
)
BY_FUNNEL = Refusal(
    Reason.BY_FUNNEL, 403, "Requests from the internet, by `tailscale funnel`, are not served; join the tailnet"
)
SERVE_CLOSED = Refusal(
    Reason.SERVE_CLOSED,
    503,
    "Nothing is served by `tailscale serve` now, for it doesn't say who asks; `remote-ollama-proxy status` on the "
    "server says why; ask the proxy at its own address",
    _FINAL,
)
EXPECTATION_UNKNOWN = Refusal(
    Reason.EXPECTATION_UNKNOWN, 417, "The only expectation served is `Expect: 100-continue`, once; leave others out"
)


def host_not_allowed(host: bytes) -> Refusal:
    """Return the refusal of a well-formed `host` that a rebound DNS name could hide behind."""
    message = (
        f"Host `{quoted(host.decode('latin-1'))}` is no name of this proxy (a guard against DNS rebinding); use its IP "
        "address, its short name or its .ts.net name, or add the name to `allowed_hosts` on the server"
    )
    return Refusal(Reason.HOST_NOT_ALLOWED, 403, message)


def origin_not_allowed(origin: bytes) -> Refusal:
    """Return the refusal of a web page or app at `origin`."""
    scheme = quoted(origin.lower().partition(b"://")[0].decode("latin-1"))
    if origin.lower() == NULL:
        advice = (
            "a local file, a sandboxed frame or an app without an origin of its own sends that: open the page by "
            "http://localhost, or look for a setting or an update of the app; if nothing else helps, the owner can "
            'allow it, and with it every web page, by `allowed_origins = ["null"]` on the server'
        )
    elif scheme in ("http", "https"):
        advice = "add it to `allowed_origins` on the server if you trust that page or app"
    elif scheme in CHANGING_IDS:
        advice = (
            f"its id differs in each browser, so add `{scheme}://*` to `allowed_origins` on the server if you trust "
            "the extensions there"
        )
    else:
        advice = "add it to `allowed_origins` on the server if you trust that app or extension"
    message = f"Origin `{quoted(origin.decode('latin-1'))}` may not use this proxy; {advice}"
    return Refusal(Reason.ORIGIN_NOT_ALLOWED, 403, message)


def path_not_served(method: str, path: str) -> Refusal:
    """Return the refusal of a `path` without an open row, with the right address where the mistake is a usual one."""
    message = f"`{quoted(f'{method} {path}')}` is not on this proxy's allowlist; {advice(method, path)}"
    return Refusal(Reason.PATH_NOT_SERVED, 403, message)


def target_not_plain(method: str, path: str) -> Refusal:
    """Return the refusal of a `path` that another parser might read as a different one."""
    if once_clean(path) is not None:
        listed = "is not on this proxy's allowlist, for paths are compared as sent"
        message = f"`{quoted(f'{method} {path}')}` {listed}; {advice(method, path)}"
        return Refusal(Reason.TARGET_NOT_PLAIN, 403, message)
    message = (
        f"`{quoted(f'{method} {path}')}` holds an escape, an empty or dot segment, or a character that no served path "
        "has; paths are compared as sent, so write it plainly"
    )
    return Refusal(Reason.TARGET_NOT_PLAIN, 403, message + (SLASHED_NAME if path.startswith(MODELS) else ""))


def slashes(method: str, path: str, clean: str, query: str) -> Refusal:
    """Return the redirect from `path` to `clean`, a served one; `query`, with its `?`, goes along.

    308 keeps method and content (RFC 9110, 15.4.9). The message is for clients that don't follow, and their person.
    """
    message = f"`{quoted(f'{method} {path}')}` is not on this proxy's allowlist; {slashes_advice(path, clean)}"
    location = f"{clean}{query}".encode("ascii")
    return Refusal(Reason.SLASHES, 308, message, ((b"Location", location), (b"Cache-Control", b"no-store")))


def method_not_served(method: str, path: str, served: Iterable[str]) -> Refusal:
    """Return the refusal of `method` on a listed `path`; Allow names the `served` methods (RFC 9110, 15.5.6)."""
    allow = ", ".join(sorted(served))
    message = f"`{quoted(f'{method} {path}')}` is not on this proxy's allowlist; that path takes {allow}"
    if (row := OPT_IN.get(f"{method} {path}")) is not None:
        message += f', and the owner can open this on the server with `allow = ["{row.name}"]`'
    return Refusal(Reason.METHOD_NOT_SERVED, 405, message, ((b"allow", allow.encode()),))


def content_coding_unknown(coding: bytes, codings: tuple[bytes, ...]) -> Refusal:
    """Return the refusal of content in another `coding` than `codings`, which Ollama reads (RFC 9110, 15.5.16)."""
    message = (
        f"Ollama doesn't read content that is compressed with `{quoted(coding.decode('latin-1'))}`; switch off the "
        "compression of requests in the client (in Claude Code: `CLAUDE_CODE_GZIP_REQUEST_BODIES`)"
    )
    return Refusal(Reason.CONTENT_CODING_UNKNOWN, 415, message, ((b"Accept-Encoding", b", ".join(codings)),))


def content_too_large(limit: int) -> Refusal:
    """Return the refusal of content over `limit` octets, announced or counted."""
    message = f"The content is larger than the {limit} octets that this proxy takes (`max_body`); send less"
    return Refusal(Reason.CONTENT_TOO_LARGE, 413, message)


# --- by other rooms ---------------------------------------------------------------------------------------------------

MALFORMED = Refusal(
    Reason.MALFORMED, 400, "The request is not well-formed HTTP/1.1; use http:// (not https://) and an HTTP client"
)
TLS = Refusal(
    Reason.MALFORMED, 400, "This port speaks plain HTTP, which Tailscale encrypts; use http:// instead of https://"
)
TARGET_TOO_LONG = Refusal(Reason.TARGET_TOO_LONG, 414, "The request target is too long; shorten its query")
PEER_NOT_ALLOWED = Refusal(
    Reason.PEER_NOT_ALLOWED, 0, "The peer is no device of this tailnet; its connection was closed without an answer"
)
DRAINING = Refusal(
    Reason.DRAINING, 503, "The proxy is stopping and takes no new requests; ask again in a moment", _SOON
)
UPSTREAM_UNREACHABLE = Refusal(
    Reason.UPSTREAM_UNREACHABLE,
    502,
    f"Ollama is not running on the server; start it there (`{PROGRAM} start ollama`, or `ollama serve`), and ask again",
)
UPSTREAM_TIMEOUT = Refusal(
    Reason.UPSTREAM_TIMEOUT,
    502,
    "Ollama took no connection within `connect_timeout`; look on the server whether it hangs, and restart it",
    _FINAL,
)
UPSTREAM_MALFORMED = Refusal(
    Reason.UPSTREAM_MALFORMED,
    502,
    "What answered in Ollama's place was not valid HTTP; look on the server what listens on `upstream`",
    _FINAL,
)
UPSTREAM_CLOSED = Refusal(
    Reason.UPSTREAM_CLOSED,
    502,
    "Ollama closed the connection before it answered: it was stopped or broke down; its log on the server says more",
    _FINAL,
)
UPSTREAM_STALE = Refusal(  # without `x-should-retry: false`, so that the client's SDK asks again by itself
    Reason.UPSTREAM_CLOSED,
    502,
    "Ollama closed an idle connection while this request was on its way; ask again, for the proxy repeats no POST",
)
HELD_UPLOAD = Refusal(
    Reason.HELD_UPLOAD,
    504,
    "Ollama took no more of the content for 5 x `stall_timeout`; look on the server whether it hangs, and restart it",
    _FINAL,
)
OUT_OF_FILES = Refusal(
    Reason.OVERLOADED,
    503,
    "This proxy has as many files and connections open as its system lets it; ask again in a moment",
    _SOON,
)
INTERNAL = Refusal(
    Reason.INTERNAL, 500, "The proxy failed over this request; its diagnostics log on the server says how", _FINAL
)


def head_too_large(limit: int) -> Refusal:
    """Return the refusal of field lines that make the head larger than `limit` octets."""
    message = f"The request's fields are larger than the {limit} octets that this proxy takes (`max_head`); send fewer"
    return Refusal(Reason.HEAD_TOO_LARGE, 431, message)


def head_timeout(seconds: float) -> Refusal:
    """Return the refusal of a head that was begun and not finished within `seconds`."""
    message = f"The request head was not complete within {seconds:g} s (`head_timeout`); send it in one go"
    return Refusal(Reason.HEAD_TIMEOUT, 408, message)


def content_timeout(seconds: float) -> Refusal:
    """Return the refusal of content that brought neither 16 KiB nor its end within `seconds`."""
    message = f"The content came slower than 16 KiB in {seconds:g} s (`body_timeout`); send it faster"
    return Refusal(Reason.CONTENT_TIMEOUT, 408, message)


def overloaded(setting: str) -> Refusal:
    """Return the refusal of a connection over the limit that `setting` names."""
    message = f"This proxy has as many connections open as it takes (`{setting}`); close some, or ask again in a moment"
    return Refusal(Reason.OVERLOADED, 503, message, _SOON)


STREAM_FAILURES = {
    Reason.UPSTREAM_CLOSED: "Ollama broke off before its answer was complete; its log on the server says more",
    Reason.UPSTREAM_MALFORMED: "Ollama's answer went on as no valid HTTP and was cut; its log on the server says more",
    Reason.MISSING_TERMINATOR: (
        "Ollama ended its answer without finishing it: the model failed after the first token, or repeated one "
        "without end; Ollama's log on the server says more"
    ),
    Reason.DRAINING: "The proxy stopped before the answer was complete; ask again in a moment",
    Reason.INTERNAL: INTERNAL.message,
}
"""What an error event says when a response head has gone out already and no status can tell it."""
