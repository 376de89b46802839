"""Proxy: what is seen of its binding and its settings, and of the lines that requests leave."""

from __future__ import annotations

import pytest

from proxy.logs.audit import KEYS
from proxy.logs.logfile import json_line
from proxy.manage.findings import addresses, files, settings
from proxy.manage.machine.launchd import PROXY
from proxy.manage.verify import access_log
from proxy.terminal.finding import Outcome
from tests.support.mac.installed_mac import ADDRESS, ADDRESS6, LAN, PIDS, PORT, RUN, assert_told, case, wrong

FEW = {"NumberOfFiles": 256}

SETTINGS = (
    settings.readable,
    settings.effective,
    settings.null_origin,
    settings.descriptors,
    files.writable_logs,
)

CASES = (
    case(
        "binds_a_wildcard",
        lambda mac: mac.listens(proxy=[("*", PORT)]),
        addresses.binding,
        ("binding", "fail", "it listens on every address of this machine"),
        f"{RUN} restart proxy",
    ),
    case(
        "binds_too_little",
        lambda mac: mac.listens(proxy=[(ADDRESS, PORT)]),
        addresses.binding,
        ("binding", "fail", f"it doesn't listen on {ADDRESS6}, port"),
        f"{RUN} logs --diagnostics",
    ),
    case(
        "binds_too_much",
        lambda mac: mac.listens(proxy=[(ADDRESS, PORT), (ADDRESS6, PORT), (LAN, PORT)]),
        addresses.binding,
        ("binding", "fail", f"it listens on {LAN} too"),
        f"{RUN} restart proxy",
    ),
    case(
        "wrong_settings",
        lambda mac: mac.settings('max_body = "12XB"'),
        SETTINGS,
        ("settings", "fail", 'max_body = "12XB"'),
        f"{RUN} --check",
    ),
    case(
        "odd_settings",
        lambda mac: mac.variable(PROXY, "PROXY_MAXBODY", "1MiB"),
        SETTINGS,
        ("environment", "warn", "PROXY_MAXBODY sets nothing"),
        f"{RUN} --help",
    ),
    case(
        "few_files",
        lambda mac: mac.edit(PROXY, HardResourceLimits=FEW, SoftResourceLimits=FEW),
        SETTINGS,
        ("descriptors", "warn", "only 96 connections instead of 4096"),
        "ulimit -Hn 8256",
    ),
    case(
        "not_read_again",
        lambda mac: mac.settings("", seconds=60),
        settings.reload,
        ("reload", "warn", "was changed since the proxy read it"),
        f"{RUN} --check && kill -HUP {PIDS['proxy']}",
    ),
    case(
        "reload_refused",
        lambda mac: (mac.settings("", seconds=60), mac.event("reload_refused", 61, problem="port = 0")),
        settings.reload,
        ("reload", "warn", "the last one was refused: port = 0"),
        f"{RUN} --check",
    ),
    case(
        "needs_a_restart",
        lambda mac: (
            mac.settings("", seconds=60),
            mac.event("reload_needs_restart", 61, options="port"),
            mac.event("reloaded", 61),
        ),
        settings.reload,
        ("reload", "warn", "changes of port wait for a restart"),
        f"{RUN} restart proxy",
    ),
)


@pytest.mark.parametrize(("change", "check", "finding", "hint"), CASES)
def test_one_thing_is_wrong(installed, change, check, finding, hint):
    """Each fault has one finding, with a command that helps."""
    assert_told(installed, change, check, finding, hint)


def test_reload_that_came_after(installed):
    """A settings file that was read again after its change is no news, even after a refused attempt."""
    installed.settings("", seconds=60)
    installed.event("reload_needs_restart", 50, options="port")
    installed.event("reloaded", 50)
    installed.event("reload_refused", 61, problem="port = 0")
    installed.event("reloaded", 62)
    assert wrong(installed.found(settings.reload)) == []


def test_reloads_of_an_earlier_process(installed):
    """The settings that an earlier process logged don't count."""
    installed.event("reload_refused", -600, problem="port = 0")
    assert wrong(installed.found(settings.reload)) == []


def test_wildcard_that_was_asked_for(installed):
    """A proxy whose settings allow every address may listen there, and is found by its port."""
    installed.settings('listen = ["0.0.0.0"]\nport = 8080\nallow_any_address = true')
    installed.listens(proxy=[("*", 8080)])
    assert wrong(installed.found(addresses.binding)) == []


