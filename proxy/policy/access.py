"""Which rule of `access` counts for an asker, and what it allows. Pure.

The first rule that names the asker counts. A rule that names the asker by something that only Tailscale knows is never
passed over while Tailscale doesn't say it: that could lead to a later rule that allows more. A grant of Tailscale's
policy counts where no rule names the asker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from proxy.policy import refusals
from proxy.policy.rule_keys import Entry, RuleSpec, read_also, read_grants
from proxy.reading.names import ModelPattern

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from proxy.policy.gate import Policy
    from proxy.policy.identity import Asker, Identity
    from proxy.policy.refusals import Refusal

GRANTS_KEPT = 64
"""Different grants whose rule is kept; beyond that, the oldest goes."""


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """One rule, ready to judge. Two rules are never equal, so what is counted or kept for one is its own."""

    number: int  # from 1, in the order of the file; 0: made of a grant
    who: tuple[Entry, ...]
    models: tuple[ModelPattern, ...]
    also: tuple[str, ...]  # names of opt-in rows
    max_active: int | None  # requests of all its askers together that Ollama has at once
    policy: Policy  # the table with these rows open

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"rule {self.number} of `access`" if self.number else "the grant for this device"

    def allows(self, model: str) -> bool:
        """Return whether its askers may use a model, whose name is compared as Ollama compares names."""
        return any(pattern.matches(model) for pattern in self.models)

    def names(self, asker: Asker) -> bool | None:
        """Return whether it names `asker`; None if only Tailscale could say, and hasn't said."""
        found = {entry.names(asker) for entry in self.who}
        return True if True in found else None if None in found else False


class Shadowed(NamedTuple):
    """An entry of `who` that never counts, because an earlier rule names all of its askers."""

    rule: int
    entry: str
    by: int  # the earlier rule


class Judged(NamedTuple):
    """What one rule says about some models."""

    number: int
    allows: tuple[str, ...]  # of these models
    also: tuple[str, ...]
    max_active: int | None
    behind: tuple[int, ...]  # earlier rules that name all of its askers, so that it never counts


class Access:
    """All rules. A reload makes a new one. Make it with `of`."""

    def __init__(self, rules: tuple[Rule, ...], policy: Policy, capability: str | None, *, may_open_rows: bool) -> None:
        """`policy` is what is open for an asker whose rule opens no rows."""
        self.rules = rules
        self.policy = policy
        self.capability = capability
        self._may_open_rows = may_open_rows
        self._grants: dict[RuleSpec, Rule] = {}  # their rules; the oldest first

    @classmethod
    def of(
        cls,
        specs: Sequence[RuleSpec],
        policy: Policy,
        *,
        capability: str | None = None,
        capability_may_open_rows: bool = False,
    ) -> Access:
        """Return the access rules of the settings with these names; raise ValueError for an invalid entry."""
        opened = frozenset(row for spec in specs for row in read_also(spec.also))
        base = policy.opening((), opened) if opened else policy
        tables: dict[tuple[str, ...], Policy] = {(): base}
        rules = []
        for number, spec in enumerate(specs, 1):
            also = read_also(spec.also)
            if also not in tables:
                tables[also] = policy.opening(also, opened)
            rules.append(_rule(number, spec, also, tables[also]))
        return cls(tuple(rules), base, capability, may_open_rows=capability_may_open_rows)

    def __repr__(self) -> str:
        return f"<Access {len(self.rules)} rules, capability {self.capability}>"

    def __bool__(self) -> bool:
        """Return whether anything is ruled: without a rule and a capability everyone may use every model."""
        return bool(self.rules) or self.capability is not None

    def rule_of(self, asker: Asker) -> Rule | Refusal | None:
        """Return the rule that counts for `asker`, or why none does; None if there are no rules at all."""
        if not self:
            return None
        for rule in self.rules:
            named = rule.names(asker)
            if named:
                return rule
            if named is None:
                return refusals.identity_needed(asker.address)
        if self.capability is not None:
            who = asker.standing.who
            granted = None if who is None else self._granted(who)
            if granted is not None:
                return granted
            if asker.standing.unknown:
                return refusals.identity_needed(asker.address)
        return refusals.asker_not_allowed(str(asker))

    def shadowed(self) -> tuple[Shadowed, ...]:
        """Return the entries that never count. A rule all of whose entries are among them can't be reached."""
        found = []
        for rule in self.rules:
            for entry in rule.who:
                earlier = (each for each in self.rules[: rule.number - 1] if any(e.covers(entry) for e in each.who))
                first = next(earlier, None)
                if first is not None:
                    found.append(Shadowed(rule.number, entry.text, first.number))
        return tuple(found)

    def judged(self, models: Iterable[str]) -> tuple[Judged, ...]:
        """Return what each rule says about these models. Grants aren't among them: each device has its own."""
        names, shadowed = tuple(models), self.shadowed()
        found = []
        for rule in self.rules:
            by = {each.entry: each.by for each in shadowed if each.rule == rule.number}
            behind = tuple(sorted(set(by.values()))) if len(by) == len({entry.text for entry in rule.who}) else ()
            allowed = tuple(filter(rule.allows, names))
            found.append(Judged(rule.number, allowed, rule.also, rule.max_active, behind))
        return tuple(found)

    # --- grants ---

    def grant_faults(self, who: Identity) -> tuple[str, ...]:
        """Return what is wrong with the grants for a device, one sentence for each value that counts as nothing."""
        return read_grants(self._values(who), may_open_rows=self._may_open_rows)[1]

    def _values(self, who: Identity) -> tuple[object, ...]:
        return who.capabilities.get(self.capability, ()) if self.capability is not None else ()

    def _granted(self, who: Identity) -> Rule | None:
        spec, _ = read_grants(self._values(who), may_open_rows=self._may_open_rows)
        if spec is None:
            return None
        rule = self._grants.get(spec)
        if rule is None:
            table = self.policy.opening(spec.also, self.policy.for_others) if spec.also else self.policy
            rule = self._grants[spec] = _rule(0, spec, spec.also, table)
            if len(self._grants) > GRANTS_KEPT:
                del self._grants[next(iter(self._grants))]
        return rule


def _rule(number: int, spec: RuleSpec, also: tuple[str, ...], policy: Policy) -> Rule:
    return Rule(
        number,
        tuple(map(Entry.read, spec.who)),
        tuple(map(ModelPattern, spec.models)),
        also,
        spec.max_active,
        policy,
    )
