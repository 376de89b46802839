"""Access rules in the gateway: each request is judged by the rule of its asker, and refused in the client's words."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from proxy.exchange.askers import ASKERS_KEPT, COMPLAIN_EACH, Askers
from proxy.policy.access import Access, Rule
from proxy.policy.gate import Policy
from proxy.policy.identity import Standing
from proxy.policy.reasons import Reason
from proxy.policy.rule_keys import RuleSpec
from proxy.tailnet.device import Who
from proxy.tailnet.localapi import SilentError
from proxy.tailnet.whois import RULES_LIFETIME, UNKNOWN_LIFETIME
from tests.exchange.access_stage import BODY, KID, MAC, RULES, Stage
from tests.support.asked_tailscale import ALICE, LAPTOP, LAPTOP6, NOBODY, ROBOT, Clock, Reports
from tests.support.raw_http import LAST_CHUNK, NEXT, chunk, ok, stream_head, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.raw_http import Upstream

CAPABILITY = "example.com/cap/ollama"
CHAT = ("POST", "/api/chat")
TAGS = ("GET", "/api/tags")
EVENT = b'data: {"model":"tiny"}\n\n'


@pytest.fixture
async def stage(upstream: Upstream) -> AsyncIterator[Stage]:
    """Give a gateway with access rules."""
    upstream.answers(ok(b'{"models":[],"data":[]}'))
    stage = Stage(upstream.port)
    await stage.open()
    yield stage
    await stage.close()


# --- who gets through -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "request_line", "status"),
    [
        pytest.param(KID, TAGS, 200, id="a device"),
        pytest.param(KID, CHAT, 403, id="a row that is open for another rule's askers"),
        pytest.param(ROBOT, CHAT, 200, id="a tag and its row"),
        pytest.param(LAPTOP, TAGS, 200, id="a login"),
        pytest.param(LAPTOP6, TAGS, 200, id="a login by IPv6"),
        pytest.param(LAPTOP, ("GET", "/api/version"), 200, id="a row without a model"),
        pytest.param(MAC, TAGS, 200, id="this machine by its own address"),
    ],
)
async def test_asker_gets_what_its_rule_opens(
    stage: Stage, peer: str, request_line: tuple[str, str], status: int
) -> None:
    """Each asker is judged by the first rule that names it, with the rows that this rule opens."""
    assert (await stage.asks(peer, *request_line)).status == status


async def test_this_machine_is_judged_like_anyone(stage: Stage) -> None:
    """The Mac itself needs a rule too: by loopback, and by its Tailscale address."""
    stage.apply(*RULES[:2])
    client = await stage.proxy.connect()
    await client.request("GET", "/api/tags")
    assert b"names this machine itself (127.0.0.1)" in (await client.answer()).content
    assert b"names this machine itself (100.64.0.1)" in (await stage.asks(MAC, *TAGS)).content
    stage.apply(*RULES)
    await client.request("GET", "/api/tags")
    assert (await client.answer()).status == 200


@pytest.mark.parametrize(
    "fields", [{"X_Forwarded_For": NOBODY}, {"Forwarded": f"for={NOBODY}"}, {"Via": "1.1 caddy"}], ids=str
)
async def test_what_this_machine_passes_on_is_not_its_own(stage: Stage, fields: dict[str, str]) -> None:
    """A rule of `tailscale serve` that leads to the proxy's own port makes no device this machine itself."""
    client = await stage.proxy.connect()
    for status, sent in ((200, {}), (403, fields), (200, {})):
        await client.request("GET", "/api/tags", **sent)
        assert (await client.answer()).status == status


@pytest.mark.parametrize("name", ["self", "*", "tag:robot", "alice@example.com", "127.0.0.1"])
async def test_name_of_a_device_opens_nothing(stage: Stage, name: str) -> None:
    """A device that its user named like an entry of another kind is named by no rule."""
    stage.tailscale.join(Who(name, "mallory@example.com", (NOBODY,), "mallory@example.com", node="nMallory"))
    assert (await stage.asks(NOBODY, *TAGS)).status == 403