def test_null_among_the_origins(installed):
    """`verify` warns of what any web page can use."""
    installed.settings('allowed_origins = ["null"]')
    (finding,) = wrong(installed.found(*SETTINGS))
    assert finding[:2] == ("allowed_origins", "warn")


def test_allowlist_tells_what_was_opened(installed):
    """Rows that the owner opened are named."""
    installed.settings('allow = ["POST /api/chat"]')
    (finding,) = installed.found(settings.allowlist)
    assert finding.detail == "9 rows, of which `allow` opened POST /api/chat"


# --- the access log, after the questions ------------------------------------------------------------------------------


def entry(own, **more):
    return {"time": "2026-11-23T20:00:00.123Z", "id": own, "path": "/v1/models", "status": 200, **more}


def looked(mac, *ids):
    """Return what is wrong with the access log at once, as (name, outcome, detail, hint)."""
    return wrong(access_log.access_log(mac.seen_as().settings.access_log, ids, seconds=0))


def test_each_request_has_a_line(installed):
    """One line for each request is well, wherever a rotation came between; lines of others don't matter."""
    installed.put(installed.logs / "access.log.1", json_line(entry("a1")).decode())
    installed.lines(entry("other"), entry("other"), entry("a2", **dict.fromkeys(KEYS[5:], "x")), {"audit_gap": 3})
    found = access_log.access_log(installed.seen_as().settings.access_log, ["a1", "a2"])
    assert [(finding.name, finding.outcome) for finding in found] == [
        ("access log", Outcome.PASS),
        ("access log keys", Outcome.PASS),
    ]


def test_line_that_comes_late(installed, monkeypatch):
    """A line may come a moment after the answer."""
    monkeypatch.setattr(access_log.time, "sleep", lambda _: installed.lines(entry("a1")))
    assert wrong(access_log.access_log(installed.seen_as().settings.access_log, ["a1"])) == []


def test_line_that_is_missing(installed):
    """A request without a line is named by its id."""
    installed.lines(entry("a1"))
    log = installed.logs / "access.log"
    detail = f"1 of 2 requests have no line in {log}, as a2"
    assert looked(installed, "a1", "a2") == [("access log", Outcome.FAIL, detail, f"{RUN} logs --diagnostics")]


def test_log_that_is_not_there(installed):
    """Where there is no log at all, other settings are the likely reason."""
    (installed.logs / "access.log").unlink()
    ((_, _, detail, _),) = looked(installed, "a1")
    assert detail.endswith("there is no such file: was the proxy started with other settings?")


def test_request_with_two_lines(installed):
    """A request with two lines is named by its id."""
    installed.lines(entry("a1"), entry("a1"))
    log = installed.logs / "access.log"
    detail = f"1 of 1 requests have more than one line in {log}, as a1"
    assert looked(installed, "a1") == [("access log", Outcome.FAIL, detail, f"grep a1 '{log}'")]


def test_line_with_more_than_promised(installed):
    """A line that holds what isn't promised is wrong."""
    installed.lines(entry("a1", query="x", prompt="y"))
    detail = "lines have keys that aren't documented: prompt, query"
    hint = f"{RUN} logs --json --no-follow"
    assert looked(installed, "a1") == [("access log keys", Outcome.FAIL, detail, hint)]


def test_id_within_a_text_of_the_clients(installed):
    """An id that a client writes into a text of its own isn't the line's."""
    installed.lines(entry("a1", user_agent='","id":"a2"'))
    ((_, _, detail, _),) = looked(installed, "a2")
    assert "have no line" in detail


def test_only_the_end_of_the_log_is_searched(installed, monkeypatch):
    """A log of many megabytes isn't read whole, and the half line at its beginning is left out."""
    monkeypatch.setattr(access_log, "_LOG_TAIL", 200)
    installed.lines(entry("a1"), *(entry("other", user_agent="x" * 60) for _ in range(3)), entry("a2"))
    ((_, _, detail, _),) = looked(installed, "a1", "a2")
    assert detail.endswith("as a1")


@pytest.mark.parametrize(
    ("log", "ids", "detail"),
    [("-", ["a1"], "it goes to standard output, which can't be read here"), (None, [], "no request was answered")],
)
def test_nothing_to_look_for(installed, log, ids, detail):
    """A log on standard output, or no request, leaves nothing to look for, which is said."""
    if log:
        installed.variable(PROXY, "PROXY_ACCESS_LOG", log)
    ((_, outcome, told, _),) = looked(installed, *ids)
    assert outcome is Outcome.SKIP
    assert detail in told
