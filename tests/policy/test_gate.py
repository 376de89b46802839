"""The gate: which request heads pass, and why the others do not.

The table tests state the rules; the last part lets hypothesis look for a way past them, with a model of how Ollama
itself reads a path (percent-decoded, then cleaned by redirects) as the judge.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.policy import refusals
from proxy.policy.gate import Policy, allowed_origin, decide, host_fault, open_rows
from proxy.policy.heads import Preflight, RequestHead
from proxy.policy.origins import origin_pattern_fault
from proxy.policy.peers import peer_allowed
from proxy.policy.refusals import Reason, Refusal
from proxy.policy.routes import OPT_IN, ROUTES, Route
from tests.support.examples import examples
from tests.support.ollama_routes import OLLAMA, ollama_routes

MAX_BODY = 1000
POLICY = Policy.of(max_body=MAX_BODY)
OPEN = Policy.of(allow=list(OPT_IN), max_body=MAX_BODY)
HOST = (b"Host", b"mac:11434")


def head(method="GET", target="/api/version", *fields, version=(1, 1), host=HOST) -> RequestHead:
    return RequestHead(method, target, version, (*((host,) if host else ()), *fields))


def reason_of(verdict) -> str | None:
    return verdict.reason.value if isinstance(verdict, Refusal) else None


# --- the table --------------------------------------------------------------------------------------------------------


def target_of(row: Route) -> str:
    return row.path.replace("*", "qwen3:8b")


@pytest.mark.parametrize("row", ROUTES, ids=lambda row: row.name)
def test_listed_rows_pass_when_open(row):
    """A default row passes as it stands, an opt-in row only when the owner opened it."""
    asked = head(row.method, target_of(row))
    assert decide(asked, OPEN) is row
    assert (decide(asked, POLICY) is row) is not row.opt_in


@pytest.mark.parametrize(
    "target",
    ["/v1/messages?beta=true", "/v1/messages?", "/v1/messages?a=/../api/delete", "/v1/messages?%61=%zz&b=<>{}|\\^`?"],
)
def test_query_is_never_matched(target):
    """Whatever stands after the first `?` neither opens nor closes a path."""
    assert decide(head("POST", target), POLICY).name == "POST /v1/messages"


@pytest.mark.parametrize(
    "name",
    ["m", "qwen3:8b", "qwen3%3A8b", "qwen3%3a8b", "a.b-c_d~e@f:g", "...", ".a", "..a", "a..", "-", "%3A", "0"],
)
def test_model_is_one_plain_segment(name):
    """A model's name is unreserved characters, `:`, `@` and the escaped `:` that SDKs send."""
    assert decide(head("GET", f"/v1/models/{name}"), POLICY).name == "GET /v1/models/*"


@pytest.mark.parametrize(
    ("method", "target", "reason"),
    [
        # Another name for a listed path, as Ollama would decode or clean it.
        pytest.param("POST", "/%61pi/show", "target_not_plain", id="escaped_letter"),
        pytest.param("GET", "/api%2Fversion", "target_not_plain", id="escaped_slash"),
        pytest.param("GET", "/api/version%00", "target_not_plain", id="escaped_nul"),
        pytest.param("GET", "/api/%zz", "target_not_plain", id="broken_escape"),
        pytest.param("GET", "/./api/version", "target_not_plain", id="dot_segment"),
        pytest.param("GET", "/v1/../api/version", "target_not_plain", id="dot_dot_segment"),
        pytest.param("GET", "/api/version/.", "target_not_plain", id="dot_last"),
        pytest.param("GET", "/api/version/..", "target_not_plain", id="dot_dot_last"),
        pytest.param("GET", "/api\\version", "target_not_plain", id="backslash"),
        pytest.param("GET", "/api/version;x=1", "target_not_plain", id="path_parameter"),
        pytest.param("GET", "/api/version#x", "target_not_plain", id="fragment"),
        pytest.param("GET", "/api/version%3fx", "target_not_plain", id="escaped_question_mark"),
        pytest.param("GET", "/API/version", "path_not_served", id="upper_case"),
        pytest.param("GET", "/api/version:", "path_not_served", id="something_after"),
        pytest.param("GET", "/api/versio", "path_not_served", id="something_missing"),
        pytest.param("GET", "/v1/models/*x*/..%2f", "target_not_plain", id="star_is_no_character_of_a_path"),
        pytest.param("GET", "/v1/models/*", "target_not_plain", id="star_of_the_row_itself"),
        # A model's name is one segment.
        pytest.param("GET", "/v1/models/.", "target_not_plain", id="dot_model"),
        pytest.param("GET", "/v1/models/..", "target_not_plain", id="dot_dot_model"),
        pytest.param("GET", "/v1/models/user/m", "path_not_served", id="model_with_slash"),
        pytest.param("GET", "/v1/models/user%2Fm", "target_not_plain", id="model_with_escaped_slash"),
        pytest.param("GET", "/v1/models/m%2e", "target_not_plain", id="model_with_other_escape"),
        pytest.param("GET", "/v1/models/m%3", "target_not_plain", id="model_with_half_escape"),
        pytest.param("GET", "/v1/models/m\n", "malformed", id="model_with_newline"),
        pytest.param("GET", "/v1/models/a b", "malformed", id="model_with_space"),
        pytest.param("GET", "/v1/models/mé", "malformed", id="model_beyond_ascii"),
        # Characters that no target has.
        pytest.param("GET", "/api/version\x00", "malformed", id="nul"),
        pytest.param("GET", "/api/versioné", "malformed", id="non_ascii"),
        pytest.param("GET", "/api/version?a b", "malformed", id="space_in_query"),
        pytest.param("GET", "/api/version?a#b", "malformed", id="fragment_behind_a_query"),
        pytest.param("GET", "/api/version?\r\nx: y", "malformed", id="line_break_in_query"),
        # Other forms of target.
        pytest.param("GET", "http://mac/api/version", "target_form", id="absolute_form"),
        pytest.param("OPTIONS", "*", "target_form", id="asterisk_form"),
        pytest.param("CONNECT", "mac:11434", "target_form", id="authority_form"),
        pytest.param("GET", "", "target_form", id="empty"),
        pytest.param("GET", "?/api/version", "target_form", id="query_alone"),
        # Paths without an open row.
        pytest.param("GET", "/", "path_not_served", id="root"),
        pytest.param("POST", "/api/chat", "path_not_served", id="opt_in_row_not_opened"),
        pytest.param("POST", "/api/pull", "path_not_served", id="pull"),
        pytest.param("DELETE", "/api/delete", "path_not_served", id="delete"),
        pytest.param("POST", "/v1/messages/count_tokens?beta=true", "path_not_served", id="count_tokens"),
        pytest.param("OPTIONS", "/api/pull", "path_not_served", id="options_elsewhere"),
        # Listed paths with another method.
        pytest.param("GET", "/v1/chat/completions", "method_not_served", id="get_for_post"),
        pytest.param("POST", "/api/tags", "method_not_served", id="post_for_get"),
        pytest.param("HEAD", "/api/version", "method_not_served", id="head_is_not_get"),
        pytest.param("get", "/api/version", "method_not_served", id="methods_are_compared_as_sent"),
        pytest.param("OPTIONS", "/api/version", "method_not_served", id="options_that_is_no_preflight"),
        pytest.param("DELETE", "/v1/models/m", "method_not_served", id="delete_a_model"),
        pytest.param("", "/api/version", "method_not_served", id="no_method"),
    ],
)
def test_only_listed_methods_on_listed_paths_pass(method, target, reason):
    """Only a listed method on a listed path, compared as sent, is let through."""
    assert reason_of(decide(head(method, target), POLICY)) == reason


