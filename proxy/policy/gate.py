"""May it pass? One request head in, one verdict out.

Pure: no clock, no socket, no log, no framework types. The rules apply in this order, and the first that fails decides:
what would leave the connection in doubt (version, framing), who asks (Host, Origin), what for (WebSocket, target,
path, method), and how (Via, Expect, Content-Length). So a head with ambiguous framing is always refused for its
framing, and a client that isn't allowed learns nothing about the table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from ipaddress import ip_network
from typing import TYPE_CHECKING, TypeAlias

from proxy.policy import refusals
from proxy.policy.heads import Preflight, RequestHead
from proxy.policy.origins import as_browsers_send, is_allowed, origin_pattern_fault
from proxy.policy.peers import as_address
from proxy.policy.routes import OPT_IN, ROUTES, Route
from proxy.reading.via import names_us

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from proxy.policy.peers import Network
    from proxy.policy.refusals import Refusal

    Verdict: TypeAlias = "Route | Refusal | Preflight"

Rows = dict[str, Route]
"""The open methods of one path: method -> row."""

# --- patterns ---------------------------------------------------------------------------------------------------------

# A model's name: one segment that Ollama decodes to itself, except for the `:` that SDKs may escape.
_MODEL = re.compile(r"(?!\.{1,2}\Z)(?:[A-Za-z0-9\-._~:@]|%3[Aa])+").fullmatch
# Characters and segments that Ollama, which routes on the decoded and cleaned path, might read as another path.
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9\-._~:@/]|//|/\.{1,2}(?:/|\Z)").search
_VISIBLE = re.compile(r"[!-~]*").fullmatch  # ASCII without control characters and space
_QUERY = re.compile(r"[!\"$-~]*").fullmatch  # the same but `#`: no target has a fragment (RFC 9112, 3.2)
_TOKEN = re.compile(rb"[A-Za-z0-9!#$%&'*+\-.^_`|~]{1,64}").fullmatch  # no method of any registry is longer
_SLASHES = re.compile("/{2,}")
_FIELD_NAMES = re.compile(rb"[A-Za-z0-9!#$%&'*+\-.^_`|~, ]+").fullmatch
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,18}").fullmatch
_HOST = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*)\]|(?P<name>[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)\.?)(?::(?P<port>[0-9]{1,5}))?"
)
_HOST_PATTERN = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?").fullmatch

_LENGTH_LIMIT = 2**63
"""From here on, at 19 digits, a Content-Length overflows a signed counter in some parser."""


# --- policy -----------------------------------------------------------------------------------------------------------


def open_rows(allow: Sequence[str], key: str = "allow") -> tuple[Route, ...]:
    """Return the rows of the table that are served: the default ones and those that `allow`, or another `key`, opens.

    An entry is "METHOD /path", or "/path" for all opt-in rows of that path. A ValueError names every wrong entry and
    all possible ones.
    """
    opened: set[str] = set()
    unknown = []
    for entry in allow:
        written = " ".join(entry.split())
        names = [row.name for row in OPT_IN.values() if written in (row.name, row.path)]
        opened.update(names)
        if not names:
            unknown.append(f"`{entry}`")
    if unknown:
        raise ValueError(f"no setting opens {', '.join(unknown)}; `{key}` takes: {', '.join(OPT_IN)}")
    return tuple(row for row in ROUTES if not row.opt_in or row.name in opened)


def host_fault(text: str) -> str | None:
    """Return what is wrong with `text` as an entry of `allowed_hosts`, or None."""
    if _HOST_PATTERN(text):
        return None
    return f"`{text}` is not a host name; write the name alone, without scheme, port or `*`: `mac.example.org`"


@dataclass(frozen=True, slots=True)
class Policy:
    """What the owner lets through, as plain values. Make it with `of`. A reload makes a new one."""

    routes: Mapping[str, Rows]  # path -> rows; a path ending in "*" is kept in `patterns` instead
    patterns: tuple[tuple[str, Rows], ...]  # what stands before the "*", and its rows
    allowed_hosts: frozenset[str]  # lower case, no final dot
    allowed_origins: frozenset[bytes]  # lower case
    allowed_schemes: tuple[bytes, ...]  # those of the "scheme://*" entries, with the "://"
    allowed_peers: tuple[Network, ...]
    max_body: int  # bytes of content
    for_others: frozenset[str] = frozenset()  # names of rows that access rules open for some askers

    @classmethod
    def of(
        cls,
        *,
        allow: Sequence[str] = (),
        allowed_hosts: Iterable[str] = (),
        allowed_origins: Iterable[str] = (),
        allowed_peers: Iterable[str | Network] = (),
        max_body: int,
    ) -> Policy:
        """Return the policy of the settings with these names; raise ValueError for an invalid entry."""
        table: dict[str, Rows] = {}
        for row in open_rows(allow):
            table.setdefault(row.path, {})[row.method] = row
        hosts, origins = tuple(allowed_hosts), tuple(allowed_origins)
        faults = [*map(host_fault, hosts), *map(origin_pattern_fault, origins)]
        if found := [fault for fault in faults if fault]:
            raise ValueError("; ".join(found))
        patterns = [as_browsers_send(origin) for origin in origins]
        return cls(
            routes={path: rows for path, rows in table.items() if not path.endswith("*")},
            patterns=tuple((path[:-1], rows) for path, rows in table.items() if path.endswith("*")),
            allowed_hosts=frozenset(host.lower().removesuffix(".") for host in hosts),
            allowed_origins=frozenset(origin for origin in patterns if not origin.endswith(b"*")),
            allowed_schemes=tuple(origin[:-1] for origin in patterns if origin.endswith(b"*")),
            allowed_peers=tuple(ip_network(str(network)) for network in allowed_peers),
            max_body=max_body,
        )

    def opening(self, also: Sequence[str], for_others: frozenset[str]) -> Policy:
        """Return the policy with more rows open, for some askers; `for_others` has all rows that rules open."""
        routes = {path: dict(rows) for path, rows in self.routes.items()}
        for row in map(OPT_IN.__getitem__, also):
            routes.setdefault(row.path, {})[row.method] = row
        return replace(self, routes=routes, for_others=for_others)

    def rows(self, path: str) -> Rows | None:
        """Return the open methods of `path`, compared as sent; None if the path is not on the table."""
        rows = self.routes.get(path)
        if rows is None:
            for prefix, below in self.patterns:
                if path.startswith(prefix) and _MODEL(path, len(prefix)):
                    return below
        return rows


def judge_origin(value: bytes, policy: Policy) -> Refusal | None:
    """Return why a request with this Origin is refused, or None."""
    allowed = is_allowed(value, policy.allowed_origins, policy.allowed_schemes)
    return None if allowed else refusals.origin_not_allowed(value)


def judge_host(value: bytes, policy: Policy) -> Refusal | None:
    """Return why a request with this Host is refused, or None.

    The name alone decides: a page that a rebound DNS name led here can't choose the Host that its browser sends.
    Strangers can't rebind IP literals, single labels and .ts.net names. The owner must list other names.
    """
    found = _HOST.fullmatch(value.decode("latin-1"))
    if found is None or int(found["port"] or 0) > 65535:
        return refusals.HOST_MALFORMED
    if found["v6"] is not None:
        return None if as_address(found["v6"]) else refusals.HOST_MALFORMED
    name = found["name"].lower()
    if "." not in name or name.endswith(".ts.net") or name in policy.allowed_hosts or as_address(name):
        return None
    return refusals.host_not_allowed(value)


# --- verdict ----------------------------------------------------------------------------------------------------------


def decide(head: RequestHead, policy: Policy, asker: Refusal | None = None) -> Verdict:
    """Return the row that serves the request, its refusal, or the preflight to answer. Never raises.

    `asker` is the refusal of an asker who may use nothing. A page still gets the answer to its preflight, so that it
    can show why.
    """
    refusal = _in_doubt(head) or _who(head, policy)
    if refusal is not None:
        return refusal
    if asker is not None:
        announced = head.read.get(b"access-control-request-method", b"")
        preflight = head.method == "OPTIONS" and b"origin" in head.read and _TOKEN(announced)
        return _preflight(head, announced.decode(), {}) if preflight else asker
    verdict = _what(head, policy)
    if type(verdict) is Route:
        return _how(head, policy, verdict) or verdict
    return verdict


def allowed_origin(head: RequestHead, policy: Policy) -> bytes | None:
    """Return the Origin that the CORS fields of any response must name, even of a refusal; None if there is none."""
    origin = head.read.get(b"origin")
    if origin is None or b"origin" in head.repeated or judge_origin(origin, policy) is not None:
        return None
    return origin


def _in_doubt(head: RequestHead) -> Refusal | None:
    """Refuse what two parsers could frame differently (RFC 9112, 6.3 and 11.2): the connection can't continue."""
    version, read, repeated = head.version, head.read, head.repeated
    if version not in {(1, 1), (1, 0)}:
        return refusals.HTTP_0_9 if version < (1, 0) else refusals.HTTP_2
    if repeated and (b"content-length" in repeated or b"transfer-encoding" in repeated):
        return refusals.FRAMING_AMBIGUOUS
    length = read.get(b"content-length")
    coding = read.get(b"transfer-encoding")
    if coding is not None:
        if length is not None:
            return refusals.FRAMING_AMBIGUOUS
        if coding.lower() != b"chunked" or version != (1, 1):
            return refusals.TRANSFER_ENCODING_INVALID
    elif length is not None and (not _LENGTH(length) or (len(length) == 19 and int(length) >= _LENGTH_LIMIT)):
        return refusals.CONTENT_LENGTH_INVALID
    return None


