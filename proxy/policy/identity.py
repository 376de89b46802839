"""Who asks, as far as Tailscale says: the device, its owner or tags, and whether the request may go on at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.policy.refusals import Refusal


class Identity(Protocol):
    """A device in the tailnet."""

    @property
    def device(self) -> str | None:
        """Its name. A device of another tailnet has one too, but chose it itself: see `shared`."""

    @property
    def user(self) -> str | None:
        """The device's owner, or its tags, as the access log shows them."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """All of its addresses."""

    @property
    def login(self) -> str | None:
        """The login of its owner; None if the device has tags, because then it belongs to nobody."""

    @property
    def tags(self) -> tuple[str, ...]:
        """Its tags, each with `tag:`. They may be another tailnet's: see `shared`."""

    @property
    def node(self) -> str | None:
        """Its id in Tailscale, which stays when its name or owner changes."""

    @property
    def shared(self) -> bool:
        """Whether it belongs to another tailnet, so that its name and tags mean nothing in this one."""

    @property
    def capabilities(self) -> Mapping[str, tuple[object, ...]]:
        """The values of the one capability that is asked about; empty if no grant gives it to the device."""


class Standing(NamedTuple):
    """What is known about a peer, and whether it is served."""

    who: Identity | None = None
    refusal: Refusal | None = None  # why the peer isn't served
    unknown: bool = False  # Tailscale should know who it is, but didn't say: it may be anyone
    is_self: bool = False  # it is this machine


@dataclass(frozen=True, slots=True)
class Asker:
    """Who sent a request, for the access rules. As text: how messages name it."""

    address: str
    standing: Standing

    def __str__(self) -> str:
        who = self.standing.who
        if self.standing.is_self:
            return f"this machine itself ({self.address})"
        if who is None:
            return f"the address {self.address}"
        of = f" ({who.user})" if who.user else ""
        return f"{who.device or self.address}{of}"
