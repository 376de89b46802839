"""Run the proxy: bind, serve, reload at SIGHUP, and drain at a stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

import uvloop

from proxy.exchange.askers import Askers
from proxy.exchange.awake import Awake, is_service
from proxy.exchange.client.deadlines import Limits
from proxy.exchange.client.downstream import C_PARSER
from proxy.exchange.gateway import Gateway
from proxy.exchange.message.limits import active_limits
from proxy.exchange.upstream.asking import Ollama
from proxy.exchange.upstream.target import Target
from proxy.exchange.waiting.pings import Times
from proxy.exchange.waiting.room import Room
from proxy.exchange.waiting.rules import Rules
from proxy.exchange.waiting.stuck import Watch
from proxy.logs.audit import AuditLog
from proxy.logs.diagnostics import DiagnosticsLog, LibraryHandler, configure
from proxy.policy.access import Access
from proxy.policy.gate import Policy, host_fault
from proxy.policy.origins import NULL_WARNING, allows_null
from proxy.reading.keep_alive import environment_keeps_none
from proxy.serving.binding import Binding, CannotBindError
from proxy.serving.clients import Clients
from proxy.serving.descriptors import connections_for, descriptors_for, raise_limit
from proxy.serving.live import Live, LiveError
from proxy.serving.processor import used_by_ollama
from proxy.serving.serve_port import ServePort
from proxy.settings.addresses import is_local, split
from proxy.settings.live_socket import live_socket
from proxy.settings.settings import SettingsError, needing_restart
from proxy.tailnet.tailscale import Tailscale
from proxy.tailnet.whois import Whois

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger

    from proxy.settings.settings import Loaded, Settings

# Seconds between two checks of all deadlines.
TICK = 1.0


class CannotServeError(Exception):
    """The process can't start; `str()` says why and what to do, `status` is its exit code."""

    def __init__(self, text: str, hint: str, status: int = 1) -> None:
        super().__init__(text)
        self.hint = hint
        self.status = status


def serve(loaded: Loaded, reload: Callable[[], Loaded]) -> int:
    """Serve until a signal ends it; return the exit code. `reload` reads all settings again."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(Listener(loaded, reload).run())
    except CannotServeError as error:
        if sys.stderr is not None:  # None if it was closed
            sys.stderr.write(f"error: {error}\nhint: {error.hint}\n")
        return error.status


def limits_of(settings: Settings, descriptors: int) -> Limits:
    """Return the limits in `settings`, as far as so many `descriptors` allow."""
    most = min(settings.max_connections, connections_for(descriptors))
    return Limits(
        max_head=settings.max_head,
        max_body=settings.max_body,
        head_timeout=settings.head_timeout,
        body_timeout=settings.body_timeout,
        stall_timeout=settings.stall_timeout,
        max_connections=most,
        max_connections_per_client=settings.max_connections_per_client,
    )


def policy_of(settings: Settings, own_name: str | None = None) -> Policy:
    """Return the gate's policy from `settings`. `own_name`, this machine's name in its tailnet, is an allowed Host."""
    own = () if own_name is None or host_fault(own_name) else (own_name,)
    return Policy.of(
        allow=settings.allow,
        allowed_hosts=(*settings.allowed_hosts, *own),
        allowed_origins=settings.allowed_origins,
        allowed_peers=settings.allowed_peers,
        max_body=settings.max_body,
    )


def access_of(settings: Settings, policy: Policy) -> Access:
    """Return the access rules from `settings`, for the gate's `policy`."""
    return Access.of(
        settings.access,
        policy,
        capability=settings.capability,
        capability_may_open_rows=settings.capability_may_open_rows,
    )


def target_of(settings: Settings) -> Target:
    """Return where Ollama is and how requests reach it."""
    host, port = split(settings.upstream)
    return Target(host, port, settings.connect_timeout, settings.forward_credentials)


def rules_of(settings: Settings, *, service: bool) -> Rules:
    """Return how requests wait. `service` says whether launchd runs the proxy, and Ollama with `ollama_env`."""
    given = dict(settings.ollama_env) if service else {}
    parallel, alive = given.get("OLLAMA_NUM_PARALLEL", "1"), given.get("OLLAMA_KEEP_ALIVE", "5m")
    automatic = (int(parallel) if parallel.isdecimal() and int(parallel) else 1) if service else None
    return Rules(
        parallel=settings.parallel or automatic,
        swap_after=settings.swap_after,
        max_waiting=settings.max_waiting,
        times=Times(settings.ping_after, settings.ping_every),
        stuck_after=settings.stuck_after,
        native=settings.native_options,
        local_only=settings.local_only,
        limits=active_limits(settings.access),
        shield=not environment_keeps_none(alive),
    )