def _who(head: RequestHead, policy: Policy) -> Refusal | None:
    read, repeated = head.read, head.repeated
    if repeated and b"host" in repeated:
        return refusals.HOST_REPEATED
    if repeated and b"origin" in repeated:
        return refusals.ORIGIN_REPEATED
    host = read.get(b"host")
    if host is not None:
        refusal = judge_host(host, policy)
        if refusal is not None:
            return refusal
    elif head.version != (1, 0):
        return refusals.HOST_MISSING
    origin = read.get(b"origin")
    return None if origin is None else judge_origin(origin, policy)


def _what(head: RequestHead, policy: Policy) -> Verdict:
    path, method = head.path, head.method
    if b"upgrade" in head.read and _asks_for_websocket(head):
        return refusals.WEBSOCKET
    if not _QUERY(head.target, len(path)):
        return refusals.TARGET_MALFORMED
    rows = policy.rows(path)
    route = None if rows is None else rows.get(method)
    return _no_row(head, rows or {}, policy) if route is None else route


def _no_row(head: RequestHead, rows: Rows, policy: Policy) -> Verdict:
    """Judge a request without an open row; `rows` are those of its path, for other methods."""
    path, method = head.path, head.method
    if not path.startswith("/"):
        return refusals.TARGET_FORM
    if not _VISIBLE(path):
        return refusals.TARGET_MALFORMED
    announced = head.read.get(b"access-control-request-method", b"")
    if method == "OPTIONS" and _TOKEN(announced):
        if b"origin" in head.read:  # an allowed one, because its refusal would have come first
            return _preflight(head, announced.decode(), rows)
        if announced.decode() not in rows:
            method = announced.decode()  # the method that the refusal is about
    if f"{method} {path}" in policy.for_others:
        return refusals.row_not_for_asker(method, path, rows)
    if rows:
        return refusals.method_not_served(method, path, rows)
    clean = _served_once_clean(head.method, path, policy)
    if clean is not None:
        return refusals.slashes(method, path, clean, head.target[len(path) :])
    return (refusals.target_not_plain if _NOT_PLAIN(path) else refusals.path_not_served)(method, path)


