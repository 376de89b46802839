"""What Tailscale reports: this machine's own addresses, why it has none, and who a peer is.

    tailscale = Tailscale()
    tailnet = await tailscale.look()
    tailnet.addresses  # ("100.101.102.103", "fd7a:115c:a1e0::1"), or () and `tailnet.problem` says why

The functions that read an answer are pure, and accept any JSON: fields that are missing, null or of another kind count
as not reported. Only addresses in the ranges that Tailscale assigns are returned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from proxy.policy.gate import host_fault
from proxy.policy.peers import TAILNET
from proxy.settings.addresses import joined
from proxy.settings.kinds import printable
from proxy.tailnet.interfaces import interfaces, is_held
from proxy.tailnet.localapi import Daemon, Places, SilentError
from proxy.tailnet.serve_rules import of_serve

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from proxy.tailnet.interfaces import Interface
    from proxy.tailnet.serve_rules import Ports, Serving

UNKNOWN = "unknown"
RUNNING = "Running"

TEXT_LIMIT = 256
"""Characters of a name that are kept; a name in DNS has at most 253."""

# In the ranges, but not devices: an address that Tailscale leaves to ChromeOS, and the resolver's addresses.
_NOT_ASSIGNED = IPv4Network("100.115.92.0/23")
_ASSIGNED6 = TAILNET[1]
_RESOLVERS = {IPv4Address("100.100.100.100"), IPv6Address("fd7a:115c:a1e0::53")}

TOOL_AGE = 30.0
"""Seconds for which the command's answer is used if the LocalAPI can't be read.

A run of the Mac app's binary takes about 100 ms of CPU.
"""

TOOL_AGE_DOWN = 10.0
"""The same while Tailscale isn't up, and the proxy can't be reached."""

_STATES = {
    "NoState": ("Tailscale is starting", "tailscale status"),
    "Starting": ("Tailscale is starting", "tailscale status"),
    "NeedsLogin": ("Tailscale is not logged in", "tailscale up"),
    "Stopped": ("Tailscale is stopped", "tailscale up"),
    "NeedsMachineAuth": (
        "this machine must be approved in its tailnet",
        "approve it at https://login.tailscale.com/admin/machines",
    ),
    "InUseOtherUser": ("Tailscale is in use by another user of this machine", "log out of Tailscale as that user"),
}
"""Each state of Tailscale's backend except Running -> what is wrong, and what to do."""

_SAYS_LITTLE = frozenset({"NoState", "Starting"})  # states whose cause only `Health` gives

_USERSPACE = (
    "Tailscale runs in userspace networking: it passes every connection to 127.0.0.1, past this proxy, straight to"
    " Ollama, with all of its API"
)
_USERSPACE_HINT = "restart tailscaled as root, without --tun=userspace-networking; on a Mac, use the Tailscale app"


@dataclass(frozen=True, slots=True)
class Tailnet:
    """What is known about this machine in its tailnet. There are addresses, or there is a problem; never both."""

    state: str  # BackendState, or UNKNOWN
    addresses: tuple[str, ...] = ()  # to listen on, IPv4 first
    tun: bool | None = None  # False: userspace networking
    name: str | None = None  # its full name in the tailnet: mac.tail1234.ts.net
    magic_dns: bool | None = None  # False: no device resolves that name
    source: str = "none"  # "localapi", "cli", "interface", or "none" answered
    problem: str | None = None
    hint: str = ""  # what to do about it
    health: tuple[str, ...] = ()  # what Tailscale itself finds wrong, in its words
    key_expiry: datetime | None = None  # when this machine has to log in again; None: never, or not reported
    assigned: tuple[str, ...] = ()  # the same addresses, but whether or not there is a problem
    silence: str | None = None  # why Tailscale didn't answer, where its interface had to

    @property
    def known_as(self) -> str | None:
        """The name by which other devices can call this machine: MagicDNS resolves it, and the proxy allows it."""
        return self.name if self.name and self.magic_dns is not False and host_fault(self.name) is None else None


class Who(NamedTuple):
    """Who a peer is: its device's name, and its user or, joined by commas, its tags."""

    device: str | None
    user: str | None
    addresses: tuple[str, ...] = ()  # all of the device's


