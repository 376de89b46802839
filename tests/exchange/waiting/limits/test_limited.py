"""A rule's `max_active` holds over all its askers, holds up nobody else, and lets everyone through in turn."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.exchange.message.limits import Limit, active_limits, limit_of
from proxy.exchange.message.tickets import NO_FORM, Form, Ticket
from proxy.exchange.waiting.queue import Load, Queue, Send
from proxy.policy.access import Access
from proxy.policy.gate import Policy
from proxy.policy.identity import Asker, Standing
from proxy.policy.rule_keys import RuleSpec
from proxy.tailnet.device import Who
from tests.exchange.waiting.test_queue import FORMS, X_LARGE, Mac, X, Y, Z
from tests.support.examples import examples

CAPABILITY = "example.com/cap/ollama"
ONE, TWO, FREE = Limit(("kids",), 1, "rule 1"), Limit(("agents",), 2, "rule 2"), Limit(("me",), None, "rule 3")


def queue_with(*loaded: Form, max_waiting: int = 64) -> Queue:
    """Return a queue before an Ollama that has these models in memory, all at once."""
    queue = Queue(swap_after=60.0, max_waiting=max_waiting)
    for form in loaded:
        queue.loaded(form, {each.model for each in loaded}, 0.0)
    return queue


def asks(queue: Queue, number: int, device: str, form: Form, limit: Limit | None, now: float = 100.0) -> Ticket:
    """Let a request join, whatever is turned away for it."""
    ticket = Ticket(number, device, form, now, None, limit=limit)
    queue.join(ticket)
    return ticket


def sent(queue: Queue, now: float = 100.0) -> list[int]:
    """Return the numbers of the requests that go to Ollama now."""
    return [each.ticket.number for each in queue.decide(now) if isinstance(each, Send)]


def test_limit_counts_all_askers_and_models_of_a_rule() -> None:
    """Requests of two devices for two models count together, and the rest wait in turn."""
    queue = queue_with(X, Y)
    tickets = [asks(queue, at, device, form, TWO) for at, (device, form) in enumerate([("a", X), ("b", Y), ("a", Y)])]
    assert sent(queue) == [0, 1]
    queue.leave(tickets[1], 101.0)
    assert sent(queue) == [2]


def test_limit_holds_up_no_other_rule() -> None:
    """Requests of another rule, or of none, for the same model pass those that wait for a limit."""
    queue = queue_with(X)
    for number in range(3):
        asks(queue, number, "kid", X, ONE)
    asks(queue, 3, "agent", X, TWO)
    asks(queue, 4, "me", X, FREE)
    asks(queue, 5, "other", X, None)
    assert sorted(sent(queue)) == [0, 3, 4, 5]


@pytest.mark.parametrize(("limit", "taken"), [(ONE, False), (TWO, True), (FREE, True), (None, True)])
def test_short_way_knows_the_limit(limit: Limit | None, taken: bool) -> None:
    """A request that nobody is ahead of is sent at once unless its rule is at its limit."""
    queue = queue_with(X)
    assert queue.take(Ticket(1, "kid", X, 100.0, limit=ONE))
    assert queue.take(Ticket(2, "other", X, 100.0, limit=limit)) is taken


def test_request_for_no_model_here_waits_for_its_limit_alone() -> None:
    """It needs nothing loaded, and its answer says nothing about what is."""
    queue = queue_with(X)
    first, second = (Ticket(at, "kid", NO_FORM, 100.0, shielded=False, limit=ONE) for at in range(2))
    assert queue.take(first)
    queue.join(second)
    assert sent(queue) == []
    queue.leave(first, 101.0, answered=True)
    assert sent(queue) == [1]
    assert queue.forms == (X,)


def test_request_for_no_model_here_and_a_load_hold_up_neither() -> None:
    """A load begins while such a request is answered, and such a request is sent during the load."""
    queue = queue_with(X)
    queue.take(Ticket(0, "kid", NO_FORM, 100.0, shielded=False, limit=TWO))
    ticket = asks(queue, 1, "me", Y, FREE)
    assert queue.decide(100.0) == [Load(Y, ticket)]
    queue.join(Ticket(2, "kid", NO_FORM, 100.0, shielded=False, limit=TWO))
    assert sent(queue) == [2]


def test_held_request_says_so() -> None:
    """The queue says which requests wait for a limit, and not for a model."""
    queue = queue_with(X)
    asks(queue, 0, "kid", X, ONE)
    asks(queue, 1, "kid", X, ONE)
    asks(queue, 2, "me", Y, FREE)
    queue.decide(100.0)
    assert queue.held(100.0) == {1}


def test_place_that_is_kept_for_a_late_request_is_a_limit() -> None:
    """A request waits for its limit as well if the last place is kept for a late one, whose model is being loaded."""
    queue = queue_with(X, Y)
    queue.listed(["x"], 100.0)
    late = asks(queue, 0, "kid", Y, ONE, now=0.0)
    asks(queue, 1, "kid2", X, ONE)
    assert queue.decide(100.0) == [Load(Y, late)]
    assert queue.held(100.0) == {1}


def test_limit_causes_no_load() -> None:
    """No model is loaded for a request that its limit holds back, however long it waits."""
    queue = queue_with(X)
    first = asks(queue, 0, "kid", X, ONE)
    waits = asks(queue, 1, "kid", Y, ONE)
    assert sent(queue) == [0]
    assert queue.decide(10_000.0) == []
    queue.leave(first, 10_000.0)
    assert queue.decide(10_010.0) == [Load(Y, waits)]


def test_load_does_not_count_as_active() -> None:
    """While a model is loaded for an asker, the rule's place is free for others of the rule."""
    queue = queue_with(X, Y)
    queue.listed(["x"], 100.0)
    waits = asks(queue, 0, "kid", Y, ONE)
    assert queue.decide(100.0) == [Load(Y, waits)]
    asks(queue, 1, "kid2", X, ONE)
    assert sent(queue) == [1]


