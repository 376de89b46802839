"""Devices take turns, limits hold, nobody starves, and models aren't swapped at every request."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.exchange.message.exchange import Exchange
from proxy.exchange.message.tickets import Form, Ticket
from proxy.exchange.waiting.queue import LINGER, SEEN_KEPT, UNKEPT_FOR, Load, Queue, Send
from proxy.exchange.waiting.visit import Visit
from proxy.policy.routes import OPT_IN
from proxy.tailnet.device import Who
from tests.support.asked_tailscale import ALICE, LAPTOP
from tests.support.examples import examples

X, Y, Z = Form("x"), Form("y"), Form("z")
X_LARGE = Form("x", (("num_ctx", 65536),))


@dataclass
class Mac:
    """An Ollama with room for some models, as the queue sees it, and a clock.

    Ollama makes room only when no request uses the model that must go (server/sched.go, `findRunnerToUnload`).
    """

    room: int = 1
    answer_takes: float = 10.0
    load_takes: float = 100.0
    slots: int | None = 1
    queue: Queue = field(default_factory=lambda: Queue(swap_after=60.0, max_waiting=64))
    now: float = 0.0
    memory: list[Form] = field(default_factory=list)
    sent: dict[int, float] = field(default_factory=dict)  # number: when it was sent
    loads: list[Form] = field(default_factory=list)
    numbers: count[int] = field(default_factory=count)
    tickets: dict[int, Ticket] = field(default_factory=dict)
    refused: list[Ticket] = field(default_factory=list)
    done: list[Ticket] = field(default_factory=list)
    load_since: float = 0.0

    def ask(self, device: str, form: Form) -> Ticket:
        ticket = Ticket(next(self.numbers), device, form, self.now, self.slots)
        self.tickets[ticket.number] = ticket
        refused = self.queue.join(ticket)
        if refused is not None:
            self.refused.append(refused)
        return ticket

    def act(self) -> None:
        """Carry out what the queue decides."""
        for decision in self.queue.decide(self.now):
            if isinstance(decision, Send):
                self.sent[decision.ticket.number] = self.now
            else:
                self.loads.append(decision.form)
                self.load_since = self.now

    def step(self) -> list[Ticket]:
        """Let a second pass. Return what was answered in it."""
        self.act()
        self.now += 1
        self._end_load()
        answered = [ticket for ticket in self.queue.sent if self.now - self.sent[ticket.number] >= self.answer_takes]
        for ticket in answered:
            self.queue.leave(ticket, self.now)
            self.done.append(ticket)
        self.act()
        return answered

    def _end_load(self) -> None:
        form = self.queue.loading
        if form is None or self.now - self.load_since < self.load_takes:
            return
        used = {each.form for each in self.queue.sent}
        others = [each for each in self.memory if each.model != form.model]
        while len(others) >= self.room:
            idle = next((each for each in others if each not in used), None)
            if idle is None:
                return
            others.remove(idle)
        if any(each.model == form.model and each in used for each in self.memory):
            return
        self.memory = [*others, form]
        self.queue.loaded(form, {each.model for each in self.memory}, self.now)

    def until(self, ticket: Ticket, most: float) -> float:
        """Let time pass until `ticket` is answered; return how long it took. It must be at most `most` seconds."""
        begun = self.now
        while ticket not in self.done:
            assert self.now - begun <= most, f"{ticket} still waits after {most} s: {self.queue}"
            self.step()
        return self.now - begun


def loaded_mac(*forms: Form, **changes: object) -> Mac:
    """Return a Mac with these models loaded and nobody asking."""
    mac = Mac(room=max(1, len(forms)), **changes)
    for form in forms:
        mac.memory.append(form)
        mac.queue.loaded(form, {each.model for each in mac.memory}, 0.0)
    mac.now = 1000.0
    return mac


def decided(mac: Mac) -> list[object]:
    return mac.queue.decide(mac.now)


# --- one request ---


def test_a_loaded_model_with_a_free_slot_makes_nobody_wait():
    """A request for a loaded model with a free slot is sent at once."""
    mac = loaded_mac(X)
    ticket = mac.ask("a", X)
    assert decided(mac) == [Send(ticket)]


def test_a_missing_model_is_loaded_at_once_on_an_idle_mac():
    """Without a request for another model, a load begins at once."""
    mac = Mac()
    ticket = mac.ask("a", X)
    assert decided(mac) == [Load(X, ticket)]


def test_one_load_is_shared():
    """Requests for a model that is being loaded begin no second load, and all are sent when it is loaded."""
    mac = Mac(slots=None)
    tickets = [mac.ask(device, X) for device in "aba"]
    assert decided(mac) == [Load(X, tickets[0])]
    late = mac.ask("c", X)
    assert decided(mac) == []
    mac.queue.loaded(X, ["x"], 100.0)
    assert {each.ticket for each in mac.queue.decide(100.0)} == {*tickets, late}


def test_leaving_neither_ends_nor_repeats_a_load():
    """When everyone who waits for a load leaves, the load continues, and the next one who comes joins it."""
    mac = Mac()
    first = mac.ask("a", X)
    decided(mac)
    mac.queue.leave(first, 1.0)
    assert mac.queue.loading == X
    mac.ask("a", X)
    assert decided(mac) == []


def test_one_load_at_a_time():
    """A second model isn't loaded before the first load has ended, however long it waits."""
    mac = Mac()
    mac.ask("a", X)
    decided(mac)
    other = mac.ask("b", Y)
    assert mac.queue.decide(10_000.0) == []
    mac.queue.failed(X, 10_000.0)
    assert mac.queue.decide(10_000.0) == [Load(Y, other)]


