"""The page can be read on a phone, in the dark, by keyboard and by a screen reader."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.dashboard.browser.stage import served

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page


def tab_to(page: Page, wanted: Locator) -> None:
    """Press Tab until an element has the focus."""
    for _ in range(200):
        page.keyboard.press("Tab")
        if wanted.evaluate("(node) => node === document.activeElement"):
            return
    raise AssertionError("Tab never leads there")


def focused(page: Page) -> str:
    """Return the name of what has the focus."""
    return page.evaluate("document.activeElement.ariaLabel ?? document.activeElement.textContent")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280, 1920])
def test_nothing_is_cut_off(full, width, scheme):
    """The page is never wider than its window, and no text in it is, except where a box scrolls by itself."""
    full.emulate_media(color_scheme=scheme)
    full.set_viewport_size({"width": width, "height": 800})
    full.wait_for_timeout(500)  # charts are drawn again
    assert full.evaluate("document.documentElement.scrollWidth") <= width
    outside = """(width) => [...document.querySelectorAll("main *, header *")]
      .filter((node) => !node.closest(".scroll, .unseen, canvas, svg, .chip, .tip"))
      .filter((node) => node.getBoundingClientRect().right > width + 1)
      .map((node) => node.outerHTML.slice(0, 80))"""
    assert full.evaluate(outside, width) == []


def test_a_user_stands_below_the_device(stage, opened):
    """The two names don't run into each other."""
    stage.write(served(60, device="laptop", user="alice@example.com"))
    cell = opened(stage).locator("#devices tbody th")
    device, user = cell.get_by_role("button").bounding_box(), cell.locator(".fine").bounding_box()
    assert user["y"] >= device["y"] + device["height"]


def test_lists_fit_a_phone(full):
    """A name is broken after a dot or a dash rather than inside a word, and no list has to be moved to be read."""
    full.set_viewport_size({"width": 320, "height": 700})
    moved = """() => [...document.querySelectorAll("#history .scroll")]
      .filter((node) => node.scrollWidth > node.clientWidth)
      .map((node) => node.closest("section").id)"""
    assert full.evaluate(moved) == []
    short = full.locator("#devices").get_by_role("button", name="device-3", exact=True)
    assert short.evaluate("(node) => node.getClientRects().length") == 1


