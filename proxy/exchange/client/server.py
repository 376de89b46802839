"""What all connections of clients share: who serves their requests, their limits, and the date."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from proxy.exchange.client.client_socket import Ending
    from proxy.exchange.client.deadlines import Limits
    from proxy.policy.refusals import Refusal


class Server(web.Server):
    """What all connections share."""

    def __init__(
        self,
        serve: Callable[..., Awaitable[Ending]],
        unparsable: Callable[..., None],
        refused_peer: Callable[..., Awaitable[Refusal | None]],
        limits: Limits,
    ) -> None:
        """Take the gateway's methods of these names, which take a connection first."""
        super().__init__(None)  # type: ignore[arg-type]  # connections have a `start` of their own
        self.serve = serve
        self.unparsable = unparsable
        self.refused_peer = refused_peer
        self.limits = limits  # replaced whole by a reload
        self.date = b""  # an HTTP-date (RFC 9110, 5.6.7), as of the last tick
        self.draining = False
