"""Whose request goes to Ollama next, and which model is loaded next. Pure: tickets and times in, decisions out.

Ollama serves the requests for a loaded model first come, first served, and one busy model can keep another one out
without end. So at most `slots` requests for a model are with Ollama, and the rest wait here. Devices take turns, over
all models, and a load counts as a turn of the device that it is for.

Each ticket gets a tag when it joins (start-time fair queueing, Goyal, Vin and Cheng 1996): one more than the device's
last tag, or than the tag that was served last if that is higher. The lowest tag goes first. A device that asks for much
gets ever higher tags, and every ticket is served.
"""

from __future__ import annotations

from collections import Counter
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from proxy.exchange.message.limits import Wish, held_back, places_left
from proxy.exchange.message.tickets import NO_FORM

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from proxy.exchange.message.limits import Key, Limit
    from proxy.exchange.message.tickets import Form, Ticket

LINGER = 5.0
"""Seconds for which an idle model is left in peace before another one that is known to evict it may be loaded.

A tool's next request usually comes sooner. Without this, two tools that take turns would load a model for each request.
"""

UNKEPT_FOR = 600.0
"""Seconds for which a model isn't loaded by the proxy any more after Ollama let go of it at once.

Its keep-alive is 0, by Ollama's environment or by a client's last request. Each request loads it by itself.
"""

SEEN_KEPT = 64
"""Sets of models that were in memory together, and pairs that weren't, of which the most recent are remembered."""


class Send(NamedTuple):
    """The request may go to Ollama now."""

    ticket: Ticket


class Load(NamedTuple):
    """The proxy should load this form now, on behalf of a ticket."""

    form: Form
    ticket: Ticket


