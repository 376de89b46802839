"""Which device sent a request that came through `tailscale serve`, to the proxy's port for serve only. Pure.

tailscaled connects from this machine itself. It says who sent a request in one X-Forwarded-For field, which replaces
any that the client sent (public source: tailscale `ipn/ipnlocal/serve.go`, addProxyForwardedHeaders). Tailscale-User-*
is not read, because whois returns the same for the address, and can't be forged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.policy import refusals
from proxy.policy.peers import TAILNET, as_address

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.policy.refusals import Refusal

_PEER = b"x-forwarded-for"
_FUNNEL = b"tailscale-funnel-request"


def peer_of(fields: Iterable[tuple[bytes, bytes]]) -> str | Refusal:
    """Return the address of the device that sent a request, or why it isn't served."""
    values = []
    for name, value in fields:
        lowered = name.lower()
        if lowered == _FUNNEL:
            return refusals.BY_FUNNEL
        if lowered == _PEER:
            values.append(value)
    if len(values) != 1:
        return refusals.NOT_BY_SERVE
    address = as_address(values[0].decode("latin-1"))
    if address is None or getattr(address, "scope_id", None) is not None:  # a zone is any text, and no device's
        return refusals.NOT_BY_SERVE
    if not any(address in network for network in TAILNET):
        return refusals.NOT_BY_SERVE
    return str(address)
