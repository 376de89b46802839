"""Where a running proxy shows what it is doing: a Unix socket that only its owner can reach."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from typing import TYPE_CHECKING

from proxy import NAME
from proxy.settings.settings import default_paths

if TYPE_CHECKING:
    from collections.abc import Mapping

_NAME = re.compile(r"live-([0-9]{1,5})\.sock")

LONGEST = 100
"""Bytes of a socket's path. macOS allows 104 with the final zero byte (`sun_path` in its sys/un.h), Linux 108."""


def live_folder(environ: Mapping[str, str], platform: str = sys.platform) -> str:
    """Return the folder of the sockets: next to the settings on macOS, next to the logs elsewhere.

    If a socket's path would be too long there, it is in the folder for temporary files.
    """
    paths = default_paths(environ, platform)
    folder = f"{os.path.dirname(paths['config' if platform == 'darwin' else 'access_log'])}/run"
    if len(os.fsencode(_socket(folder, 65535))) <= LONGEST:
        return folder
    return f"{environ.get('TMPDIR') or tempfile.gettempdir()}/{NAME}-{os.getuid()}"


def live_socket(port: int, environ: Mapping[str, str], platform: str = sys.platform) -> str:
    """Return the path of the socket of the proxy on `port`."""
    return _socket(live_folder(environ, platform), port)


def port_of(socket: str) -> int | None:
    """Return the port of the proxy that a socket would belong to, by its path."""
    found = _NAME.fullmatch(os.path.basename(socket))
    return int(found[1]) if found else None


def _socket(folder: str, port: int) -> str:
    return f"{folder}/live-{port}.sock"