@pytest.mark.parametrize(
    ("policy", "method", "target", "allow"),
    [
        (POLICY, "HEAD", "/api/version", b"GET"),
        (OPEN, "POST", "/api/version", b"GET, HEAD"),
        (Policy.of(allow=["HEAD /"], max_body=1), "GET", "/", b"HEAD"),
        (POLICY, "PUT", "/v1/models/m", b"GET"),
    ],
)
def test_wrong_method_is_told_the_open_ones(policy, method, target, allow):
    """405 has Allow with every opened method of the path, sorted, and no other."""
    refusal = decide(head(method, target), policy)
    assert (refusal.status, refusal.fields) == (405, ((b"allow", allow),))


@pytest.mark.parametrize(
    ("entry", "opened"),
    [
        ("POST /api/chat", {"POST /api/chat"}),
        (" POST   /api/chat ", {"POST /api/chat"}),
        ("/", {"GET /", "HEAD /"}),
        ("HEAD /", {"HEAD /"}),
        ("/api/tags", {"HEAD /api/tags"}),
    ],
)
def test_allow_opens_a_row_or_all_of_a_path(entry, opened):
    """An entry of `allow` is a row's name, or a path for all opt-in rows that it has."""
    rows = open_rows([entry])
    assert {row.name for row in rows if row.opt_in} == opened
    assert [row for row in rows if not row.opt_in] == [row for row in ROUTES if not row.opt_in]


@pytest.mark.parametrize(
    "entry",
    [
        "POST /api/pull", "/api/delete", "*", "", "/api/*", "/api/show", "POST /v1/messages", "post /api/chat",
        "GET /api/chat", "api/chat", "/api/chat/", "POST", "GET / HEAD /",
    ],
)  # fmt: skip
def test_allow_opens_nothing_else(entry):
    """Any other entry is an error that names it and lists what there is."""
    with pytest.raises(ValueError, match="no setting opens") as caught:
        Policy.of(allow=["/", entry], max_body=1)
    assert f"`{entry}`" in str(caught.value)
    assert all(name in str(caught.value) for name in OPT_IN)


def test_all_wrong_entries_are_told_at_once():
    """The error about entries names every one that is wrong, and what could stand there."""
    with pytest.raises(ValueError, match="no setting") as caught:
        open_rows(["/a", "/", "/b"])
    assert str(caught.value) == f"no setting opens `/a`, `/b`; `allow` takes: {', '.join(OPT_IN)}"
    with pytest.raises(ValueError, match="host name") as caught:
        Policy.of(allowed_hosts=["*", "mac", "a/b"], allowed_origins=["*"], max_body=1)
    assert str(caught.value) == "; ".join((host_fault("*"), host_fault("a/b"), origin_pattern_fault("*")))


# --- who asks ---------------------------------------------------------------------------------------------------------

HOSTS = Policy.of(allowed_hosts=["mac.example.org", "Studio.Local."], max_body=1)


@pytest.mark.parametrize(
    "host",
    [
        b"mac", b"MAC", b"mac.", b"mac:11434", b"mac.:1", b"my_mac-2", b"localhost", b"LocalHost.:80", b"1",
        b"127.0.0.1", b"100.64.0.1:11434", b"8.8.8.8", b"8.8.8.8.", b"[::1]", b"[::1]:0",
        b"[FD7A:115C:A1E0::1]:65535",
        b"[::ffff:1.2.3.4]", b"mac.tail1234.ts.net", b"Mac.Tail1234.TS.NET.:443", b"x.ts.net",
        b"mac.example.org", b"MAC.Example.ORG.:9", b"studio.local",
    ],
)  # fmt: skip
def test_own_names_pass(host):
    """IP literals, single labels, .ts.net names and listed ones pass; case, a final dot and the port don't matter."""
    assert reason_of(decide(head(host=(b"hOST", host)), HOSTS)) is None


@pytest.mark.parametrize(
    "host",
    [
        b"evil.com", b"mac.example.org.evil.com", b"example.org", b"x.mac.example.org", b"mac.local", b"x.localhost",
        b"ts.net", b"evilts.net", b"mac.ts.net.evil.com", b"ts.net.", b"127.0.0.1.nip.io", b"1.2.3", b"1.2.3.4.5",
        b"1.2.3.256", b"127.1", b"0x7f.1", b"localhost.evil.com", b"a.b:11434",
    ],
)  # fmt: skip
def test_foreign_names_are_refused(host):
    """Any other name is 403 and learns which setting would allow it: it may be a rebound one."""
    refusal = decide(head(host=(b"Host", host)), HOSTS)
    assert (refusal.reason, refusal.status) == (Reason.HOST_NOT_ALLOWED, 403)
    assert "allowed_hosts" in refusal.message


@pytest.mark.parametrize(
    "host",
    [
        b"", b":11434", b".", b"..", b"mac..", b"a..b", b".mac", b"mac:", b"mac:x", b"mac:65536", b"mac:123456",
        b"mac:-1", b"mac:+1", b"mac:1:2", b"::1", b"[::1", b"::1]", b"[]", b"[:::]", b"[1.2.3.4]", b"[::1]x",
        b"[fe80::1%25en0]", b"[v1.a]", b"a b", b"a,b", b"a/b", b"u@mac", b"mac?", b"mac#", b"a\tb", b"m\xc3\xa9",
        b"%6d",
        b"mac\n", b"localhost, localhost", b"http://mac",
    ],
)  # fmt: skip
def test_malformed_hosts_are_refused(host):
    """A Host that is no name or address with an optional port is 400."""
    refusal = decide(head(host=(b"Host", host)), HOSTS)
    assert (refusal.reason, refusal.status) == (Reason.HOST_MALFORMED, 400)


