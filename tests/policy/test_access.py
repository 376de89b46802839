"""Which rule of `access` counts for an asker: the first that names it, never one behind a rule that may name it."""

from __future__ import annotations

from types import MappingProxyType

import pytest

from proxy.policy.access import GRANTS_KEPT, Access, Judged, Rule, Shadowed
from proxy.policy.gate import Policy, decide
from proxy.policy.heads import Preflight, RequestHead
from proxy.policy.refusals import Reason, Refusal, asker_not_allowed
from proxy.policy.routes import OPT_IN
from proxy.policy.rule_keys import RuleSpec, read_grants
from tests.policy.test_askers import FRIENDS, NOTEBOOK, ROBOT, Device, asker

POLICY = Policy.of(max_body=1000)
CAPABILITY = "example.com/cap/ollama"
SELF = asker(None, "127.0.0.1", is_self=True)
TAKES = ", ".join(OPT_IN)


def rules(*specs: tuple[list[str], list[str]], **more) -> Access:
    return Access.of([RuleSpec(tuple(who), tuple(models)) for who, models in specs], POLICY, **more)


def granted(*values: object) -> Device:
    return NOTEBOOK._replace(capabilities=MappingProxyType({CAPABILITY: values}))


def result(found) -> object:
    return found.number if isinstance(found, Rule) else found.reason if isinstance(found, Refusal) else None


HOME = rules(
    (["kids-ipad"], ["gemma3:4b"]),
    (["tag:agents"], ["qwen3:*"]),
    (["alice@example.com", "self"], ["*"]),
    (["192.168.7.0/24"], ["gemma3:4b"]),
)


# --- the first rule that names the asker ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("who", "counts"),
    [
        pytest.param(asker(Device("kids-ipad", "alice@example.com")), 1, id="a device before its owner"),
        pytest.param(asker(ROBOT), 2, id="a tag"),
        pytest.param(asker(), 3, id="a login"),
        pytest.param(SELF, 3, id="this machine"),
        pytest.param(asker(None, "192.168.7.9"), 4, id="an address"),
        pytest.param(asker(FRIENDS), Reason.ASKER_NOT_ALLOWED, id="nobody's"),
        pytest.param(asker(None, "10.0.0.1"), Reason.ASKER_NOT_ALLOWED, id="another network"),
        pytest.param(asker(None), Reason.IDENTITY_NEEDED, id="a device without an answer"),
        pytest.param(
            asker(None, "100.64.0.1", is_self=True), Reason.IDENTITY_NEEDED, id="this machine without an answer"
        ),
    ],
)
def test_first_rule_that_names_the_asker_counts(who, counts):
    """The first rule in the order of the file counts, and who is named by none is refused."""
    assert result(HOME.rule_of(who)) == counts


def test_rule_behind_one_that_may_name_the_asker_never_counts():
    """While Tailscale doesn't answer, a device can't get a later rule that allows more than its own."""
    access = rules((["kids-ipad"], ["gemma3:4b"]), (["*"], ["*"]))
    assert result(access.rule_of(asker(None))) is Reason.IDENTITY_NEEDED
    assert result(access.rule_of(asker())) == 2
    assert result(access.rule_of(asker(None, "127.0.0.1"))) == 2


def test_rule_by_address_needs_no_name():
    """A rule that names the asker by what is known already counts, although the rule has other entries."""
    access = rules((["alice@example.com", "100.64.0.7"], ["*"]))
    assert result(access.rule_of(asker(None))) == 1


def test_rule_behind_everyone_never_counts():
    """A rule after `*` has nobody left."""
    access = rules((["*"], ["gemma3:4b"]), (["alice@example.com", "self"], ["*"]))
    assert {result(access.rule_of(who)) for who in (asker(), SELF, asker(None))} == {1}


@pytest.mark.parametrize("who", [asker(), asker(None), SELF, asker(None, "10.0.0.1")])
def test_without_rules_nothing_is_ruled(who):
    """Without a rule and a capability everything stays as it is, even while Tailscale doesn't answer."""
    access = rules()
    assert not access
    assert access.rule_of(who) is None


