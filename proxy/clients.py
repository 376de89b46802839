"""All connections of clients: which are let in, how many, how long, and how they all end."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from proxy import refusals
from proxy.downstream import Downstream
from proxy.exchange import Party
from proxy.patience import within

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.exchange import RequestHead
    from proxy.refusals import Refusal

# Connections over the limit that are being told so; beyond these they are dropped without a word. Half of the
# descriptors that `settings` leaves for all that is no client's: more of them, and those that were let in could have no
# connection to Ollama.
TELLING_LIMIT = 32
# Seconds for which the farewell of a cut stream may take to go out.
FAREWELL = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may use: octets, seconds, connections."""

    max_head: int
    max_body: int
    head_timeout: float
    body_timeout: float
    stall_timeout: float
    max_connections: int
    max_connections_per_client: int  # 0: as many as there are


class Gateway(Protocol):
    """Who judges and serves what connections bring."""

    @property
    def note(self) -> Callable[..., object]:
        """Call it with an event and its fields to write a diagnostic."""

    def request(self, client: Downstream, head: RequestHead, arrived: float) -> None:
        """Serve one request: give the client a `relay`, or let it `answer`."""

    def refuse(self, client: Downstream, refusal: Refusal) -> bytes:
        """Return the reply that tells `refusal` to the request that `client` has under way."""

    def unparsable(self, client: Downstream, refusal: Refusal, arrived: float, party: Party) -> None:
        """Note octets that made no request, and answer `refusal` if `party`, who ends it, is the proxy."""

    def peer_allowed(self, peer: str, peer_port: int, local: str) -> bool:
        """Say whether a connection from `peer` to our address `local` is served at all."""


class Clients:
    """The connections that there are. Called without arguments it makes the protocol of a new one."""

    def __init__(self, gateway: Gateway, limits: Limits) -> None:
        self.gateway = gateway
        self.limits = limits  # replaced whole by a reload
        self.date = b""  # an HTTP-date (RFC 9110, 5.6.7), as of the last tick
        self.draining = False
        self.connections: set[Downstream] = set()
        self._turned_away: set[Downstream] = set()
        self._per_client: Counter[str] = Counter()
        self._hurry = asyncio.Event()
        self._changed = asyncio.Event()
        self._stamp()

    def __call__(self) -> Downstream:
        """Return the protocol of a new connection."""
        return Downstream(self)

    def by_serve(self) -> Downstream:
        """Return the protocol of a new connection to the port that is for `tailscale serve`."""
        made = self()
        made.by_serve = True
        return made

    def admit(self, client: Downstream, local: str) -> None:
        """Take in a new connection to our address `local`; or turn it away, strangers silently, one too many by 503."""
        limits = self.limits
        if not self.gateway.peer_allowed(client.peer, client.peer_port, local):
            self.gateway.unparsable(client, refusals.PEER_NOT_ALLOWED, monotonic(), Party.PROXY)
            client.cut(reset=False)
        elif len(self.connections) >= limits.max_connections:
            self._turn_away(client, refusals.overloaded("max_connections"))
        elif 0 < limits.max_connections_per_client <= self._per_client[client.peer]:
            self._turn_away(client, refusals.overloaded("max_connections_per_client"))
        else:
            self.connections.add(client)
            self._per_client[client.peer] += 1

    def _turn_away(self, client: Downstream, refusal: Refusal) -> None:
        if len(self._turned_away) < TELLING_LIMIT:
            self._turned_away.add(client)
            client.refuse_unparsable(refusal)
        else:
            self.gateway.unparsable(client, refusal, monotonic(), Party.PROXY)
            client.cut(reset=False)

    def forget(self, client: Downstream) -> None:
        """Drop a connection that is gone."""
        self._turned_away.discard(client)
        if client in self.connections:
            self.connections.remove(client)
            self._per_client[client.peer] -= 1
            if not self._per_client[client.peer]:
                del self._per_client[client.peer]
        self._changed.set()

    def tick(self, now: float) -> None:
        """Look at the deadlines of every connection. Call it each second."""
        self._stamp()
        self._each((*self.connections, *self._turned_away), lambda client: client.tick(now))

    def _each(self, clients: tuple[Downstream, ...], act: Callable[[Downstream], object]) -> None:
        """Call `act` with each of `clients`. A mistake with one ends that one, and concerns no other."""
        for client in clients:
            try:
                act(client)
            except Exception:  # whatever it is: the others have deadlines too
                self.gateway.note("internal", exc_info=True)
                with suppress(Exception):
                    client.failed()

    def _stamp(self) -> None:
        self.date = formatdate(usegmt=True).encode()

    def hurry(self) -> None:
        """Drain no longer: cut what is under way."""
        self._hurry.set()
        self._changed.set()

    async def drain(self, seconds: float) -> None:
        """Let what is under way finish within `seconds`, then cut it. No further request is served."""
        self.draining = True
        self._each(tuple(self.connections), lambda client: client.drain())
        await self._until_empty(seconds)
        self._each(tuple(self.connections), lambda client: client.drain_over())
        self._hurry.clear()
        await self._until_empty(FAREWELL)
        self._each((*self.connections, *self._turned_away), lambda client: client.cut(reset=False))
        await self._until_empty(FAREWELL)

    async def _until_empty(self, seconds: float) -> None:
        """Wait until no connection is left, for at most `seconds`, or until told to hurry."""
        try:
            async with within(seconds):
                while self.connections and not self._hurry.is_set():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass
