"""The keys of an access rule, and which askers an entry of `who` names. Pure.

The form of an entry alone decides what it names. The user of a device chooses its name, so that name must not be able
to pass for anything else: `self`, `*`, `tag:agents` and `alice@example.com` never mean a device.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from proxy.policy.gate import open_rows
from proxy.policy.peers import TAILNET, as_address
from proxy.reading.names import ModelNameError, ModelPattern

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from proxy.policy.identity import Asker
    from proxy.policy.peers import Network

Value = TypeVar("Value")

MOST_ACTIVE = 1024
"""The largest `max_active`."""

FORMS = (
    "a login (`alice@example.com`), a tag (`tag:agents`), the name of a device (`kids-ipad`), `node:STABLEID`, an "
    "address or network, `self` or `*`"
)

_LOGIN = re.compile(r"[^\s@*,]{1,150}@[^\s@*,]{1,100}").fullmatch
_TAG = re.compile(r"tag:[a-z0-9_-]{1,100}").fullmatch
_NODE = re.compile(r"[A-Za-z0-9_-]{1,100}").fullmatch
_DEVICE = re.compile(r"[a-z0-9_-]{1,63}").fullmatch
_HOST = re.compile(r"([a-z0-9_-]*[a-z][a-z0-9_-]*)\.[a-z0-9_.-]+").fullmatch
_LOOPBACK: tuple[Network, ...] = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))


class RuleSpec(NamedTuple):
    """A rule as the owner wrote it, free of mistakes."""

    who: tuple[str, ...]
    models: tuple[str, ...]
    also: tuple[str, ...] = ()  # names of opt-in rows
    max_active: int | None = None


# --- the entries of `who` ---------------------------------------------------------------------------------------------


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
        """Return the meaning of an entry; a ValueError says how to write it instead."""
        text = folded(written.strip())
        if text == "*":
            return cls(Kind.EVERYONE, text)
        if text == "self":
            return cls(Kind.SELF, text)
        if text.startswith("node:"):
            identity = written.strip()[len("node:") :]
            if not _NODE(identity):
                raise ValueError("write `node:` and the StableID of a device, as in `node:nABC123CNTRL`")
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
        raise ValueError(_advice(text) or f"write {FORMS}")

    def names(self, asker: Asker) -> bool | None:
        """Return whether it names `asker`; None if only Tailscale could say, and hasn't said.

        A device with tags belongs to them, and no longer to its user. The name and the tags of a device from another
        tailnet are chosen by strangers, so they count for nothing here. Its owner's login counts.
        """
        if self.kind is Kind.EVERYONE:
            return True
        if self.kind is Kind.SELF:
            return asker.standing.is_self
        if self.network is not None:
            return self._has_address(asker, self.network)
        who = asker.standing.who
        if who is None:
            return None if asker.standing.unknown else False
        if self.kind is Kind.NODE:
            return None if who.node is None else who.node == self.text
        if self.kind is Kind.LOGIN:
            tagged = bool(who.tags) or (who.login is None and who.user is not None)  # here, or in its own tailnet
            return False if tagged else _same(who.login, self.text)
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
        if asker.standing.who is not None:
            others = map(as_address, asker.standing.who.addresses)
            return any(other in network for other in others if other is not None)
        other_family = address.version != network.version and any(
            network.overlaps(tailnet) for tailnet in TAILNET if tailnet.version == network.version
        )
        return None if other_family and asker.standing.unknown else False

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
    """Return what to write instead of a common mistake; empty if it is none of these."""
    if text.startswith(("group:", "autogroup:")):
        return "groups exist only in Tailscale's policy, whose grants can name one (see `capability`)"
    if "*" in text:
        return "`*` stands alone, for everyone"
    if text.startswith("tag:"):
        return "write a tag as in `tag:agents`, without blanks"
    if _network(text.partition("/")[0]) is not None:
        return "the address of a network ends in zeros, as in 192.168.7.0/24"
    if len(text.split()) > 1 and "@" not in text:
        return "a device's name has no blanks; `tailscale status` shows it"
    host = _HOST(text)
    return "" if host is None else f"a device's name is its first label, `{host[1]}`"


# --- the keys: each takes a value of any kind; a ValueError is the end of a sentence that begins with the key ---------


def read_who(given: object) -> tuple[str, ...]:
    """Return the entries of `who`."""
    return _read(given, Entry.read) or _nothing(f"names nobody: write {FORMS}")


def read_models(given: object) -> tuple[str, ...]:
    """Return the patterns of `models`."""
    return _read(given, _pattern) or _nothing('names no model: write ["*"] to allow every model')


def read_also(given: object) -> tuple[str, ...]:
    """Return the names of the opt-in rows that `also` opens."""
    return tuple(row.name for row in open_rows(_texts(given), "also") if row.opt_in)


def read_max_active(given: object) -> int:
    """Return the number in `max_active`."""
    if type(given) is not int or not 1 <= given <= MOST_ACTIVE:
        raise ValueError(f"is not a whole number from 1 to {MOST_ACTIVE}; leave it out for no limit")
    return given


def read_grants(values: Iterable[object], *, may_open_rows: bool) -> tuple[RuleSpec | None, tuple[str, ...]]:
    """Return the rule that the values of one capability add up to, and what is wrong with those that count as nothing.

    The limits of several values don't add up: the largest holds. There is no rule without a model.
    """
    models: dict[str, None] = {}
    also: dict[str, None] = {}
    limits, faults = [], []
    for value in values:
        try:
            found = _grant(value)
        except ValueError as error:
            faults.append(str(error))
        else:
            models.update(dict.fromkeys(found.models))
            also.update(dict.fromkeys(found.also))
            limits += [] if found.max_active is None else [found.max_active]
    if also and not may_open_rows:
        faults.append(f"`also` opens {', '.join(also)} only with `capability_may_open_rows = true`")
        also.clear()
    if not models:
        return None, tuple(faults)
    return RuleSpec((), tuple(models), tuple(also), max(limits, default=None)), tuple(faults)


class _Grant(NamedTuple):
    """One value of a capability."""

    models: tuple[str, ...]
    also: tuple[str, ...]
    max_active: int | None


def _grant(value: object) -> _Grant:
    """Return one value of a capability. A value with a mistake counts as nothing, because the mistake may be a limit.

    Other keys are left alone: the owner may use them for something else.
    """
    if not isinstance(value, dict):
        raise ValueError("the value is not an object with `models`")
    return _Grant(
        _value(value, "models", read_models, ()),
        _value(value, "also", read_also, ()),
        _value(value, "max_active", read_max_active, None),
    )


def _value(given: dict[str, object], key: str, read: Callable[[object], Value], missing: Value) -> Value:
    """Return the value of a key; a ValueError names the key."""
    try:
        return read(given[key]) if key in given else missing
    except ValueError as error:
        raise ValueError(f"`{key}` {error}") from None


def _texts(given: object) -> tuple[str, ...]:
    if isinstance(given, str):
        raise ValueError(f"is not a list; write {json.dumps([each.strip() for each in given.split(',')])}")
    if not isinstance(given, list | tuple) or not all(isinstance(each, str) for each in given):
        raise ValueError("is not a list of strings")
    return tuple(dict.fromkeys(each.strip() for each in given))


def _read(given: object, read: Callable[[str], object]) -> tuple[str, ...]:
    """Return the texts of a list, each of which `read` understands; a ValueError names every wrong one."""
    texts = _texts(given)
    faults: dict[str, list[str]] = {}  # what to write instead, of which texts
    for text in texts:
        try:
            read(text)
        except ValueError as error:
            faults.setdefault(str(error), []).append(f"`{text}`")
    if faults:
        found = (f"{', '.join(those)} can't be read: {instead}" for instead, those in faults.items())
        raise ValueError("; ".join(found))
    return texts


def _pattern(text: str) -> ModelPattern:
    try:
        return ModelPattern(text)
    except ModelNameError:
        raise ValueError("write a model's name, in which `*` may stand for any characters") from None


def _nothing(message: str) -> tuple[str, ...]:
    raise ValueError(message)