def test_host_is_required_once():
    """HTTP/1.1 needs one Host, HTTP/1.0 none, and two are 400 even when they agree."""
    assert decide(head(host=None), POLICY) is refusals.HOST_MISSING
    assert isinstance(decide(head(host=None, version=(1, 0)), POLICY), Route)
    assert decide(head("GET", "/api/version", HOST), POLICY) is refusals.HOST_REPEATED
    assert decide(head("GET", "/api/version", HOST, version=(1, 0)), POLICY) is refusals.HOST_REPEATED


ORIGINS = Policy.of(
    allowed_origins=[
        "https://chat.example.org",
        "HTTP://LAN:3000",
        "chrome-extension://*",
        "Safari-Web-Extension://8C1A9A6F-0000-4000-8000-ABCDEFABCDEF",
    ],
    max_body=MAX_BODY,
)


@pytest.mark.parametrize(
    "origin",
    [
        b"http://localhost", b"https://localhost", b"http://localhost:3000", b"https://127.0.0.1:1",
        b"http://0.0.0.0", b"app://", b"app://obsidian.md", b"file://", b"tauri://localhost",
        b"vscode-webview://1a2b", b"vscode-file://x",
        b"https://chat.example.org", b"http://lan:3000", b"chrome-extension://abcdef", b"chrome-extension://",
        b"HTTP://LOCALHOST", b"App://Obsidian.MD", b"Https://Chat.Example.ORG", b"http://LAN:3000",
        b"Chrome-Extension://ABC", b"safari-web-extension://8C1A9A6F-0000-4000-8000-ABCDEFABCDEF",
        b"safari-web-extension://8c1a9a6f-0000-4000-8000-abcdefabcdef",
    ],
)  # fmt: skip
def test_known_origins_pass(origin):
    """What Ollama allows by default passes, and what the owner lists, in any case; its CORS fields name it as sent."""
    asked = head("GET", "/api/version", (b"Origin", origin))
    assert isinstance(decide(asked, ORIGINS), Route)
    assert allowed_origin(asked, ORIGINS) == origin


@pytest.mark.parametrize(
    "origin",
    [
        b"", b"null", b"*", b"https://evil.com", b"http://localhost.evil.com", b"http://localhost:3000.evil.com",
        b"http://localhost:", b"http://localhost:x", b"http://localhost:*", b"http://localhost/", b"http://[::1]",
        b"http://mac:11434", b"ftp://localhost", b"xapp://a", b"app:/a", b"app://a b", b"app://a\r\nX: y",
        b"app://\xe9",
        b"https://chat.example.org:443", b"https://chat.example.org.evil.com", b"http://chat.example.org",
        b"http://lan:30000", b"https://x.chat.example.org", b"chrome-extension:/x", b"chrome-extension://\x00",
        b"HTTP://LOCALHOST.EVIL.COM", b"http://127.0.0.2", b"http://user@localhost", b"http://localhost:123456",
    ],
)  # fmt: skip
def test_other_origins_are_refused(origin):
    """Any other page is 403, the proxy's own address and `null` included, and gets no CORS fields."""
    asked = head("GET", "/api/version", (b"Origin", origin))
    refusal = decide(asked, ORIGINS)
    assert (refusal.reason, refusal.status) == (Reason.ORIGIN_NOT_ALLOWED, 403)
    assert allowed_origin(asked, ORIGINS) is None


def test_two_origins_are_refused():
    """Two Origin fields are 400 even when each is allowed, and no CORS fields name either."""
    asked = head("GET", "/api/version", (b"Origin", b"http://localhost"), (b"origin", b"http://localhost"))
    assert decide(asked, POLICY) is refusals.ORIGIN_REPEATED
    assert allowed_origin(asked, POLICY) is None


def test_no_origin_gets_no_cors_fields():
    """A request without Origin has none to be named in its answer."""
    assert allowed_origin(head(), POLICY) is None


def test_refused_request_of_an_allowed_origin_still_names_it():
    """A page may read why its request was refused."""
    asked = head("POST", "/api/pull", (b"Origin", b"http://localhost"))
    assert isinstance(decide(asked, POLICY), Refusal)
    assert allowed_origin(asked, POLICY) == b"http://localhost"


@pytest.mark.parametrize("text", ["mac", "mac.example.org", "MAC.example.org.", "my_mac", "x--y.z", "1.2.3.4"])
def test_host_entries_are_names(text):
    """An entry of `allowed_hosts` is a bare host name."""
    assert host_fault(text) is None


@pytest.mark.parametrize(
    "text", ["", "*", "*.example.org", ".org", "a..b", "a:1", "http://a", "a/b", "a b", "[::1]", "é.org"]
)
def test_other_host_entries_are_faults(text):
    """Anything else there is a fault that quotes it, and makes no policy."""
    assert f"`{text}`" in host_fault(text)
    with pytest.raises(ValueError, match="is not a host name"):
        Policy.of(allowed_hosts=[text], max_body=1)


@pytest.mark.parametrize(
    "text",
    [
        "https://a.org", "http://a:3000", "HTTPS://A.org", "http://[::1]:80", "app://*", "chrome-extension://*", "null",
        "Null", "SAFARI-web-extension://*",
    ],
)  # fmt: skip
def test_origin_entries_are_origins(text):
    """An entry of `allowed_origins` is an exact origin, a scheme with `*`, or `null`."""
    assert origin_pattern_fault(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "*",
        "http://*",
        "https://*",
        "HTTPS://*",
        "nul",
        "null/",
        "null://",
        "https://*/",
        "a.org",
        "https://",
        "https://a.org/",
        "https://a.org/x",
        "https://*.org",
        "http://a:*",
        "://*",
    ],
)
def test_other_origin_entries_are_faults(text):
    """Anything else there is a fault that quotes it, `*` above all, and makes no policy."""
    assert f"`{text}`" in origin_pattern_fault(text)
    with pytest.raises(ValueError, match="`scheme://"):
        Policy.of(allowed_origins=["http://a", text], max_body=1)