def test_a_failed_load_takes_all_who_wait_for_it():
    """A failed load returns everyone who waits for that model, and no one else."""
    mac = Mac()
    tickets = [mac.ask("a", X), mac.ask("b", X)]
    other = mac.ask("b", Y)
    decided(mac)
    assert mac.queue.failed(X, 1.0) == tickets
    assert mac.queue.waiting == (other,)


def test_other_load_options_are_another_load():
    """A model that is loaded with other options is loaded again, and the first form of it is gone then."""
    mac = loaded_mac(X)
    ticket = mac.ask("a", X_LARGE)
    assert decided(mac) == [Load(X_LARGE, ticket)]
    mac.queue.loaded(X_LARGE, ["x"], mac.now)
    assert (mac.queue.is_loaded(X), mac.queue.is_loaded(X_LARGE)) == (False, True)


def test_a_model_that_is_no_longer_listed_is_loaded_again():
    """A model that Ollama has unloaded isn't taken for a loaded one."""
    mac = loaded_mac(X)
    mac.queue.listed([], mac.now)
    ticket = mac.ask("a", X)
    assert decided(mac) == [Load(X, ticket)]


def test_a_model_that_a_request_unloads_is_loaded_again():
    """A model that a request had Ollama unload isn't taken for a loaded one, and other models are."""
    queue = loaded_mac(X, Y).queue
    queue.unloaded("x")
    assert (queue.is_loaded(X), queue.is_loaded(Y)) == (False, True)


def test_a_model_that_fails_to_load_is_not_loaded():
    """A load that fails leaves its model unloaded, even if an answer came from it during the load."""
    mac = Mac()
    mac.ask("a", X)
    decided(mac)
    mac.queue.answered(X)
    mac.queue.failed(X, 1.0)
    assert not mac.queue.is_loaded(X)


def test_a_model_that_ollama_does_not_keep_is_not_loaded_for_a_while():
    """A model that Ollama doesn't list after our load of it needs no other load for UNKEPT_FOR seconds."""
    queue = Mac().queue
    queue.loaded(X, [], 100.0)
    queue.listed([], 100.0 + UNKEPT_FOR - 1)
    assert queue.is_loaded(X)
    queue.listed([], 100.0 + UNKEPT_FOR)
    assert not queue.is_loaded(X)


