"""What a gateway changes in a head, field by field, and that it changes nothing else."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.exchange.message import forwarding
from proxy.exchange.message.forwarding import CREDENTIALS, nominated, request_head, response_head
from proxy.policy.heads import RequestHead

AUTHORITY = b"127.0.0.1:11434"
VIA = b"Via: 1.1 remote-ollama-proxy"

Pairs = list[tuple[bytes, bytes]]


def request(
    fields: Pairs, *, version: tuple[int, int] = (1, 1), method: str = "POST", target: str = "/x"
) -> RequestHead:
    """Return a request head with these fields."""
    return RequestHead(method, target, version, tuple(fields))


def sent(fields: Pairs, *, forward_credentials: bool = False) -> list[bytes]:
    """Return the field lines that go upstream for these, but the one that frames."""
    head = request(fields)
    octets = request_head(head, AUTHORITY, forward_credentials=forward_credentials)
    start, *lines, empty, behind = octets.replace(head.framing + b"\r\n\r\n", b"\r\n\r\n").split(b"\r\n")
    assert (start, empty, behind) == (b"POST /x HTTP/1.1", b"", b"")
    return lines


def answered(fields: Pairs) -> list[bytes]:
    """Return the field lines that go downstream for these."""
    start, *lines = response_head(200, tuple(fields)).split(b"\r\n")
    assert start == b"HTTP/1.1 200 OK"
    return lines


def lines_of(fields: Pairs) -> list[bytes]:
    """Return fields as the lines that they should be, unchanged."""
    return [name + b": " + value for name, value in fields]


# --- requests ---------------------------------------------------------------------------------------------------------

HOP_BY_HOP = [
    "Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authentication-Info", "Proxy-Authorization",
    "Proxy-Connection", "TE", "Trailer", "Transfer-Encoding", "Upgrade", "HTTP2-Settings",
]  # fmt: skip
DROPPED = [
    *HOP_BY_HOP,
    "Host", "Content-Length", "Expect",
    "Origin", "Referer", "Sec-Fetch-Mode", "Sec-Fetch-Site", "Sec-Fetch-Dest", "Sec-Fetch-User",
    "Access-Control-Request-Method", "Access-Control-Request-Headers", "Access-Control-Request-Private-Network",
    "Accept-Encoding",
    "Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Anything", "X-Real-IP",
    "X-Forwarded", "Forwarded-For", "Forwarded-For-IP", "X-Forward-For", "X-Forwarder-For", "X-Original-Forwarded-For",
    "X-Original-For", "X-Vercel-Forwarded-For", "X-Vercel-Proxied-For", "HTTP-X-Forwarded-For",
    "Client-IP", "X-Client-IP", "True-Client-IP", "CF-Connecting-IP", "CF-Connecting-IPv6", "CF-Pseudo-IPv4",
    "X-Cluster-Client-IP", "Fastly-Client-IP", "Fly-Client-IP", "Proxy-Client-IP", "WL-Proxy-Client-IP",
    "X-ProxyUser-IP", "X-Remote-IP", "X-Remote-Addr", "Remote-Addr", "X-Originating-IP", "X-Source-IP", "Cdn-Src-IP",
    "Ali-CDN-Real-IP", "X-Appengine-User-IP", "X-NF-Client-Connection-IP", "DO-Connecting-IP", "X-Sucuri-ClientIP",
    "X-Azure-ClientIP", "X-Azure-SocketIP", "X-Envoy-External-Address", "X-Client-Address", "X-Peer-Address",
    "X-Real-IP-Address", "X-Client-IPAddress", "X-IP", "Remote-Host", "X-Client-Host", "X-Original-Host",
    "Tailscale-User-Login", "Tailscale-User-Name", "Tailscale-User-Profile-Pic", "Tailscale-Headers-Info",
    "Authorization", "X-Api-Key", "Cookie",
]  # fmt: skip
KEPT = [
    "Accept", "Accept-Language", "Content-Type", "Content-Encoding", "User-Agent", "anthropic-version",
    "anthropic-beta",
    "anthropic-dangerous-direct-browser-access", "x-stainless-lang", "x-stainless-retry-count", "x-app", "X-Request-Id",
    "OpenAI-Organization", "Idempotency-Key", "Cache-Control", "Sec-Fetchy", "X-Forwards", "Access-Control", "DNT",
    "Via", "Date", "X-Real-IPs", "Cookies", "Hosts", "X_Under_Score", "X-Zip", "X-Gossip", "X-IPs", "X-Client-Version",
    "X-Client-Name", "Max-Forwards", "X-Clientip-Hint", "X-Remote", "X-Address-Book", "Ship", "X-Script-Host",
    "X-User-Agent", "X-Wait-For", "X-Forward", "From",
]  # fmt: skip


def _folded(name: str) -> str:
    """Return `name` as CGI and its kin would mistake it: `_` for `-`."""
    return name.replace("-", "_", 1)


@pytest.mark.parametrize(
    "spell",
    [str, str.lower, str.upper, str.swapcase, _folded],
    ids=["as_is", "lower", "upper", "swapped", "underscore"],
)
@pytest.mark.parametrize("name", DROPPED)
def test_dropped_request_fields(name: str, spell: type[str]) -> None:
    """A field that concerns this connection, CORS, credentials or forgeable origins never reaches Ollama."""
    fields = [(b"Accept", b"*/*"), (spell(name).encode(), b"evil"), (b"X-Last", b"1")]
    assert sent(fields) == [b"Host: " + AUTHORITY, b"Accept: */*", b"X-Last: 1", VIA]


@pytest.mark.parametrize("spell", [str, str.lower, str.upper], ids=["as_is", "lower", "upper"])
@pytest.mark.parametrize("name", KEPT)
def test_kept_request_fields(name: str, spell: type[str]) -> None:
    """Every other field passes, spelt as it came."""
    spelt = spell(name).encode()
    assert sent([(spelt, b"a, b")]) == [b"Host: " + AUTHORITY, spelt + b": a, b", VIA]


def test_order_and_repeats() -> None:
    """Fields keep their order and their repeats."""
    fields = [(b"X-B", b"1"), (b"X-A", b"2"), (b"Host", b"mac"), (b"X-B", b"3"), (b"x-b", b"")]
    assert sent(fields) == [b"Host: " + AUTHORITY, b"X-B: 1", b"X-A: 2", b"X-B: 3", b"x-b: ", VIA]


@pytest.mark.parametrize("name", ["Authorization", "X-Api-Key", "Cookie", "aUTHORIZATION"])
def test_forward_credentials(name: str) -> None:
    """Credentials pass when the owner asks for it."""
    fields = [(name.encode(), b"secret")]
    assert sent(fields, forward_credentials=True) == [b"Host: " + AUTHORITY, name.encode() + b": secret", VIA]


@pytest.mark.parametrize("name", ["Authorization", "X-Api-Key", "Cookie"])
def test_credentials_stay_unless_asked_for(name: str) -> None:
    """A caller of `request_head` that says nothing about credentials forwards none."""
    assert b"secret" not in request_head(request([(name.encode(), b"secret")]), AUTHORITY)


def test_forward_credentials_forwards_no_other() -> None:
    """The credentials of this hop stay here even so (RFC 9110, 11.7.1)."""
    assert sent([(b"Proxy-Authorization", b"secret")], forward_credentials=True) == [b"Host: " + AUTHORITY, VIA]


@pytest.mark.parametrize(
    ("connection", "dropped"),
    [
        pytest.param([b"x-hop"], {b"X-Hop"}, id="one"),
        pytest.param([b"X-HOP"], {b"X-Hop"}, id="other_case"),
        pytest.param([b"close, x-hop"], {b"X-Hop"}, id="with_close"),
        pytest.param([b" x-hop\t,\tanthropic-beta ,"], {b"X-Hop", b"Anthropic-Beta"}, id="spaces_and_empty_elements"),
        pytest.param([b"keep-alive", b"x-hop"], {b"X-Hop"}, id="second_line"),
        pytest.param([b"x-hop", b"close"], {b"X-Hop"}, id="first_of_two_lines"),
        pytest.param([b"close"], set(), id="close"),
        pytest.param([b"keep-alive"], set(), id="keep_alive"),
        pytest.param([b"Keep-Alive, Close"], set(), id="both"),
        pytest.param([b""], set(), id="empty"),
        pytest.param([b"x-hop-longer"], set(), id="another_name"),
        pytest.param([b"close; x-hop"], set(), id="no_list"),
        pytest.param([b"via"], {b"Via"}, id="the_clients_via"),
    ],
)
def test_nominated_request_fields(connection: list[bytes], dropped: set[bytes]) -> None:
    """A field that Connection names concerns this connection alone (RFC 9110, 7.6.1)."""
    others = [(b"X-Hop", b"1"), (b"X-Stays", b"2"), (b"Anthropic-Beta", b"3"), (b"Via", b"1.1 other")]
    fields = [*((b"Connection", value) for value in connection), *others]
    kept = [(name, value) for name, value in others if name not in dropped]
    assert sent(fields) == [b"Host: " + AUTHORITY, *lines_of(kept), VIA]


def test_nominated() -> None:
    """Names are compared in lower case, and without the spaces and tabs around them, which alone are cut."""
    assert nominated([b" A ,b", b"C\t", b"\x0bd"]) == {b"a", b"b", b"c", b"\x0bd"}


@pytest.mark.parametrize("option", [b"x_hop", b"X_HOP", b"x-hop"])
def test_nominated_with_underscores(option: bytes) -> None:
    """A nominated field goes whether it is named as it is spelt or as others read it, `_` for `-`."""
    assert sent([(b"Connection", option), (b"X_Hop", b"1")]) == [b"Host: " + AUTHORITY, VIA]


@pytest.mark.parametrize("name", ["Authorization", "X-Api-Key", "Cookie"])
def test_nominating_frees_no_credential(name: str) -> None:
    """A Connection that names other fields doesn't let a credential pass that would have stayed here."""
    fields = [(b"Connection", b"x-hop"), (name.encode(), b"secret"), (b"X-Hop", b"1")]
    assert sent(fields) == [b"Host: " + AUTHORITY, VIA]


