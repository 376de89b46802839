"""Which askers an entry of `who` names: its form decides what it is compared with, and nothing else is."""

from __future__ import annotations

from types import MappingProxyType
from typing import NamedTuple

import pytest

from proxy.policy.identity import Asker, Standing
from proxy.policy.rule_keys import FORMS, Entry, Kind

NONE = MappingProxyType({})


class Device(NamedTuple):
    """A device as Tailscale describes it."""

    device: str | None = "notebook"
    login: str | None = "alice@example.com"
    tags: tuple[str, ...] = ()
    node: str | None = "nABC123CNTRL"
    shared: bool = False
    addresses: tuple[str, ...] = ("100.64.0.7", "fd7a:115c:a1e0::7")
    capabilities: MappingProxyType[str, tuple[object, ...]] = NONE

    @property
    def user(self) -> str | None:
        return ",".join(self.tags) or self.login


class Tagged(Device):
    """A device with tags that aren't reported, because they are another tailnet's."""

    @property
    def user(self) -> str | None:
        return "tag:theirs"


NOTEBOOK = Device()
ROBOT = Device("robot", None, ("tag:robot", "tag:agents"))
FRIENDS = Device("laptop.tail9876.ts.net", "friend@example.org", node="nFRIEND", shared=True)


def asker(who: Device | None = NOTEBOOK, address: str = "100.64.0.7", *, is_self: bool = False) -> Asker:
    """Return who asks from an address. Without an answer of Tailscale, a device of the tailnet is unknown."""
    in_tailnet = address.startswith(("100.64.", "fd7a:115c:a1e0:"))
    return Asker(address, Standing(who, None, who is None and in_tailnet, is_self))


# --- forms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "kind", "text"),
    [
        ("*", Kind.EVERYONE, "*"),
        ("self", Kind.SELF, "self"),
        (" Self ", Kind.SELF, "self"),
        ("Alice@Example.com", Kind.LOGIN, "alice@example.com"),
        ("alice@github", Kind.LOGIN, "alice@github"),
        ("tag:Agents", Kind.TAG, "tag:agents"),
        ("Kids-iPad", Kind.DEVICE, "kids-ipad"),
        ("a" * 63, Kind.DEVICE, "a" * 63),
        ("node:nABC123CNTRL", Kind.NODE, "nABC123CNTRL"),
        ("node:1", Kind.NODE, "1"),
        ("100.64.0.7", Kind.ADDRESS, "100.64.0.7/32"),
        ("FD7A:115C:A1E0::7", Kind.ADDRESS, "fd7a:115c:a1e0::7/128"),
        ("::ffff:100.64.0.7", Kind.ADDRESS, "100.64.0.7/32"),
        ("::ffff:192.168.7.0/120", Kind.ADDRESS, "192.168.7.0/24"),
        ("::ffff:0:0/96", Kind.ADDRESS, "0.0.0.0/0"),
        ("192.168.7.0/24", Kind.ADDRESS, "192.168.7.0/24"),
    ],
)
def test_form_of_an_entry_says_what_it_names(written, kind, text):
    """Each form has one meaning, in any letter case, and an IPv4 address that is wrapped in IPv6 is the IPv4 one."""
    entry = Entry.read(written)
    assert (entry.kind, entry.text) == (kind, text)


GROUPS = "groups exist only in Tailscale's policy, whose grants can name one (see `capability`)"
ALONE = "`*` stands alone, for everyone"
ZEROS = "the address of a network ends in zeros, as in 192.168.7.0/24"
BLANKS = "a device's name has no blanks; `tailscale status` shows it"
TAGGED = "write a tag as in `tag:agents`, without blanks"


