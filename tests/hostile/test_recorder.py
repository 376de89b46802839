"""The upstream that judges attacks reads requests by the letter, and another strict parser agrees."""

from __future__ import annotations

import pytest

from tests.support.hostile.attack_corpus import EVIL
from tests.support.hostile.strict_upstream import NotStrictError, Reader, Seen, read_by_h11

GET = b"GET /api/version HTTP/1.1\r\nHost: mac\r\n\r\n"
POST = b"POST /api/show HTTP/1.1\r\nHost: mac\r\n"
CODED = POST + b"Transfer-Encoding: chunked\r\n\r\n"

WELL_FORMED = {
    "no_content": (GET, [("GET", "/api/version", b"")]),
    "length": (POST + b"Content-Length: 2\r\n\r\n{}", [("POST", "/api/show", b"{}")]),
    "chunks": (CODED + b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n", [("POST", "/api/show", b"{}")]),
    "trailers": (
        CODED + b"2\r\n{}\r\n0\r\nX: 1\r\nY: 2\r\n\r\n" + GET,
        [("POST", "/api/show", b"{}"), ("GET", "/api/version", b"")],
    ),
    "evil_as_content": (POST + b"Content-Length: 42\r\n\r\n" + EVIL.encode(), [("POST", "/api/show", EVIL.encode())]),
    "two": (GET + EVIL.encode(), [("GET", "/api/version", b""), ("DELETE", "/api/delete", b"")]),
}


def pieces(octets: bytes, apart: bool) -> list[bytes]:
    """Return the reads in which `octets` come."""
    return [bytes([octet]) for octet in octets] if apart else [octets]


@pytest.mark.parametrize("apart", [False, True], ids=["whole", "apart"])
@pytest.mark.parametrize(("octets", "requests"), WELL_FORMED.values(), ids=WELL_FORMED)
def test_requests_are_read(octets: bytes, requests: list[tuple[str, str, bytes]], apart: bool) -> None:
    """What is well-formed is read as what it is, wherever reads begin and end."""
    reader = Reader()
    found = [each for piece in pieces(octets, apart) for each in reader.feed(piece)]
    assert [(each.method, each.target, each.content) for each in found] == requests
    assert reader.rest == b""


@pytest.mark.parametrize(("octets", "requests"), WELL_FORMED.values(), ids=WELL_FORMED)
def test_h11_reads_the_same(octets: bytes, requests: list[tuple[str, str, bytes]]) -> None:
    """The other judge reads the same."""
    assert read_by_h11(octets) == requests


def test_fields_and_trailers_are_kept() -> None:
    """Names in lower case, values without the whitespace around them, repeats and trailers."""
    reader = Reader()
    (seen,) = reader.feed(CODED[:-2] + b"X-a: 1 \r\nx-A:\t\xff\r\n\r\n0\r\nX-Late: 2\r\n\r\n")
    assert seen == Seen(
        "POST",
        "/api/show",
        (("host", "mac"), ("transfer-encoding", "chunked"), ("x-a", "1"), ("x-a", "\xff")),
        b"",
        (("x-late", "2"),),
    )
    assert seen.values("x-a") == ["1", "\xff"]


@pytest.mark.parametrize(
    "octets",
    [
        POST + b"Content-Length: 2\r\n\r\n{",
        CODED + b"2\r\n{}\r\n0\r\n",
        CODED + b"2\r\n{}\r\n0\r\nX: 1\r\n",
        GET[:-1],
        b"GET /api/ver",
    ],
)
def test_what_is_not_whole_waits(octets: bytes) -> None:
    """An incomplete request isn't a request, and its bytes so far are reported."""
    reader = Reader()
    assert reader.feed(octets) == []
    assert reader.rest == octets


@pytest.mark.parametrize("apart", [False, True], ids=["whole", "apart"])
@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(GET.replace(b"\r\n", b"\n"), id="bare_lf"),
        pytest.param(b"GET /\r HTTP/1.1\r\nHost: mac\r\n\r\n", id="bare_cr"),
        pytest.param(b"\r\n" + GET, id="empty_line_before"),
        pytest.param(GET.replace(b" /", b"  /"), id="two_spaces"),
        pytest.param(GET.replace(b"1.1", b"2.0"), id="version"),
        pytest.param(GET.replace(b"/api", b"http://mac/api"), id="absolute_form"),
        pytest.param(GET.replace(b"GET", b"get"), id="lower_case_method"),
        pytest.param(GET.replace(b": ", b" : "), id="space_before_colon"),
        pytest.param(GET.replace(b"mac", b"mac\r\n x"), id="folded"),
        pytest.param(GET.replace(b"mac", b"m\0c"), id="nul"),
        pytest.param(GET.replace(b"mac", b"m\x0bc"), id="control"),
        pytest.param(GET.replace(b"Host: mac\r\n", b""), id="no_host"),
        pytest.param(GET.replace(b"Host: mac\r\n", b"Host: a\r\nHost: a\r\n"), id="two_hosts"),
        pytest.param(POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", id="two_lengths"),
        pytest.param(POST + b"Content-Length: +2\r\n\r\n{}", id="signed_length"),
        pytest.param(POST + b"Content-Length: 02\r\n\r\n{}", id="length_with_zero"),
        pytest.param(CODED[:-2] + b"Content-Length: 2\r\n\r\n0\r\n\r\n", id="both"),
        pytest.param(POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", id="other_coding"),
        pytest.param(CODED + b"2;a\r\n{}\r\n0\r\n\r\n", id="extension"),
        pytest.param(CODED + b"0x2\r\n{}\r\n0\r\n\r\n", id="size_with_prefix"),
        pytest.param(CODED + b"\r\n{}\r\n0\r\n\r\n", id="size_empty"),
        pytest.param(CODED + b"2\r\n{}}\r\n0\r\n\r\n", id="data_too_long"),
        pytest.param(CODED + b"0\r\nX : 1\r\n\r\n", id="trailer_space_before_colon"),
    ],
)  # fmt: skip
def test_what_is_not_by_the_letter_is_a_fault(octets: bytes, apart: bool) -> None:
    """Bytes that two parsers could read differently aren't a request, and are reported as soon as that shows."""
    reader = Reader()
    with pytest.raises(NotStrictError):
        [reader.feed(piece) for piece in pieces(octets, apart)]
