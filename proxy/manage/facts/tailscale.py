"""What Tailscale and the interfaces show of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from proxy.tailnet.concerns import concerns
from proxy.tailnet.serve_rules import Ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from proxy.settings.settings import Settings
    from proxy.tailnet.concerns import Concern
    from proxy.tailnet.device import Who
    from proxy.tailnet.interfaces import Interface
    from proxy.tailnet.serve_rules import Serving
    from proxy.tailnet.tailscale import Tailnet, Tailscale


class OfTailscale(NamedTuple):
    """All of it, asked for at once."""

    tailnet: Tailnet
    interfaces: tuple[Interface, ...]
    serving: Serving | None
    concerns: tuple[Concern, ...]
    neighbours: tuple[Who, ...]  # the devices that Tailscale knows, if access rules need them
    hint: Callable[[str], str]  # makes a `tailscale` command one that works on this machine

    @property
    def held(self) -> tuple[str, ...]:
        """Tailscale's addresses that this machine has."""
        gone = absent(self.tailnet, self.interfaces)
        return tuple(each for each in self.tailnet.addresses if each not in gone)


async def look(tailscale: Tailscale, settings: Settings) -> OfTailscale:
    """Return the facts. Takes some seconds if Tailscale doesn't answer."""
    tailnet = await tailscale.look()
    serving = await tailscale.serving(Ports.of(settings))
    neighbours = await tailscale.neighbours() if settings.access else ()
    return OfTailscale(
        tailnet, await tailscale.interfaces(), serving, await concerns(tailscale, tailnet), neighbours, tailscale.hint
    )


def absent(tailnet: Tailnet, interfaces: Iterable[Interface]) -> tuple[str, ...]:
    """Return those of Tailscale's IPv6 addresses that this machine doesn't have, for example if IPv6 is switched off.

    If none of its addresses is on an interface, the list isn't believed, or Tailscale is only starting.
    """
    held = {str(each.ip) for interface in interfaces for each in interface.addresses}
    if held.isdisjoint(tailnet.addresses):
        return ()
    return tuple(each for each in tailnet.addresses if ":" in each and each not in held)
