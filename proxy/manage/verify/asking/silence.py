"""Explain why there is no answer: one sentence about what happened, and what to do about it."""

from __future__ import annotations

import http.client
import socket
import ssl

MENU = "the menu of the Tailscale app"
"""Where a Mac shows its tailnet, whether or not the `tailscale` command is on PATH."""

CONNECTED = f"check in {MENU}, or with `tailscale status`, whether both devices are connected"


class NoAnswer(Exception):  # noqa: N818 - what came of asking, not a mistake of ours
    """There is no answer: what happened, and what to do."""

    def __init__(self, detail: str, hint: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint


def unconnected(error: OSError, host: str, authority: str, program: str, *, away: bool) -> NoAnswer:
    """Return what it means that no connection came about; `away` if asked from another machine than the proxy's.

    A firewall drops silently, the resolver reports a wrong name, and a closed port refuses.
    """
    mac = "on the Mac: " if away else ""
    if isinstance(error, socket.gaierror):
        detail = f"the name {host} can't be resolved here: {error.strerror or error}"
        return NoAnswer(detail, f"{MENU}, or `tailscale status`, lists names and addresses: use the address 100.x.y.z")
    if isinstance(error, ConnectionRefusedError):
        detail = f"nothing listens at {authority}: the proxy does not run, or listens elsewhere"
        return NoAnswer(detail, f"{mac}{program} status")
    if isinstance(error, (socket.timeout, TimeoutError)):
        detail = f"{authority} neither accepts nor refuses a connection: a firewall drops it, or the machine is asleep"
        if not away:
            return NoAnswer(detail, f"{program} status")
        firewall = "allow the proxy's Python (System Settings, Network, Firewall)"
        return NoAnswer(detail, f"{CONNECTED}, and try `tailscale ping {host}`; if they are, on the Mac: {firewall}")
    return NoAnswer(f"there is no route to {authority}: {error.strerror or error}", CONNECTED)


def unsecured(error: Exception, authority: str, program: str, patience: float, *, away: bool) -> NoAnswer:
    """Return what it means that a connection was taken, but TLS was not agreed on within `patience` seconds."""
    mac = "on the Mac: " if away else ""
    rules = f"{mac}{program} connect curl prints the https address, and {program} status what is wrong with it"
    if isinstance(error, ssl.SSLCertVerificationError):
        detail = f"the certificate at {authority} is not trusted here: {error.verify_message}"
        return NoAnswer(
            detail, f"use the full name MAC.TAILNET.ts.net, because the certificate is for that name; {rules}"
        )
    if isinstance(error, (socket.timeout, TimeoutError)):
        detail = f"{authority} accepts the connection, but TLS didn't begin within {patience:g} s"
        return NoAnswer(detail, f"Tailscale may still be getting its certificate: try again in a minute; {rules}")
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error or type(error).__name__
    if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
        detail = f"{authority} doesn't speak https: it answers without TLS"
        return NoAnswer(detail, f"use http://, which the proxy's own port needs; for https, {rules}")
    return NoAnswer(f"TLS with {authority} failed: {reason}", rules)


def silent(error: Exception, request: str, program: str, patience: float, *, away: bool, loads: bool) -> NoAnswer:
    """Return what it means that a connection brought no answer to a `request`; `loads` if a model has to give it."""
    mac = "on the Mac: " if away else ""
    if isinstance(error, (socket.timeout, TimeoutError)):
        ready = f"{program} warm MODEL, which loads it in advance"
        return NoAnswer(f"{request}: no answer within {patience:g} s", mac + (ready if loads else f"{program} status"))
    if isinstance(error, (http.client.RemoteDisconnected, ConnectionError, ssl.SSLEOFError)):
        detail = f"{request}: the connection was closed without an answer"
        if away:
            detail += ", as the proxy does to peers outside its tailnet"
        return NoAnswer(detail, f"{CONNECTED}; {mac}{program} status")
    return NoAnswer(f"{request}: the answer isn't HTTP ({type(error).__name__})", f"{mac}{program} status")
