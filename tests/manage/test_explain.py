"""`explain`: what it says is what the gateway does."""

from __future__ import annotations

import re

import pytest

from proxy.manage.explain import explain, own_name
from proxy.settings.settings import load
from proxy.tailnet.tailscale import Tailnet
from tests.fakes.scripted_tailscale import ScriptedTailscale
from tests.support.raw_http import Proxy, Wire

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def told(method, target, *, host=None, origin=None, headers=(), **flags):
    """Return the explanation under settings of nothing but `flags`."""
    return explain(load(flags, {"HOME": "/nowhere"}), method, target, host, origin, headers)


@pytest.mark.parametrize(
    ("method", "target", "options", "rule"),
    [
        pytest.param("GET", "/api/tags", {}, "`GET /api/tags` is on the allowlist", id="listed"),
        pytest.param("GET", "/v1/models/qwen3:8b", {}, "`GET /v1/models/*` is on the allowlist", id="model"),
        pytest.param("POST", "/v1/messages?beta=true", {}, "`POST /v1/messages` is on the allowlist", id="query"),
        pytest.param(
            "POST",
            "/api/chat",
            {"allow": "POST /api/chat"},
            "`POST /api/chat` is on the allowlist, opened by allow (flag --allow)",
            id="opened",
        ),
        pytest.param("GET", "/api/tags", {"host": "mac.tail1.ts.net"}, "`GET /api/tags` is on the allow", id="host"),
        pytest.param("GET", "/api/tags", {"origin": "http://localhost:3"}, "`GET /api/tags` is on the", id="origin"),
    ],
)
def test_served(method, target, options, rule):
    """A request on the table is served; the rule names its row, and who opened it."""
    explanation = told(method, target, **options)
    assert explanation.verdict == "served"
    assert explanation.rule.startswith(rule)
    assert explanation.forwarded.startswith(f"{method} {target} HTTP/1.1\nHost: 127.0.0.1:11434\n")
    assert "Via: 1.1 remote-ollama-proxy" in explanation.forwarded


@pytest.mark.parametrize("local_only", ["true", "false"])
@pytest.mark.parametrize("target", ["/v1/chat/completions", "/v1/models/qwen3:480b-cloud"])
def test_a_cloud_model_leaves_the_mac(target, local_only):
    """Without access rules a cloud model is refused while `local_only` is on."""
    method = "POST" if target.endswith("completions") else "GET"
    loaded = load({"local_only": local_only}, {"HOME": "/nowhere"})
    explanation = explain(loaded, method, target, None, None, model="qwen3:480b-cloud")
    assert (explanation.verdict == "refused") is (local_only == "true")
    assert explanation.rule.startswith("leaves_the_mac: ") is (local_only == "true")


@pytest.mark.parametrize(
    ("setting", "words"),
    [("drop", "are cut out of it"), ("refuse", "it is refused"), ("pass", "for everyone")],
)
def test_native_options_are_explained(setting, words):
    """The explanation of a native request says what happens to what would change the model for everyone."""
    assert words in told("POST", "/api/chat", allow="POST /api/chat", native_options=setting).rule
    assert words not in told("POST", "/api/show", native_options=setting).rule


@pytest.mark.parametrize(
    ("method", "target", "options", "reason", "status"),
    [
        pytest.param("POST", "/api/pull", {}, "path_not_served", 403, id="management"),
        pytest.param("POST", "/api/chat", {}, "path_not_served", 403, id="closed"),
        pytest.param("DELETE", "/api/tags", {}, "method_not_served", 405, id="method"),
        pytest.param("HEAD", "/api/tags", {}, "method_not_served", 405, id="head"),
        pytest.param("GET", "/%61pi/tags", {}, "target_not_plain", 403, id="encoded"),
        pytest.param("GET", "//api/ps", {}, "target_not_plain", 403, id="doubled_slash"),
        pytest.param("GET", "http://mac/api/tags", {}, "target_form", 400, id="absolute_form"),
        pytest.param("GET", "/api/tags", {"host": "evil.example"}, "host_not_allowed", 403, id="foreign_host"),
        pytest.param("GET", "/api/tags", {"origin": "https://evil.example"}, "origin_not_allowed", 403, id="origin"),
        pytest.param("get", "/api/tags", {}, "malformed", 400, id="lower_case_method"),
        pytest.param("GET", "/api/tags x", {}, "malformed", 400, id="space"),
        pytest.param("GET", "/é", {}, "malformed", 400, id="not_ascii"),
        pytest.param("GET", "/\udcff", {}, "malformed", 400, id="not_utf8"),
        pytest.param("GET", f"/{'a' * 2000}", {"max_head": "1KiB"}, "target_too_long", 414, id="long_target"),
    ],
)
def test_refused(method, target, options, reason, status):
    """A refused request reaches nobody; the rule has the code that the access log has."""
    explanation = told(method, target, **options)
    assert explanation.verdict == "refused"
    assert explanation.rule.startswith(f"{reason}: ")
    assert explanation.forwarded is None
    assert explanation.answer.startswith(f"HTTP/1.1 {status} ")


