"""The page's server answers the owner's page and nobody else, and says nothing that a browser could misread."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import pytest

from proxy.dashboard.guard import TOKEN_FIELD, new_token
from proxy.dashboard.page_files import FOLDER, page_files
from proxy.dashboard.server import Kept
from tests.dashboard.served import TOKEN, Served, state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

DATA = ("/api/live", "/api/status", "/api/index", "/api/history", "/api/lines", "/api/nothing")


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """Give a dashboard without a proxy and without a log."""
    made = Served(tmp_path)
    await made.start()
    yield made
    await made.stop()


# --- who gets an answer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DATA)
@pytest.mark.parametrize(
    "tokens",
    [
        pytest.param([], id="missing"),
        pytest.param([""], id="empty"),
        pytest.param([TOKEN[:-1]], id="shorter"),
        pytest.param([f"{TOKEN}t"], id="longer"),
        pytest.param([TOKEN.upper()], id="other_case"),
        pytest.param(["x" * 43], id="wrong"),
        pytest.param(["\udcff" * 43], id="not_ascii"),
        pytest.param([TOKEN, TOKEN], id="twice"),
        pytest.param(["x", TOKEN], id="wrong_first"),
        pytest.param([f"Bearer {TOKEN}"], id="with_a_scheme"),
    ],
)
async def test_no_data_without_the_token(served: Served, path: str, tokens: list[str]) -> None:
    """Every path that gives data needs the token, exactly once and exactly as it is."""
    fields = [served.usual[0], *((TOKEN_FIELD, token) for token in tokens)]
    got = await served.ask(path, fields=fields)
    assert (got.status, *got.data) == (401, "error", "hint")


@pytest.mark.parametrize("where", ["?token=", "?X-Dashboard-Token=", "#"])
async def test_token_elsewhere_does_not_count(served: Served, where: str) -> None:
    """A token in the target or in a cookie opens nothing: a link or another page could bring these."""
    cookie = ("Cookie", f"{TOKEN_FIELD}={TOKEN}; token={TOKEN}")
    got = await served.ask(f"/api/live{where}{TOKEN}", fields=[served.usual[0], cookie])
    assert got.status == 401


HOSTS = [
    pytest.param([], id="missing"),
    pytest.param([""], id="empty"),
    pytest.param(["127.0.0.1"], id="without_port"),
    pytest.param(["127.0.0.1:1"], id="other_port"),
    pytest.param(["localhost.:{port}"], id="trailing_dot"),
    pytest.param(["LOCALHOST:{port}"], id="capitals"),
    pytest.param(["127.0.0.2:{port}"], id="other_loopback"),
    pytest.param(["127.1:{port}"], id="short_address"),
    pytest.param(["[::1]:{port}"], id="ipv6"),
    pytest.param(["0.0.0.0:{port}"], id="wildcard"),
    pytest.param(["evil.example:{port}"], id="rebound_name"),
    pytest.param(["localhost.evil.example:{port}"], id="looks_like_localhost"),
    pytest.param(["127.0.0.1:{port}@evil.example"], id="user_part"),
    pytest.param(["evil.example", "127.0.0.1:{port}"], id="twice"),
    pytest.param(["127.0.0.1:{port}", "127.0.0.1:{port}"], id="the_same_twice"),
]


@pytest.mark.parametrize("path", ["/", "/page/page.css", "/api/live"])
@pytest.mark.parametrize("hosts", HOSTS)
async def test_other_hosts(served: Served, path: str, hosts: list[str]) -> None:
    """Only the two exact names of this server are served, so a name that a stranger points here shows nothing."""
    fields = [*(("Host", host.format(port=served.port)) for host in hosts), served.usual[1]]
    assert (await served.ask(path, fields=fields)).status in {400, 403}


@pytest.mark.parametrize(
    "origin",
    [
        pytest.param("null", id="null"),
        pytest.param("http://evil.example", id="stranger"),
        pytest.param("http://127.0.0.1:1", id="other_local_port"),
        pytest.param("https://127.0.0.1:{port}", id="https"),
        pytest.param("http://127.0.0.1", id="without_port"),
        pytest.param("http://127.0.0.1:{port}.evil.example", id="suffix"),
        pytest.param("file://", id="file"),
        pytest.param("", id="empty"),
    ],
)
@pytest.mark.parametrize(("path", "method"), [("/", "GET"), ("/api/live", "GET"), ("/api/cancel", "POST")])
async def test_other_origins(served: Served, path: str, method: str, origin: str) -> None:
    """A page of another origin gets nothing, even with the token, and no field that would let it read the answer."""
    fields = [*served.usual, ("Origin", origin.format(port=served.port))]
    got = await served.ask(path, method, b'{"id":"a"}', fields)
    assert got.status == 403
    assert not [name for name in got.fields if name.startswith("access-control-")]
    assert served.proxy.cancelled == []


async def test_preflight_of_another_page(served: Served) -> None:
    """A browser that asks whether another page may send the token gets no consent."""
    asks = [("Origin", "http://127.0.0.1:1"), ("Access-Control-Request-Headers", TOKEN_FIELD)]
    got = await served.ask(
        "/api/live", "OPTIONS", fields=[served.usual[0], *asks, ("Access-Control-Request-Method", "GET")]
    )
    assert got.status == 403
    assert not [name for name in got.fields if name.startswith("access-control-")]


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
async def test_own_page(served: Served, name: str) -> None:
    """The page itself is served under both names, with and without its Origin."""
    host = f"{name}:{served.port}"
    for more in ([], [("Origin", f"http://{host}")]):
        assert (await served.ask("/api/live", fields=[("Host", host), served.usual[1], *more])).status == 200


def test_tokens_differ() -> None:
    """Each start has a token of its own: 256 random bits that need no escaping in a URL."""
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", each) for each in tokens)


@pytest.mark.parametrize(
    "head",
    [b"GET api/live HTTP/1.1", b"GET / HTTP/1.1\r\nHost : x", b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000, b"\x1b[31m"],
    ids=["no_path", "space_before_colon", "too_long", "no_http"],
)
async def test_what_is_no_request(served: Served, caplog: pytest.LogCaptureFixture, head: bytes) -> None:
    """Nobody who connects can fill the owner's terminal: what is no request gets an answer, and logs no traceback."""
    assert (await served.send(head + b"\r\n\r\n")).status == 400
    assert [each for each in caplog.records if each.levelname == "ERROR"] == []


