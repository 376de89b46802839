"""The record that flows through the rooms: one request, what was decided, what happened to it.

Values and enumerations, and one call that adds the last values. Imports nothing of ours, so that every room may
import it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.refusals import Refusal
    from proxy.routes import Route

    Verdict: TypeAlias = "Route | Refusal | Preflight"

FieldLines = tuple[tuple[bytes, bytes], ...]
"""As they came: names in the sender's case, values without surrounding whitespace, order and repeats kept."""


class Surface(StrEnum):
    """The API that a client means by a path; it decides the shape of our own replies."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    NATIVE = "native"


class Phase(StrEnum):
    """How far an exchange has come."""

    HEAD = "head"  # the request head is arriving or being judged
    QUEUE = "queue"  # admitted, not yet on its way: the one place where an exchange may wait
    CONNECT = "connect"  # a connection to the upstream is being opened
    REQUEST = "request"  # the request is being sent
    WAIT = "wait"  # all of it is sent; Ollama is silent until its first token
    CONTENT = "content"  # the response is on its way
    DONE = "done"


class Party(StrEnum):
    """Who ended an exchange before its time."""

    DOWNSTREAM = "downstream"
    UPSTREAM = "upstream"
    PROXY = "proxy"


# The request fields that this gateway itself reads.
READ_FIELDS = frozenset(
    {
        b"access-control-request-headers",
        b"access-control-request-method",
        b"access-control-request-private-network",
        b"connection",
        b"content-encoding",
        b"content-length",
        b"expect",
        b"host",
        b"origin",
        b"transfer-encoding",
        b"upgrade",
        b"user-agent",
        b"via",
        b"x-request-id",
    }
)

# Spelling of a field name -> its lower-cased form if we read it, else None. A client uses the same few spellings again
# and again, so the cache saves a lower() per field line; it is emptied when a hostile client fills it.
_spellings: dict[bytes, bytes | None] = {}
_SPELLINGS_LIMIT = 512
_LONGEST_READ = max(map(len, READ_FIELDS))


def _read_as(name: bytes) -> bytes | None:
    lowered = name.lower()
    if len(name) > _LONGEST_READ:
        return None
    if len(_spellings) >= _SPELLINGS_LIMIT:
        _spellings.clear()
    found = _spellings[name] = lowered if lowered in READ_FIELDS else None
    return found


class RequestHead:
    """A request's start-line and header section, as parsed, unjudged. Its values are never changed.

    One may serve many requests, so what follows from it alone is worked out once: `judged`, `forwarded` and `told` are
    where gate, forwarding and audit keep that.
    """

    __slots__ = (
        *("chunked", "fields", "forwarded", "framing", "judged", "method"),
        *("path", "read", "repeated", "target", "told", "version"),
    )

    def __init__(self, method: str, target: str, version: tuple[int, int], fields: FieldLines) -> None:
        """Pick out, in one pass, the fields that the gateway reads."""
        self.method = method
        self.target = target  # ASCII, octet for octet as sent
        self.path = target.partition("?")[0]  # compared and logged as sent; a query is never looked at
        self.version = version
        self.fields = fields
        self.read: dict[bytes, bytes] = {}  # READ_FIELDS that are present: lower-cased name -> first value
        self.repeated: dict[bytes, list[bytes]] = {}  # those sent more than once: name -> every value after the first
        self.judged: tuple[object, Verdict] | None = None  # gate: by which policy, and how
        self.forwarded: tuple[object, bytes] | None = None  # relay: to which target, and the octets
        self.told: tuple[Verdict | None, dict[str, Any]] | None = None  # audit: with which verdict, and the keys
        read, known = self.read, _spellings
        for name, value in fields:
            lowered = known[name] if name in known else _read_as(name)
            if lowered is None:
                continue
            if lowered in read:
                self.repeated.setdefault(lowered, []).append(value)
            else:
                read[lowered] = value
        length = read.get(b"content-length")
        self.chunked = b"transfer-encoding" in read
        self.framing = b"" if length is None else b"\r\nContent-Length: " + length  # the field line for Ollama
        if self.chunked:
            self.framing = b"\r\nTransfer-Encoding: chunked"


class Preflight(NamedTuple):
    """A CORS preflight (Fetch standard, 4.8) of an allowed Origin, for any path: answered here, not forwarded."""

    methods: tuple[str, ...]  # what the path may be asked with, and the method that was announced
    headers: bytes | None  # Access-Control-Request-Headers, to be echoed
    private_network: bool = False  # Access-Control-Request-Private-Network, which older and managed Chromes send


class Identity(Protocol):
    """A device in the tailnet."""

    @property
    def device(self) -> str | None:
        """Its name."""

    @property
    def user(self) -> str | None:
        """Whose it is, or its tags."""


@dataclass(slots=True)
class Exchange:
    """One request and its end. `gateway` opens it; `audit` writes it exactly once.

    Times are seconds on the monotonic clock, which stands still while a Mac sleeps. Octets count content only, framing
    excluded.
    """

    id: str
    peer: str
    peer_port: int
    arrived: float
    head: RequestHead | None = None  # None: the octets made no request
    verdict: Verdict | None = None  # gateway
    origin: bytes | None = None  # gateway: an allowed Origin, to be named in the CORS fields of any answer
    status: int | None = None  # who answers: relay or gateway
    first_octet: float | None = None  # the same: when the response head went downstream
    ended: float | None = None  # the same
    request_octets: int = 0  # relay
    response_octets: int = 0  # relay
    phase: Phase = Phase.HEAD  # relay
    ended_by: Party | None = None  # who cut it short; None when complete
    reason: str | None = None  # gateway or relay: stable code when refused, failed or cut by us
    model: str | None = None  # relay
    stream: bool | None = None  # relay: the answer was an event stream or NDJSON
    tokens_in: int | None = None  # relay
    tokens_out: int | None = None  # relay
    events: int | None = None  # relay
    who: Identity | None = None  # who is asking, when Tailscale tells
    arrived_at: float = 0.0  # gateway: `arrived` on the wall clock, read at once, for a sleep moves the two apart
    rest: Callable[[], None] | None = None  # relay: reads from content what only the line tells; called for that
