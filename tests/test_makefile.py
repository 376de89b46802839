"""What `make` runs the tests in: an environment that hides nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def environment(tmp_path):
    """Return a function that gives the variables that pytest gets from a target, called with some exported."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("there is no make here")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *pytest*) env > "{tmp_path}/variables";; esac\n')
    python.chmod(0o755)
    (tmp_path / "variables").write_text("")

    def run(target, **exported):
        # -o: what is installed for the tests stays as it is.
        command = [make, "-s", "-o", ".venv/.ready", target, f"PYTHON={python}"]
        path = {"HOME": "/home/of mine", "PATH": f"{os.environ['PATH']}:/a folder"}
        done = subprocess.run(command, cwd=ROOT, env=path | exported, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        lines = (tmp_path / "variables").read_text().splitlines()
        found = dict(line.split("=", 1) for line in lines)
        assert (found.pop("HOME"), found.pop("PATH")) == (path["HOME"], path["PATH"])
        found.pop("PWD", None)  # some shells add these themselves
        found.pop("OLDPWD", None)
        return {name: value for name, value in found.items() if name not in {"SHLVL", "_"}}

    return run


@pytest.mark.parametrize("target", ["test", "test-net"])
def test_bare_environment(environment, target):
    """Tests see HOME and PATH, and nothing else that was exported."""
    assert environment(target, PYTHONUNBUFFERED="1", PROXY_PORT="1", LANG="C", MAKEFLAGS="") == {}


def test_ci(environment):
    """Tests see CI too, where it is set."""
    assert environment("test", CI="true") == {"CI": "true"}
    assert environment("test", CI="") == {}


def test_patience(environment):
    """PATIENCE, in the environment or given to make, makes tests wait longer."""
    assert environment("test", PATIENCE="3") == {"PATIENCE": "3"}


def test_variables_of_targets(environment):
    """The fuzzers get their minutes and seed, `quick` fewer examples, and nothing else."""
    assert environment("quick", LANG="C") == {"EXAMPLES": "0.1"}
    assert environment("fuzz", MINUTES="2", SEED="7", LANG="C") == {"FUZZ_MINUTES": "2", "FUZZ_SEED": "7"}
