"""How the gateway changes a head before it forwards it (RFC 9110, 7.6).

Pure: a head in, bytes out. `gate` decides about admission, and the caller about framing.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING

from proxy.reading.via import PSEUDONYM

if TYPE_CHECKING:
    from proxy.policy.heads import FieldLines, RequestHead

# RFC 9110, 7.6.1, with the older ones that some clients still send.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# Written again by the code that frames and addresses the message.
REWRITTEN = frozenset({b"host", b"content-length", b"expect"})
# CORS is the gateway's own, and Ollama would refuse an Origin that its Host no longer equals.
BROWSER = frozenset({b"origin", b"referer"})
# Fields by which proxies and CDNs name the client to the next server: `Forwarded`, `X-Forwarded-For`,
# `True-Client-IP`, `CF-Connecting-IPv6`, `X-Envoy-External-Address`, `X-Azure-SocketIP`, and others that follow these
# patterns. Any client can send them, and none of the servers that write them stands between a client and this proxy.
_WHOSE = rb"(?:client|connecting|external|origin|original|originating|peer|real|remote|socket|source|true|user)"
FORGEABLE = re.compile(
    rb"(?:.*-)?(?:"
    rb"forward(?:ed|er)(?:-.*)?"
    rb"|(?:forward|original|proxied)-for"
    rb"|%b?(?:ip|ipaddr|ipaddress)(?:v[46])?(?:-(?:addr|address))?"
    rb"|%b-?(?:addr|address|host)"
    rb")" % (_WHOSE, _WHOSE)
).fullmatch
# Ollama doesn't read them, and would send them along to ollama.com with a cloud model's request.
CREDENTIALS = frozenset({b"authorization", b"cookie", b"x-api-key"})

_DROPPED = HOP_BY_HOP | REWRITTEN | BROWSER | {b"accept-encoding"}
_DROPPED_PREFIXES = (b"sec-fetch-", b"access-control-request-", b"tailscale-")
_ANSWER_DROPPED = HOP_BY_HOP | {b"content-length", b"x-request-id", b"request-id"}

_VIA = {(1, 1): b"\r\nVia: 1.1 " + PSEUDONYM, (1, 0): b"\r\nVia: 1.0 " + PSEUDONYM}
CHUNKED, LENGTH = b"\r\nTransfer-Encoding: chunked", b"\r\nContent-Length: %d"
CLOSE, KEEP_ALIVE = b"Connection: close\r\n", b"Connection: keep-alive\r\n"
_STATUS_LINES = {status: f"HTTP/1.1 {status.value} {status.phrase}".encode() for status in HTTPStatus}


def _as_read(name: bytes) -> bytes:
    """Return the field name as a lenient server reads it: some fold `_` and `-`, as CGI did."""
    return name.lower().replace(b"_", b"-")


def _is_dropped(name: bytes) -> bool:
    read_as = _as_read(name)
    return read_as in _DROPPED or read_as.startswith(_DROPPED_PREFIXES) or FORGEABLE(read_as) is not None


def nominated(values: list[bytes]) -> frozenset[bytes]:
    """Return the field names, lower-cased, that Connection field `values` declare hop-by-hop (RFC 9110, 7.6.1)."""
    return frozenset(option.strip(b" \t").lower() for value in values for option in value.split(b","))


# What nearly every client sends there; none of these is the name of a field.
PLAIN_CONNECTION = frozenset({b"keep-alive", b"close", b"Keep-Alive", b"Close"})


def request_head(
    head: RequestHead, authority: bytes, *, forward_credentials: bool = False, replaced: int | None = None
) -> bytes:
    """Return the bytes of `head` as they go upstream, including the empty line.

    `replaced` is the length of other content that goes on instead, not packed.

    `authority` becomes the only Host. On loopback Ollama answers 403 without content to a Host that it doesn't know,
    such as a MagicDNS name.
    """
    drop: frozenset[bytes] = frozenset() if forward_credentials else CREDENTIALS
    connection = head.read.get(b"connection")
    if connection is not None and (connection not in PLAIN_CONNECTION or b"connection" in head.repeated):
        drop |= nominated([connection, *head.repeated.get(b"connection", [])])
    framing = head.framing
    if replaced is not None:
        drop |= {b"content-encoding"}
        framing = b"\r\nContent-Length: %d" % replaced
    parts = [b"%b %b HTTP/1.1\r\nHost: %b" % (head.method.encode("ascii"), head.target.encode("ascii"), authority)]
    for name, value in head.fields:
        if not (_is_dropped(name) or (drop and (name.lower() in drop or _as_read(name) in drop))):
            parts.append(b"\r\n%b: %b" % (name, value))
    parts.append(b"%b%b\r\n\r\n" % (_VIA[head.version], framing))
    return b"".join(parts)


def response_head(status: int, fields: FieldLines) -> bytes:
    """Return the bytes of a response head as they go downstream, before the gateway's own lines.

    They lack the last line end, and the fields that the gateway writes: framing, Connection, request id, CORS. The
    reason phrase is ours, because httptools lets control bytes through in the upstream's.
    """
    named = [value for name, value in fields if name.lower() == b"connection" and value not in PLAIN_CONNECTION]
    drop = _ANSWER_DROPPED | nominated(named) if named else _ANSWER_DROPPED
    parts: list[bytes] = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d Status" % status]  # type: ignore[call-overload]
    for name, value in fields:
        lowered = name.lower()
        if lowered not in drop and not lowered.startswith(b"access-control-"):
            parts.append(b"\r\n%b: %b" % (name, value))
    return b"".join(parts)


def finished_head(octets: bytes, framing: bytes, identity: bytes, lines: bytes, *, anthropic: bool) -> bytes:
    """Return a head from `response_head` with the gateway's own lines; `anthropic` adds the one that its SDK reads.

    `framing` is CHUNKED, LENGTH with a number, or nothing. `lines` are other field lines, with their ends.
    """
    also = b"\r\nrequest-id: " + identity if anthropic else b""
    return b"%b%b\r\nx-request-id: %b%b\r\n%b\r\n" % (octets, framing, identity, also, lines)
