"""What can be wrong with agents that run: time to end that launchd cuts, models out of reach, a log that grows."""

from __future__ import annotations

import os
import sys

import pytest

from proxy.manage.facts.facts import Facts
from proxy.manage.findings import agents as findings_agents
from proxy.manage.findings import services
from proxy.manage.machine.launchd import OLLAMA, PROXY, plist_path
from proxy.manage.machine.machine import Machine
from proxy.manage.machine.services import DAEMONS
from proxy.manage.status import status
from proxy.settings.settings import load
from tests.support.mac.installed_mac import PIDS, Installed, wrong

INSTALL = "python -m proxy install"


@pytest.fixture
def mac(tmp_path):
    """Give a Mac on which both services are installed and run, as far as anyone can see."""
    mac = Installed(tmp_path)
    yield mac
    mac.close()


@pytest.mark.parametrize(
    ("drain", "allowed", "needed", "hint"),
    [
        pytest.param(25, None, None, "", id="default"),
        pytest.param(45, None, None, "", id="just_fits"),
        pytest.param(46, None, 61, "drain_timeout = 45 in config.toml", id="just_too_long"),
        pytest.param(3600, None, 3615, "drain_timeout = 45 in config.toml", id="longest"),
        pytest.param(45, 40, 60, INSTALL, id="plist_from_before_the_change"),
        pytest.param(45, 60, None, "", id="live_limit_fits"),
        pytest.param(200, 215, None, "", id="a_launchd_that_allows_more"),
    ],
)
def test_drain_that_launchd_cuts(drain, allowed, needed, hint):
    """A drain that ends after launchd's limit is a warning that names both times, with what helps."""
    found = findings_agents.cut_drain(drain, allowed)
    if needed is None:
        assert found is None
        return
    assert f"may take {needed} s" in found.detail
    assert f"after {allowed or 60}:" in found.detail
    assert found.hint.startswith(hint)


@pytest.mark.parametrize(
    ("folder", "is_reported"),
    [("/Volumes/Models", True), ("/Users/Shared/ollama", False), ("/VolumesX", False), ("", False)],
)
def test_models_on_an_external_volume(folder, is_reported):
    """Models below /Volumes are a warning: macOS asks first, and the volume may be missing at login."""
    found = findings_agents.external_models({"OLLAMA_MODELS": folder} if folder else {})
    assert (found is not None) is is_reported
    assert found is None or (folder in found.detail and "restart ollama" in found.hint)


def test_log_that_has_grown(tmp_path):
    """Ollama's log is reported from 1 GiB on, with the command that empties it. A missing one is not."""
    log = tmp_path / "ollama.log"
    assert findings_agents.large_file(log) is None
    log.touch()
    os.truncate(log, findings_agents.LARGE_LOG - 1)
    assert findings_agents.large_file(log) is None
    os.truncate(log, findings_agents.LARGE_LOG)
    assert findings_agents.large_file(log).hint == f": > '{log}'"


# --- who reports it ---------------------------------------------------------------------------------------------------


def test_verify_and_status_report_all_three(mac):
    """`verify` and `status` report what is wrong with the agents, in the same words."""
    mac.settings("drain_timeout = 50\n")
    mac.edit(PROXY, ExitTimeOut=65)
    mac.run_job(PROXY, PIDS["proxy"])
    mac.variable(OLLAMA, "OLLAMA_MODELS", "/Volumes/Models")
    (mac.logs / "ollama.log").touch()
    os.truncate(mac.logs / "ollama.log", findings_agents.LARGE_LOG)
    told = wrong(mac.found(findings_agents.limits, findings_agents.large_log))
    assert [name for name, *_ in told] == ["drain_timeout", "models", "ollama log"]
    shown = status(mac.machine(), {}, mac.tailscale()).findings
    assert [each for each in wrong(shown) if each[0] in {"drain_timeout", "models", "ollama log"}] == told


def test_nothing_to_report(mac):
    """Agents as an install makes them have nothing wrong."""
    assert wrong(mac.found(services.agents, findings_agents.limits, findings_agents.large_log)) == []


@pytest.mark.parametrize(
    ("platform", "daemon", "is_reported"),
    [("darwin", False, True), ("darwin", True, False), ("linux", False, False)],
    ids=["agent", "daemon", "linux"],
)
def test_check_reports_it_of_an_agent(tmp_path, platform, daemon, is_reported):
    """`--check` warns on a Mac, where the proxy is an agent or would be; a daemon of the system isn't one."""
    machine = Machine(tmp_path / "home", os.getuid(), platform, root=tmp_path)
    if daemon:
        path = machine.at(f"{DAEMONS}/{PROXY}.plist")
        path.parent.mkdir(parents=True)
        path.touch()
    loaded = load({"drain_timeout": "5m"}, {"HOME": str(tmp_path)})
    facts = Facts(machine, loaded, python=sys.executable)
    assert [each.name for each in findings_agents.limits(facts)] == (["drain_timeout"] if is_reported else [])


@pytest.mark.parametrize(
    ("job", "outcome", "detail", "hint"),
    [
        pytest.param(
            {"state": "not running", "runs": 0, "pended": "speculative"},
            "fail",
            "(not running; launchd holds its start back: speculative): it was never started",
            "python -m proxy start proxy",
            id="left_down",
        ),
        pytest.param(
            {"state": "spawn scheduled", "ended": "last exit reason = OS_REASON_CODESIGNING"},
            "fail",
            "the signature of its program",
            "python -m proxy restart proxy",
            id="codesigning",
        ),
        pytest.param({"state": "xpcproxy"}, "warn", "is starting (xpcproxy)", "python -m proxy status", id="xpcproxy"),
    ],
)
def test_job_that_does_not_run(mac, job, outcome, detail, hint):
    """An agent that is down says why in launchd's words, and what starts it; one that comes up is no failure."""
    mac.run_job(PROXY, None, **job)
    found = next(each for each in mac.found(services.agents) if each.name == "proxy agent")
    assert (str(found.outcome), found.hint) == (outcome, hint)
    assert detail in found.detail


def test_job_that_comes_up_meanwhile(mac):
    """A job that was just being started when it was looked at is looked at again."""
    (mac.state / "jobs" / f"{PROXY}.xpcproxy").touch()
    assert wrong(mac.found(services.agents)) == []
    assert plist_path(PROXY, mac.home).exists()
