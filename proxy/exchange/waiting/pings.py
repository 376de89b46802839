"""Decide what a client may be sent while its request waits, and when. Pure: times and facts in, bytes out.

Clients give up after 300 s of silence (every Node SDK, Claude Code, OpenCode, Cline). A ping is an event that every
client of its surface ignores. An early head isn't good for everyone: a client that would wait for a head for ten
minutes may wait for the next *event* for five only. Interim responses (1xx) are never used: `requests` and Go's clients
take them for the answer or don't count them.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson

from proxy.policy.replies import cors_fields, error_event
from proxy.policy.routes import Dialect
from proxy.reading.asked import Naming

if TYPE_CHECKING:
    from proxy.policy.heads import RequestHead
    from proxy.policy.routes import Route
    from proxy.reading.asked import Asked

_PATIENT = ("codex", "openai/python", "asyncopenai/python")
"""Beginnings of the user agents that wait 600 s or more for a head, and that a ping before the first event of
/v1/responses doesn't suit: Codex doesn't count comments, and OpenAI's Python helper wants `response.created` first."""

_TYPES = {
    Dialect.CHAT: {400: "invalid_request_error", 404: "not_found_error"},
    Dialect.RESPONSES: {400: "invalid_request_error", 404: "not_found_error"},
    Dialect.MESSAGES: {
        400: "invalid_request_error",
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        429: "rate_limit_error",
        503: "overloaded_error",
        529: "overloaded_error",
    },
    Dialect.NDJSON: {},
}
"""The type that Ollama gives an error of each status (openai/openai.go `NewError`, anthropic/anthropic.go)."""

_CODES = {404: "model_not_found", 429: "rate_limit_exceeded", 503: "server_is_overloaded"}
"""What Codex reads of a failed response, instead of the status: how often it tries again depends on it."""

_MOST_WORDS = 4096  # characters of an error that isn't JSON


@dataclass(frozen=True, slots=True)
class Times:
    """When a waiting client gets an early head and pings. In seconds."""

    after: float = 15.0  # of silence before the early head; 0: no early head and no pings
    every: float = 30.0  # between two pings, and of silence between two events


@dataclass(frozen=True, slots=True)
class Failure:
    """An error that Ollama or the proxy would have answered with a status."""

    status: int
    message: str
    kind: str

    def event(self, dialect: Dialect, sequence_number: int = 0, response_id: str | None = None) -> bytes:
        """Return the error event of a surface with the type and words that the status would have carried."""
        code = _CODES.get(self.status, "server_error")
        return error_event(
            dialect,
            self.message,
            kind=self.kind,
            code=code,
            sequence_number=sequence_number,
            response_id=response_id,
        )


def failure_of(dialect: Dialect, status: int, body: bytes) -> Failure:
    """Return the error in a response that Ollama gave with `status`: in the surface's own shape, or its native one."""
    found: Any = None
    with suppress(orjson.JSONDecodeError):
        found = orjson.loads(body)
    error = found.get("error") if isinstance(found, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    kind = error.get("type") if isinstance(error, dict) else None
    if not isinstance(message, str) or not message:
        message = (
            body.decode(errors="replace").strip()[:_MOST_WORDS]
            or f"Ollama answered with status {status} and no message"
        )
    if not isinstance(kind, str) or not kind:
        kind = _TYPES[dialect].get(status, "api_error")
    return Failure(status, message, kind)


def may_begin_early(route: Route, head: RequestHead, asked: Asked) -> bool:
    """Return whether a client may get the head of its response before Ollama has given one."""
    if route.dialect is None or asked.naming is not Naming.NAMED or not asked.streams or not asked.prompt:
        return False
    if head.version < (1, 1):
        return False
    agent = head.read.get(b"user-agent", b"").decode("latin-1").lower()
    return route.dialect is not Dialect.RESPONSES or not agent.startswith(_PATIENT)


def early_head(dialect: Dialect, *, request_id: str, date: bytes, origin: bytes | None, keep_alive: bool) -> bytes:
    """Return the head of a chunked stream that hasn't begun, as Ollama would write it."""
    kind = b"application/x-ndjson" if dialect is Dialect.NDJSON else b"text/event-stream"
    identity = request_id.encode()
    lines = (
        b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nDate: %b\r\n" % (kind, date),
        b"Cache-Control: no-cache\r\n" if dialect in (Dialect.RESPONSES, Dialect.MESSAGES) else b"",
        b"Transfer-Encoding: chunked\r\nx-request-id: %b\r\n" % identity,
        b"request-id: %b\r\n" % identity if dialect is Dialect.MESSAGES else b"",
        cors_fields(origin) if origin is not None else b"",
        b"" if keep_alive else b"Connection: close\r\n",
        b"\r\n",
    )
    return b"".join(lines)


def ping(route: Route, *, model: str, at: float, sequence_number: int = -1) -> bytes:
    """Return a ping: a whole event, so write it only between two events.

    `at` is the wall clock's time, `sequence_number` the last one seen on /v1/responses: -1 before the first event.
    """
    if route.dialect is Dialect.MESSAGES:
        return b'event: ping\ndata: {"type": "ping"}\n\n'
    if route.dialect is Dialect.NDJSON:
        created = f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%S.%f}Z"
        empty: dict[str, Any] = {"message": {"role": "assistant", "content": ""}}
        if route.path == "/api/generate":
            empty = {"response": ""}
        return b"%b\n" % orjson.dumps({"model": model, "created_at": created, **empty, "done": False})
    if route.path == "/v1/chat/completions":
        chunk = {
            "id": "chatcmpl-wait",
            "object": "chat.completion.chunk",
            "created": int(at),
            "model": model,
            "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": None}],
        }
        return b"data: %b\n\n" % orjson.dumps(chunk)
    if route.dialect is Dialect.RESPONSES and sequence_number >= 0:
        event = {"type": "keepalive", "sequence_number": sequence_number}
        return b"event: keepalive\ndata: %b\n\n" % orjson.dumps(event)
    return b": waiting\n\n"


class Pace:
    """Decides when one client is due an early head or a ping."""

    __slots__ = ("_last", "_times", "begun", "early", "pings")

    def __init__(self, times: Times, *, early: bool, since: float) -> None:
        self._times = times
        self._last = since  # when something was last sent to the client, or its request came
        self.early = early  # whether it may get an early head
        self.begun = False  # it got one
        self.pings = 0

    def __repr__(self) -> str:
        return f"<Pace {self.pings} pings{', begun early' if self.begun else ''}>"

    def head_due(self, now: float) -> bool:
        """Return whether the early head is due, provided that no other head was sent."""
        return self.early and not self.begun and 0 < self._times.after <= now - self._last

    def ping_due(self, now: float, *, unsent: int, between_events: bool) -> bool:
        """Return whether a ping is due. `unsent` bytes haven't arrived yet, perhaps with a ping among them."""
        return (
            between_events
            and not unsent
            and self._times.after > 0
            and self._times.every > 0
            and now - self._last >= self._times.every
        )

    def began(self, now: float) -> None:
        """Note that the early head was sent."""
        self.begun = True
        self._last = now

    def pinged(self, now: float) -> None:
        """Note that a ping was sent."""
        self.pings += 1
        self._last = now

    def passed(self, now: float) -> None:
        """Note that Ollama's own bytes were sent."""
        self._last = now
