"""Where an install takes the package from: a checkout, or the wheel that the running copy was installed from.

Both give a wheel and the lock file of the packages that it runs with. The same code has the same version from either.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.util
import io
import sys
import zipfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, ClassVar

import proxy
from proxy import NAME, PROGRAM
from proxy.manage.machine.machine import spelled
from proxy.manage.machine.steps import StepError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from proxy.manage.machine.machine import Machine

BUILD_TIMEOUT = 900.0
"""Seconds for one step of pip: about 30 MB from the network."""

PIP = ("-I", "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet")

_STEM = f"{NAME.replace('-', '_')}-{proxy.__version__}"
WHEEL = f"{_STEM}-py3-none-any.whl"
"""The name of the file that a source makes."""

_LOCK = "requirements.lock"
_KEPT_METADATA = ("METADATA", "WHEEL", "entry_points.txt", "licenses")


@dataclass(frozen=True, slots=True)
class Source(ABC):
    """What an install builds the service's environment from."""

    folder: Path  # what it is in
    version: str  # the release, and the first digits of a digest of all that goes into the environment
    hint: ClassVar[str]  # a command that helps when a build failed

    @property
    def lock(self) -> Path:
        """The lock file of the packages that it runs with."""
        return self.folder / _LOCK

    def fault(self) -> str:
        """Return why no wheel can be made of it; empty when one can."""
        return ""

    @abstractmethod
    def shown(self, folder: str) -> Iterator[str]:
        """Yield what `make_wheel` does, for a dry run."""

    @abstractmethod
    def make_wheel(self, machine: Machine, folder: Path) -> None:
        """Leave the wheel, named `WHEEL`, in `folder`. Raises StepError."""

    def __str__(self) -> str:
        """Return where it is."""
        return str(self.folder)


class Checkout(Source):
    """The sources in a clone."""

    hint = "make setup"

    @classmethod
    def here(cls) -> Checkout | None:
        """Return the checkout that this runs from; None when an installed copy runs."""
        folder = Path(proxy.__file__).resolve().parent.parent
        if not (folder / _LOCK).is_file() or not (folder / "pyproject.toml").is_file():
            return None
        # The places that files have in a wheel: `[tool.hatch.build.targets.wheel]` in pyproject.toml.
        paths = [(path.relative_to(folder), path) for path in folder.glob("proxy/**/*") if path.is_file()]
        paths += [("proxy" / path.relative_to(folder), path) for path in (folder / _LOCK, *folder.glob("launchd/*"))]
        hashes = {place.as_posix(): _hash(path.read_bytes()) for place, path in paths if path.suffix != ".pyc"}
        return cls(folder, _version(hashes))

    def fault(self) -> str:
        """Return what is missing to make a wheel without downloads."""
        if all(importlib.util.find_spec(name) is not None for name in ("hatchling", "pip")):
            return ""
        return "the Python that runs this lacks pip or hatchling, which make the package"

    def shown(self, folder: str) -> Iterator[str]:
        """Yield the command."""
        yield f"$ {spelled(self._command(folder))}"

    def make_wheel(self, machine: Machine, folder: Path) -> None:
        """Build it."""
        run(machine, self._command(str(folder)), self.hint)

    def _command(self, folder: str) -> list[str]:
        options = ("--no-deps", "--no-build-isolation", "--wheel-dir", folder)
        return [sys.executable, *PIP, "wheel", *options, str(self.folder)]


@dataclass(frozen=True, slots=True)
class Package(Source):
    """The copy that runs, as uv, pipx or pip unpacked it from a wheel. Its RECORD has the hash of each file."""

    hashes: dict[str, str]  # by the path in the wheel
    hint = f"{PROGRAM} install"

    @classmethod
    def here(cls) -> Package | None:
        """Return the package that this runs from; None if nothing recorded its files."""
        try:
            found = distribution(NAME)
        except PackageNotFoundError:
            return None
        record = found.read_text("RECORD") or ""
        rows = [row for row in csv.reader(record.splitlines()) if len(row) > 1]
        hashes = {path: digest for path, digest, *_ in rows if digest and _is_wheels(path)}
        own = Path(proxy.__file__).resolve()
        if f"proxy/{_LOCK}" not in hashes or Path(str(found.locate_file("proxy/__init__.py"))).resolve() != own:
            return None
        return cls(own.parent, _version(hashes), hashes)

    def shown(self, folder: str) -> Iterator[str]:
        """Yield the file, and its content."""
        yield f"> {folder}/{WHEEL} ({len(self.hashes)} files of {self}, checked by their hashes)"

    def make_wheel(self, machine: Machine, folder: Path) -> None:  # noqa: ARG002 - it runs no command
        """Pack the files as the wheel that they came in. StepError for one that has changed since."""
        rows = io.StringIO()
        with zipfile.ZipFile(folder / WHEEL, "w", zipfile.ZIP_DEFLATED) as wheel:
            for path, expected in self.hashes.items():
                content = self._content(path, expected)
                wheel.writestr(path, content)
                csv.writer(rows).writerow((path, expected, len(content)))
            record = f"{_STEM}.dist-info/RECORD"
            csv.writer(rows).writerow((record, "", ""))
            wheel.writestr(record, rows.getvalue())

    def _content(self, path: str, expected: str) -> bytes:
        file = self.folder.parent / path
        try:
            content = file.read_bytes()
        except OSError as error:
            raise StepError(f"{file} was installed and can't be read: {error.strerror}", _REINSTALL) from error
        if _hash(content) != expected:
            raise StepError(f"{file} was changed after it was installed", _REINSTALL)
        return content


_REINSTALL = "install the wheel again, with `uv tool install --force`, `pipx install --force` or `pip install --force`"


def here() -> Source | None:
    """Return what this runs from, if the service can be built from it."""
    return Checkout.here() or Package.here()


def run(machine: Machine, command: list[str], hint: str) -> None:
    """Run a command of a build; raise StepError with the command and its output if it fails."""
    done = machine.run(*command, timeout=BUILD_TIMEOUT)
    if done.code:
        said = (done.err.strip() or done.out.strip()).splitlines()[-3:]
        reason = " / ".join(line.strip() for line in said) or f"exit code {done.code}"
        raise StepError(f"`{spelled(command)}` failed: {reason}", hint)


def _hash(content: bytes) -> str:
    """Return a hash as RECORD files have it (packaging.python.org, recording installed projects)."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest())
    return f"sha256={digest.decode().rstrip('=')}"


def _version(hashes: dict[str, str]) -> str:
    """Return the name of a version. What metadata says, such as the text of the README, has no part in it."""
    lines: Iterable[str] = sorted(f"{path} {digest}\n" for path, digest in hashes.items() if path.startswith("proxy/"))
    return f"{proxy.__version__}-{hashlib.sha256(''.join(lines).encode()).hexdigest()[:8]}"


def _is_wheels(path: str) -> bool:
    """Return whether a recorded path came in the wheel, and was not left by the tool that installed it."""
    first, *more = PurePosixPath(path).parts or ("",)
    if ".." in more:  # it would be read outside of the package
        return False
    return first == "proxy" or (first.endswith(".dist-info") and bool(more) and more[0] in _KEPT_METADATA)