@pytest.mark.parametrize("name", ["Cookie", "X-Other"])
async def test_long_fields(served: Served, name: str) -> None:
    """The cookies of other ports of this machine come here too, and don't make the page unreachable."""
    assert (await served.ask("/", fields=[served.usual[0], (name, "c" * 60_000)])).status == 200


# --- what a browser must know about it --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/page/page.css", "/page/nothing.js", "/api/live", "/api/nothing"])
@pytest.mark.parametrize("with_token", [True, False])
async def test_fields_of_each_response(served: Served, path: str, with_token: bool) -> None:
    """Every response forbids what a page doesn't need: other sources, inline scripts, frames, caches, guessed types."""
    got = await served.ask(path, fields=served.usual[: 1 + with_token])
    policy = {
        name: values for name, *values in (each.split() for each in got.fields["content-security-policy"].split(";"))
    }
    assert (
        policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == ["'none'"]
    )
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == ["'self'"]
    assert "unsafe" not in got.fields["content-security-policy"]
    assert {name: got.fields[name] for name in ("x-content-type-options", "referrer-policy", "cache-control")} == {
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-store",
    }
    assert "set-cookie" not in got.fields


@pytest.mark.parametrize("name", page_files())
async def test_files_of_the_page(served: Served, name: str) -> None:
    """Each file of the page is served as it is, with its type, and without the token, because it holds no data."""
    got = await served.ask("/" if name == "index.html" else f"/page/{name}", fields=served.usual[:1])
    types = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".json": "application/json"}
    assert got.content == (FOLDER / name).read_bytes()
    assert got.fields["content-type"].partition(";")[0] == types[(FOLDER / name).suffix]


