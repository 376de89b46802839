"""A log of a million lines is read with its progress shown. How long the page takes after that is printed.

Nothing fails because of a time: that would be a test of the machine.
"""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.dashboard.random_log import random_lines
from tests.support.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Page

    from tests.dashboard.browser.stage import Stage

LINES = 1_000_000
TIMES = 5

WATCH = """
  addEventListener("DOMContentLoaded", () => {
    const body = document.getElementById("history-body");
    if (body === null) return;
    let from = 0;  // the beginning of the navigation, then the last click
    addEventListener("click", (event) => (from = event.timeStamp), true);
    const changed = () => {
      if (from === null || body.ariaBusy || !body.querySelector(".tiles")) return;
      const then = from;
      from = null;
      requestAnimationFrame(() => setTimeout(() => (body.dataset.drawn = performance.now() - then)));
    };
    new MutationObserver(changed).observe(body, { attributes: true, attributeFilter: ["aria-busy"] });
  });
"""
"""Notes on `#history-body` how many milliseconds it took until the new view was drawn."""


def drawn(page: Page) -> float:
    """Wait until a view is drawn, and return the seconds that it took."""
    body = page.locator("#history-body[data-drawn]")
    body.wait_for(timeout=PATIENCE * 10_000)
    taken = body.evaluate("(node) => { const { drawn } = node.dataset; delete node.dataset.drawn; return drawn; }")
    page.wait_for_timeout(300)
    return float(taken) / 1000


@pytest.fixture
def long(stage: Stage) -> Stage:
    """Give a stage with a long log."""
    with stage.log.open("wb") as log:
        log.writelines(random_lines(LINES))
    return stage


@pytest.mark.timeout(0)
def test_a_million_lines(long: Stage, page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    """The page shows how far the index is, then each view. With the index, it opens and filters without a wait."""
    page.add_init_script(WATCH)
    show = said(capsys)
    link, _, token = long.start_dashboard().partition("#")
    begun = time.time()
    page.goto(f"{link}?period=all#{token}")
    expect(page.get_by_role("progressbar")).to_be_visible()
    drawn(page)
    show("reading the log for the first time", time.time() - begun)
    page.goto("about:blank")
    long.end("dashboard")

    begun = time.time()
    link, _, token = long.start_dashboard().partition("#")
    page.goto(f"{link}?period=all#{token}")
    shown = drawn(page)
    show("from the command to the page", page.evaluate("performance.timeOrigin") / 1000 + shown - begun)
    show("from the link to the page", shown)
    page.wait_for_timeout(2000)  # the findings of `status`

    names = {"a device": "#devices tbody button.name", "a model": "#used-models tbody button.name"}
    for what, where in names.items():
        with_it, without = [], []
        for _ in range(TIMES):
            page.locator(where).first.click()
            with_it.append(drawn(page))
            expect(page.locator(where)).to_have_count(1)
            page.locator("#filters .chip").click()
            without.append(drawn(page))
            expect(page.locator("#filters .chip")).to_have_count(0)
        show(f"filter by {what}", median(with_it))
        show("remove the filter", median(without))


def said(capsys: pytest.CaptureFixture[str]) -> Callable[[str, float], None]:
    """Return a function that prints how long something took."""

    def show(what: str, seconds: float) -> None:
        with capsys.disabled():
            print(f"\n{seconds:7.2f} s  {what} ({LINES:,} lines)", end="", flush=True)

    return show
