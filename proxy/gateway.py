"""The life of a request, on one screen: head, gate, relay or reply, audit; always all of them."""

from __future__ import annotations

import os
import re
from itertools import count
from time import monotonic, time
from typing import TYPE_CHECKING, Protocol, cast

from proxy import refusals
from proxy.by_serve import peer_of
from proxy.exchange import Exchange, Party, Phase
from proxy.gate import allowed_origin, decide
from proxy.peers import peer_allowed
from proxy.pool import Pool
from proxy.refusals import Reason, Refusal
from proxy.relay import Relay
from proxy.replies import preflight_reply, reply, surface_of
from proxy.routes import Route

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.awake import Awake
    from proxy.clients import Clients
    from proxy.downstream import Downstream
    from proxy.exchange import Identity, Preflight, RequestHead
    from proxy.gate import Policy
    from proxy.relay import Target

# A client's own request id that is kept: a token (RFC 9110, 5.6.2) that any log and shell can carry.
_PLAIN_ID = re.compile(rb"[A-Za-z0-9!#$%&'*+\-.^_`|~]{1,128}").fullmatch

# Seconds between two diagnostics that say that descriptors are used up.
COMPLAIN_EACH = 60.0

# Members read through their class cost 60 ns each on Python 3.11.
_QUEUE, _OVERLOADED = Phase.QUEUE, Reason.OVERLOADED


class Identities(Protocol):
    """Who is asking, as far as is known: found out beside the exchanges, never before one."""

    def wanted(self, ip: str, port: int, arrived: float = ...) -> Identity | None:
        """Return what is known of a peer, as of when its request arrived. Also starts a lookup, without waiting."""


