"""One exchange while it lives: its phase, its possible moves, and the one way in which it ends.

Its end makes the `Record` that the audit writes, which never changes afterwards.
"""

from __future__ import annotations

from enum import StrEnum
from time import monotonic, time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.exchange.message.lists import Shown
    from proxy.policy.access import Rule
    from proxy.policy.gate import Verdict
    from proxy.policy.heads import RequestHead
    from proxy.policy.identity import Identity
    from proxy.policy.refusals import Reason, Refusal


class Phase(StrEnum):
    """How far an exchange has come."""

    __hash__ = str.__hash__  # Enum's own is a Python function: 118 instead of 12 ns on 3.13, for each move

    HEAD = "head"  # the request head is arriving or being checked
    QUEUE = "queue"  # admitted, but not yet on its way: the one place where an exchange may wait
    CONNECT = "connect"  # a connection to Ollama is being found or opened
    REQUEST = "request"  # the request is being sent
    WAIT = "wait"  # all of it is sent; Ollama is silent until its first token
    CONTENT = "content"  # the response is on its way
    DONE = "done"


class Move(StrEnum):
    """What takes an exchange from one phase to another."""

    __hash__ = str.__hash__

    ADMIT = "admit"  # the gate lets it pass
    CONNECT = "connect"  # it begins to look for a connection; again, if the first one was stale
    SEND = "send"  # the head of the request is sent
    SENT = "sent"  # all of the request is sent
    ANSWER = "answer"  # the head of the response is there
    END = "end"


MOVES: dict[Phase, dict[Move, Phase]] = {
    Phase.HEAD: {Move.ADMIT: Phase.QUEUE, Move.END: Phase.DONE},
    Phase.QUEUE: {Move.CONNECT: Phase.CONNECT, Move.END: Phase.DONE},
    Phase.CONNECT: {Move.CONNECT: Phase.CONNECT, Move.SEND: Phase.REQUEST, Move.END: Phase.DONE},
    Phase.REQUEST: {
        Move.CONNECT: Phase.CONNECT,
        Move.SENT: Phase.WAIT,
        Move.ANSWER: Phase.CONTENT,
        Move.END: Phase.DONE,
    },
    Phase.WAIT: {Move.CONNECT: Phase.CONNECT, Move.ANSWER: Phase.CONTENT, Move.END: Phase.DONE},
    Phase.CONTENT: {Move.SENT: Phase.CONTENT, Move.END: Phase.DONE},
    Phase.DONE: {},
}
"""Every possible move: phase -> move -> the next phase."""


class Party(StrEnum):
    """Who ended an exchange early."""

    DOWNSTREAM = "downstream"
    UPSTREAM = "upstream"
    PROXY = "proxy"


# Members by names of their own: on CPython 3.13 a member that is looked up in its class takes 370 instructions.
HEAD, QUEUE = Phase.HEAD, Phase.QUEUE
ADMIT, CONNECT, SEND, SENT, ANSWER, END = Move
UPSTREAM, DOWNSTREAM = Party.UPSTREAM, Party.DOWNSTREAM


class WrongMoveError(Exception):
    """An exchange tried a move that its phase doesn't have. The text names both."""


class Stop(NamedTuple):
    """Why an exchange must end early. It reaches the exchange as the only kind of cancellation there is."""

    party: Party  # who ends it
    reason: Reason | None = None  # None: the client left
    refusal: Refusal | None = None  # the response, if nothing has been sent yet; None: nobody listens


class Outcome(NamedTuple):
    """How an exchange ended."""

    status: int | None  # the status that the client got; None: nothing
    party: Party | None = None  # who cut it short; None: it is complete
    reason: str | None = None  # a stable code when it was refused, failed or cut


GOOD = Outcome(200)
"""How most exchanges end. Making another one takes 2,200 instructions (CPython 3.13)."""


