"""The listening sockets: fixed addresses, and those that Tailscale assigns to this machine, as they change.

Whatever goes wrong, it binds only named addresses and addresses that Tailscale itself reported, never a wider one.
"""

from __future__ import annotations

import asyncio
import errno
from contextlib import ExitStack
from time import monotonic
from typing import TYPE_CHECKING

from proxy import __version__
from proxy.event_loop.sockets import bound
from proxy.serving.complaints import Complaints
from proxy.settings.addresses import TAILSCALE, in_tailnet, is_loop, joined
from proxy.tailnet.concerns import concerns
from proxy.tailnet.serve_rules import Kind, Ports
from proxy.tailnet.tailscale import UNKNOWN

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from structlog.typing import FilteringBoundLogger

    from proxy.settings.settings import Settings
    from proxy.tailnet.tailscale import Tailnet, Tailscale

# Connections that may wait to be accepted. The kernel takes the smaller of this and its own limit: 4096 on Linux, and
# 128 on macOS (`kern.ipc.somaxconn`), where another client tries again after a second.
BACKLOG = 1024
# Seconds between two looks at Tailscale's addresses.
FOLLOW_EACH = 5.0
# Seconds between two checks of serve rules and other concerns, and between two log lines about the latter.
WATCH_EACH = 60.0
CONCERN_EACH = 24 * 3600.0
# States in which Tailscale reports no addresses because it is only (re)starting: what is bound stays bound.
_RESTARTING = frozenset({UNKNOWN, "NoState", "Starting"})


class CannotBindError(Exception):
    """The proxy can't listen on an address; `str()` says why, `hint` what to do.

    `absent`: this machine doesn't have it.
    """

    def __init__(self, text: str, hint: str, *, absent: bool = False) -> None:
        super().__init__(text)
        self.hint = hint
        self.absent = absent


def bind(address: str, port: int, flag: str = "--port") -> socket.socket:
    """Return a socket that listens on `address` and `port`, which `flag` sets, or raise CannotBindError."""
    try:
        with ExitStack() as opened:
            sock = opened.enter_context(bound(address, port))
            sock.listen(BACKLOG)
            opened.pop_all()
            return sock
    except OSError as error:
        raise _explained(error, address, port, flag) from None


def _explained(error: OSError, address: str, port: int, flag: str) -> CannotBindError:
    if error.errno == errno.EADDRINUSE:
        hint = f"see which: sudo lsof -nP -iTCP:{port} -sTCP:LISTEN; or choose another {flag}"
        return CannotBindError(f"{address} port {port} is in use by another process", hint)
    if error.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
        text, hint = f"{address} is not an address of this machine", "ifconfig lists this machine's addresses"
        return CannotBindError(text, hint, absent=True)
    return CannotBindError(f"can't listen on {address} port {port}: {error.strerror}", "choose another address or port")


async def accept(
    sock: socket.socket, factory: Callable[[], asyncio.BaseProtocol], settings: Settings, log: FilteringBoundLogger
) -> asyncio.Server:
    """Begin to accept connections on a socket, and log it."""
    server = await asyncio.get_running_loop().create_server(factory, sock=sock, backlog=BACKLOG)
    where = f"http://{joined(*sock.getsockname()[:2])}"
    log.info("listening", address=where, upstream=settings.upstream, version=__version__)
    return server


