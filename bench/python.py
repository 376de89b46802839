"""Which Python the benchmark runs on: an install uses the newest that there is, so that is the one to measure.

    python -m bench.python [WHICH]    prints its path

WHICH is a version, the path of a Python, or `.venv` for the one of the tests; by default the first of 3.14 and 3.13
that the system or uv has, and `.venv` where there is none. What the proxy needs is put into .venv-bench-VERSION once,
and again when that folder belongs to another Python of this version.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).parent.parent
VERSIONS = ("3.14", "3.13")
_LOCK = ROOT / "requirements.lock"
_SAY = "import sys; print('%d.%d' % sys.version_info[:2])"


def version(python: str) -> str | None:
    """Return the version of a Python, such as 3.13; None if it doesn't run: pyenv leaves commands that fail."""
    try:
        done = subprocess.run((python, "-c", _SAY), capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def candidates(versions: Sequence[str] = VERSIONS) -> Iterator[str]:
    """Yield every Python of these versions that the system or uv has, the newest version first."""
    for wanted in versions:
        found = [shutil.which(f"python{wanted}")]
        if shutil.which("uv"):
            asked = ("uv", "python", "find", "--no-python-downloads", wanted)
            found.append(subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip())
        yield from (python for python in found if python and version(python) == wanted)


def prepared(python: str, folder: Path = ROOT) -> str:
    """Return the Python of an environment made of `python`, with what the proxy needs, which is made if need be."""
    place = folder / f".venv-bench-{version(python)}"
    made, ready = place / "bin" / "python", place / ".ready"
    of = shutil.which(python) or python
    if not ready.exists() or ready.read_text() != of or ready.stat().st_mtime < _LOCK.stat().st_mtime:
        sys.stderr.write(f"making {place.name} of {python}\n")
        subprocess.run((python, "-m", "venv", "--clear", place), check=True)
        install = (made, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes")
        subprocess.run((*install, "--no-deps", "-r", _LOCK), check=True, stdout=sys.stderr)
        ready.write_text(of)
    return str(made)


def chosen(wanted: str) -> str:
    """Return the Python to measure on. SystemExit, with why, when the one that is named isn't there."""
    if wanted in (".venv", sys.executable):
        return sys.executable
    if not wanted:
        found = next(candidates(), None)
        return prepared(found) if found else sys.executable
    named = wanted if "/" in wanted else next(candidates([wanted]), None)
    if named is None or version(named) is None:
        raise SystemExit(f"error: there is no Python {wanted}\nhint: uv python install {wanted}, or give a path")
    return prepared(named)


if __name__ == "__main__":
    print(chosen(sys.argv[1] if len(sys.argv) > 1 else ""))
