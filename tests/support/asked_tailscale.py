"""A Tailscale that is only asked who peers are, and whose answers a test sets.

It stands for `Tailscale.who`. Like tailscaled (public source: tailscale `ipn/localapi/localapi.go`, serveWhoIs, and
`ipn/ipnlocal/local.go`, WhoIs) it answers with the node that has the address, with all of its addresses, and with
nobody (404) for an address that no node has.
"""

from __future__ import annotations

import asyncio

from proxy.tailnet.device import Who

LAPTOP, LAPTOP6 = "100.64.0.7", "fd7a:115c:a1e0::7"
ROBOT = "100.64.0.8"
NOBODY = "100.64.0.99"
ALICE = Who("laptop", "alice@example.com", (LAPTOP, LAPTOP6), "alice@example.com", node="nLaptop1CNTRL")


class AskedTailscale:
    """Answers about the peers in `peers`, by address; raises `failure` if that is set, and waits while it `hangs`."""

    def __init__(self, *nodes: Who) -> None:
        self.peers: dict[str, Who] = {}
        self.asked: list[str] = []
        self.capabilities: list[str | None] = []  # that were asked about
        self.failure: Exception | None = None
        self._answers = asyncio.Event()
        self._answers.set()
        for node in nodes or (ALICE, Who("robot", "tag:robot", (ROBOT,), tags=("tag:robot",), node="nRobot1CNTRL")):
            self.join(node)

    def join(self, node: Who) -> None:
        """Let a device have its addresses, whoever had them before."""
        self.peers |= dict.fromkeys(node.addresses, node)

    def remove(self, node: Who) -> None:
        """Remove a device."""
        for address in node.addresses:
            del self.peers[address]

    def hang(self) -> None:
        """Answer nothing until `answer` is called."""
        self._answers.clear()

    def answer(self) -> None:
        """Answer everything that was asked."""
        self._answers.set()

    async def who(self, ip: str, port: int, capability: str | None = None) -> Who | None:
        """Return who has the address, or None, as it is when the answer comes."""
        self.capabilities.append(capability)
        self.asked.append(ip)
        await self._answers.wait()
        if self.failure is not None:
            raise self.failure
        return self.peers.get(ip)


class SlowTailscale(AskedTailscale):
    """Answers `seconds` of the test's clock after it was asked, with what was so when it was asked."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self._clock = clock
        self._seconds = seconds
        self._due: list[tuple[float, asyncio.Event]] = []

    async def who(self, ip: str, port: int, capability: str | None = None) -> Who | None:
        """Return who had the address."""
        found = await super().who(ip, port, capability)
        answered = asyncio.Event()
        self._due.append((self._clock.now + self._seconds, answered))
        await answered.wait()
        return found

    async def pass_time(self, seconds: float) -> None:
        """Move the clock, and give the answers that are due by then."""
        self._clock.now += seconds
        for due, answered in self._due:
            if due <= self._clock.now:
                answered.set()
        for _ in range(5):  # turns of the event loop in which they are taken
            await asyncio.sleep(0)


class Reports:
    """The diagnostics that were reported."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []

    def __call__(self, event: str, **fields: object) -> None:
        """Keep an event."""
        self.events.append((event, fields))


class Clock:
    """A clock that a test moves."""

    now = 1000.0

    def __call__(self) -> float:
        """Return its time."""
        return self.now
