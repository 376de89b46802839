"""Devices of a tailnet: their addresses, and who they are by an answer to whois."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.tailnet.device import ADDRESSES_LIMIT, CAPABILITY_LIMIT, TAGS_LIMIT, is_device, of_whois
from proxy.tailnet.fields import TEXT_LIMIT
from tests.fakes.localapi import person, recorded, shared_in, sharee, tagged

CAPABILITY = "example.com/cap/ollama"
ALICE = "alice@example.com"

# Any JSON, whose objects have the names that are looked for.
NAMES = (
    *("Node", "Name", "ComputedName", "Tags", "StableID", "Sharer", "Hostinfo", "ShareeNode", "Addresses"),
    *("UserProfile", "LoginName", "CapMap", CAPABILITY),
)
VALUES = ("100.64.0.7/32", "tag:a", "a.b.", "laptop", ALICE)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(VALUES) | st.text(max_size=9),
    lambda deeper: (
        st.lists(deeper, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=9), deeper, max_size=8)
    ),
    max_leaves=30,
)


def node(**fields):
    """Return an answer about a device that has these fields more."""
    answer = person("x", ALICE)
    answer["Node"] |= fields
    return answer


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "device"),
    [
        ("100.64.0.0", True),
        ("100.127.255.255", True),
        ("100.63.255.255", False),
        ("100.128.0.0", False),
        ("100.115.91.255", True),
        ("100.115.92.0", False),
        ("100.115.93.255", False),
        ("100.115.94.0", True),
        ("100.100.100.100", False),
        ("fd7a:115c:a1e0::1", True),
        ("fd7a:115c:a1e0:ab12::1", True),
        ("fd7a:115c:a1e0::53", False),
        ("fd7a:115c:a1e1::1", False),
        ("::ffff:100.64.0.1", False),
        ("fe80::1%utun4", False),
        ("mac.tail1234.ts.net", False),
        ("100.64.0.0/10", False),
    ],
)
def test_is_device(address, device):
    """A device's address is one that Tailscale assigns: not ChromeOS' part of the range, nor the resolver."""
    assert is_device(address) is device


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "device", "user"),
    [
        pytest.param(person("laptop", ALICE), "laptop", ALICE, id="person"),
        pytest.param(tagged("runner", "tag:ci", "tag:eu"), "runner", "tag:ci,tag:eu", id="tagged"),
        pytest.param(shared_in("nas", "bob@example.org"), "nas.tail99.ts.net", "bob@example.org", id="shared_in"),
        pytest.param(sharee("laptop", "bob@example.org"), "laptop", "bob@example.org", id="of_a_user_who_may_come"),
        pytest.param({"Node": {"Name": "nas.tail1234.ts.net."}}, "nas", None, id="first_label_of_name"),
        pytest.param({"Node": None, "UserProfile": {"LoginName": "a@b"}}, None, "a@b", id="user_alone"),
        pytest.param({"Node": {"Tags": [], "ComputedName": "x"}, "UserProfile": None}, "x", None, id="null"),
        pytest.param({"Node": {"ComputedName": "x" * 999}}, "x" * TEXT_LIMIT, None, id="cut"),
    ],
)
def test_name(answer, device, user):
    """The log shows a device by its name and its user, or its tags where it belongs to nobody."""
    who = of_whois(answer)
    assert (who.device, who.user) == (device, user)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param({"Node": {"ComputedName": "."}}, id="no_name"),
        pytest.param({}, id="nothing"),
        pytest.param(None, id="nobody"),
        pytest.param(tagged("x", *(f"tag:{number}" for number in range(TAGS_LIMIT + 1))), id="too_many_tags"),
        pytest.param(tagged("x", "tag:" + "x" * TEXT_LIMIT), id="too_long_a_tag"),
        pytest.param(person("x", ALICE) | {"CapMap": {CAPABILITY: ["x" * CAPABILITY_LIMIT]}}, id="too_long_values"),
    ],
)
def test_nobody(answer):
    """An answer without a name, or with more than is read, is none: what is left out could be what a rule names."""
    assert of_whois(answer, CAPABILITY) is None


def test_addresses():
    """An answer names the addresses of the device, as many as one may have, without their prefix lengths."""
    who = of_whois(node(Addresses=["100.64.0.7/32", "fd7a:115c:a1e0::7/128", 5, None]))
    assert who.addresses == ("100.64.0.7", "fd7a:115c:a1e0::7")
    many = [f"100.64.1.{number}/32" for number in range(99)]
    assert of_whois(node(Addresses=many)).addresses == tuple(f"100.64.1.{number}" for number in range(ADDRESSES_LIMIT))


# --- what rules name --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "login", "tags", "shared"),
    [
        pytest.param(person("laptop", ALICE), ALICE, (), False, id="person"),
        pytest.param(tagged("runner", "tag:ci", "tag:eu"), None, ("tag:ci", "tag:eu"), False, id="tagged"),
        pytest.param(recorded("whois-tagged.txt"), None, ("tag:robot",), False, id="tags_outweigh_a_login"),
        pytest.param(recorded("whois-tagged.json", "1.102.5-headscale"), None, ("tag:robot",), False, id="headscale"),
        pytest.param(shared_in("nas", ALICE), ALICE, (), True, id="shared_in"),
        pytest.param(sharee("laptop", ALICE), ALICE, (), True, id="of_a_user_who_may_come"),
        pytest.param(sharee("laptop", ALICE, "tag:ci"), None, ("tag:ci",), True, id="tags_of_another_tailnet"),
        pytest.param(node(Sharer=7), ALICE, (), True, id="sharer"),
        pytest.param(node(Hostinfo={"ShareeNode": True}), ALICE, (), True, id="sharee"),
        pytest.param(node(Name=""), ALICE, (), True, id="no_name_in_this_tailnet"),
        pytest.param(node(ComputedName="x.tail99.ts.net"), ALICE, (), True, id="name_in_another"),
        pytest.param(node(Sharer=0, Hostinfo=None), ALICE, (), False, id="no_sharer"),
    ],
)
def test_login_tags_and_tailnet(answer, login, tags, shared):
    """A device has tags or an owner's login, and it is marked where they belong to another tailnet."""
    who = of_whois(answer)
    assert (who.login, who.tags, who.shared) == (login, tags, shared)