async def test_shared_device_opens_nothing_by_its_name(stage: Stage) -> None:
    """A device of another tailnet that is called as one of ours is named by no rule."""
    stage.tailscale.join(Who("kids-ipad", "eve@example.org", (NOBODY,), "eve@example.org", node="nEve", shared=True))
    assert (await stage.asks(NOBODY, *TAGS)).status == 403


async def test_devices_alternate_on_one_connection(stage: Stage) -> None:
    """Tailscale's serve sends requests of several devices on one connection, and each is judged by its own rule."""
    wire = await stage.wire()
    for _ in range(3):
        assert (await stage.asks(ROBOT, *CHAT, wire)).status == 200
        assert (await stage.asks(KID, *CHAT, wire)).status == 403
        assert (await stage.asks(LAPTOP, *TAGS, wire)).status == 200


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "target", "shape"),
    [
        pytest.param("POST", "/v1/chat/completions", ["error"], id="openai"),
        pytest.param("POST", "/v1/messages", ["type", "error", "request_id"], id="anthropic"),
        pytest.param("GET", "/api/tags", ["error"], id="native"),
        pytest.param("GET", "/nope", ["error"], id="no row"),
    ],
)
async def test_asker_that_no_rule_names_is_refused(
    stage: Stage, upstream: Upstream, method: str, target: str, shape: list[str]
) -> None:
    """It gets 403 in the form of the API that it means, and Ollama gets nothing."""
    stage.apply(*RULES[:2])
    answer = await stage.asks(LAPTOP, method, target)
    assert (answer.status, list(json.loads(answer.content))) == (403, shape)
    assert "No rule of `access` on the server names laptop (alice@example.com)" in answer.content.decode()
    (line,) = await stage.proxy.lines()
    assert (line["reason"], line["verdict"], line["device"]) == ("asker_not_allowed", "refused", "laptop")
    assert upstream.requests == []


async def test_refused_page_can_show_why(stage: Stage) -> None:
    """A page's preflight is answered, and its refusal has the fields that let it be read."""
    stage.apply(*RULES[:2])
    page = {"Origin": "http://localhost", "Access_Control_Request_Method": "GET"}
    assert (await stage.asks(LAPTOP, "OPTIONS", "/api/tags", **page)).status == 204
    answer = await stage.asks(LAPTOP, *TAGS, Origin="http://localhost")
    assert (answer.status, answer.fields["access-control-allow-origin"]) == (403, "http://localhost")


@pytest.mark.parametrize(
    "failure", [SilentError("it is gone", "tailscale status"), OSError("no"), ValueError("no")], ids=repr
)
async def test_silent_tailscale_opens_nothing(stage: Stage, failure: Exception) -> None:
    """While Tailscale doesn't answer, whoever needs a name gets 503 and may try again. It is logged once."""
    stage.tailscale.failure = failure
    for peer in (KID, LAPTOP, NOBODY):
        answer = await stage.asks(peer, *TAGS)
        assert (answer.status, answer.fields["retry-after"]) == (503, "1")
    assert {line["reason"] for line in await stage.proxy.lines(3)} == {"identity_needed"}
    assert [event for event, _ in stage.reports.events].count("asker_unidentified") == 1
    client = await stage.proxy.connect()
    await client.request("GET", "/api/tags")
    answer = await client.answer()
    assert answer.status == 200  # loopback has no name that a rule before `self` could mean
    stage.tailscale.failure = None
    stage.clock.now += 60
    assert (await stage.asks(LAPTOP, *TAGS)).status == 200


async def test_silent_tailscale_gives_no_later_rule(stage: Stage) -> None:
    """A device can't reach a rule for everyone before Tailscale answers, because an earlier rule may name it."""
    stage.apply(RULES[0], RuleSpec(("*",), ("*",)))
    stage.tailscale.failure = SilentError("it is gone", "tailscale status")
    assert (await stage.asks(KID, *TAGS)).status == 503
    stage.apply(RuleSpec(("*",), ("*",)), RULES[0])
    assert (await stage.asks(KID, *TAGS)).status == 200