def test_a_load_that_leaves_nothing_loaded_still_serves():
    """A model that Ollama doesn't list after our load was answered still serves those who waited."""
    mac = Mac()
    ticket = mac.ask("a", X)
    decided(mac)
    mac.queue.loaded(X, [], 100.0)
    assert mac.queue.decide(100.0) == [Send(ticket)]


@pytest.mark.parametrize(
    ("spoil", "taken"),
    [
        (lambda mac: None, True),
        (lambda mac: mac.queue.listed([], mac.now), False),
        (lambda mac: mac.ask("b", Y), False),
        (lambda mac: (mac.ask("b", X), mac.act()), False),
    ],
    ids=["free", "not_loaded", "someone_waits", "no_slot"],
)
def test_a_free_way_is_taken_at_once(spoil, taken):
    """A request goes without joining only if nobody waits, its model is loaded and a slot is free."""
    mac = loaded_mac(X)
    spoil(mac)
    ticket = Ticket(99, "a", X, mac.now, 1)
    assert mac.queue.take(ticket) is taken
    assert (ticket in mac.queue.sent) is taken


def test_a_free_way_counts_as_a_turn():
    """A device whose request was taken at once waits behind one that had no turn yet."""
    mac = loaded_mac(X)
    mac.queue.take(Ticket(99, "a", X, mac.now, 1))
    late, early = mac.ask("a", X), mac.ask("b", X)
    assert mac.queue.waiting == (early, late)


def test_a_free_way_has_all_slots_of_its_model():
    """Requests go without joining until all slots of their model are taken."""
    queue = loaded_mac(X).queue
    assert [queue.take(Ticket(number, "a", X, 0.0, 2)) for number in range(3)] == [True, True, False]


# --- slots ---


@pytest.mark.parametrize(("slots", "sent"), [(1, 1), (3, 3), (None, 5)], ids=["one", "three", "no_limit"])
def test_no_more_than_the_slots_of_a_model_are_sent(slots, sent):
    """At most `slots` requests for a model are with Ollama."""
    mac = loaded_mac(X, slots=slots)
    for _ in range(5):
        mac.ask("a", X)
    assert len(decided(mac)) == sent


def test_leaving_frees_the_slot():
    """When a client leaves, whether it waits or was sent, its place is free at once."""
    mac = loaded_mac(X)
    first, second, third = (mac.ask("a", X) for _ in range(3))
    decided(mac)
    mac.queue.leave(second, mac.now)
    mac.queue.leave(first, mac.now)
    assert decided(mac) == [Send(third)]


def test_leaving_twice_changes_nothing():
    """A request that is out already, because it was turned away, can leave again."""
    mac = loaded_mac(X)
    first, second = mac.ask("a", X), mac.ask("a", X)
    mac.queue.leave(first, mac.now)
    mac.queue.leave(first, mac.now)
    assert mac.queue.waiting == (second,)


# --- turns ---


def test_devices_take_turns():
    """A device that asks once comes right after the request in progress, however many another one has waiting."""
    mac = loaded_mac(X)
    for _ in range(20):
        mac.ask("a", X)
    mac.act()
    ticket = mac.ask("b", X)
    assert mac.until(ticket, 2 * mac.answer_takes) == 2 * mac.answer_takes


def test_turns_count_over_all_models():
    """A device that was just served for one model waits behind the other devices for another model."""
    mac = loaded_mac(X, Y)
    mac.slots = 1
    mac.ask("c", Y)
    mac.ask("a", X)
    mac.act()
    late, early = mac.ask("a", Y), mac.ask("b", Y)
    assert mac.queue.waiting == (early, late)


def test_a_device_that_left_often_loses_no_turn():
    """Requests that left before they were served don't count as turns of their device."""
    mac = loaded_mac(X)
    mac.ask("c", X)
    mac.act()
    for _ in range(100):
        mac.queue.leave(mac.ask("a", X), mac.now)
    ticket = mac.ask("a", X)
    others = [mac.ask("b", X) for _ in range(5)]
    assert mac.queue.waiting.index(ticket) < mac.queue.waiting.index(others[1])


