"""A Tailscale in the process of the test, that reports what the test sets."""

from __future__ import annotations

from ipaddress import ip_interface
from typing import TYPE_CHECKING

from proxy.tailnet.interfaces import Interface
from proxy.tailnet.serve_rules import Rule, Serving
from proxy.tailnet.tailscale import Tailnet

if TYPE_CHECKING:
    from proxy.tailnet.device import Who
    from proxy.tailnet.serve_rules import Ports

STOPPED = Tailnet("Stopped", tun=True, problem="Tailscale is stopped", hint="tailscale up")


class ScriptedTailscale:
    """The interface of `tailscale.Tailscale` for its callers. The machine has the addresses that `held` names."""

    def __init__(
        self,
        tailnet: Tailnet | Exception = STOPPED,
        leads: tuple[Rule, ...] | None = (),
        *,
        shields: bool | None = False,
        held: tuple[str, ...] | None = None,
        urls: tuple[str, ...] = (),
        devices: tuple[Who, ...] = (),
    ) -> None:
        self.tailnet = tailnet
        self.leads = leads  # None: the rules can't be read
        self.shields = shields
        self.held = held  # None: all that Tailscale reports
        self.urls = urls
        self.devices = devices
        self.looks = 0
        self.asked: list[Ports] = []

    async def look(self) -> Tailnet:
        """Return what was set, or raise it."""
        self.looks += 1
        if isinstance(self.tailnet, Exception):
            raise self.tailnet
        return self.tailnet

    async def interfaces(self) -> tuple[Interface, ...]:
        """Return one interface with the addresses."""
        reported = self.tailnet.addresses if isinstance(self.tailnet, Tailnet) else ()
        addresses = map(ip_interface, reported if self.held is None else self.held)
        return (Interface("tailscale0", True, tuple(addresses)),)

    async def serving(self, ports: Ports, at_most: float | None = None) -> Serving | None:
        """Return the rules that were set."""
        self.asked.append(ports)
        return None if self.leads is None else Serving(self.leads, self.urls)

    async def neighbours(self) -> tuple[Who, ...]:
        """Return what was set."""
        return self.devices

    async def shields_up(self) -> bool | None:
        """Return what was set."""
        return self.shields

    def hint(self, advice: str) -> str:
        """Return it as it is."""
        return advice