async def test_device_that_loses_its_tag_is_refused(stage: Stage) -> None:
    """An answer of Tailscale counts for 10 s. After that a device has what it has now, on open connections too."""
    wire = await stage.wire()
    assert (await stage.asks(ROBOT, *CHAT, wire)).status == 200
    stage.tailscale.join(Who("robot", "tag:other", (ROBOT,), tags=("tag:other",), node="nRobot1CNTRL"))
    stage.clock.now += RULES_LIFETIME
    assert (await stage.asks(ROBOT, *CHAT, wire)).status == 403


async def test_running_answer_is_not_cut(stage: Stage, upstream: Upstream) -> None:
    """An answer that has begun goes on to its end, although its device may not ask the same again."""
    upstream.answers(stream_head(), chunk(EVENT), NEXT, chunk(b"data: [DONE]\n\n"), LAST_CHUNK)
    running = await stage.wire()
    await running.request("POST", "/v1/chat/completions", BODY, X_Forwarded_For=ROBOT)
    await upstream.arrived.wait()
    stage.tailscale.join(Who("robot", "tag:other", (ROBOT,), tags=("tag:other",), node="nRobot1CNTRL"))
    stage.clock.now += RULES_LIFETIME
    assert (await stage.asks(ROBOT, *TAGS)).status == 403
    stage.apply(RULES[0])
    upstream.proceed()
    answer = await running.answer()
    assert (answer.status, answer.content) == (200, EVENT + b"data: [DONE]\n\n")


async def test_slow_tailscale_holds_up_nobody_else(stage: Stage, upstream: Upstream) -> None:
    """A device whose name takes long waits for it. Others are served meanwhile by what is known about them."""
    assert (await stage.asks(LAPTOP, *TAGS)).status == 200
    stage.tailscale.hang()
    waiting = asyncio.create_task(stage.asks(ROBOT, *CHAT))
    await until(lambda: ROBOT in stage.tailscale.asked)
    assert (await stage.asks(LAPTOP, *TAGS)).status == 200
    assert len(upstream.requests) == 2
    stage.tailscale.answer()
    assert (await waiting).status == 200


async def test_answer_about_another_device_opens_nothing(stage: Stage, upstream: Upstream) -> None:
    """A Tailscale that names another device than the one that asks has named none."""
    stage.tailscale.peers[NOBODY] = ALICE
    assert (await stage.asks(NOBODY, *TAGS)).status == 503
    assert upstream.requests == []


async def test_tailscaled_that_starts_opens_nothing(stage: Stage) -> None:
    """A tailscaled that has just started knows no device, not even this one. All are served once it knows them."""
    nodes = dict(stage.tailscale.peers)
    stage.tailscale.peers.clear()
    assert (await stage.asks(LAPTOP, *TAGS)).status == 403
    assert (await stage.asks(MAC, *TAGS)).status == 503
    stage.tailscale.peers |= nodes
    stage.clock.now += UNKNOWN_LIFETIME
    assert [(await stage.asks(peer, *TAGS)).status for peer in (LAPTOP, MAC)] == [200, 200]


async def test_reload_counts_for_the_next_request(stage: Stage) -> None:
    """New rules count from the next request on, on connections that are open too."""
    wire = await stage.wire()
    assert (await stage.asks(LAPTOP, *TAGS, wire)).status == 200
    stage.apply(RULES[0])
    assert (await stage.asks(LAPTOP, *TAGS, wire)).status == 403
    stage.proxy.gateway.askers = None
    assert (await stage.asks(LAPTOP, *TAGS, wire)).status == 200


# --- grants -----------------------------------------------------------------------------------------------------------


def granted(*values: object) -> Who:
    return Who(
        *("visitor", "bob@example.com", (NOBODY,), "bob@example.com"), node="nBob", capabilities={CAPABILITY: values}
    )


