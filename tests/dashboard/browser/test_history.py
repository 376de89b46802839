"""The history shows one period of the log, filtered by what is clicked."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.dashboard.browser.stage import refused, served

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Locator, Page

    from tests.dashboard.browser.stage import Stage

    Opened = Callable[[Stage], Page]

MINUTE, HOUR, DAY = 60, 3600, 86400
TABLET, LAPTOP = {"device": "tablet", "user": "bob@example.com"}, {"device": "laptop", "user": "alice@example.com"}

LOG = [
    served(30 * DAY, **LAPTOP),
    served(3 * DAY, **LAPTOP),
    served(3 * DAY, **TABLET, model="tiny"),
    served(5 * HOUR, **LAPTOP, context_full=True),
    refused(4 * HOUR, **TABLET),
    served(3 * HOUR, **LAPTOP, ended="downstream/content"),
    served(20 * MINUTE, **TABLET),
    refused(10 * MINUTE, **TABLET, reason="origin_not_allowed"),
    served(5 * MINUTE, **LAPTOP, model="tiny", waited_ms=2500.0),
]


def total(page: Page, title: str = "Requests") -> Locator:
    """Return the number in a tile of the totals."""
    tile = page.locator(".tiles li").filter(has=page.locator(".tile-title", has_text=re.compile(f"^{title}")))
    return tile.locator(".tile-value")


def chips(page: Page) -> Locator:
    """Return the filters, as they can be removed."""
    return page.locator("#filters .chip")


def choose(page: Page, period: str) -> None:
    """Choose a period."""
    page.locator("#periods").get_by_role("radio", name=period).check()


@pytest.fixture
def past(stage: Stage, opened: Opened) -> Page:
    """Give the page of a log with nine lines, of which no proxy writes more."""
    stage.write(*LOG)
    page = opened(stage)
    expect(total(page)).to_have_text("6")
    return page


@pytest.mark.parametrize(("period", "requests"), [("Hour", "3"), ("Day", "6"), ("Week", "8"), ("All", "9")])
def test_a_period_counts_its_lines(past, period, requests):
    """Each period counts the lines since it began."""
    choose(past, period)
    expect(total(past)).to_have_text(requests)


@pytest.mark.parametrize(
    ("card", "name", "chip", "requests"),
    [
        pytest.param("devices", "tablet", "device tablet", "3", id="device"),
        pytest.param("used-models", "tiny", "model tiny", "1", id="model"),
        pytest.param("refusals", "path_not_served", "rule path_not_served", "1", id="refusal"),
        pytest.param("ended", "downstream/content", "ended by downstream/content", "1", id="end"),
        pytest.param("requests-over-time", "laptop", "device laptop", "3", id="legend"),
    ],
)
def test_a_click_on_a_name_filters_everything(past, card, name, chip, requests):
    """After the click all numbers obey the filter, and a chip shows it. Without the chip everything is back."""
    past.locator(f"#{card}").get_by_role("button", name=name, exact=False).first.click()
    expect(total(past)).to_have_text(requests)
    expect(chips(past)).to_have_count(1)
    past.get_by_role("button", name=f"Remove the filter {chip}").click()
    expect(total(past)).to_have_text("6")
    expect(chips(past)).to_have_count(0)


def test_filters_add_up(past):
    """A second filter narrows the first, and one button removes both."""
    past.locator("#devices").get_by_role("button", name="laptop", exact=True).click()
    expect(total(past)).to_have_text("3")
    past.locator("#used-models").get_by_role("button", name="tiny", exact=True).click()
    expect(total(past)).to_have_text("1")
    past.get_by_role("button", name="Remove all").click()
    expect(total(past)).to_have_text("6")


def test_tiles_filter_too(past):
    """The totals of refusals and full contexts show only these when they are clicked."""
    past.locator("button.tile").filter(has_text="Full contexts").click()
    expect(total(past)).to_have_text("1")
    past.get_by_role("button", name="Remove the filter full contexts").click()
    past.locator("button.tile").filter(has_text="Refused").click()
    expect(total(past)).to_have_text("2")


def test_a_reload_keeps_period_and_filters(past):
    """Period and filters stand in the address, so a reload keeps them, and Back leads to the view before."""
    choose(past, "Week")
    past.locator("#devices").get_by_role("button", name="tablet", exact=True).click()
    expect(total(past)).to_have_text("4")
    past.reload()
    expect(total(past)).to_have_text("4")
    expect(chips(past)).to_have_count(1)
    past.go_back()
    expect(total(past)).to_have_text("8")
    expect(chips(past)).to_have_count(0)


def test_every_chart_has_its_numbers(past):
    """The table under a chart adds up to the total above it."""
    charts = past.locator(".card:has(.chart)")
    expect(charts).to_have_count(5)
    for at in range(charts.count()):
        card = charts.nth(at)
        card.locator("summary").click()
        if card.locator(".chart").is_visible():
            expect(card.locator("tbody tr").first).to_be_visible()
    numbers = past.locator("#requests-over-time tbody td.number").all_text_contents()
    assert sum(map(int, numbers)) == 6


@pytest.mark.parametrize("by", ["device", "model", "outcome"])
def test_requests_by_device_model_or_outcome(past, by):
    """The chart over time stacks what is chosen, and its legend names it."""
    card = past.locator("#requests-over-time")
    card.get_by_role("radio", name=by).check()
    names = {"device": "tablet", "model": "qwen3:8b", "outcome": "refused"}
    expect(card.locator(".legend")).to_contain_text(names[by])
    expect(card.locator(".chart")).to_have_attribute("aria-label", re.compile(f"by {by}"))


def test_a_week_fits_a_phone(past):
    """Where there is no room for a bar an hour, several hours are one bar, and no request is lost."""
    past.set_viewport_size({"width": 360, "height": 780})
    choose(past, "Week")
    expect(total(past)).to_have_text("8")
    card = past.locator("#requests-over-time")
    card.locator(".chart").focus()
    past.keyboard.press("Home")
    read: dict[str, int] = {}
    for _ in range(200):
        title, _, values = card.locator("[aria-live]").inner_text().partition(": ")
        if title in read:
            break
        read[title] = sum(map(int, re.findall(r" (\d+)(?:,|$)", values)))
        past.keyboard.press("ArrowRight")
    assert sum(read.values()) == 8
    assert 20 < len(read) < 60


SELDOM = {"egress": {"egress": True}, "dropped": {"dropped": ["keep_alive", "num_ctx"]}}
LISTS = ("devices", "used-models", "refusals", "ended", "first-seen", "full-contexts", "egress", "denied", "dropped")


@pytest.mark.parametrize("card", ["egress", "denied", "dropped"])
def test_lists_that_are_seldom_needed(past, card):
    """What only access rules and native requests lead to has no list without such a line."""
    expect(past.locator(f"#{card}")).to_be_hidden()


@pytest.mark.parametrize("card", LISTS)
def test_every_list_leads_to_its_lines(stage, opened, card):
    """Each row of each list opens as many lines of the log as it counts."""
    stage.write(
        *(served(500 + number, **LAPTOP, **each) for each in SELDOM.values() for number in range(3)),
        *(served(400 + number, **LAPTOP, context_full=True) for number in range(2)),
        *(refused(300 + number, **LAPTOP, reason="model_not_allowed") for number in range(4)),
        served(200, **LAPTOP, ended="downstream/content"),
        served(100, **TABLET),
    )
    rows = opened(stage).locator(f"#{card} tbody tr")
    expect(rows.first).to_be_visible()
    for row in rows.all():
        counted = row.locator(".barred b")
        name = row.locator("button.name").first.inner_text()
        wanted = int(counted.inner_text()) if counted.count() else {"laptop": 13, "tablet": 1}[name]
        row.get_by_role("button", name="Log lines").click()
        dialog = row.page.get_by_role("dialog", name="Log lines")
        expect(dialog.get_by_role("status")).to_contain_text("no older ones")
        expect(dialog.locator("tbody tr:not(.whole)")).to_have_count(wanted)
        row.page.keyboard.press("Escape")


def test_long_lists_are_folded(stage, opened):
    """A list has twelve rows at first, and all on demand. The button keeps the focus."""
    stage.write(*(served(60, device=f"device-{number}") for number in range(15)))
    page = opened(stage)
    rows = page.locator("#devices tbody tr")
    expect(rows).to_have_count(12)
    page.locator("#devices").get_by_role("button", name="Show all 15 rows").click()
    expect(rows).to_have_count(15)
    fewer = page.locator("#devices").get_by_role("button", name="Show the first 12 rows")
    expect(fewer).to_be_focused()
    fewer.click()
    expect(rows).to_have_count(12)


def test_log_lines_of_a_row(past):
    """The lines behind a row are shown in the page, each as a row and whole on demand."""
    past.get_by_role("button", name="Log lines: tablet").first.click()
    dialog = past.get_by_role("dialog", name="Log lines")
    lines = dialog.locator("tbody tr:not(.whole)")
    expect(lines).to_have_count(3)
    expect(lines.first).to_contain_text("origin_not_allowed")
    lines.first.get_by_role("button").click()
    expect(dialog.locator("pre")).to_contain_text('"user": "bob@example.com"')
    past.keyboard.press("Escape")
    expect(dialog).to_have_count(0)


def test_older_log_lines(stage, opened):
    """Fifty lines are shown at first, and a button brings older ones."""
    stage.write(*(served(HOUR - number, **LAPTOP, id=f"{number}") for number in range(70)))
    page = opened(stage)
    page.get_by_role("button", name="Show the log lines of this view").click()
    dialog = page.get_by_role("dialog", name="Log lines")
    expect(dialog.locator("tbody tr:not(.whole)")).to_have_count(50)
    dialog.get_by_role("button", name="Older lines").click()
    expect(dialog.locator("tbody tr:not(.whole)")).to_have_count(70)
    expect(dialog.get_by_role("button", name="Older lines")).to_be_hidden()


def test_new_devices(past):
    """A device is new in the period of its first line, and the page says since when the logs reach."""
    expect(past.locator("#first-seen")).to_contain_text("No new device")
    expect(past.locator("#reach")).to_contain_text("The logs reach back to")
    choose(past, "Week")
    expect(past.locator("#first-seen tbody tr")).to_have_count(1)
    expect(past.locator("#first-seen")).to_contain_text("tablet")


def test_the_log_is_rotated_while_the_page_is_open(stage, past):
    """Lines before and after a rotation are counted, each once."""
    choose(past, "Hour")
    expect(total(past)).to_have_text("3")
    stage.log.rename(f"{stage.log}.1")
    stage.write(served(1, **LAPTOP), served(0, **TABLET))
    expect(total(past)).to_have_text("5")
    choose(past, "All")
    expect(total(past)).to_have_text("11")


def test_no_log_yet(stage, opened):
    """Without a log the page says so, and it shows the history once there is one."""
    page = opened(stage)
    expect(page.locator("#history-body")).to_contain_text("log")
    expect(page.locator("#history-body code").first).to_be_visible()
    stage.write(served(1, **LAPTOP))
    expect(total(page)).to_have_text("1")


def test_an_empty_log(stage, opened):
    """An empty log says how to get a first line."""
    stage.log.touch()
    page = opened(stage)
    expect(page.locator("#history-body")).to_contain_text("The log is empty")
    expect(page.locator("#history-body code")).to_have_text("remote-ollama-proxy connect")


def test_nothing_matches(past):
    """A view without lines names its filters and offers to remove them."""
    past.goto(f"{past.url.partition('?')[0]}?period=day&device=nobody")
    expect(past.locator("#history-body")).to_contain_text("No line of this period has device nobody")
    past.get_by_role("button", name="Remove the filters").click()
    expect(total(past)).to_have_text("6")