@pytest.mark.parametrize(
    ("version", "via"), [((1, 1), b"Via: 1.1 remote-ollama-proxy"), ((1, 0), b"Via: 1.0 remote-ollama-proxy")]
)
def test_via(version: tuple[int, int], via: bytes) -> None:
    """Via names us after those before us, with the version that the request came in (RFC 9110, 7.6.3)."""
    octets = request_head(request([(b"Via", b"1.1 laptop")], version=version), AUTHORITY)
    assert octets.endswith(b"\r\nVia: 1.1 laptop\r\n" + via + b"\r\n\r\n")


LENGTH = (b"content-LENGTH", b"7")
CHUNKED = (b"Transfer-encoding", b"Chunked")


@pytest.mark.parametrize(
    ("fields", "framing"),
    [
        pytest.param([], [], id="none"),
        pytest.param([LENGTH], [b"Content-Length: 7"], id="length"),
        pytest.param([CHUNKED], [b"Transfer-Encoding: chunked"], id="chunked"),
        pytest.param([(b"TE", b"trailers"), LENGTH, (b"X-A", b"1")], [b"Content-Length: 7"], id="among_others"),
        pytest.param([LENGTH, LENGTH, CHUNKED], [b"Transfer-Encoding: chunked"], id="never_two"),
    ],
)
def test_one_framing_line(fields: Pairs, framing: list[bytes]) -> None:
    """Content is framed as it came, by one line that is the last and ours."""
    lines = request_head(request(fields), AUTHORITY).removesuffix(b"\r\n\r\n").split(b"\r\n")
    assert lines[lines.index(VIA) + 1 :] == framing
    assert not [line for line in lines[: lines.index(VIA)] if line.lower().startswith((b"content-l", b"transfer-"))]