@pytest.mark.parametrize(
    ("written", "advice"),
    [
        ("", ""),
        ("two words", BLANKS),
        ("tag:", TAGGED),
        ("tag:a@example.com", TAGGED),
        ("*@example.com", ALONE),
        ("alice@*", ALONE),
        ("kids-*", ALONE),
        ("tag:*", ALONE),
        ("@example.com", ""),
        ("alice@", ""),
        ("a@b@c", ""),
        ("alice@example.com,bob@example.com", ""),
        ("alice,bob@example.com", ""),
        ("alice bob@example.com", ""),
        ("alice@example.com bob", ""),
        ("a" * 64, ""),
        ("group:kids", GROUPS),
        ("autogroup:member", GROUPS),
        ("mac.tail1234.ts.net", "a device's name is its first label, `mac`"),
        ("192.168.7.5/24", ZEROS),
        ("http://kids-ipad", ""),
        ("fe80::1%en0", ""),
        ("3d-printer.tail1234.ts.net", "a device's name is its first label, `3d-printer`"),
        ("a.b@example.com@c", ""),
        ("100.64.0.256", ""),
    ],
)
def test_entry_without_a_meaning_is_a_mistake(written, advice):
    """A text that would never name anyone is an error that says which forms there are, and what was meant."""
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole text is compared
        Entry.read(written)
    assert str(error.value) == (advice or f"write {FORMS}")


@pytest.mark.parametrize("written", ["node:", "node:a b", "node:a.b"])
def test_node_without_an_id_is_a_mistake(written):
    """A text that begins like a node's must go on with an id."""
    with pytest.raises(ValueError, match="StableID") as error:
        Entry.read(written)
    assert str(error.value) == "write `node:` and the StableID of a device, as in `node:nABC123CNTRL`"


# --- who is named -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "of", "named"),
    [
        ("alice@example.com", asker(), True),
        ("ALICE@example.com", asker(), True),
        ("alice@example.com", asker(Device(login="Alice@Example.COM")), True),
        ("bob@example.com", asker(), False),
        ("alice@example.com", asker(ROBOT), False),
        ("alice@example.com", asker(ROBOT._replace(login="alice@example.com")), False),
        ("tag:agents", asker(ROBOT), True),
        ("TAG:agents", asker(ROBOT), True),
        ("tag:agents", asker(), False),
        ("tag:agent", asker(ROBOT), False),
        ("NoteBook", asker(), True),
        ("notebook", asker(Device("NOTEBOOK")), True),
        ("notebook-1", asker(), False),
        ("node:nABC123CNTRL", asker(), True),
        ("node:nabc123cntrl", asker(), False),
        ("100.64.0.7", asker(), True),
        ("100.64.0.7", asker(address="::ffff:100.64.0.7"), True),
        ("100.64.0.0/16", asker(), True),
        ("100.64.0.8", asker(), False),
        ("10.0.0.0/8", asker(None, "10.1.2.3"), True),
        ("*", asker(None, "10.1.2.3"), True),
        ("self", asker(None, "127.0.0.1", is_self=True), True),
        ("self", asker(), False),
    ],
)
def test_entry_names_an_asker(written, of, named):
    """Logins, tags and device names are compared without letter case, StableIDs exactly, addresses as numbers."""
    assert Entry.read(written).names(of) is named


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        pytest.param("tag:agents", "tag:agents", id="a tag"),
        pytest.param("alice@example.com", "alice@example.com", id="a login"),
        pytest.param("*", "*", id="everyone"),
        pytest.param("self", "self", id="this machine"),
        pytest.param("node:nABC123CNTRL", "node:nABC123CNTRL", id="a node"),
        pytest.param("100.64.0.1", "100.64.0.1", id="an address"),
    ],
)
def test_name_of_a_device_is_only_a_name(name, entry):
    """A device whose user named it like another kind of entry isn't taken for what that entry names."""
    entry = Entry.read(entry)
    mallory = Device(name, "mallory@example.com", (), "nMALLORY", addresses=("100.64.0.66",))
    assert entry.kind is Kind.EVERYONE or entry.names(asker(mallory, "100.64.0.66")) is False


@pytest.mark.parametrize("login", ["tag:agents", "self", "*", "notebook", "100.64.0.7", "node:nABC123CNTRL"])
def test_login_is_only_a_login(login):
    """A user whose login looks like another kind of entry isn't taken for what that entry names."""
    entry = Entry.read(login)
    mallory = Device("x", login, (), "nMALLORY", addresses=("100.64.0.66",))
    assert entry.kind is Kind.EVERYONE or entry.names(asker(mallory, "100.64.0.66")) is False


@pytest.mark.parametrize("login", ["alice@example.com\u017f", "\u212aids@example.com", "alice@example.com\u200b"])
def test_letters_outside_ascii_are_not_folded(login):
    """A login with a letter that Unicode folds into an ASCII one, or with a sign that isn't seen, is another login."""
    who = Device(login=login)
    assert not any(Entry.read(text).names(asker(who)) for text in ("alice@example.com", "kids@example.com"))