def test_later_requests_move_up_when_one_leaves():
    """When a request leaves, the device's later ones take its turn and the turns after it, and so do those to come."""
    mac = loaded_mac(X)
    mac.ask("c", X)
    mac.act()
    b = [mac.ask("b", X) for _ in range(3)]
    left, *a = (mac.ask("a", X) for _ in range(3))
    mac.queue.leave(left, mac.now)
    a.append(mac.ask("a", X))
    c = [mac.ask("c", X) for _ in range(3)]
    assert mac.queue.waiting == (b[0], a[0], c[0], b[1], a[1], c[1], b[2], a[2], c[2])


def test_a_load_counts_as_a_turn():
    """A device for which a model is loaded has its next turn after the load's, and others go first."""
    mac = Mac()
    a = [mac.ask("a", X)]
    mac.act()
    a.append(mac.ask("a", X))
    b = [mac.ask("b", X) for _ in range(4)]
    assert mac.queue.waiting == (b[0], a[0], b[1], b[2], a[1], b[3])


def test_loads_come_in_turns():
    """The next model that is loaded is the one for the device whose turn it is."""
    mac = Mac()
    mac.ask("a", X)
    mac.act()
    mac.ask("a", Y)
    other = mac.ask("b", Z)
    mac.queue.failed(X, mac.now)
    assert decided(mac) == [Load(Z, other)]


def test_the_last_served_goes_last():
    """Of two devices with as many turns, the one that was served longer ago goes first."""
    mac = loaded_mac(X)
    for number, device in enumerate("ab"):
        mac.queue.take(Ticket(100 + number, device, X, mac.now))
    late, early = mac.ask("b", X), mac.ask("a", X)
    assert mac.queue.waiting == (early, late)


@pytest.mark.parametrize(("devices", "remembered"), [(8, True), (9, False)])
def test_turns_are_forgotten_in_time(devices, remembered):
    """Once more than 4 devices for each place had a turn, those that are gone count as new, and busy ones don't."""
    mac = loaded_mac(X, queue=Queue(swap_after=60.0, max_waiting=2))
    tickets = [Ticket(100 + number, str(number), X, mac.now) for number in range(devices)]
    for ticket in tickets:
        mac.queue.take(ticket)
        if ticket is not tickets[0]:
            mac.queue.leave(ticket, mac.now)
    busy, gone = mac.ask("0", X), mac.ask("1", X)
    assert mac.queue.waiting == ((busy, gone) if remembered else (gone, busy))


def test_one_that_waits_for_long_can_leave():
    """A request that waits while many devices are served keeps its place, and can leave."""
    mac = loaded_mac(X, slots=None, queue=Queue(swap_after=10_000.0, max_waiting=2))
    busy = mac.ask("a", X)
    mac.act()
    late = mac.ask("b", Y)
    for device in range(20):
        ticket = mac.ask(str(device), X)
        mac.act()
        mac.queue.leave(ticket, mac.now)
    assert mac.queue.waiting == (late,)
    mac.queue.leave(late, mac.now)
    assert (mac.queue.waiting, mac.queue.sent) == ((), (busy,))


# --- swaps ---


def test_nothing_is_sent_in_the_moment_of_a_load():
    """When a model is due to be loaded, no request for another one takes the slot that becomes free in that moment."""
    mac = Mac()
    mac.queue.answered(X)  # Ollama loaded it by itself
    first, _ = mac.ask("a", X), mac.ask("a", X)
    mac.act()
    due = mac.ask("b", Y)
    mac.now += mac.queue.swap_after + 1
    mac.queue.leave(first, mac.now)
    assert decided(mac) == [Load(Y, due)]


def test_a_flood_for_one_model_lets_another_in():
    """While one device floods a model, another model is loaded after `swap_after` and the request in progress."""
    mac = loaded_mac(X)
    for _ in range(30):
        mac.ask("a", X)
    mac.act()
    ticket = mac.ask("b", Y)
    most = mac.queue.swap_after + mac.answer_takes + mac.load_takes + mac.answer_takes + 2
    while ticket not in mac.done:
        mac.until(ticket, most)
    assert mac.loads == [Y]


