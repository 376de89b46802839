"""What a running proxy is doing, in words: what `status` shows, and what a stop or a restart would lose."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.manage.machine.at_work import duration, lost, shown

WAITS = {"phase": "queue", "device": "laptop", "peer": "100.64.0.7"}
COMES = {"phase": "upload", "device": None, "peer": "100.64.0.8"}
LOADS = {"phase": "load", "device": "phone", "peer": "100.64.0.9"}
READS = {"phase": "wait", "device": "desk", "peer": "100.64.0.5"}
STREAMS = {"phase": "content", "device": "tablet", "peer": "100.64.0.6"}
LOADING = {"name": "registry.ollama.ai/library/qwen3:8b", "state": "loading", "seconds": 200.0}
LOADED = {"name": "registry.ollama.ai/library/tiny:latest", "state": "loaded", "seconds": None}

CUT = "1 answer (tablet): cut"
LATE = f"{CUT}, unless complete within `drain_timeout`"
TURNED_AWAY = "1 waiting request (laptop): answered with an error"
LOAD = "the load of qwen3:8b, after 3 min 20 s"


def state(*exchanges: dict[str, Any], models: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    """Return what the socket shows."""
    totals = {"counters": {"requests": 41, "waited": 7}, "now": 4000.0, "started": 400.0}
    return {"exchanges": list(exchanges), "models": list(models), **totals}


@pytest.mark.parametrize(
    ("names", "now", "expected"),
    [
        pytest.param(["proxy"], False, [TURNED_AWAY, LOAD, LATE], id="proxy"),
        pytest.param(["proxy"], True, [TURNED_AWAY, LOAD, CUT], id="proxy_now"),
        pytest.param(["ollama", "proxy"], False, [TURNED_AWAY, LOAD, LATE], id="both_end_the_proxy_first"),
        pytest.param(["ollama", "proxy"], True, [TURNED_AWAY, LOAD, CUT], id="both_now"),
        pytest.param(["ollama"], False, [LOAD, CUT], id="ollama_alone_leaves_those_who_wait"),
    ],
)
def test_what_is_lost(names: list[str], now: bool, expected: list[str]) -> None:
    """A stop says who waits, which load ends, and which answers are cut, at once or at the end of their time."""
    assert lost(state(WAITS, STREAMS, models=(LOADING, LOADED)), names, now=now) == expected


@pytest.mark.parametrize("quiet", [pytest.param({}, id="no_state"), pytest.param(state(models=(LOADED,)), id="idle")])
def test_nothing_is_lost(quiet: dict[str, Any]) -> None:
    """A proxy that is idle or doesn't show its state loses nothing that is known."""
    assert lost(quiet, ["proxy", "ollama"], now=True) == []


def test_clients_are_counted_and_named() -> None:
    """Each client is named once, three at most, and none of them can control the terminal."""
    others = [{**WAITS, "device": f"device{number}"} for number in range(4)]
    evil = {**LOADS, "device": "a\x1b[2Jb"}
    (line,) = lost(state(evil, evil, COMES, *others), ["proxy"], now=False)
    assert line.startswith("7 waiting requests (a\\x1b[2Jb, 100.64.0.8, device0 and 3 more): ")


def test_shown() -> None:
    """`status` shows in two lines how many requests run and wait, and which model is being loaded."""
    assert list(shown(state(WAITS, COMES, LOADS, READS, STREAMS, models=(LOADING, LOADED)))) == [
        ("requests", "2 with Ollama, 3 waiting; 41 for a model in 1 h, 7 waited"),
        ("loading", "qwen3:8b, after 3 min 20 s"),
    ]
    assert list(shown({})) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (59.9, "59 s"), (60, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (273600, "3 d 4 h")],
)
def test_duration(seconds: float, text: str) -> None:
    """A time is shown with its two largest units."""
    assert duration(seconds) == text


def test_limits_that_hold_requests_up_are_named() -> None:
    """`status` says how many requests wait for the `max_active` of which rule."""
    held = {**WAITS, "limit": "rule 2 of `access`"}
    found = [value for name, value in shown(state(held, held, WAITS, STREAMS)) if name == "waiting"]
    assert found == ["2 for `max_active` of rule 2 of `access`"]