def test_redirected():
    """A path with too many slashes is said to be redirected, and reaches nobody."""
    explanation = told("POST", "//v1/messages?beta=true")
    assert (explanation.verdict, explanation.forwarded) == ("redirected", None)
    assert explanation.rule.startswith("slashes: `POST //v1/messages` is not on")
    assert "\nLocation: /v1/messages?beta=true\nCache-Control: no-store\n" in explanation.answer


def test_credentials():
    """What the settings do to the head is shown: credentials stay here unless they are to be forwarded."""
    assert "Authorization" not in told("GET", "/api/tags").forwarded
    assert "Authorization: Bearer example" in told("GET", "/api/tags", forward_credentials="true").forwarded


ORIGIN = "https://page.example"


async def answer_of(proxy: Proxy, explanation) -> str:
    """Send the request that was explained; return the answer as the explanation would write it."""
    wire: Wire = await proxy.connect()
    head = explanation.request.replace("\n", "\r\n").encode()
    await wire.send(head + b"\r\n\r\n" + (b"{}" if b"Content-Length: 2" in head else b""))
    answer = await wire.answer(to_head=explanation.request.startswith("HEAD "))
    wire.close()
    return neutral((answer.head + answer.content).decode().replace("\r\n", "\n").rstrip("\n"))


def neutral(answer: str) -> str:
    """Return an answer without what differs each time: the date, and the request's id."""
    return re.sub(r'(Date: |request-id: |"request_id":")[^\n"]+', r"\1...", answer)


UPGRADE = ("Connection: Upgrade", "Upgrade: websocket")


@pytest.mark.parametrize(
    ("method", "target", "headers", "origin", "status"),
    [
        pytest.param("GET", "/v1/responses", UPGRADE, None, 426, id="websocket"),
        pytest.param("GET", "/api/pull", ("upgrade: h2c, WebSocket",), ORIGIN, 426, id="websocket_of_a_page"),
        pytest.param("POST", "/v1/messages", ("Content-Encoding: gzip",), None, 415, id="gzip"),
        pytest.param("POST", "/api/show", ("Via: 1.1 remote-ollama-proxy",), None, 508, id="loop"),
        pytest.param(
            "OPTIONS", "/api/pull", ("Access-Control-Request-Private-Network: true",), ORIGIN, 204, id="private_network"
        ),
    ],
)
async def test_further_headers_are_explained(method, target, headers, origin, status, upstream):
    """Fields of the caller's own are judged as the gateway judges them, and the answer is the gateway's."""
    proxy = Proxy(upstream.port, allowed_origins=(ORIGIN,))
    await proxy.start()
    explanation = told(method, target, origin=origin, headers=headers, allowed_origins=ORIGIN)
    answer = await answer_of(proxy, explanation)
    await proxy.stop()
    assert neutral(explanation.answer) == answer
    assert answer.startswith(f"HTTP/1.1 {status} ")
    assert upstream.requests == []


