"""`make test-browser ARGS=--pictures`: write the pictures of the page to docs/dashboard/.

Requests, models and times come from a real proxy in front of the simulated Ollama. The log is made up, and so are the
names of devices and the findings of `status`, which are those of a Mac in a tailnet.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import random
import time
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect

from tests.dashboard.browser.stage import ROOT, refused, served
from tests.support.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Page, Route

    from tests.dashboard.browser.stage import Stage

pytestmark = pytest.mark.skipif(not os.environ.get("BROWSER_PICTURES"), reason="make test-browser ARGS=--pictures")

FOLDER = ROOT / "docs" / "dashboard"
MODELS = {"qwen3:8b": 5_200_000_000, "gpt-oss:20b": 13_800_000_000, "llama3.3:70b": 42_500_000_000}
PEOPLE = {
    "laptop": "alice@example.com",
    "macbook-air": "bob@example.com",
    "studio": "alice@example.com",
    "ipad": "alice@example.com",
    "build-server": None,
}
AGENTS = ("OpenAI/Python 3.54.0", "aider/0.86.1", "claude-cli/2.1.9", "Continue/1.4")
HOUR = 3600
FINDINGS = (
    ("listening", "pass", "100.101.102.103:11434", ""),
    ("tailscale", "pass", "connected as mac-studio.tail1234.ts.net", ""),
    ("ollama", "pass", "0.32.15 on 127.0.0.1:11434", ""),
    ("sleep", "warn", "this Mac sleeps after 10 minutes, and is out of reach then", "sudo pmset -c sleep 0"),
    ("access log", "pass", "access.log, 14 MB", ""),
)


def week(chance: random.Random) -> Iterator[dict[str, Any]]:
    """Yield the lines of a week: busy by day and in the evening, quiet at night."""
    now = time.time()
    for hours in range(7 * 24, -1, -1):
        of_day = time.gmtime(now - hours * HOUR).tm_hour
        busy = 4 + 26 * max(0.0, math.sin((of_day - 7) / 15 * math.pi)) if 7 <= of_day < 22 else 1.0
        for before in sorted((chance.uniform(0, HOUR) for _ in range(int(chance.gauss(busy, busy / 4)))), reverse=True):
            ago = hours * HOUR + before - HOUR
            if ago > 1:
                yield _line(chance, ago)


def _line(chance: random.Random, before: float) -> dict[str, Any]:
    known = 5 if before < 48 * HOUR else 4  # the build server is new
    device = chance.choices(list(PEOPLE)[:known], (9, 6, 4, 2, 1)[:known])[0]
    who = {"device": device, "user": PEOPLE[device], "peer": f"100.64.0.{len(device)}"}
    if chance.random() < 0.05:
        path, reason = chance.choice((("/api/pull", "path_not_served"), ("/v1/chat/completions", "origin_not_allowed")))
        return refused(before, **who, path=path, reason=reason, user_agent="Mozilla/5.0")
    tokens = int(chance.lognormvariate(5.3, 0.7))
    first = chance.lognormvariate(6.7, 0.7)
    waited = chance.lognormvariate(7.6, 0.8) if chance.random() < 0.18 else None
    speed = max(5.0, chance.gauss(48, 9))
    made = {
        "model": chance.choices(list(MODELS), (6, 3, 1))[0],
        "tokens_in": int(chance.lognormvariate(7.2, 0.8)),
        "tokens_out": tokens,
        "events": tokens,
        "first_byte_ms": round(first, 1),
        "total_ms": round(first + tokens / speed * 1000, 1),
        "user_agent": chance.choice(AGENTS),
    }
    if waited is not None:
        made["waited_ms"] = round(waited, 1)
    end = chance.random()
    if end < 0.03:
        made["ended"] = "downstream/content"
    elif end < 0.036:
        made |= {"ended": "upstream/content", "reason": "truncated"}
    elif end < 0.045:
        made["context_full"] = True
    return served(before, **who, **made)


def as_in_a_tailnet(page: Page) -> None:
    """Give the requests names of devices, and `status` what it finds on a Mac."""

    def live(route: Route) -> None:
        answer = route.fetch().json()
        for each, device in zip(answer["requests"], PEOPLE, strict=False):
            each |= {"device": device, "user": PEOPLE[device]}
        answer["proxy"]["started"] -= 19 * HOUR
        route.fulfill(json=answer)

    def status(route: Route) -> None:
        answer = route.fetch().json()
        keys = ("name", "outcome", "detail", "hint")
        answer["findings"] = [dict(zip(keys, each, strict=True)) for each in FINDINGS]
        answer["tailscale"] = {"outcome": "pass", "detail": FINDINGS[1][2]}
        for service in answer["services"]:
            service |= {"running": True, "version": "0.32.15" if service["name"] == "ollama" else None}
        route.fulfill(json=answer)

    page.route("**/api/live", live)
    page.route("**/api/status", status)


def pull(stage: Stage) -> None:
    """Have the simulated Ollama pull the models that the picture shows."""
    for model in MODELS:
        connection = http.client.HTTPConnection("127.0.0.1", stage.ollama_port, timeout=PATIENCE)
        connection.request("POST", "/api/pull", json.dumps({"model": model, "stream": False}))
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        connection.close()


@pytest.fixture
def busy(stage: Stage, context, browser) -> Iterator[Stage]:
    """Give a stage with a week's log, on which four requests go on."""
    stage.write(*week(random.Random(19)))
    registry = [f"{name}={size}" for name, size in MODELS.items()]
    options = [word for each in registry for word in ("--registry", each)]
    stage.start_ollama("--tokens-per-second", "46", "--load-seconds", "1", *options)
    pull(stage)
    stage.start_proxy()
    return stage


