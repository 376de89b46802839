"""What an owner learns of whether the Mac is kept awake."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from proxy.manage.findings.awake import keeps_awake
from proxy.manage.machine.processes import Process
from proxy.settings.settings import Settings
from proxy.terminal.finding import Outcome
from tests.support.fake_launchd import Agents

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("platform", "keep_awake", "holds", "pid", "outcome", "detail"),
    [
        pytest.param("darwin", True, 71, 71, Outcome.PASS, "is kept awake: a model answers", id="holds"),
        pytest.param("darwin", True, 72, 71, Outcome.PASS, "which none does now", id="for_another"),
        pytest.param("darwin", True, None, 71, Outcome.PASS, "which none does now", id="idle"),
        pytest.param("darwin", True, None, None, Outcome.PASS, "which none does now", id="not_running"),
        pytest.param("darwin", False, 71, 71, Outcome.PASS, "may sleep", id="off"),
        pytest.param("linux", True, None, 71, Outcome.SKIP, "Linux has no caffeinate", id="linux"),
    ],
)
def test_keeps_awake(
    tmp_path: Path, platform: str, keep_awake: bool, holds: int | None, pid: int | None, outcome: str, detail: str
) -> None:
    """A hold is seen by its process, whose command line names the proxy; that there is none is no fault."""
    mac = Agents(tmp_path)
    running = () if holds is None else (Process(99, command=f"/usr/bin/caffeinate -i -w {holds}"),)
    machine = replace(mac.machine(platform), processes=lambda: running)
    finding = keeps_awake(machine, Settings(keep_awake=keep_awake), pid)
    assert finding.outcome is outcome
    assert detail in finding.detail
    mac.close()
