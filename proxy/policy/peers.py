"""Which peers are served: on Tailscale's address, only devices of the tailnet and `allowed_peers`. Pure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Network = IPv4Network | IPv6Network

TAILNET: tuple[Network, ...] = (IPv4Network("100.64.0.0/10"), IPv6Network("fd7a:115c:a1e0::/48"))
"""The addresses that Tailscale gives to devices."""


def as_address(text: str) -> IPv4Address | IPv6Address | None:
    """Return `text` as an IP address, or None; an IPv4 address that is wrapped in IPv6 becomes IPv4."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def peer_allowed(peer: str, local: str, allowed: tuple[Network, ...]) -> bool:
    """Return whether a connection from `peer` to our address `local` is served; `allowed` is `allowed_peers`.

    On a Tailscale address only devices of the tailnet, which include this machine, and `allowed_peers` are served.
    Linux accepts packets for any of its addresses on any interface, so a neighbour on the LAN can reach a Tailscale
    address. A Mac that forwards packets (Internet Sharing, a subnet router) does the same. Other Macs drop such
    packets (xnu `bsd/netinet/ip_input.c`, ip_checkinterface). A text that isn't an address is never served.
    """
    there = as_address(peer)
    in_tailnet = there is not None and any(there in network for network in TAILNET)
    return (in_tailnet and as_address(local) is not None) or vouched(peer, local, allowed)


def vouched(peer: str, local: str, allowed: tuple[Network, ...]) -> bool:
    """Return whether a peer is served even if Tailscale doesn't know it: listed, or not on a Tailscale address."""
    here, there = as_address(local), as_address(peer)
    if here is None or there is None:
        return False
    return not any(here in network for network in TAILNET) or any(there in network for network in allowed)
