"""Who `explain --from` means: a device that Tailscale knows, or one of which only what is given is true."""

from __future__ import annotations

import asyncio

import pytest

from proxy.manage.asker import find_asker
from proxy.manage.explain import explain
from proxy.settings.settings import load
from proxy.tailnet.device import Who, of_neighbours
from proxy.tailnet.localapi import SilentError
from proxy.terminal.result import CommandError
from tests.fakes.localapi import recorded
from tests.support.asked_tailscale import AskedTailscale

KID = Who("kids-ipad", "carol@example.com", ("100.64.0.20",), "carol@example.com", node="nKid")
ROBOT = Who("robot", "tag:agents", ("100.64.0.8",), tags=("tag:agents",), node="nRobot")
FRIENDS = Who("laptop.tail9.ts.net", "eve@example.org", ("100.64.0.30",), "eve@example.org", node="nEve", shared=True)
RULES = """\
[[access]]
who = ["kids-ipad"]
models = ["gemma3:4b"]

[[access]]
who = ["tag:agents"]
models = ["qwen3:*"]
also = ["POST /api/chat"]

[[access]]
who = ["alice@example.com", "self"]
models = ["*"]
"""


class Tailscale(AskedTailscale):
    """A Tailscale that also lists its devices."""

    async def neighbours(self) -> tuple[Who, ...]:
        """Return all of them."""
        return tuple(self.peers.values())


def found(written: str, tailscale: Tailscale | None = None):
    """Return who is meant, and the note."""
    return asyncio.run(find_asker(written, tailscale or Tailscale(KID, ROBOT, FRIENDS), None))


@pytest.fixture
def told(tmp_path):
    """Return a function that explains a request under the rules above."""
    path = tmp_path / "config.toml"
    path.write_text(RULES)

    def say(written: str, method: str, target: str, model: str | None = None):
        loaded = load({"config": str(path)}, {"HOME": "/nowhere"})
        return explain(loaded, method, target, None, None, asker=found(written)[0], model=model)

    return say


@pytest.mark.parametrize(
    ("written", "who"),
    [
        ("kids-ipad", KID),
        ("Kids-iPad", KID),
        ("carol@example.com", KID),
        ("node:nKid", KID),
        ("100.64.0.20", KID),
        ("::ffff:100.64.0.20", KID),
        ("tag:agents", ROBOT),
        ("eve@example.org", FRIENDS),
    ],
)
def test_device_that_tailscale_knows(written, who):
    """A device can be given by anything that names it, and is judged with all that Tailscale says of it."""
    asker, note = found(written)
    assert (asker.address, asker.standing.who, note) == (who.addresses[0], who, "")


@pytest.mark.parametrize("written", ["self", "127.0.0.1", "::1"])
def test_this_machine(written):
    """`self` and loopback are this machine."""
    assert found(written)[0].standing.is_self


@pytest.mark.parametrize("written", ["dave@example.com", "tag:other", "unknown", "node:nOther"])
def test_device_that_nobody_knows(written):
    """A device that isn't there is explained as one of which only this is true, with a note."""
    asker, note = found(written)
    assert str(asker) == written
    assert "knows no such device" in note


def test_login_means_another_device_than_this_machine():
    """Of the devices that a login names, this machine, which is listed first, comes last: `self` names it."""
    mac = KID._replace(device="mac", addresses=("100.64.0.1",))
    assert found("carol@example.com", Tailscale(mac, ROBOT, KID))[0].standing.who == KID
    assert found("carol@example.com", Tailscale(mac, ROBOT))[0].standing.who == mac


def test_device_of_another_tailnet_by_its_name():
    """A device that is shared in is found by its name, though such a name counts for no rule."""
    assert found("laptop")[0].standing.who == FRIENDS


@pytest.mark.parametrize(
    ("written", "meant"),
    [("kids-ipd", "kids-ipad"), ("tag:agent", "tag:agents"), ("eve@example.com", "eve@example.org")],
)
def test_misspelt_device(written, meant):
    """A device that isn't there gets a note with the nearest one that is."""
    assert found(written)[1].endswith(f"; did you mean {meant}?")


@pytest.mark.parametrize("written", ["*", "100.64.0.0/10", "two words", "mac.tail1234.ts.net"])
def test_more_than_one_device_is_wrong_usage(written):
    """What isn't one device is an error that says which forms there are."""
    with pytest.raises(CommandError, match="--from"):
        found(written)


