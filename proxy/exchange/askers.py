"""Which access rule counts for each asker, looked up once for each answer of Tailscale about it."""

from __future__ import annotations

from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from proxy.policy.identity import Asker
from proxy.policy.reasons import Reason
from proxy.policy.refusals import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.policy.access import Access, Rule
    from proxy.policy.identity import Standing

ASKERS_KEPT = 512
"""Addresses whose rule is kept. That takes 0.14 us instead of 300 for 20 rules, and misses once for each answer."""

COMPLAIN_EACH = 60.0
"""Seconds between two diagnostics of the same kind."""


class Askers:
    """The rule of each asker. A reload makes a new one."""

    def __init__(self, access: Access, warn: Callable[..., object], clock: Callable[[], float] = monotonic) -> None:
        """Report trouble by `warn`, which takes an event and its fields."""
        self._access = access
        self._warn = warn
        self._clock = clock
        self._found: dict[str, tuple[Standing, Rule | Refusal | None]] = {}
        self._complained = {"asker_unidentified": -inf, "grant_unreadable": -inf}

    def __repr__(self) -> str:
        return f"<Askers of {self._access}, {len(self._found)} known>"

    @property
    def access(self) -> Access:
        """The rules."""
        return self._access

    def rule_of(self, peer: str, standing: Standing) -> Rule | Refusal | None:
        """Return the rule that counts for `peer`, or why it may use nothing; None if nothing is ruled."""
        found = self._found.get(peer)
        if found is not None and found[0] is standing:
            return found[1]
        rule = self._access.rule_of(Asker(peer, standing))
        if len(self._found) >= ASKERS_KEPT:
            self._found.clear()
        self._found[peer] = standing, rule
        self._report(peer, standing, rule)
        return rule

    def _report(self, peer: str, standing: Standing, rule: Rule | Refusal | None) -> None:
        """Log that a request was refused for want of a name, and grants that can't be read."""
        if isinstance(rule, Refusal) and rule.reason is Reason.IDENTITY_NEEDED:
            problem = f"Tailscale doesn't say who {peer} is, so a rule of `access` can't be applied: it is refused"
            self._complain("asker_unidentified", problem, "tailscale status")
        elif standing.who is not None:
            for problem in self._access.grant_faults(standing.who):
                named = f"a grant for {Asker(peer, standing)} counts as nothing: {problem}"
                self._complain("grant_unreadable", named, "correct the grant in Tailscale's policy")

    def _complain(self, event: str, problem: str, hint: str) -> None:
        if self._clock() - self._complained[event] >= COMPLAIN_EACH:
            self._complained[event] = self._clock()
            self._warn(event, problem=problem, hint=hint)
