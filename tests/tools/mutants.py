"""`make mutants`: change the code that decides, in every small way mutmut knows, and see that its own tests notice.

Each module is tried against its own test file alone. What mutmut finds unnoticed is tried again in a fresh process, for
within one a verdict that was remembered before the change can hide it; then against the types, as `make lint` judges
them. What is left must be explained in survivors.toml, by the line as it became. Exit code 1 when something is neither
noticed nor explained.

mutmut changes functions: regular expressions, tables and numbers that stand outside of them are not tried, nor is what
has a decorator other than property, classmethod and staticmethod.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
MODULES = (
    "gate",
    "forwarding",
    "replies",
    "audit",
    "upload",
    "upstream",
    "requests",
    "known_heads",
    "exchange",
    "chunks",
)
"""Names of modules, without their folders: each is there once, and has a test file of its name."""

TREES = ("proxy", "tests", "docs", "launchd")
FILES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile", "pyproject.toml")
EXPLAINED = Path(__file__).with_name("survivors.toml")

ONE_RUN = 600.0
"""Seconds for one test file with one change. What runs in a second took two minutes on a machine that was held up."""


class Mutant(NamedTuple):
    """One change that no test noticed."""

    name: str
    was: str
    became: str


def mutmut(folder: Path, *words: str) -> str:
    """Return what mutmut prints; what it shows of its progress is thrown away."""
    done = subprocess.run(
        [sys.executable, "-m", "mutmut", *words], cwd=folder, check=False, capture_output=True, text=True
    )
    return done.stdout


def source(module: str) -> str:
    """Return the path of the module with that name, from the checkout."""
    (found,) = (ROOT / "proxy").rglob(f"{module}.py")
    return str(found.relative_to(ROOT))


def tests_of(module: str) -> str:
    """Return the file with a module's own tests."""
    (found,) = (ROOT / "tests").rglob(f"test_{module}.py")
    return str(found.relative_to(ROOT))


def prepare(folder: Path, module: str) -> None:
    """Copy the checkout, and tell mutmut what to change and what to run."""
    for tree in TREES:
        shutil.copytree(ROOT / tree, folder / tree, ignore=shutil.ignore_patterns("__pycache__"))
    for file in FILES:
        shutil.copy(ROOT / file, folder / file)
    copied = "\n".join(f"    {name}" for name in (*TREES, *FILES))
    (folder / "setup.cfg").write_text(
        f"[mutmut]\nsource_paths={source(module)}\n"
        f"pytest_add_cli_args_test_selection={tests_of(module)}\nalso_copy=\n{copied}\n"
    )


def unnoticed(folder: Path, module: str) -> tuple[int, int, list[Mutant]]:
    """Return how many changes were tried, how many of them the types alone noticed, and those that nothing did."""
    mutmut(folder, "run")
    told = mutmut(folder, "results", "--all", "true")
    outcomes = re.findall(r"^\s*(\S+): (.+)$", told, re.MULTILINE)
    if not outcomes or fails(folder, module, ""):
        raise SystemExit(f"error: {tests_of(module)} fails without a change, too\nhint: make test")
    doubtful = [name for name, outcome in outcomes if outcome not in {"killed", "timeout"}]
    with ThreadPoolExecutor(os.cpu_count()) as several:
        noticed = list(several.map(lambda name: fails(folder, module, name), doubtful))
    left = [name for name, seen in zip(doubtful, noticed, strict=True) if not seen]
    untyped = [name for name in left if not mistyped(folder, module, name)]
    return len(outcomes), len(left) - len(untyped), [shown(folder, name) for name in untyped]


def fails(folder: Path, module: str, name: str) -> bool:
    """Say whether a fresh run of the module's tests fails with the change; without a name, as the module is."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", tests_of(module)]
    environ = {**os.environ, "MUTANT_UNDER_TEST": name}
    try:
        done = subprocess.run(
            command, cwd=folder / "mutants", env=environ, check=False, capture_output=True, timeout=ONE_RUN
        )
    except subprocess.TimeoutExpired:
        return True
    return done.returncode != 0


def mistyped(folder: Path, module: str, name: str) -> bool:
    """Say whether mypy refuses the module with the change, which no commit would get past either."""
    file = folder / source(module)
    before = file.read_text()
    mutmut(folder, "apply", name)
    command = [sys.executable, "-m", "mypy", "--strict", source(module)]
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    changed = file.read_text() != before
    file.write_text(before)
    return changed and done.returncode == 1


def shown(folder: Path, name: str) -> Mutant:
    """Return a change with the lines that it concerns."""
    lines = mutmut(folder, "show", name).splitlines()
    was = [line[1:].strip() for line in lines if line.startswith("-") and not line.startswith("---")]
    became = [line[1:].strip() for line in lines if line.startswith("+") and not line.startswith("+++")]
    return Mutant(name, " ".join(was), " ".join(became))


def explanation(mutant: Mutant, explained: dict[str, dict[str, str]]) -> str | None:
    """Return why a change may go unnoticed; None if nobody said."""
    for pair, why in explained.get("same", {}).items():  # what means the same wherever it stands
        old, _, new = pair.partition(" -> ")
        if old in mutant.was and mutant.was.replace(old, new) == mutant.became:
            return why
    told = explained.get(mutant.name.split(".")[-2], {})
    return told.get(mutant.became) or told.get(f"{mutant.was} -> {mutant.became}")


def main(modules: list[str]) -> int:
    """Try all changes of the modules; return the exit code."""
    if strange := set(modules).difference(MODULES):
        print(f"error: not among {', '.join(MODULES)}: {', '.join(sorted(strange))}", file=sys.stderr)
        print("hint: make mutants MODULES='gate audit'", file=sys.stderr)
        return 2
    explained = tomllib.loads(EXPLAINED.read_text())
    all_tried, code = 0, 0
    for module in modules or MODULES:
        with tempfile.TemporaryDirectory(prefix="mutants-") as place:
            folder = Path(place)
            prepare(folder, module)
            tried, typed, left = unnoticed(folder, module)
        all_tried += tried
        unexplained = [mutant for mutant in left if explanation(mutant, explained) is None]
        noticed, told = tried - typed - len(left), len(left) - len(unexplained)
        print(f"{module}: {tried} changes; {noticed} noticed by tests, {typed} by types, {told} explained", flush=True)
        for mutant in unexplained:
            print(f"  FAIL {mutant.name}\n    was    {mutant.was}\n    became {mutant.became}", flush=True)
        spoken_of = {text for mutant in left for text in (mutant.became, f"{mutant.was} -> {mutant.became}")}
        for stale in explained.get(module, {}).keys() - spoken_of:
            print(f"  no longer needed in survivors.toml: {stale}", flush=True)
        if unexplained:
            code = 1
    if code:
        print("hint: a test that fails with the change, or a line in tests/tools/survivors.toml that says why none can")
    else:
        print(f"PASS each of {all_tried} changes is noticed or explained")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
