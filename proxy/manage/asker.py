"""The device that `explain --from` names: who it is by Tailscale, as the proxy would see it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.policy import refusals
from proxy.policy.identity import Asker, Standing
from proxy.policy.rule_keys import FORMS, Entry, Kind, folded
from proxy.settings.config_file import nearest
from proxy.tailnet.device import Who, is_device, names_of
from proxy.tailnet.interfaces import is_held
from proxy.tailnet.localapi import SilentError
from proxy.tailnet.tailscale import UnreadableError
from proxy.terminal.result import CommandError, Exit

if TYPE_CHECKING:
    from proxy.tailnet.tailscale import Tailscale

_LOOPBACK = "127.0.0.1"
_NOWHERE = "100.64.0.0"  # no device has it


async def find_asker(written: str, tailscale: Tailscale, capability: str | None) -> tuple[Asker, str]:
    """Return who asks if `written` does, and a note if Tailscale doesn't know; raise CommandError if it names no one.

    A login or tag means one of its devices, and another one than this machine if there is one. Values of the
    capability are the device's own.
    """
    try:
        entry = Entry.read(written)
    except ValueError as error:
        raise CommandError(f"--from `{written}` can't be read: {error}", code=Exit.WRONG) from None
    if entry.kind is Kind.EVERYONE or (entry.network is not None and entry.network.num_addresses > 1):
        raise CommandError(f"--from `{written}` is not one device: write {FORMS}", code=Exit.WRONG)
    if entry.kind is Kind.SELF:
        return Asker(_LOOPBACK, Standing(is_self=True)), ""
    if entry.network is not None:
        return await _at(str(entry.network.network_address), tailscale, capability)
    there = await tailscale.neighbours()
    others_first = (*there[1:], *there[:1])
    named = (who for who in others_first if entry.names(Asker(who.addresses[0], Standing(who))))
    called = (who for who in others_first if folded(who.device or "").partition(".")[0] == entry.text)
    found = next(named, None) or next(called, None)
    if found is not None:
        return await _at(found.addresses[0], tailscale, capability)
    note = f"Tailscale knows no such device here, so only this is judged{nearest(entry.text, names_of(there))}"
    return Asker(_NOWHERE, Standing(_imagined(entry))), note


async def _at(address: str, tailscale: Tailscale, capability: str | None) -> tuple[Asker, str]:
    """Return who has an address."""
    is_self = address.startswith("127.") or address == "::1" or is_held(address)
    if not is_device(address):
        return Asker(address, Standing(is_self=is_self)), ""
    try:
        who = await tailscale.who(address, 1, capability)
    except (SilentError, UnreadableError) as error:
        return Asker(address, Standing(unknown=True, is_self=is_self)), f"Tailscale doesn't say who that is: {error}"
    refusal = refusals.PEER_UNKNOWN if who is None and not is_self else None
    return Asker(address, Standing(who, refusal, is_self=is_self)), ""


def _imagined(entry: Entry) -> Who:
    """Return a device of which nothing is true but an entry."""
    kind, text = entry.kind, entry.text
    return Who(
        f"node:{text}" if kind is Kind.NODE else text,
        None,
        login=text if kind is Kind.LOGIN else "",
        tags=(text,) if kind is Kind.TAG else (),
        node=text if kind is Kind.NODE else "",
    )
