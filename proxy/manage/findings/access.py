"""What can be wrong with access rules: out of reach, by a name that its user chose, for a model that isn't here."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from proxy.manage.facts.ruled import must_refuse
from proxy.policy.gate import Policy, open_rows
from proxy.policy.identity import Asker, Standing
from proxy.policy.native import PATHS as NATIVE_PATHS
from proxy.policy.routes import OPT_IN
from proxy.policy.rule_keys import Kind
from proxy.reading.native import NativeOptions
from proxy.serving.listener import access_of
from proxy.settings.kinds import printable
from proxy.tailnet.device import names_of
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.manage.facts.facts import Facts
    from proxy.policy.access import Access
    from proxy.settings.settings import Loaded
    from proxy.tailnet.device import Who

RULES = "access"

_OF_NOBODY = {Kind.LOGIN: "device of this user", Kind.TAG: "device with this tag", Kind.NODE: "such device"}


def shown(loaded: Loaded) -> list[tuple[str, str, str, str]]:
    """Return each access rule: its number, its askers, its models, and what else it says."""
    return [
        (
            str(number),
            ", ".join(rule.who),
            ", ".join(rule.models),
            "; ".join([
                *([f"also {', '.join(rule.also)}"] if rule.also else []),
                *([f"at most {rule.max_active} at once"] if rule.max_active else []),
            ]),
        )
        for number, rule in enumerate(loaded.settings.access, 1)
    ]  # fmt: skip


def _access(facts: Facts) -> Access:
    return access_of(facts.settings, Policy.of(max_body=facts.settings.max_body))


def rules(facts: Facts) -> Iterator[Finding]:
    """Report whether there are access rules, and whether this machine itself is named."""
    access, capability = _access(facts), facts.settings.capability
    if not access:
        yield Finding(RULES, Outcome.PASS, "no rules: every device that can connect may use every model")
        return
    count = f"{len(access.rules)} rule{'' if len(access.rules) == 1 else 's'}"
    detail = count + (f", and grants of {capability}" if capability else "")
    if must_refuse(facts.settings, "127.0.0.1"):
        detail += "; none names this machine by `self`, so what asks from here by loopback is refused"
    yield Finding(RULES, Outcome.PASS, detail)


def unreachable(facts: Facts) -> Iterator[Finding]:
    """Find rules, and entries of `who`, that never count because an earlier rule names all of their askers."""
    access = _access(facts)
    shadowed = access.shadowed()
    for rule, judged in zip(access.rules, access.judged(()), strict=True):
        by = {each.entry: each.by for each in shadowed if each.rule == rule.number}
        if not by:
            continue
        earlier = ", ".join(f"rule {number}" for number in sorted(set(by.values())))
        if judged.behind:
            detail = f"{rule.title} never counts: {earlier} comes first and names all of its askers"
            yield Finding(RULES, Outcome.WARN, detail, f"write rule {rule.number} above {earlier}, or remove it")
        else:
            entries = ", ".join(map(printable, by))
            detail = f"{entries} in {rule.title} never counts: {earlier} comes first"
            yield Finding(
                RULES, Outcome.WARN, detail, f"remove {entries} from rule {rule.number}, or correct {earlier}"
            )


def device_names(facts: Facts) -> Iterator[Finding]:
    """Find rules that name a device by its name, which its user chooses, and offer what names it better."""
    for rule in _access(facts).rules:
        for entry in rule.who:
            if entry.kind is Kind.DEVICE:
                yield _of_device(entry.text, rule.title, facts.tailscale.neighbours)


def _of_device(name: str, title: str, neighbours: tuple[Who, ...]) -> Finding:
    there = [who for who in neighbours if (who.device or "").partition(".")[0].lower() == name]
    own = [who for who in there if not who.shared]
    hint = "; ".join(filter(None, (_better(who) for who in own or there)))
    if own or not neighbours:
        detail = f"{title} names the device {name}, and the user of a device can give it that name"
        return Finding(RULES, Outcome.WARN, detail, hint or "name its owner's login, a tag or its `node:` instead")
    detail = f"{title} names the device {name}, which Tailscale doesn't know"
    if there:
        detail = f"{title} names the device {name}, which is of another tailnet: such a name counts for nothing"
    return Finding(RULES, Outcome.WARN, detail, hint or _meant(name, neighbours) or "tailscale status")


def strangers(facts: Facts) -> Iterator[Finding]:
    """Find logins, tags and ids that no device has which Tailscale knows here, such as misspelt ones."""
    neighbours = facts.tailscale.neighbours
    for rule in _access(facts).rules if neighbours else ():
        for entry in rule.who:
            known = any(entry.names(Asker(who.addresses[0], Standing(who))) for who in neighbours)
            if entry.kind in _OF_NOBODY and not known:
                named = f"node:{entry.text}" if entry.kind is Kind.NODE else entry.text
                detail = f"{rule.title} names {printable(named)}, but Tailscale knows no {_OF_NOBODY[entry.kind]}"
                yield Finding(RULES, Outcome.WARN, detail, _meant(entry.text, neighbours) or "tailscale status")


def _meant(text: str, neighbours: tuple[Who, ...]) -> str:
    """Return advice to write what an entry seems to mean; empty if nothing is like it."""
    names = names_of(neighbours)
    alike = [name for name in names if text in (name.removeprefix("tag:"), name.partition("@")[0]) and name != text]
    near = (alike or difflib.get_close_matches(text, names, 1))[:1]
    return f'write "{printable(near[0])}" if you mean that' if near else ""


def _better(who: Who) -> str:
    """Return what names a device and can't be chosen by its user."""
    offers = [*(who.tags or ([who.login] if who.login else [])), *([f"node:{who.node}"] if who.node else [])]
    return "write " + " or ".join(f'"{printable(each)}"' for each in offers) if offers else ""


def passed_on(facts: Facts) -> Iterator[Finding]:
    """Find rules of `tailscale serve` by which other devices ask as this machine and its owner."""
    if _access(facts):
        for each in facts.tailscale.serving.through if facts.tailscale.serving else ():
            detail = f"{each.problem}, this proxy: a device that comes that way can pass for this machine and its owner"
            yield Finding(RULES, Outcome.FAIL, detail, f"{each.hint}; for https set `serve_port`")


def native_options(facts: Facts) -> Iterator[Finding]:
    """Find native routes through which anyone who may ask them can change a model for everyone."""
    settings = facts.settings
    opened = {*settings.allow, *(row for rule in settings.access for row in rule.also)}
    if settings.capability is not None and settings.capability_may_open_rows:
        opened |= set(OPT_IN)
    rows = [row.name for row in open_rows(sorted(opened)) if row.path in NATIVE_PATHS]
    if rows and settings.native_options is NativeOptions.PASS:
        detail = f"every device that may ask {', '.join(rows)} can unload, pin or reload a model that others use"
        hint = 'remove `native_options = "pass"`, unless only trusted programs may ask these'
        yield Finding("native_options", Outcome.WARN, detail, hint)


def models(facts: Facts) -> Iterator[Finding]:
    """Find patterns that no model on this machine matches, if Ollama answers."""
    access = _access(facts)
    tags = facts.of_ollama("/api/tags") if access.rules else None
    listed = tags.get("models") if isinstance(tags, dict) else None
    names = [str(each.get("name")) for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    for rule in access.rules if names else ():
        for pattern in rule.models:
            if not any(map(pattern.matches, names)):
                detail = f"{rule.title} allows {printable(pattern.text)}, but no model on this machine matches"
                yield Finding(RULES, Outcome.WARN, detail, "ollama list")
