"""The dashboard's web server: its endpoints, and what each answers. It listens on loopback only."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import orjson
from aiohttp import web

from proxy.dashboard import guard, live
from proxy.dashboard.filters import AskedWronglyError
from proxy.dashboard.page_files import INDEX, page_files
from proxy.dashboard.past import UnreadableError
from proxy.manage.machine.live_client import LiveError
from proxy.terminal.finding import Outcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from proxy.dashboard.past import Past
    from proxy.manage.machine.live_client import Live
    from proxy.manage.machine.machine import Machine
    from proxy.manage.status import Service

T = TypeVar("T")

LIVE_EACH = 0.5
"""Seconds for which the proxy's state is kept, however many pages ask."""

STATUS_EACH = 10.0
"""Seconds for which the findings are kept, because looking for them takes time."""

BODY_AT_MOST = 4096
"""The most bytes of a request's body, which holds an id."""

FIELD_AT_MOST = 2**16
"""Bytes of a line of a request's head. Browsers send the cookies of every port of this machine, which may be many."""

ENDS_WITHIN = 1.0
"""Seconds that open connections have to finish at the end."""


class Kept(Generic[T]):
    """A value that is looked up in a thread on demand, and kept for some seconds."""

    def __init__(self, look: Callable[[], T], each: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._look = look
        self._each = each
        self._clock = clock
        self._lock = asyncio.Lock()
        self._found: tuple[T, float] | None = None

    async def get(self) -> T:
        """Return it. Requests that come meanwhile wait for the same lookup."""
        async with self._lock:
            if self._found is None or self._clock() - self._found[1] >= self._each:
                self._found = await asyncio.to_thread(self._look), self._clock()
            return self._found[0]


class Dashboard:
    """The endpoints. They read the running proxy, this machine and the log."""

    def __init__(self, machine: Machine, flags: Mapping[str, str], proxy: Live, past: Past) -> None:
        self._proxy = proxy
        self._past = past
        self._log = past.log
        self._live = Kept(self._look, LIVE_EACH)
        self._status = Kept(lambda: status_answer(machine, flags), STATUS_EACH)

    def _look(self) -> dict[str, Any]:
        refusals = live.last_refusals(self._log)
        try:
            return live.running(self._proxy.state(), refusals)
        except LiveError as error:
            return live.not_running(error, refusals, time.time())

    async def live(self, _request: web.Request) -> web.Response:
        """GET /api/live."""
        return _json(await self._live.get())

    async def status(self, _request: web.Request) -> web.Response:
        """GET /api/status."""
        return _json(await self._status.get())

    async def index(self, _request: web.Request) -> web.Response:
        """GET /api/index."""
        return _json(self._past.index())

    async def history(self, request: web.Request) -> web.Response:
        """GET /api/history."""
        return _json(await self._past.history(request.query))

    async def lines(self, request: web.Request) -> web.Response:
        """GET /api/lines."""
        return _json(await self._past.lines(request.query))

    async def cancel(self, request: web.Request) -> web.Response:
        """POST /api/cancel."""
        try:
            which = orjson.loads(await request.read())["id"]
        except (ValueError, TypeError, KeyError):
            which = None
        if not isinstance(which, str):
            return _json({"error": 'expected {"id": "…"}, the id of a request', "hint": ""}, 400)
        try:
            return _json({"ended": await asyncio.to_thread(self._proxy.cancel, which)})
        except LiveError as error:
            return _json({"error": str(error), "hint": error.hint}, 502)


def application(dashboard: Dashboard, keeper: guard.Guard) -> web.Application:
    """Return the web application."""

    @web.middleware
    async def guarded(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
        try:
            refused = keeper.refusal(request)
            if refused is not None:
                return _json({"error": refused.error, "hint": refused.hint}, refused.status)
            return await handler(request)
        except AskedWronglyError as error:
            return _json({"error": str(error), "hint": ""}, 400)
        except UnreadableError as error:
            return _json({"error": str(error), "hint": error.hint}, 503)
        except web.HTTPException as error:
            return _json({"error": error.reason, "hint": ""}, error.status)
        except Exception as error:  # the page shows that something failed, the terminal shows what
            print(f"{request.path}: {type(error).__name__}: {error}", file=sys.stderr)
            return _json({"error": f"a fault in the dashboard: {type(error).__name__}", "hint": ""}, 500)

    async def fields(_request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(guard.FIELDS)

    made = web.Application(middlewares=[guarded], client_max_size=BODY_AT_MOST)
    made.on_response_prepare.append(fields)
    made.add_routes([web.get("/", _file(INDEX)), web.get("/page/{name:.+}", _named_file)])
    made.add_routes([web.get("/api/live", dashboard.live), web.get("/api/status", dashboard.status)])
    made.add_routes([web.get("/api/index", dashboard.index), web.get("/api/history", dashboard.history)])
    made.add_routes([web.get("/api/lines", dashboard.lines)])
    made.add_routes([web.post("/api/cancel", dashboard.cancel)])
    return made


def runner(made: web.Application) -> web.AppRunner:
    """Return what serves the application.

    A request that isn't HTTP gets an answer from aiohttp, which logs a traceback for it. The terminal doesn't show it,
    because anyone on this machine could fill it.
    """
    quiet = logging.getLogger(__name__)
    quiet.disabled = True
    return web.AppRunner(
        made,
        access_log=None,
        logger=quiet,
        shutdown_timeout=ENDS_WITHIN,
        max_line_size=FIELD_AT_MOST,
        max_field_size=FIELD_AT_MOST,
    )


def status_answer(machine: Machine, flags: Mapping[str, str]) -> dict[str, Any]:
    """Return the findings of `status`, and the state of the services."""
    from proxy.manage.status import status  # noqa: PLC0415 - a quarter of the time that the command needs to start

    found = status(machine, flags)
    findings = [live.shown(asdict(each)) for each in found.findings]
    return {
        "well": found.well,
        "findings": findings,
        "services": [_service(found.proxy), _service(found.ollama)],
        "tailscale": _tailscale(findings),
    }


_WORST_FIRST = (Outcome.FAIL, Outcome.WARN, Outcome.PASS, Outcome.SKIP)


def _tailscale(findings: list[dict[str, Any]]) -> dict[str, str]:
    """Return the worst finding about Tailscale."""
    about = [each for each in findings if "tailscale" in f"{each['name']} {each['detail']}".lower()]
    if not about:
        return {"outcome": "unknown", "detail": "nothing is known about Tailscale"}
    worst = min(about, key=lambda each: _WORST_FIRST.index(each["outcome"]))
    return {"outcome": worst["outcome"], "detail": worst["detail"]}


def _service(service: Service) -> dict[str, Any]:
    keys = ("name", "installed", "running", "version", "since", "addresses", "pid")
    return {key: live.shown(getattr(service, key)) for key in keys}


async def _named_file(request: web.Request) -> web.Response:
    return await _file(request.match_info["name"])(request)


def _file(name: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(_request: web.Request) -> web.Response:
        found = page_files().get(name)
        if found is None:
            raise web.HTTPNotFound
        return web.Response(body=found.content, content_type=found.content_type, charset="utf-8")

    return answer


def _json(value: object, status_code: int = 200) -> web.Response:
    """Return a value as JSON. `<` is escaped, so even a browser that guesses types finds no tag."""
    text = json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
    return web.Response(status=status_code, body=text.encode(), content_type="application/json")
