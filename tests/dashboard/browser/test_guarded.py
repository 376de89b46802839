"""Nobody but the owner's own page gets anything, and the page loads nothing from elsewhere."""

from __future__ import annotations

import http.server
import threading
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect

from tests.dashboard.browser.conftest import RESOLVED
from tests.dashboard.browser.stage import served
from tests.support.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.dashboard.browser.stage import Stage

NEEDS_LINK = "This page needs its link"


@pytest.fixture
def link(stage: Stage) -> str:
    """Give the link of a dashboard whose log has a line."""
    stage.write(served(60, device="laptop"))
    return stage.start_dashboard()


class Stranger:
    """Another server on loopback, whose pages anyone could have written."""

    def __init__(self) -> None:
        class Page(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(b"<!doctype html><title>stranger</title><link rel=icon href='data:,'>")

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def end(self) -> None:
        """Free the port."""
        self._server.shutdown()
        self._thread.join(PATIENCE)
        self._server.server_close()


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    """Give one that serves."""
    made = Stranger()
    yield made
    made.end()


def test_the_token_leaves_the_address(page, link):
    """The token goes from the address into this tab's storage at once. A reload works, and Back doesn't show it."""
    token = urlsplit(link).fragment
    page.goto(link)
    expect(page.locator(".tiles")).to_be_visible()
    assert token not in page.url
    assert token not in page.content()
    page.reload()
    expect(page.locator(".tiles")).to_be_visible()
    assert page.evaluate("document.cookie + JSON.stringify(localStorage)") == "{}"
    page.goto("about:blank")
    page.go_back()
    expect(page.locator(".tiles")).to_be_visible()
    assert token not in page.url


def test_no_request_names_the_token(page, link):
    """No address that is asked for has the token in it, and none is of another host."""
    token, origin = urlsplit(link).fragment, link.partition("/#")[0]
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(link)
    expect(page.locator(".tiles")).to_be_visible()
    assert [url for url in asked if token in url.partition("#")[0] or not url.startswith(f"{origin}/")] == []


@pytest.mark.parametrize("token", [None, "A" * 43, "short"], ids=["missing", "wrong", "cut"])
def test_without_the_token(page, link, faults, token):
    """The page says that it needs its link, shows no data, and stops asking."""
    page.goto(link.partition("#")[0] + (f"#{token}" if token else ""))
    expect(page.get_by_role("heading", name=NEEDS_LINK)).to_be_visible()
    expect(page.locator("#only code")).to_have_text("remote-ollama-proxy dashboard")
    expect(page.locator("#history")).to_be_hidden()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(2500)
    assert asked == []
    assert all("401" in fault for fault in faults)
    faults.clear()


def test_the_right_link_repairs_the_tab(page, link, faults):
    """A tab without a token works as soon as it gets the link."""
    page.goto(link.partition("#")[0])
    expect(page.get_by_role("heading", name=NEEDS_LINK)).to_be_visible()
    page.goto(link)
    expect(page.locator(".tiles")).to_be_visible()
    expect(page.get_by_role("heading", name=NEEDS_LINK)).to_be_hidden()
    faults.clear()


def test_a_foreign_host_gets_nothing(page, link, faults):
    """A name that points at loopback isn't the dashboard's, so not even the empty page is given to it."""
    parts = urlsplit(link)
    answer = page.goto(f"http://{RESOLVED}:{parts.port}/#{parts.fragment}")
    assert answer.status == 403
    expect(page.locator("body")).not_to_contain_text("History")
    faults.clear()


def test_dns_rebinding(page, stage, stranger, faults):
    """A stranger's page, whose name and port came to be the dashboard's, gets 403, even if it knew the token."""
    page.goto(f"http://{RESOLVED}:{stranger.port}/")
    stranger.end()
    token = urlsplit(stage.start_dashboard(stranger.port)).fragment
    script = "([path, token]) => fetch(path, {headers: {'X-Dashboard-Token': token}}).then((answer) => answer.status)"
    paths = ("/api/live", "/api/history?period=all", "/api/lines?period=all", "/page/start.js", "/")
    assert [page.evaluate(script, [path, token]) for path in paths] == [403] * len(paths)
    faults.clear()


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("(url) => fetch(url).then((answer) => answer.text())", id="fetch"),
        pytest.param(
            "([url, token]) => fetch(url, {headers: {'X-Dashboard-Token': token}}).then((answer) => answer.text())",
            id="with the token",
        ),
        pytest.param("(url) => fetch(url, {mode: 'no-cors'}).then((answer) => answer.text())", id="no-cors"),
    ],
)
def test_a_page_of_another_port_reads_nothing(page, link, stranger, faults, script):
    """A page of another port on this machine is another origin: the browser gives it no answer."""
    parts = urlsplit(link)
    page.goto(stranger.url)
    url = f"http://127.0.0.1:{parts.port}/api/live"
    given = [url, parts.fragment] if script.startswith("([") else url
    read = page.evaluate(f"(given) => ({script})(given).catch((error) => 'refused: ' + error.name)", given)
    assert read in {"refused: TypeError", ""}
    faults.clear()


def test_another_port_can_not_frame_or_embed(page, link, stranger, faults):
    """A stranger's page shows the dashboard in no frame and runs none of its scripts."""
    origin = link.partition("/#")[0]
    page.goto(stranger.url)
    script = """(origin) => new Promise((done) => {
      const script = document.createElement("script");
      script.src = origin + "/page/words.js";
      script.onload = () => done("loaded");
      script.onerror = () => done("refused");
      document.head.append(script);
    })"""
    assert page.evaluate(script, origin) == "refused"
    page.evaluate("(origin) => { document.body.innerHTML = `<iframe src='${origin}/'></iframe>`; }", origin)
    page.wait_for_timeout(1000)
    assert [frame.url for frame in page.frames if frame.locator("#states").count()] == []
    faults.clear()


def test_an_opened_window_is_out_of_reach(context, page, link, stranger, faults):
    """A stranger that opens the dashboard in a window can't reach into it, and has no token."""
    page.goto(stranger.url)
    with context.expect_page() as opening:
        page.evaluate("(url) => { window.other = window.open(url); }", link.partition("#")[0])
    opening.value.wait_for_load_state()
    assert page.evaluate("() => window.other.closed || window.other.location === undefined")
    faults.clear()
