"""Who asks, and how: Host, Origin, the ids of requests, and heads that two parsers could read differently."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.manage.verify.asking.session import Left, Question, expect
from proxy.manage.verify.questions.connection import PROXIED, UNCHANGED
from proxy.manage.verify.questions.refused import expect_refused
from proxy.manage.verify.questions.table import PROXY

if TYPE_CHECKING:
    from proxy.manage.verify.asking.session import Session

_PAGE = "http://localhost:3000"  # Ollama itself allows it by default
_FOREIGN_HOST = "verify.invalid"

_AMBIGUOUS = (
    ("Content-Length and Transfer-Encoding", "Content-Length: 5\r\nTransfer-Encoding: chunked", b"0\r\n\r\n"),
    ("two Content-Lengths", "Content-Length: 0\r\nContent-Length: 5", b"hello"),
    ("an odd Transfer-Encoding", "Transfer-Encoding: xchunked", b"0\r\n\r\n"),
    ("an odd Content-Length", "Content-Length: +5", b"hello"),
    ("a space before a colon", "Content-Length : 5", b"hello"),
    ("a folded line", "X-Verify: a\r\n b", b""),
    ("a bare line feed", "X-Verify: a\nContent-Length: 5", b"hello"),
    ("two Hosts", "Host: localhost", b""),
)
"""Heads that smuggle one request inside another past a careless proxy: what is wrong, its lines, its content."""


def foreign_host(session: Session) -> str:
    """A Host that a rebound DNS name could hide behind is refused."""
    if session.rewritten and not session.asker.secure:
        raise Left("asked through tailscale serve by http, which looks for a rule of that name")
    answer = session.asker.ask("GET", "/api/version", fields={"Host": _FOREIGN_HOST})
    expect_refused(answer, 403, "is not a name of this proxy")
    return f"`Host: {_FOREIGN_HOST}` is refused (403)"


def foreign_origin(session: Session) -> str:
    """A web page that the owner didn't allow is refused, and so is its preflight."""
    origin = session.promised.stranger
    if not origin:
        raise Left("`allowed_origins` contains every origin that could be tried")
    for method, fields in (("GET", {}), ("OPTIONS", {"Access-Control-Request-Method": "GET"})):
        answer = session.asker.ask(method, "/v1/models", fields={"Origin": origin, **fields})
        expect_refused(answer, 403, "may not use this proxy")
        expect("access-control-allow-origin" not in answer.fields, "the page could read the answer anyway")
    return f"`Origin: {origin}` is refused (403), and its preflight"


def preflight(session: Session) -> str:
    """The preflight of an allowed page is answered by the proxy: Ollama's own lacks what Anthropic's clients send."""
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key,anthropic-version"}
    answer = session.asker.ask("OPTIONS", "/v1/messages", fields={"Origin": _PAGE, **asked})
    fields = answer.fields
    expect(answer.status == 204 and answer.echoed, answer.shown)
    expect(fields.get("access-control-allow-origin") == _PAGE, "the page doesn't learn that it is allowed")
    allowed = fields.get("access-control-allow-headers", "")
    expect("x-api-key" in allowed.lower(), f"what it may send is `{allowed}`: that is Ollama's own answer")
    return f"`Origin: {_PAGE}` is allowed, with x-api-key"


def request_ids(session: Session) -> str:
    """A client's own id comes back; an id that isn't a plain token is replaced."""
    answer = session.asker.ask("GET", "/api/version")
    expect(answer.echoed, f"x-request-id is {answer.fields.get('x-request-id')!r} instead of {answer.id!r}")
    strange = session.asker.ask("GET", "/api/version", fields={"X-Request-Id": 'a "strange" one'})
    given = strange.fields.get("x-request-id", "")
    expect(given and " " not in given, f"x-request-id is {given!r}")
    return "the client's own id comes back as x-request-id; an id that isn't a plain token is replaced"


def framing(session: Session) -> str:
    """A head that two parsers could read differently is refused, once, and the connection closed."""
    for what, lines, content in _AMBIGUOUS:
        head = f"GET /api/version HTTP/1.1\r\nHost: {session.asker.authority}\r\n{lines}"
        received, ended = session.asker.raw(head, content)
        status = received[9:12].decode("latin-1", "replace")
        expect(status == "400", f"{what}: answered with {status or 'nothing'} instead of 400")
        expect(received.count(b"HTTP/1.1 ") == 1, f"{what}: read as more than one request")
        expect(ended, f"{what}: refused, but the connection is left open")
    return f"{len(_AMBIGUOUS)} kinds are refused with 400, and the connection is closed"


GUARDS_QUESTIONS = (
    Question(PROXY, "foreign Host", foreign_host, PROXIED),
    Question(PROXY, "foreign Origin", foreign_origin, PROXIED),
    Question(PROXY, "preflight", preflight, PROXIED),
    Question(PROXY, "request ids", request_ids, PROXIED),
    Question(PROXY, "framing", framing, UNCHANGED),
)
