"""Open the page in the owner's browser, without showing the token to other users of this machine.

The arguments of a process are public. So the browser gets a private file that leads to the page.
"""

from __future__ import annotations

import html
import os
import shutil
import tempfile
import webbrowser
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SSH_PORT = "22"


class Opening:
    """A file that leads a browser to a URL, until `remove`."""

    def __init__(self, url: str) -> None:
        self._folder = tempfile.mkdtemp(prefix="remote-ollama-proxy-")  # which has mode 0700
        self.path = Path(self._folder) / "dashboard.html"
        leads = f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0;url={html.escape(url)}">\n'
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(leads)

    def open(self, failed: Callable[[], object], opener: Callable[[str], bool] = webbrowser.open) -> None:
        """Have the browser open it, in a thread. `failed` is called there if no browser can be started.

        Nobody waits for that thread, because it may last as long as the browser: so it does with BROWSER="firefox %s".
        """
        Thread(target=self._open, args=(failed, opener), daemon=True).start()

    def _open(self, failed: Callable[[], object], opener: Callable[[str], bool]) -> None:
        with suppress(OSError, webbrowser.Error):
            if opener(self.path.as_uri()):
                return
        failed()

    def remove(self) -> None:
        """Remove the file, if it is still there."""
        shutil.rmtree(self._folder, ignore_errors=True)


def why_not(environ: Mapping[str, str], platform: str) -> str:
    """Return why no browser is opened from here, or nothing."""
    if environ.get("SSH_CONNECTION"):
        return "this is an SSH connection"
    if platform != "darwin" and not (environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY")):
        return "there is no screen"
    return ""


def tunnel(environ: Mapping[str, str], port: int) -> str:
    """Return the command for the owner's own machine that makes the page reachable there; nothing without SSH.

    The port is the same on both sides, because the page is served under one exact address.
    """
    parts = environ.get("SSH_CONNECTION", "").split()
    if len(parts) != 4:
        return ""
    other_port = "" if parts[3] == SSH_PORT else f" -p {parts[3]}"
    user = f"{environ['USER']}@" if environ.get("USER") else ""
    return f"ssh -N -L {port}:127.0.0.1:{port}{other_port} {user}{parts[2]}"