@pytest.mark.parametrize("text", ["*", "http://*", "https://*", "Http://*", "HTTPS://*"])
def test_every_page_is_no_entry(text):
    """An owner who asks for all web pages reads why not, and what to write instead."""
    assert origin_pattern_fault(text) == (
        f"`{text}` would let every web page use this proxy; name each as `scheme://host[:port]`, "
        "and an app's or extension's scheme as `scheme://*`"
    )


@pytest.mark.parametrize("entry", ["null", "NULL"])
@pytest.mark.parametrize(
    ("origin", "passes"),
    [(b"null", True), (b"null ", False), (b"null, null", False), (b"nulls", False), (b"https://null", False)],
)
def test_null_is_opened_by_name_only(entry, origin, passes):
    """`Origin: null` passes where the owner wrote `null`, with CORS fields that say so, and opens nothing else."""
    policy = Policy.of(allowed_origins=[entry], max_body=MAX_BODY)
    asked = head("GET", "/api/version", (b"Origin", origin))
    assert isinstance(decide(asked, policy), Route) is passes
    assert allowed_origin(asked, policy) == (origin if passes else None)


@pytest.mark.parametrize(
    ("entry", "origin", "passes"),
    [
        ("https://a.example:443", b"https://a.example", True),
        ("HTTP://A.example:80", b"http://a.example", True),
        ("http://[fd7a:115c:a1e0::7]:80", b"http://[fd7a:115c:a1e0::7]", True),
        ("http://a.example:443", b"http://a.example", False),
        ("http://a.example:443", b"http://a.example:443", True),
        ("https://a.example:8443", b"https://a.example", False),
        ("https://a.example:8443", b"https://a.example:8443", True),
        ("x-app://a.example:80", b"x-app://a.example", False),
    ],
)
def test_entry_with_the_port_that_its_scheme_implies(entry, origin, passes):
    """Browsers leave that port out of an Origin, so an entry that names it means the Origin without it."""
    policy = Policy.of(allowed_origins=[entry], max_body=MAX_BODY)
    assert isinstance(decide(head("GET", "/api/version", (b"Origin", origin)), policy), Route) is passes


# --- preflights -------------------------------------------------------------------------------------------------------

PAGE = (b"Origin", b"http://localhost:3000")


def preflight(target, method, *fields, policy=POLICY):
    return decide(head("OPTIONS", target, PAGE, (b"Access-Control-Request-Method", method), *fields), policy)


def test_preflight_of_a_row_is_answered_here():
    """An allowed page that announces a listed method gets the path's methods, and its headers echoed."""
    asked = (b"access-control-request-headers", b"authorization, x-api-key,anthropic-version")
    assert preflight("/v1/messages?beta=true", b"POST", asked) == Preflight(("POST",), asked[1])
    assert preflight("/v1/models/m", b"GET") == Preflight(("GET",), None)
    assert preflight("/api/tags", b"HEAD", policy=OPEN) == Preflight(("GET", "HEAD"), None)


@pytest.mark.parametrize("names", [b"", b"a\r\nb: c", b"a\tb", b"caf\xe9", b"a:b", b'"a"'])
def test_preflight_echoes_only_field_names(names):
    """Asked-for headers that are not a list of field names are not echoed."""
    assert preflight("/api/tags", b"GET", (b"access-control-request-headers", names)).headers is None


@pytest.mark.parametrize(
    ("target", "method", "methods"),
    [
        pytest.param("/api/pull", b"POST", ("POST",), id="management"),
        pytest.param("/api/chat", b"POST", ("POST",), id="closed_row"),
        pytest.param("/chat/completions", b"POST", ("POST",), id="base_url_without_v1"),
        pytest.param("//v1/chat/completions", b"POST", ("POST",), id="slashes"),
        pytest.param("/v1/v1/messages?beta=true", b"POST", ("POST",), id="base_url_with_v1_twice"),
        pytest.param("/api/%74ags", b"GET", ("GET",), id="escape"),
        pytest.param("/api/tags", b"POST", ("GET", "POST"), id="other_method"),
        pytest.param("/api/tags", b"HEAD", ("GET", "HEAD"), id="head"),
        pytest.param("/api/tags", b"OPTIONS", ("GET", "OPTIONS"), id="options"),
        pytest.param("/api/tags", b"get", ("GET", "get"), id="methods_have_a_case"),
        pytest.param("/", b"M-SEARCH", ("M-SEARCH",), id="any_token"),
    ],
)
def test_preflight_of_an_allowed_page_is_answered_whatever_it_announces(target, method, methods):
    """A browser goes on to the request whose refusal its person can read: the announced method is among the allowed."""
    assert preflight(target, method) == Preflight(methods, None)


@pytest.mark.parametrize("method", [b"", b"GET, DELETE", b"\xff\x00", b"G\r\nX: y", b"A" * 65, b"GET "])
def test_what_announces_no_method_is_no_preflight(method):
    """What isn't a method is neither echoed nor answered."""
    assert reason_of(preflight("/api/tags", method)) == "method_not_served"


@pytest.mark.parametrize("target", ["*", "http://mac/api/tags", "", "mac:11434"])
def test_a_preflight_has_a_path(target):
    """A target of another form is refused to a preflight, too."""
    assert reason_of(preflight(target, b"GET")) == "target_form"


@pytest.mark.parametrize(
    ("value", "asked"), [(b"true", True), (b"True", True), (b"false", False), (b"", False), (b"1", False)]
)
def test_private_network_is_allowed_where_it_is_asked_for(value, asked):
    """Older and managed Chromes ask whether a page may reach a private network (WICG private-network-access, 3.2)."""
    found = preflight("/api/tags", b"GET", (b"Access-Control-Request-Private-Network", value))
    assert found.private_network is asked


