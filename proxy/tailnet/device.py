"""A device of the tailnet: which addresses it can have, and what an answer to whois says about it. Pure."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from proxy.policy.peers import TAILNET
from proxy.tailnet.fields import TEXT_LIMIT, name, table, text, texts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TAGS_LIMIT = 64
"""Tags of one device. An answer with more isn't used, because a rule could name one that was left out."""

ADDRESSES_LIMIT = 8
"""Addresses of one device that are read; a device has two."""

CAPABILITY_LIMIT = 16 * 2**10
"""Bytes of JSON that the values of the capability may take together. An answer with more isn't used."""

# In the ranges, but not devices: an address that Tailscale leaves to ChromeOS, and the resolver's addresses.
_NOT_ASSIGNED = IPv4Network("100.115.92.0/23")
_RESOLVERS = {IPv4Address("100.100.100.100"), IPv6Address("fd7a:115c:a1e0::53")}

_NO_CAPABILITY: Mapping[str, tuple[object, ...]] = MappingProxyType({})


class Who(NamedTuple):
    """Who a peer is; see `policy.identity.Identity`."""

    device: str | None
    user: str | None
    addresses: tuple[str, ...] = ()  # all of the device's
    login: str | None = None
    tags: tuple[str, ...] = ()
    node: str | None = None
    shared: bool = False
    capabilities: Mapping[str, tuple[object, ...]] = _NO_CAPABILITY


@lru_cache(maxsize=512)  # asked once per request; 60 ns instead of about 3 µs
def is_device(address: str) -> bool:
    """Return whether `address` is one that a device in a tailnet may have."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in TAILNET) and parsed not in _NOT_ASSIGNED and parsed not in _RESOLVERS


def of_whois(document: object, capability: str | None = None) -> Who | None:
    """Return the peer in an answer to whois, with the values of one app capability. Never raises.

    None if the answer names no peer, or has more tags or values than are read.
    """
    answer = table(document)
    node = table(answer.get("Node"))
    tags, capabilities = texts(node.get("Tags")), _capabilities(answer.get("CapMap"), capability)
    login = None if tags else text(table(answer.get("UserProfile")).get("LoginName"))  # which may be "tagged-devices"
    full = name(node.get("Name"))
    device = name(node.get("ComputedName")) or (full and full.partition(".")[0])
    user = ",".join(tags)[:TEXT_LIMIT] or login
    overlong = len(tags) > TAGS_LIMIT or any(len(tag) > TEXT_LIMIT for tag in tags)
    if capabilities is None or overlong or not (device or user):
        return None
    return Who(
        device,
        user,
        tuple(address.partition("/")[0] for address in texts(node.get("Addresses"))[:ADDRESSES_LIMIT]),
        login,
        tuple(tags),
        text(node.get("StableID")),
        _is_shared(node),
        capabilities,
    )


def of_neighbours(document: object) -> tuple[Who, ...]:
    """Return the devices in a status with peers, this machine first. Never raises.

    A device of another tailnet has its whole name there (public source: tailscale `ipn/ipnstate/ipnstate.go`,
    PeerStatus). Values of capabilities are only in an answer to whois.
    """
    status = table(document)
    users, suffix = table(status.get("User")), text(status.get("MagicDNSSuffix")) or ""
    found = []
    for node in map(table, (status.get("Self"), *table(status.get("Peer")).values())):
        full, tags = name(node.get("DNSName")) or "", texts(node.get("Tags"))
        label, _, rest = full.partition(".")
        shared = bool(node.get("ShareeNode")) or rest != suffix
        login = None if tags else text(table(users.get(str(node.get("UserID")))).get("LoginName"))
        found.append(
            Who(
                full if shared else label,
                ",".join(tags)[:TEXT_LIMIT] or login,
                tuple(texts(node.get("TailscaleIPs"))[:ADDRESSES_LIMIT]),
                login,
                () if shared else tuple(tags),
                text(node.get("ID")),
                shared,
            )
        )
    return tuple(who for who in found if who.device and who.addresses)


def names_of(devices: Sequence[Who]) -> tuple[str, ...]:
    """Return what a rule can call these devices: logins, tags, and the names that count in this tailnet."""
    own = (None if who.shared or who.device is None else who.device.lower() for who in devices)
    every = (name for who, device in zip(devices, own, strict=True) for name in (*who.tags, who.login, device))
    return tuple(dict.fromkeys(filter(None, every)))


def _is_shared(node: dict[str, Any]) -> bool:
    """Return whether a device belongs to another tailnet, whose users gave it its name and tags.

    If this machine is shared with a user of another tailnet, that user's devices carry `ShareeNode`. They have no
    `Name`, because their tailnet isn't exposed, and `ComputedName` is the host name that the device reports itself. A
    device that is shared into this tailnet carries `Sharer`, and its `ComputedName` is its whole name. (Public
    sources: tailscale `tailcfg/tailcfg.go`, Hostinfo.ShareeNode, Node.Sharer and Node.InitDisplayNames;
    `cmd/nginx-auth/nginx-auth.go`; tailscale#4880.)
    """
    return bool(
        table(node.get("Hostinfo")).get("ShareeNode")
        or node.get("Sharer")
        or name(node.get("Name")) is None
        or "." in (name(node.get("ComputedName")) or "")
    )


def _capabilities(capmap: object, capability: str | None) -> Mapping[str, tuple[object, ...]] | None:
    """Return the values of `capability`; empty if no grant gives it, None if there are too many.

    A grant without values has null in place of a list (public source: tailscale `tailcfg/tailcfg.go`, PeerCapMap).
    """
    granted = table(capmap)
    if capability is None or capability not in granted:
        return _NO_CAPABILITY
    values = granted[capability]
    if values is not None and not isinstance(values, list):
        return _NO_CAPABILITY
    try:
        if len(orjson.dumps(values)) > CAPABILITY_LIMIT:
            return None
    except orjson.JSONEncodeError:  # nested too deeply
        return None
    return MappingProxyType({capability: tuple(values or ())})
