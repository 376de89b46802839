"""All connections of clients: which are accepted, how many, for how long, and how they all end."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from email.utils import formatdate
from time import monotonic
from typing import TYPE_CHECKING

from proxy.event_loop import sockets
from proxy.event_loop.patience import within
from proxy.exchange.client.connection import Connection
from proxy.exchange.client.server import Server
from proxy.exchange.message.exchange import Party
from proxy.policy import refusals

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.exchange.client.deadlines import Limits
    from proxy.exchange.gateway import Gateway
    from proxy.policy.refusals import Refusal

# Connections over the limit that are getting their 503. Others are dropped without a response. It is half of the
# descriptors that `settings` leaves for everything but clients: with more, accepted clients could have no connection
# to Ollama.
REFUSED_AT_ONCE = 32
# Seconds in which the last bytes of a cut stream may be delivered.
FAREWELL = 1.0


class Clients(Server):
    """All connections. Called without arguments it makes the protocol of a new one."""

    def __init__(self, gateway: Gateway, limits: Limits) -> None:
        super().__init__(gateway.serve, gateway.unparsable, gateway.refused_peer, limits)
        self.gateway = gateway
        self._admitted: set[Connection] = set()
        self._turned_away: set[Connection] = set()
        self._per_client: Counter[str] = Counter()
        self._hurry = asyncio.Event()
        self._changed = asyncio.Event()
        self._stamp()

    def __call__(self) -> Connection:
        """Return the protocol of a new connection."""
        return Connection(self)

    def by_serve(self) -> Connection:
        """Return the protocol of a new connection to the port that is for `tailscale serve`."""
        made = self()
        made.by_serve = True
        return made

    def __repr__(self) -> str:
        return (
            f"<Clients {len(self._admitted)} connected, {len(self._turned_away)} turned away,"
            f" by client {dict(self._per_client)}>"
        )

    @property
    def connections(self) -> set[Connection]:  # type: ignore[override]
        """The accepted connections."""
        return self._admitted

    def connection_made(self, handler: Connection, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept or reject a new connection. aiohttp calls this before it reads anything."""
        super().connection_made(handler, transport)
        local = sockets.address(transport, "sockname")
        if not handler.peer or local is None:  # reset before it was accepted
            handler.cut(reset=False)
        else:
            self.admit(handler, local[0])

    def connection_lost(self, handler: Connection, exc: BaseException | None = None) -> None:  # type: ignore[override]
        """Forget a connection that has ended."""
        super().connection_lost(handler, exc)
        self.forget(handler)

    def admit(self, client: Connection, local: str) -> None:
        """Accept a new connection to our address `local`, or reject it:

        strangers silently, connections over the limit by 503.
        """
        limits = self.limits
        if not self.gateway.peer_allowed(client.peer, client.peer_port, local):
            self.unparsable(client, refusals.PEER_NOT_ALLOWED, monotonic(), Party.PROXY)
            client.cut(reset=False)
        elif len(self._admitted) >= limits.max_connections:
            self._turn_away(client, refusals.overloaded("max_connections"))
        elif 0 < limits.max_connections_per_client <= self._per_client[client.peer]:
            self._turn_away(client, refusals.overloaded("max_connections_per_client"))
        else:
            self._admitted.add(client)
            self._per_client[client.peer] += 1

    def _turn_away(self, client: Connection, refusal: Refusal) -> None:
        if len(self._turned_away) < REFUSED_AT_ONCE:
            self._turned_away.add(client)
            client.refuse_unparsable(refusal)
        else:
            self.unparsable(client, refusal, monotonic(), Party.PROXY)
            client.cut(reset=False)

    def forget(self, client: Connection) -> None:
        """Drop a connection that has ended."""
        self._turned_away.discard(client)
        if client in self._admitted:
            self._admitted.remove(client)
            self._per_client[client.peer] -= 1
            if not self._per_client[client.peer]:
                del self._per_client[client.peer]
        self._changed.set()

    def tick(self, now: float) -> None:
        """Check the deadlines of every connection. Call it each second."""
        self._stamp()
        self._each((*self._admitted, *self._turned_away), lambda client: client.tick(now))

    def _each(self, clients: tuple[Connection, ...], act: Callable[[Connection], object]) -> None:
        """Call `act` with each of `clients`. An error with one ends that one, and doesn't affect the others."""
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
        """Stop draining: cut running exchanges."""
        self._hurry.set()
        self._changed.set()

    async def drain(self, seconds: float) -> None:
        """Let running exchanges finish within `seconds`, then cut them. No further request is served."""
        self.draining = True
        self.gateway.drain()
        self._each(tuple(self._admitted), lambda client: client.drain())
        await self._until_empty(seconds)
        self._each(tuple(self._admitted), lambda client: client.drain_over())
        self._hurry.clear()
        await self._until_empty(FAREWELL)
        self._each((*self._admitted, *self._turned_away), lambda client: client.cut(reset=False))
        await self._until_empty(FAREWELL)

    async def _until_empty(self, seconds: float) -> None:
        """Wait until no connection is left, for at most `seconds`, or until `hurry` is called."""
        try:
            async with within(seconds):
                while self._admitted and not self._hurry.is_set():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass
