"""Every byte of the proxy's own responses: final responses, preflights, and the events that end a broken stream.

Each has the format of the client's API, as its SDKs read it. `refusals` has the texts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from proxy.policy.advice import below_v1, meant
from proxy.policy.refusals import INTERNAL, Reason, Refusal
from proxy.policy.routes import Dialect, Surface

if TYPE_CHECKING:
    from proxy.policy.heads import Preflight

__all__ = [
    "CONTINUE",
    "PREFLIGHT_MAX_AGE",
    "STREAM_FAILURES",
    "Reason",
    "Refusal",
    "cors_fields",
    "error_event",
    "preflight_reply",
    "reply",
    "surface_of",
]

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

PREFLIGHT_MAX_AGE = 7200
"""Seconds that a browser may remember a preflight: Chromium's maximum."""

STREAM_FAILURES = {
    Reason.UPSTREAM_CLOSED: "Ollama stopped before its answer was complete; see its log on the server",
    Reason.UPSTREAM_MALFORMED: "Ollama's answer turned into invalid HTTP and was cut; see Ollama's log on the server",
    Reason.MISSING_TERMINATOR: (
        "Ollama ended its answer without finishing it: the model failed after the first token, or repeated one "
        "endlessly; see Ollama's log on the server"
    ),
    Reason.CANCELLED: "The server's owner ended this request (`cancel`); ask them before you send it again",
    Reason.DRAINING: "The proxy stopped before the answer was complete; try again in a moment",
    Reason.INTERNAL: INTERNAL.message,
}
"""What an error event says once the head of a response is sent and the status can't change any more."""

_UPGRADE_REQUIRED = 426
_PHRASES = {  # RFC 9110, 15; http.HTTPStatus has an older phrase for 413
    308: b"Permanent Redirect",
    400: b"Bad Request",
    403: b"Forbidden",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    413: b"Content Too Large",
    414: b"URI Too Long",
    415: b"Unsupported Media Type",
    417: b"Expectation Failed",
    426: b"Upgrade Required",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
    505: b"HTTP Version Not Supported",
    508: b"Loop Detected",
}


def surface_of(path: str) -> Surface:
    """Return the API that a client means by any `path`, served or not, whatever its base URL has added."""
    short = below_v1(meant(path))
    if short.startswith("/api/"):
        return Surface.NATIVE
    return Surface.ANTHROPIC if short.startswith("/messages") else Surface.OPENAI


def _content(refusal: Refusal, surface: Surface | None, request_id: str) -> bytes:
    if surface is Surface.NATIVE:
        return orjson.dumps({"error": refusal.message})  # these clients print anything but a string as a Python value
    # Every 4xx is an "invalid_request_error", whatever other APIs call it: aider and litellm retry a 403 or 405 for a
    # minute unless the body contains that word.
    error: dict[str, str | None] = {
        "type": "invalid_request_error" if refusal.status < 500 else "api_error",
        "message": refusal.message,
    }
    if surface is not Surface.ANTHROPIC:
        error |= {"param": None, "code": refusal.reason.value}
    if surface is Surface.OPENAI:
        return orjson.dumps({"error": error})
    return orjson.dumps({"type": "error", "error": error, "request_id": request_id})


def _connection(version: tuple[int, int], keep_alive: bool, *, upgrade: bool = False) -> bytes:
    """Return the Connection line that `version` needs (RFC 9112, 9.3), because the versions have different defaults.

    If there is an Upgrade field, it must name that (RFC 9110, 7.8).
    """
    if upgrade:
        return b"Connection: upgrade, close\r\n"
    if not keep_alive:
        return b"Connection: close\r\n"
    return b"" if version >= (1, 1) else b"Connection: keep-alive\r\n"


def cors_fields(origin: bytes) -> bytes:
    """Return the field lines that let a page at the allowed `origin` read a response and the fields that SDKs use."""
    return (
        b"Access-Control-Allow-Origin: %b\r\nVary: Origin\r\n"
        b"Access-Control-Expose-Headers: x-request-id, request-id, retry-after, x-should-retry\r\n" % origin
    )


