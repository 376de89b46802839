"""Two parsers, one stream of bytes: whatever a client writes, Ollama sees only allowed requests, each complete.

The judge is what arrived at the upstream, not what the client got. tests/attacks/ has many more, as data.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.support.raw_http import ok, until

if TYPE_CHECKING:
    from tests.support.raw_http import Proxy, Upstream, Wire

HEAD = b"POST /api/show HTTP/1.1\r\nHost: mac\r\n"
GET = b"GET /api/version HTTP/1.1\r\nHost: mac\r\n"
LENGTH = b"Content-Length: "
CODED = b"Transfer-Encoding: chunked\r\n"
EVIL = b"DELETE /api/delete HTTP/1.1\r\nHost: mac\r\n\r\n"
HIDDEN = b"0\r\n\r\n" + EVIL  # content to who reads the length, a last chunk and a request to who reads chunks


def length(count: int) -> bytes:
    """Return the field line that announces `count` bytes."""
    return b"Content-Length: %d\r\n" % count


def get(target: bytes) -> bytes:
    """Return a GET of `target`."""
    return b"GET %b HTTP/1.1\r\nHost: mac\r\n\r\n" % target


# What must be refused whole: not one byte of it reaches Ollama.
REFUSED = {
    # Two lengths in one head (RFC 9112, 6.3 and 11.2).
    "cl_te": HEAD + length(len(HIDDEN)) + CODED + b"\r\n" + HIDDEN,
    "te_cl": HEAD + CODED + length(4) + b"\r\n" + b"2c\r\n" + EVIL + b"\r\n0\r\n\r\n",
    "cl_0_te": HEAD + length(0) + CODED + b"\r\n" + HIDDEN,
    "te_te": HEAD + CODED + b"Transfer-Encoding: identity\r\n\r\n" + HIDDEN,
    "te_twice": HEAD + CODED + CODED + b"\r\n" + HIDDEN,
    "cl_twice": HEAD + length(0) + length(len(EVIL)) + b"\r\n" + EVIL,
    "cl_twice_the_same": HEAD + length(2) + length(2) + b"\r\n{}" + EVIL,
    "cl_list": HEAD + LENGTH + b"0, %d\r\n\r\n" % len(EVIL) + EVIL,
    "cl_list_the_same": HEAD + LENGTH + b"2, 2\r\n\r\n{}" + EVIL,
    # A length that parsers read differently.
    "cl_plus": HEAD + LENGTH + b"+2\r\n\r\n{}" + EVIL,
    "cl_minus": HEAD + LENGTH + b"-1\r\n\r\n" + EVIL,
    "cl_hex": HEAD + LENGTH + b"0x2\r\n\r\n{}" + EVIL,
    "cl_underscore": HEAD + LENGTH + b"1_0\r\n\r\n{}" + EVIL,
    "cl_leading_zero": HEAD + LENGTH + b"02\r\n\r\n{}" + EVIL,
    "cl_inner_space": HEAD + LENGTH + b"1 2\r\n\r\n{}" + EVIL,
    "cl_empty": HEAD + LENGTH + b"\r\n\r\n" + EVIL,
    "cl_text": HEAD + LENGTH + b"two\r\n\r\n{}" + EVIL,
    "cl_arabic_digit": HEAD + LENGTH + "\u0662".encode() + b"\r\n\r\n{}" + EVIL,
    "cl_2_63": HEAD + LENGTH + b"9223372036854775808\r\n\r\n" + EVIL,
    "cl_2_64_less_1": HEAD + LENGTH + b"18446744073709551615\r\n\r\n" + EVIL,
    "cl_2_64": HEAD + LENGTH + b"18446744073709551616\r\n\r\n" + EVIL,
    "cl_2_64_and_2": HEAD + LENGTH + b"18446744073709551618\r\n\r\n{}" + EVIL,
    # A transfer-coding that one of two takes for chunked.
    "te_gzip": HEAD + b"Transfer-Encoding: gzip\r\n\r\n" + HIDDEN,
    "te_gzip_chunked": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + HIDDEN,
    "te_chunked_gzip": HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n" + HIDDEN,
    "te_chunked_chunked": HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n" + HIDDEN,
    "te_identity": HEAD + b"Transfer-Encoding: identity\r\n" + length(2) + b"\r\n{}",
    "te_xchunked": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n" + HIDDEN,
    "te_quoted": HEAD + b'Transfer-Encoding: "chunked"\r\n\r\n' + HIDDEN,
    "te_parameter": HEAD + b"Transfer-Encoding: chunked;q=1\r\n\r\n" + HIDDEN,
    "te_comma_chunked": HEAD + b"Transfer-Encoding: , chunked\r\n\r\n" + HIDDEN,
    "te_chunked_comma": HEAD + b"Transfer-Encoding: chunked,\r\n\r\n" + HIDDEN,
    "te_vertical_tab": HEAD + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + HIDDEN,
    "te_empty": HEAD + b"Transfer-Encoding:\r\n\r\n" + HIDDEN,
    "te_empty_cl": HEAD + b"Transfer-Encoding:\r\n" + length(len(HIDDEN)) + b"\r\n" + HIDDEN,
    "te_on_1_0": HEAD.replace(b"1.1", b"1.0") + CODED + b"\r\n" + HIDDEN,
    # Names and lines that one of two reads as something else.
    "cl_space_before_colon": HEAD + b"Content-Length : %d\r\n\r\n" % len(EVIL) + EVIL,
    "te_space_before_colon": HEAD + b"Transfer-Encoding : chunked\r\n" + length(len(HIDDEN)) + b"\r\n" + HIDDEN,
    "te_tab_before_colon": HEAD + b"Transfer-Encoding\t: chunked\r\n" + length(len(HIDDEN)) + b"\r\n" + HIDDEN,
    "te_nul_in_name": HEAD + b"Transfer-Encoding\0: chunked\r\n" + length(len(HIDDEN)) + b"\r\n" + HIDDEN,
    "te_space_first": HEAD + b" Transfer-Encoding: chunked\r\n" + length(len(HIDDEN)) + b"\r\n" + HIDDEN,
    "te_folded": HEAD + b"Transfer-Encoding:\r\n chunked\r\n" + length(len(HIDDEN)) + b"\r\n" + HIDDEN,
    "field_folded": HEAD + b"X: a\r\n\t" + CODED + length(len(HIDDEN)) + b"\r\n" + HIDDEN,
    "te_behind_bare_lf": HEAD + b"X: a\n" + CODED + length(len(HIDDEN)) + b"\r\n" + HIDDEN,
    "te_behind_bare_cr": HEAD + b"X: a\r" + CODED + length(len(HIDDEN)) + b"\r\n" + HIDDEN,
    "bare_lf_everywhere": b"GET /api/version HTTP/1.1\nHost: mac\n\n",
    "bare_lf_ends_the_head": GET + b"\n" + EVIL,
    "bare_cr_ends_the_head": GET + b"\r\r\n" + EVIL,
    "nul_in_value": GET + b"X: a\0b\r\n\r\n",
    "control_in_value": GET + b"X: a\x01b\r\n\r\n",
    "no_colon": GET + b"Content-Length\r\n\r\n",
    "empty_name": GET + b": 5\r\n\r\n",
    "non_ascii_name": GET + b"Content-Length\xa0: 5\r\n\r\n",
    "two_hosts": GET + b"Host: other\r\n\r\n",
    "no_host": b"GET /api/version HTTP/1.1\r\n\r\n",
    # Targets that Ollama, which decodes and cleans them, might route elsewhere.
    "absolute_form": get(b"http://mac/api/version"),
    "absolute_form_evil": get(b"http://127.0.0.1:11434/api/ps"),
    "authority_form": b"CONNECT 127.0.0.1:11434 HTTP/1.1\r\nHost: mac\r\n\r\n" + EVIL,
    "asterisk_form": b"OPTIONS * HTTP/1.1\r\nHost: mac\r\n\r\n",
    "encoded_letter": get(b"/%61pi/ps"),
    "encoded_slash": get(b"/api%2Fps"),
    "encoded_slash_in_a_model": get(b"/v1/models/..%2f..%2fapi%2fps"),
    "encoded_dots": get(b"/v1/models/%2e%2e/%2e%2e/api/ps"),
    "encoded_nul": get(b"/api/version%00"),
    "encoded_crlf": get(b"/v1/models/a%0d%0aX:%20y"),
    "double_encoded": get(b"/%2561pi/ps"),
    "dots": get(b"/v1/models/../../api/ps"),
    "dots_at_the_end": get(b"/v1/models/.."),
    "dot": get(b"/api/./version"),
    "two_slashes": get(b"//api/ps"),
    "slash_behind": get(b"/api/ps/"),
    "backslash": get(b"/api\\version"),
    "semicolon": get(b"/api/version;x=/api/ps"),
    "fragment": get(b"/api/version#/api/ps"),
    "upper_case": get(b"/API/version"),
    "query_hides_nothing": get(b"/api/ps?/api/version"),
    "tab_in_target": get(b"/api/version\t/api/ps"),
    "non_ascii_target": get(b"/api/version\xc3\xa4"),
    "space_in_target": get(b"/api/version /api/ps"),
    # Versions and methods.
    "http_0_9": b"GET /api/version\r\n\r\n",
    "http_2": GET.replace(b"1.1", b"2.0") + b"\r\n",
    "http_1_2": GET.replace(b"1.1", b"1.2") + b"\r\n",
    "http_2_preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "other_protocol": GET.replace(b"HTTP/1.1", b"ICE/1.0") + b"\r\n",
    "lower_case_method": GET.replace(b"GET", b"get") + b"\r\n",
    "head_is_not_get": GET.replace(b"GET", b"HEAD") + b"\r\n",
    "method_override_is_no_method": EVIL[:-2] + b"X-HTTP-Method-Override: GET\r\n\r\n",
}


async def settled(gateway: Proxy, wire: Wire, upstream: Upstream) -> None:
    """Leave, and wait until both sides of the gateway are at rest."""
    wire.half_close()
    await wire.read_until_closed()
    await until(lambda: not gateway.clients.connections)
    gateway.gateway.close()
    await until(lambda: all(peer.closed.is_set() for peer in upstream.peers))


@pytest.mark.parametrize("octets", [pytest.param(octets, id=name) for name, octets in REFUSED.items()])
async def test_refused_whole(gateway: Proxy, upstream: Upstream, wire: Wire, octets: bytes) -> None:
    """What two parsers could frame differently, or what isn't on the table, reaches Ollama with no byte."""
    upstream.answers(ok())
    await wire.send(octets)
    octets = await wire.read_until(b"\r\n\r\n")
    assert re.match(rb"HTTP/1\.1 (400|403|405|505) ", octets)
    await settled(gateway, wire, upstream)
    assert not upstream.peers
    assert {line["verdict"] for line in gateway.audit} == {"refused"}