@pytest.mark.parametrize(
    ("method", "target", "host", "origin"),
    [
        pytest.param("POST", "/api/pull", None, None, id="native"),
        pytest.param("POST", "/v1/messages/count_tokens", None, None, id="anthropic"),
        pytest.param("GET", "/v1/v1/models", None, ORIGIN, id="openai_with_cors"),
        pytest.param("HEAD", "/api/tags", None, None, id="head"),
        pytest.param("PUT", "/api/tags", None, None, id="method"),
        pytest.param("GET", "/api/tags", "evil.example", None, id="host"),
        pytest.param("GET", "/api/tags", None, "https://evil.example", id="foreign_origin"),
        pytest.param("OPTIONS", "/v1/chat/completions", None, ORIGIN, id="preflight"),
        pytest.param("OPTIONS", "/v1/models", None, ORIGIN, id="preflight_of_get"),
        pytest.param("OPTIONS", "/api/pull", None, ORIGIN, id="preflight_of_a_closed_path"),
        pytest.param("OPTIONS", "//api/tags", None, ORIGIN, id="preflight_of_slashes"),
        pytest.param("GET", "//v1/models?limit=9", None, ORIGIN, id="slashes_openai"),
        pytest.param("GET", "/api/tags/", None, None, id="slashes_native"),
        pytest.param("POST", "/v1//messages", None, None, id="slashes_anthropic"),
        pytest.param("OPTIONS", "*", None, None, id="asterisk"),
        pytest.param("CONNECT", "mac:80", None, None, id="connect"),
        pytest.param("GET", "api/tags", None, None, id="malformed"),
    ],
)
async def test_answer_is_the_gateways_own(method, target, host, origin, upstream):
    """A response of the proxy itself is shown byte for byte, and nothing reaches Ollama."""
    proxy = Proxy(upstream.port, allowed_origins=(ORIGIN,))
    await proxy.start()
    explanation = told(method, target, host=host, origin=origin, allowed_origins=ORIGIN)
    answer = await answer_of(proxy, explanation)
    await proxy.stop()
    assert neutral(explanation.answer) == answer
    assert explanation.forwarded is None
    assert upstream.requests == []


@pytest.mark.parametrize(
    ("method", "target", "origin"),
    [
        pytest.param("POST", "/v1/messages?beta=true", None, id="anthropic"),
        pytest.param("POST", "/v1/chat/completions", ORIGIN, id="openai_with_cors"),
        pytest.param("GET", "/v1/models/qwen3%3A8b", None, id="escaped_colon"),
    ],
)
async def test_forwarded_is_what_reaches_ollama(method, target, origin, upstream):
    """The forwarded head is shown byte for byte, and the fields that are added to the answer are in it."""
    upstream.answers(OK)
    proxy = Proxy(upstream.port, allowed_origins=(ORIGIN,))
    await proxy.start()
    flags = {"upstream": f"http://127.0.0.1:{upstream.port}", "allowed_origins": ORIGIN}
    explanation = told(method, target, origin=origin, **flags)
    answer = await answer_of(proxy, explanation)
    await proxy.stop()
    head = upstream.requests[0].partition(b"\r\n\r\n")[0]
    assert explanation.forwarded == head.decode().replace("\r\n", "\n")
    added = neutral(explanation.answer).split("\n")[1:]
    assert {line.lower() for line in added} <= {line.lower() for line in answer.split("\n")}


@pytest.mark.parametrize(
    ("host", "verdict"),
    [
        pytest.param("mac.mesh.example.com", "served", id="its_own"),
        pytest.param("other.mesh.example.com", "refused", id="of_another"),
    ],
)
def test_name_in_the_tailnet(host, verdict, monkeypatch):
    """The machine's own name in its tailnet is an allowed Host, as it is for the proxy that runs."""
    tailnet = Tailnet("Running", ("100.64.0.1",), tun=True, name="mac.mesh.example.com")
    monkeypatch.setattr("proxy.manage.explain.Tailscale", lambda: ScriptedTailscale(tailnet))
    loaded = load({}, {"HOME": "/nowhere"})
    name = own_name(loaded.settings, host)
    assert explain(loaded, "GET", "/v1/models", host, None, own_name=name).verdict == verdict


@pytest.mark.parametrize("host", [None, "localhost:11434", "mac", "mac.tail1234.ts.net"])
def test_tailscale_is_asked_only_if_that_decides(host, monkeypatch):
    """Of a Host that is allowed anyway nobody is asked."""
    monkeypatch.setattr("proxy.manage.explain.Tailscale", None)
    assert own_name(load({}, {"HOME": "/nowhere"}).settings, host) is None
