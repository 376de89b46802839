"""The life of a request, on one screen: `Gateway.serve`."""

from __future__ import annotations

import os
import re
from asyncio import CancelledError
from functools import partial
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Protocol, cast

from proxy.exchange.by_serve import peer_of
from proxy.exchange.client.client_socket import Ending
from proxy.exchange.message.exchange import ADMIT, Exchange, Outcome, Party, Stop
from proxy.exchange.message.failures import OutOfFiles, UpstreamFailure
from proxy.exchange.message.lists import Shown
from proxy.exchange.relay import Relay
from proxy.exchange.stops import INTERNAL, stop_of
from proxy.exchange.upstream.pool import Pool
from proxy.policy import refusals
from proxy.policy.gate import allowed_origin, decide
from proxy.policy.identity import Standing
from proxy.policy.peers import peer_allowed, vouched
from proxy.policy.refusals import Reason, Refusal
from proxy.policy.replies import preflight_reply, reply, surface_of
from proxy.policy.routes import Route

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.exchange.askers import Askers
    from proxy.exchange.awake import Awake
    from proxy.exchange.client.connection import Connection
    from proxy.exchange.message.exchange import Record
    from proxy.exchange.message.known_heads import Request
    from proxy.exchange.upstream.target import Target
    from proxy.exchange.waiting.room import Room
    from proxy.exchange.waiting.visit import Visit
    from proxy.policy.gate import Policy, Verdict
    from proxy.policy.heads import Preflight, RequestHead

# A client's own request id that is kept: a token (RFC 9110, 5.6.2) that any log and shell can carry.
_PLAIN_ID = re.compile(rb"[A-Za-z0-9!#$%&'*+\-.^_`|~]{1,128}").fullmatch

# Seconds between two diagnostics about used-up descriptors.
COMPLAIN_EACH = 60.0


class Identities(Protocol):
    """Who is asking."""

    def known(self, ip: str, port: int) -> Standing | None:
        """Return a peer's standing; None if it has to be asked for."""

    def expect(self, ip: str, port: int) -> None:
        """Begin to ask about a peer whose request will come soon."""

    async def ask(self, ip: str, port: int) -> Standing:
        """Return a peer's standing, after a bounded time."""