@pytest.mark.parametrize(
    ("target", "fields", "reason", "named"),
    [
        pytest.param(
            "/api/tags",
            [(b"Access-Control-Request-Method", b"GET")],
            "method_not_served",
            "`OPTIONS /api/tags`",
            id="no_origin",
        ),
        pytest.param(
            "/api/chat",
            [(b"Access-Control-Request-Method", b"POST")],
            "path_not_served",
            "`POST /api/chat`",
            id="no_origin_closed_row",
        ),
        pytest.param(
            "/api/tags",
            [(b"Access-Control-Request-Method", b"DELETE")],
            "method_not_served",
            "`DELETE /api/tags`",
            id="no_origin_other_method",
        ),
        pytest.param(
            "//api/tags",
            [(b"Access-Control-Request-Method", b"GET")],
            "target_not_plain",
            "`GET //api/tags`",
            id="no_origin_slashes",
        ),
        pytest.param("/api/tags", [PAGE], "method_not_served", "`OPTIONS /api/tags`", id="no_announced_method"),
        pytest.param(
            "/api/tags",
            [(b"Origin", b"https://evil.com"), (b"Access-Control-Request-Method", b"GET")],
            "origin_not_allowed",
            "`https://evil.com`",
            id="foreign_origin",
        ),
    ],
)
def test_other_options_requests_are_not_served(target, fields, reason, named):
    """OPTIONS that is no preflight of an allowed page never passes; its refusal names what was announced, if that is
    what isn't served.
    """
    refusal = decide(head("OPTIONS", target, *fields), POLICY)
    assert reason_of(refusal) == reason
    assert named in refusal.message


# --- WebSockets -------------------------------------------------------------------------------------------------------


def upgrade(*values, method="GET", target="/v1/responses", version=(1, 1), **more):
    fields = [(b"Upgrade", value) for value in values]
    return decide(head(method, target, (b"Connection", b"Upgrade"), *fields, version=version, **more), POLICY)


@pytest.mark.parametrize(
    "values",
    [
        [b"websocket"], [b"WebSocket"], [b"WEBSOCKET"], [b"websocket/13"], [b"h2c, websocket"], [b"websocket,h2c"],
        [b" , websocket"], [b"h2c", b"websocket"], [b"websocket", b"h2c"], [b"h2c\t,\twebsocket\t"],
        [b"a", b"b", b"websocket"],
    ],
)  # fmt: skip
@pytest.mark.parametrize("target", ["/v1/responses", "/api/version", "/api/pull", "//api/version", "/%61pi/x", "*"])
def test_websockets_are_refused_on_any_path(values, target):
    """A GET that lists `websocket` in Upgrade, in any spelling, gets the one answer that its clients fall back on."""
    assert upgrade(*values, target=target) is refusals.WEBSOCKET


@pytest.mark.parametrize(
    "values",
    [
        [b"h2c"],
        [b"h2c, TLS/1.2"],
        [b""],
        [b"websockets"],
        [b"Xwebsocket"],
        [b"web socket"],
        [b"x-websocket"],
        [b"h2c/websocket"],
    ],
)
def test_other_upgrades_are_ignored(values):
    """Whatever else a client offers to switch to is no reason to refuse its request (RFC 9110, 7.8)."""
    assert isinstance(upgrade(*values, target="/api/version"), Route)


@pytest.mark.parametrize(
    "more", [{"method": "POST", "target": "/v1/responses"}, {"target": "/api/version", "version": (1, 0)}]
)
def test_only_get_of_http_1_1_opens_a_websocket(more):
    """With another method it means nothing (RFC 6455, 4.1), nor in HTTP/1.0 (RFC 9110, 7.8)."""
    assert isinstance(upgrade(b"websocket", **more), Route)


@pytest.mark.parametrize(
    ("field", "host", "reason"),
    [
        ((b"Origin", b"https://evil.com"), HOST, "origin_not_allowed"),
        ((b"Origin", b"http://localhost"), (b"Host", b"evil.com"), "host_not_allowed"),
        ((b"Content-Length", b"x"), HOST, "content_length_invalid"),
    ],
)
def test_who_asks_is_judged_before_websockets(field, host, reason):
    """A foreign page or name learns no more than it does elsewhere: a WebSocket needs no preflight."""
    asked = head("GET", "/v1/responses", (b"Upgrade", b"websocket"), field, host=host)
    assert reason_of(decide(asked, POLICY)) == reason


# --- slashes ----------------------------------------------------------------------------------------------------------


def location_of(refusal):
    return dict(refusal.fields)[b"Location"].decode()


@pytest.mark.parametrize(
    ("method", "target", "location"),
    [
        ("GET", "//api/tags", "/api/tags"),
        ("GET", "/api//tags", "/api/tags"),
        ("GET", "/api/tags/", "/api/tags"),
        ("GET", "/api/tags//", "/api/tags"),
        ("GET", "////api///tags////", "/api/tags"),
        ("GET", "/v1/models/", "/v1/models"),
        ("GET", "/v1//models", "/v1/models"),
        ("POST", "//v1/chat/completions", "/v1/chat/completions"),
        ("POST", "/v1/chat/completions/", "/v1/chat/completions"),
        ("POST", "//v1/messages?beta=true", "/v1/messages?beta=true"),
        ("POST", "//api/show?", "/api/show?"),
        ("GET", "//v1/models?next=//evil.com/", "/v1/models?next=//evil.com/"),
        ("GET", "/v1/models//qwen3%3A8b/", "/v1/models/qwen3%3A8b"),
        ("GET", "//v1/models/evil.com:80@x", "/v1/models/evil.com:80@x"),
    ],
)
def test_slashes_alone_are_put_right_by_a_redirect(method, target, location):
    """308 keeps method and content; the path is the row's, the query the client's, and no cache keeps it."""
    refusal = decide(head(method, target), POLICY)
    assert (refusal.status, refusal.reason, refusal.verdict) == (308, Reason.SLASHES, "redirected")
    assert refusal.fields == ((b"Location", location.encode()), (b"Cache-Control", b"no-store"))
    assert not refusal.closes