@pytest.mark.parametrize("slots", [1, 2, None], ids=["one_slot", "two_slots", "no_limit"])
@pytest.mark.parametrize("behind", range(0, 21, 4))
def test_a_flood_that_never_ends_lets_a_device_in(slots, behind):
    """A device that asks once for a flooded model and once for another waits for no more than the rules say.

    For the first one: the request in progress and its own. For the other: `swap_after`, the request in progress, the
    load, and its own. Whoever floods asks again the moment that it is answered.
    """
    mac = loaded_mac(X, slots=slots)
    for _ in range(30):
        mac.ask("a", X)
    for _ in range(behind):  # the moment within the flood's own requests
        for each in mac.step():
            mac.ask(each.device, each.form)
    same, other = mac.ask("b", X), mac.ask("b", Y)
    took = {}
    begun = mac.now
    while len(took) < 2:
        for each in mac.step():
            mac.ask(each.device, each.form)
            took |= {each: mac.now - begun} if each in (same, other) else {}
        assert mac.now < begun + 1000, "the device starves"
    assert took[same] <= 2 * mac.answer_takes
    assert took[other] <= mac.queue.swap_after + mac.answer_takes + mac.load_takes + mac.answer_takes + 2
    assert mac.loads == [Y]


def test_a_loaded_model_serves_those_who_wait_for_it_first():
    """A, B, A, B from two devices are served as A, A, B, B: one swap, not three."""
    mac = loaded_mac(X, load_takes=20.0)
    tickets = [mac.ask("a", X), mac.ask("b", Y), mac.ask("a", X), mac.ask("b", Y)]
    for ticket in tickets:
        mac.until(ticket, 300.0)
    assert [each.form for each in mac.done] == [X, X, Y, Y]
    assert mac.loads == [Y]


def test_two_tools_that_take_turns_swap_once_a_minute_at_most():
    """Two tools, each with the next request two seconds after its answer, load a model each `swap_after` at most."""
    mac = loaded_mac(X, load_takes=20.0)
    nexts = {"a": (X, mac.now), "b": (Y, mac.now)}
    asked: Counter[str] = Counter()
    begun = mac.now
    while mac.now < begun + 1200:
        for device, (form, at) in list(nexts.items()):
            if mac.now >= at:
                mac.ask(device, form)
                asked[device] += 1
                del nexts[device]
        for ticket in mac.step():
            nexts[ticket.device] = (ticket.form, mac.now + 2)
    assert len(mac.loads) <= 1200 / (60 + 20)
    assert min(Counter(each.device for each in mac.done).values()) >= 5 * len(mac.loads) / 2


def test_an_idle_model_is_left_in_peace_for_a_moment():
    """A model whose last request ended less than LINGER ago isn't evicted, because a tool may just be about to ask."""
    mac = loaded_mac(X)
    mac.queue.loaded(Y, ["y"], 0.0)
    mac.queue.loaded(X, ["x"], 0.0)
    first = mac.ask("a", X)
    mac.act()
    mac.queue.leave(first, mac.now)
    other = mac.ask("b", Y)
    assert mac.queue.decide(mac.now + LINGER - 0.1) == []
    assert mac.queue.decide(mac.now + LINGER) == [Load(Y, other)]


def test_an_idle_model_delays_none_that_may_fit():
    """A model that hasn't been seen to evict another one is loaded at once on an idle Mac."""
    mac = loaded_mac(X)
    first = mac.ask("a", X)
    mac.act()
    mac.queue.leave(first, mac.now)
    other = mac.ask("b", Y)
    assert decided(mac) == [Load(Y, other)]


def test_what_waited_during_a_load_lets_it_be_used():
    """A long load makes others wait, but the model that it brought is used before it goes again."""
    mac = loaded_mac(X, load_takes=400.0)
    mac.ask("b", Y)
    mac.act()
    mac.now += 1
    mac.ask("a", X)  # waits for longer than swap_after when the load ends
    mine = mac.ask("b", Y)
    mac.until(mine, 430.0)
    assert mac.loads == [Y]


