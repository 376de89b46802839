"""How requests get to the proxy: as they are sent, or through `tailscale serve`, which rewrites them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.manage.verify.asking.session import REWRITES, Question
from proxy.manage.verify.questions.connection import CONNECTION, PROXIED

if TYPE_CHECKING:
    from proxy.manage.verify.asking.session import Session

_GO_REFUSES = (b"HTTP/1.1 400 Bad Request", b"\r\n\r\n400 Bad Request")
"""How the answer of Go's HTTP server to a head that it can't read begins, and how it ends."""


def way(session: Session) -> str:
    """Return whether requests arrive unchanged.

    Two signs are needed. The proxy writes `x-request-id`, which Go's reverse proxy turns into `X-Request-Id`. And Go
    answers a head that it can't read itself, without an id. The second alone could be Ollama, which is written in Go:
    a proxy that let such a head through would be broken.
    """
    host = f"Host: {session.asker.authority}"
    answer, _ = session.asker.raw(f"GET /api/pull HTTP/1.1\r\n{host}\r\nConnection: close")
    refusal, _ = session.asker.raw(f"GET /api/version HTTP/1.1\r\n{host}\r\nContent-Length: +5\r\nConnection: close")
    by_go = refusal.startswith(_GO_REFUSES[0]) and refusal.endswith(_GO_REFUSES[1])
    session.rewritten = by_go and b"\r\nX-Request-Id: " in answer.partition(b"\r\n\r\n")[0] + b"\r\n"
    return REWRITES if session.rewritten else "requests arrive unchanged"


WAY_QUESTIONS = (Question(CONNECTION, "the way there", way, PROXIED),)
