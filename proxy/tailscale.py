"""What Tailscale tells: the own addresses of this machine, what keeps it from having any, and who a peer is.

    tailscale = Tailscale()
    tailnet = await tailscale.look()
    tailnet.addresses  # ("100.101.102.103", "fd7a:115c:a1e0::1"), or () and `tailnet.problem` says why

The functions that read an answer are pure, and take whatever JSON there is: fields that are missing, null or of another
kind count as not told. No address is returned but one of the ranges that Tailscale assigns.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlsplit

from proxy.interfaces import interfaces
from proxy.kinds import printable
from proxy.localapi import Daemon, Places, SilentError
from proxy.peers import TAILNET

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from proxy.interfaces import Interface

UNKNOWN = "unknown"
RUNNING = "Running"

TEXT_LIMIT = 256
"""Characters of a name that are kept; a name in DNS has at most 253."""

# In the ranges, but no device's: one that Tailscale leaves to ChromeOS, and the resolver's addresses.
_NOT_ASSIGNED = IPv4Network("100.115.92.0/23")
_RESOLVERS = {IPv4Address("100.100.100.100"), IPv6Address("fd7a:115c:a1e0::53")}

_STATES = {
    "NoState": ("Tailscale is starting", "tailscale status"),
    "Starting": ("Tailscale is starting", "tailscale status"),
    "NeedsLogin": ("Tailscale is not logged in", "tailscale up"),
    "Stopped": ("Tailscale is stopped", "tailscale up"),
    "NeedsMachineAuth": (
        "this machine waits to be approved in its tailnet",
        "approve it at https://login.tailscale.com/admin/machines",
    ),
    "InUseOtherUser": ("Tailscale is in use by another user of this machine", "log out of Tailscale as that user"),
}
"""State of Tailscale's backend, but for Running -> what is wrong, and what to do."""

_USERSPACE = (
    "Tailscale runs in userspace networking: it hands every connection to 127.0.0.1, past this proxy, straight to"
    " Ollama, with all of its API"
)
_USERSPACE_HINT = "restart tailscaled as root, without --tun=userspace-networking; on a Mac, the Tailscale app will do"


@dataclass(frozen=True, slots=True)
class Tailnet:
    """What can be told of this machine in its tailnet. There are addresses, or there is a problem; never both."""

    state: str  # BackendState, or UNKNOWN
    addresses: tuple[str, ...] = ()  # to listen on, IPv4 first
    tun: bool | None = None  # False: userspace networking
    name: str | None = None  # in MagicDNS: mac.tail1234.ts.net
    user: str | None = None  # whose machine this is
    source: str = "none"  # "localapi", "cli", "interface", or "none" answered
    problem: str | None = None
    hint: str | None = None  # what to do about it


class Who(NamedTuple):
    """Who a peer is: its device's name, and its user or, joined by commas, its tags."""

    device: str | None
    user: str | None


class Rule(NamedTuple):
    """A rule of `tailscale serve` or funnel that leads past the proxy, and the command that removes it."""

    problem: str
    hint: str


class Tailscale:
    """Tailscale on this machine. Every method may be called at any time, and only `who` raises."""

    def __init__(self, places: Places | None = None) -> None:
        self._daemon = Daemon(places)

    def __repr__(self) -> str:
        """Tell how it was last reached."""
        return f"<Tailscale {self._daemon}>"

    async def look(self) -> Tailnet:
        """Return what Tailscale says of this machine, or, where it says nothing, what the interfaces show."""
        try:
            reply = await self._daemon.ask("status?peers=false", "status", "--json", "--peers=false")
            tailnet = of_status(reply.document, reply.source)
            if tailnet.state != UNKNOWN:
                return tailnet
            silent = Tailnet(UNKNOWN, problem="Tailscale's status can't be understood", hint="tailscale status --json")
        except SilentError as error:
            silent = Tailnet(UNKNOWN, problem=f"Tailscale does not answer: {error}", hint=error.hint)
        return of_interfaces(await self.interfaces()) or silent

    async def interfaces(self) -> tuple[Interface, ...]:
        """Return the interfaces of this machine, Tailscale's or not; none when they can't be listed."""
        return await interfaces(self._daemon.places)

    async def rules(self, port: int) -> tuple[Rule, ...] | None:
        """Return the rules of serve and funnel that lead to `port` on loopback; None where they can't be known."""
        try:
            reply = await self._daemon.ask("serve-config", "serve", "status", "--json")
        except SilentError:
            return None
        return of_serve(reply.document, port)

    async def who(self, ip: str, port: int) -> Who | None:
        """Return who has the address; None where Tailscale knows of nobody. SilentError when it doesn't answer."""
        address = f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
        target = f"whois?addr={quote(address, safe='')}"
        return of_whois((await self._daemon.ask(target, "whois", "--json", address)).document)


