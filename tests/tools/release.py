"""`make release VERSION=x.y.z`: the files of a release, made from a clean tree whose tests pass. It publishes nothing.

It sets the version, closes the changelog's section, runs the suite on that, and builds wheel, sdist, bill of materials
and checksums into `dist/VERSION/`. If anything fails, the tree is what it was. What it changed is left to be committed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROOT = Path(__file__).parent.parent.parent
SUITE = ("make", "test")
MODULE, CHANGELOG = "proxy/__init__.py", "CHANGELOG.md"
PAGES = ("README.md", "docs/setup.md")
"""Pages that name the wheel or the tag of the present release."""

_VERSION = re.compile(r'^__version__ = "(.+)"$', re.MULTILINE)
_UNRELEASED = re.compile(r"^## Unreleased\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)


class RefusedError(Exception):
    """There is no release; `hint` is a command to run."""

    def __init__(self, text: str, hint: str) -> None:
        super().__init__(text)
        self.hint = hint


def numbers(version: str) -> tuple[int, ...]:
    """Return the three numbers of a release."""
    if not re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}", version):
        raise RefusedError(f"{version!r} is no release: it takes three numbers", "make release VERSION=1.2.3")
    return tuple(map(int, version.split(".")))


def check(root: Path, version: str) -> None:
    """Raise RefusedError where `version` can't be released from the tree as it is."""
    wanted = numbers(version)
    if changed := git(root, "status", "--porcelain"):
        raise RefusedError(f"the tree has changes that no commit has:\n{changed}", "git status")
    if wanted < numbers(now := current((root / MODULE).read_text())):
        raise RefusedError(f"{version} is older than {now}, which the tree has", "git tag --list 'v*'")
    if git(root, "tag", "--list", f"v{version}"):
        raise RefusedError(f"the tag v{version} exists: this is released already", f"git show v{version}")
    if not notes((root / CHANGELOG).read_text()):
        raise RefusedError(f"{CHANGELOG} has nothing under Unreleased", f"edit {CHANGELOG}")


def current(module: str) -> str:
    """Return the version that the text of the module has."""
    (found,) = _VERSION.findall(module)
    return str(found)


def notes(changelog: str) -> str:
    """Return what stands under Unreleased."""
    found = _UNRELEASED.search(changelog)
    return found[1].strip() if found else ""


def released(text: str, before: str, version: str, day: str) -> str:
    """Return the text of one of the files as the release has it. The text must have a place for the version."""
    text = _VERSION.sub(f'__version__ = "{version}"', text)
    text = text.replace(f"remote_ollama_proxy-{before}-", f"remote_ollama_proxy-{version}-")
    text = re.sub(rf"@v{re.escape(before)}(?![\w.])", f"@v{version}", text)
    return re.sub(r"^## Unreleased\n", f"## Unreleased\n\n## {version}, {day}\n", text, flags=re.MULTILINE)


def sums(folder: Path) -> str:
    """Return a line for each file in the folder, as `shasum -a 256 -c` reads it."""
    return "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(folder.iterdir())
    )


def git(root: Path, *words: str) -> str:
    """Return what a git command that changes nothing prints."""
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def run(root: Path, what: str, command: Sequence[str], **environ: str) -> None:
    """Run a command, whose output is for the reader. RefusedError when it fails."""
    print(f"\n{what}: {' '.join(command)}", flush=True)
    if subprocess.run(command, cwd=root, check=False, env={**os.environ, **environ}).returncode:
        raise RefusedError(f"{what} failed; the tree is what it was", " ".join(command))


def build(root: Path, version: str, folder: Path) -> None:
    """Build wheel, sdist and bill of materials into the folder."""
    made = git(root, "log", "-1", "--format=%ct")  # the same commit gives the same bytes
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    run(root, "wheel and sdist", command, SOURCE_DATE_EPOCH=made)
    bill = folder / f"remote_ollama_proxy-{version}.cdx.json"
    run(root, "bill of materials", [sys.executable, "-m", "tests.tools.supply", "sbom", str(bill)])


def section(changelog: str, version: str) -> str:
    """Return what the changelog has on a release."""
    return re.split(rf"^## {re.escape(version)}, .+\n", changelog, flags=re.MULTILINE)[1].partition("\n## ")[0].strip()


def release(
    root: Path, version: str, suite: Sequence[str] = SUITE, build: Callable[[Path, str, Path], None] = build
) -> Path:
    """Make a release; return the folder with its files. RefusedError leaves the tree as it was."""
    check(root, version)
    kept = {root / name: (root / name).read_text() for name in (MODULE, CHANGELOG, *PAGES)}
    before, day = current(kept[root / MODULE]), datetime.now(UTC).date().isoformat()
    folder = root / "dist" / version
    if folder.exists():
        raise RefusedError(f"{folder} exists", f"rm -r {folder}")
    try:
        for path, text in kept.items():
            path.write_text(released(text, before, version, day))
        run(root, "the suite", suite)
        folder.mkdir(parents=True)
        build(root, version, folder)
        (folder / "SHA256SUMS").write_text(sums(folder))
        (folder / "NOTES.md").write_text(section((root / CHANGELOG).read_text(), version) + "\n")
        return folder
    except BaseException:
        for path, text in kept.items():
            path.write_text(text)
        shutil.rmtree(folder, ignore_errors=True)
        raise


def main(words: Sequence[str]) -> int:
    """Make the release that the command line names, and say what comes next; return the exit code."""
    try:
        folder = release(ROOT, words[0] if words else "")
    except RefusedError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        return 1
    version = folder.name
    print(f"\n{folder}\n{(folder / 'SHA256SUMS').read_text()}")
    print(f"Nothing is committed, tagged or published. Look at `git diff`, then:\n\n{following(version)}")
    return 0


def following(version: str) -> str:
    """Return the commands that publish a release."""
    return (
        f"  git commit -am 'release: {version}'\n"
        f"  git tag -a v{version} -m 'remote-ollama-proxy {version}'\n"
        f"  git push origin HEAD v{version}\n"
        f"  gh release create v{version} --notes-file dist/{version}/NOTES.md dist/{version}/*\n"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
