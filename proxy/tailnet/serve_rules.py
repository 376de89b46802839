"""What the rules of `tailscale serve` and `tailscale funnel` mean for the ports of the proxy and of Ollama. Pure.

A rule leads from a port of this machine in its tailnet to a program on it. tailscaled accepts such connections itself,
before the kernel does. Nothing else on the machine shows the rule: the proxy's own socket stays as it is.
"""

from __future__ import annotations

import shlex
from enum import Enum
from ipaddress import IPv6Address, ip_address
from socket import inet_aton
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from proxy.settings.addresses import in_tailnet, split
from proxy.settings.kinds import printable
from proxy.tailnet.fields import table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.settings.settings import Settings


class Ports(NamedTuple):
    """The ports on this machine that a rule may concern."""

    upstream: int  # Ollama's, on loopback
    own: int | None = None  # the proxy's, if devices of the tailnet reach it
    serve: int | None = None  # the proxy's on loopback that is for serve alone
    proxy: int | None = None  # the proxy's, whoever reaches it

    @classmethod
    def of(cls, settings: Settings) -> Ports:
        """Return the ports in the settings."""
        own = settings.port if in_tailnet(settings.listen) else None
        return cls(split(settings.upstream)[1], own, settings.serve_port or None, settings.port)


class Kind(Enum):
    """What is wrong with a rule."""

    PAST = "it leads to Ollama, past the proxy"
    TAKEN = "it uses the port on which the proxy listens"
    BLIND = "it leads to the port for serve, and doesn't identify the device"


class Rule(NamedTuple):
    """A rule that must not exist, and the command that removes it."""

    problem: str
    hint: str
    kind: Kind = Kind.PAST


class Serving(NamedTuple):
    """The meaning of a serve configuration."""

    rules: tuple[Rule, ...] = ()  # the rules that must not exist
    urls: tuple[str, ...] = ()  # the addresses that lead to the port for serve, https first
    through: tuple[Rule, ...] = ()  # those that lead to the proxy's own port, where this machine itself seems to ask

    @property
    def blind(self) -> Rule | None:
        """A rule that makes the port for serve unsafe."""
        return next((rule for rule in self.rules if rule.kind is Kind.BLIND), None)


class _Way(NamedTuple):
    """One way in a configuration: from a port in the tailnet to a destination, with the words that name it."""

    kind: str  # "tcp", "tls-terminated-tcp", "http" or "https"
    served: str  # port
    host: str  # the name that it is asked by; "" for tcp
    mount: str
    target: str | None  # None: a file, a text or a redirect
    public: bool  # through funnel, for everyone on the internet
    service: str  # "svc:…", or "" for the machine itself
    foreground: bool  # of a command that runs in a terminal

    @property
    def names_its_peer(self) -> bool:
        """Whether tailscaled itself says which device sent a request: it sets X-Forwarded-For as a web server does.

        For a tcp rule it passes bytes on unchanged, with any forged field, and through funnel strangers come in.
        """
        return self.kind in {"http", "https"} and not self.public

    @property
    def url(self) -> str:
        """The URL that leads to it."""
        port = "" if (self.kind, self.served) in {("https", "443"), ("http", "80")} else f":{self.served}"
        return printable(f"{self.kind}://{self.host}{port}{self.mount.rstrip('/')}")

    @property
    def verb(self) -> str:
        return "funnel" if self.public else "serve"

    @property
    def off(self) -> str:
        """Return how to remove the rule."""
        if self.foreground:
            return f"end the `tailscale {self.verb}` that runs in a terminal with Ctrl-C"
        words = ["tailscale", self.verb, *([f"--service={self.service}"] if self.service else [])]
        words += [f"--{self.kind}={self.served}", *([] if self.mount == "/" else [f"--set-path={self.mount}"]), "off"]
        return printable(shlex.join(words))


def of_serve(document: object, ports: Ports) -> Serving:
    """Return the meaning of a serve configuration for `ports`. Never raises."""
    ways = tuple(_ways(document))
    urls = [way.url for way in ways if way.names_its_peer and _to_serve(way, ports)]
    through = tuple(
        Rule(printable(f"`tailscale {way.verb}` leads from its {way.kind} port {way.served} to {way.target}"), way.off)
        for way in ways
        if _to_proxy(way, ports)
    )
    faults = tuple(rule for way in ways for rule in _faults(way, ports))
    return Serving(faults, tuple(sorted(urls, reverse=True)), through)