class Gateway:
    """Judges requests, relays those that pass, and records how each ended."""

    def __init__(
        self,
        policy: Policy,
        target: Target,
        record: Callable[[Record], object],
        note: Callable[..., object],
        identities: Identities | None = None,
        pool: Pool | None = None,
    ) -> None:
        self.policy = policy  # a reload replaces it and the target
        self.target = target
        self.askers: Askers | None = None  # set if there are access rules; a reload replaces it
        self.serve_open = False  # whether requests through `tailscale serve` are served
        self.room: Room | None = None  # set if exchanges may have to wait
        self.awake: Awake | None = None  # set if the machine must be kept from sleeping
        self._record = record
        self.note = note  # note(event, **fields): a line for the diagnostics log
        self._identities = identities  # none without Tailscale
        self.pool = Pool() if pool is None else pool
        self._prefix = os.urandom(5).hex()
        self._count = count(1)
        self._starved_at = -COMPLAIN_EACH  # when the log last reported used-up descriptors

    async def serve(self, client: Connection, request: Request, arrived: float) -> Ending:
        """Serve one request; return what its connection does next. Whatever happens, one record is made."""
        exchange = self._opened(client, request, arrived)
        relay = visit = None
        outcome, ending = _MISTAKE, _LEFT
        try:
            standing, refusal = _NOBODY, self._by_serve(exchange, request) if client.by_serve else None
            if refusal is None and self._identities is not None:
                known = self._identities.known(exchange.peer, exchange.peer_port)
                standing = known or await self._ask(client, exchange.peer, exchange.peer_port)
                exchange.who, refusal, _, _ = standing
            verdict = exchange.verdict = self._judge(exchange, request, standing, refusal)
            if isinstance(verdict, Route):
                exchange.move(ADMIT)
                if self.awake is not None:
                    self.awake.begin(verdict)
                client.admitted()
                # The place to wait: an exchange awaits here what it needs before it goes to Ollama, one line each.
                if self.room is not None and verdict.names_model:
                    visit = self.room.visit(exchange, verdict, client)
                    if not self.room.passes(visit):
                        visit.again = partial(self._judge_again, exchange, client, request, standing, self.askers)
                        await self.room.admit(visit)
                elif verdict.lists_models:
                    exchange.shown = await self._shown(exchange, verdict)
                relay = Relay(exchange, verdict, request, client, self.target, self.pool, visit)
                outcome = await relay.run()
                ending = _KEEP if relay.keep_alive else _CLOSE
            else:
                outcome, ending = self._answer(exchange, client, verdict)
        except (CancelledError, UpstreamFailure) as cause:  # who left, which limit, the drain, or Ollama
            if isinstance(cause, OutOfFiles):
                self._complain()
            outcome, ending = self._cut_short(exchange, client, relay, visit, stop_of(cause))
        except Exception:  # a mistake in the proxy costs this exchange, and no other
            self.note("internal", exc_info=True)
            outcome, ending = self._cut_short(exchange, client, relay, visit, INTERNAL)
        finally:
            self._end(exchange, relay, outcome, visit)
        return ending

    # --- its steps ---

    def _opened(self, client: Connection, request: Request, arrived: float) -> Exchange:
        asked = request.asked_id
        identity = asked.decode() if asked is not None and _PLAIN_ID(asked) else self._identity()
        return Exchange(identity, client.peer, client.peer_port, arrived, request.head)

    async def _ask(self, client: Connection, peer: str, peer_port: int) -> Standing:
        """Wait for Tailscale's answer about a peer. It refuses none that the address alone admits."""
        if self._identities is None:
            return _NOBODY
        standing = await self._identities.ask(peer, peer_port)
        if standing.refusal is None or client.by_serve:
            return standing
        allowed = vouched(peer, client.local, self.policy.allowed_peers)
        return standing._replace(refusal=None) if allowed else standing

    def _judge(self, exchange: Exchange, request: Request, standing: Standing, refusal: Refusal | None) -> Verdict:
        """Return the gate's verdict by the rule of the asker, or the `refusal` if there is one."""
        try:
            if b"origin" in request.head.read:
                exchange.origin = allowed_origin(request.head, self.policy)
            if refusal is not None:
                return refusal
            policy = self.policy
            if self.askers is not None:
                if standing.is_self and exchange.peer_port and not _BY_ANOTHER.isdisjoint(request.head.read):
                    standing = _PASSED_ON
                rule = self.askers.rule_of(exchange.peer, standing)
                if isinstance(rule, Refusal):
                    return decide(request.exact_head(), policy, rule)
                if rule is not None:
                    exchange.rule, policy = rule, rule.policy
            if request.known is not None:
                return request.known.verdict(request, policy)
            return decide(request.head, policy)
        except Exception:  # whatever it is: what can't be judged doesn't pass, and has its line
            self.note("internal", exc_info=True)
            return refusals.INTERNAL

    async def _judge_again(
        self, exchange: Exchange, client: Connection, request: Request, standing: Standing, askers: Askers | None
    ) -> bool:
        """Return whether another rule counts for the asker of a request that has waited than when it came.

        Raises CancelledError if the request is no longer allowed: its device may have lost what allowed it.
        """
        now = standing
        if self.askers is not None and self._identities is not None:
            known = self._identities.known(exchange.peer, exchange.peer_port)
            now = known or await self._ask(client, exchange.peer, exchange.peer_port)
        if now is standing and self.askers is askers:
            return False
        exchange.who, refusal, _, _ = now
        rule = exchange.rule
        verdict = self._judge(exchange, request, now, refusal)
        if isinstance(verdict, Refusal):
            raise CancelledError(Stop(Party.PROXY, verdict.reason, verdict))
        return exchange.rule is not rule

    def _by_serve(self, exchange: Exchange, request: Request) -> Refusal | None:
        """Note the device that sent a request through `tailscale serve`, or return why it isn't served."""
        if not self.serve_open:
            return refusals.SERVE_CLOSED
        found = peer_of(request.head.fields)
        if isinstance(found, str):
            exchange.peer, exchange.peer_port = found, 0  # the port is tailscaled's own
            return None
        return found

    async def _shown(self, exchange: Exchange, route: Route) -> Shown | None:
        """Return which models of a list the asker sees; None if that is all of them."""
        room, rule = self.room, exchange.rule
        if room is None or not room.rules.local_only:
            return None if rule is None else Shown(route, rule)
        elsewhere = frozenset() if route.marks_remote else await room.loads.elsewhere()
        return Shown(route, rule, local_only=True, elsewhere=elsewhere)

    def _answer(
        self, exchange: Exchange, client: Connection, verdict: Refusal | Preflight, stop: Stop | None = None
    ) -> tuple[Outcome, Ending]:
        """Answer in the proxy's own words; `stop` is the reason, if it isn't the gate's verdict."""
        keep_alive = client.persistent
        if isinstance(verdict, Refusal):
            keep_alive = keep_alive and not verdict.closes
            octets = self._reply(exchange, client, verdict, keep_alive=keep_alive)
            status = verdict.status
        else:
            octets = self._preflight(exchange, client, verdict, keep_alive=keep_alive)
            status = 204
        exchange.first_octet = monotonic()
        client.write(octets)
        outcome = Outcome(status) if stop is None else Outcome(status, stop.party, stop.reason)
        return outcome, Ending.KEEP if keep_alive else Ending.CLOSE

    def _cut_short(
        self, exchange: Exchange, client: Connection, relay: Relay | None, visit: Visit | None, stop: Stop
    ) -> tuple[Outcome, Ending]:
        """End early: with a response while there is time for one, visibly broken otherwise."""
        status = None if relay is None else relay.status
        wait = None if visit is None or status is not None else visit.wait
        early = wait if wait is not None and wait.begun else None  # the client has a head that isn't Ollama's
        if relay is not None and relay.complete:  # it came too late to matter
            return Outcome(status), Ending.KEEP if relay.keep_alive else Ending.CLOSE
        if stop.refusal is None:
            if relay is not None and relay.terminated and not client.blocked:  # it left with all that it asked for
                return Outcome(status), Ending.LEFT
            return Outcome(status if early is None else 200, stop.party, stop.reason), Ending.LEFT
        if early is not None:
            client.write(early.refused(stop.refusal))
            return Outcome(200, stop.party, stop.reason), Ending.CUT
        if relay is None or status is None:
            return self._answer(exchange, client, stop.refusal, stop)
        farewell = relay.farewell(stop.reason)
        if farewell:
            client.write(farewell)
        return Outcome(status, stop.party, stop.reason), Ending.RESET if client.delimits else Ending.CUT

    def _end(self, exchange: Exchange, relay: Relay | None, outcome: Outcome, visit: Visit | None = None) -> None:
        if relay is not None:
            relay.conclude()
            if relay.misread and outcome.reason is None:
                outcome = outcome._replace(reason=Reason.INTERNAL)
        if self.room is not None and visit is not None:
            self.room.end(visit, outcome)
        if self.awake is not None:
            self.awake.end(exchange.verdict)
        exchange.end(outcome, self._record)

    def _complain(self) -> None:
        """Report that there was no descriptor for a connection to Ollama, once a minute."""
        if monotonic() - self._starved_at >= COMPLAIN_EACH:
            self._starved_at = monotonic()
            self.note("descriptors_used_up", hint="raise `ulimit -n`, or NumberOfFiles under launchd; see lsof -p PID")

    # --- what is no request ---

    async def refused_peer(self, client: Connection) -> Refusal | None:
        """Wait for the identity of a connection's peer, as a request does. Return the peer's refusal, or None."""
        if self._identities is None or self._identities.known(client.peer, client.peer_port):
            return None
        return (await self._ask(client, client.peer, client.peer_port)).refusal

    def unparsable(self, client: Connection, refusal: Refusal, arrived: float, party: Party) -> None:
        """Record bytes that made no request, and answer `refusal` if `party`, who ends it, is the proxy."""
        exchange = Exchange(self._identity(), client.peer, client.peer_port, arrived, None)
        exchange.verdict = refusal
        if self._identities is not None:
            exchange.who = (self._identities.known(client.peer, client.peer_port) or _NOBODY).who
        status = None
        if party is Party.PROXY and refusal is not refusals.PEER_NOT_ALLOWED:
            client.write(self._reply(exchange, client, refusal, keep_alive=False))
            status = refusal.status
        if refusal is refusals.TLS:
            self.note("tls_on_plain_port", peer=client.peer, hint="use http:// instead of https:// in that client")
        self._end(exchange, None, Outcome(status, party))

    def peer_allowed(self, peer: str, peer_port: int, local: str) -> bool:
        """Return whether a connection from `peer` to our address `local` is taken. Also starts the identity lookup."""
        allowed = peer_allowed(peer, local, self.policy.allowed_peers)
        if allowed and self._identities is not None:
            self._identities.expect(peer, peer_port)
        return allowed

    # --- the rest ---

    def tick(self, now: float) -> None:
        """Close connections to Ollama that were idle for too long. Call it each second."""
        self.pool.expire(now)
        if self.room is not None:
            self.room.tick(now)

    def drain(self) -> None:
        """Turn away those who wait: what they wait for may take longer than a drain."""
        if self.room is not None:
            self.room.drain()

    def close(self) -> None:
        """Close every idle connection to Ollama."""
        self.pool.close()

    def _identity(self) -> str:
        return f"{self._prefix}{next(self._count):06x}"

    def _reply(self, exchange: Exchange, client: Connection, refusal: Refusal, *, keep_alive: bool) -> bytes:
        head = exchange.head
        octets = reply(
            refusal,
            surface=None if head is None else surface_of(head.path),
            request_id=exchange.id,
            keep_alive=keep_alive,
            origin=exchange.origin,
            date=client.date,
            version=(1, 1) if head is None else head.version,
            head_only=head is not None and head.method == "HEAD",
        )
        exchange.response_octets = len(octets) - octets.index(b"\r\n\r\n") - 4
        return octets

    def _preflight(self, exchange: Exchange, client: Connection, preflight: Preflight, *, keep_alive: bool) -> bytes:
        head, origin = cast("RequestHead", exchange.head), cast("bytes", exchange.origin)  # it has both: see `_judge`
        return preflight_reply(
            preflight,
            origin=origin,
            request_id=exchange.id,
            keep_alive=keep_alive,
            date=client.date,
            version=head.version,
        )


_NOBODY = Standing()
# Whoever sent a request that a program on this machine passes on, such as `tailscale serve`: not this machine itself.
# On the port for serve, where the field names the peer, the peer has no port.
_PASSED_ON = Standing()
_BY_ANOTHER = frozenset({b"x-forwarded-for", b"forwarded", b"via"})  # what such a program adds
# Made once, because each request uses them.
_MISTAKE = Outcome(None, Party.PROXY, Reason.INTERNAL)
_KEEP, _CLOSE, _LEFT = Ending.KEEP, Ending.CLOSE, Ending.LEFT