class Listener:
    """One process: its sockets, signals and logs, and the wheel that turns once a second."""

    def __init__(self, loaded: Loaded, reload: Callable[[], Loaded]) -> None:
        self._loaded = loaded
        self._read_again = reload
        settings = self._started = loaded.settings
        self._diagnostics = DiagnosticsLog(
            settings.diagnostics_log, max_size=settings.log_max_size, kept=settings.log_keep
        )
        self._log: FilteringBoundLogger = configure(self._diagnostics, settings.log_level)
        self._audit = AuditLog(settings.access_log, self._warn, max_size=settings.log_max_size, kept=settings.log_keep)
        self._library = LibraryHandler(self._log)
        self._awake = Awake(self._note, self._warn)
        self._stopping = asyncio.Event()
        self._own_name: str | None = None  # this machine's in its tailnet, once Tailscale reported it
        self._wheel: asyncio.TimerHandle | None = None  # while it turns

    def __repr__(self) -> str:
        return f"<Listener, its wheel {'stands' if self._wheel is None else 'turns'}>"

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT, drain, and return 0."""
        settings = self._loaded.settings
        loop = asyncio.get_running_loop()
        if not C_PARSER:
            raise CannotServeError(
                "aiohttp's C parser is not loaded, and its Python one is too lenient for a proxy",
                "unset AIOHTTP_NO_EXTENSIONS, or reinstall aiohttp: make setup",
            )
        self._open_logs()
        loop.set_exception_handler(self._unexpected)
        for warning in self._loaded.warnings:
            self._log.warning("setting", message=warning)
        self._warn_of_null(settings)
        limits = self._limits(settings)
        tailscale = Tailscale()
        self._whois = Whois(tailscale.who, self._warn)
        target = target_of(settings)
        self._gateway = Gateway(policy_of(settings), target, self._audit.write, self._warn, self._whois)
        self._rule(settings)
        ollama = Ollama(self._gateway.pool, target)
        room = self._gateway.room = Room(ollama, rules_of(settings, service=is_service()))
        watch = room.watch = Watch(self._warn, used_by_ollama if is_local(target.host) else None)
        self._clients = Clients(self._gateway, limits)
        for name, handle in ((signal.SIGTERM, self.stop), (signal.SIGINT, self.stop), (signal.SIGHUP, self.reload)):
            loop.add_signal_handler(name, handle)
        self._awake.enabled = settings.keep_awake
        if is_service():
            self._gateway.awake = self._awake
        self._turn()
        binding = Binding(self._clients, settings, tailscale, self._log, self._named)
        serve_port = ServePort(self._clients.by_serve, settings, tailscale, self._log, self._serve_opened)
        try:
            await binding.open()
        except CannotBindError as error:
            raise CannotServeError(str(error), error.hint) from None
        serve_port.open()
        live = await self._shown(room)
        gc.collect()
        gc.freeze()  # everything so far stays, so the garbage collector need not visit it again and again
        await self._stopping.wait()
        binding.close()
        serve_port.close()
        timeout = self._loaded.settings.drain_timeout
        self._log.info("draining", connections=len(self._clients.connections), at_most=f"{timeout:g}s")
        await self._clients.drain(timeout)
        await live.close()
        await asyncio.gather(room.judge.close(), room.loads.close())
        await watch.close()
        self._gateway.close()
        await self._whois.close()
        await self._awake.close()
        if self._wheel is not None:
            self._wheel.cancel()
            self._wheel = None
        self._log.info("stopped")
        logging.getLogger().removeHandler(self._library)
        self._audit.close()
        self._diagnostics.close()
        return 0

    async def _shown(self, room: Room) -> Live:
        """Show the owner what goes on. Clients are served even if that isn't possible."""
        live = Live(room, lambda: len(self._clients.connections), lambda: self._gateway.askers)
        try:
            await live.open(live_socket(self._started.port, os.environ))
        except LiveError as error:
            self._log.warning("live_unavailable", problem=str(error), hint=error.hint)
        return live

    def _open_logs(self) -> None:
        for log, option in ((self._diagnostics, "diagnostics_log"), (self._audit, "access_log")):
            try:
                log.open()
            except OSError as error:
                raise CannotServeError(
                    f"{option}: {error.strerror}",
                    f"free the disk or correct the permissions, or choose another --{option.replace('_', '-')}",
                    2,
                ) from None
        self._listen_to_libraries()

    def _listen_to_libraries(self) -> None:
        """Bring the log messages of other libraries into the diagnostics, at the current level."""
        logging.getLogger().removeHandler(self._library)
        self._library = LibraryHandler(self._log)
        logging.getLogger().addHandler(self._library)

    def _note(self, event: str, **fields: object) -> None:
        """Report something that another module does and that is no trouble."""
        self._log.info(event, **fields)

    def _warn(self, event: str, **fields: object) -> None:
        """Report trouble in another module.

        The logger is looked up each time, because a reload may change its level.
        """
        self._log.warning(event, **fields)

    def _warn_of_null(self, settings: Settings) -> None:
        if allows_null(settings.allowed_origins):
            self._log.warning("origin_null_allowed", problem=NULL_WARNING, hint="take `null` out of `allowed_origins`")

    def _limits(self, settings: Settings) -> Limits:
        """Return the clients' limits; with a warning, fewer connections than `settings` say if open files are short."""
        reachable = raise_limit(descriptors_for(settings.max_connections))
        limits = limits_of(settings, reachable)
        if limits.max_connections < settings.max_connections:
            self._log.warning(
                "descriptors_short",
                limit=reachable,
                max_connections=limits.max_connections,
                hint="raise it with `ulimit -n`, or NumberOfFiles under launchd",
            )
        return limits

    def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        self._wheel = loop.call_later(TICK, self._turn)
        # Deadlines are checked two turns of the loop later: the first runs before the sockets are read again, the
        # second after. A process that was stopped, or a machine that slept, finds timers due and bytes waiting at the
        # same time. A client that sent in time must not be cut because the proxy was away.
        loop.call_soon(loop.call_soon, self._judge)
        now = monotonic()
        for turn in (partial(self._gateway.tick, now), self._awake.tick, self._audit.tick, self._diagnostics.tick):
            try:
                turn()
            except Exception:  # whatever it is: the others still get their turn
                self._log.exception("internal")

    def _judge(self) -> None:
        self._clients.tick(monotonic())

    def _named(self, own_name: str) -> None:
        """Let clients call this machine by its name in the tailnet, whatever its domain."""
        if own_name != self._own_name:
            self._own_name = own_name
            self._rule(self._loaded.settings)

    def _rule(self, settings: Settings) -> None:
        """Apply what is allowed, and for which asker. Tailscale is asked about everyone again."""
        policy = self._gateway.policy = policy_of(settings, self._own_name)
        access = access_of(settings, policy)
        before, self._gateway.askers = self._gateway.askers, Askers(access, self._warn) if access else None
        if before is not None and not access:
            self._warn("access_rules_gone", hint="now every device may use every model; see `access` in the settings")
        self._whois.apply(rules=bool(access), capability=settings.capability)

    def _serve_opened(self, now: bool) -> None:
        self._gateway.serve_open = now

    def stop(self) -> None:
        """Drain and end, as SIGTERM asks; a second call cuts what still streams."""
        if self._stopping.is_set():
            self._clients.hurry()
        self._stopping.set()

    def reload(self) -> None:
        """Apply new settings completely, or keep the old ones and say why; follow logs that were moved."""
        self._audit.reopen()
        self._diagnostics.reopen()
        try:
            loaded = self._read_again()
        except SettingsError as error:
            for problem in error.problems:
                self._log.error("reload_refused", problem=str(problem))
            return
        new = loaded.settings
        pending = needing_restart(self._started, new)
        if pending:
            self._log.warning("reload_needs_restart", options=", ".join(pending))
        self._loaded = loaded
        self._log = configure(self._diagnostics, new.log_level)
        self._listen_to_libraries()
        target = self._gateway.target
        self._rule(new)
        self._gateway.target = Target(target.host, target.port, new.connect_timeout, new.forward_credentials)
        self._clients.limits = self._limits(new)
        if self._gateway.room is not None:
            self._gateway.room.apply(rules_of(new, service=is_service()))
            self._gateway.room.loads.ollama = Ollama(self._gateway.pool, self._gateway.target)
        self._warn_of_null(new)
        self._awake.enabled = new.keep_awake
        self._log.info("reloaded", config=new.config)

    def _unexpected(self, _loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """Log an exception that no module caught.

        The message may quote a client's bytes, so only type and place are logged.
        """
        self._log.error("internal", exc_info=context.get("exception"))