@pytest.mark.parametrize(
    ("method", "target", "reason"),
    [
        pytest.param("GET", "//evil.example/", "target_not_plain", id="a_host"),
        pytest.param("GET", "//evil.example/api/tags", "target_not_plain", id="a_host_before_a_row"),
        pytest.param("GET", "//", "target_not_plain", id="root_not_opened"),
        pytest.param("POST", "//api/chat", "target_not_plain", id="row_not_opened"),
        pytest.param("POST", "/api/chat/", "path_not_served", id="row_not_opened_final"),
        pytest.param("DELETE", "//api/delete", "target_not_plain", id="management"),
        pytest.param("POST", "/api/pull/", "path_not_served", id="management_final"),
        pytest.param("POST", "//api/tags", "target_not_plain", id="other_method"),
        pytest.param("HEAD", "/api/tags/", "path_not_served", id="head"),
        pytest.param("GET", "//v1/models/..", "target_not_plain", id="dots"),
        pytest.param("GET", "//v1/models/a/b", "target_not_plain", id="two_segments"),
        pytest.param("GET", "//v1/models/a%2Fb", "target_not_plain", id="escaped_slash"),
        pytest.param("GET", "//v1/models/%0d%0aX:y", "target_not_plain", id="escaped_line_break"),
        pytest.param("GET", "//v1/models/a;b", "target_not_plain", id="semicolon"),
        pytest.param("GET", "/v1/models/a%2F", "target_not_plain", id="escaped_final_slash"),
        pytest.param("GET", "/\\api/tags", "target_not_plain", id="backslash"),
        pytest.param("GET", "//API/tags", "target_not_plain", id="upper_case"),
        pytest.param("GET", "//api/tags\r\nX: y", "malformed", id="line_break"),
        pytest.param("GET", "//api/tags?\r\nX: y", "malformed", id="line_break_in_query"),
        pytest.param("GET", "//api/tags?a#b", "malformed", id="fragment"),
        pytest.param("GET", "//api/tags#b", "target_not_plain", id="fragment_without_query"),
        pytest.param("GET", "//api/tagsé", "malformed", id="beyond_ascii"),
    ],
)
def test_anything_else_odd_stays_refused(method, target, reason):
    """Only a path that is served once its slashes are corrected is redirected."""
    assert reason_of(decide(head(method, target), POLICY)) == reason


@pytest.mark.parametrize("target", ["//", "//api/chat", "/api/chat/", "/api//chat//"])
def test_opened_rows_are_redirected_too(target):
    """A row that the owner opened counts as served; the root is a row like any other."""
    policy = Policy.of(allow=["GET /", "POST /api/chat"], max_body=MAX_BODY)
    clean = "/" if target == "//" else "/api/chat"
    assert location_of(decide(head("GET" if clean == "/" else "POST", target), policy)) == clean


@examples(300)
@given(st.sampled_from(["GET", "POST"]), st.text(st.sampled_from("/v1modelsapitgc:@.%3A;\\?#\r\n \x00é"), max_size=30))
def test_no_location_leads_elsewhere(method, rest):
    """Whatever is asked for, a Location is a served path on this host, in one field."""
    for target in (rest, f"//{rest}", f"/v1//models/{rest}", f"//api/tags?{rest}", f"/api/version/{rest}"):
        verdict = decide(head(method, target), OPEN)
        if isinstance(verdict, Refusal) and verdict.reason is Reason.SLASHES:
            location = location_of(verdict)
            assert location[:1] == "/"
            assert location[:2] != "//"
            assert location.isascii()
            assert location.isprintable()
            assert " " not in location
            assert isinstance(decide(head(method, location), OPEN), Route)
            assert location.partition("?")[1:] == target.partition("?")[1:]


# --- framing and the rest of the head ---------------------------------------------------------------------------------

LENGTH, CODING, EXPECT, VIA = b"Content-Length", b"Transfer-Encoding", b"Expect", b"Via"


@pytest.mark.parametrize(
    ("version", "status"),
    [((0, 9), 400), ((2, 0), 505), ((1, 2), 505), ((3, 0), 505), ((0, 0), 400), ((1, 0), None), ((1, 1), None)],
)
def test_only_http_1_0_and_1_1_are_served(version, status):
    """An older version is 400, a newer one 505, and an SDK must not retry it."""
    verdict = decide(head(version=version), POLICY)
    assert getattr(verdict, "status", None) == status
    assert ((b"x-should-retry", b"false") in getattr(verdict, "fields", ())) == (status == 505)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        pytest.param([(LENGTH, b"5"), (CODING, b"chunked")], "framing_ambiguous", id="both"),
        pytest.param([(CODING, b"chunked"), (LENGTH, b"x")], "framing_ambiguous", id="both_one_invalid"),
        pytest.param([(LENGTH, b"5"), (LENGTH, b"5")], "framing_ambiguous", id="same_length_twice"),
        pytest.param([(LENGTH, b"5"), (b"content-LENGTH", b"6")], "framing_ambiguous", id="two_lengths"),
        pytest.param([(CODING, b"chunked"), (CODING, b"chunked")], "framing_ambiguous", id="two_codings"),
        *(
            pytest.param([(CODING, value)], "transfer_encoding_invalid", id=repr(value))
            for value in (
                b"", b"gzip", b"identity", b"gzip, chunked", b"chunked, gzip", b", chunked", b"chunked,",
                b"xchunked",
                *(b"chunked;q=1", b" chunked", b"chunked ", b"\tchunked", b"chunke", b'"chunked"', b"chunked\x00"),
            )
        ),
        *(
            pytest.param([(LENGTH, value)], "content_length_invalid", id=repr(value))
            for value in (
                b"", b"+5", b"-1", b"01", b"00", b"0x5", b"5 ", b" 5", b"5,5", b"5, 5", b"5_0", b"5.0", b"1e3",
                b"\xb2",
                *(b"9223372036854775808", b"18446744073709551615", b"9" * 20, b"9" * 5000, b"5\n", "٣".encode()),
            )
        ),
    ],
)  # fmt: skip
def test_framing_that_two_parsers_could_read_differently_is_refused(fields, reason):
    """Only one plain Content-Length, or exactly `chunked`, frames a request; all else is 400 and a close."""
    refusal = decide(head("POST", "/api/show", *fields), POLICY)
    assert (reason_of(refusal), refusal.status, refusal.closes) == (reason, 400, True)


@pytest.mark.parametrize(
    "fields", [[], [(LENGTH, b"0")], [(LENGTH, b"1000")], [(CODING, b"chunked")], [(CODING, b"CHUNKED")]]
)
def test_plain_framing_passes(fields):
    """No content, a plain length within the limit and `chunked` in any case pass."""
    assert decide(head("POST", "/api/show", *fields), POLICY).name == "POST /api/show"


def test_chunked_is_not_http_1_0():
    """Transfer-Encoding on HTTP/1.0 is faulty framing (RFC 9112, 6.1); Content-Length is fine."""
    old = {"version": (1, 0), "host": None}
    assert decide(head("POST", "/api/show", (CODING, b"chunked"), **old), POLICY) is refusals.TRANSFER_ENCODING_INVALID
    assert isinstance(decide(head("POST", "/api/show", (LENGTH, b"5"), **old), POLICY), Route)


