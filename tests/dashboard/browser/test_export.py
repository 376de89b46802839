"""An exported file shows the history without a server, and asks for nothing."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.dashboard.browser.stage import refused, served


@pytest.fixture
def exported(stage, page, faults):
    """Give the page of an exported file, and the addresses that it asked for."""
    stage.write(
        *(served(60 + number, device="laptop") for number in range(3)),
        served(50, device="tablet", model="tiny"),
        refused(40, device="tablet"),
    )
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(stage.export().as_uri())
    expect(page.locator("#devices tbody tr")).to_have_count(2)
    return page


def test_it_shows_the_history_only(exported):
    """History and when it was made are there. What goes on now, log lines and states aren't."""
    expect(exported.locator("#reach")).to_contain_text("This file was made")
    expect(exported.locator("#now")).to_be_hidden()
    expect(exported.locator("#states li")).to_have_count(0)
    expect(exported.get_by_text("lines", exact=True)).to_have_count(0)
    expect(exported.locator(".tiles .tile-value").first).to_have_text("5")


def test_it_asks_for_nothing(exported):
    """The file is all that is loaded."""
    exported.wait_for_timeout(1500)
    assert [url for url in exported.asked if not url.startswith("file://")] == []
    assert len(exported.asked) == 1


def test_it_filters(exported):
    """Periods and single filters work in the file."""
    exported.get_by_role("radio", name="All").check()
    exported.locator("#devices").get_by_role("button", name="tablet", exact=True).click()
    expect(exported.locator(".tiles .tile-value").first).to_have_text("2")
    exported.locator("#filters .chip").click()
    expect(exported.locator(".tiles .tile-value").first).to_have_text("5")


def test_it_says_which_views_it_lacks(exported):
    """For two filters at once the page names the command that has every view."""
    exported.locator("#devices").get_by_role("button", name="tablet", exact=True).click()
    expect(exported.locator("#devices tbody tr")).to_have_count(1)
    exported.locator("#used-models").get_by_role("button", name="tiny", exact=True).click()
    expect(exported.locator("#history-body")).to_contain_text("This file doesn't have that view")
    expect(exported.locator("#history-body code")).to_have_text("remote-ollama-proxy dashboard")
    exported.get_by_role("button", name="Remove the filters").click()
    expect(exported.locator("#devices tbody tr")).to_have_count(2)