class Record(NamedTuple):
    """A finished exchange. Bytes count content only, without framing.

    Times are seconds on the monotonic clock, which stops while a Mac sleeps.
    """

    id: str
    peer: str
    peer_port: int
    arrived: float
    ended: float
    arrived_at: float = 0.0  # `arrived` on the wall clock, read at the same time, because sleep moves the two apart
    head: RequestHead | None = None  # None: the bytes made no request
    verdict: Verdict | None = None
    phase: Phase = Phase.HEAD  # its phase when it ended
    status: int | None = None
    ended_by: Party | None = None  # None: complete
    reason: str | None = None
    first_octet: float | None = None  # when the answer's head went downstream
    request_octets: int = 0
    response_octets: int = 0
    stream: bool | None = None  # the response was an event stream or NDJSON
    model: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    events: int | None = None
    who: Identity | None = None  # who asked, if Tailscale knows
    upstream_status: int | None = None  # the status that Ollama gave
    waited: float | None = None  # seconds in the room; None: it didn't have to wait
    pings: int = 0  # signs of life that the client got meanwhile
    context_full: bool = False  # the model's context was, so that Ollama cut the prompt or the answer
    dropped: tuple[str, ...] = ()  # what was cut out of the request's body
    egress: bool = False  # it may have left the Mac, as the settings allow


class Exchange:
    """One request until its end. Each field names its only writer; phase and end have a method each."""

    __slots__ = (
        *(
            "arrived",
            "arrived_at",
            "events",
            "first_octet",
            "head",
            "id",
            "model",
            "origin",
            "peer",
            "peer_port",
            "phase",
        ),
        *("request_octets", "response_octets", "stream", "tokens_in", "tokens_out", "verdict", "who", "rule", "shown"),
        *("blank", "context_full", "dropped", "egress", "pings", "upstream_status", "waited"),
    )

    def __init__(self, identity: str, peer: str, peer_port: int, arrived: float, head: RequestHead | None) -> None:
        self.id = identity
        self.peer = peer
        self.peer_port = peer_port
        self.arrived = arrived
        self.arrived_at = time() - monotonic() + arrived
        self.head = head
        self.phase: Phase = HEAD  # `move`
        self.verdict: Verdict | None = None  # gateway
        self.origin: bytes | None = None  # gateway: an allowed Origin, to be named in the CORS fields of any response
        self.who: Identity | None = None  # gateway
        self.rule: Rule | None = None  # gateway: the access rule that counts for the asker; None: there are none
        self.first_octet: float | None = None  # the module that answers: relay or gateway
        self.request_octets = 0  # relay, or room if it never went there
        self.shown: Shown | None = None  # gateway: what its asker sees of a list of models; None: all, or it is no list
        self.response_octets = 0  # the module that answers
        self.stream: bool | None = None  # relay
        self.model: str | None = None  # streams, or relay where the answer doesn't say, or room as above
        self.tokens_in: int | None = None  # streams
        self.tokens_out: int | None = None  # streams
        self.events: int | None = None  # streams
        self.upstream_status: int | None = None  # relay
        self.waited: float | None = None  # gateway
        self.pings = 0  # gateway
        self.blank = False  # streams: no event of a chat that was read whole brought anything
        self.context_full = False  # room
        self.dropped: tuple[str, ...] = ()  # room
        self.egress = False  # room: it may leave the Mac, as the settings allow

    def __repr__(self) -> str:
        return f"<Exchange {self.id} {self.phase}>"

    def move(self, move: Move) -> None:
        """Go on to the phase that `move` leads to; raise WrongMoveError if there is none."""
        try:
            self.phase = MOVES[self.phase][move]
        except KeyError:
            raise WrongMoveError(f"{move} while {self.phase}") from None

    def end(self, outcome: Outcome, record: Callable[[Record], object]) -> None:
        """End it and hand over its record, exactly once."""
        phase = self.phase
        status, party, reason = outcome
        self.move(END)
        record(
            # `Record(…)` takes 1,800 instructions more (CPython 3.13).
            Record._make(
                (
                    self.id,
                    self.peer,
                    self.peer_port,
                    self.arrived,
                    monotonic(),
                    self.arrived_at,
                    self.head,
                    self.verdict,
                    phase,
                    status,
                    party,
                    reason,
                    self.first_octet,
                    self.request_octets,
                    self.response_octets,
                    self.stream,
                    self.model,
                    self.tokens_in,
                    self.tokens_out,
                    self.events,
                    self.who,
                    self.upstream_status,
                    self.waited,
                    self.pings,
                    self.context_full,
                    self.dropped,
                    self.egress,
                )
            )
        )
