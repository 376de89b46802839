"""What Tailscale reports: this machine's own addresses, why it has none, and who a peer is.

    tailscale = Tailscale()
    tailnet = await tailscale.look()
    tailnet.addresses  # ("100.101.102.103", "fd7a:115c:a1e0::1"), or () and `tailnet.problem` says why

The functions that read an answer are pure, and accept any JSON: fields that are missing, null or of another kind count
as not reported. Only addresses in the ranges that Tailscale assigns are returned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_address
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from proxy.policy.gate import host_fault
from proxy.policy.peers import TAILNET
from proxy.settings.addresses import joined
from proxy.settings.kinds import printable
from proxy.tailnet.device import is_device, of_neighbours, of_whois
from proxy.tailnet.fields import TEXT_LIMIT, moment, name, table, text, texts
from proxy.tailnet.interfaces import interfaces, is_held
from proxy.tailnet.localapi import Daemon, Places, SilentError
from proxy.tailnet.serve_rules import of_serve

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from datetime import datetime

    from proxy.tailnet.device import Who
    from proxy.tailnet.interfaces import Interface
    from proxy.tailnet.serve_rules import Ports, Serving

UNKNOWN = "unknown"
RUNNING = "Running"

_ASSIGNED6 = TAILNET[1]

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


class UnreadableError(Exception):
    """Tailscale's answer about a peer can't be used; `str()` says why."""


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
        shields_up = table(reply.document).get("ShieldsUp")
        return shields_up if isinstance(shields_up, bool) else None

    async def who(self, ip: str, port: int, capability: str | None = None) -> Who | None:
        """Return who has the address, with the values of an app capability; None if Tailscale knows nobody there.

        Raises SilentError if Tailscale doesn't answer, UnreadableError if its answer names nobody or says too much.
        """
        address = joined(ip, port)
        target = f"whois?addr={quote(address, safe='')}"
        reply = await self._daemon.ask(target, "whois", "--json", address)
        if not reply.found:
            return None
        who = of_whois(reply.document, capability)
        if who is None:
            raise UnreadableError("it has no name, or too many tags or capability values")
        return who

    async def neighbours(self) -> tuple[Who, ...]:
        """Return this machine and the devices that it knows; none if Tailscale doesn't answer."""
        try:
            return of_neighbours((await self._daemon.ask("status", "status", "--json")).document)
        except SilentError:
            return ()


# --- addresses --------------------------------------------------------------------------------------------------------


def of_status(document: object, source: str) -> Tailnet:
    """Return what a status reports; its state is UNKNOWN if it isn't one. Never raises."""
    status, itself = table(document), table(table(document).get("Self"))
    state = text(status.get("BackendState")) or UNKNOWN
    tun = status["TUN"] if isinstance(status.get("TUN"), bool) else None
    listed = texts(status.get("TailscaleIPs")) or texts(itself.get("TailscaleIPs"))
    addresses = tuple(sorted(dict.fromkeys(filter(is_device, listed)), key=lambda address: ":" in address))
    magic_dns = table(status.get("CurrentTailnet")).get("MagicDNSEnabled")
    health = tuple(printable(each[:TEXT_LIMIT]) for each in texts(status.get("Health")))
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
        name=name(itself.get("DNSName")),
        magic_dns=magic_dns if isinstance(magic_dns, bool) else None,
        source=source,
        problem=problem,
        hint=hint,
        health=health,
        key_expiry=moment(itself.get("KeyExpiry")),
    )


def _down(state: str, status: dict[str, Any], health: tuple[str, ...]) -> tuple[str, str]:
    """Return why Tailscale isn't up, with the cause it gives, and what to do."""
    problem, hint = _STATES.get(state, (f"Tailscale's state is {printable(state)}", "tailscale status"))
    if state == "NeedsLogin" and table(status.get("Self")).get("Expired") is True:
        problem = "this machine's key in its tailnet has expired, so it must log in again"
    page = text(status.get("AuthURL"))
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
        found = [
            str(address.ip)
            for address in interface.addresses
            if is_device(str(address.ip)) and (address.version == 6 or address.network.prefixlen == 32)
        ]
        tailscales = interface.name.startswith("tailscale") or (
            interface.name.startswith("utun") and any(each in own or ip_address(each) in _ASSIGNED6 for each in found)
        )
        if interface.point_to_point and tailscales and found:
            held[interface.name] = found
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
