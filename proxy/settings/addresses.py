"""Which addresses the proxy may listen on, and which may be the upstream.

Pure: it looks only at the address, and never asks a resolver, the interfaces or Tailscale.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from proxy.policy.peers import TAILNET
from proxy.settings.kinds import Texts, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_ADDRESSES = "`tailscale`, `localhost` or IP addresses"
_URL = "a URL of the form http://127.0.0.1:11434"

TAILSCALE = "tailscale"  # the one word in `listen` that isn't an address


def parse(text: str) -> Address:
    """Return `text` as an IP address, an IPv4-mapped one as IPv4; raise ValueError if it isn't one."""
    address = ipaddress.ip_address(text[1:-1] if text.startswith("[") and text.endswith("]") else text)
    return getattr(address, "ipv4_mapped", None) or address


def _listen(entries: tuple[str, ...]) -> tuple[str, ...]:
    kept, wrong = [], []
    for entry in entries:
        text = "127.0.0.1" if entry == "localhost" else entry
        try:
            kept.append(text if text == TAILSCALE else str(parse(text)))
        except ValueError:
            wrong.append(printable(entry))
    if wrong or not kept:
        raise ValueError(f"names {', '.join(wrong) or 'no address'}; it takes {_ADDRESSES}, without a port")
    return tuple(dict.fromkeys(kept))


Listen = Annotated[Texts, AfterValidator(_listen), Field(title=_ADDRESSES)]


def _networks(entries: tuple[str, ...]) -> tuple[str, ...]:
    kept = []
    for entry in entries:
        try:
            kept.append(str(ipaddress.ip_network(entry, strict=False)))
        except ValueError:
            raise ValueError(f"names {printable(entry)}, which is not a network such as 192.168.7.0/24") from None
    return tuple(kept)


Networks = Annotated[Texts, AfterValidator(_networks), Field(title="networks, as in `192.168.7.0/24`")]


def _upstream(given: object) -> str:
    text = given.strip() if isinstance(given, str) else ""
    match = re.fullmatch(r"http://(\[[0-9A-F:.]+\]|[A-Z0-9.-]+):(\d{1,5})/?", text, re.ASCII | re.IGNORECASE)
    if not match or not 0 < int(match[2]) < 2**16 or (match[1].startswith("[") and _address(match[1]) is None):
        raise ValueError(f"is not {_URL}: http, a host, a port, and nothing else")
    return f"http://{match[1].lower()}:{int(match[2])}"


Upstream = Annotated[str, BeforeValidator(_upstream), Field(title=_URL)]


def split(upstream: str) -> tuple[str, int]:
    """Return the host, without brackets, and the port of an upstream."""
    host, _, port = upstream.removeprefix("http://").rpartition(":")
    return host.strip("[]"), int(port)


def joined(host: str, port: int) -> str:
    """Return host and port as they are usually written."""
    return f"{bracketed(host)}:{port}"


def bracketed(host: str) -> str:
    """Return a host as URLs have it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def _address(text: str) -> Address | None:
    try:
        return parse(text)
    except ValueError:
        return None


def listen_fault(text: str, allow_any: bool) -> str | None:
    """Return why the proxy does not listen on the address `text`, or None.

    Loopback and the tailnet restrict who can connect. Any other address lets in strangers, and the proxy can't tell
    them apart.
    """
    address = parse(text)
    if address.is_multicast or text == "255.255.255.255":
        return f"{text} can't be listened on"
    if allow_any or address.is_loopback or any(address in network for network in TAILNET):
        return None
    if address.is_unspecified:
        reach = "is every address of this machine, including those on the LAN and the internet"
    else:
        reach = "is an address on a LAN" if address.is_private or address.is_link_local else "is a public address"
    return f"{text} {reach}; the proxy listens there only with --allow-any-address"


def in_tailnet(listen: Sequence[str]) -> bool:
    """Return whether devices of the tailnet can reach one of the addresses that the proxy listens on."""
    addresses = [parse(text) for text in listen if text != TAILSCALE]
    return TAILSCALE in listen or any(
        address.is_unspecified or any(address in network for network in TAILNET) for address in addresses
    )


def on_loopback(listen: Sequence[str]) -> bool:
    """Return whether the proxy listens on 127.0.0.1."""
    return not {"127.0.0.1", "0.0.0.0"}.isdisjoint(listen)


def upstream_fault(upstream: str, allow_any: bool) -> str | None:
    """Return why nothing is forwarded to `upstream`, or None; a name other than `localhost` may be anywhere."""
    host, _ = split(upstream)
    address = _address(host)
    if address is not None and address.is_unspecified:
        return "is not an address to connect to; Ollama's is http://127.0.0.1:11434"
    if allow_any or is_local(host):
        return None
    return "is not on loopback: requests would leave this machine; allowed only with --allow-any-upstream"


def is_loop(upstream: str, listening: Sequence[str], port: int) -> bool:
    """Return whether `upstream` is itself one of the addresses that the proxy listens on at `port`.

    It doesn't see loops that only a resolver or the list of interfaces could show. Via ends those (RFC 9110, 7.6.3).
    """
    host, upstream_port = split(upstream)
    hosts = {"127.0.0.1", "::1"} if host == "localhost" else {str(_address(host))}
    bound = [parse(text) for text in listening if text != TAILSCALE]
    met = any(str(address) in hosts or (address.is_unspecified and is_local(host)) for address in bound)
    return met and port == upstream_port


def is_local(host: str) -> bool:
    """Return whether a host is this machine itself, as far as its name or address shows."""
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def conflicts(
    listen: Sequence[str], port: int, serve_port: int, upstream: str, *, any_address: bool, any_upstream: bool
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the options about addresses that conflict, the one to blame first, and what is wrong."""
    for address in listen:
        if address != TAILSCALE and (fault := listen_fault(address, any_address)):
            yield ("listen", "allow_any_address"), fault
    if fault := upstream_fault(upstream, any_upstream):
        yield ("upstream", "allow_any_upstream"), fault
    if is_loop(upstream, listen, port):
        yield ("upstream", "listen", "port"), "is an address on which the proxy itself listens; choose another --port"
    if serve_port and is_loop(upstream, ("127.0.0.1",), serve_port):
        yield ("serve_port", "upstream"), "is Ollama's port; choose another"
    if serve_port == port and on_loopback(listen):
        yield ("serve_port", "port", "listen"), "is where the proxy itself listens; choose another"
