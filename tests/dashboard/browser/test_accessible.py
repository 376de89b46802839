"""axe-core finds nothing wrong, whatever the page shows: its rules of WCAG 2 A and AA, and its best practices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.dashboard.browser.stage import served

if TYPE_CHECKING:
    from playwright.sync_api import Page

LOOKS = {"light and wide": ("light", 1280), "dark on a phone": ("dark", 360)}

pytestmark = pytest.mark.usefixtures("looks")


@pytest.fixture(params=LOOKS)
def looks(request, page) -> None:
    """Choose a colour scheme and a width."""
    scheme, width = LOOKS[request.param]
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.set_viewport_size({"width": width, "height": 800})


def violations(page: Page) -> list[str]:
    """Return what axe-core finds."""
    found = Axe().run(page).response["violations"]
    return [f"{each['id']}: {node['html'][:150]}" for each in found for node in each["nodes"]]


def test_in_use(full):
    """Requests, refusals, a filter, lists, and charts with their numbers open."""
    full.locator("#devices button.name").first.click()
    expect(full.locator("#filters .chip")).to_have_count(1)
    for summary in full.locator("summary").all():
        if summary.is_visible():
            summary.click()
    assert violations(full) == []


def test_no_proxy_and_no_log(stage, opened):
    """The page says what to do."""
    page = opened(stage)
    expect(page.locator("#notices")).to_contain_text("isn't running")
    expect(page.locator("#history-body .empty")).to_be_visible()
    assert violations(page) == []


def test_log_lines(full):
    """The dialog of log lines, with a whole line open."""
    full.get_by_role("button", name="Show the log lines of this view").click()
    dialog = full.get_by_role("dialog", name="Log lines")
    dialog.locator("tbody button").first.click()
    expect(dialog.locator("pre")).to_be_visible()
    assert violations(full) == []


def test_question(full):
    """The question before a request is cancelled."""
    full.get_by_role("button", name="Cancel the request of").first.click()
    expect(full.get_by_role("dialog")).to_be_visible()
    assert violations(full) == []


def test_without_the_link(stage, page, faults):
    """A page without its token."""
    page.goto(stage.start_dashboard().partition("#")[0])
    expect(page.get_by_role("heading", name="This page needs its link")).to_be_visible()
    assert violations(page) == []
    faults.clear()


def test_exported(stage, page):
    """An exported file."""
    stage.write(*(served(60 + number, device=f"device-{number}") for number in range(9)))
    page.goto(stage.export().as_uri())
    expect(page.locator("#devices tbody tr")).to_have_count(9)
    assert violations(page) == []


def test_a_fault_is_found(full):
    """A text that can hardly be read, and a choice without a name, are found: axe-core did look."""
    full.evaluate("document.querySelector('#reach').style.color = '#7a7a7a'")
    full.evaluate("document.querySelector('#periods label span').remove()")
    assert {each.partition(":")[0] for each in violations(full)} == {"color-contrast", "label"}
