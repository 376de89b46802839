"""What the owner's commands expect of the access rules for requests of this machine itself."""

from __future__ import annotations

import pytest

from proxy.manage.facts.ruled import may_refuse, must_refuse, own_access, own_rule, says_so
from proxy.policy import refusals
from proxy.policy.access import Rule
from proxy.policy.models import judge_name
from proxy.policy.reasons import Reason
from proxy.policy.rule_keys import RuleSpec
from proxy.settings.settings import Settings

LOOPBACK, TAILNET = "127.0.0.1", "100.64.0.1"
REFUSED, UNSURE = Reason.ASKER_NOT_ALLOWED, Reason.IDENTITY_NEEDED


def settings(*who: str, capability: str | None = None) -> Settings:
    """Return settings with one rule for each of these askers."""
    return Settings(access=[RuleSpec((each,), ("tiny",)) for each in who], capability=capability or "off")


RULED = [
    pytest.param(settings(), None, None, id="no rules"),
    pytest.param(settings("bob@example.com", "self"), 2, UNSURE, id="self, after a name"),
    pytest.param(settings("self", "bob@example.com"), 1, 1, id="self, before a name"),
    pytest.param(settings("10.0.0.0/8", "*"), 2, 2, id="everyone"),
    pytest.param(settings("alice@example.com"), REFUSED, UNSURE, id="a name"),
    pytest.param(settings("10.0.0.0/8"), REFUSED, REFUSED, id="others"),
    pytest.param(settings(TAILNET), REFUSED, 1, id="its address"),
    pytest.param(settings(capability="example.com/cap/ollama"), REFUSED, UNSURE, id="grants"),
]


def result(rule: object) -> object:
    return rule.number if isinstance(rule, Rule) else None if rule is None else rule.reason


@pytest.mark.parametrize(("given", "here", "there"), RULED)
def test_rule_of_this_machine(given, here, there):
    """Tailscale names no peer on loopback. On its own address it may, so a rule with a name leaves that open."""
    assert result(own_rule(given)) == result(own_rule(given, "::1")) == here
    assert result(own_rule(given, TAILNET)) == there


@pytest.mark.parametrize(("given", "here", "there"), RULED)
def test_refusal_of_this_machine_is_expected(given, here, there):
    """A refusal is expected where no rule may name this machine, and accepted where one only may."""
    for address, found in ((LOOPBACK, here), (TAILNET, there)):
        assert may_refuse(given, address) is (found in (REFUSED, UNSURE))
        assert must_refuse(given, address) is (found is REFUSED)


def test_own_access_has_rules_and_grants():
    """The rules that `connect` goes through are those of the settings, with the capability."""
    access = own_access(settings("*", "self", capability="example.com/cap/ollama"))
    assert [[entry.text for entry in rule.who] for rule in access.rules] == [["*"], ["self"]]
    assert access.capability == "example.com/cap/ollama"


ASKER = refusals.asker_not_allowed("this machine itself (127.0.0.1)")
RULE = Rule(1, (), (), (), None, own_access(settings("*")).policy)


@pytest.mark.parametrize(
    ("refusal", "says"),
    [
        pytest.param(ASKER, True, id="an asker that no rule names"),
        pytest.param(refusals.identity_needed(LOOPBACK), False, id="an unknown asker"),
        pytest.param(refusals.row_not_for_asker("GET", "/api/ps", []), False, id="another's row"),
        pytest.param(judge_name("x", RULE, local_only=False), False, id="another's model"),
        pytest.param(refusals.path_not_served("GET", "/nope"), False, id="no row"),
    ],
)
def test_refusal_of_an_asker_is_recognised(refusal, says):
    """Only the refusal of an asker that no rule names counts as the rules' own answer to this machine."""
    assert says_so(refusal.status, refusal.message.encode()) is says
    assert not says_so(200, refusal.message.encode())