# --- addresses --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=512)  # asked once per request; 60 ns instead of some 3 µs
def is_device(text: str) -> bool:
    """Return whether `text` is an address that a device in a tailnet may have."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    return any(address in network for network in TAILNET) and address not in _NOT_ASSIGNED and address not in _RESOLVERS


def of_status(document: object, source: str) -> Tailnet:
    """Return what a status tells; its state is UNKNOWN when it is none. Never raises."""
    status, itself = _table(document), _table(_table(document).get("Self"))
    state = _text(status.get("BackendState")) or UNKNOWN
    tun = status["TUN"] if isinstance(status.get("TUN"), bool) else None
    told = _texts(status.get("TailscaleIPs")) or _texts(itself.get("TailscaleIPs"))
    addresses = tuple(sorted(dict.fromkeys(filter(is_device, told)), key=lambda address: ":" in address))
    owner = _table(_table(status.get("User")).get(str(itself.get("UserID"))))
    problem, hint = None, None
    if tun is False:
        problem, hint = _USERSPACE, _USERSPACE_HINT
    elif state != RUNNING:
        problem, hint = _STATES.get(state, (f"Tailscale's state is {printable(state)}", "tailscale status"))
    elif not addresses:
        problem = "Tailscale has given this machine no address"
        if told:
            problem = f"not in the ranges of Tailscale: {printable(', '.join(told))[:TEXT_LIMIT]}"
        hint = "tailscale ip"
    return Tailnet(
        state=state,
        addresses=() if problem else addresses,
        tun=tun,
        name=_name(itself.get("DNSName")),
        user=_text(owner.get("LoginName")),
        source=source,
        problem=problem,
        hint=hint,
    )


def of_interfaces(listed: Iterable[Interface]) -> Tailnet | None:
    """Return what the interfaces show when nobody can be asked; None where none could be Tailscale's.

    Carriers and other VPNs use 100.64.0.0/10 too. Tailscale's interface is point-to-point and holds its address alone
    (/32); where more than one is such, none is taken.
    """
    held: dict[str, list[str]] = {}
    for interface in listed:
        if interface.point_to_point and interface.name.startswith(("utun", "tailscale")):
            for address in interface.addresses:
                if is_device(str(address.ip)) and (address.version == 6 or address.network.prefixlen == 32):
                    held.setdefault(interface.name, []).append(str(address.ip))
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
    """Return who an answer to whois tells of; None when it tells of nobody. Never raises."""
    answer = _table(document)
    node = _table(answer.get("Node"))
    name = _name(node.get("Name"))
    device = _name(node.get("ComputedName")) or (name and name.partition(".")[0])  # a whole name: shared from elsewhere
    tags = ",".join(_texts(node.get("Tags")))[:TEXT_LIMIT]
    user = tags or _text(_table(answer.get("UserProfile")).get("LoginName"))
    return Who(device, user) if device or user else None


# --- serve and funnel -------------------------------------------------------------------------------------------------


def of_serve(document: object, port: int) -> tuple[Rule, ...]:
    """Return the rules of a serve configuration that lead to `port` on loopback. Never raises."""
    whole = _table(document)
    found = [*_rules(whole, port)]
    for service, config in _table(whole.get("Services")).items():
        found += _rules(_table(config), port, service=service)
    for config in _table(whole.get("Foreground")).values():
        found += _rules(_table(config), port, foreground=True)
    return tuple(found)


def _rules(config: dict[str, Any], port: int, service: str = "", foreground: bool = False) -> Iterator[Rule]:
    """Yield those of one configuration: the machine's, a service's, or that of a command that runs in a terminal."""
    handlers = _table(config.get("TCP"))
    open_to_all = {where.rpartition(":")[2] for where, on in _table(config.get("AllowFunnel")).items() if on is True}
    ways = []  # protocol, port, mount point, target
    for served, handler in handlers.items():
        kind = "tls-terminated-tcp" if _table(handler).get("TerminateTLS") else "tcp"
        ways.append((kind, served, "/", _table(handler).get("TCPForward")))
    for where, web in _table(config.get("Web")).items():
        served = where.rpartition(":")[2]
        kind = "http" if _table(handlers.get(served)).get("HTTP") is True else "https"
        for mount, handler in _table(_table(web).get("Handlers")).items():
            ways.append((kind, served, mount, _table(handler).get("Proxy")))
    for kind, served, mount, target in ways:
        if not isinstance(target, str) or not _leads_to(target, port):
            continue
        verb = "funnel" if served in open_to_all else "serve"
        problem = f"`tailscale {verb}` leads from its {kind} port {served} past this proxy to {target}"
        if verb == "funnel":
            problem += ", for everyone on the internet"
        words = ["tailscale", verb, *([f"--service={service}"] if service else []), f"--{kind}={served}"]
        words += [] if mount == "/" else [f"--set-path={mount}"]
        hint = shlex.join([*words, "off"])
        if foreground:
            hint = f"end the `tailscale {verb}` that runs in a terminal with Ctrl-C"
        yield Rule(printable(problem), printable(hint))


def _leads_to(target: str, port: int) -> bool:
    """Return whether `3000`, `localhost:3000`, `http://127.0.0.1:3000/path` and the like are `port` on loopback."""
    if target.isascii() and target.isdigit():
        return int(target[:6]) == port
    try:
        url = urlsplit(target if "://" in target else f"http://{target}")
        host, at = url.hostname or "", url.port or (443 if url.scheme.startswith("https") else 80)
    except ValueError:
        return False
    if at != port:
        return False
    try:
        address = ip_address(host)
    except ValueError:
        return host in {"", "localhost", "localhost."}
    return address.is_loopback or address.is_unspecified  # which connects to loopback


# --- values of any kind -----------------------------------------------------------------------------------------------


def _table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    """Return a text that isn't empty, cut; orjson has seen to it that UTF-8 can hold it."""
    return value[:TEXT_LIMIT] if isinstance(value, str) and value else None


def _texts(value: object) -> list[str]:
    return [each for each in value if isinstance(each, str) and each] if isinstance(value, list) else []


def _name(value: object) -> str | None:
    """Return a name without the final dot of a whole one."""
    text = _text(value)
    return text.removesuffix(".") or None if text else None