class Gateway:
    """Judges requests, relays those that pass, and hands each to the audit when it is over."""

    def __init__(
        self,
        policy: Policy,
        target: Target,
        audit: Callable[[Exchange], None],
        note: Callable[..., object],
        identities: Identities | None = None,
    ) -> None:
        self.policy = policy  # replaced whole by a reload, as is the target
        self.target = target
        self.clients: Clients  # set by who makes both, for each needs the other
        self.serve_open = False  # whether what comes by `tailscale serve` is served
        self.awake: Awake | None = None  # set where the machine must be kept from sleeping
        self._audit = audit
        self.note = note  # note(event, **fields): a line for the diagnostics log
        self._identities = identities  # none without Tailscale
        self._pool = Pool()
        self._prefix = os.urandom(5).hex()
        self._count = count(1)
        self._starved_at = -COMPLAIN_EACH  # when it was last said that descriptors are used up

    def request(self, client: Downstream, head: RequestHead, arrived: float) -> None:
        """Judge one request: relay it, or answer it here and now."""
        asked = head.read.get(b"x-request-id")
        identity = asked.decode() if asked is not None and _PLAIN_ID(asked) else self._identity()
        exchange = client.exchange = Exchange(identity, client.peer, client.peer_port, arrived, head)
        exchange.arrived_at = time() - monotonic() + arrived
        try:
            if b"origin" in head.read:
                exchange.origin = allowed_origin(head, self.policy)
            refusal = self._by_serve(exchange, head) if client.by_serve else None
            verdict = decide(head, self.policy) if refusal is None else refusal
        except Exception:  # whatever it is: what can't be judged doesn't pass, and has its line
            self.note("internal", exc_info=True)
            verdict = refusals.INTERNAL
        exchange.verdict = verdict
        if self._identities is not None:
            self._identities.wanted(exchange.peer, exchange.peer_port)  # so that the answer is there for the line
        if isinstance(verdict, Route):
            if self.awake is not None:
                self.awake.begin(verdict)
            exchange.phase = _QUEUE  # the one place where an admitted exchange could be made to wait
            client.relay = Relay(exchange, verdict, client, self._pool, self.target, self._close)
            return
        exchange.phase = Phase.DONE
        if isinstance(verdict, Refusal):
            keep_alive = client.persistent and not verdict.closes
            octets = self._reply(exchange, verdict, keep_alive=keep_alive)
        else:
            keep_alive = client.persistent
            octets = self._preflight(exchange, head, verdict, keep_alive=keep_alive)
        exchange.first_octet = exchange.ended = monotonic()
        self._close(exchange)
        client.answer(octets, keep_alive=keep_alive)

    def _by_serve(self, exchange: Exchange, head: RequestHead) -> Refusal | None:
        """Note the device that a request is from which came by `tailscale serve`, or return why it isn't served."""
        if not self.serve_open:
            return refusals.SERVE_CLOSED
        found = peer_of(head.fields)
        if isinstance(found, str):
            exchange.peer, exchange.peer_port = found, 0  # the port is tailscaled's own
            return None
        return found

    def refuse(self, client: Downstream, refusal: Refusal) -> bytes:
        """Return the reply that tells `refusal` to the request that `client` has under way."""
        exchange = cast("Exchange", client.exchange)
        return self._reply(exchange, refusal, keep_alive=client.persistent and not refusal.closes)

    def unparsable(self, client: Downstream, refusal: Refusal, arrived: float, party: Party) -> None:
        """Note octets that made no request, and answer `refusal` if `party`, who ends it, is the proxy."""
        exchange = Exchange(self._identity(), client.peer, client.peer_port, arrived)
        exchange.arrived_at = time() - monotonic() + arrived
        exchange.verdict = refusal
        exchange.ended_by = party
        if party is Party.PROXY and refusal is not refusals.PEER_NOT_ALLOWED:
            client.write(self._reply(exchange, refusal, keep_alive=False))
        if refusal is refusals.TLS:
            self.note("tls_on_plain_port", peer=client.peer, hint="use http:// instead of https:// at that client")
        exchange.ended = monotonic()
        self._close(exchange)

    def peer_allowed(self, peer: str, peer_port: int, local: str) -> bool:
        """Say whether a connection from `peer` to our address `local` is served; if so, let who it is be found out."""
        allowed = peer_allowed(peer, local, self.policy.allowed_peers)
        if allowed and self._identities is not None:
            self._identities.wanted(peer, peer_port)
        return allowed

    def tick(self, now: float) -> None:
        """Close connections to Ollama that nobody has used for a while. Call it each second."""
        for connection in self._pool.expired(now):
            connection.close()

    def close(self) -> None:
        """Close every connection to Ollama that nobody uses."""
        while (connection := self._pool.take()) is not None:
            connection.close()

    def _identity(self) -> str:
        return f"{self._prefix}{next(self._count):06x}"

    def _reply(self, exchange: Exchange, refusal: Refusal, *, keep_alive: bool) -> bytes:
        head = exchange.head
        exchange.status = refusal.status
        octets = reply(
            refusal,
            surface=None if head is None else surface_of(head.path),
            request_id=exchange.id,
            keep_alive=keep_alive,
            origin=exchange.origin,
            date=self.clients.date,
            version=(1, 1) if head is None else head.version,
            head_only=head is not None and head.method == "HEAD",
        )
        exchange.response_octets = len(octets) - octets.index(b"\r\n\r\n") - 4
        return octets

    def _preflight(self, exchange: Exchange, head: RequestHead, preflight: Preflight, *, keep_alive: bool) -> bytes:
        exchange.status = 204
        return preflight_reply(
            preflight,
            origin=exchange.origin or b"",
            request_id=exchange.id,
            keep_alive=keep_alive,
            date=self.clients.date,
            version=head.version,
        )

    def _close(self, exchange: Exchange) -> None:
        if exchange.reason is _OVERLOADED and monotonic() - self._starved_at >= COMPLAIN_EACH:
            self._starved_at = monotonic()
            self.note("descriptors_used_up", hint="raise `ulimit -n`, or NumberOfFiles under launchd; see lsof -p PID")
        if self._identities is not None:
            exchange.who = self._identities.wanted(exchange.peer, exchange.peer_port, exchange.arrived)
        if self.awake is not None:
            self.awake.end(exchange.verdict)
        self._audit(exchange)