@pytest.mark.parametrize(
    ("method", "target", "values", "passes"),
    [
        ("POST", "/v1/responses", [b"zstd"], True),
        ("POST", "/v1/messages", [b"zstd"], True),
        ("POST", "/v1/embeddings", [b"zstd"], True),
        ("POST", "/v1/messages", [b"identity"], True),
        ("POST", "/api/show", [b"identity"], True),
        ("GET", "/api/version", [b"gzip"], True),
        ("POST", "/v1/messages", [b"gzip"], False),
        ("POST", "/v1/messages", [b"br"], False),
        ("POST", "/v1/messages", [b"deflate"], False),
        ("POST", "/v1/messages", [b"Zstd"], False),
        ("POST", "/v1/messages", [b"zstd, gzip"], False),
        ("POST", "/v1/messages", [b"zstd", b"gzip"], False),
        ("POST", "/v1/messages", [b"zstd", b"zstd"], False),
        ("POST", "/v1/messages", [b""], False),
        ("POST", "/api/show", [b"zstd"], False),
        ("POST", "/api/chat", [b"zstd"], False),
        ("POST", "/v1/audio/transcriptions", [b"zstd"], False),
    ],
)
def test_content_that_ollama_cannot_unpack_is_refused(method, target, values, passes):
    """A coding of content passes where Ollama reads it: zstd on the JSON routes below /v1, as it compares it."""
    verdict = decide(head(method, target, *((b"Content-Encoding", value) for value in values)), OPEN)
    assert isinstance(verdict, Route) is passes
    assert passes or reason_of(verdict) == "content_coding_unknown"


@pytest.mark.parametrize("length", [b"1001", b"9223372036854775807"])
def test_announced_content_over_the_limit_is_refused(length):
    """Content-Length above `max_body` is 413 before anything is read, and names the limit."""
    refusal = decide(head("POST", "/api/show", (LENGTH, length)), POLICY)
    assert (refusal.reason, refusal.status, refusal.closes) == (Reason.CONTENT_TOO_LARGE, 413, True)
    assert "1000" in refusal.message


@pytest.mark.parametrize(
    ("values", "passes"),
    [
        ([b"100-continue"], True),
        ([b"100-Continue"], True),
        ([b"100-continue", b"100-continue"], False),
        ([b"200-ok"], False),
        ([b""], False),
        ([b"100-continue, x"], False),
        ([b"100-continue;a"], False),
    ],
)
def test_only_100_continue_can_be_expected(values, passes):
    """Any expectation but one `100-continue` is 417."""
    verdict = decide(head("POST", "/api/show", *((EXPECT, value) for value in values)), POLICY)
    assert isinstance(verdict, Route) if passes else verdict is refusals.EXPECTATION_UNKNOWN


@pytest.mark.parametrize(
    ("values", "loops"),
    [
        ([b"1.1 remote-ollama-proxy"], True),
        ([b"1.1 Remote-Ollama-Proxy:11434 (x)"], True),
        ([b"1.0 fred, HTTP/1.1\tremote-ollama-proxy"], True),
        ([b"1.1 a", b"1.1 b,1.1 remote-ollama-proxy"], True),
        ([b"1.1 a (b, (c\\) d), e), 1.1 remote-ollama-proxy"], True),
        ([b"1.1 a (x)1.1 b, 1.1 remote-ollama-proxy"], True),
        ([b"1.1 a ), 1.1 remote-ollama-proxy"], True),
        ([b"1.1 (x)remote-ollama-proxy"], True),
        ([b"1.1 a ((b), 1.1 remote-ollama-proxy)"], False),
        ([b"1.1 a\\, 1.1 remote-ollama-proxy\\"], False),
        ([b"1.1 a (1.1 remote-ollama-proxy, b)"], False),
        ([b"1.1 a (, 1.1 remote-ollama-proxy)"], False),
        ([b"1.1 remote-ollama-proxy-2"], False),
        ([b"1.1 my-remote-ollama-proxy"], False),
        ([b"remote-ollama-proxy"], False),
        ([b"1.1 a", b"", b",,"], False),
        ([b"1.1 vegur\\"], False),
    ],
)
def test_own_name_in_via_is_a_loop(values, loops):
    """A list element of any Via received by our pseudonym is 508; a comment that says so is not."""
    verdict = decide(head("POST", "/api/show", *((VIA, value) for value in values)), POLICY)
    assert verdict is refusals.LOOP if loops else isinstance(verdict, Route)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (0, "version_not_served"),
        (1, "framing_ambiguous"),
        (2, "host_not_allowed"),
        (3, "origin_not_allowed"),
        (3.5, "websocket"),
        (4, "path_not_served"),
        (5, "loop"),
        (6, "expectation_unknown"),
        (6.5, "content_coding_unknown"),
        (7, "content_too_large"),
    ],
)
def test_rules_are_judged_in_their_order(broken, reason):
    """Of several broken rules the first decides: a head of doubtful framing is never refused for less."""
    asked = head(
        "GET" if broken <= 3.5 else "POST",
        "/api/pull" if broken <= 4 else "/api/show",
        (b"Origin", b"null" if broken <= 3 else b"app://x"),
        *([(b"Upgrade", b"websocket")] if broken <= 3.5 else []),
        *([(VIA, b"1.1 remote-ollama-proxy")] if broken <= 5 else []),
        *([(EXPECT, b"x")] if broken <= 6 else []),
        *([(b"Content-Encoding", b"gzip")] if broken <= 6.5 else []),
        *([(CODING, b"chunked")] if broken <= 1 else []),
        (LENGTH, b"1001"),
        version=(2, 0) if broken == 0 else (1, 1),
        host=(b"Host", b"evil.com" if broken <= 2 else b"mac"),
    )
    assert reason_of(decide(asked, POLICY)) == reason


# --- peers ------------------------------------------------------------------------------------------------------------

PEERS = Policy.of(allowed_peers=["192.168.7.0/24", "2001:db8::/32"], max_body=1)


