"""Where a running proxy shows what it is doing: a Unix socket that only its owner can reach."""

from __future__ import annotations

import os
import sys
import tempfile
from typing import TYPE_CHECKING

from proxy import NAME
from proxy.settings.settings import default_paths

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST = 100
"""Bytes of a socket's path. macOS allows 104 with the final zero byte (`sun_path` in its sys/un.h), Linux 108."""


def live_socket(port: int, environ: Mapping[str, str], platform: str = sys.platform) -> str:
    """Return the path of the socket of the proxy on `port`: next to its settings on macOS, next to its logs elsewhere.

    If that path is too long, it is in the folder for temporary files.
    """
    paths = default_paths(environ, platform)
    home = os.path.dirname(paths["config" if platform == "darwin" else "access_log"])
    path = f"{home}/run/live-{port}.sock"
    if len(os.fsencode(path)) <= LONGEST:
        return path
    return f"{environ.get('TMPDIR') or tempfile.gettempdir()}/{NAME}-{os.getuid()}/live-{port}.sock"
