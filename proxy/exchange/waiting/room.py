"""The place to wait: an exchange comes in with its body, and goes out when Ollama can answer it at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING

from proxy.event_loop.life import Signal
from proxy.exchange.message.exchange import DOWNSTREAM, QUEUE, UPSTREAM, Party, Stop
from proxy.exchange.message.limits import limit_of
from proxy.exchange.message.tickets import NO_FORM, Ticket
from proxy.exchange.upstream.upstream import GRACE
from proxy.exchange.waiting.bodies import Bodies, is_too_large, read_now
from proxy.exchange.waiting.catalog import plain_form
from proxy.exchange.waiting.context import exceeds, is_full, text_in
from proxy.exchange.waiting.judging import Judge, asked_by_path, passes
from proxy.exchange.waiting.loads import Loads
from proxy.exchange.waiting.queue import Load, Queue, Send
from proxy.exchange.waiting.snapshot import snapshot_of
from proxy.exchange.waiting.stuck import is_empty, silent_in
from proxy.exchange.waiting.turned_away import CANCELLED, QUEUE_FULL, stop_of
from proxy.exchange.waiting.visit import Visit
from proxy.policy.refusals import DRAINING, Reason
from proxy.reading.asked import Naming
from proxy.reading.keep_alive import keeps_none

if TYPE_CHECKING:
    from proxy.exchange.message.exchange import Exchange, Outcome
    from proxy.exchange.message.tickets import Form
    from proxy.exchange.upstream.asking import Ollama
    from proxy.exchange.waiting.loads import FailedLoad
    from proxy.exchange.waiting.rules import Rules
    from proxy.exchange.waiting.snapshot import Snapshot
    from proxy.exchange.waiting.stuck import Watch
    from proxy.exchange.waiting.wait import Client
    from proxy.policy.routes import Route
    from proxy.reading.asked import Asked

_EMBEDDINGS = frozenset({"/api/embed", "/api/embeddings", "/v1/embeddings"})

_GONE = frozenset({Reason.UPSTREAM_CLOSED, Reason.UPSTREAM_UNREACHABLE, Reason.UPSTREAM_TIMEOUT})
"""Why an exchange ended, if Ollama may have been restarted: nothing is loaded any more."""


class Room:
    """Every exchange that needs a model, from its admission to its end."""

    def __init__(self, ollama: Ollama, rules: Rules) -> None:
        self.rules = rules
        self.queue = Queue(swap_after=rules.swap_after, max_waiting=rules.max_waiting, shield=rules.shield)
        self.loads = Loads(ollama, self._load_ended, self._looked)
        self.judge = Judge(self.loads, local_only=rules.local_only)
        self.bodies = Bodies()
        self.watch: Watch | None = None  # set if it is to be noticed that Ollama is stuck
        self.counters: Counter[str] = Counter()
        self._visits: dict[Visit, None] = {}  # in the order of their arrival
        self._waiting: dict[int, Visit] = {}  # those in the queue, by their tickets' numbers
        self._numbers = count(1)
        self._draining = False

    def __repr__(self) -> str:
        return f"<Room {len(self._visits)} visits, {self.queue}, {self.loads}, {self.bodies}>"

    def apply(self, rules: Rules) -> None:
        """Follow new rules, for those who wait already, too. Those who come get the new `parallel`."""
        self.rules = rules
        self.queue.swap_after, self.queue.max_waiting = rules.swap_after, rules.max_waiting
        self.queue.shield, self.judge.local_only = rules.shield, rules.local_only
        self.queue.limits = rules.limits
        self._act(monotonic())

    # --- what an exchange does ---

    def visit(self, exchange: Exchange, route: Route, client: Client) -> Visit:
        """Take an exchange in, until `end`."""
        visit = Visit(exchange, route, client)
        self._visits[visit] = None
        return visit

    def passes(self, visit: Visit) -> bool:
        """Return whether nothing keeps the request from Ollama, and count it as sent then. If not, `admit` it.

        It does what `admit` would do, in one step and without holding the body: nearly all requests find their model
        loaded and a free slot.
        """
        head, upload, loads, now = visit.exchange.head, visit.client.upload, self.loads, monotonic()
        if head is None:
            return False
        asked = visit.asked = read_now(head, upload)
        if asked is None or not asked.prompt or self._draining or not loads.young(now):
            return False
        if asked.keep_alive is not None or asked.options or asked.web_search:
            return False
        rule = visit.exchange.rule
        if rule is not None and not passes(asked, rule):
            return False
        ticket = self._ticket(visit, asked, now)
        if ticket is None or (loads.failures and loads.failure(ticket.form, now)) or not self.queue.take(ticket):
            return False
        visit.ticket = ticket
        self.counters["requests"] += 1
        self._measure(visit, upload.size)
        return True

    async def admit(self, visit: Visit) -> None:
        """Return once Ollama can answer the request at once, or if Ollama's own answer is wanted, whatever it is.

        Raises CancelledError if the request is refused or turned away, or its load fails. A body that is too large to
        hold gets a passage: most of it is sent first, and `visit.turn_late` waits instead.
        """
        head, upload = visit.exchange.head, visit.client.upload
        if head is None:
            return
        if head.method == "GET":  # of one model, which the path names
            visit.asked = asked_by_path(head.path)
        elif not is_too_large(upload):
            visit.client.release()  # its reading stops earlier as long as nobody gathers it
            visit.asked = await self.bodies.take(visit, head)
        if visit.asked is not None:
            await self._admit(visit, visit.asked)
            self._measure(visit, visit.held)
        elif upload.content() is None:
            visit.turn_late = partial(self._admit_late, visit)
            self.bodies.pass_on(visit, head)
            if visit.passage is not None:
                return
        if visit.asked is None:
            self.judge.judge_unread(visit.exchange)
        self.bodies.release(visit)

    async def _admit(self, visit: Visit, asked: Asked) -> None:
        """Judge a request whose body was read, and wait for its turn. It goes on without what it must not say."""
        await self.judge.judge(visit.exchange, asked)
        if asked.keep_alive is not None or asked.options or asked.naming is Naming.UNREADABLE:
            asked = visit.asked = await self.bodies.lighten(visit, asked, self.rules.native)
        await self._turn(visit, asked)
        other_rule = visit.again is not None and await visit.again()
        if other_rule or visit.exchange.waited is not None:  # meanwhile its model or Ollama's cloud may have changed
            await self.judge.judge(visit.exchange, asked)

    async def _admit_late(self, visit: Visit) -> None:
        """Wait until a body that goes through a passage was read, and then for the request's turn."""
        passage = visit.passage
        if passage is None:
            return
        visit.turn = Signal()  # a new one, if the first connection ended before the body was read
        mistake = await passage.known
        if mistake is not None:
            raise mistake
        visit.asked = passage.asked
        if visit.asked is not None:
            await self._admit(visit, visit.asked)

    def end(self, visit: Visit, outcome: Outcome) -> None:
        """Take an exchange out, and let the next one go."""
        del self._visits[visit]
        exchange, ticket, asked, queue, now = visit.exchange, visit.ticket, visit.asked, self.queue, monotonic()
        _, party, reason = outcome
        if visit.held or visit.passage is not None or visit.wait is not None or exchange.phase is QUEUE:
            self._settle(visit)
        if exchange.upstream_status == 200:
            self._learn(visit, party, now)
        if reason in _GONE and party is UPSTREAM:
            self.loads.forget()
            self.judge.forget()
            if queue.loading is None:
                queue.listed((), now)
        if ticket is not None:
            if self._waiting:
                self._waiting.pop(ticket.number, None)
            if party is DOWNSTREAM and ticket in queue.sent:  # Ollama may not know that the client has left
                asyncio.get_running_loop().call_later(GRACE, self._left, ticket, exchange.upstream_status == 200)
            else:
                queue.leave(ticket, now, exchange.upstream_status == 200 and party is not UPSTREAM)
        if asked is not None and asked.keep_alive is not None and keeps_none(asked.keep_alive):
            queue.unloaded(plain_form(asked.model or "").model)
        if self._waiting:
            self._act(now)

    # --- what the owner sees and does ---

    def snapshot(self) -> Snapshot:
        """Return what goes on, as plain values."""
        counters, now = {**self.counters, "held_too_much": self.bodies.refused}, monotonic()
        troubles = () if self.watch is None else self.watch.troubles(now)
        return snapshot_of(tuple(self._visits), self.queue, self.loads, self.bodies.held, counters, troubles, now)

    def cancel(self, identity: str) -> int:
        """End the exchange with this id, wherever it is; return how many have it. Clients may choose the ids."""
        found = [visit for visit in self._visits if visit.exchange.id == identity]
        for visit in found:
            self.counters["cancelled"] += 1
            visit.client.stop(Stop(Party.PROXY, CANCELLED.reason, CANCELLED))
        return len(found)

    def tick(self, now: float) -> None:
        """Take the decisions that became due, and send the pings; call it each second."""
        for visit in tuple(self._visits):
            visit.tick(now, self.rules.times)
        if self._waiting:
            self._act(now)
        self.judge.tick(now)
        if self.watch is not None:
            self.watch.tick(now, silent_in(self._visits, self.loads, self.rules.stuck_after, now, self.queue.loading))

    def drain(self) -> None:
        """Turn away everyone who waits, and all who come."""
        self._draining = True
        for ticket in self.queue.waiting:
            visit = self._waiting.pop(ticket.number, None)
            self.queue.leave(ticket, monotonic())
            if visit is not None:
                visit.go(Stop(Party.PROXY, DRAINING.reason, DRAINING))

    # --- its steps ---

    async def _turn(self, visit: Visit, asked: Asked) -> None:
        """Wait for a request's turn, or for its rule's limit, if it has something to answer."""
        if not asked.prompt:
            return
        known = self.loads.young(monotonic()) or await self.loads.know()
        now = monotonic()
        ticket = (self._ticket(visit, asked, now) if known else None) or self._limited(visit, asked, now, known=known)
        if ticket is None:
            return
        if self._draining:
            raise asyncio.CancelledError(Stop(Party.PROXY, DRAINING.reason, DRAINING))
        failure = self.loads.failure(ticket.form, now)
        if failure is not None:
            raise asyncio.CancelledError(stop_of(failure))
        visit.ticket = ticket
        self.counters["requests"] += 1
        if self.queue.take(ticket):
            return
        self.counters["waited"] += 1
        self._waiting[ticket.number] = visit
        turn = visit.turn = visit.turn or Signal()
        turned_away = self.queue.join(ticket)
        if turned_away is not None:
            self.counters["turned_away"] += 1
            self._waiting.pop(turned_away.number).go(Stop(Party.PROXY, QUEUE_FULL.reason, QUEUE_FULL))
        self._act(now)
        if turn.done:
            stop = turn.value
        else:
            try:
                stop = await turn
            finally:
                visit.exchange.waited = monotonic() - now
        if stop is not None:
            raise asyncio.CancelledError(stop)

    def _ticket(self, visit: Visit, asked: Asked, now: float) -> Ticket | None:
        """Return the ticket of a request, if it needs a model that is here and takes it."""
        catalog, embedding = self.loads.catalog, visit.route.path in _EMBEDDINGS
        found = None if catalog is None else catalog.serving(asked, embedding)
        if found is None:
            return None
        form, visit.model = found
        slots = 1 if embedding or visit.model.has_one_slot else self.rules.parallel
        shielded = asked.keep_alive is None or not keeps_none(asked.keep_alive)
        limit = None if visit.exchange.rule is None else limit_of(visit.exchange.rule)
        return Ticket(next(self._numbers), visit.device, form, now, slots, shielded, limit)

    def _limited(self, visit: Visit, asked: Asked, now: float, *, known: bool) -> Ticket | None:
        """Return the ticket of a request that may wait for its rule's limit only; None if it has none to wait for.

        Ollama answers at once if it lacks the model. Any other request may keep it busy.
        """
        limit = None if visit.exchange.rule is None else limit_of(visit.exchange.rule)
        catalog = self.loads.catalog if known else None
        if limit is None or limit.at_most is None or asked.model is None or (catalog and catalog.lacks(asked.model)):
            return None
        return Ticket(next(self._numbers), visit.device, NO_FORM, now, shielded=False, limit=limit)

    def _looked(self) -> None:
        """Learn what Ollama lists. During a load it lists that model too early."""
        if self.queue.loading is None:
            now = monotonic()
            self.queue.listed(self.loads.listed if self.loads.fresh(now) else (), now)
            self._act(now)

    def _act(self, now: float) -> None:
        """Carry out what the queue decides."""
        decisions = self.queue.decide(now)
        due = [(each, self._waiting[each.ticket.number]) for each in decisions]  # one that goes on may take out others
        for decision, visit in due:
            if isinstance(decision, Send):
                self._waiting.pop(decision.ticket.number, None)
                visit.go(None)
            elif isinstance(decision, Load) and visit.model is not None:
                self.counters["loads"] += 1
                self.loads.load(decision.form, visit.model)

    def _load_ended(self, form: Form, failure: FailedLoad | None) -> None:
        now = monotonic()
        if failure is None:
            self.queue.loaded(form, self.loads.listed if self.loads.fresh(now) else None, now)
        else:
            self.counters["loads_failed"] += 1
            for ticket in self.queue.failed(form, now):
                visit = self._waiting.pop(ticket.number, None)
                if visit is not None:
                    visit.go(stop_of(failure))
        self._act(now)

    def _left(self, ticket: Ticket, answered: bool) -> None:
        """Free the place of a request whose client has left."""
        self.queue.leave(ticket, monotonic(), answered)
        self._act(monotonic())

    def _settle(self, visit: Visit) -> None:
        """Give back what the room holds for an exchange, and note the facts that the relay doesn't note."""
        self.bodies.release(visit)
        visit.note()
        if visit.wait is not None:
            self.counters["pings"] += visit.exchange.pings

    # --- what Ollama's silence and its counts show ---

    def _measure(self, visit: Visit, size: int) -> None:
        """Note how much text a request has, if its `size` may be too much: its body won't be held any more."""
        listed = None if visit.ticket is None else self.loads.listed.get(visit.ticket.form.model)
        if listed is not None and listed.context is not None and exceeds(size, listed.context):
            visit.text = text_in(visit.client.upload.content() or b"")

    def _learn(self, visit: Visit, party: Party | None, now: float) -> None:
        """Take what a good response shows: whether the model's context was full, and whether it has a token at all."""
        exchange, ticket, watch, tokens_out = visit.exchange, visit.ticket, self.watch, visit.exchange.tokens_out
        if exchange.tokens_in is not None:
            name = ticket.form.model if ticket is not None else plain_form(exchange.model or "").model
            listed = self.loads.listed.get(name)
            if listed is not None and is_full(listed.context, exchange.tokens_in, tokens_out, visit.text):
                exchange.context_full = True
                self.counters["context_full"] += 1
        if watch is not None and visit.model is not None and party is None:
            empty = not tokens_out and is_empty(visit.route.dialect, tokens_out, exchange.events, blank=exchange.blank)
            if empty or watch.doubts:
                watch.answered(visit.model.name, empty=empty, now=now)