@pytest.mark.parametrize(
    ("peer", "local", "served"),
    [
        pytest.param("100.64.0.1", "100.100.1.2", True, id="device"),
        pytest.param("100.127.255.255", "100.100.1.2", True, id="last_of_the_range"),
        pytest.param("100.128.0.0", "100.100.1.2", False, id="after_the_range"),
        pytest.param("100.63.255.255", "100.100.1.2", False, id="before_the_range"),
        pytest.param("100.100.1.2", "100.100.1.2", True, id="the_machine_itself"),
        pytest.param("192.168.1.9", "100.100.1.2", False, id="lan_neighbour"),
        pytest.param("127.0.0.1", "100.100.1.2", False, id="loopback_source"),
        pytest.param("192.168.7.9", "100.100.1.2", True, id="allowed_subnet"),
        pytest.param("2001:db8::9", "fd7a:115c:a1e0::2", True, id="allowed_subnet_v6"),
        pytest.param("fd7a:115c:a1e0::1", "fd7a:115c:a1e0::2", True, id="device_v6"),
        pytest.param("fd7a:115c:a1e1::1", "fd7a:115c:a1e0::2", False, id="other_ula"),
        pytest.param("fe80::1%en0", "fd7a:115c:a1e0::2", False, id="link_local_neighbour"),
        pytest.param("::ffff:100.64.0.1", "::ffff:100.100.1.2", True, id="mapped_device"),
        pytest.param("::ffff:192.168.1.9", "::ffff:100.100.1.2", False, id="mapped_neighbour"),
        pytest.param("192.168.1.9", "192.168.1.2", True, id="other_local_address"),
        pytest.param("127.0.0.1", "127.0.0.1", True, id="loopback"),
        pytest.param("", "127.0.0.1", False, id="no_peer"),
        pytest.param("100.64.0.1", "", False, id="no_local"),
    ],
)
def test_tailscale_address_serves_the_tailnet(peer, local, served):
    """On a Tailscale address only devices of the tailnet and `allowed_peers` are served. Elsewhere every peer is."""
    assert peer_allowed(peer, local, PEERS.allowed_peers) is served


# --- nothing off the table ever passes --------------------------------------------------------------------------------

PATHS = sorted({path for paths in OLLAMA.values() for path in paths.split()})
PIECES = st.sampled_from([
    "/", "//", "/./", "/../", "/v1", "/api", "%2f", "%2F", "%2e%2e", "%252f", "%3a", "%3A", ":", "\\", ";", "#", "?",
    ".", "..", "%00", "%", "a", "A", "~", "@", " ", "\x00", "*", "{m}", *PATHS,
])  # fmt: skip
NAMES = st.lists(st.sampled_from(["m", ":", "%3A", "%2F", "%2e", "%6d", ".", "..", "/", "@", "%25", "\\"]), max_size=4)


@st.composite
def near_misses(draw, *paths):
    """Draw one of `paths`, written otherwise in up to two places."""
    path = draw(st.sampled_from(paths)).replace("*", "".join(draw(NAMES)))
    for _ in range(draw(st.integers(0, 2))):
        spot = draw(st.integers(0, len(path)))
        before, mark, after = path[:spot], path[spot : spot + 1], path[spot + 1 :]
        changed = [f"%{ord(mark):02x}", f"%{ord(mark):02X}", mark.swapcase()] if mark else [""]
        path = before + draw(st.one_of(st.sampled_from(changed), PIECES.map(mark.__add__))) + after
    return path


TARGETS = st.one_of(
    near_misses(*PATHS), st.lists(PIECES, max_size=6).map("".join), st.text(st.characters(max_codepoint=127))
)
METHODS = st.sampled_from(["GET", "POST", "HEAD", "DELETE", "PUT", "OPTIONS", "CONNECT", "get", "Post"])
ROWS = [(method, path) for method, paths in OLLAMA.items() for path in paths.split()]
MANAGEMENT = [row for row in ROWS if " ".join(row) not in {route.name for route in ROUTES}]
MODEL = ("GET", "/v1/models/*")


@examples(500)
@given(st.one_of(st.sampled_from(ROWS), st.just(MODEL)), st.data(), st.sampled_from([POLICY, OPEN]))
def test_what_passes_is_the_same_row_for_ollama(row, data, policy):
    """However Ollama may read a target that passes, it can only reach the row that the gate let through."""
    target = data.draw(near_misses(row[1]))
    method = data.draw(st.one_of(st.just(row[0]), METHODS))
    verdict = decide(head(method, target), policy)
    if isinstance(verdict, Route):
        assert policy is OPEN or not verdict.opt_in
        assert ollama_routes(method, target) == {verdict.name}


@examples(300)
@given(METHODS, TARGETS)
def test_what_passes_by_chance_is_the_same_row_too(method, target):
    """The same holds for targets that resemble nothing."""
    verdict = decide(head(method, target), OPEN)
    assert not isinstance(verdict, Route) or ollama_routes(method, target) == {verdict.name}


@examples(300)
@given(st.sampled_from(MANAGEMENT), st.data())
def test_no_spelling_of_a_management_path_passes(row, data):
    """What Ollama could take for a management path is refused, however it is written, all rows open."""
    method, path = row
    target = data.draw(near_misses(path))
    if f"{method} {path}" in ollama_routes(method, target):
        assert isinstance(decide(head(method, target), OPEN), Refusal)


FIELDS = st.lists(
    st.tuples(
        st.sampled_from(
            [b"Host", b"Origin", LENGTH, CODING, EXPECT, VIA, b"Access-Control-Request-Method", b"Connection"]
        ),
        st.one_of(
            st.binary(max_size=30), st.sampled_from([b"mac", b"chunked", b"5", b"http://localhost", b"GET", b"1.1 x"])
        ),
    ),
    max_size=6,
)


@examples(500)
@given(METHODS, st.one_of(TARGETS, st.text()), FIELDS, st.sampled_from([(1, 1), (1, 0), (2, 0)]))
def test_any_head_gets_a_verdict(method, target, fields, version):
    """Whatever a head holds, the gate answers with a verdict and doesn't raise."""
    asked = head(method, target, *fields, version=version, host=None)
    assert isinstance(decide(asked, OPEN), Route | Refusal | Preflight)
    assert allowed_origin(asked, OPEN) in {None, asked.read.get(b"origin")}


def test_the_judge_knows_a_bypass():
    """The model of Ollama's routing does see through escapes, dots and slashes: otherwise it would prove nothing."""
    for target in (
        "/%61pi/delete",
        "/api%2Fdelete",
        "//api/delete",
        "/v1/../api/delete",
        "/api/delete/",
        "/api%252fdelete",
    ):
        assert "DELETE /api/delete" in ollama_routes("DELETE", target)
    assert ollama_routes("GET", "/v1/models/a%3Ab") == {"GET /v1/models/*"}


def test_a_head_is_judged_anew_by_another_policy():
    """What one policy made of a head is no word in what another makes of it: a reload applies at once."""
    same = head("GET", "/api/ps")
    closed = decide(same, POLICY)
    assert reason_of(closed) == "path_not_served"
    assert isinstance(decide(same, OPEN), Route)
    assert decide(same, POLICY) == closed