@pytest.mark.parametrize(
    ("model", "allowed"),
    [
        ("qwen3:8b", True),
        ("QWEN3:8B", True),
        (" registry.ollama.ai/library/qwen3:8b ", True),
        ("qwen3", True),
        ("gemma3:4b", True),
        ("gemma3", False),
        ("qwen3-coder:30b", False),
        ("mallory/qwen3:8b", False),
        ("", False),
        ("../qwen3:8b", False),
    ],
)
def test_rule_allows_models_as_ollama_compares_names(model, allowed):
    """A model is allowed under every spelling that Ollama takes for it, and no other is."""
    (rule,) = rules((["*"], ["qwen3:*", "gemma3:4b"])).rules
    assert rule.allows(model) is allowed


# --- the rows that a rule opens ---------------------------------------------------------------------------------------

CHAT = RequestHead("POST", "/api/chat", (1, 1), ((b"Host", b"mac"), (b"Content-Length", b"2")))
ROWS = Access.of(
    [RuleSpec(("alice@example.com",), ("*",), ("POST /api/chat", "/api/tags")), RuleSpec(("*",), ("*",))], POLICY
)


def test_also_opens_rows_for_its_askers_only():
    """A row in `also` is open for those askers. The others read that it is open, but not for them."""
    alices, others = ROWS.rules
    assert decide(CHAT, alices.policy).name == "POST /api/chat"
    assert alices.also == ("HEAD /api/tags", "POST /api/chat")
    refused = decide(CHAT, others.policy)
    assert (refused.reason, refused.status) == (Reason.PATH_NOT_SERVED, 403)
    assert "`POST /api/chat` is open for other devices, but not for this one" in refused.message
    assert "`also`" in refused.message


def test_method_in_also_is_refused_as_a_method():
    """Another device's method on a path that is open for this one is refused with the methods that are open for it."""
    refused = decide(RequestHead("HEAD", "/api/tags", (1, 1), ((b"Host", b"mac"),)), ROWS.rules[1].policy)
    assert (refused.reason, refused.status, refused.fields) == (Reason.METHOD_NOT_SERVED, 405, ((b"allow", b"GET"),))
    assert "open for other devices" in refused.message


def test_row_that_is_open_for_nobody_is_refused_as_before():
    """A row that no rule opens has the advice about `allow`."""
    head = RequestHead("POST", "/api/embed", (1, 1), ((b"Host", b"mac"), (b"Content-Length", b"2")))
    assert decide(head, ROWS.rules[1].policy) == decide(head, POLICY)


def test_rules_with_the_same_rows_share_a_policy():
    """A verdict that a connection keeps is worked out once for all rules that open the same rows."""
    access = Access.of([RuleSpec((f"device-{number}",), ("*",)) for number in range(20)], POLICY)
    assert {id(rule.policy) for rule in access.rules} == {id(POLICY)}


# --- what can't be reached --------------------------------------------------------------------------------------------


def test_shadowed_entries_are_found():
    """An entry whose askers an earlier rule names never counts."""
    access = rules(
        (["alice@example.com", "10.0.0.0/8"], ["*"]),
        (["Alice@example.com", "kids-ipad", "10.1.0.0/16"], ["*"]),
        (["*"], ["*"]),
        (["bob@example.com"], ["*"]),
    )
    assert access.shadowed() == (
        Shadowed(2, "alice@example.com", 1),
        Shadowed(2, "10.1.0.0/16", 1),
        Shadowed(4, "bob@example.com", 3),
    )


def test_each_rule_is_judged():
    """Each rule says which of some models it allows, and which earlier rules name all of its askers, if any do."""
    specs = (
        RuleSpec(("alice@example.com",), ("qwen3:*",), ("POST /api/chat",), 3),
        RuleSpec(("alice@example.com", "kids-ipad"), ("*",)),
        RuleSpec(("kids-ipad", "alice@example.com"), ("gemma3:4b",)),
    )
    assert Access.of(specs, POLICY).judged(["qwen3:8b", "Gemma3:4B"]) == (
        Judged(1, ("qwen3:8b",), ("POST /api/chat",), 3, ()),
        Judged(2, ("qwen3:8b", "Gemma3:4B"), (), None, ()),
        Judged(3, ("Gemma3:4B",), (), None, (1, 2)),
    )


# --- grants -----------------------------------------------------------------------------------------------------------


def test_grant_counts_for_whoever_no_rule_names():
    """A grant makes a rule for a device that no rule names, and changes nothing for one that a rule names."""
    access = rules((["alice@example.com"], ["gemma3:4b"]), capability=CAPABILITY)
    grant = granted({"models": ["qwen3:*"], "max_active": 2})
    assert result(access.rule_of(asker(grant))) == 1
    rule = access.rule_of(asker(grant._replace(login="bob@example.com")))
    assert (rule.number, rule.max_active, rule.also) == (0, 2, ())
    assert rule.allows("qwen3:8b")
    assert not rule.allows("gemma3:4b")


