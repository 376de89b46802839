"""The programs of a tailnet: Tailscale's tailscaled, with its CLI in it, and a control server on its own `testcontrol`.

Built once, into `.build/`, from the Go module proxy alone; `control/go.mod` and `go.sum` pin every module.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
MODULE = HERE / "control"
BUILT = HERE / ".build"
"""Holds `tailscaled`, `tailscale` (the same file) and `control`."""

GO = (1, 26, 6)
"""The oldest Go that builds this Tailscale."""

GO_FOLDER = "/usr/local/go/bin"
"""Where Go's own installer puts it, which sudo's PATH leaves out."""

TUN = "/dev/net/tun"

FEATURES = (
    *("acme", "advertiseroutes", "cli", "debug", "dns", "health", "ipnbus", "iptables", "netstack", "osrouter"),
    *("serve", "tailnetlock", "unixsocketidentity", "useroutes"),
)
"""What tailscaled can do. `testcontrol` needs tailnetlock; all features would take twenty minutes to build."""

_PROGRAMS = {"tailscaled": "tailscale.com/cmd/tailscaled", "control": "."}


class MissingError(Exception):
    """Something that a tailnet needs is missing; `str()` says what."""


def need_machine() -> None:
    """Raise MissingError where network namespaces with a TUN device can't be made."""
    if sys.platform != "linux":
        raise MissingError("it needs Linux")
    if os.geteuid() != 0:
        raise MissingError("it needs root, for network namespaces: sudo make test-tailnet")
    if not os.access(TUN, os.R_OK | os.W_OK):
        raise MissingError(f"it needs {TUN}: modprobe tun, or `docker run --device /dev/net/tun`")
    for program in ("unshare", "nsenter", "setpriv", "ip"):
        if shutil.which(program) is None:
            raise MissingError(f"it needs `{program}`: apt install util-linux iproute2")
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "mount", "-t", "tmpfs", "tmpfs", "/run"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if tried.returncode:
        raise MissingError(f"it needs namespaces of its own, with mounts: {tried.stderr.strip()}")


def need_programs() -> None:
    """Build what is not built yet, saying so; MissingError where that can't be done."""
    stamp = BUILT / "built-from"
    wanted = _fingerprint()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    go = _go()
    print(f"building Tailscale once, into {BUILT}: 1 to 20 minutes, 1 GB of Go modules and cache", flush=True)
    BUILT.mkdir(exist_ok=True)
    stamp.unlink(missing_ok=True)
    try:
        _run(go, "mod", "download", "tailscale.com")
        tags = _run(go, "run", "tailscale.com/cmd/featuretags", "--min", f"--add={','.join(FEATURES)}").strip()
        _run(go, "list", "-deps", f"-tags={tags}", *_PROGRAMS.values())  # fetches every module that the build needs
    except RuntimeError as error:
        raise MissingError(f"it needs Tailscale's source, from the Go module proxy: {error}") from None
    for program, package in _PROGRAMS.items():
        _run(go, "build", "-trimpath", "-ldflags=-s -w", f"-tags={tags}", "-o", str(BUILT / program), package)
    (BUILT / "tailscale").unlink(missing_ok=True)
    (BUILT / "tailscale").symlink_to("tailscaled")  # which is the CLI under this name
    stamp.write_text(wanted)


def _fingerprint() -> str:
    """Return what changes with anything that is built from."""
    parts = [*(path.read_bytes() for path in sorted(MODULE.iterdir())), " ".join(FEATURES).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _go() -> str:
    go = shutil.which("go", path=f"{os.environ.get('PATH', '')}:{GO_FOLDER}")
    needed = ".".join(map(str, GO))
    if go is None:
        raise MissingError(f"it needs Go {needed} or newer: https://go.dev/dl/")
    version = subprocess.run(
        [go, "env", "GOVERSION"], capture_output=True, text=True, check=True, cwd="/"
    ).stdout.strip()
    numbers = re.search(r"go([0-9.]+)", version)  # go1.26.8, go1.27rc1, "devel go1.28-…"
    if numbers is None or tuple(map(int, numbers[1].split("."))) < GO:
        raise MissingError(f"it needs Go {needed} or newer, and {go} is {version}: https://go.dev/dl/")
    return go


def _run(go: str, *words: str) -> str:
    """Return what a command of Go prints, which runs at low priority; RuntimeError where it fails."""
    done = subprocess.run(
        ["nice", go, *words],
        cwd=MODULE,
        env=os.environ | {"GOTOOLCHAIN": "local", "GOFLAGS": "-buildvcs=false -mod=readonly", "CGO_ENABLED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["it says nothing"]
        raise RuntimeError(f"`go {words[0]}`: {last[0]}")
    return done.stdout