@pytest.mark.parametrize("together", [True, False], ids=["seen_together", "never_seen"])
def test_models_that_fit_together_hold_up_nobody(together):
    """Models that were seen in memory together are loaded at once, and requests for the loaded one continue."""
    mac = loaded_mac(X)
    if together:
        mac.queue.listed(["x", "y"], mac.now)
    mac.ask("a", X)
    mac.act()
    other = mac.ask("b", Y)
    assert decided(mac) == ([Load(Y, other)] if together else [])
    mac.queue.leave(mac.tickets[0], mac.now)
    more = mac.ask("a", X)
    assert decided(mac) == [Send(more)]


@pytest.mark.parametrize(("form", "fits"), [(X, True), (Y, True), (Z, False), (X_LARGE, False)])
def test_only_what_was_seen_together_fits(form, fits):
    """A model fits if it was seen in memory together with all that is loaded, and never next to its other form."""
    queue = loaded_mac(X).queue
    queue.listed(["x", "y"], 0.0)
    assert queue.fits(form) is fits


def test_what_is_seen_again_makes_nothing_forgotten():
    """Models that are listed again and again take no place of others that were seen together."""
    queue = loaded_mac(X).queue
    queue.listed(["x", "z"], 0.0)
    for _ in range(SEEN_KEPT):
        queue.listed(["x", "y"], 0.0)
    assert queue.fits(Z)


def test_models_that_no_longer_fit_are_known():
    """When a load evicts a model that it was seen together with, these two don't count as fitting any more."""
    mac = loaded_mac(X)
    mac.queue.listed(["x", "y"], mac.now)
    mac.queue.listed(["x", "z"], mac.now)
    mac.queue.listed(["y", "z"], mac.now)
    mac.queue.answered(X)
    mac.ask("b", Y)
    decided(mac)
    mac.queue.loaded(Y, ["y"], mac.now)
    assert (mac.queue.fits(X), mac.queue.fits(Z)) == (False, True)
    mac.queue.answered(X)
    mac.queue.unloaded("y")
    assert mac.queue.fits(Z)


@pytest.mark.parametrize(("seen", "at_once"), [(["x"], False), (["x", "z"], False), (["x", "y"], True)])
def test_a_model_that_evicted_another_is_known_to(seen, at_once):
    """An idle model is left in peace by one that evicted it, until the two were seen together."""
    mac = loaded_mac(X)
    mac.queue.loaded(Y, ["y"], 0.0)
    mac.queue.loaded(X, ["x"], 0.0)
    mac.queue.listed(seen, mac.now)
    mac.queue.answered(Z)
    first = mac.ask("a", X)
    mac.act()
    mac.queue.leave(first, mac.now)
    other = mac.ask("b", Y)
    assert decided(mac) == ([Load(Y, other)] if at_once else [])


# --- too many ---


@pytest.mark.parametrize(("max_waiting", "its"), [(8, 4), (7, 3), (2, 1), (1, 1)])
def test_a_device_has_half_of_the_places(max_waiting, its):
    """A device with half of all places gives up its newest request, though others are free."""
    mac = loaded_mac(queue=Queue(swap_after=60.0, max_waiting=max_waiting))
    tickets = [mac.ask("a", X) for _ in range(its + 1)]
    assert mac.refused == [tickets[-1]]


def test_the_device_with_the_most_gives_way():
    """When all places are taken, the newest request of the device with the most is turned away."""
    mac = Mac(queue=Queue(swap_after=60.0, max_waiting=8))
    greedy = [mac.ask("a", X) for _ in range(4)]
    for device in "bcde":
        mac.ask(device, X)
    last = mac.ask("f", X)
    assert mac.refused == [greedy[-1]]
    assert last in mac.queue.waiting


# --- whatever happens ---

