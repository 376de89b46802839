"""What goes on now is on the page a second later, and can be stopped there."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.dashboard.browser.stage import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Locator, Page, Route

    from tests.dashboard.browser.stage import Stage

    Opened = Callable[[Stage], Page]


def rows(page: Page) -> Locator:
    """Return the rows of requests in progress."""
    return page.locator("#requests tbody tr")


@pytest.fixture
def live(serving: Stage, opened: Opened) -> Page:
    """Give the page of a proxy that does nothing yet."""
    page = opened(serving)
    expect(page.locator("#states")).to_contain_text("Proxy")
    expect(page.get_by_text("No request is in progress")).to_be_visible()
    return page


def test_a_request_comes_and_goes(live, serving):
    """A stream appears with model, state, first token and speed, and is gone when its client has left."""
    client = serving.chat("tiny", User_Agent="aider")
    row = rows(live)
    expect(row).to_contain_text("tiny")
    expect(row).to_contain_text("streams")
    expect(row).to_contain_text("first token after")
    expect(row.locator(".speed")).to_contain_text("tok/s")
    until(lambda: len((row.locator("polyline").get_attribute("points") or "").split()) >= 3, live.wait_for_timeout)
    client.leave()
    expect(rows(live)).to_have_count(0)
    expect(live.get_by_text("No request is in progress")).to_be_visible()


def test_who_waits_behind_whom(live, serving):
    """A request that waits says why and behind which other; the pointer on it marks that one's row."""
    serving.chat("tiny")
    expect(rows(live)).to_have_count(1)
    serving.chat("tiny")
    expect(rows(live)).to_have_count(2)
    second = rows(live).nth(1)
    expect(second).to_contain_text("waits for its turn behind 127.0.0.1")
    second.hover()
    expect(rows(live).first).to_have_class("ahead")


def test_many_requests(live, serving):
    """The page says how many requests there are and how many wait, and their list isn't higher than a window."""

    def many(route: Route) -> None:
        answer = route.fetch().json()
        kinds = ("content", "content", "queue")
        copies = [
            {**each, "id": f"{number}", "phase": kinds[number % 3]}
            for number in range(42)
            for each in answer["requests"]
        ]
        route.fulfill(json={**answer, "requests": copies})

    serving.chat("tiny")
    expect(live.locator("#requests-count")).to_have_text("1 in all")
    live.set_viewport_size({"width": 360, "height": 700})
    live.route("**/api/live", many)
    expect(live.locator("#requests-count")).to_have_text("42 in all, 14 waiting")
    assert live.locator("#requests").bounding_box()["height"] < 700


def test_a_model_in_memory(live, serving):
    """A loaded model appears with its size, its context and the time until it unloads."""
    expect(live.get_by_text("No model is in memory")).to_be_visible()
    serving.chat("tiny")
    model = live.locator("#models li").first
    expect(model).to_contain_text("tiny")
    expect(model).to_contain_text("loaded")
    expect(model).to_contain_text("1 running")


def test_a_refusal_appears_and_is_announced(live, serving):
    """A refusal is listed a moment later, and a screen reader hears it. A click filters the history by its rule."""
    expect(live.get_by_text("Nothing was refused")).to_be_visible()
    assert serving.ask("POST", "/api/pull") == 403
    refusal = live.locator("#refused li").first
    expect(refusal).to_contain_text("POST /api/pull")
    expect(refusal).to_contain_text("path_not_served")
    expect(live.get_by_role("status").filter(has_text="Refused: POST /api/pull")).to_have_count(1)
    refusal.get_by_role("button", name="path_not_served").click()
    expect(live.locator("#filters")).to_contain_text("path_not_served")


def test_cancel_asks_first(live, serving):
    """The question names device and model. Without a yes the request goes on."""
    serving.chat("tiny")
    live.get_by_role("button", name="Cancel the request of 127.0.0.1 for tiny").click()
    dialog = live.get_by_role("dialog")
    expect(dialog).to_contain_text("127.0.0.1 for tiny")
    expect(dialog.get_by_role("button", name="Keep it")).to_be_focused()
    live.keyboard.press("Enter")
    expect(dialog).to_have_count(0)
    expect(rows(live)).to_have_count(1)