@pytest.mark.parametrize(
    "target",
    [
        "/page/",
        "/page/../command.py",
        "/page/%2e%2e/command.py",
        "/page/..%2fcommand.py",
        "/page//etc/passwd",
        "/etc/passwd",
        "/page/vendor",
    ],
)
async def test_no_other_files(served: Served, target: str) -> None:
    """No other file is served, however its path is written."""
    got = await served.ask(target)
    assert got.status == 404
    assert got.fields["content-type"].startswith("application/json")


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/api/live"), ("GET", "/api/cancel"), ("DELETE", "/"), ("PUT", "/page/page.css")]
)
async def test_other_methods(served: Served, method: str, path: str) -> None:
    """A path has the methods that it is for."""
    assert (await served.ask(path, method)).status == 405


# --- answers ----------------------------------------------------------------------------------------------------------


async def test_no_proxy_is_an_answer(served: Served) -> None:
    """That no proxy runs is shown on the page, and is no error."""
    got = await served.ask("/api/live")
    assert (got.status, got.data["proxy"]["running"], got.data["requests"]) == (200, False, [])
    assert got.data["proxy"]["hint"].endswith("status")


async def test_live(served: Served) -> None:
    """The state of the running proxy is shown, and what a client wrote can't end a script in it."""
    served.proxy.shown = state({"model": "</script><b>"})
    got = await served.ask("/api/live")
    assert got.data["requests"][0]["model"] == "</script><b>"
    assert b"<" not in got.content


async def test_proxy_is_asked_only_when_a_page_asks(served: Served) -> None:
    """Without a page, nothing is asked of the proxy, and several pages at once share an answer."""
    served.proxy.shown = state()
    assert served.proxy.asked == 0
    for _ in range(3):
        await served.ask("/api/live")
    assert 1 <= served.proxy.asked <= 3
    before = served.proxy.asked
    await served.ask("/")
    await served.ask("/api/index")
    assert served.proxy.asked == before


async def test_kept_value() -> None:
    """A value is looked up when it is asked for, and not again until its time is over."""
    now, looked = [0.0], []
    kept = Kept(lambda: looked.append(now[0]) or len(looked), 5.0, lambda: now[0])
    assert looked == []
    assert await asyncio.gather(kept.get(), kept.get()) == [1, 1]
    now[0] = 4.9
    assert await kept.get() == 1
    now[0] = 5.0
    assert await kept.get() == 2


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b'{"id":1}', b'{"id":["a"]}', b"\xff", b"x" * 5000],
    ids=["empty", "torn", "list", "without_id", "number", "id_in_a_list", "not_text", "long"],
)
async def test_malformed_cancel(served: Served, content: bytes) -> None:
    """A body without an id ends nothing."""
    served.proxy.shown = state()
    got = await served.ask("/api/cancel", "POST", content)
    assert got.status in {400, 413}
    assert served.proxy.cancelled == []


async def test_cancel(served: Served) -> None:
    """A request is ended through the proxy's socket, as `cancel` does; without a proxy, the answer says so."""
    assert (await served.ask("/api/cancel", "POST", b'{"id":"a1"}')).status == 502
    served.proxy.shown = state()
    got = await served.ask("/api/cancel", "POST", b'{"id":"a1"}')
    assert (got.status, got.data, served.proxy.cancelled) == (200, {"ended": 1}, ["a1"])


async def test_status(served: Served) -> None:
    """The findings are those of `status`, with the two services and Tailscale."""
    found = (await served.ask("/api/status")).data
    assert [each["name"] for each in found["services"]] == ["proxy", "ollama"]
    assert {"name", "outcome", "detail", "hint"} == {*found["findings"][0]}
    assert found["tailscale"]["outcome"] in {"pass", "warn", "fail", "skip", "unknown"}


@pytest.mark.parametrize("path", ["/api/history", "/api/index"])
async def test_log_that_is_not_kept(served: Served, path: str) -> None:
    """If the log goes to standard output, there is no history, and the page says what to do about it."""
    found = (await served.ask(path)).data
    found = found.get("index", found)
    assert found["state"] == "none"
    assert "--access-log" in found["hint"]


@pytest.mark.parametrize("query", ["period=year", "full=2", "before=x&period=all", "limit=1000"])
async def test_wrong_questions(served: Served, query: str) -> None:
    """A parameter that means nothing is an error that names it."""
    path = "/api/lines" if "before" in query or "limit" in query else "/api/history"
    got = await served.ask(f"{path}?{query}")
    assert got.status == 400
    assert query.partition("=")[0] in got.data["error"]
