"""What launchd reports of a job, in words that can be acted on."""

from __future__ import annotations

import pytest

from proxy.manage.machine.job_state import JobState, is_disabled, read


def printed(*lines):
    """Return what `launchctl print` says of a job."""
    return "\n".join(["gui/501/x = {", *(f"\t{line}" for line in lines), "}"])


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        pytest.param(["runs = 0", "last exit code = (never exited)"], "it was never started", id="never"),
        pytest.param(["runs = 1", "last exit code = (never exited)"], "it has not ended yet", id="first_run"),
        pytest.param(["last exit code = 0"], "it ended with exit code 0", id="zero"),
        pytest.param(["last exit code = 2"], "it ended with exit code 2", id="code"),
        pytest.param(["last exit code = 78: EX_CONFIG"], "(launchd could not start it: its program or", id="config"),
        pytest.param(["last terminating signal = Killed: 9"], "it was ended by signal 9 (SIGKILL)", id="killed"),
        pytest.param(["last terminating signal = Terminated: 15"], "by signal 15 (SIGTERM)", id="terminated"),
        pytest.param(["last terminating signal = Segmentation fault: 11"], "by signal 11 (SIGSEGV)", id="fault"),
        pytest.param(["last terminating signal = Odd: 99"], "it was ended by signal 99", id="unknown_signal"),
        pytest.param(["last exit reason = OS_REASON_CODESIGNING"], "the signature of its program", id="codesigning"),
        pytest.param(["last exit reason = OS_REASON_DYLD"], "a library that its program needs", id="dyld"),
        pytest.param(["last exit reason = OS_REASON_EXEC"], "could not be executed", id="exec"),
        pytest.param(["last exit reason = OS_REASON_TCC"], "needs your consent", id="tcc"),
        pytest.param(["last exit reason = OS_REASON_JETSAM"], "to free memory", id="jetsam"),
        pytest.param(["last exit reason = JETSAM_REASON_MEMORY_IDLE_EXIT"], "to free memory", id="jetsam_idle"),
        pytest.param(["last exit reason = OS_REASON_NEW"], "macOS ended it (OS_REASON_NEW)", id="unknown_reason"),
    ],
)
def test_every_way_to_end_is_reported(lines, words):
    """An exit code, a signal and each reason of the kernel's is reported in words, with launchd's own next to them."""
    state = read(printed("state = not running", *lines))
    assert words in state.ended
    assert not state.reason or state.reason in state.ended


@pytest.mark.parametrize(
    ("lines", "down"),
    [
        pytest.param(["state = running", "runs = 1"], False, id="running"),
        pytest.param(["state = xpcproxy", "runs = 1"], False, id="xpcproxy"),
        pytest.param(["state = not running", "runs = 0"], True, id="never_run"),
        pytest.param(["state = not running", "runs = 2", "last exit code = 0"], False, id="ended"),
        pytest.param(["state = not running", "runs = 0", "last exit code = 78: EX_CONFIG"], False, id="spawn_failed"),
        pytest.param(["state = not running", "last exit reason = OS_REASON_EXEC"], False, id="killed_at_exec"),
        pytest.param(["state = not running", "runs = 2", "pended nondemand spawn = inefficient"], True, id="held_back"),
        pytest.param(["state = not running", "runs = 2", "pended nondemand spawn = false"], False, id="not_pended"),
    ],
)
def test_left_down(lines, down):
    """A job is left down when launchd never tried it or holds its start back, and not when it runs or has ended."""
    assert read(printed(*lines)).left_down is down
    assert not JobState(loaded=False).left_down


def test_why_a_start_is_held_back_is_shown():
    """The state names launchd's reason to hold a start back."""
    held = read(printed("state = not running", "pended nondemand spawn = inefficient"))
    assert held.shown == "not running; launchd holds its start back: inefficient"
    assert read(printed("state = running")).shown == "running"


@pytest.mark.parametrize(
    ("services", "items", "expected"),
    [
        pytest.param('"x" => disabled', '"y" => disabled', True, id="disabled"),
        pytest.param('"x" => enabled', '"x" => disabled', False, id="login_item_of_that_name"),
        pytest.param("", '"x" => disabled', False, id="login_item_alone"),
    ],
)
def test_login_items_are_not_disabled_services(services, items, expected):
    """Only the list of disabled services says that an agent is disabled; that of login items is about applications."""
    text = f"\tdisabled services = {{\n\t\t{services}\n\t}}\n\tlogin item associations = {{\n\t\t{items}\n\t}}\n"
    assert is_disabled(text, "x") is expected