@pytest.mark.parametrize("octets", [pytest.param(octets, id=name) for name, octets in REFUSED.items()])
async def test_refused_behind_a_good_one(gateway: Proxy, upstream: Upstream, wire: Wire, octets: bytes) -> None:
    """Behind an allowed request on the same connection, in one read with it or not, it is the same."""
    upstream.answers(ok())
    await wire.send(GET + b"\r\n" + octets)
    await wire.read_until(b"\r\n\r\n")
    await settled(gateway, wire, upstream)
    for request in upstream.requests:
        assert request.startswith(b"GET /api/version HTTP/1.1\r\n")
    assert len(upstream.requests) <= 1
    assert not [peer for peer in upstream.peers if b"DELETE" in peer.octets or b"/api/ps" in peer.octets]


# Content that is broken, after a head that is fine: what Ollama gets is never a whole request, and nothing behind it.
BROKEN = {
    "size_with_sign": b"+2\r\n{}\r\n0\r\n\r\n",
    "size_with_prefix": b"0x2\r\n{}\r\n0\r\n\r\n",
    "size_negative": b"-2\r\n{}\r\n0\r\n\r\n",
    "size_empty": b"\r\n{}\r\n0\r\n\r\n",
    "size_is_text": b"two\r\n{}\r\n0\r\n\r\n",
    "size_with_space_before": b" 2\r\n{}\r\n0\r\n\r\n",
    "size_with_space_behind": b"2 \r\n{}\r\n0\r\n\r\n",
    "size_overflows": b"10000000000000002\r\n{}\r\n0\r\n\r\n",
    "size_with_underscore": b"1_0\r\n{}\r\n0\r\n\r\n",
    "size_ended_by_lf": b"2\n{}\r\n0\r\n\r\n",
    "size_ended_by_cr": b"2\r{}\r\n0\r\n\r\n",
    "data_ended_by_lf": b"2\r\n{}\n0\r\n\r\n",
    "data_too_long": b"2\r\n{}}\r\n0\r\n\r\n",
    "data_without_end": b"2\r\n{}0\r\n\r\n",
    "extension_with_lf": b"2;a\n{}\r\n0\r\n\r\n",
    "extension_with_cr": b"2;a\rb\r\n{}\r\n0\r\n\r\n",
    "last_chunk_ended_by_lf": b"2\r\n{}\r\n0\n\n",
    "length_in_the_trailer": b"2\r\n{}\r\n0\r\nContent-Length: 5\r\n\r\n",
    "coding_in_the_trailer": b"2\r\n{}\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "trailer_folded": b"2\r\n{}\r\n0\r\nX: a\r\n b\r\n\r\n",
    "trailer_with_nul": b"2\r\n{}\r\n0\r\nX: a\0\r\n\r\n",
    "trailer_with_bare_lf": b"2\r\n{}\r\n0\r\nX: a\nY: b\r\n\r\n",
}


