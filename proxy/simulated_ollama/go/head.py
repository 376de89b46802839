"""Request heads as Go's net/http server (1.26) reads them: as lenient and as strict as it is.

Accepted against RFC 9112: bare LF, obs-fold, Transfer-Encoding next to Content-Length, equal repeated Content-Lengths.
A refused head gets plain text with `Connection: close` and no Date. It has no path yet, so no handler, no Host check
and no log line of Ollama's sees it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

# DefaultMaxHeaderBytes and the slack that net/http adds to it, in bytes.
HEAD_LIMIT = (1 << 20) + 4096

TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_HOST = re.compile(r"[!$%&'()*+,\-.:;=\[\]_~0-9A-Za-z]*")
_VERSION = re.compile(r"HTTP/(\d)\.(\d)")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:")
_PLAIN = "Content-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"


class Refused(Exception):  # noqa: N818 - not a mistake of ours: an answer
    """A head that never becomes a request. `octets` is the whole answer; the connection closes after it."""

    def __init__(self, status: str, body: str | None = None) -> None:
        super().__init__(status)
        self.octets = f"HTTP/1.1 {status}\r\n{_PLAIN}{status if body is None else body}".encode()


@dataclass(slots=True)
class Head:
    """A request head after net/http has read it."""

    method: str
    target: str  # as sent
    version: tuple[int, int]
    fields: list[tuple[str, str]]  # names lower-cased, values trimmed; text is Latin-1
    host: str  # of the target when that is in absolute form, else of the Host field
    escaped_path: str  # still percent-encoded; "" where the target has none
    query: str | None
    length: int | None  # bytes of content; None when chunked

    @property
    def path(self) -> str:
        """The percent-decoded path, which is what Ollama routes on."""
        return unquote_to_bytes(self.escaped_path).decode("utf-8", "surrogateescape")

    def get(self, name: str) -> str:
        """Return the first value of a field by its lower-cased name, or ""."""
        return next((value for found, value in self.fields if found == name), "")

    def has_token(self, name: str, token: str) -> bool:
        """Whether any of the comma-separated values of a field is `token`, in any letter case."""
        values = ",".join(value for found, value in self.fields if found == name)
        return token in {part.strip().lower() for part in values.split(",")}

    @property
    def closes(self) -> bool:
        """Whether the client wants the connection closed after this exchange."""
        if self.has_token("connection", "close"):
            return True
        return self.version == (1, 0) and not self.has_token("connection", "keep-alive")


class RequestLine(NamedTuple):
    """A request line, its target taken apart as url.ParseRequestURI does."""

    method: str
    target: str
    version: tuple[int, int]
    authority: str
    escaped_path: str
    query: str | None


def request_line(line: bytes) -> RequestLine:
    """Read a request line. Raises Refused."""
    method, _, rest = line.decode("latin-1").rstrip("\r\n").partition(" ")
    target, _, protocol = rest.partition(" ")
    version = _VERSION.fullmatch(protocol)
    if not TOKEN.fullmatch(method) or version is None:
        raise Refused("400 Bad Request")
    return RequestLine(method, target, (int(version[1]), int(version[2])), *_split_target(method, target))


def parse(octets: bytes) -> Head:
    """Read a whole head, its final empty line included. Raises Refused, in net/http's order of checks."""
    first, *rest = octets.replace(b"\r\n", b"\n").rstrip(b"\n").split(b"\n")
    method, target, version, authority, escaped_path, query = request_line(first)
    fields = _fields([line.decode("latin-1") for line in rest])
    hosts = [value for name, value in fields if name == "host"]
    if len(hosts) > 1:
        raise Refused("400 Bad Request")
    length = _length(fields, version)
    preface = (method, target, version) == ("PRI", "*", (2, 0))
    if version[0] != 1 and not preface:
        raise Refused("505 HTTP Version Not Supported: unsupported protocol version")
    if not hosts and version >= (1, 1) and method != "CONNECT" and not preface:
        raise Refused("400 Bad Request: missing required Host header")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise Refused("400 Bad Request: malformed Host header")
    if not all(TOKEN.fullmatch(name) for name, _ in fields):
        raise Refused("400 Bad Request: invalid header name")
    host = authority or (hosts[0] if hosts else "")
    return Head(method, target, version, fields, host, escaped_path, query, length)


def _split_target(method: str, target: str) -> tuple[str, str, str | None]:
    """Return authority, escaped path and query."""
    if target == "*":
        return "", "*", None
    if method == "CONNECT" and not target.startswith("/"):
        return target, "", None
    if not target or any(octet < " " or octet == "\x7f" for octet in target):
        raise Refused("400 Bad Request")
    rest, mark, query = target.partition("?")
    authority = ""
    if not rest.startswith("/"):
        scheme = _SCHEME.match(rest)
        if scheme is None:
            raise Refused("400 Bad Request")
        rest = rest[scheme.end() :]
        if not rest.startswith("/"):
            rest = ""  # opaque, such as mailto:x
        elif rest.startswith("//"):
            authority, slash, path = rest[2:].partition("/")
            authority, rest = authority.rpartition("@")[2], slash + path
    if _BAD_ESCAPE.search(rest):
        raise Refused("400 Bad Request")
    return authority, rest, query if mark else None


def _fields(lines: list[str]) -> list[tuple[str, str]]:
    fields: list[tuple[str, str]] = []
    for line in lines:
        if line[:1] in (" ", "\t"):  # obs-fold goes on with the value before it
            if not fields:
                raise Refused("400 Bad Request")
            name, value = fields.pop()
            fields.append((name, f"{value} {line.strip()}".strip()))
            continue
        name, colon, value = line.partition(":")
        # A name with a space in it gets as far as the check of names; any other bad byte does not.
        if not colon or not TOKEN.fullmatch(name.replace(" ", "")):
            raise Refused("400 Bad Request")
        fields.append((name.lower(), value.strip(" \t")))
    if any((octet < " " and octet != "\t") or octet == "\x7f" for _, value in fields for octet in value):
        raise Refused("400 Bad Request")
    return fields


def _length(fields: list[tuple[str, str]], version: tuple[int, int]) -> int | None:
    codings = [value for name, value in fields if name == "transfer-encoding"]
    chunked = bool(codings) and version >= (1, 1)  # HTTP/1.0 has no transfer codings: ignored there
    if chunked and [coding.lower() for coding in codings] != ["chunked"]:
        raise Refused("501 Not Implemented", "Unsupported transfer encoding")
    lengths = {value for name, value in fields if name == "content-length"}
    if len(lengths) > 1:
        raise Refused("400 Bad Request")
    if chunked:
        return None
    for length in lengths:
        if not (length.isascii() and length.isdigit()) or int(length) >= 1 << 63:
            raise Refused("400 Bad Request")
        return int(length)
    return 0