def test_address_that_tailscale_does_not_know():
    """An address without a device is refused as the proxy refuses it; without an answer nobody knows."""
    assert found("100.64.0.99")[0].standing.refusal.reason == "peer_unknown"
    silent = Tailscale(KID)
    silent.failure = SilentError("it is gone", "tailscale status")
    asker, note = found("100.64.0.20", silent)
    assert asker.standing.unknown
    assert "it is gone" in note


@pytest.mark.parametrize(
    ("written", "request_line", "model", "verdict", "asker", "rule"),
    [
        pytest.param(
            *("kids-ipad", ("POST", "/v1/messages"), "gemma3:4b", "served"),
            *("kids-ipad (carol@example.com): rule 1 of `access` counts", "rule 1 of `access` allows the model gemma3"),
            id="allowed",
        ),
        pytest.param(
            *("kids-ipad", ("POST", "/v1/messages"), "qwen3:8b", "refused"),
            *("kids-ipad (carol@example.com): rule 1 of `access` counts", "rule 1 of `access`"),
            id="another model",
        ),
        pytest.param(
            *("tag:agents", ("POST", "/api/chat"), "qwen3:8b", "served"),
            *("robot (tag:agents): rule 2 of `access` counts", "opened by `also` of rule 2 of `access`"),
            id="a row of its own",
        ),
        pytest.param(
            *("self", ("POST", "/api/chat"), None, "refused"),
            *("this machine itself (127.0.0.1): rule 3 of `access` counts", "path_not_served"),
            id="a row of others",
        ),
        pytest.param(
            *("bob@example.com", ("GET", "/api/tags"), None, "refused"),
            *("bob@example.com: no rule counts", "asker_not_allowed: No rule of `access`"),
            id="no rule",
        ),
    ],
)
def test_explanation_says_which_rule_counts(told, written, request_line, model, verdict, asker, rule):
    """The explanation says who asks, which rule counts, and what it decides."""
    explanation = told(written, *request_line, model)
    assert (explanation.verdict, explanation.asker) == (verdict, asker)
    assert rule in explanation.rule
    assert (explanation.forwarded is None) is (verdict == "refused")


@pytest.mark.parametrize(
    ("method", "target", "model", "reason"),
    [
        pytest.param("POST", "/v1/messages", "qwen3:8b", "model_not_allowed", id="body"),
        pytest.param("GET", "/v1/models/qwen3%3a8b", None, "model_not_allowed", id="path"),
        pytest.param("GET", "/v1/models/qwen3:8b", "gemma3:4b", "model_not_allowed", id="path_counts"),
        pytest.param("POST", "/api/show", "gemma3:4b-cloud", "model_not_allowed", id="cloud_not_allowed"),
        pytest.param("GET", "/api/version", "qwen3:8b", None, id="no_model"),
        pytest.param("GET", "/v1/models", "qwen3:8b", None, id="list"),
    ],
)
def test_a_model_is_explained_as_it_is_judged(told, method, target, model, reason):
    """A request for a model is explained with the proxy's own verdict, in the client's own form."""
    explanation = told("kids-ipad", method, target, model)
    assert explanation.verdict == ("served" if reason is None else "refused")
    if reason is not None:
        assert explanation.rule.startswith(f"{reason}: ")
        assert explanation.answer.startswith("HTTP/1.1 403 Forbidden\n")
        assert "is not among those that rule 1 of `access` allows" in explanation.answer


def test_neighbours_of_a_recorded_status():
    """The devices of a real status: a person's with the login, a tagged one with its tags, each with its StableID."""
    known = {who.device: who for who in of_neighbours(recorded("status-peers-running.txt"))}
    assert set(known) == {"mac", "phone", "robot", "notebook"}
    assert known["phone"][1:7] == (
        *("user-3@fake-control.example.net", ("100.64.0.3", "fd7a:115c:a1e0:ab12:4843:cd96:6240:3")),
        *("user-3@fake-control.example.net", (), "TESTCTRL00000003", False),
    )
    assert (known["robot"].login, known["robot"].tags) == (None, ("tag:robot",))


def test_neighbour_of_another_tailnet():
    """A device that is shared in has its whole name and no tags, so that no rule takes it for one of ours."""
    status = recorded("status-peers-running.txt")
    peer = next(each for each in status["Peer"].values() if each["HostName"] == "robot")
    peer["DNSName"] = "phone.tail9876.ts.net."
    (shared,) = [who for who in of_neighbours(status) if who.shared]
    assert (shared.device, shared.tags) == ("phone.tail9876.ts.net", ())


@pytest.mark.parametrize("document", [None, 5, [], {}, {"Peer": 5, "Self": []}, {"Peer": {"a": None}}, {"User": 7}])
def test_neighbours_of_anything(document):
    """A document that is no status has no devices."""
    assert of_neighbours(document) == ()