def test_cancel_ends_the_request(live, serving):
    """After a yes the request ends, its client gets an error, and the page says that it was cancelled."""
    client = serving.chat("tiny")
    live.get_by_role("button", name="Cancel the request of").click()
    live.get_by_role("dialog").get_by_role("button", name="Cancel the request").click()
    expect(live.get_by_role("status").filter(has_text="Cancelled the request of 127.0.0.1 for tiny")).to_have_count(1)
    expect(rows(live)).to_have_count(0)
    assert b"[DONE]" not in client.ended()


def test_requests_with_the_same_id(live, serving):
    """A client that gives its requests the same id hides none of them, and the question says how many end."""
    for _ in range(3):
        serving.chat("tiny", X_Request_Id="same")
    expect(rows(live)).to_have_count(3)
    rows(live).nth(1).get_by_role("button", name="Cancel the request of").click()
    expect(live.get_by_role("dialog")).to_contain_text("3 requests have the id same. All of them end.")
    live.get_by_role("dialog").get_by_role("button", name="Cancel the request").click()
    expect(live.get_by_role("status").filter(has_text="3 requests had its id, and all of them ended.")).to_have_count(1)
    expect(rows(live)).to_have_count(0)


def test_the_three_states(live, serving):
    """The header has Tailscale, Ollama and the proxy, each with words; the findings are those of `status`."""
    for name in ("Tailscale", "Ollama", "Proxy"):
        state = live.locator("#states li").filter(has_text=name)
        expect(state).not_to_contain_text("looking")
        expect(state.locator(".detail")).not_to_be_empty()
    expect(live.locator("#findings li").first).to_be_attached()


def test_findings_come_after_the_history(stage, page):
    """Looking for findings takes the dashboard's time, so the page asks for them once it has the history."""
    order: list[str] = []
    page.on("requestfinished", lambda request: order.append("has history") if "/api/history" in request.url else None)
    page.on("request", lambda request: order.append("asks for findings") if "/api/status" in request.url else None)
    page.goto(stage.start_dashboard())
    expect(page.locator("#findings li").first).to_be_attached()
    assert order[:2] == ["has history", "asks for findings"]


def test_the_proxy_restarts_while_the_page_is_open(live, serving):
    """The page says that the proxy isn't running and what to do, and goes on by itself when it is back."""
    serving.end("proxy")
    expect(live.locator("#notices")).to_contain_text("The proxy isn't running")
    expect(live.locator("#notices code")).to_contain_text("status")
    expect(live.locator("#states li.fail").filter(has_text="Proxy")).to_contain_text("not running")
    expect(live.locator("#models")).to_contain_text("Not known while the proxy isn't running")
    expect(live.get_by_text("The next request loads one")).to_be_hidden()
    serving.start_proxy()
    expect(live.locator("#notices")).to_be_empty()
    serving.chat("tiny")
    expect(rows(live)).to_have_count(1)


def test_the_dashboard_ends_while_the_page_is_open(live, serving, faults):
    """The page says that the dashboard has ended, and how to start it again. Ctrl-C ends it with exit code 0."""
    assert serving.end("dashboard", signal.SIGINT) == 0
    expect(live.get_by_role("alert")).to_contain_text("The dashboard has ended")
    expect(live.get_by_role("alert").locator("code")).to_have_text("remote-ollama-proxy dashboard")
    assert all("ERR_CONNECTION_REFUSED" in fault for fault in faults)
    faults.clear()
    live.close()
    faults.clear()


def test_a_hidden_tab_asks_nothing(live):
    """Nobody looks at a hidden tab, so it doesn't ask; it does as soon as it is seen."""
    asked: list[str] = []
    live.evaluate(
        """() => {
          Object.defineProperty(document, "hidden", {configurable: true, get: () => window.away});
          window.away = true;
          document.dispatchEvent(new Event("visibilitychange"));
        }"""
    )
    expect(live.locator("#pulse")).to_have_text("paused")
    live.wait_for_timeout(1500)  # what was under way when it was hidden
    live.on("request", lambda request: asked.append(request.url))
    live.wait_for_timeout(2500)
    assert asked == []
    live.evaluate("() => { window.away = false; document.dispatchEvent(new Event('visibilitychange')); }")
    until(lambda: any(url.endswith("/api/live") for url in asked), live.wait_for_timeout)
    expect(live.locator("#pulse")).to_have_text("live")
