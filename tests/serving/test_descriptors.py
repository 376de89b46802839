"""How many open files the program believes in is how many it gets."""

from __future__ import annotations

import resource
import subprocess
import sys
from typing import Any

import pytest

from proxy.serving import descriptors
from proxy.serving.descriptors import raise_limit

UNLIMITED = resource.RLIM_INFINITY


class Kernel:
    """The limits of one process: soft, hard, and what `setrlimit` refuses."""

    def __init__(self, patch: pytest.MonkeyPatch, soft: int, hard: int, refused: int = 2**62) -> None:
        self.limits = (soft, hard)
        self.refused = refused
        patch.setattr(resource, "getrlimit", lambda _which: self.limits)
        patch.setattr(resource, "setrlimit", self.change)

    def change(self, _which: int, limits: tuple[int, int]) -> None:
        """Take new limits."""
        if limits[0] >= self.refused:
            raise ValueError("not allowed to raise maximum limit")
        self.limits = limits


@pytest.mark.parametrize(
    ("soft", "hard", "reached"),
    [
        pytest.param(256, 4096, 1000, id="raised"),
        pytest.param(256, 500, 500, id="as_far_as_it_goes"),
        pytest.param(4096, 4096, 1000, id="enough"),
        pytest.param(UNLIMITED, UNLIMITED, 1000, id="no_limit"),
        pytest.param(256, UNLIMITED, 1000, id="no_hard_limit"),
    ],
)
def test_limit(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, reached: int) -> None:
    """The soft limit is raised to what is needed, never lowered, and what can be open then is returned."""
    kernel = Kernel(monkeypatch, soft, hard)
    assert raise_limit(1000) == reached
    assert kernel.limits[0] == (soft if soft == UNLIMITED else max(soft, reached))


def test_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where raising is refused, what there was is what can be open."""
    Kernel(monkeypatch, 100, 4096, refused=1000)
    assert raise_limit(1000) == 100


# --- macOS ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def sysctl(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Give a Mac whose `sysctl` answers with the first element, text or exception, to `kern.maxfilesperproc`."""
    answers: list[Any] = ["61440\n"]

    def run(command: tuple[str, ...], **_options: object) -> subprocess.CompletedProcess[str]:
        assert command == ("/usr/sbin/sysctl", "-n", "kern.maxfilesperproc")
        if isinstance(answers[0], Exception):
            raise answers[0]
        return subprocess.CompletedProcess(command, 0, answers[0], "")

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(descriptors.subprocess, "run", run)
    descriptors.most.cache_clear()
    yield answers
    descriptors.most.cache_clear()


@pytest.mark.parametrize(
    ("soft", "hard"),
    [
        pytest.param(256, UNLIMITED, id="raised"),
        pytest.param(UNLIMITED, UNLIMITED, id="unlimited"),
        pytest.param(200_000, UNLIMITED, id="higher_already"),
    ],
)
@pytest.mark.parametrize(("asked", "reached"), [(1000, 1000), (100_000, 61_440)], ids=["below", "above"])
def test_what_a_mac_gives(
    monkeypatch: pytest.MonkeyPatch, sysctl: list[Any], soft: int, hard: int, asked: int, reached: int
) -> None:
    """MacOS takes any limit and gives no more than kern.maxfilesperproc: that is all that is believed in.

    public source: xnu `bsd/kern/kern_resource.c`, dosetrlimit and proc_limitgetcur_nofile.
    """
    Kernel(monkeypatch, soft, hard)
    assert raise_limit(asked) == reached


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(FileNotFoundError("sysctl"), id="missing"),
        pytest.param(subprocess.TimeoutExpired("sysctl", 2), id="late"),
        pytest.param("sysctl: unknown oid\n", id="no_number"),
    ],
)
def test_mac_that_does_not_say(monkeypatch: pytest.MonkeyPatch, sysctl: list[Any], answer: Any) -> None:
    """Where `sysctl` gives no number the limit alone counts."""
    sysctl[0] = answer
    Kernel(monkeypatch, 256, 4096)
    assert raise_limit(1000) == 1000
