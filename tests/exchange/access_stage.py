"""A gateway with access rules, to which any device of a tailnet can send requests."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proxy.exchange.askers import Askers
from proxy.policy.access import Access
from proxy.policy.rule_keys import RuleSpec
from proxy.serving.binding import bind
from proxy.tailnet.device import Who
from proxy.tailnet.whois import Whois
from tests.support.asked_tailscale import AskedTailscale, Clock, Reports
from tests.support.raw_http import Proxy, Wire

if TYPE_CHECKING:
    from tests.support.raw_http import Answer

HERE = "127.0.0.1"
KID = "100.64.0.20"
MAC = "100.64.0.1"  # this machine's own
BODY = b'{"model":"tiny","messages":[]}'
RULES = (
    RuleSpec(("kids-ipad",), ("gemma3:4b",)),
    RuleSpec(("tag:robot",), ("*",), ("POST /api/chat",)),
    RuleSpec(("alice@example.com", "self"), ("*",)),
)


class Stage:
    """A gateway with access rules, its Tailscale, and its port for serve, where requests come from any device."""

    def __init__(self, port: int) -> None:
        """`port` is Ollama's."""
        self.tailscale = AskedTailscale()
        self.tailscale.join(Who("kids-ipad", "carol@example.com", (KID,), "carol@example.com", node="nKid"))
        self.tailscale.join(Who("mac", "dave@example.com", (MAC,), "dave@example.com", node="nMac"))
        self.clock = Clock()
        self.reports = Reports()
        self.whois = Whois(self.tailscale.who, self.reports, self.clock, own=lambda address: address == MAC)
        self.proxy = Proxy(port, identities=self.whois)

    async def open(self) -> None:
        """Listen, with the rules above."""
        await self.proxy.start()
        self.proxy.gateway.serve_open = True
        sock = bind(HERE, 0)
        self._server = await asyncio.get_running_loop().create_server(self.proxy.clients.by_serve, sock=sock)
        self._port = sock.getsockname()[1]
        self.apply(*RULES)

    def apply(self, *specs: RuleSpec, capability: str | None = None, may_open_rows: bool = False) -> None:
        """Apply rules, as a reload does. `may_open_rows`: so may the grants of `capability`."""
        policy = self.proxy.gateway.policy
        access = Access.of(specs, policy, capability=capability, capability_may_open_rows=may_open_rows)
        self.proxy.gateway.askers = Askers(access, self.reports, self.clock)
        self.whois.apply(rules=True, capability=capability)

    async def close(self) -> None:
        """Stop."""
        self._server.close()
        await self.proxy.stop()
        await self.whois.close()

    async def wire(self) -> Wire:
        """Return a connection to the port for serve."""
        self.proxy.wires.append(await Wire.open(self._port))
        return self.proxy.wires[-1]

    async def asks(self, peer: str, method: str, target: str, wire: Wire | None = None, **fields: str) -> Answer:
        """Return the answer to a request of a device."""
        wire = await self.sends(peer, method, target, BODY if method == "POST" else b"", wire, **fields)
        return await wire.answer()

    async def sends(
        self, peer: str, method: str, target: str, body: bytes, wire: Wire | None = None, **fields: str
    ) -> Wire:
        """Send a request of a device; return its connection."""
        wire = wire or await self.wire()
        await wire.request(method, target, body, X_Forwarded_For=peer, **fields)
        return wire