@pytest.mark.parametrize("entry", ["laptop", "tag:agents"])
@pytest.mark.parametrize("name", ["laptop", "laptop.tail9876.ts.net"])
def test_name_and_tags_of_a_shared_device_count_for_nothing(entry, name):
    """Strangers choose the name and tags of a device that is shared in from another tailnet."""
    assert Entry.read(entry).names(asker(FRIENDS._replace(device=name, tags=("tag:agents",)))) is False


def test_shared_device_with_tags_has_no_login():
    """A device that is tagged in its own tailnet belongs to no user, and that is certain: waiting wouldn't help."""
    tagged = asker(Tagged("laptop", None, (), "nFRIEND", shared=True))
    assert Entry.read("friend@example.org").names(tagged) is False


@pytest.mark.parametrize("entry", ["friend@example.org", "node:nFRIEND", "100.64.0.7"])
def test_shared_device_is_named_by_what_tailscale_vouches_for(entry):
    """The login of its owner, its StableID and its addresses name a device that is shared in."""
    assert Entry.read(entry).names(asker(FRIENDS)) is True


@pytest.mark.parametrize("address", ["100.64.0.7", "fd7a:115c:a1e0::7"])
@pytest.mark.parametrize("entry", ["100.64.0.7", "fd7a:115c:a1e0::7", "100.64.0.0/24"])
def test_address_names_a_device_whichever_it_uses(entry, address):
    """A device has two addresses: it can't leave a rule that names one by using the other."""
    assert Entry.read(entry).names(asker(address=address)) is True


# --- while Tailscale doesn't say --------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ["alice@example.com", "tag:agents", "notebook", "node:nABC123CNTRL"])
@pytest.mark.parametrize(
    "who",
    [
        pytest.param(None, id="no answer"),
        pytest.param(Device(None, None, (), None, addresses=()), id="an answer without a name"),
    ],
)
def test_unknown_device_may_be_the_named_one(entry, who):
    """While Tailscale doesn't say who a device is, nobody knows whether an entry names it."""
    assert Entry.read(entry).names(asker(who)) is None


@pytest.mark.parametrize("entry", ["alice@example.com", "tag:agents", "notebook", "node:nABC123CNTRL"])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "192.168.7.9", "10.0.0.1", "not an address"])
def test_peer_outside_the_tailnet_has_no_name(entry, address):
    """Tailscale never identifies a peer that has no address of a device, so no name counts for it."""
    assert Entry.read(entry).names(asker(None, address)) is False


@pytest.mark.parametrize("entry", ["0.0.0.0/0", "::/0", "100.64.0.7"])
def test_text_that_is_no_address_is_in_no_network(entry):
    """A peer without a readable address has none that a rule could name."""
    assert Entry.read(entry).names(asker(None, "not an address")) is False


def test_other_address_of_an_unknown_device_may_be_the_named_one():
    """Without an answer, an IPv6 address of the tailnet may belong to the device whose IPv4 address is named."""
    named = Entry.read("100.64.0.7")
    assert named.names(asker(None, "fd7a:115c:a1e0::7")) is None
    assert named.names(asker(None, "100.64.0.8")) is False
    assert Entry.read("10.0.0.0/8").names(asker(None, "fd7a:115c:a1e0::7")) is False


# --- what covers what -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wide", "narrow", "covers"),
    [
        ("*", "alice@example.com", True),
        ("*", "10.0.0.0/8", True),
        ("alice@example.com", "ALICE@example.com", True),
        ("10.0.0.0/8", "10.1.0.0/16", True),
        ("10.1.0.0/16", "10.0.0.0/8", False),
        ("::/0", "10.0.0.0/8", False),
        ("self", "127.0.0.1", True),
        ("self", "127.1.0.0/16", True),
        ("self", "::1", True),
        ("self", "::/127", False),
        ("self", "0.0.0.0/0", False),
        ("self", "10.0.0.1", False),
        ("notebook", "tag:notebook", False),
        ("alice@example.com", "*", False),
    ],
)
def test_entry_covers_another(wide, narrow, covers):
    """An entry covers another if whoever the other names is named by it too."""
    assert Entry.read(wide).covers(Entry.read(narrow)) is covers