def _asks_for_websocket(head: RequestHead) -> bool:
    """Return whether an Upgrade field asks for a WebSocket (RFC 6455, 4.1); HTTP/1.0 has none."""
    if head.method != "GET" or head.version != (1, 1):
        return False
    values = [head.read[b"upgrade"], *head.repeated.get(b"upgrade", ())]
    protocols = b",".join(values).lower().split(b",")
    return any(protocol.partition(b"/")[0].strip(b" \t") == b"websocket" for protocol in protocols)


def _preflight(head: RequestHead, announced: str, rows: Rows) -> Preflight:
    """Answer the preflight of an allowed page whatever it asks for, because browsers don't show why one was refused.

    The request that follows is judged separately, and the page can read its refusal.
    """
    headers = head.read.get(b"access-control-request-headers")
    return Preflight(
        tuple(sorted({*rows, announced})),
        headers if headers and _FIELD_NAMES(headers) else None,
        private_network=head.read.get(b"access-control-request-private-network", b"").lower() == b"true",
    )


def _served_once_clean(method: str, path: str, policy: Policy) -> str | None:
    """Return the path that `path` means if extra slashes are its only fault and `method` is served there.

    It is a row's own path, or a row's prefix and a model's name of harmless characters, so a Location with it can't
    lead to another host or end the field.
    """
    single = _SLASHES.sub("/", path)
    for clean in (single, single.removesuffix("/")):
        row = (policy.rows(clean) or {}).get(method)
        if row is not None:
            return row.path if not row.path.endswith("*") else row.path[:-1] + clean[len(row.path) - 1 :]
    return None


def _how(head: RequestHead, policy: Policy, route: Route) -> Refusal | None:
    read, repeated = head.read, head.repeated
    via = read.get(b"via")
    if via is not None and names_us([via, *repeated.get(b"via", ())]):
        return refusals.LOOP
    expectation = read.get(b"expect")
    if expectation is not None and (expectation.lower() != b"100-continue" or b"expect" in repeated):
        return refusals.EXPECTATION_UNKNOWN
    coding = read.get(b"content-encoding") if route.method == "POST" else None
    if coding is not None and (coding not in route.codings or b"content-encoding" in repeated):
        return refusals.content_coding_unknown(coding, route.codings)
    length = read.get(b"content-length")
    if length is not None and int(length) > policy.max_body:
        return refusals.content_too_large(policy.max_body)
    return None