def test_request_for_a_missing_model_keeps_its_place_at_last() -> None:
    """Askers of one rule that use a loaded model don't pass one without end that needs another."""
    mac = Mac(answer_takes=7.0, load_takes=30.0, slots=None)
    mac.queue.loaded(X, {"x"}, 0.0)
    mac.memory, mac.now = [X], 1000.0
    for device in "abc":
        ask(mac, device, X, ONE)
    ticket = ask(mac, "d", Y, ONE)
    while ticket not in mac.done:
        assert mac.now < 1000 + 60 + 30 + 10 * 7
        for each in mac.step():
            ask(mac, each.device, each.form, ONE)


def test_limit_turns_away_its_own_askers() -> None:
    """When all places are taken, one of those that wait for a limit is turned away, not an asker of another rule."""
    queue = queue_with(X, max_waiting=4)
    asks(queue, 0, "kid", X, ONE)
    sent(queue)
    held = [asks(queue, number, f"kid{number}", X, ONE) for number in range(1, 5)]
    mine = Ticket(5, "me", X, 100.0, limit=FREE)
    assert queue.join(mine) in held
    assert sent(queue) == [5]


def test_reload_changes_the_limit_of_those_who_wait() -> None:
    """A new `max_active` counts for requests that came before it, and so does a limit that is gone or lower."""
    queue = queue_with(X)
    tickets = [asks(queue, number, "agent", X, TWO) for number in range(6)]
    assert sent(queue) == [0, 1]
    queue.limits = {TWO.key: 3}
    assert sent(queue) == [2]
    queue.limits = {TWO.key: 1}
    for each in tickets[:2]:
        queue.leave(each, 101.0)
    assert sent(queue) == []
    queue.limits = {TWO.key: None}
    assert sent(queue) == [3, 4, 5]


def test_rule_stays_the_same_over_a_reload() -> None:
    """Whoever a rule names makes it the same, whatever its number, models and limit are; each grant is its own."""
    before = [RuleSpec(("kids", "tag:a"), ("x",), (), 1), RuleSpec(("me",), ("*",))]
    after = [RuleSpec(("new",), ("*",)), RuleSpec(("kids", "tag:a"), ("y",), (), 4)]
    one, two = (Access.of(specs, Policy.of(max_body=1024)).rules for specs in (before, after))
    assert limit_of(one[0]).key == limit_of(two[1]).key
    assert limit_of(one[0])[1:] == (1, "rule 1 of `access`")
    assert limit_of(one[0]).key != limit_of(one[1]).key
    assert active_limits(after)[limit_of(one[0]).key] == 4
    assert active_limits([*after, RuleSpec(("new",), ("*",), (), 9)])[limit_of(two[0]).key] is None


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        pytest.param({"models": ["x", "y"], "max_active": 1}, {"models": ["y", "X"], "max_active": 1}, True, id="same"),
        pytest.param({"models": ["x"], "max_active": 1}, {"models": ["x"], "max_active": 2}, False, id="limit"),
        pytest.param({"models": ["x"]}, {"models": ["x"], "max_active": 2}, False, id="no_limit"),
        pytest.param({"models": ["x"], "max_active": 1}, {"models": ["y"], "max_active": 1}, False, id="models"),
        pytest.param({"models": ["x"]}, {"models": ["x"], "also": ["/api/chat"]}, False, id="rows"),
    ],
)
def test_grants_that_say_the_same_count_together(one, other, together) -> None:
    """Devices whose grants say the same share a limit. A grant that says something else has a limit of its own."""
    first, second = limit_granted(one), limit_granted(other)
    assert (first.key == second.key) is together
    assert [first.at_most, second.at_most] == [one.get("max_active"), other.get("max_active")]