def test_pictures(busy: Stage, browser: Any) -> None:
    """Write the four pictures: now, the history in the dark, log lines, and a phone."""
    FOLDER.mkdir(exist_ok=True)
    link = busy.start_dashboard()
    wide = {"width": 1280, "height": 1240}
    light = browser.new_context(viewport=wide, color_scheme="light", timezone_id="UTC", reduced_motion="reduce")
    page = light.new_page()
    as_in_a_tailnet(page)
    page.goto(link)
    for model in ("qwen3:8b", "gpt-oss:20b"):  # once in memory together, they are used together
        busy.chat(model, tokens=3).ended()
    busy.chat("qwen3:8b", tokens=20_000)
    busy.chat("gpt-oss:20b", tokens=20_000)
    expect(page.locator("#requests .spark:not(.none)")).to_have_count(2)
    busy.chat("qwen3:8b")
    page.wait_for_timeout(50_000)  # nearly as long as a sparkline
    busy.chat("llama3.3:70b")
    assert busy.ask("POST", "/api/pull", User_Agent="ollama/0.32.15") == 403
    expect(page.locator("#requests tbody tr")).to_have_count(4)
    expect(page.locator("#models li")).to_have_count(2)
    page.mouse.move(0, 0)
    page.screenshot(path=FOLDER / "now.png")

    page.get_by_role("button", name="Log lines: laptop").first.click()
    lines = page.get_by_role("dialog").locator("tbody tr:not(.whole)")
    expect(lines).to_have_count(50)
    lines.nth(1).get_by_role("button").click()
    page.screenshot(path=FOLDER / "lines.png")
    page.keyboard.press("Escape")

    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 1280, "height": 1180})
    page.get_by_role("radio", name="Week").check()
    page.get_by_role("radio", name="model").first.check()
    page.locator("#history").evaluate("(node) => node.scrollIntoView()")
    page.wait_for_timeout(1500)
    page.locator("#requests-over-time .u-over").hover(position={"x": 330, "y": 60})
    page.screenshot(path=FOLDER / "history.png")
    page.unroute_all(behavior="ignoreErrors")
    light.close()

    small = {"width": 360, "height": 780}
    phone = browser.new_context(viewport=small, device_scale_factor=1.5, timezone_id="UTC", reduced_motion="reduce")
    page = phone.new_page()
    as_in_a_tailnet(page)
    page.goto(link)
    expect(page.locator("#requests tbody tr")).to_have_count(4)
    page.wait_for_timeout(12_000)
    page.screenshot(path=FOLDER / "phone.png")
    page.unroute_all(behavior="ignoreErrors")
    phone.close()