class Tailscale:
    """Tailscale on this machine. Every method may be called at any time, and only `who` raises."""

    def __init__(self, places: Places | None = None, clock: Callable[[], float] = monotonic) -> None:
        self._daemon = Daemon(places, clock)
        self._own: tuple[str, ...] = ()  # addresses that Tailscale itself reported last
        self._held: tuple[str, ...] = ()  # those that this machine had then
        self._up = False  # whether it could be reached there

    def __repr__(self) -> str:
        """Show how it was last reached."""
        return f"<Tailscale {self._daemon}>"

    def hint(self, advice: str) -> str:
        """Return `advice` in a form that works on this machine, where `tailscale` may be no command."""
        return self._daemon.places.hint(advice)

    async def look(self) -> Tailnet:
        """Return Tailscale's report about this machine, or, if it doesn't answer, what the interfaces show."""
        try:
            words = ("status", "--json", "--peers=false")
            reply = await self._daemon.ask("status?peers=false", *words, at_most=self._patience())
            tailnet = of_status(reply.document, reply.source)
            if tailnet.state != UNKNOWN:
                self._up, self._own = bool(tailnet.addresses), tailnet.assigned or self._own
                self._held = tuple(filter(is_held, self._own))
                return replace(tailnet, hint=self.hint(tailnet.hint))
            silence, hint = "Tailscale's status can't be understood", "tailscale status --json"
        except SilentError as error:
            silence, hint = f"Tailscale does not answer: {error}", error.hint
        shown = of_interfaces(await self.interfaces(), self._own)
        if shown is None:
            return Tailnet(UNKNOWN, problem=silence, hint=self.hint(hint))
        return replace(shown, silence=silence, hint=shown.hint or self.hint(hint))

    def _patience(self) -> float:
        """Return how many seconds old the tool's answer may be: it is useless once an address has come or gone."""
        if tuple(filter(is_held, self._own)) != self._held:
            return 0.0
        return TOOL_AGE if self._up else TOOL_AGE_DOWN

    async def interfaces(self) -> tuple[Interface, ...]:
        """Return the interfaces of this machine, Tailscale's or not; none if they can't be listed."""
        return await interfaces(self._daemon.places)

    async def serving(self, ports: Ports, at_most: float | None = None) -> Serving | None:
        """Return what the rules of serve and funnel mean for `ports`; None if they can't be read.

        An answer of the command-line tool may be `at_most` so many seconds old.
        """
        try:
            reply = await self._daemon.ask("serve-config", "serve", "status", "--json", at_most=at_most)
        except SilentError:
            return None
        found = of_serve(reply.document, ports)
        return found._replace(rules=tuple(rule._replace(hint=self.hint(rule.hint)) for rule in found.rules))

    async def shields_up(self) -> bool | None:
        """Return whether this machine accepts no connections from its tailnet; None if that can't be read."""
        try:
            reply = await self._daemon.ask("prefs", "debug", "prefs")
        except SilentError:
            return None
        shields_up = _table(reply.document).get("ShieldsUp")
        return shields_up if isinstance(shields_up, bool) else None

    async def who(self, ip: str, port: int) -> Who | None:
        """Return who has the address; None if Tailscale knows nobody there; raise SilentError if it doesn't answer.

        An answer without any name isn't one that knows nobody.
        """
        address = joined(ip, port)
        target = f"whois?addr={quote(address, safe='')}"
        reply = await self._daemon.ask(target, "whois", "--json", address)
        return of_whois(reply.document) or Who(None, None) if reply.found else None


# --- addresses --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=512)  # asked once per request; 60 ns instead of about 3 µs
def is_device(text: str) -> bool:
    """Return whether `text` is an address that a device in a tailnet may have."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    return any(address in network for network in TAILNET) and address not in _NOT_ASSIGNED and address not in _RESOLVERS


def of_status(document: object, source: str) -> Tailnet:
    """Return what a status reports; its state is UNKNOWN if it isn't one. Never raises."""
    status, itself = _table(document), _table(_table(document).get("Self"))
    state = _text(status.get("BackendState")) or UNKNOWN
    tun = status["TUN"] if isinstance(status.get("TUN"), bool) else None
    listed = _texts(status.get("TailscaleIPs")) or _texts(itself.get("TailscaleIPs"))
    addresses = tuple(sorted(dict.fromkeys(filter(is_device, listed)), key=lambda address: ":" in address))
    magic_dns = _table(status.get("CurrentTailnet")).get("MagicDNSEnabled")
    health = tuple(printable(text[:TEXT_LIMIT]) for text in _texts(status.get("Health")))
    problem, hint = None, ""
    if tun is False:
        problem, hint = _USERSPACE, _USERSPACE_HINT
    elif state != RUNNING:
        problem, hint = _down(state, status, health)
    elif not addresses:
        problem, hint = "Tailscale has given this machine no address", "tailscale ip"
        if listed:
            problem = f"not in the ranges of Tailscale: {printable(', '.join(listed))[:TEXT_LIMIT]}"
    return Tailnet(
        state=state,
        addresses=() if problem else addresses,
        assigned=addresses,
        tun=tun,
        name=_name(itself.get("DNSName")),
        magic_dns=magic_dns if isinstance(magic_dns, bool) else None,
        source=source,
        problem=problem,
        hint=hint,
        health=health,
        key_expiry=_moment(itself.get("KeyExpiry")),
    )