@pytest.mark.parametrize("apart", [False, True], ids=["one_read", "later"])
@pytest.mark.parametrize("octets", [pytest.param(octets, id=name) for name, octets in BROKEN.items()])
async def test_broken_content(gateway: Proxy, upstream: Upstream, wire: Wire, octets: bytes, apart: bool) -> None:
    """When chunks break, Ollama's connection is cut within the request; what follows is never a request."""
    upstream.answers(ok())
    if apart:
        await wire.send(HEAD + CODED + b"\r\n")
        await until(lambda: upstream.peers and upstream.peers[0].octets)
        await wire.send(octets + EVIL)
    else:
        await wire.send(HEAD + CODED + b"\r\n" + octets + EVIL)
    await wire.read_until(b"\r\n\r\n")
    await settled(gateway, wire, upstream)
    assert not upstream.requests
    assert not [peer for peer in upstream.peers if b"DELETE" in peer.octets]


# What is right, if odd, passes, framed again; EVIL within it is content.
PASSES = {
    "evil_in_the_content": (HEAD + length(len(EVIL)) + b"\r\n" + EVIL, EVIL),
    "evil_in_a_chunk": (HEAD + CODED + b"\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(EVIL), EVIL), EVIL),
    "evil_in_an_extension": (HEAD + CODED + b'\r\n2;a="DELETE /api/delete"\r\n{}\r\n0\r\n\r\n', b"{}"),
    "evil_in_the_trailer": (HEAD + CODED + b"\r\n2\r\n{}\r\n0\r\nDELETE: /api/delete\r\n\r\n", b"{}"),
    "many_zeros": (HEAD + CODED + b"\r\n" + b"0" * 40 + b"2\r\n{}\r\n000\r\n\r\n", b"{}"),
    "upper_case_size": (HEAD + CODED + b"\r\nA\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
    "coding_in_capitals": (HEAD + b"transfer-encoding: Chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", b"{}"),
    "get_with_content": (GET + length(len(EVIL)) + b"\r\n" + EVIL, EVIL),
    "space_around_the_length": (HEAD + b"Content-Length: \t 2 \t\r\n\r\n{}", b"{}"),
}


@pytest.mark.parametrize(("octets", "content"), [pytest.param(*pair, id=name) for name, pair in PASSES.items()])
async def test_content_is_content(
    gateway: Proxy, upstream: Upstream, wire: Wire, octets: bytes, content: bytes
) -> None:
    """A well-framed request arrives as one request with exactly its content, without extensions and trailers."""
    upstream.answers(ok())
    await wire.send(octets)
    assert (await wire.answer()).status == 200
    await settled(gateway, wire, upstream)
    (request,) = upstream.requests
    head, _, framed = request.partition(b"\r\n\r\n")
    if b"ransfer-Encoding" in head:
        assert framed == b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)
        assert b"ontent-Length" not in head
    else:
        assert framed == content
        assert head.count(b"\r\nContent-Length: %d" % len(content)) == 1
    assert [bytes(peer.octets) for peer in upstream.peers] == [request]


@pytest.mark.parametrize("order", ["allowed_first", "forbidden_first"])
async def test_pipelined_forbidden_request(gateway: Proxy, upstream: Upstream, wire: Wire, order: str) -> None:
    """Each request on a connection is judged by itself, whatever stands around it."""
    upstream.answers(ok())
    pair = [GET + b"\r\n", EVIL]
    await wire.send(b"".join(pair if order == "allowed_first" else reversed(pair)))
    statuses = [(await wire.answer()).status for _ in range(2)]
    assert sorted(statuses) == [200, 403]
    assert statuses[0] == (200 if order == "allowed_first" else 403)
    await settled(gateway, wire, upstream)
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("trailer", [b"Host: evil", b"Origin: http://localhost", b"X-Leak: 1", b"Expect: 100-continue"])
async def test_trailers_stay_where_they_are(gateway: Proxy, upstream: Upstream, trailer: bytes) -> None:
    """A trailer never becomes a field of the next request, on the client's connection or on Ollama's."""
    upstream.answers(ok())
    first = await gateway.connect()
    await first.send(HEAD + CODED + b"\r\n2\r\n{}\r\n0\r\n" + trailer + b"\r\n\r\n" + GET + b"\r\n")
    # aiohttp takes a Host there for the second of the request behind it, and refuses the read whole.
    assert (await first.answer()).status == (400 if trailer.startswith(b"Host") else 200)
    assert await first.read() == b""
    second = await gateway.connect()
    await second.send(GET + b"\r\n")
    assert (await second.answer()).status == 200
    assert not [request for request in upstream.requests if trailer in request]
    assert upstream.requests[-1].startswith(b"GET /api/version ")
    first.close()
    second.close()


@pytest.mark.parametrize("name", [b"Content-Length", b"Transfer-Encoding", b"Host", b"content-length"])
async def test_connection_nominates_no_framing(gateway: Proxy, upstream: Upstream, wire: Wire, name: bytes) -> None:
    """A Connection field that names Host or the framing takes neither away: both are written again."""
    upstream.answers(ok())
    await wire.send(HEAD + b"Connection: " + name + b"\r\n" + length(len(EVIL)) + b"\r\n" + EVIL)
    assert (await wire.answer()).status == 200
    await settled(gateway, wire, upstream)
    (request,) = upstream.requests
    assert request.count(b"\r\nHost: 127.0.0.1:") == 1
    assert request.endswith(b"\r\nContent-Length: %d\r\n\r\n%b" % (len(EVIL), EVIL))