def test_node():
    """The stable id is the one that the admin console and the CLI show."""
    assert of_whois(recorded("whois-user.txt")).node == "TESTCTRL00000002"
    assert of_whois(node(StableID=None)).node is None


@pytest.mark.parametrize(
    ("capmap", "capabilities"),
    [
        pytest.param({CAPABILITY: [{"a": 1}, {"b": 2}]}, {CAPABILITY: ({"a": 1}, {"b": 2})}, id="values"),
        pytest.param({CAPABILITY: [], "other": [1]}, {CAPABILITY: ()}, id="no_values"),
        pytest.param({CAPABILITY: None}, {CAPABILITY: ()}, id="null_in_place_of_values"),
        pytest.param({"other": [1], CAPABILITY.upper(): [1]}, {}, id="another"),
        pytest.param({CAPABILITY: {"a": 1}}, {}, id="no_list"),
        pytest.param(None, {}, id="no_grants"),
    ],
)
def test_capability(capmap, capabilities):
    """Only the values of the capability that is asked about are kept."""
    answer = person("laptop", ALICE) | {"CapMap": capmap}
    assert of_whois(answer, CAPABILITY).capabilities == capabilities
    assert of_whois(answer).capabilities == {}


def test_recorded_capability():
    """A grant's values are as Tailscale gives them."""
    for name, version in (("whois-user.txt", "1.102.5"), ("whois-user.txt", "1.98.10")):
        who = of_whois(recorded(name, version), CAPABILITY)
        assert who.capabilities == {CAPABILITY: ({"models": ["tiny"]},)}


def test_deep_values():
    """Values that are nested too deeply to be measured are too many."""
    deep = []
    for _ in range(500):
        deep = [deep]
    assert of_whois(person("x", ALICE) | {"CapMap": {CAPABILITY: deep}}, CAPABILITY) is None


@given(ANY_JSON)
def test_any_form(document):
    """Whatever comes, it names someone by texts that aren't empty, or nobody."""
    who = of_whois(document, CAPABILITY)
    if who is not None:
        assert any((who.device, who.user))
        assert all(text is None or 0 < len(text) <= TEXT_LIMIT for text in (who.device, who.user, who.login, who.node))
