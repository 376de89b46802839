"""What is wrong with Tailscale although this machine has its address: it admits no device, or soon won't.

Each concern is one pure function: facts in, concerns out. The proxy logs them once a day, and the commands show them.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from proxy.tailnet.tailscale import RUNNING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.tailnet.tailscale import Tailnet, Tailscale

EXPIRY_NOTICE = timedelta(days=30)
"""How long before this machine has to log in again that becomes a concern."""

_KEYS = "https://login.tailscale.com/admin/machines"


class Topic(Enum):
    """What a concern is about."""

    SILENT = "tailscale"
    SHIELDS = "tailscale shields"
    HEALTH = "tailscale health"
    KEY = "tailscale key"


class Concern(NamedTuple):
    """Something that is wrong, and what to do about it."""

    topic: Topic
    problem: str
    hint: str


async def concerns(tailscale: Tailscale, tailnet: Tailnet) -> tuple[Concern, ...]:
    """Return all concerns about a machine that has addresses. Never raises."""
    if not tailnet.addresses:
        return ()  # the problem has more detail
    shields = await tailscale.shields_up() if tailnet.silence is None else None
    found = [*silence(tailnet), *shields_up(shields), *key_expiry(tailnet, datetime.now(UTC)), *health(tailnet)]
    return tuple(each._replace(hint=tailscale.hint(each.hint)) for each in found)


def silence(tailnet: Tailnet) -> Iterator[Concern]:
    """Report that Tailscale doesn't answer, and only its interface shows the address."""
    if tailnet.silence is not None:
        shown = ", ".join(tailnet.addresses)
        yield Concern(Topic.SILENT, f"{tailnet.silence}. Its interface still has {shown}", tailnet.hint)


def shields_up(up: bool | None) -> Iterator[Concern]:
    """Report that Tailscale drops connections from other devices. Those from this machine itself still pass."""
    if up:
        problem = "Tailscale blocks all other devices: its shields are up"
        hint = "tailscale set --shields-up=false"
        yield Concern(Topic.SHIELDS, f"{problem} (`Allow incoming connections` is off in the app's menu)", hint)


def key_expiry(tailnet: Tailnet, now: datetime) -> Iterator[Concern]:
    """Report that this machine leaves its tailnet in the next days unless someone logs in."""
    if tailnet.key_expiry is not None and tailnet.key_expiry - now < EXPIRY_NOTICE:
        day, left = tailnet.key_expiry.date().isoformat(), (tailnet.key_expiry - now).days
        when = f"on {day}, in {left} days" if left > 1 else f"on {day}, in a day or less" if left >= 0 else f"on {day}"
        problem = f"this machine's key in its tailnet expires {when}: after that no device can reach it, until a login"
        hint = f"tailscale up --force-reauth, at this machine's screen; or disable its key expiry at {_KEYS}"
        yield Concern(Topic.KEY, problem, hint)


def health(tailnet: Tailnet) -> Iterator[Concern]:
    """Report what Tailscale itself reports."""
    if tailnet.state == RUNNING:
        for text in tailnet.health:
            yield Concern(Topic.HEALTH, f"Tailscale reports: {text}", "tailscale status")
