"""Decide who gets an answer: the owner's own page, and nobody else's. Pure, except that it reads requests.

Any page in the owner's browser, and any user of this machine, can connect to a port on loopback. The token keeps both
out. The exact Host keeps out a name that a stranger points at loopback (DNS rebinding).
"""

from __future__ import annotations

import hmac
import secrets
from typing import TYPE_CHECKING, NamedTuple

from proxy import PROGRAM

if TYPE_CHECKING:
    from aiohttp import web

TOKEN_FIELD = "X-Dashboard-Token"  # noqa: S105 - its name
"""The field that carries the token. Another origin's page can't send it without a preflight, which gets no consent."""

DATA = "/api/"
"""The beginning of each path that gives data, and needs the token."""

_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}

FIELDS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items())
    + "; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""The fields of every response that tell the browser what it may do."""


class Refused(NamedTuple):
    """The reason why a request gets no answer."""

    status: int
    error: str
    hint: str = ""


def new_token() -> str:
    """Return a token that can't be guessed: 43 characters that need no escaping in a URL."""
    return secrets.token_urlsafe(32)


def policy_of_one_file(scripts: str, styles: str) -> str:
    """Return the policy for a page that is one file: it may use the scripts and styles with these hashes."""
    changed = {"script-src": scripts, "style-src": styles, "img-src": "data:", "connect-src": "'none'"}
    return "; ".join(f"{name} {value}" for name, value in (_POLICY | changed).items())


class Guard:
    """What requests to one dashboard must bring."""

    def __init__(self, token: str, port: int) -> None:
        self._token = token.encode()
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self._origins = {f"http://{host}" for host in self._hosts}

    def refusal(self, request: web.Request) -> Refused | None:
        """Return why a request is refused; None: it may be answered."""
        hosts, origins = (request.headers.getall(name, []) for name in ("Host", "Origin"))
        if len(hosts) != 1 or hosts[0] not in self._hosts:
            return Refused(403, "this address isn't the dashboard's", f"{PROGRAM} dashboard")
        if origins and (len(origins) != 1 or origins[0] not in self._origins):
            return Refused(403, "pages of other origins get nothing here")
        if request.path.startswith(DATA) and not self._is_token(request.headers.getall(TOKEN_FIELD, [])):
            return Refused(401, "the token is missing or wrong", f"open the link that `{PROGRAM} dashboard` printed")
        return None

    def _is_token(self, given: list[str]) -> bool:
        """Compare in a time that says nothing about where the two differ."""
        return len(given) == 1 and hmac.compare_digest(given[0].encode("utf-8", "surrogateescape"), self._token)