class Binding:
    """The listening sockets of one process. `open` them once. `close` stops accepting, and leaves connections alone."""

    def __init__(
        self,
        factory: Callable[[], asyncio.BaseProtocol],
        settings: Settings,
        tailscale: Tailscale,
        log: FilteringBoundLogger,
        named: Callable[[str], object] = str,
    ) -> None:
        """`named` is called with this machine's name in its tailnet after each lookup."""
        self._factory = factory
        self._settings = settings
        self._tailscale = tailscale
        self._log = log
        self._fixed: list[asyncio.Server] = []
        self._followed: dict[str, asyncio.Server] = {}
        self._following: asyncio.Task[None] | None = None
        self._tailnet: Tailnet | None = None  # as of the last lookup
        self._named = named
        self._watched = -WATCH_EACH  # when serve rules and concerns were last checked
        self._complain = Complaints(log)
        self._absent: set[str] = set()  # addresses of which it was said that this machine doesn't have them

    @property
    def addresses(self) -> tuple[str, ...]:
        """The Tailscale addresses that the proxy listens on now."""
        return tuple(self._followed)

    async def open(self) -> None:
        """Listen on the named addresses, or raise CannotBindError; begin to follow Tailscale's."""
        named = [address for address in self._settings.listen if address != TAILSCALE]
        with ExitStack() as opened:  # all or none
            socks = [opened.enter_context(bind(address, self._settings.port)) for address in named]
            opened.pop_all()
        for sock in socks:
            self._fixed.append(await accept(sock, self._factory, self._settings, self._log))
        # Through `tailscale serve` devices also call this machine by its name. This runs in the background, because
        # Tailscale may take seconds to answer.
        if in_tailnet(self._settings.listen) or self._settings.serve_port:
            self._following = asyncio.get_running_loop().create_task(self._follow())

    async def _follow(self) -> None:
        while True:
            for look in (self._look, self._watch):
                try:
                    await look()
                except Exception:  # whatever it is: the next look may succeed, and what is bound stays
                    self._log.exception("internal")
            await asyncio.sleep(FOLLOW_EACH)

    async def _look(self) -> None:
        """Listen on the addresses that Tailscale reports, and stop listening on others."""
        tailnet = self._tailnet = await self._tailscale.look()
        if tailnet.name is not None:
            self._named(tailnet.name)
        if TAILSCALE not in self._settings.listen:
            return
        if tailnet.problem is not None:
            event = "tailscale_unusable" if tailnet.tun is False else "waiting_for_tailscale"
            self._complain(event, problem=tailnet.problem, hint=tailnet.hint)
        if tailnet.state not in _RESTARTING or tailnet.addresses:
            await self._rebind(tailnet)

    async def _watch(self) -> None:
        """Log, each minute, serve rules that must not exist, and each day other problems with Tailscale."""
        if self._tailnet is None or monotonic() - self._watched < WATCH_EACH:
            return
        self._watched = monotonic()
        serving = await self._tailscale.serving(Ports.of(self._settings))
        for rule in serving.rules if serving else ():
            if rule.kind is Kind.PAST:
                self._complain("tailscale_serve_bypass", problem=rule.problem, hint=rule.hint)
            elif rule.kind is Kind.TAKEN:
                self._complain("tailscale_serve_takes_port", problem=rule.problem, hint=rule.hint, error=True)
        for each in await concerns(self._tailscale, self._tailnet):
            topic = each.topic.name.lower()
            self._complain("tailscale_amiss", problem=each.problem, hint=each.hint, topic=topic, again=CONCERN_EACH)

    async def _rebind(self, tailnet: Tailnet) -> None:
        self._absent &= {*tailnet.addresses}
        for address in [address for address in self._followed if address not in tailnet.addresses]:
            self._followed.pop(address).close()
            self._log.warning("address_gone", address=address, problem=tailnet.problem or "this machine has another")
        for address in tailnet.addresses:
            if (
                address not in self._followed and address not in self._settings.listen
            ):  # also named, so it is bound already
                await self._bind_followed(address)

    async def _bind_followed(self, address: str) -> None:
        settings = self._settings
        if is_loop(settings.upstream, (address,), settings.port):
            hint = "Ollama belongs on loopback: upstream = http://127.0.0.1:11434"
            self._complain(
                "not_listening", problem="upstream is an address on which the proxy itself would listen", hint=hint
            )
            return
        try:
            sock = bind(address, settings.port)
        except CannotBindError as error:  # the interface may be a moment behind, so the next look tries again
            if error.absent and ":" in address and self._followed:
                self._note_absent(address)
            else:
                self._complain("not_listening", problem=str(error), hint=error.hint)
            return
        self._absent.discard(address)
        self._followed[address] = await accept(sock, self._factory, self._settings, self._log)

    def _note_absent(self, address: str) -> None:
        """Log, once, that Tailscale reports an IPv6 address which this machine doesn't have. IPv4 is served."""
        if address not in self._absent:
            self._absent.add(address)
            hint = "nothing is lost if IPv6 is switched off here; ifconfig lists this machine's addresses"
            self._log.warning("address_absent", address=address, hint=hint)

    def close(self) -> None:
        """Stop accepting connections."""
        if self._following is not None:
            self._following.cancel()
        servers: Iterable[asyncio.Server] = (*self._fixed, *self._followed.values())
        for server in servers:
            server.close()
        self._fixed.clear()
        self._followed.clear()