class Queue:
    """Everyone who waits, who is with Ollama, and what is loaded there.

    Call `decide` after every change, and from time to time: some decisions only become due.
    """

    def __init__(self, *, swap_after: float, max_waiting: int, shield: bool = True) -> None:
        self.swap_after = swap_after  # a reload replaces both
        self.max_waiting = max_waiting
        self.limits: Mapping[Key, int | None] = {}  # of the rules as they are since a reload
        self.shield = shield  # False: every model counts as loaded, because a load alone would load nothing
        self._waiting: dict[int, Ticket] = {}  # in the order of their arrival
        self._sent: dict[int, Ticket] = {}
        self._tags: dict[int, int] = {}
        self._last_tags: dict[str, int] = {}  # of each device that is ahead of the clock
        self._clock = 0  # the highest tag that was served
        self._served: dict[str, int] = {}  # when each device had its last turn, in turns
        self._turns = 0
        self._loaded: set[Form] = set()
        self.loading: Form | None = None  # what is being loaded; only the queue sets it
        self._unkept: dict[str, float] = {}  # models that Ollama doesn't keep, and until when that is believed
        self._settled_at = -inf  # when the last load ended
        self._used_at = -inf  # when the last request ended
        self._seen: list[frozenset[str]] = []  # models that were in memory together
        self._apart: list[frozenset[str]] = []  # two models of which one had to go when the other came

    def __repr__(self) -> str:
        loading = "" if self.loading is None else f", loading {self.loading.model}"
        return f"<Queue {len(self._waiting)} waiting, {len(self._sent)} sent, {len(self._loaded)} loaded{loading}>"

    # --- what can be asked ---

    @property
    def waiting(self) -> tuple[Ticket, ...]:
        """Those who wait, in the order in which they would be served if every model were loaded."""
        return tuple(sorted(self._waiting.values(), key=self._order))

    @property
    def sent(self) -> tuple[Ticket, ...]:
        """Those that Ollama has."""
        return tuple(self._sent.values())

    @property
    def forms(self) -> tuple[Form, ...]:
        """What is loaded, as far as is known, and what is being loaded."""
        loading = () if self.loading is None else (self.loading,)
        return (*(self._loaded - {self.loading}), *loading)

    def is_loaded(self, form: Form) -> bool:
        """Return whether requests for `form` can be answered without a load."""
        return not self.shield or form in self._loaded or form.model in self._unkept

    def _is_ready(self, ticket: Ticket) -> bool:
        """Return whether a request needs no load of ours."""
        return not ticket.shielded or self.is_loaded(ticket.form)

    def is_full(self, limit: Limit) -> bool:
        """Return whether Ollama has as many requests of a rule as its limit allows."""
        key, sent = limit.key, self._sent
        at_most = self.limits.get(key, limit.at_most)
        if at_most is None or len(sent) < at_most:
            return False
        return sum(each.limit is not None and each.limit.key == key for each in sent.values()) >= at_most

    def held(self, now: float) -> set[int]:
        """Return the numbers of those who wait for their rule's limit.

        It may have places left, which are kept for late requests of the same rule.
        """
        waiting = self._waiting.values()
        sent = (each.limit for each in self._sent.values())
        left = places_left((each.limit for each in waiting), sent, self.limits)
        late = now - self.swap_after
        those = sorted(waiting, key=lambda each: self._tags[each.number])  # which no load changes
        wishes = (Wish(each.number, each.limit, self._is_ready(each), each.since < late) for each in those)
        return held_back(wishes, left) if left else set()

    def fits(self, form: Form) -> bool:
        """Return whether `form` was seen in memory together with all that is loaded now."""
        if any(each.model == form.model for each in self._loaded if each != form):
            return False
        together = {each.model for each in self._loaded} | {form.model}
        return len(together) == 1 or any(seen >= together for seen in self._seen)

    # --- what changes ---

    def take(self, ticket: Ticket) -> bool:
        """Send a request at once if nobody waits, its model is loaded and a slot is free; return whether it is sent.

        It does what `join` and `decide` would do: 2 instead of 12 us (CPython 3.11).
        """
        form, slots = ticket.form, ticket.slots
        if self._waiting or self.loading is not None or not (form in self._loaded or self._is_ready(ticket)):
            return False
        if slots is not None and len(self._sent) >= slots:
            used = 0
            for each in self._sent.values():
                used += each.form == form
            if used >= slots:
                return False
        if ticket.limit is not None and self.is_full(ticket.limit):
            return False
        self._sent[ticket.number] = ticket
        self._clock = self._next_tag(ticket.device)
        self._turn_of(ticket.device)
        return True

    def join(self, ticket: Ticket) -> Ticket | None:
        """Add a request. Return the one that must be turned away because too many wait, or None.

        One device may have half of all places. When all are taken, the device with the most gives up its newest one:
        of those that wait for their rule's limit, if any do.
        """
        self._tags[ticket.number] = self._next_tag(ticket.device)
        self._waiting[ticket.number] = ticket
        those = list(self._waiting.values())
        counts = Counter(each.device for each in those)
        most = counts[ticket.device]
        if most <= max(1, self.max_waiting / 2):
            if len(self._waiting) <= self.max_waiting:
                return None
            those = [each for each in those if each.limit is not None and self.is_full(each.limit)] or those
            counts = Counter(each.device for each in those)
            most = max(counts.values())
        excess = next(each for each in reversed(those) if counts[each.device] == most)
        self._forget(excess)
        return excess

    def leave(self, ticket: Ticket, now: float, answered: bool = False) -> None:
        """Take a request out, wherever it is: its client left, or its response is complete.

        `answered` is whether its model has answered, so that it is loaded. During a load that may be over already.
        """
        if self._sent.pop(ticket.number, None) is not None:
            self._used_at = now
        else:
            self._forget(ticket)
        if answered and self.loading is None and ticket.form not in self._loaded and ticket.form != NO_FORM:
            self.answered(ticket.form)

    def answered(self, form: Form) -> None:
        """Note that an answer came from a model, so that it is loaded."""
        if form not in self._loaded:
            self._loaded = {each for each in self._loaded if each.model != form.model} | {form}

    def unloaded(self, model: str) -> None:
        """Note that Ollama unloads a model, because a request asked for that."""
        self._loaded = {each for each in self._loaded if each.model != model}

    def loaded(self, form: Form, listed: Iterable[str] | None, now: float) -> None:
        """Note that our load of `form` was answered, and which models Ollama lists as loaded since then, if it says so.

        If `form` isn't among them, Ollama doesn't keep it, and loading it ahead of a request has no use.
        """
        self._settle(now)
        if listed is None:
            self.answered(form)
            return
        listed = frozenset(listed)
        if form.model not in listed:
            self._unkept[form.model] = now + UNKEPT_FOR
        gone = {each.model for each in self._loaded if each.model != form.model} - set(listed)
        self._seen = [each for each in self._seen if not (form.model in each and each & gone)]  # they fit no longer
        self._apart = [*self._apart, *(frozenset((form.model, each)) for each in gone)][-SEEN_KEPT:]
        self.listed({*listed, form.model}, now)
        self.answered(form)

    def failed(self, form: Form, now: float) -> list[Ticket]:
        """Note that our load of `form` failed. Return all who waited for it; they wait no longer."""
        self._settle(now)
        self._loaded.discard(form)
        left = [each for each in self._waiting.values() if each.form == form]
        for each in left:
            self._forget(each)
        return left

    def listed(self, models: Iterable[str], now: float) -> None:
        """Note which models Ollama lists as loaded. Don't call it during a load, when it lists that one too."""
        there = frozenset(models)
        self._unkept = {each: until for each, until in self._unkept.items() if now < until}
        self._loaded = {each for each in self._loaded if each.model in there}
        if len(there) > 1:
            self._apart = [each for each in self._apart if not each <= there]
            self._seen = [*(each for each in self._seen if not each <= there), there][-SEEN_KEPT:]

    # --- decisions ---

    def decide(self, now: float) -> list[Send | Load]:
        """Return what is to be done now. Each decision counts as carried out."""
        decisions: list[Send | Load] = []
        if not self._waiting:
            return decisions
        ticket = self._next_to_load(now)
        if ticket is not None:
            self.loading = ticket.form
            self._next_tag(ticket.device)
            self._turn_of(ticket.device)
            decisions.append(Load(ticket.form, ticket))
        while (ticket := self._next_to_send(now)) is not None:
            del self._waiting[ticket.number]
            self._sent[ticket.number] = ticket
            self._clock = max(self._clock, self._tags.pop(ticket.number))
            self._turn_of(ticket.device)
            decisions.append(Send(ticket))
        return decisions

    def _next_to_send(self, now: float) -> Ticket | None:
        """Return the next request for a loaded model with a free slot, unless the load of another one ends its stay."""
        sent = Counter(each.form for each in self._sent.values())
        due = self.loading
        alone = due is not None and not self.fits(due)
        held = self.held(now)
        free = [
            each
            for each in self._waiting.values()
            if self._is_ready(each)
            and (each.slots is None or sent[each.form] < each.slots)
            and (not alone or each.form in (due, NO_FORM))
            and each.number not in held
        ]
        return min(free, key=self._order, default=None)

    def _next_to_load(self, now: float) -> Ticket | None:
        """Return the request whose model is to be loaded now, if a load may begin."""
        if self.loading is not None:
            return None
        held = self.held(now)
        waiting = (each for each in self._waiting.values() if each.number not in held and not self._is_ready(each))
        missing = sorted(waiting, key=self._order)
        first = next((each for each in missing if self._overdue(each, now)), None)
        first = first or next((each for each in missing if self.fits(each.form)), None)
        if first is not None:
            return first
        served = (*self._sent.values(), *(each for each in self._waiting.values() if self._is_ready(each)))
        busy = any(each.form != NO_FORM for each in served)
        if not missing or busy or (now - self._used_at < LINGER and self._evicts(missing[0].form)):
            return None
        return missing[0]

    def _evicts(self, form: Form) -> bool:
        """Return whether a load of `form` is known to end another model's stay. Otherwise it may be tried."""
        return any(
            each.model == form.model or frozenset((form.model, each.model)) in self._apart for each in self._loaded
        )

    def _overdue(self, ticket: Ticket, now: float) -> bool:
        """Return whether a request has waited for longer than `swap_after`.

        The time of the last load doesn't count: the model that it brought first serves those who waited for it.
        """
        return now - max(ticket.since, self._settled_at) > self.swap_after

    def _order(self, ticket: Ticket) -> tuple[int, int, int]:
        return self._tags[ticket.number], self._served.get(ticket.device, 0), ticket.number

    def _next_tag(self, device: str) -> int:
        """Count another turn of a device; return its tag."""
        tag = self._last_tags[device] = max(self._clock, self._last_tags.get(device, 0)) + 1
        return tag

    def _turn_of(self, device: str) -> None:
        self._turns += 1
        self._served[device] = self._turns
        if len(self._served) > 4 * self.max_waiting:
            busy = {each.device for each in self._waiting.values()} | {each.device for each in self._sent.values()}
            self._served = {each: turn for each, turn in self._served.items() if each in busy}
            self._last_tags = {each: tag for each, tag in self._last_tags.items() if tag > self._clock}

    def _settle(self, now: float) -> None:
        self.loading = None
        self._settled_at = now

    def _forget(self, ticket: Ticket) -> None:
        """Take out a request that waits. The device's later ones move up, as if it had never been there."""
        if self._waiting.pop(ticket.number, None) is None:
            return
        tag = self._tags.pop(ticket.number)
        for each in self._waiting.values():
            if each.device == ticket.device and self._tags[each.number] == tag + 1:
                self._tags[each.number] = tag
                tag += 1
        if self._last_tags.get(ticket.device) == tag:
            self._last_tags[ticket.device] = tag - 1
