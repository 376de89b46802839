"""Plain chunks read without a parser: exactly those, and nothing that another reader could take otherwise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.exchange.message.plain_chunks import LAST_CHUNK, all_plain, chunk, plain


@given(st.binary(min_size=1, max_size=4095))
def test_plain_chunks(content: bytes) -> None:
    """A chunk of up to 4095 bytes, framed as Ollama frames it, is read; many of them are many."""
    framed = chunk(content)
    assert plain(framed) == content
    assert all_plain(framed * 3)
    assert all_plain(b"head\r\n\r\n" + framed, 8)


@pytest.mark.parametrize(
    "octets",
    [
        *(b"", b"1", b"1\r\n", b"1\r\na", b"1\r\na\r", b"1\r\na\n\n", b"1\na\r\n", b"2\r\na\r\n", b"1\r\nab\r\n"),
        *(b"01\r\na\r\n", b"A\r\n0123456789\r\n", b"1;x=y\r\na\r\n", b"1 \r\na\r\n", b"+1\r\na\r\n", b"-1\r\na\r\n"),
        *(LAST_CHUNK, chunk(b"a") + LAST_CHUNK, chunk(b"a" * 4096), chunk(b"a") + b"1", b"\r\na\r\n", b"x\r\na\r\n"),
    ],
)
def test_anything_else_is_the_parsers(octets: bytes) -> None:
    """What isn't exactly plain chunks is not read here."""
    assert plain(octets) is None
    assert not all_plain(octets) or not octets


def test_two_chunks_are_not_one() -> None:
    """Two chunks in one read look like one to nobody."""
    assert plain(chunk(b"a") * 2) is None
