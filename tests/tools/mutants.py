"""`make mutants`: change the code that decides, in every small way mutmut knows, and check that a test notices.

mutmut asks mypy first, as `make lint` would, then the tests that reach the changed function. What is left must be
explained in survivors.toml, by the line as it became. Exit code 1 when a change is neither noticed nor explained.

Each module's outcome is kept in `.mutants/`, until the module or its tests change: an interrupted run continues where
it was.

mutmut changes functions. It leaves regular expressions, tables and numbers outside of them alone, and whatever has a
decorator other than property, classmethod and staticmethod.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
MODULES = {
    "exchange/message/plain_chunks": "exchange/message/test_plain_chunks.py",
    "exchange/message/plain_tokens": "exchange/test_streams.py",
    "exchange/message/upload": "exchange/message/test_upload.py",
    "exchange/message/passage": "exchange/message/test_passage.py",
    "exchange/message/forwarding": "exchange/message/test_forwarding.py",
    "exchange/message/exchange": "exchange/message/test_exchange.py",
    "logs/audit": "logs/test_audit.py",
    "policy/replies": "policy/test_replies.py",
    "exchange/message/known_heads": "exchange/message/test_known_heads.py exchange/client/test_requests.py"
    " exchange/upstream/test_upstream.py",
    "exchange/client/requests": "exchange/client/test_requests.py exchange/message/test_known_heads.py",
    "policy/gate": "policy/test_gate.py policy/test_access.py",
    "policy/identity": "policy/test_access.py",
    "policy/native": "policy/test_native.py",
    "policy/models": "policy/test_models.py",
    "policy/access": "policy/test_access.py",
    "policy/rule_keys": "policy/test_askers.py policy/test_access.py settings/test_access_rules.py",
    "settings/access_rules": "settings/test_access_rules.py",
    "manage/facts/ruled": "manage/test_ruled.py",
    "exchange/message/limits": "exchange/waiting/limits/test_held_back.py exchange/waiting/limits/test_limited.py",
    "exchange/waiting/judging": "exchange/waiting/test_judging.py exchange/test_judged_again.py",
    "exchange/upstream/upstream": "exchange/upstream/test_upstream.py",
    "exchange/streams": "exchange/test_streams.py",
    "exchange/relay": "exchange/test_gateway.py exchange/test_relay.py exchange/upstream/test_upstream_faults.py",
    "exchange/client/connection": "exchange/client/test_connection.py exchange/client/test_downstream.py"
    " exchange/client/test_deadlines.py exchange/client/test_disconnects.py exchange/test_drain.py"
    " exchange/test_relay.py",
    "exchange/gateway": "exchange/test_gateway.py exchange/test_identity.py exchange/test_by_serve.py"
    " exchange/test_relay.py exchange/client/test_downstream.py exchange/client/test_deadlines.py"
    " exchange/client/test_disconnects.py exchange/test_drain.py",
    "reading/reader": "exchange/message/test_passage.py exchange/waiting/bodies/test_bodies.py reading/test_body.py",
    "reading/fields": "reading/test_body.py reading/test_go.py",
    "reading/body": "reading/test_body.py reading/test_go.py",
    "reading/scanner": "reading/test_body.py reading/test_go.py",
    "exchange/message/lists": "exchange/message/test_lists.py",
    "exchange/message/model_scan": "exchange/test_streams.py",
    "exchange/message/whole_answer": "exchange/test_streams.py",
    "exchange/askers": "exchange/test_askers.py",
    "exchange/listing": "exchange/test_collected_list.py",
    "reading/names": "reading/test_names.py",
    "reading/form": "reading/test_form.py",
    "reading/keep_alive": "reading/test_keep_alive.py",
    "reading/native": "reading/test_native.py",
    "exchange/waiting/pings": "exchange/waiting/test_pings.py",
    "exchange/waiting/catalog": "exchange/waiting/test_catalog.py",
    "exchange/waiting/context": "exchange/waiting/test_context.py",
    "exchange/waiting/stuck": "exchange/waiting/test_stuck.py",
    "exchange/waiting/wait": "exchange/waiting/test_recordings.py exchange/waiting/test_waiting.py",
    "exchange/waiting/loads": "exchange/waiting/test_loads.py exchange/waiting/test_ends.py",
    "exchange/waiting/bodies": "exchange/waiting/bodies/test_bodies.py exchange/waiting/bodies/test_large.py"
    " exchange/waiting/bodies/test_native.py exchange/waiting/bodies/test_early.py",
    "exchange/waiting/visit": "exchange/waiting/test_queue.py exchange/waiting/test_waiting.py"
    " exchange/waiting/test_stuck.py"
    " exchange/waiting/test_seen.py exchange/waiting/bodies/test_bodies.py exchange/waiting/bodies/test_large.py"
    " exchange/waiting/test_recordings.py",
    "exchange/waiting/queue": "exchange/waiting/test_queue.py",
    "exchange/waiting/room": "exchange/waiting/test_judging.py exchange/test_judged_again.py"
    " exchange/waiting/limits/test_limited_room.py exchange/waiting/test_waiting.py exchange/waiting/test_ends.py"
    " exchange/waiting/test_seen.py exchange/waiting/bodies/test_bodies.py exchange/waiting/bodies/test_native.py"
    " exchange/waiting/test_context.py exchange/waiting/test_stuck.py",
}
"""Modules of `proxy/`, and the files of `tests/` that decide about each. Small modules come first."""

TREES = ("proxy", "tests", "docs", "launchd")
FILES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile", "pyproject.toml")
EXPLAINED = Path(__file__).with_name("survivors.toml")
KEPT = ROOT / ".mutants"

PYTEST = (
    *("-p", "tests.tools.fail_fast", "-m", "not process", "-p", "no:cacheprovider"),
    *("-p", "no:unraisableexception", "-p", "no:threadexception", "-p", "no:xdist", "-p", "no:pytest_cov"),
)
"""What every run of tests gets: the plugins that no in-process test needs take two thirds of a short run's time."""

