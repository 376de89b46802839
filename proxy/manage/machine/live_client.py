"""Ask a running proxy over its Unix socket what goes on, or to end a request."""

from __future__ import annotations

import http.client
import json
import os
import socket
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

from proxy import PROGRAM
from proxy.settings.live_socket import live_folder, live_socket, port_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ANSWER_TIME = 5.0
"""Seconds for one answer: the proxy waits for Ollama's list of models for one of them at most."""

_LIMIT = 2**24  # bytes of an answer: a request takes about 400


class LiveError(Exception):
    """The proxy doesn't say what goes on; `str()` says why, `hint` is a command that helps."""

    def __init__(self, text: str, hint: str = f"{PROGRAM} status") -> None:
        super().__init__(text)
        self.hint = hint


class NotThereError(LiveError):
    """No proxy of this user serves on that port."""


class Live:
    """The running proxy on a port. Every method may raise LiveError."""

    def __init__(self, port: int, environ: Mapping[str, str]) -> None:
        """`environ` is what the proxy was started with."""
        self._port = port
        self._path = live_socket(port, environ)

    def state(self) -> dict[str, Any]:
        """Return what goes on: see `exchange.waiting.snapshot.Snapshot`, and `serving.live` for what it adds."""
        return self._ask("GET", "/live")

    def cancel(self, which: str) -> int:
        """End the requests with an id; return how many there were."""
        return int(self._ask("POST", "/cancel", {"id": which})["ended"])

    def judge(self, models: Sequence[str]) -> list[dict[str, Any]]:
        """Return what each access rule that applies says about these models: see `policy.access.Judged`."""
        return list(self._ask("POST", "/judge", {"models": list(models)})["rules"])

    @property
    def _others(self) -> tuple[str, str]:
        return f"{self._path} belongs to another user", "run this command as the user who runs the proxy"

    def _ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        try:
            if os.stat(os.path.dirname(self._path)).st_uid != os.getuid():
                raise LiveError(*self._others)
            with closing(_Connection(self._path)) as connection:
                connection.request(method, path, None if body is None else json.dumps(body))
                response = connection.getresponse()
                found = json.loads(response.read(_LIMIT))
        except (FileNotFoundError, ConnectionRefusedError):
            raise NotThereError(f"no proxy of this user serves on port {self._port}") from None
        except PermissionError:
            raise LiveError(*self._others) from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise LiveError(f"{self._path} doesn't answer: {error or type(error).__name__}") from None
        if response.status != http.HTTPStatus.OK or not isinstance(found, dict):
            raise LiveError(f"{self._path} answers with status {response.status}")
        return found


def state_of(port: int, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return what goes on in the proxy on a port; nothing if there is none, or it doesn't say."""
    try:
        return Live(port, environ).state()
    except LiveError:
        return {}


def state_of_process(pid: int, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return what goes on in the proxy that is this process, whatever its port; nothing if it doesn't say.

    The settings may name another port by now: that is a reason to restart it.
    """
    sockets: list[str] = []
    with suppress(OSError):
        sockets = os.listdir(live_folder(environ))
    states = (state_of(port, environ) for name in sockets if (port := port_of(name)) is not None)
    return next((state for state in states if state.get("pid") == pid), {})


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=ANSWER_TIME)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket instead of a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
