"""The port on 127.0.0.1 for `tailscale serve` only, which brings https. It is open while serve can be trusted.

tailscaled says which device sent a request, in a field that it sets itself. Anyone could write that field if a rule
passes bytes on unchanged, if a rule lets strangers in, or if every connection of the tailnet arrives on loopback. In
these cases, and while the rules are unknown, nothing is served there. See `by_serve` for what each request must carry.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proxy.serving.binding import FOLLOW_EACH, CannotBindError, accept, bind
from proxy.serving.complaints import Complaints
from proxy.tailnet.serve_rules import Ports
from proxy.tailnet.tailscale import TOOL_AGE_DOWN

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger

    from proxy.settings.settings import Settings
    from proxy.tailnet.serve_rules import Serving
    from proxy.tailnet.tailscale import Tailnet, Tailscale

ADDRESS = "127.0.0.1"


class ServePort:
    """The listening socket for `tailscale serve`. `opened` is called with whether requests there are served now."""

    def __init__(
        self,
        factory: Callable[[], asyncio.BaseProtocol],
        settings: Settings,
        tailscale: Tailscale,
        log: FilteringBoundLogger,
        opened: Callable[[bool], object],
    ) -> None:
        self._factory = factory
        self._settings = settings
        self._tailscale = tailscale
        self._log = log
        self._opened = opened
        self._complain = Complaints(log)
        self._server: asyncio.Server | None = None
        self._following: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        """Show whether it listens."""
        return f"<ServePort {self._settings.serve_port} {'closed' if self._server is None else 'open'}>"

    def open(self) -> None:
        """Begin to follow Tailscale's rules, if the settings name a port."""
        if self._settings.serve_port:
            self._following = asyncio.get_running_loop().create_task(self._follow())

    async def _follow(self) -> None:
        while True:
            try:
                await self._look()
            except Exception:  # whatever it is: what can't be known is not trusted
                self._log.exception("internal")
                self._shut()
            await asyncio.sleep(FOLLOW_EACH)

    async def _look(self) -> None:
        """Listen if every rule for this port identifies the device; otherwise stop."""
        tailnet = await self._tailscale.look()
        serving = await self._tailscale.serving(Ports.of(self._settings), TOOL_AGE_DOWN)
        found = why_closed(tailnet, serving)
        if found is not None:
            self._shut()
            self._complain("serve_port_closed", problem=found[0], hint=self._tailscale.hint(found[1]), error=True)
        elif self._server is None:
            await self._listen()

    async def _listen(self) -> None:
        try:
            sock = bind(ADDRESS, self._settings.serve_port, "--serve-port")
        except CannotBindError as error:
            self._complain("not_listening", problem=str(error), hint=error.hint)
            return
        self._server = await accept(sock, self._factory, self._settings, self._log)
        self._opened(True)

    def _shut(self) -> None:
        self._opened(False)
        self._close()

    def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def close(self) -> None:
        """Stop accepting connections. Running requests may finish."""
        if self._following is not None:
            self._following.cancel()
        self._close()


def why_closed(tailnet: Tailnet, serving: Serving | None) -> tuple[str, str] | None:
    """Return why nothing may be served through `tailscale serve`, and what to do about it; None if all is well.

    Pure.
    """
    closed = "nothing is served on serve_port"
    if tailnet.tun is False:
        return f"{closed}: {tailnet.problem}", tailnet.hint
    if serving is None:
        return f"{closed}: the rules of `tailscale serve` can't be read", tailnet.hint or "tailscale serve status"
    if (rule := serving.blind) is not None:
        return f"{closed}: {rule.problem}", rule.hint
    return None