MYPY = (
    *("mypy", "--strict", "--output", "json", "--no-warn-unused-ignores"),
    *("--disable-error-code", "no-redef", "--disable-error-code", "has-type"),
)
"""The judges of all changes of a module at once. Their file repeats each function, so some errors are expected."""

ENVIRON = {"PATIENCE": "0.5", "EXAMPLES": "0.7"}
"""Half the time for what never comes, and fewer random examples. Below 2/3, cases of large tables would be left out."""


class Mutant(NamedTuple):
    """One change that no test noticed."""

    name: str
    was: str
    became: str


class Outcome(NamedTuple):
    """The result of trying all changes of a module."""

    tried: int
    typed: int
    """How many of them only mypy was asked about."""
    late: list[str]
    """Those with which the tests took too long."""
    left: list[Mutant]


def mutmut(folder: Path, *words: str, shown: bool = False) -> str:
    """Run mutmut and return its output. On a terminal a run can show its progress instead."""
    command = [sys.executable, "-m", "mutmut", *words]
    stdout = None if shown and sys.stdout.isatty() else subprocess.PIPE
    done = subprocess.run(command, cwd=folder, env=os.environ | ENVIRON, check=False, stdout=stdout, text=True)
    if done.returncode:
        said = [line for line in (done.stdout or "").splitlines() if line and not line.endswith("Running stats")]
        tests = re.findall(r"tests/\S+\.py", (folder / "setup.cfg").read_text())
        given = [f"{name}={value}" for name, value in ENVIRON.items()]
        print(*said[-20:], f"error: mutmut ended with {done.returncode}", sep="\n", file=sys.stderr)
        raise SystemExit(f"hint: {' '.join([*given, '.venv/bin/python -m pytest -x', *tests])}")
    return done.stdout or ""


def source(module: str) -> str:
    """Return the path of a module in the checkout."""
    return f"proxy/{module}.py"


def tests_of(module: str) -> list[str]:
    """Return the paths of the tests that decide about a module."""
    return [f"tests/{file}" for file in MODULES[module].split()]


def prepare(folder: Path, module: str) -> None:
    """Copy the checkout, and configure what mutmut changes and runs."""
    for tree in TREES:
        shutil.copytree(ROOT / tree, folder / tree, ignore=shutil.ignore_patterns("__pycache__"))
    for file in FILES:
        shutil.copy(ROOT / file, folder / file)
    lists = {
        "source_paths": [source(module)],
        "also_copy": [*TREES, *FILES],
        "pytest_add_cli_args": PYTEST,
        "pytest_add_cli_args_test_selection": tests_of(module),
        "type_check_command": [sys.executable, "-m", *MYPY, source(module)],
        # A server that has only collected the tests: no verdict is remembered from a run without the change.
        "process_isolation": ["forkserver"],
        # A change with which a test waits for what never comes is ended after 10 s and five times what the tests take.
        "timeout_constant": ["2.0"],
        "timeout_multiplier": ["5.0"],
    }
    lines = (f"{name} = " + "\n    ".join(values) for name, values in lists.items())
    (folder / "setup.cfg").write_text("[mutmut]\n" + "\n".join(lines) + "\n")


def outcome(module: str) -> Outcome:
    """Try all changes of a module, or return what is known of them from an earlier run."""
    known = KEPT / f"{module.replace('/', '.')}.json"
    tries = digest(module)
    if known.exists() and (kept := json.loads(known.read_text()))["digest"] == tries:
        return Outcome(kept["tried"], kept["typed"], kept["late"], [Mutant(*each) for each in kept["left"]])
    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        folder = Path(place)
        prepare(folder, module)
        mutmut(folder, "run", shown=True)
        became = dict(re.findall(r"^\s*(\S+): (.+)$", mutmut(folder, "results", "--all", "true"), re.MULTILINE))
        typed = sum(it == "caught by type check" for it in became.values())
        late = [name for name, it in became.items() if it == "timeout"]
        text = (folder / "mutants" / source(module)).read_text()
        noticed = {"killed", "timeout", "caught by type check"}
        unnoticed = [name for name, it in became.items() if it not in noticed and "ǁ__repr__" not in name]
        left = [each for each in changes(text, unnoticed) if explanation(each) or not fails(folder, module, each.name)]
    KEPT.mkdir(exist_ok=True)
    known.write_text(json.dumps({"digest": tries, **Outcome(len(became), typed, late, left)._asdict()}, indent=1))
    return Outcome(len(became), typed, late, left)