@pytest.mark.parametrize(
    ("capability", "who", "reason"),
    [
        pytest.param(None, granted({"models": ["*"]}), Reason.ASKER_NOT_ALLOWED, id="off"),
        pytest.param("other.org/cap/x", granted({"models": ["*"]}), Reason.ASKER_NOT_ALLOWED, id="another capability"),
        pytest.param(CAPABILITY, NOTEBOOK, Reason.ASKER_NOT_ALLOWED, id="no grant"),
        pytest.param(CAPABILITY, granted(), Reason.ASKER_NOT_ALLOWED, id="no values"),
        pytest.param(CAPABILITY, granted({"models": []}), Reason.ASKER_NOT_ALLOWED, id="no model"),
        pytest.param(CAPABILITY, None, Reason.IDENTITY_NEEDED, id="no answer"),
    ],
)
def test_asker_without_a_grant_is_refused(capability, who, reason):
    """Only a readable grant of the configured capability lets someone in, and none does while it isn't known."""
    access = rules((["bob@example.com", "self"], ["*"]), capability=capability)
    who = who and who._replace(login="carol@example.com")
    assert result(access.rule_of(asker(who))) == reason


def test_capability_alone_is_a_rule():
    """Once a capability is set, an asker that has neither rule nor grant is refused, and the Mac itself too."""
    access = rules(capability=CAPABILITY)
    assert result(access.rule_of(asker(granted({"models": ["*"]})))) == 0
    assert result(access.rule_of(asker())) is Reason.ASKER_NOT_ALLOWED
    assert result(access.rule_of(SELF)) is Reason.ASKER_NOT_ALLOWED
    assert result(access.rule_of(asker(None))) is Reason.IDENTITY_NEEDED


def test_values_of_a_capability_add_up():
    """Several values allow what each of them allows, and the largest limit holds."""
    values = ({"models": ["a"], "max_active": 1}, {"models": ["b", "a"], "max_active": 3}, {"models": ["c"], "x": [1]})
    assert read_grants(values, may_open_rows=False) == (RuleSpec((), ("a", "b", "c"), (), 3), ())


NOT_AN_OBJECT = "the value is not an object with `models`"
NO_LIMIT = "`max_active` is not a whole number from 1 to 1024; leave it out for no limit"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("*", NOT_AN_OBJECT),
        (["*"], NOT_AN_OBJECT),
        (None, NOT_AN_OBJECT),
        ({"models": "*"}, '`models` is not a list; write ["*"]'),
        ({"models": ["b", 5]}, "`models` is not a list of strings"),
        (
            {"models": ["b c"]},
            "`models` `b c` can't be read: write a model's name, in which `*` may stand for any characters",
        ),
        ({"models": ["b"], "max_active": "2"}, NO_LIMIT),
        ({"models": ["b"], "max_active": True}, NO_LIMIT),
        ({"models": ["b"], "max_active": 0}, NO_LIMIT),
        ({"models": ["b"], "max_active": None}, NO_LIMIT),
        (
            {"models": ["b"], "also": ["POST /api/pull"]},
            f"`also` no setting opens `POST /api/pull`; `also` takes: {TAKES}",
        ),
        ({"models": ["b"], "also": "POST /api/chat"}, '`also` is not a list; write ["POST /api/chat"]'),
    ],
)
def test_value_of_a_wrong_kind_counts_as_nothing(value, said):
    """A value with any mistake grants nothing at all, because the mistake may be a limit. The other values count."""
    for values in (({"models": ["a"]}, value), (value, {"models": ["a"]})):
        assert read_grants(values, may_open_rows=True) == (RuleSpec((), ("a",)), (said,))


@pytest.mark.parametrize(
    ("options", "may"),
    [({}, False), ({"capability_may_open_rows": False}, False), ({"capability_may_open_rows": True}, True)],
    ids=["unless set", "off", "on"],
)
def test_grant_opens_rows_only_if_it_may(options, may):
    """`also` of a grant counts only with `capability_may_open_rows`, and is reported without it."""
    access = rules(capability=CAPABILITY, **options)
    who = granted({"models": ["*"], "also": ["POST /api/chat"]}, {"also": ["/api/embed"]})
    rule = access.rule_of(asker(who))
    assert isinstance(decide(CHAT, rule.policy), Refusal) is not may
    assert rule.also == (("POST /api/chat", "POST /api/embed") if may else ())
    assert (rule.policy is access.policy) is not may
    ignored = "`also` opens POST /api/chat, POST /api/embed only with `capability_may_open_rows = true`"
    assert access.grant_faults(who) == (() if may else (ignored,))


