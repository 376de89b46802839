"""The catalogue of the proxy's own responses: a code, a status and a sentence for each refusal and failure.

Other modules decide, and `replies` makes the bytes. A message says what was refused, by which rule, and what to do. It
quotes at most 120 characters of a client's text, and nothing of a query. A 5xx that no retry helps ends SDKs' retries.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from proxy import PROGRAM
from proxy.policy.advice import MODELS, SLASHED_NAME, advice, once_clean, quoted, slashes_advice
from proxy.policy.origins import CHANGING_IDS, NULL
from proxy.policy.reasons import Reason as Reason  # noqa: PLC0414 - other modules take it from here
from proxy.policy.routes import OPT_IN

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Refusal:
    """A response of the proxy's own. A value, never an exception."""

    reason: Reason
    status: int  # 0: the connection is closed without a response
    message: str  # for the person who uses the client
    fields: tuple[tuple[bytes, bytes], ...] = ()  # further field lines, such as Allow or Retry-After

    @property
    def closes(self) -> bool:
        """Whether the connection must end with this response: its framing is in doubt, or its body won't be read."""
        return self.status in _CLOSING or self.reason in _BEFORE_FRAMING

    @property
    def verdict(self) -> str:
        """The verdict in the access log: `redirected` if the client is sent to the right path, otherwise `refused`."""
        return "redirected" if self.reason is Reason.SLASHES else "refused"


# Decided before the framing is checked.
_BEFORE_FRAMING = frozenset({Reason.NOT_BY_SERVE, Reason.BY_FUNNEL, Reason.SERVE_CLOSED, Reason.PEER_UNKNOWN})
_CLOSING = frozenset({400, 408, 413, 414, 417, 426, 431, 503, 504, 505})

_FINAL = ((b"x-should-retry", b"false"),)
_SOON = ((b"retry-after", b"1"),)

# --- by the gate ------------------------------------------------------------------------------------------------------

HTTP_0_9 = Refusal(Reason.VERSION_NOT_SERVED, 400, "This HTTP version is not served; use HTTP/1.1")
HTTP_2 = Refusal(Reason.VERSION_NOT_SERVED, 505, HTTP_0_9.message, _FINAL)
FRAMING_AMBIGUOUS = Refusal(
    Reason.FRAMING_AMBIGUOUS,
    400,
    "The request states the length of its body more than once; send one Content-Length or one Transfer-Encoding",
)
TRANSFER_ENCODING_INVALID = Refusal(
    Reason.TRANSFER_ENCODING_INVALID,
    400,
    "This proxy accepts only `Transfer-Encoding: chunked`, and only with HTTP/1.1; send that, or a Content-Length",
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
    "This proxy doesn't support WebSocket; use HTTP. Codex now changes to HTTP by itself. With the settings that "
    f"`{PROGRAM} connect codex` prints on the server, it uses HTTP from the start",
    ((b"Upgrade", b"HTTP/1.1"),),
)
TARGET_FORM = Refusal(
    Reason.TARGET_FORM,
    400,
    "The request target does not begin with `/`, as if this were a forward proxy; "
    "set this proxy's address as the client's base URL, not as the client's HTTP proxy",
)
TARGET_MALFORMED = Refusal(
    Reason.MALFORMED,
    400,
    "The request target contains a space, a `#`, a control character or a non-ASCII character; percent-encode it",
)
LOOP = Refusal(
    Reason.LOOP,
    508,
    "The Via field shows that the request has already passed this proxy; set `upstream` to Ollama's own address",
    _FINAL,
)
NOT_BY_SERVE = Refusal(
    Reason.NOT_BY_SERVE,
    403,
    "This port accepts only requests through `tailscale serve`, with one X-Forwarded-For that names a device; "
    "use the proxy's own address, which `remote-ollama-proxy connect` prints on the server",
)
BY_FUNNEL = Refusal(
    Reason.BY_FUNNEL,
    403,
    "This proxy serves no requests that come from the internet through `tailscale funnel`; join the tailnet",
)
SERVE_CLOSED = Refusal(
    Reason.SERVE_CLOSED,
    503,
    "The present rules of `tailscale serve` on the server don't identify devices, so this port serves nobody; "
    "use the proxy's own address, or correct what `remote-ollama-proxy status` on the server reports",
    _FINAL,
)
PEER_UNKNOWN = Refusal(
    Reason.PEER_UNKNOWN,
    403,
    "Tailscale on the server knows no device with this client's address; connect through Tailscale, and if the device "
    "has just joined the tailnet, try again in a few seconds",
)
IDENTITY_LATE = Refusal(
    Reason.IDENTITY_LATE, 503, "Tailscale on the server hasn't identified this client yet; try again in a moment", _SOON
)
EXPECTATION_UNKNOWN = Refusal(
    Reason.EXPECTATION_UNKNOWN,
    417,
    "This proxy accepts no Expect field except one `Expect: 100-continue`; don't send others",
)


