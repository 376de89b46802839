"""Show what goes on in the room at one moment, as plain values that fit into JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from proxy.exchange.message.exchange import Phase

if TYPE_CHECKING:
    from proxy.exchange.message.tickets import Form
    from proxy.exchange.waiting.loads import Loads
    from proxy.exchange.waiting.queue import Queue
    from proxy.exchange.waiting.visit import Visit


@dataclass(frozen=True, slots=True)
class Present:
    """One exchange that needs a model."""

    id: str  # the access log's
    peer: str
    device: str | None
    user: str | None
    path: str
    model: str | None  # as the client wrote it; None: not read yet, or not readable
    phase: str  # `upload`: its body arrives; `queue`; `load`: its model is loaded; then an exchange's own
    seconds: float  # since it arrived
    waited: float | None  # seconds in the queue, so far or in all; None: it didn't have to wait
    position: int | None  # in the queue, from 1; None: it doesn't wait
    events: int  # of its stream that came so far, about one a token
    pings: int
    held: int  # bytes of its body
    limit: str | None = None  # the access rule for whose `max_active` it waits; None: it doesn't
    first: float | None = None  # seconds from its arrival to the head of the response; None: that is yet to come


@dataclass(frozen=True, slots=True)
class InMemory:
    """A model that Ollama has in memory or is loading."""

    name: str  # the canonical one
    options: dict[str, Any]  # with which it is loaded; empty: Ollama's defaults
    state: str  # `loading` or `loaded`
    seconds: float | None  # since its load began; None unless it is loading
    waiting: int  # requests in the queue for it
    sent: int  # requests with Ollama
    memory: int | None = None  # bytes, as Ollama listed it last
    context: int | None = None  # tokens
    unloads: str | None = None  # when Ollama removes it if nobody uses it, as Ollama listed it last


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The room at one moment."""

    exchanges: tuple[Present, ...]  # in the order of their arrival
    models: tuple[InMemory, ...]
    counters: dict[str, int]  # since the start
    held: int  # bytes of all bodies in the room
    looked: float | None  # seconds since Ollama listed its models; None: it never did
    troubles: tuple[str, ...]  # what seems wrong with Ollama, in words

    def as_dict(self) -> dict[str, Any]:
        """Return it as a dict that fits into JSON."""
        return asdict(self)


def snapshot_of(
    visits: tuple[Visit, ...],
    queue: Queue,
    loads: Loads,
    held: int,
    counters: dict[str, int],
    troubles: tuple[str, ...],
    now: float,
) -> Snapshot:
    """Return the room as it is now."""
    positions = {ticket.number: at for at, ticket in enumerate(queue.waiting, 1)}
    held_back = queue.held(now)
    looked = now - loads.looked_at
    return Snapshot(
        exchanges=tuple(_present(visit, positions, held_back, queue, now) for visit in visits),
        models=tuple(_in_memory(form, queue, loads, now) for form in queue.forms),
        counters=counters,
        held=held,
        looked=looked if looked < inf else None,
        troubles=troubles,
    )


def _present(visit: Visit, positions: dict[int, int], held_back: set[int], queue: Queue, now: float) -> Present:
    exchange, asked, wait, ticket = visit.exchange, visit.asked, visit.wait, visit.ticket
    position = None if ticket is None else positions.get(ticket.number)
    phase, waited = str(exchange.phase), exchange.waited
    if asked is None and (exchange.phase is Phase.QUEUE or (visit.passage is not None and not visit.passage.opened)):
        phase = "upload"
    if ticket is not None and position is not None:
        phase, waited = ("load" if queue.loading == ticket.form else "queue"), now - ticket.since
    who = exchange.who
    limit = ticket.limit if ticket is not None and ticket.number in held_back else None
    return Present(
        id=exchange.id,
        peer=exchange.peer,
        device=None if who is None else who.device,
        user=None if who is None else who.user,
        path=visit.route.path,
        model=None if asked is None else asked.model,
        phase=phase,
        seconds=now - exchange.arrived,
        waited=waited,
        position=position,
        events=0 if visit.stream is None else visit.stream.events,
        pings=0 if wait is None else wait.pings,
        held=visit.held,
        limit=None if limit is None else limit.title,
        first=None if exchange.first_octet is None else exchange.first_octet - exchange.arrived,
    )


def _in_memory(form: Form, queue: Queue, loads: Loads, now: float) -> InMemory:
    loading = form == queue.loading
    listed = loads.listed.get(form.model)
    return InMemory(
        name=form.model,
        options=dict(form.options),
        state="loading" if loading else "loaded",
        seconds=now - loads.began if loading else None,
        waiting=sum(ticket.form == form for ticket in queue.waiting),
        sent=sum(ticket.form == form for ticket in queue.sent),
        memory=None if listed is None else listed.memory,
        context=None if listed is None else listed.context,
        unloads=None if listed is None else listed.unloads,
    )
