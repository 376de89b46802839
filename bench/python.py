"""Choose the Python for the benchmark: the newest one, as an install does.

python -m bench.python [WHICH]    prints its path

WHICH is a version, the path of a Python, or `.venv` for the tests' Python. The default is the first of 3.14 and 3.13
that the system or uv has, otherwise `.venv`. The proxy's packages are installed in .venv-bench-VERSION once, and again
if that folder belongs to another Python of the same version.
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
    """Return the version of a Python, such as 3.13; None if it doesn't run, because pyenv leaves commands that fail."""
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
    """Return the Python of an environment made from `python`, with the proxy's packages. Makes it if it is missing."""
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
    """Return the Python to measure with. Raises SystemExit with the reason if the named one is missing."""
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