def test_order_of_a_grants_values_does_not_matter() -> None:
    """Devices whose grants say the same in another order share a limit."""
    one, other = {"models": ["x"], "also": ["/api/ps"]}, {"models": ["y"], "also": ["/api/chat"]}
    assert limit_granted(one, other).key == limit_granted(other, one).key


def limit_granted(*values: object) -> Limit:
    """Return the limit of a device with a grant."""
    access = Access.of((), Policy.of(max_body=1024), capability=CAPABILITY, capability_may_open_rows=True)
    who = Who("kid", None, ("100.64.0.7",), capabilities={CAPABILITY: values})
    return limit_of(access.rule_of(Asker("100.64.0.7", Standing(who))))


@pytest.mark.parametrize(
    ("crowd", "room"),
    [
        pytest.param([(Y, ONE), (Y, ONE), (X_LARGE, TWO), (X, TWO)], 2, id="two other models evict each other"),
        pytest.param([(X, ONE), (X, ONE)], 1, id="others of the rule want their model back"),
        pytest.param([(X, ONE), (Y, ONE)], 1, id="all of the rule want another model"),
    ],
)
def test_load_serves_the_one_that_it_is_for(crowd: list[tuple[Form, Limit]], room: int) -> None:
    """Requests of one rule that evict each other's models are each served by the load that is for them."""
    mac = Mac(room=room, answer_takes=7.0, load_takes=30.0, slots=1)
    for device, (form, limit) in zip("abcd", crowd, strict=False):
        ask(mac, device, form, limit)
    ticket = ask(mac, "e", Z, ONE)
    while ticket not in mac.done:
        assert mac.now < 6 * (60 + 30 + 2 * 7)
        for each in mac.step():
            ask(mac, each.device, each.form, each.limit)


def ask(mac: Mac, device: str, form: Form, limit: Limit | None) -> Ticket:
    """Let a device ask as a rule's asker."""
    ticket = Ticket(next(mac.numbers), device, form, mac.now, mac.slots, limit=limit)
    mac.queue.join(ticket)
    return ticket


@examples(200)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("ask"), st.sampled_from("abcde"), st.sampled_from(FORMS), st.sampled_from([ONE, TWO])),
            st.tuples(st.sampled_from(["leave", "finish"]), st.integers(0, 30)),
            st.tuples(st.just("load"), st.frozensets(st.sampled_from("xyz"))),
            st.tuples(st.just("wait"), st.integers(0, 100)),
            st.tuples(st.just("reload"), st.integers(1, 4)),
        ),
        max_size=60,
    ),
    st.sampled_from([1, 2, None]),
)
def test_limit_holds_whatever_happens(events: list[tuple[object, ...]], slots: int | None) -> None:
    """No request is sent beyond its rule's limit, and none that is held back causes a load."""
    queue, now = Queue(swap_after=60.0, max_waiting=10), 0.0
    for number, (kind, what, *which) in enumerate(events):
        if kind == "ask":
            queue.join(Ticket(number, what, which[0], now, slots, limit=which[1]))
        elif kind == "leave" and queue.waiting:
            queue.leave(queue.waiting[what % len(queue.waiting)], now)
        elif kind == "finish" and queue.sent:
            queue.leave(queue.sent[what % len(queue.sent)], now)
        elif kind == "load" and queue.loading is not None:
            queue.loaded(queue.loading, what, now)
        elif kind == "wait":
            now += what
        elif kind == "reload":
            queue.limits = {TWO.key: what}
        active = Counter(each.limit.key for each in queue.sent)
        for decision in queue.decide(now):
            key = decision.ticket.limit.key
            assert active[key] < queue.limits.get(key, decision.ticket.limit.at_most)
            active[key] += isinstance(decision, Send)
    if queue.waiting and not queue.sent and queue.loading is None:
        assert queue.decide(now + 10_000), "nobody is served, nothing is loaded, and some wait"


@examples(50)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from(FORMS), st.sampled_from([ONE, TWO, None])),
        min_size=1,
        max_size=8,
    ),
    st.integers(1, 3),
    st.sampled_from([1, 2, None]),
    st.sampled_from([ONE, TWO]),
)
def test_nobody_starves(
    crowd: list[tuple[str, Form, Limit | None]], room: int, slots: int | None, limit: Limit
) -> None:
    """A request is answered, though all others, of its own rule too, ask again the moment that they are answered."""
    mac = Mac(room=room, slots=slots, load_takes=30.0, answer_takes=7.0)
    for device, form, own in crowd:
        ask(mac, device, form, own)
    ticket = ask(mac, "e", Z, limit)
    while ticket not in mac.done:
        assert mac.now < (len(FORMS) * 2 + len(crowd)) * (60.0 + 30.0 + 2 * 7.0)
        for each in mac.step():
            ask(mac, each.device, each.form, each.limit)