def test_request_line() -> None:
    """Method and target pass as sent, query included; the version is always HTTP/1.1."""
    head = request([], version=(1, 0), method="GET", target="/v1/models/a%3Ab?x=%2F&y")
    assert request_head(head, AUTHORITY).startswith(b"GET /v1/models/a%3Ab?x=%2F&y HTTP/1.1\r\nHost: 127.0.0.1")


def _cased(name: str) -> st.SearchStrategy[bytes]:
    """Draw any spelling of `name` in capitals and small letters."""
    return st.lists(st.booleans(), min_size=len(name), max_size=len(name)).map(
        lambda flags: "".join(c.upper() if flag else c.lower() for c, flag in zip(name, flags, strict=True)).encode()
    )


TOKEN = string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~"
_NAMES = st.one_of(
    st.sampled_from([*DROPPED, *map(_folded, DROPPED), *KEPT]).flatmap(_cased),
    st.text(TOKEN, min_size=1, max_size=20).map(str.encode),
)
_VALUES = st.binary(max_size=20).map(
    lambda value: bytes(octet for octet in value if octet > 31 and octet != 127).strip()
)
_FIELDS = st.lists(st.tuples(_NAMES, _VALUES), max_size=12)
_PREFIXES = ("sec-fetch-", "access-control-request-", "x-forwarded-", "tailscale-")