async def test_grant_lets_in_whoever_no_rule_names(stage: Stage) -> None:
    """A grant of the capability counts as a rule, which opens no rows by itself."""
    stage.apply(*RULES, capability=CAPABILITY)
    stage.tailscale.join(granted({"models": ["tiny"], "also": ["POST /api/chat"]}))
    assert (await stage.asks(NOBODY, *TAGS)).status == 200
    assert (await stage.asks(NOBODY, *CHAT)).status == 403
    (event,) = [fields for name, fields in stage.reports.events if name == "grant_unreadable"]
    assert "visitor (bob@example.com)" in event["problem"]
    assert "capability_may_open_rows" in event["problem"]


async def test_unreadable_grant_counts_as_nothing(stage: Stage) -> None:
    """A value of a wrong kind lets no one in. It is logged once a minute, with the device and the mistake."""
    stage.apply(*RULES, capability=CAPABILITY)
    stage.tailscale.join(granted({"models": "*"}))
    for _ in range(2):
        assert (await stage.asks(NOBODY, *TAGS)).status == 403
        stage.clock.now += RULES_LIFETIME
    problems = [fields["problem"] for name, fields in stage.reports.events if name == "grant_unreadable"]
    mistake = '`models` is not a list; write ["*"]'
    assert problems == [f"a grant for visitor (bob@example.com) counts as nothing: {mistake}"]


# --- what is reported -------------------------------------------------------------------------------------------------

UNNAMED = {
    "problem": "Tailscale doesn't say who 100.64.0.99 is, so a rule of `access` can't be applied: it is refused",
    "hint": "tailscale status",
}
UNREADABLE = {
    "problem": 'a grant for visitor (bob@example.com) counts as nothing: `models` is not a list; write ["*"]',
    "hint": "correct the grant in Tailscale's policy",
}


@pytest.mark.parametrize(
    ("standing", "event", "fields"),
    [
        pytest.param(Standing(unknown=True), "asker_unidentified", UNNAMED, id="no name"),
        pytest.param(Standing(granted({"models": "*"})), "grant_unreadable", UNREADABLE, id="a grant"),
    ],
)
def test_trouble_is_reported_once_a_minute(standing: Standing, event: str, fields: dict[str, str]) -> None:
    """A diagnostic says what is wrong and what to do, and the same kind follows after a minute at the earliest."""
    reports, clock = Reports(), Clock()
    askers = Askers(Access((), Policy.of(max_body=1), CAPABILITY, may_open_rows=False), reports, clock)
    for seconds in (0, COMPLAIN_EACH - 1, 1):
        clock.now += seconds
        askers.rule_of(NOBODY, standing._replace())  # as Tailscale's next answer brings it
    assert reports.events == [(event, fields)] * 2


# --- cost -------------------------------------------------------------------------------------------------------------


class Counted(Access):
    """Rules that count how often they are gone through."""

    looked = 0

    def rule_of(self, asker):
        """Count, and look."""
        self.looked += 1
        return super().rule_of(asker)


def test_rules_are_gone_through_once_for_each_answer():
    """As long as Tailscale's answer is the same, the rule of an asker isn't looked up again."""
    access = Counted((), Policy.of(max_body=1), CAPABILITY, may_open_rows=False)
    askers = Askers(access, Reports(), Clock())
    answers = [Standing(ALICE), Standing(ALICE)]
    for standing in answers:
        for _ in range(5):
            assert askers.rule_of(LAPTOP, standing).reason is Reason.ASKER_NOT_ALLOWED
    assert access.looked == 2


def test_kept_rules_are_bounded():
    """However many addresses ask, few of their rules are kept, and each gets its own."""
    access = Access.of([RuleSpec(("10.0.0.0/8",), ("*",))], Policy.of(max_body=1))
    askers = Askers(access, Reports(), Clock())
    outside = Standing()
    known = set()
    for number in range(2 * ASKERS_KEPT):
        for network, allowed in ((10, True), (11, False)):
            found = askers.rule_of(f"{network}.0.{number // 256}.{number % 256}", outside)
            assert isinstance(found, Rule) is allowed
            known.add(int(repr(askers).rpartition(", ")[2].split()[0]))
    assert max(known) == ASKERS_KEPT
