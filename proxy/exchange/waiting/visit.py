"""One exchange in the room, from its admission to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.exchange.message.exchange import Phase
from proxy.exchange.waiting.wait import Wait

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxy.event_loop.life import Signal
    from proxy.exchange.message.exchange import Exchange, Stop
    from proxy.exchange.message.passage import Passage
    from proxy.exchange.message.tickets import Ticket
    from proxy.exchange.waiting.catalog import Model
    from proxy.exchange.waiting.pings import Times
    from proxy.exchange.waiting.wait import Client, Stream
    from proxy.policy.routes import Route
    from proxy.reading.asked import Asked


class Visit:
    """One exchange in the room. Each field names its only writer."""

    __slots__ = (
        *("_said", "again", "asked", "client", "device", "exchange", "heard", "held", "model", "passage", "route"),
        *("stream", "text", "ticket", "turn", "turn_late", "wait"),
    )

    def __init__(self, exchange: Exchange, route: Route, client: Client) -> None:
        self.exchange = exchange
        self.route = route
        self.client = client
        who = exchange.who  # if of another tailnet, it may have given itself any name
        self.device = (None if who is None else who.node if who.shared else who.device) or exchange.peer  # its turn
        self.again: Callable[[], Awaitable[bool]] | None = None  # gateway: judges its head again after a wait
        self.held = 0  # bodies: bytes of its body that count as held
        self.asked: Asked | None = None  # room: once its body was read
        self.passage: Passage[Asked] | None = None  # bodies: what its body goes through if that is too large to hold
        self.turn_late: Callable[[], Awaitable[None]]  # room: with a passage, what waits until that may be opened
        self.stream: Stream | None = None  # relay: once a stream of Ollama's is passed on in chunks
        self.wait: Wait | None = None  # `tick`: what sends the client pings
        self.ticket: Ticket | None = None  # room: once it needs a turn
        self.model: Model | None = None  # room: the model that it needs
        self.turn: Signal[Stop | None] | None = None  # room: what it waits for; brings None if it may go to Ollama
        self.text: int | None = None  # room: bytes of text in its body; None: not read, or not too much
        self.heard: float | None = None  # `listen`: since when Ollama is silent; None: it isn't, or may be
        self._said: tuple[Phase, int] | None = None  # the same, at the last second

    def __repr__(self) -> str:
        waits = self.turn is not None and not self.turn.done
        return f"<Visit of {self.exchange.id}, {'waits' if waits else self.exchange.phase}>"

    def interrupt(self) -> None:
        """Let it wait no longer: Ollama has answered before the end of its body, or is gone."""
        if self.passage is not None:
            self.passage.known.set(None)
        self.go(None)

    def go(self, stop: Stop | None) -> None:
        """Let it go on, or end it, if it waits for its turn."""
        if self.turn is not None:
            self.turn.set(stop)

    def tick(self, now: float, times: Times) -> None:
        """Send the pings that are due, and listen for Ollama; called each second. Most requests end before that."""
        route = self.route
        if self.wait is None and self.asked is not None and route.dialect is not None:
            self.wait = Wait(self.exchange, route, route.dialect, self.asked, self.client, times)
        if self.wait is not None:
            self.wait.tick(now, self.stream)
        self.listen(now)

    def listen(self, now: float) -> None:
        """Note whether Ollama has said anything since the last call. Ollama stops if the client takes nothing."""
        phase, stream = self.exchange.phase, self.stream
        said = (phase, 0 if stream is None else stream.events)
        streams = phase is Phase.CONTENT and stream is not None and not self.client.unsent
        if phase is not Phase.WAIT and not streams:
            self.heard = None
        elif self.heard is None or said != self._said:
            self.heard = now
        self._said = said

    def note(self) -> None:
        """Note the facts of its exchange that the relay doesn't note."""
        exchange = self.exchange
        if exchange.phase is Phase.QUEUE:  # it never came to the relay
            exchange.request_octets = self.client.upload.size
            exchange.model = None if self.asked is None else self.asked.model
        if self.wait is not None:
            exchange.pings = self.wait.pings
