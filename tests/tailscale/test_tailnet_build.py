"""What `make test-tailnet` does where it can't run, and that it builds Tailscale once; Go is played by a script."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.tailnet import build

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda patch: patch.setattr("sys.platform", "darwin"), "Linux", id="another-system"),
        pytest.param(lambda patch: patch.setattr(os, "geteuid", lambda: 501), "sudo make test-tailnet", id="no-root"),
        pytest.param(lambda patch: patch.setattr(build, "TUN", "/nowhere/tun"), "/nowhere/tun", id="no-tun"),
        pytest.param(lambda patch: patch.setenv("PATH", "/nowhere"), "`unshare`", id="no-program"),
        pytest.param(
            lambda patch: patch.setattr(
                subprocess,
                "run",
                lambda *words, **_: subprocess.CompletedProcess(words, 1, "", "unshare: not permitted"),
            ),
            "unshare: not permitted",
            id="no-namespaces",
        ),
    ],
)
def test_machine_that_cannot(monkeypatch: pytest.MonkeyPatch, change: Callable, words: str) -> None:
    """A machine without one of the things that a tailnet needs is refused with its name."""
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "access", lambda path, mode: path != "/nowhere/tun")
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}" if os.environ["PATH"] != "/nowhere" else None)
    change(monkeypatch)
    with pytest.raises(build.MissingError, match=words):
        build.need_machine()


class Go:
    """A script in Go's place, which notes how it is called."""

    def __init__(self, folder: Path) -> None:
        self.script = folder / "go"
        self.calls = folder / "calls"
        self.play()

    def play(self, version: str = "go1.26.8", failing: str = "never") -> None:
        """Be of a version, and fail in one subcommand."""
        lines = (
            "#!/bin/sh",
            f'if [ "$1" = env ]; then echo {version}; exit; fi',
            f'echo "$1" >> {self.calls}',
            f'if [ "$1" = {failing} ]; then echo dial tcp: lookup proxy.golang.org: no such host >&2; exit 1; fi',
            'while [ "$#" -gt 0 ]; do if [ "$1" = -o ]; then : > "$2"; fi; shift; done',
        )
        self.script.write_text("\n".join(lines))
        self.script.chmod(0o755)

    def called(self) -> list[str]:
        """Return the subcommands that were run."""
        return self.calls.read_text().split() if self.calls.exists() else []


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Go:
    """Give a Go that is the only one there, and an empty folder for what is built."""
    monkeypatch.setattr(build, "BUILT", tmp_path / "built")
    monkeypatch.setattr(build, "GO_FOLDER", "/nowhere")
    (tmp_path / "nice").symlink_to(shutil.which("nice") or "/usr/bin/nice")
    monkeypatch.setenv("PATH", str(tmp_path))
    return Go(tmp_path)


def test_built_once(go: Go) -> None:
    """Both programs are built the first time, and nothing is run the second time."""
    build.need_programs()
    assert go.called() == ["mod", "run", "list", "build", "build"]
    assert {each.name for each in build.BUILT.iterdir()} >= {"tailscaled", "tailscale", "control"}
    build.need_programs()
    assert len(go.called()) == 5


@pytest.mark.parametrize(
    ("version", "failing", "words"),
    [
        pytest.param(None, "", "needs Go 1.26.6 or newer", id="no-go"),
        pytest.param("go1.25.11", "", "go1.25.11", id="old-go"),
        pytest.param("go1.26", "", "go1.26", id="go-without-its-fixes"),
        pytest.param("devel go1.28-2f3c", "mod", "no such host", id="no-module-proxy"),
        pytest.param("go1.27rc1", "list", "no such host", id="one-module-missing"),
    ],
)
def test_cannot_be_built(go: Go, version: str | None, failing: str, words: str) -> None:
    """Without Go, or its modules, there is a reason, and the next run tries again."""
    if version is None:
        go.script.unlink()
    else:
        go.play(version, failing)
    with pytest.raises(build.MissingError, match=words):
        build.need_programs()
    go.play()
    build.need_programs()


def test_broken_source_is_no_reason_to_skip(go: Go) -> None:
    """A build that fails although all modules are there is an error, not a missing requirement."""
    go.play(failing="build")
    with pytest.raises(RuntimeError, match="go build"):
        build.need_programs()