def host_not_allowed(host: bytes) -> Refusal:
    """Return the refusal of a well-formed `host` that could be a rebound DNS name."""
    message = (
        f"Host `{quoted(host.decode('latin-1'))}` is not a name of this proxy (a check against DNS rebinding); use its "
        "IP address, its short name or its .ts.net name, or add the name to `allowed_hosts` on the server"
    )
    return Refusal(Reason.HOST_NOT_ALLOWED, 403, message)


def origin_not_allowed(origin: bytes) -> Refusal:
    """Return the refusal of a web page or app at `origin`."""
    scheme = quoted(origin.lower().partition(b"://")[0].decode("latin-1"))
    if origin.lower() == NULL:
        advice = (
            "local files, sandboxed frames and some apps send it: open the page from "
            "http://localhost, or look for a setting or an update that gives the app an origin of its own; as a last "
            'resort the owner can allow it and every web page with `allowed_origins = ["null"]` on the server'
        )
    elif scheme in ("http", "https"):
        advice = "add it to `allowed_origins` on the server if you trust that page or app"
    elif scheme in CHANGING_IDS:
        advice = (
            f"the extension's id differs in each browser, so add `{scheme}://*` to `allowed_origins` on the server if "
            "you trust that browser's extensions"
        )
    else:
        advice = "add it to `allowed_origins` on the server if you trust that app or extension"
    message = f"Origin `{quoted(origin.decode('latin-1'))}` may not use this proxy; {advice}"
    return Refusal(Reason.ORIGIN_NOT_ALLOWED, 403, message)


def path_not_served(method: str, path: str) -> Refusal:
    """Return the refusal of a `path` without an open row, with the right address if the mistake is a common one."""
    message = f"`{quoted(f'{method} {path}')}` is not on this proxy's allowlist; {advice(method, path)}"
    return Refusal(Reason.PATH_NOT_SERVED, 403, message)


def target_not_plain(method: str, path: str) -> Refusal:
    """Return the refusal of a `path` that another parser might read as a different one."""
    if once_clean(path) is not None:
        listed = "is not on this proxy's allowlist, because paths are compared as sent"
        message = f"`{quoted(f'{method} {path}')}` {listed}; {advice(method, path)}"
        return Refusal(Reason.TARGET_NOT_PLAIN, 403, message)
    message = (
        f"`{quoted(f'{method} {path}')}` contains an escape, an empty or dot segment, or a character that no served "
        "path has; paths are compared as sent, so write it without them"
    )
    return Refusal(Reason.TARGET_NOT_PLAIN, 403, message + (SLASHED_NAME if path.startswith(MODELS) else ""))


def slashes(method: str, path: str, clean: str, query: str) -> Refusal:
    """Return the redirect from `path` to `clean`, a served one; `query`, with its `?`, is kept.

    308 keeps method and body (RFC 9110, 15.4.9). The message is for people whose client doesn't follow it.
    """
    message = f"`{quoted(f'{method} {path}')}` is not on this proxy's allowlist; {slashes_advice(path, clean)}"
    location = f"{clean}{query}".encode("ascii")
    return Refusal(Reason.SLASHES, 308, message, ((b"Location", location), (b"Cache-Control", b"no-store")))


def method_not_served(method: str, path: str, served: Iterable[str]) -> Refusal:
    """Return the refusal of `method` on a listed `path`; Allow names the `served` methods (RFC 9110, 15.5.6)."""
    allow = ", ".join(sorted(served))
    message = f"`{quoted(f'{method} {path}')}` is not on this proxy's allowlist; this path accepts {allow}"
    if (row := OPT_IN.get(f"{method} {path}")) is not None:
        message += f', and the owner can open this method on the server with `allow = ["{row.name}"]`'
    return Refusal(Reason.METHOD_NOT_SERVED, 405, message, ((b"allow", allow.encode()),))


def row_not_for_asker(method: str, path: str, served: Iterable[str]) -> Refusal:
    """Return the refusal of a row that access rules open for other askers; `served` are the methods open for this one.

    It has the status of a row that is open for nobody.
    """
    refusal = method_not_served(method, path, served) if served else path_not_served(method, path)
    message = (
        f"`{quoted(f'{method} {path}')}` is open for other devices, but not for this one; the owner can add it to "
        "`also` in this device's rule of `access` on the server"
    )
    return replace(refusal, message=message)


def content_coding_unknown(coding: bytes, codings: tuple[bytes, ...]) -> Refusal:
    """Return the refusal of a body in a `coding` that isn't among the `codings` Ollama reads (RFC 9110, 15.5.16)."""
    message = (
        f"Ollama can't read a body that is compressed with `{quoted(coding.decode('latin-1'))}`; turn off "
        "request compression in the client (in Claude Code: unset `CLAUDE_CODE_GZIP_REQUEST_BODIES`)"
    )
    return Refusal(Reason.CONTENT_CODING_UNKNOWN, 415, message, ((b"Accept-Encoding", b", ".join(codings)),))