def named_by_connection(fields: Pairs) -> set[str]:
    """Return the names of fields that Connection fields list (RFC 9110, 7.6.1), in small letters."""
    return {
        element.strip().lower()
        for name, value in fields
        if name.lower() == b"connection"
        for element in value.decode("latin-1").split(",")
    }


@given(_FIELDS, st.booleans())
def test_any_request_fields(fields: Pairs, forward_credentials: bool) -> None:
    """Whatever the letter case, `_` for `-` or not, the fields that must go are gone, and nothing else is changed."""
    named = named_by_connection(fields)

    def goes(name: bytes) -> bool:
        lowered = name.decode().lower().replace("_", "-")
        if name.decode().lower() in named or lowered in named or forwarding.FORGEABLE(lowered.encode()):
            return True
        if forward_credentials and lowered.encode() in CREDENTIALS:
            return False
        return lowered in {each.lower() for each in DROPPED} or lowered.startswith(_PREFIXES)

    kept = [(name, value) for name, value in fields if not goes(name)]
    assert sent(fields, forward_credentials=forward_credentials) == [b"Host: " + AUTHORITY, *lines_of(kept), VIA]


# --- answers ----------------------------------------------------------------------------------------------------------

ANSWER_DROPPED = [
    *HOP_BY_HOP,
    "Content-Length",
    "Access-Control-Allow-Origin", "Access-Control-Allow-Headers", "Access-Control-Expose-Headers",
    "Access-Control-Allow-Credentials", "Access-Control-Max-Age",
    "x-request-id", "request-id",
]  # fmt: skip
ANSWER_KEPT = [
    "Content-Type", "Date", "Cache-Control", "Server", "Vary", "Set-Cookie", "Content-Encoding", "Allow", "Location",
    "Retry-After", "X-Ollama-Version",
]  # fmt: skip


@pytest.mark.parametrize("spell", [str, str.lower, str.upper, str.swapcase], ids=["as_is", "lower", "upper", "swapped"])
@pytest.mark.parametrize("name", ANSWER_DROPPED)
def test_dropped_answer_fields(name: str, spell: type[str]) -> None:
    """A field that concerns Ollama's connection, its CORS or its request ids never reaches a client."""
    fields = [(b"Content-Type", b"text/plain"), (spell(name).encode(), b"x"), (b"X-Last", b"1")]
    assert answered(fields) == [b"Content-Type: text/plain", b"X-Last: 1"]


@pytest.mark.parametrize("name", ANSWER_KEPT)
def test_kept_answer_fields(name: str) -> None:
    """Every other field passes, spelt as it came; our own lines follow."""
    fields = [(name.encode(), b"a"), (name.lower().encode(), b"b")]
    assert answered(fields) == lines_of(fields)


@pytest.mark.parametrize(
    "connection",
    [[b"x-hop"], [b"close, X-Hop"], [b"keep-alive", b"x-hop"]],
    ids=["one", "with_close", "second_line"],
)
def test_nominated_answer_fields(connection: list[bytes]) -> None:
    """A field that Ollama's Connection names goes too."""
    fields = [*((b"connection", value) for value in connection), (b"X-Hop", b"1"), (b"X-Stays", b"2")]
    assert answered(fields) == [b"X-Stays: 2"]


def test_only_connection_names_answer_fields() -> None:
    """A value of any other field that happens to be a field's name removes nothing."""
    fields = [(b"Connection", b"X-Hop"), (b"Server", b"X-Stays"), (b"X-Stays", b"2")]
    assert answered(fields) == lines_of(fields[1:])


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (200, b"HTTP/1.1 200 OK"),
        (204, b"HTTP/1.1 204 No Content"),
        (404, b"HTTP/1.1 404 Not Found"),
        (503, b"HTTP/1.1 503 Service Unavailable"),
        (499, b"HTTP/1.1 499 Status"),
        (599, b"HTTP/1.1 599 Status"),
    ],
)
def test_status_line(status: int, line: bytes) -> None:
    """The reason phrase is ours: httptools lets control bytes through in Ollama's."""
    assert response_head(status, ()) == line


@given(_FIELDS)
def test_any_answer_fields(fields: Pairs) -> None:
    """Whatever the letter case, exactly the fields that must go are gone, and nothing else is changed."""
    named = named_by_connection(fields)

    def goes(name: bytes) -> bool:
        lowered = name.decode().lower()
        dropped = {each.lower() for each in ANSWER_DROPPED}
        return lowered in named or lowered in dropped or lowered.startswith("access-control-")

    assert answered(fields) == lines_of([(name, value) for name, value in fields if not goes(name)])
