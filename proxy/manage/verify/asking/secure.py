"""TLS to what stands in front of the proxy, with the certificates that this machine trusts."""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING

from proxy.manage.verify.asking.silence import unsecured

if TYPE_CHECKING:
    import socket

HTTPS_PORT = 443
"""Where `tailscale serve` takes https unless it is given another port."""

HANDSHAKE_TIME = 60.0
"""Seconds that a handshake may take: Tailscale gets a certificate when the first client asks for the name."""

_MACOS_TRUSTS = "/etc/ssl/cert.pem"
"""The authorities that macOS trusts. A Python from python.org has none until Install Certificates.command ran."""


def trusting() -> ssl.SSLContext:
    """Return a context that checks the certificate and the name against what this machine trusts."""
    context = ssl.create_default_context()
    if not (ssl.get_default_verify_paths().cafile or context.get_ca_certs()) and os.path.exists(_MACOS_TRUSTS):
        context.load_verify_locations(_MACOS_TRUSTS)
    return context


def secured(connection: socket.socket, host: str, authority: str, program: str, *, away: bool) -> socket.socket:
    """Return a connection on which TLS is agreed, and close it if there is no agreement. NoAnswer says why."""
    try:
        connection.settimeout(HANDSHAKE_TIME)
        return trusting().wrap_socket(connection, server_hostname=host)
    except (OSError, ValueError) as error:
        connection.close()
        raise unsecured(error, authority, program, HANDSHAKE_TIME, away=away) from error
