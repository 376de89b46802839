"""Show the owner what goes on, and let the owner end a request: a Unix socket that speaks HTTP.

    GET /live      the state, as one JSON object
    POST /cancel   {"id": "…"}: end the requests with this id; {"ended": N} says how many there were
    POST /judge    {"models": ["…"]}: {"rules": […]} says which of these models each access rule allows

Only this proxy's user can open the socket, because its folder has mode 0700. No browser and no other account gets in.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from proxy import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.exchange.askers import Askers
    from proxy.exchange.waiting.room import Room

LOOK_EACH = 5.0
"""Seconds after which Ollama is asked again what it has in memory, if someone watches."""

LOOK_TIME = 1.0
"""Most seconds that an answer waits for Ollama. After that, it has what Ollama said before."""

ENDS_WITHIN = 1.0
"""Seconds that open connections to the socket get at the end."""


class LiveError(Exception):
    """The socket can't be opened; `str()` says why, `hint` what to do."""

    def __init__(self, text: str, hint: str) -> None:
        super().__init__(text)
        self.hint = hint


class Live:
    """The server on the socket. Make it before the proxy serves, and open it when it does."""

    def __init__(self, room: Room, connections: Callable[[], int], askers: Callable[[], Askers | None]) -> None:
        """`connections` returns how many clients are connected to the proxy, `askers` the access rules that apply."""
        self._room = room
        self._connections = connections
        self._askers = askers
        self._started = time.time()
        self._path = ""
        self._inode = 0
        application = web.Application()
        application.add_routes(
            [web.get("/live", self._live), web.post("/cancel", self._cancel), web.post("/judge", self._judge)]
        )
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=ENDS_WITHIN)

    def __repr__(self) -> str:
        """Show where it is served."""
        return f"<Live {self._path or 'closed'}>"

    async def open(self, path: str) -> None:
        """Serve on `path`. Raises LiveError if that fails, or if another process answers there."""
        try:
            _own_folder(os.path.dirname(path))
            _only_a_socket(path)
            await _remove_stale(path)
            await self._runner.setup()
            await web.UnixSite(self._runner, path).start()
            os.chmod(path, 0o600)
            self._inode = os.lstat(path).st_ino
        except OSError as error:
            raise LiveError(f"{path}: {error.strerror or error}", "correct the permissions of that folder") from None
        self._path = path

    async def close(self) -> None:
        """Stop serving, and remove the socket unless another process has made its own there."""
        await self._runner.cleanup()
        with suppress(OSError):
            if self._path and os.lstat(self._path).st_ino == self._inode:
                os.unlink(self._path)
        self._path = ""

    async def _live(self, _request: web.Request) -> web.Response:
        looked = self._room.snapshot().looked
        if looked is None or looked > LOOK_EACH:
            await asyncio.wait({self._room.loads.look()}, timeout=LOOK_TIME)
        process = {"version": __version__, "pid": os.getpid(), "started": self._started, "now": time.time()}
        return _json({**process, "connections": self._connections(), **self._room.snapshot().as_dict()})

    async def _cancel(self, request: web.Request) -> web.Response:
        try:
            which = orjson.loads(await request.read())["id"]
        except (ValueError, TypeError, KeyError):
            which = None
        if not isinstance(which, str):
            return _json({"error": 'expected {"id": "…"}, the id of a request'}, 400)
        return _json({"ended": self._room.cancel(which)})

    async def _judge(self, request: web.Request) -> web.Response:
        try:
            models = orjson.loads(await request.read())["models"]
        except (ValueError, TypeError, KeyError):
            models = None
        if not isinstance(models, list) or not all(isinstance(each, str) for each in models):
            return _json({"error": 'expected {"models": ["…"]}, the names of models'}, 400)
        askers = self._askers()
        return _json({"rules": [each._asdict() for each in askers.access.judged(models)] if askers else []})


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(value), content_type="application/json")


def _own_folder(folder: str) -> None:
    """Make a folder that only this user can open. Raises LiveError if it is someone else's, or a link."""
    os.makedirs(os.path.dirname(folder), 0o700, exist_ok=True)  # on Linux the logs' folder, which is private too
    os.makedirs(folder, 0o700, exist_ok=True)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise LiveError(f"{folder} is not a folder of this user", f"move it away: mv {shlex.quote(folder)} ~")
    if stat.S_IMODE(found.st_mode) != 0o700:
        os.chmod(folder, 0o700)


def _only_a_socket(path: str) -> None:
    """Raise LiveError if something else than a socket is there: binding would remove it."""
    if os.path.lexists(path) and not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise LiveError(f"{path} is not a socket", f"move it away: mv {shlex.quote(path)} ~")


async def _remove_stale(path: str) -> None:
    """Remove the socket of a process that has ended. Raises LiveError if one answers."""
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        os.unlink(path)
        return
    writer.close()
    raise LiveError(f"another proxy answers at {path}", "give one of the two another --port")
