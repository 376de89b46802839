"""Check that a client can't reach Ollama's own port on the server."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING

from proxy.manage.verify.asking.session import Left, Question, Unmet
from proxy.manage.verify.asking.silence import NoAnswer
from proxy.manage.verify.questions.connection import PROXIED
from proxy.manage.verify.questions.refused import ALLOWLIST, OTHER_NAME, refused

if TYPE_CHECKING:
    from proxy.manage.verify.asking.asking import Asker
    from proxy.manage.verify.asking.session import Session

NETWORK = "Network"

OLLAMA_PORT = 11434
"""Where Ollama listens by default."""

DROPPED = 5.0
"""Seconds after which a connection that is neither accepted nor refused counts as dropped."""


def own_port(session: Session) -> str:
    """Ollama's own port accepts no connection from here, so that the proxy is the only way to it."""
    if session.asker.port == OLLAMA_PORT:
        return f"port {OLLAMA_PORT} there is the proxy itself"
    if _is_here(session.asker.host):
        raise Left(f"{session.asker.host} is this machine, where Ollama can be reached")
    if session.asker.takes(OLLAMA_PORT, DROPPED):
        if _is_proxy(session.asker.at(OLLAMA_PORT)):
            return f"port {OLLAMA_PORT} of {session.asker.host} is the proxy itself: it refuses a pull"
        detail = f"port {OLLAMA_PORT} of {session.asker.host} accepts connections from here, past the proxy"
        raise Unmet(detail, f"on the Mac: sudo lsof -nP -iTCP:{OLLAMA_PORT} -sTCP:LISTEN, and unset OLLAMA_HOST")
    return f"port {OLLAMA_PORT} of {session.asker.host} accepts no connection from here"


def _is_proxy(asker: Asker) -> bool:
    """Return whether a proxy takes the connections: it refuses a pull, or the name, and returns the request's id."""
    try:
        answer = asker.ask("POST", "/api/pull", {"model": ""})
    except NoAnswer:
        return False
    return refused(answer, 403, ALLOWLIST) or refused(answer, 403, OTHER_NAME)


def _is_here(host: str) -> bool:
    """Return whether a name or address is this machine by loopback."""
    try:
        found = [ipaddress.ip_address(each[4][0].partition("%")[0]) for each in socket.getaddrinfo(host, None)]  # type: ignore[union-attr]
    except (OSError, ValueError):
        return False
    return any(address.is_loopback for address in found)


REACH_QUESTIONS = (Question(NETWORK, "Ollama's own port", own_port, PROXIED),)