def fails(folder: Path, module: str, name: str) -> bool:
    """Return whether the tests fail with a change that is there before anything is imported.

    mutmut chooses a change after that, too late for a function that builds a value of its module.
    """
    command = [sys.executable, "-m", "pytest", "-x", "-q", *PYTEST, *tests_of(module)]
    environ = os.environ | ENVIRON | {"MUTANT_UNDER_TEST": name}
    done = subprocess.run(command, cwd=folder / "mutants", env=environ, check=False, capture_output=True)
    return done.returncode != 0


def digest(module: str) -> str:
    """Return what changes with a module, its tests and how they are run."""
    files = [source(module), *tests_of(module), "tests/tools/fail_fast.py"]
    read = b"".join((ROOT / file).read_bytes() for file in files)
    return hashlib.sha256(read + repr((MYPY, PYTEST, ENVIRON)).encode()).hexdigest()


def changes(text: str, names: list[str]) -> list[Mutant]:
    """Return changes with the lines that they concern, from the file in which mutmut put all variants of a function."""
    lines = text.splitlines()
    functions = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    variants = {node.name: lines[node.lineno - 1 : node.end_lineno] for node in functions}
    found = []
    for name in names:
        variant = name.rpartition(".")[2]
        stem = variant.rpartition("__mutmut_")[0]
        plain = stem.rpartition("ǁ")[2] if "ǁ" in stem else stem.removeprefix("x_")
        old, new = (
            [line.replace(f"{each}(", f"{plain}(").strip() for line in variants[each]]
            for each in (f"{stem}__mutmut_orig", variant)
        )
        marked = list(difflib.unified_diff(old, new, n=0, lineterm=""))[3:]
        was, became = (" ".join(line[1:] for line in marked if line[0] == sign) for sign in "-+")
        found.append(Mutant(name, was, became))
    return found


@cache
def known_reasons() -> dict[str, dict[str, str]]:
    """Return what survivors.toml says."""
    return tomllib.loads(EXPLAINED.read_text())


def explanation(mutant: Mutant, explained: dict[str, dict[str, str]] | None = None) -> str | None:
    """Return why a change may go unnoticed; None if nobody said."""
    explained = known_reasons() if explained is None else explained
    for pair, why in explained.get("same", {}).items():  # what means the same wherever it stands
        old, _, new = pair.partition(" -> ")
        places = (place.start() for place in re.finditer(re.escape(old), mutant.was))
        if any(mutant.was[:at] + new + mutant.was[at + len(old) :] == mutant.became for at in places):
            return why
    reasons = explained.get(mutant.name.split(".")[-2], {})
    return reasons.get(mutant.became) or reasons.get(f"{mutant.was} -> {mutant.became}")


def main(names: list[str]) -> int:
    """Try all changes of the modules; return the exit code."""
    stems = {module: Path(module).name for module in MODULES}
    if strange := set(names).difference(stems.values()):
        print(f"error: not among {', '.join(stems.values())}: {', '.join(sorted(strange))}", file=sys.stderr)
        print("hint: make mutants MODULES='gate audit'", file=sys.stderr)
        return 2
    all_tried, code, spoken_of = 0, 0, defaultdict[str, set[str]](set)
    for module, name in stems.items():
        if names and name not in names:
            continue
        tried, typed, late, left = outcome(module)
        all_tried += tried
        unexplained = [mutant for mutant in left if explanation(mutant) is None]
        by_tests, reasons = tried - typed - len(left), len(left) - len(unexplained)
        print(
            f"{module}: {tried} changes; {by_tests} noticed by tests ({len(late)} by time),"
            f" {typed} by types, {reasons} explained",
            flush=True,
        )
        for mutant in unexplained:
            print(f"  FAIL {mutant.name}\n    was    {mutant.was}\n    became {mutant.became}", flush=True)
        spoken_of[name].update(text for each in left for text in (each.became, f"{each.was} -> {each.became}"))
        if unexplained:
            code = 1
    for name, spoken in spoken_of.items():
        for stale in known_reasons().get(name, {}).keys() - spoken:
            print(f"  no longer needed in survivors.toml: [{name}] {stale}")
    if code:
        print("hint: a test that fails with the change, or a line in tests/tools/survivors.toml that says why none can")
    else:
        print(f"PASS each of {all_tried} changes is noticed or explained")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