def content_too_large(limit: int) -> Refusal:
    """Return the refusal of a body over `limit` bytes, as announced or as counted."""
    message = f"The body is larger than this proxy's limit of {limit} bytes (`max_body`); send less"
    return Refusal(Reason.CONTENT_TOO_LARGE, 413, message)


# --- by the access rules ----------------------------------------------------------------------------------------------


def identity_needed(address: str) -> Refusal:
    """Return the refusal of an asker while Tailscale doesn't say what a rule needs to know."""
    message = (
        f"Tailscale on the server doesn't say who has {quoted(address)}, and a rule of `access` needs to know; try "
        "again in a moment"
    )
    return Refusal(Reason.IDENTITY_NEEDED, 503, message, _SOON)


def asker_not_allowed(asker: str) -> Refusal:
    """Return the refusal of an `asker` that no rule names; the text says who that is."""
    message = f"No rule of `access` on the server names {quoted(asker)}; the owner can add it to `who` in one of them"
    return Refusal(Reason.ASKER_NOT_ALLOWED, 403, message)


# --- by other modules -------------------------------------------------------------------------------------------------

MALFORMED = Refusal(
    Reason.MALFORMED, 400, "The request is not well-formed HTTP/1.1; use http:// (not https://) and an HTTP client"
)
TLS = Refusal(
    Reason.MALFORMED, 400, "This port speaks plain HTTP, which Tailscale encrypts; use http:// instead of https://"
)
TARGET_TOO_LONG = Refusal(Reason.TARGET_TOO_LONG, 414, "The request target is too long; shorten its query")
PEER_NOT_ALLOWED = Refusal(
    Reason.PEER_NOT_ALLOWED, 0, "The peer is not a device of this tailnet; its connection was closed without a response"
)
DRAINING = Refusal(
    Reason.DRAINING, 503, "The proxy is stopping and accepts no new requests; try again in a moment", _SOON
)
UPSTREAM_UNREACHABLE = Refusal(
    Reason.UPSTREAM_UNREACHABLE,
    502,
    f"Ollama is not running on the server; start it there (`{PROGRAM} start ollama`, or `ollama serve`), and try again",
)
UPSTREAM_TIMEOUT = Refusal(
    Reason.UPSTREAM_TIMEOUT,
    502,
    "Ollama accepted no connection within `connect_timeout`; check on the server whether it is stuck, and restart it",
    _FINAL,
)
UPSTREAM_MALFORMED = Refusal(
    Reason.UPSTREAM_MALFORMED,
    502,
    "The response from `upstream` was not valid HTTP; check on the server whether Ollama listens there",
    _FINAL,
)
LIST_UNREADABLE = Refusal(
    Reason.UPSTREAM_MALFORMED,
    502,
    "Ollama's list of models can't be read, so this proxy can't leave out the models that aren't for this device; see "
    "Ollama's version and log on the server",
    _FINAL,
)
UPSTREAM_CLOSED = Refusal(
    Reason.UPSTREAM_CLOSED,
    502,
    "Ollama closed the connection before it answered: it was stopped or crashed; see its log on the server",
    _FINAL,
)
UPSTREAM_STALE = Refusal(  # without `x-should-retry: false`, so that the SDK retries
    Reason.UPSTREAM_CLOSED,
    502,
    "Ollama closed an idle connection as this request was on its way; the proxy never repeats a POST, so try again",
)
HELD_UPLOAD = Refusal(
    Reason.HELD_UPLOAD,
    504,
    "Ollama read nothing of the body for 5 x `stall_timeout`; check on the server whether it is stuck, and restart it",
    _FINAL,
)
OUT_OF_FILES = Refusal(
    Reason.OVERLOADED,
    503,
    "This proxy has reached its system's limit of open files and connections; try again in a moment",
    _SOON,
)
INTERNAL = Refusal(
    Reason.INTERNAL, 500, "The proxy failed on this request; see its diagnostics log on the server", _FINAL
)


def head_too_large(limit: int) -> Refusal:
    """Return the refusal of field lines that make the head larger than `limit` bytes."""
    message = f"The request's header fields exceed this proxy's limit of {limit} bytes (`max_head`); send fewer"
    return Refusal(Reason.HEAD_TOO_LARGE, 431, message)


def head_timeout(seconds: float) -> Refusal:
    """Return the refusal of a head that began but didn't end within `seconds`."""
    message = f"The request head was not complete within {seconds:g} s (`head_timeout`); send it in one go"
    return Refusal(Reason.HEAD_TIMEOUT, 408, message)


def content_timeout(seconds: float) -> Refusal:
    """Return the refusal of a body of which neither 16 KiB nor the end arrived within `seconds`."""
    message = f"The body arrived slower than 16 KiB in {seconds:g} s (`body_timeout`); send it faster"
    return Refusal(Reason.CONTENT_TIMEOUT, 408, message)


def overloaded(setting: str) -> Refusal:
    """Return the refusal of a connection over the limit that `setting` names."""
    message = f"This proxy has reached its limit of connections (`{setting}`); close some, or try again in a moment"
    return Refusal(Reason.OVERLOADED, 503, message, _SOON)
