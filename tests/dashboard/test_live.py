"""What goes on now is shown as the proxy says it, with the reason why each request waits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from proxy.dashboard.live import last_refusals, not_running, running, shown
from proxy.manage.machine.live_client import LiveError
from tests.dashboard.indexed import line
from tests.dashboard.served import NOW, model, state

if TYPE_CHECKING:
    from pathlib import Path

QUEUED = {"phase": "queue", "waited": 2.0, "events": 0, "first": None}


@pytest.mark.parametrize(
    ("requests", "models", "why", "behind"),
    [
        pytest.param([{}], (), None, [], id="streams"),
        pytest.param([{"phase": "wait"}], (), "Ollama reads the prompt", [], id="reads_the_prompt"),
        pytest.param([{"phase": "upload", "model": None}], (), "its body is still arriving", [], id="arrives"),
        pytest.param([{"phase": "connect"}], (), None, [], id="connects"),
        pytest.param(
            [{"phase": "load", "position": 1}],
            (model(state="loading", seconds=12.0),),
            "waits until its model is loaded, for 12 s so far",
            [],
            id="loads",
        ),
        pytest.param([QUEUED], (), "waits for its turn", [], id="about_to_go_on"),
        pytest.param(
            [{}, {**QUEUED, "position": 1}], (model(),), "waits for its turn behind 1 request", ["a0"], id="behind_one"
        ),
        pytest.param(
            [{}, {**QUEUED, "position": 2}, {**QUEUED, "position": 1}, {**QUEUED, "position": 3}],
            (model(),),
            "waits for its turn behind 3 requests",
            ["a0", "a2", "a1"],
            id="behind_several_in_the_order_of_the_queue",
        ),
        pytest.param(
            [{"model": "other"}, {**QUEUED, "position": 1}],
            (model(), model("registry.ollama.ai/library/other:latest", state="loading", seconds=1.0)),
            "waits for its turn while other:latest is loaded",
            [],
            id="while_another_is_loaded",
        ),
        pytest.param(
            [{"model": "other"}, {"model": "third"}, {**QUEUED, "position": 1}],
            (model("registry.ollama.ai/library/other:latest"),),
            "waits for its turn behind 2 requests, because its model isn't loaded",
            ["a0", "a1"],
            id="behind_all_others_if_its_model_is_not_loaded",
        ),
        pytest.param(
            [{"model": "TINY:latest"}, {"model": "other"}, {**QUEUED, "position": 1}],
            (model(),),
            "waits for its turn behind 1 request",
            ["a0"],
            id="same_model_in_another_spelling",
        ),
        pytest.param(
            [{}, {**QUEUED, "position": 1, "limit": "rule 2"}],
            (),
            "waits because of `max_active` of rule 2",
            ["a0"],
            id="limit_of_a_rule",
        ),
    ],
)
def test_why_it_waits(
    requests: list[dict[str, Any]], models: tuple[dict[str, Any], ...], why: str | None, behind: list[str]
) -> None:
    """The last of these requests waits for a load, for its turn, for the prompt, or for its own body."""
    asked = running(state(*requests, models=models), [])["requests"][-1]
    assert (asked["why"], asked["behind"]) == (why, behind)


def test_all_that_is_shown() -> None:
    """A request has what the socket says of it, and what `top` calls its phase."""
    (found,) = running(state({}), [])["requests"]
    assert found["first_token"] == 0.5
    assert found["state"] == "streams"
    assert {"id", "device", "model", "phase", "seconds", "position", "events", "held", "limit"} <= {*found}


@pytest.mark.parametrize(
    ("unloads", "found"),
    [
        (None, (None, False)),
        ("2026-11-23T20:05:00.123456789Z", ("2026-11-23T20:05:00.123456Z", False)),
        ("2026-11-23T21:05:00+01:00", ("2026-11-23T20:05:00Z", False)),
        ("2318-06-14T18:57:25.1Z", (None, True)),
        ("2026-11-23T20:05:00", (None, False)),
        ("soon", (None, False)),
    ],
    ids=["not_listed", "nanoseconds", "other_zone", "forever", "no_zone", "no_time"],
)
def test_when_a_model_unloads(unloads: str | None, found: tuple[str | None, bool]) -> None:
    """A model says when Ollama removes it from memory, or that it stays."""
    (shown_,) = running(state(models=(model(unloads=unloads),)), [])["models"]
    assert (shown_["name"], shown_["unloads"], shown_["kept"]) == ("tiny:latest", *found)


def test_no_proxy() -> None:
    """Without a proxy, the answer has the same parts, and says what to do."""
    found = not_running(LiveError("no proxy serves", "start it"), [], NOW)
    assert found["proxy"] == {"running": False, "why": "no proxy serves", "hint": "start it"}
    assert {*found} == {*running(state(), [])}


def test_last_refusals(tmp_path: Path) -> None:
    """The last refusals come from the end of the log and of the file before it, the newest first."""
    log = tmp_path / "access.log"
    refusal = {"verdict": "refused", "reason": "path_not_served"}
    log.with_name("access.log.1").write_bytes(line(id="old", **refusal) + line())
    log.write_bytes(line() + line(id="b", **refusal) + b"torn\n" + line(id="c", user_agent="\u202e<b>", **refusal))
    found = last_refusals(str(log))
    assert [each["id"] for each in found] == ["c", "b", "old"]
    assert found[0]["user_agent"] == "\\u202e<b>"
    assert last_refusals(None) == last_refusals(str(tmp_path / "none")) == []


def test_nothing_steers_a_reader() -> None:
    """Control characters and marks of direction are escaped wherever they are: in keys, in lists, in objects."""
    found = json.dumps(
        shown({"a\x1b": ["\u202e", {"b": "\x00"}], "c": 1, "d": None, "e": "ä 日本"}), ensure_ascii=False
    )
    assert found == '{"a\\\\x1b": ["\\\\u202e", {"b": "\\\\x00"}], "c": 1, "d": null, "e": "ä 日本"}'
