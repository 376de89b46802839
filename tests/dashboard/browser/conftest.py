"""Fixtures: one Chromium for all tests, a stage for each, and a page on which no script failed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.dashboard.browser.chromium import chromium
from tests.dashboard.browser.stage import refused, served
from tests.support.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, BrowserContext, Page

    from tests.dashboard.browser.stage import Stage

# Only `make test-browser` sets it; `make test` doesn't even import them, because they need packages of their own.
ON_DEMAND = bool(os.environ.get("TEST_BROWSER"))
collect_ignore_glob = [] if ON_DEMAND else ["test_*.py"]

RESOLVED = "rebind.example"
"""A name that points at loopback, as a stranger's would after DNS rebinding."""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Give Chromium. As root, which CI may be, it has no sandbox."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE * 1000)
    arguments = [f"--host-resolver-rules=MAP {RESOLVED} 127.0.0.1", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=arguments)
        yield started
        started.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """Give a profile of its own, with a wide window."""
    made = browser.new_context(viewport={"width": 1280, "height": 900}, timezone_id="UTC", reduced_motion="reduce")
    made.set_default_timeout(PATIENCE * 1000)
    yield made
    made.close()


@pytest.fixture
def faults() -> list[str]:
    """Give the list of what went wrong in pages, which must stay empty; a test that wants faults clears it."""
    return []


@pytest.fixture
def page(context: BrowserContext, faults: list[str], stage: Stage) -> Iterator[Page]:
    """Give a tab. The test fails if a script in it fails, or if its policy forbids something that it wants.

    The stage is there before it, so that it ends after it: a page whose dashboard ends reports that.
    """
    made = context.new_page()
    made.on("pageerror", lambda error: faults.append(str(error)))
    made.on("console", lambda message: faults.append(message.text) if message.type in {"error", "warning"} else None)
    yield made
    # An answer that a test changes may be on its way. Its error would come up in the next test.
    if not made.is_closed():
        made.unroute_all(behavior="ignoreErrors")
    assert faults == []


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """Give a folder in which a test starts what it needs."""
    from tests.dashboard.browser.stage import Stage

    made = Stage(tmp_path)
    yield made
    made.close()


@pytest.fixture
def serving(stage: Stage) -> Stage:
    """Give a stage on which Ollama and the proxy run."""
    stage.start_ollama("--tokens-per-second", "40")
    stage.start_proxy()
    return stage


@pytest.fixture
def opened(page: Page) -> Callable[[Stage], Page]:
    """Give a function that starts a stage's dashboard and opens it."""

    def start(stage: Stage) -> Page:
        page.goto(stage.start_dashboard())
        return page

    return start


@pytest.fixture
def full(serving: Stage, opened: Callable[[Stage], Page]) -> Page:
    """Give a page on which each part has something to show."""
    from playwright.sync_api import expect

    long = {
        "device": "a-device-with-a-name-that-is-too-long-for-a-phone.tail1234.ts.net",
        "model": "hf.co/someone/a-model:Q4_K_M",
    }
    several = (
        served(60 + number, device=f"device-{number}", model=f"model-{number}", waited_ms=900.0) for number in range(9)
    )
    cut = {"ended": "upstream/content", "reason": "a_reason_that_is_long"}
    serving.write(*several, served(50, **long, context_full=True, **cut), refused(40, device=long["device"]))
    page = opened(serving)
    serving.chat("tiny")
    serving.chat("tiny")
    expect(page.locator("#requests tbody tr")).to_have_count(2)
    expect(page.locator("#devices tbody tr").first).to_be_visible()
    return page
