"""What the access rules say about this machine itself, which is judged like any other asker."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from proxy.policy.access import Access
from proxy.policy.gate import Policy
from proxy.policy.identity import Asker, Standing
from proxy.policy.reasons import Reason
from proxy.policy.refusals import Refusal

if TYPE_CHECKING:
    from proxy.policy.access import Rule
    from proxy.settings.settings import Settings

REFUSED = "no rule of `access` names this machine"


def own_access(settings: Settings) -> Access:
    """Return the access rules of these settings, to find who is named and which models they allow."""
    return Access.of(settings.access, Policy.of(max_body=settings.max_body), capability=settings.capability)


def own_rule(settings: Settings, address: str = "127.0.0.1") -> Rule | Refusal | None:
    """Return the rule for requests that this machine sends to one of its own addresses; None if there are no rules.

    Tailscale isn't asked, so a rule that may name this machine by its login or name gives a refusal for want of that.
    """
    return own_access(settings).rule_of(
        Asker(address, Standing(unknown=not ip_address(address).is_loopback, is_self=True))
    )


def may_refuse(settings: Settings, address: str) -> bool:
    """Return whether the rules refuse this machine at an address, or might."""
    return isinstance(own_rule(settings, address), Refusal)


def must_refuse(settings: Settings, address: str) -> bool:
    """Return whether the rules refuse this machine at an address, whatever Tailscale says of it."""
    rule = own_rule(settings, address)
    return isinstance(rule, Refusal) and rule.reason is Reason.ASKER_NOT_ALLOWED


def says_so(status: int, content: bytes) -> bool:
    """Return whether a response is the refusal of an asker that no rule names."""
    return status == 403 and b"No rule of `access`" in content