def _down(state: str, status: dict[str, Any], health: tuple[str, ...]) -> tuple[str, str]:
    """Return why Tailscale isn't up, with the cause it gives, and what to do."""
    problem, hint = _STATES.get(state, (f"Tailscale's state is {printable(state)}", "tailscale status"))
    if state == "NeedsLogin" and _table(status.get("Self")).get("Expired") is True:
        problem = "this machine's key in its tailnet has expired, so it must log in again"
    page = _text(status.get("AuthURL"))
    if page is not None and page.startswith(("https://", "http://")):
        hint = f"log in at {printable(page)}"
    if state in _SAYS_LITTLE and health:
        problem += f": {health[0]}"
    return problem, hint


def of_interfaces(listed: Iterable[Interface], own: Collection[str] = ()) -> Tailnet | None:
    """Return what the interfaces show if nobody can be asked; None if none of them is surely Tailscale's.

    Carriers and other VPNs use 100.64.0.0/10 too: Cloudflare WARP gives its utun one such address. An interface is
    Tailscale's if it is point-to-point and has Tailscale's name on Linux, or an address of the IPv6 network that only
    Tailscale assigns, or one of `own`, the addresses that Tailscale itself reported before.
    """
    held: dict[str, list[str]] = {}
    for interface in listed:
        texts = [
            str(address.ip)
            for address in interface.addresses
            if is_device(str(address.ip)) and (address.version == 6 or address.network.prefixlen == 32)
        ]
        tailscales = interface.name.startswith("tailscale") or (
            interface.name.startswith("utun") and any(text in own or ip_address(text) in _ASSIGNED6 for text in texts)
        )
        if interface.point_to_point and tailscales and texts:
            held[interface.name] = texts
    addresses = sorted((each for those in held.values() for each in those), key=lambda address: ":" in address)
    if not addresses:
        return None
    if len(held) > 1 or sum(":" not in address for address in addresses) > 1:
        shown = ", ".join(f"{address} ({name})" for name, those in held.items() for address in those)
        return Tailnet(
            UNKNOWN,
            source="interface",
            problem=f"Tailscale does not answer, and more than one address could be its own: {shown}",
            hint=f"name the right one, as in --listen {addresses[0]}",
        )
    return Tailnet(UNKNOWN, tuple(addresses), source="interface")


# --- whois ------------------------------------------------------------------------------------------------------------


def of_whois(document: object) -> Who | None:
    """Return the peer in an answer to whois; None if it has none. Never raises."""
    answer = _table(document)
    node = _table(answer.get("Node"))
    name = _name(node.get("Name"))
    device = _name(node.get("ComputedName")) or (name and name.partition(".")[0])  # a whole name: shared from elsewhere
    tags = ",".join(_texts(node.get("Tags")))[:TEXT_LIMIT]
    user = tags or _text(_table(answer.get("UserProfile")).get("LoginName"))
    addresses = tuple(address.partition("/")[0] for address in _texts(node.get("Addresses")))
    return Who(device, user, addresses) if device or user else None


# --- values of any kind -----------------------------------------------------------------------------------------------


def _table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    """Return a text that isn't empty, cut; orjson has checked that UTF-8 can hold it."""
    return value[:TEXT_LIMIT] if isinstance(value, str) and value else None


def _texts(value: object) -> list[str]:
    return [each for each in value if isinstance(each, str) and each] if isinstance(value, list) else []


def _moment(value: object) -> datetime | None:
    """Return a time of RFC 3339; Go writes the year 1 for none."""
    text = _text(value)
    try:
        found = datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
    if found is None or found.year == 1:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _name(value: object) -> str | None:
    """Return a name without the final dot of a whole one."""
    text = _text(value)
    return text.removesuffix(".") or None if text else None
