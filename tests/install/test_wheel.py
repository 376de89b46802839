"""The wheel, without the clone that it was built of: every command works, and so does a whole life of an install."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from proxy import __version__
from proxy.manage.machine.source import WHEEL, Checkout
from tests.support.patience import PATIENCE

ROOT = Path(__file__).parent.parent.parent


def run(*words, **environ):
    """Run a command outside the clone; return what it printed. It must end well."""
    done = subprocess.run(
        [str(word) for word in words],
        cwd="/",
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=4 * PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Give the wheel, built without a network."""
    folder = tmp_path_factory.mktemp("dist")
    building = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    subprocess.run(building, cwd=ROOT, check=True, capture_output=True)
    return folder / WHEEL


@pytest.fixture(scope="module")
def packages():
    """Give the folder with the packages that the tests run with, instead of a registry."""
    return next(path for path in sys.path if path.endswith("site-packages"))


@pytest.fixture(scope="module")
def copy(wheel, packages, tmp_path_factory):
    """Give the environment of a copy that pip unpacked, whose packages are those of the tests."""
    folder = tmp_path_factory.mktemp("tool")
    run(sys.executable, "-m", "venv", "--without-pip", folder)  # to unpack pip takes longer than all that pip does
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel)
    site = run(python, "-c", "import site; print(site.getsitepackages()[0])").strip()
    Path(site, "more.pth").write_text(packages)
    return folder


def test_wheel_has_the_code_and_what_it_needs(wheel):
    """The wheel has every module and data file of the package, its page, the lock file, the plists, and no test."""
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [path for ending in ("py", "toml") for path in (ROOT / "proxy").rglob(f"*.{ending}")]
    modules = {path.relative_to(ROOT).as_posix() for path in files}
    others = {"proxy/requirements.lock", *(f"proxy/launchd/{path.name}" for path in (ROOT / "launchd").iterdir())}
    page = (path for path in (ROOT / "proxy/dashboard/page").rglob("*") if path.is_file())
    assert held == modules | others | {path.relative_to(ROOT).as_posix() for path in page}


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        pytest.param(["--version"], f"remote-ollama-proxy {__version__}\n", id="version"),
        pytest.param(["explain", "POST", "/api/pull"], "refused by this rule", id="explain"),
        pytest.param(["--check", "--listen", "127.0.0.1", "--port", "24817"], "pass  parser", id="check"),
        pytest.param(["install", "--dry-run"], "nothing was changed", id="dry_run"),
    ],
)
def test_command(copy, tmp_path, words, printed):
    """A copy that was unpacked from the wheel has all that a command needs."""
    assert printed in run(copy / "bin/remote-ollama-proxy", *words, HOME=str(tmp_path))


def test_demo(copy, tmp_path):
    """Every step of the tour holds: the simulated Ollama and the questions of `verify` are in the wheel."""
    printed = run(copy / "bin/remote-ollama-proxy", "demo", HOME=str(tmp_path))
    assert re.search(r"^(\d+) of \1 steps hold", printed, re.MULTILINE)


def test_life(copy, packages, tmp_path):
    """What launchd runs is the owner's copy, in an environment of its own; upgraded, kept from changes, and removed."""
    version = Checkout.here().version
    told = run(copy / "bin/python", ROOT / "tests/tools/without_a_clone.py", tmp_path, "--packages", packages)
    assert told.splitlines() == [
        f"source {version}",
        "install 0",
        f"version {version}",
        "answers 200 403",
        "service True",
        "again 0 1",
        "upgrade 0 True",
        "answers 200 403",
        "changed 1 True",
        "answers 200",
        "uninstall 0 False True",
    ]