FORMS = (X, Y, Z, X_LARGE)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from("abcde"), st.sampled_from(FORMS)),
        st.tuples(st.just("leave"), st.integers(0, 30), st.none()),
        st.tuples(st.just("finish"), st.integers(0, 30), st.none()),
        st.tuples(st.just("load"), st.sampled_from(["well", "badly"]), st.frozensets(st.sampled_from("xyz"))),
        st.tuples(st.just("list"), st.frozensets(st.sampled_from("xyz")), st.none()),
        st.tuples(st.just("wait"), st.integers(0, 100), st.none()),
    ),
    max_size=60,
)


def happen(queue, number, event, slots, now):
    """Let one event happen."""
    kind, what, which = event
    if kind == "ask":
        queue.join(Ticket(number, what, which, now, slots))
    elif kind == "leave" and queue.waiting:
        queue.leave(queue.waiting[what % len(queue.waiting)], now)
    elif kind == "finish" and queue.sent:
        queue.leave(queue.sent[what % len(queue.sent)], now)
    elif kind == "load" and queue.loading is not None:
        form = queue.loading
        if what == "well":
            queue.loaded(form, which, now)
        else:
            assert all(each.form == form for each in queue.failed(form, now))
    elif kind == "list" and queue.loading is None:
        queue.listed(what, now)


@examples(300)
@given(EVENTS, st.sampled_from([1, 2, None]), st.integers(1, 10))
def test_limits_hold_whatever_happens(events, slots, max_waiting):
    """Slots, places and the one load hold after any events, and only loaded models get requests."""
    queue = Queue(swap_after=60.0, max_waiting=max_waiting)
    now = 0.0
    for number, event in enumerate(events):
        now += event[1] if event[0] == "wait" else 0
        happen(queue, number, event, slots, now)
        loading = queue.loading
        for decision in queue.decide(now):
            if isinstance(decision, Send):
                assert queue.is_loaded(decision.ticket.form)
            else:
                assert loading is None
                loading = decision.form
                assert not queue.is_loaded(loading)
        devices = Counter(each.device for each in queue.waiting)
        assert len(queue.waiting) <= max_waiting
        assert all(each <= max(1, max_waiting // 2) for each in devices.values())
        sent = Counter(each.form for each in queue.sent)
        assert slots is None or all(each <= slots for each in sent.values())
        assert queue.decide(now) == []
    if queue.waiting and not queue.sent and queue.loading is None:
        assert queue.decide(now + 10_000), "nobody is served, nothing is loaded, and some wait"


@examples(30)
@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(FORMS)), min_size=1, max_size=8),
    st.integers(1, 3),
    st.sampled_from([1, 2, None]),
)
def test_nobody_starves(crowd, room, slots):
    """A request is answered, though all others ask again the moment that they are answered."""
    mac = Mac(room=room, slots=slots, load_takes=30.0, answer_takes=7.0)
    for device, form in crowd:
        mac.ask(device, form)
    ticket = mac.ask("e", Z)
    turns = 60.0 + 30.0 + 2 * 7.0
    while ticket not in mac.done:
        assert mac.now < len(FORMS) * 2 * turns + len(crowd) * 7.0
        for each in mac.step():
            mac.ask(each.device, each.form)


# --- whose turn it is -------------------------------------------------------------------------------------------------

GUEST = Who("laptop", "mallory@example.org", (LAPTOP,), "mallory@example.org", node="nGuest", shared=True)


@pytest.mark.parametrize(
    ("who", "turn"),
    [
        pytest.param(None, LAPTOP, id="nobody that Tailscale names"),
        pytest.param(ALICE, "laptop", id="a device of this tailnet"),
        pytest.param(ALICE._replace(device=None), LAPTOP, id="one without a name"),
        pytest.param(GUEST, "nGuest", id="a guest's device, whatever its name is"),
        pytest.param(GUEST._replace(node=None), LAPTOP, id="a guest's device without an id"),
    ],
)
def test_whose_turn_it_is(who, turn):
    """A device takes its turns under its name, a guest's under its id, and any other under its address."""
    exchange = Exchange("1", LAPTOP, 1, 0.0, None)
    exchange.who = who
    assert Visit(exchange, OPT_IN["POST /api/chat"], None).device == turn
