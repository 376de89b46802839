"""The network interfaces of this machine and their addresses, as `ifconfig` (macOS) or `ip` (Linux) list them."""

from __future__ import annotations

import re
import socket
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from proxy.tailnet.localapi import run

if TYPE_CHECKING:
    from proxy.tailnet.localapi import Places

_HEADER = re.compile(r"(\S+): flags=[0-9a-fA-F]+<([A-Z0-9_,]*)>")
_INET = re.compile(r"\s+inet ([0-9.]+)(?: --> [0-9.]+)?(?:/([0-9]+)| netmask (0x[0-9a-f]{8}))")
_INET6 = re.compile(r"\s+inet6 ([0-9a-f:.]+)(?:%\S+)?(?: --> \S+)? prefixlen ([0-9]+)")


class Interface(NamedTuple):
    """An interface and its addresses, each with the prefix length of its network."""

    name: str
    point_to_point: bool
    addresses: tuple[IPv4Interface | IPv6Interface, ...]


async def interfaces(places: Places) -> tuple[Interface, ...]:
    """Return the interfaces of this machine; none if they can't be listed."""
    name, arguments = ("ifconfig", ()) if places.platform == "darwin" else ("ip", ("-j", "addr", "show"))
    program = places.program(name)
    if program is None:
        return ()
    try:
        listed = (await run(program, *arguments)).out
    except OSError:
        return ()
    return of_ifconfig(listed.decode("utf-8", "replace")) if name == "ifconfig" else of_ip(listed)


def is_held(address: str) -> bool:
    """Return whether this machine has an address now. Asks the kernel, and sends nothing.

    Linux lets programs bind any address where `ip_nonlocal_bind` is set. There the kernel can't be asked, and every
    address counts as another machine's.
    """
    nobodys = "2001:db8::1" if ":" in address else "192.0.2.1"  # RFC 3849, 5737
    return _binds(address) and not _binds(nobodys)


def _binds(address: str) -> bool:
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as tried:
            tried.bind((address, 0))
    except OSError:
        return False
    return True


def of_ifconfig(text: str) -> tuple[Interface, ...]:
    """Return what macOS's `ifconfig` lists: a header without indent, then indented lines, netmasks in hexadecimal."""
    found: list[Interface] = []
    addresses: list[IPv4Interface | IPv6Interface] = []
    for line in text.splitlines():
        if header := _HEADER.match(line):
            addresses = []
            found.append(Interface(header[1], "POINTOPOINT" in header[2].split(","), ()))
        elif found and (match := _INET.match(line)):
            length = match[2] or f"{int(match[3], 16).bit_count()}"
            addresses += _address(match[1], length)
        elif found and (match := _INET6.match(line)):
            addresses += _address(match[1], match[2])
        if found:
            found[-1] = found[-1]._replace(addresses=tuple(addresses))
    return tuple(found)


def of_ip(octets: bytes) -> tuple[Interface, ...]:
    """Return what `ip -j addr show` lists."""
    try:
        listed: Any = orjson.loads(octets)
    except ValueError:
        return ()
    return tuple(_of_ip(entry) for entry in listed if isinstance(entry, dict)) if isinstance(listed, list) else ()


def _of_ip(entry: dict[str, Any]) -> Interface:
    flags, held = entry.get("flags"), entry.get("addr_info")
    addresses: list[IPv4Interface | IPv6Interface] = []
    for each in held if isinstance(held, list) else ():
        if isinstance(each, dict):
            addresses += _address(str(each.get("local")), str(each.get("prefixlen")))
    return Interface(str(entry.get("ifname")), isinstance(flags, list) and "POINTOPOINT" in flags, tuple(addresses))


def _address(address: str, length: str) -> list[IPv4Interface | IPv6Interface]:
    try:
        return [ip_interface(f"{address}/{length}")]
    except ValueError:
        return []