def _to_proxy(way: _Way, ports: Ports) -> bool:
    """Return whether a way leads to the proxy's own port, on whatever address of this machine it listens."""
    if way.target is None or leads_to(way.target, ports.upstream):
        return False
    host, at = _place(way.target)
    return at == ports.proxy and host != ""


def _to_serve(way: _Way, ports: Ports) -> bool:
    return ports.serve is not None and way.target is not None and leads_to(way.target, ports.serve)


def _faults(way: _Way, ports: Ports) -> Iterator[Rule]:
    says = f"`tailscale {way.verb}` leads from its {way.kind} port {way.served}"
    public = ", for everyone on the internet" if way.public else ""
    if way.target is not None and leads_to(way.target, ports.upstream):
        problem = f"{says} past this proxy to {way.target}{public}"
        yield Rule(printable(problem), way.off)
    elif _to_serve(way, ports):
        if not way.names_its_peer:
            why = (
                "it lets in strangers from the internet"
                if way.public
                else "it passes on the address that a client claims to have"
            )
            problem = f"{says} to {way.target}, the port for `tailscale serve`: {why}"
            yield Rule(printable(problem), way.off, Kind.BLIND)
    elif not way.service and way.served == str(ports.own):  # a service has an address of its own
        target = way.target or "something else"
        problem = f"{says}, where this proxy listens, to {target}{public}: devices reach that instead of the proxy"
        yield Rule(printable(problem), way.off, Kind.TAKEN)


def _ways(document: object) -> Iterator[_Way]:
    whole = table(document)
    foreground = [table(config) for config in table(whole.get("Foreground")).values()]
    # What one of these opens to the internet is open in all (public source: tailscale `ipn/serve.go`,
    # HasFunnelForTarget).
    public = {port for config in (whole, *foreground) for port in _public(config)}
    yield from _of_config(whole, public)
    for service, config in table(whole.get("Services")).items():
        yield from _of_config(table(config), _public(table(config)), service=service)
    for config in foreground:
        yield from _of_config(config, public, foreground=True)


def _public(config: dict[str, Any]) -> set[str]:
    """Return the ports that a configuration opens to the internet."""
    return {where.rpartition(":")[2] for where, on in table(config.get("AllowFunnel")).items() if on is True}


def _of_config(config: dict[str, Any], public: set[str], service: str = "", foreground: bool = False) -> Iterator[_Way]:
    """Yield the ways of one configuration: the machine's, a service's, or that of a command in a terminal."""
    handlers = table(config.get("TCP"))
    for served, handler in handlers.items():
        target = _target(table(handler).get("TCPForward"))
        if target is not None:
            kind = "tls-terminated-tcp" if table(handler).get("TerminateTLS") else "tcp"
            yield _Way(kind, served, "", "/", target, served in public, service, foreground)
    for where, web in table(config.get("Web")).items():
        host, _, served = where.rpartition(":")
        kind = "http" if table(handlers.get(served)).get("HTTP") is True else "https"
        for mount, handler in table(table(web).get("Handlers")).items():
            target = _target(table(handler).get("Proxy"))
            yield _Way(kind, served, host, mount, target, served in public, service, foreground)


def leads_to(target: str, port: int) -> bool:
    """Return whether `3000`, `localhost:3000`, `http://127.0.0.1:3000/path` and the like are `port` on loopback."""
    host, at = _place(target)
    return at == port and (host in {"", "localhost"} or host.endswith(".localhost") or _on_loopback(host))


def _place(target: str) -> tuple[str, int]:
    """Return the host and the port of a target; port 0 if it has none."""
    if target.isascii() and target.isdigit():
        return "localhost", int(target[:6])
    try:
        url = urlsplit(target if "://" in target else f"http://{target}")
        return (url.hostname or "").removesuffix("."), url.port or (443 if url.scheme.startswith("https") else 80)
    except ValueError:
        return "", 0


def _on_loopback(host: str) -> bool:
    """Return whether `host` is an address of loopback, in any spelling that macOS and Linux accept."""
    try:
        address = ip_address(host)
    except ValueError:
        try:
            address = ip_address(inet_aton(host))  # 127.1, 2130706433, 0x7f.1: so does the system's resolver
        except (OSError, ValueError):
            return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback or address.is_unspecified  # which connects to loopback


def _target(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