def test_same_grant_is_one_rule():
    """Devices with the same grant share a rule, so that its limit counts all of them together."""
    access = rules(capability=CAPABILITY)
    found = [access.rule_of(asker(granted({"models": ["a"]}), address)) for address in ("100.64.0.7", "100.64.0.8")]
    assert found[0] is found[1]
    assert access.rule_of(asker(granted({"models": ["b"]}))) is not found[0]


def test_rules_of_few_grants_are_kept():
    """So many different grants keep their rules, and one more lets only the oldest go."""
    access = rules(capability=CAPABILITY)
    found = [access.rule_of(asker(granted({"models": [f"m{at}"]}))) for at in range(GRANTS_KEPT + 1)]
    again = [access.rule_of(asker(granted({"models": [f"m{at}"]}))) for at in range(GRANTS_KEPT, -1, -1)]
    assert [one is other for one, other in zip(found, reversed(again), strict=True)] == [False] + [True] * GRANTS_KEPT


# --- the refusal, at the gate -----------------------------------------------------------------------------------------

REFUSED = asker_not_allowed("kids-ipad (bob@example.com)")


@pytest.mark.parametrize(
    ("who", "words"),
    [
        (asker(), "notebook (alice@example.com)"),
        (asker(Device(None, None)), "100.64.0.7"),
        (SELF, "this machine itself (127.0.0.1)"),
        (asker(None, "10.0.0.1"), "the address 10.0.0.1"),
    ],
)
def test_refusal_names_the_asker(who, words):
    """Whoever is refused reads under which name, so that the owner knows what to add."""
    assert f"names {words};" in rules((["10.9.9.9"], ["*"])).rule_of(who).message


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        pytest.param(RequestHead("GET", "/api/tags", (1, 1), ()), "host_missing", id="no Host"),
        pytest.param(
            RequestHead("POST", "/x", (1, 1), ((b"Host", b"mac"), (b"Transfer-Encoding", b"gzip"))),
            "transfer_encoding_invalid",
            id="framing in doubt",
        ),
        pytest.param(RequestHead("GET", "/api/tags", (1, 1), ((b"Host", b"mac"),)), "asker_not_allowed", id="a row"),
        pytest.param(RequestHead("GET", "/nope", (1, 1), ((b"Host", b"mac"),)), "asker_not_allowed", id="no row"),
        pytest.param(RequestHead("GET", "/", (1, 1), ((b"Host", b"mac"),)), "asker_not_allowed", id="a closed row"),
    ],
)
def test_refused_asker_learns_nothing_about_the_table(head, reason):
    """An asker that may use nothing reads that, whatever it asks for, unless its head is in doubt."""
    assert decide(head, POLICY, REFUSED).reason == reason


def test_refused_asker_has_its_preflight_answered():
    """A page can show why it is refused only if its preflight is answered. The answer names no open method."""
    fields = ((b"Host", b"mac"), (b"Origin", b"http://localhost"), (b"Access-Control-Request-Method", b"POST"))
    assert decide(RequestHead("OPTIONS", "/api/tags", (1, 1), fields), POLICY, REFUSED) == Preflight(("POST",), None)


ORIGIN, ANNOUNCED = (b"Origin", b"http://localhost"), (b"Access-Control-Request-Method", b"POST")


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        pytest.param("OPTIONS", (ORIGIN,), id="no method is announced"),
        pytest.param("OPTIONS", (ORIGIN, (ANNOUNCED[0], b"GET, POST")), id="no method can be announced so"),
        pytest.param("OPTIONS", (ANNOUNCED,), id="no page asks"),
        pytest.param("GET", (ORIGIN, ANNOUNCED), id="another method"),
        pytest.param("GET", (ANNOUNCED,), id="nothing of a preflight"),
    ],
)
def test_refused_asker_has_nothing_else_answered(method, fields):
    """What only looks like a preflight is refused."""
    head = RequestHead(method, "/api/tags", (1, 1), ((b"Host", b"mac"), *fields))
    assert decide(head, POLICY, REFUSED) is REFUSED