def reply(
    refusal: Refusal,
    *,
    surface: Surface | None,
    request_id: str,
    keep_alive: bool,
    origin: bytes | None,
    date: bytes,
    version: tuple[int, int] = (1, 1),
    head_only: bool = False,
) -> bytes:
    """Return all bytes of the final response for `refusal` in the format of `surface`.

    Without a surface, the request had no path, and the content can be read as Anthropic's and as OpenAI's. `origin` is
    an allowed one, `date` an HTTP-date, `version` the request's. `head_only` is for HEAD: the same head without
    content.
    """
    content = _content(refusal, surface, request_id)
    identity = request_id.encode()
    lines = (
        b"HTTP/1.1 %d %b\r\nDate: %b\r\n" % (refusal.status, _PHRASES[refusal.status], date),
        b"Content-Type: application/json\r\nContent-Length: %d\r\nx-request-id: %b\r\n" % (len(content), identity),
        b"request-id: %b\r\n" % identity if surface is Surface.ANTHROPIC else b"",
        *(b"%b: %b\r\n" % field for field in refusal.fields),
        cors_fields(origin) if origin is not None else b"",
        _connection(version, keep_alive, upgrade=refusal.status == _UPGRADE_REQUIRED),
        b"\r\n",
        b"" if head_only else content,
    )
    return b"".join(lines)


def preflight_reply(
    preflight: Preflight,
    *,
    origin: bytes,
    request_id: str,
    keep_alive: bool,
    date: bytes,
    version: tuple[int, int] = (1, 1),
) -> bytes:
    """Return all bytes of the response that lets a page at an allowed `origin` proceed, with the headers it asked for.

    Ollama's own preflight lacks `x-api-key` and `anthropic-*`, which its Anthropic clients send.
    """
    lines = (
        b"HTTP/1.1 204 No Content\r\nDate: %b\r\nx-request-id: %b\r\n" % (date, request_id.encode()),
        cors_fields(origin),
        b"Access-Control-Allow-Methods: %b\r\n" % ", ".join(preflight.methods).encode(),
        b"Access-Control-Allow-Headers: %b\r\n" % preflight.headers if preflight.headers else b"",
        b"Access-Control-Allow-Private-Network: true\r\n" if preflight.private_network else b"",
        b"Access-Control-Max-Age: %d\r\n" % PREFLIGHT_MAX_AGE,
        _connection(version, keep_alive),
        b"\r\n",
    )
    return b"".join(lines)


def error_event(
    dialect: Dialect,
    message: str,
    *,
    kind: str = "api_error",
    code: str = "server_error",
    sequence_number: int = 0,
    response_id: str | None = None,
) -> bytes:
    """Return the event that makes an SDK raise an error with `message` in the middle of a stream.

    It is complete, so write it only between two events. `kind` is the error's type. `code`, `sequence_number` (last
    seen + 1) and `response_id` are for RESPONSES, where Codex reads `response.error`, and the openai SDK the top-level
    `error`.
    """
    if dialect is Dialect.NDJSON:
        return b"%b\n" % orjson.dumps({"error": message})
    if dialect is Dialect.CHAT:
        return b"data: %b\n\n" % orjson.dumps({"error": {"message": message, "type": kind}})
    if dialect is Dialect.MESSAGES:
        content = {"type": "error", "error": {"type": kind, "message": message}}
        return b"event: error\ndata: %b\n\n" % orjson.dumps(content)
    failed = {
        "id": response_id or "",
        "object": "response",
        "status": "failed",
        "error": {"code": code, "message": message},
    }
    event = {
        "type": "response.failed",
        "sequence_number": sequence_number,
        "response": failed,
        "error": {"message": message, "type": kind, "code": code},
    }
    return b"event: response.failed\ndata: %b\n\n" % orjson.dumps(event)