def test_log_lines_fit_a_phone(full):
    """The parts of a line stand one below the other, and none is broken."""
    full.set_viewport_size({"width": 320, "height": 700})
    full.get_by_role("button", name="Show the log lines of this view").click()
    dialog = full.get_by_role("dialog", name="Log lines")
    request = dialog.get_by_role("cell", name="POST /v1/chat/completions").first
    assert request.bounding_box()["height"] < 30
    scroll = dialog.locator(".scroll")
    assert scroll.evaluate("(node) => node.scrollWidth <= node.clientWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_charts_have_the_colours_of_the_scheme(full, scheme):
    """When the machine turns dark, the charts that are shown do so too."""
    full.emulate_media(color_scheme=scheme)
    wanted = full.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--series-1').trim()")
    pixel = """() => {
      const canvas = document.querySelector("#first-token canvas");
      const context = canvas.getContext("2d");
      const all = context.getImageData(0, 0, canvas.width, canvas.height).data;
      const hex = (at) => "#" + [0, 1, 2].map((each) => all[at + each].toString(16).padStart(2, "0")).join("");
      const solid = [...Array(all.length / 4).keys()].filter((at) => all[at * 4 + 3] === 255);
      return [...new Set(solid.map((at) => hex(at * 4)))];
    }"""
    for _ in range(100):
        if wanted in full.evaluate(pixel):
            return
        full.wait_for_timeout(50)
    raise AssertionError(f"{wanted} is in no bar")


def test_landmarks_and_headings(full):
    """A screen reader finds a header, the navigation, the main part and its sections, and headings in order."""
    for role in ("banner", "navigation", "main"):
        expect(full.get_by_role(role)).to_have_count(1)
    for name in ("Now", "History", "Requests in progress", "Models in memory", "Latest refusals", "Devices"):
        expect(full.get_by_role("region", name=name, exact=True)).to_have_count(1)
    levels = [
        int(tag[1]) for tag in full.locator("h1, h2, h3, h4").evaluate_all("(all) => all.map((each) => each.tagName)")
    ]
    assert levels[0] == 1
    assert all(later <= before + 1 for before, later in pairwise(levels))


def test_everything_has_a_name(full):
    """Every button, field, chart and scrolling box has a name that says what it does, and no two parts share an id."""
    unnamed = """() => [...document.querySelectorAll("button, input, [role=img], [role=group], summary, progress")]
      .filter((node) => !node.ariaLabel && !node.textContent.trim() && !node.labels?.length)
      .map((node) => node.outerHTML)"""
    assert full.evaluate(unnamed) == []
    ids = full.locator("[id]").evaluate_all("(all) => all.map((each) => each.id)")
    assert sorted(set(ids)) == sorted(ids)


def test_periods_by_keyboard(full):
    """Tab leads to the chosen period, and arrows choose another."""
    tab_to(full, full.get_by_role("radio", name="Day"))
    full.keyboard.press("ArrowLeft")
    expect(full.get_by_role("radio", name="Hour")).to_be_checked()
    assert "period=hour" in full.url


def test_filters_by_keyboard(full):
    """Enter on a name filters. The focus can go to the chip, and Enter removes it."""
    tab_to(full, full.locator("#devices button.name").first)
    full.keyboard.press("Enter")
    chip = full.locator("#filters .chip")
    expect(chip).to_have_count(1)
    chip.focus()
    full.keyboard.press("Enter")
    expect(chip).to_have_count(0)
    assert full.evaluate("document.activeElement.name") == "period"


def test_cancel_by_keyboard(full):
    """Focus stays on a row's button while numbers change; the dialog keeps it, and Escape brings it back."""
    button = full.get_by_role("button", name="Cancel the request of").first
    tab_to(full, button)
    full.wait_for_timeout(2500)  # two polls
    expect(button).to_be_focused()
    full.keyboard.press("Enter")
    expect(full.get_by_role("dialog").get_by_role("button", name="Keep it")).to_be_focused()
    full.keyboard.press("Tab")
    assert focused(full) == "Cancel the request"
    full.keyboard.press("Escape")
    expect(button).to_be_focused()


def test_charts_by_keyboard(full):
    """Arrow keys go from bar to bar. What is under the cursor is shown, and a screen reader hears it."""
    chart = full.locator("#requests-over-time .chart")
    tab_to(full, chart)
    full.keyboard.press("End")
    expect(chart.locator(".tip")).to_be_visible()
    expect(full.locator("#requests-over-time [aria-live]")).to_have_text(re.compile(r".+: .+"))
    full.keyboard.press("Escape")
    expect(chart.locator(".tip")).to_be_hidden()


def test_log_lines_by_keyboard(full):
    """The dialog opens and closes by keyboard, and the focus goes back to where it was."""
    button = full.locator("#devices").get_by_role("button", name="Log lines").first
    button.focus()
    full.keyboard.press("Enter")
    dialog = full.get_by_role("dialog", name="Log lines")
    expect(dialog.locator("tbody tr").first).to_be_visible()
    tab_to(full, dialog.locator("tbody button").first)
    full.keyboard.press("Enter")
    expect(dialog.locator("pre")).to_be_visible()
    full.keyboard.press("Escape")
    expect(button).to_be_focused()


def test_focus_stays_while_the_history_changes(full, serving):
    """New lines arrive, and all numbers are new, but the focus stays on the button that it was on."""
    button = full.locator("#devices tbody").get_by_role("button", name="device-3", exact=True)
    button.focus()
    before = full.locator(".tiles .tile-value").first.text_content()
    serving.write(*(served(number, device="device-3") for number in range(20, 0, -1)))
    expect(full.locator(".tiles .tile-value").first).not_to_have_text(before or "")
    expect(button).to_be_focused()


def test_focus_can_be_seen(full):
    """What has the focus has an outline."""
    for wanted in (
        full.locator("#devices button.name").first,
        full.locator("#requests-over-time .chart"),
        full.locator("summary").first,
    ):
        tab_to(full, wanted)
        assert wanted.evaluate("(node) => getComputedStyle(node).outlineStyle") == "solid"


def test_nothing_moves(full):
    """Nothing is animated for a person who asked for less motion."""
    assert full.evaluate("document.getAnimations().filter((each) => each.playState === 'running').length") == 0


def test_series_differ_without_colour(full):
    """Each series of a chart has a pattern of its own, so the legend's squares differ in grey too."""
    grey = """(node) => {
      const data = node.getContext("2d").getImageData(0, 0, node.width, node.height).data;
      let base = null;
      return Array.from({length: data.length / 4}, (_, at) => {
        const light = data[at * 4] * 0.3 + data[at * 4 + 1] * 0.59 + data[at * 4 + 2] * 0.11;
        base ??= light;
        return Math.abs(light - base) > 30 ? "x" : ".";
      }).join("");
    }"""
    patterns = [node.evaluate(grey) for node in full.locator("#requests-over-time .legend .swatch").all()]
    assert len(patterns) >= 5
    assert len(set(patterns)) == len(patterns)
