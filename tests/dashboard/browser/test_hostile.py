"""Whatever a client sends as a name, a path or an agent is shown as text: live, in the history, in an exported file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

import proxy.dashboard
from tests.dashboard.browser.stage import refused, served

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

MARKUP = [
    "</script><script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 1">',
    "<svg onload=window.hacked=1><!--",
    "javascript:window.hacked=1",
    "{{constructor.constructor('window.hacked=1')()}}",
]
TURNED = "harmless\u202egnp.exe"
"""Reads from right to left after the mark, unless the mark is shown or kept in its place."""


SCRIPTS = (Path(proxy.dashboard.__file__).parent / "page" / "index.html").read_text().count("<script src=")


def assert_text_only(page: Page, inline: int = 0) -> None:
    """Fail if any markup of a client became an element, or any script of it ran."""
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, iframe, object, embed, base, body style, svg script").count() == 0
    assert page.locator("script:not([src]):not(#exported)").count() == inline
    assert page.locator("a[href^=javascript]").count() == 0


@pytest.mark.parametrize("text", MARKUP)
def test_refusals(serving, opened, text):
    """The path and the agent of a refused request are texts."""
    page = opened(serving)
    assert serving.ask("POST", "/" + text.replace(" ", "")) in {400, 403}
    assert serving.ask("POST", "/api/pull", User_Agent=text) == 403
    expect(page.locator("#refused li").first.locator(".clip")).to_have_text(text)
    assert_text_only(page)


@pytest.mark.parametrize("text", [*MARKUP, TURNED])
def test_requests(serving, page, text):
    """Every text about a request in progress and about a model is a text, whatever the proxy says."""

    def changed(value: object) -> object:
        if isinstance(value, dict):
            kept = {"id", "phase", "time", "outcome"}
            return {name: each if name in kept else changed(each) for name, each in value.items()}
        return (
            [changed(each) for each in value] if isinstance(value, list) else text if isinstance(value, str) else value
        )

    def answer(route: Route) -> None:
        route.fulfill(json=changed(route.fetch().json()))

    page.route("**/api/live", answer)
    page.route("**/api/status", answer)
    serving.chat("tiny")
    page.goto(serving.start_dashboard())
    expect(page.locator("#requests tbody .who")).to_contain_text(text)
    expect(page.locator("#models li").first).to_contain_text(text)
    expect(page.locator("#findings li").first).to_be_attached()
    page.get_by_role("button", name="Cancel the request of").click()
    expect(page.get_by_role("dialog")).to_contain_text(text)
    assert_text_only(page)


@pytest.mark.parametrize("text", [*MARKUP, TURNED])
def test_history_and_lines(stage, opened, text):
    """In the history, its filters, its charts and the log lines they are texts too."""
    stage.write(
        served(60, device=text, user=text, model=text, user_agent=text),
        served(50, device=text, model=text, context_full=True, ended="downstream/content", reason=text),
        refused(40, device=text, path=f"/{text}", user_agent=text, reason=text),
    )
    page = opened(stage)
    expect(page.locator("#devices tbody tr")).to_have_count(1)
    for summary in page.locator(".numbers summary").all():
        if summary.is_visible():
            summary.click()
    page.locator("#requests-over-time .chart").focus()
    page.keyboard.press("End")
    page.locator("#devices button.name").first.click()
    expect(page.locator("#filters .chip")).to_have_count(1)
    page.locator("#devices tbody").get_by_role("button", name="Log lines").click()
    lines = page.get_by_role("dialog").locator("tbody tr:not(.whole)")
    expect(lines).to_have_count(3)
    for line in lines.all():
        line.get_by_role("button").click()
    expect(page.get_by_role("dialog").locator("pre").first).to_contain_text("user_agent")
    assert_text_only(page)


@pytest.mark.parametrize("text", MARKUP)
def test_exported(stage, page, text):
    """In an exported file, which is opened without a server, they are texts as well."""
    stage.write(served(60, device=text, model=text, user_agent=text), refused(40, device=text, reason=text))
    page.goto(stage.export().as_uri())
    expect(page.locator("#devices tbody")).to_contain_text(text)
    expect(page.locator("#used-models tbody")).to_contain_text(text)
    page.locator("#devices button.name").first.click()
    expect(page.locator("#filters .chip")).to_contain_text(text)
    expect(page.locator("#devices tbody")).to_contain_text(text)
    assert_text_only(page, inline=SCRIPTS)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param({"device": 5, "model": ["a"], "status": "x", "tokens_in": "many"}, id="other types"),
        pytest.param({"device": None, "model": None, "path": None, "user_agent": {"a": "<b>"}}, id="nothing"),
        pytest.param({"first_byte_ms": -1, "total_ms": 1e300, "tokens_out": 10**15}, id="odd numbers"),
        pytest.param({"device": "x" * 5000, "model": "y" * 5000}, id="long"),
    ],
)
def test_lines_of_other_shapes(stage, opened, line):
    """A line whose values have other types than the proxy writes is counted or left out, and never breaks the page."""
    stage.write(served(60, **line), served(50, device="laptop"))
    page = opened(stage)
    expect(page.locator("#devices tbody")).to_contain_text("laptop")
    page.get_by_role("button", name="Show the log lines of this view").click()
    expect(page.get_by_role("dialog").locator("tbody tr:not(.whole)").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
