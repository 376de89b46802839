"""Who asks, and which askers an entry of `who` in an access rule names. Pure.

A kind of entry is known by its form alone, so that nobody can take on another's rule by a name: the user of a device
chooses the device's name, and `self`, `*`, `tag:agents` or `alice@example.com` never mean a device.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, Protocol

from proxy.policy.peers import TAILNET, as_address

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.policy.peers import Network

FORMS = (
    "a login (`alice@example.com`), a tag (`tag:agents`), the name of a device (`kids-ipad`), `node:STABLEID`, an "
    "address or network, `self` or `*`"
)

_LOGIN = re.compile(r"[^\s@*,]{1,150}@[^\s@*,]{1,100}").fullmatch
_TAG = re.compile(r"tag:[a-z0-9_-]{1,100}").fullmatch
_NODE = re.compile(r"[A-Za-z0-9_-]{1,100}").fullmatch
_DEVICE = re.compile(r"[a-z0-9_-]{1,63}").fullmatch
_LOOPBACK: tuple[Network, ...] = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))


class Identity(Protocol):
    """A device in the tailnet, as Tailscale describes it."""

    @property
    def device(self) -> str | None:
        """Its name, which its user may have chosen."""

    @property
    def user(self) -> str | None:
        """The device's owner, or its tags: for the log."""

    @property
    def login(self) -> str | None:
        """The owner's login; None if it has tags instead."""

    @property
    def tags(self) -> tuple[str, ...]:
        """Its tags, each with `tag:`."""

    @property
    def node(self) -> str | None:
        """Its StableID, which it keeps when its name or addresses change."""

    @property
    def shared(self) -> bool:
        """Whether it is a device of another tailnet, shared into this one."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """All of its addresses."""

    @property
    def capabilities(self) -> Mapping[str, tuple[object, ...]]:
        """The values that grants give it for the configured capability, by its name."""


@dataclass(frozen=True, slots=True)
class Asker:
    """Who sent a request."""

    address: str
    is_self: bool  # this machine itself
    who: Identity | None = None  # None: Tailscale wasn't asked, or didn't say

    @property
    def may_have_name(self) -> bool:
        """Whether the peer may be a device that Tailscale hasn't identified."""
        address = as_address(self.address)
        return self.who is None and address is not None and any(address in network for network in TAILNET)

    def __str__(self) -> str:
        """Return how the asker is best named in a message."""
        if self.is_self:
            return f"this machine itself ({self.address})"
        if self.who is None:
            return f"the address {self.address}"
        of = f" ({self.who.user})" if self.who.user else ""
        return f"{self.who.device or self.address}{of}"


class Kind(StrEnum):
    """What an entry of `who` names."""

    EVERYONE = "everyone"
    SELF = "this machine"
    LOGIN = "login"
    TAG = "tag"
    DEVICE = "device name"
    NODE = "node"
    ADDRESS = "address"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of `who`. Make it with `read`."""

    kind: Kind
    text: str  # as it is compared
    network: Network | None = None  # of an address

    @classmethod
    def read(cls, written: str) -> Entry:
        """Return the meaning of an entry; a ValueError says what is wrong with it."""
        text = folded(written.strip())
        if text == "*":
            return cls(Kind.EVERYONE, text)
        if text == "self":
            return cls(Kind.SELF, text)
        if text.startswith("node:"):
            identity = written.strip()[len("node:") :]
            if not _NODE(identity):
                raise ValueError(f"`{written}` is not `node:` and the StableID of a device, as in `node:nABC123CNTRL`")
            return cls(Kind.NODE, identity)
        if _TAG(text):
            return cls(Kind.TAG, text)
        network = _network(text)
        if network is not None:
            return cls(Kind.ADDRESS, str(network), network)
        if ":" not in text and _LOGIN(text):
            return cls(Kind.LOGIN, text)
        if _DEVICE(text):
            return cls(Kind.DEVICE, text)
        raise ValueError(f"`{written}` is not {FORMS}{_advice(text)}")

    def names(self, asker: Asker) -> bool | None:
        """Return whether it names `asker`; None if only Tailscale could say, and hasn't said.

        A device with tags belongs to them, and no longer to its user. The name and the tags of a device from another
        tailnet are chosen by strangers, so they count for nothing here. Its owner's login counts.
        """
        if self.kind is Kind.EVERYONE:
            return True
        if self.kind is Kind.SELF:
            return asker.is_self
        if self.network is not None:
            return self._has_address(asker, self.network)
        who = asker.who
        if who is None:
            return None if asker.may_have_name else False
        if self.kind is Kind.NODE:
            return None if who.node is None else who.node == self.text
        if self.kind is Kind.LOGIN:
            return False if who.tags else _same(who.login, self.text)
        if who.shared:
            return False
        if self.kind is Kind.DEVICE:
            return _same(who.device, self.text)
        if who.tags or who.login is not None:
            return self.text in map(folded, who.tags)
        return None

    def _has_address(self, asker: Asker, network: Network) -> bool | None:
        """Return whether one of the device's addresses is in `network`: it may come from any of them."""
        address = as_address(asker.address)
        if address is None:
            return False
        if address in network:
            return True
        if asker.who is not None:
            others = map(as_address, asker.who.addresses)
            return any(other in network for other in others if other is not None)
        other_family = address.version != network.version and any(
            network.overlaps(tailnet) for tailnet in TAILNET if tailnet.version == network.version
        )
        return None if other_family and asker.may_have_name else False

    def covers(self, other: Entry) -> bool:
        """Return whether it names all askers that `other` names."""
        if self.kind is Kind.EVERYONE or (self.kind, self.text) == (other.kind, other.text):
            return True
        if other.network is None:
            return False
        if self.kind is Kind.SELF:
            return any(_within(other.network, loopback) for loopback in _LOOPBACK)
        return self.network is not None and _within(other.network, self.network)


def folded(text: str) -> str:
    """Return a name as it is compared. Only ASCII letters lose their case: others may fold into one of them."""
    return text.lower() if text.isascii() else text


def is_loopback(address: str) -> bool:
    """Return whether an address is one that only this machine itself can connect from."""
    found = as_address(address)
    return found is not None and found.is_loopback


def _same(name: str | None, text: str) -> bool | None:
    return None if name is None else folded(name) == text


def _within(inner: Network, outer: Network) -> bool:
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]


def _network(text: str) -> Network | None:
    """Return an address or network, an IPv4 one that is wrapped in IPv6 as IPv4. None if it isn't one."""
    if "%" in text:  # a zone is any text
        return None
    try:
        network = ip_network(text)
    except ValueError:
        return None
    if isinstance(network, IPv6Network) and network.prefixlen >= 96 and network.network_address.ipv4_mapped:
        return IPv4Network((network.network_address.ipv4_mapped, network.prefixlen - 96))
    return network


def _advice(text: str) -> str:
    """Return what to do about a common mistake, as the end of a sentence."""
    if text.startswith(("group:", "autogroup:")):
        return ": groups exist only in Tailscale's policy, whose grants can name one (see `capability`)"
    if "*" in text:
        return ": `*` stands alone, for everyone"
    if "/" in text:
        return ": the address of a network ends in zeros, as in 192.168.7.0/24"
    if "." in text and "@" not in text:
        return f": a device's name is its first label, `{text.partition('.')[0]}`"
    return ""
