"""The machine and the versions of a measurement: the processor without the host's name, versions, the date."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import date

    from bench.stage import Stage

_ROOT = Path(__file__).parent.parent
_LIBRARIES = ("aiohttp", "uvloop", "httptools", "orjson", "msgspec")


def about(stage: Stage, today: date, load_average: float) -> dict[str, Any]:
    """Return what a reader has to know about a run."""
    return {
        "date": today.isoformat(),
        "commit": _commit(),
        "scale": stage.scale.name,
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {re.match(r'[0-9.]*[0-9]', platform.release())[0]} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}, {_build()}",
        "load_average": load_average,
        "pinned": stage.places.pinned,
        "load": stage.generator.name,
        "descriptors": stage.descriptors,
        "libraries": {name: version(name) for name in _LIBRARIES},
        "versions": {each.name: each.reported_version() for each in stage.contenders if each.version},
    }


def optimised() -> bool:
    """Return whether this Python was built with profile-guided optimisation, which saves a tenth or more.

    Those of uv, Homebrew, python.org and Fedora were configured with it. Debian and Ubuntu configure the interpreter
    separately, which `sysconfig` doesn't show. Their builds are recognised by the folder of wheels from which pip is
    installed.
    """
    asked = sysconfig.get_config_var("CONFIG_ARGS") or ""
    return "--enable-optimizations" in asked or "--with-wheel-pkg-dir=/usr/share/python-wheels" in asked


def _build() -> str:
    return f"built {'with' if optimised() else 'without'} profile-guided optimisation"


def _cpu() -> str:
    if sys.platform == "darwin":
        command = ("sysctl", "-n", "machdep.cpu.brand_string")
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _commit() -> str:
    """Return the commit that is measured, with a + if there are uncommitted changes."""
    head, changed = _git("rev-parse", "--short", "HEAD"), _git("status", "--porcelain", "proxy")
    return (head or "unknown") + ("+" if changed else "")


def _git(*words: str) -> str:
    try:
        done = subprocess.run(("git", *words), cwd=_ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()
