"""The content of one request: how it is framed, how long it is held, which model it names."""

from __future__ import annotations

import pytest

from proxy.exchange import RequestHead
from proxy.upload import LAST_CHUNK, WINDOW, Upload, chunk

LENGTH = (b"Content-Length", b"7")
CHUNKED = (b"transfer-encoding", b"Chunked")
CHAT = b'{"model":"m"}'


def upload(*fields: tuple[bytes, bytes]) -> Upload:
    """Return the content of a request with these fields, of which nothing has come."""
    return Upload(RequestHead("POST", "/", (1, 1), fields))


@pytest.mark.parametrize(
    ("fields", "held", "one"),
    [
        pytest.param((), b"ab", b"x", id="none"),
        pytest.param((LENGTH,), b"ab", b"x", id="length"),
        pytest.param((CHUNKED,), b"1\r\na\r\n1\r\nb\r\n0\r\n\r\n", b"1\r\nx\r\n", id="chunked"),
    ],
)
def test_framing(fields: tuple[tuple[bytes, bytes], ...], held: bytes, one: bytes) -> None:
    """Content goes up framed as it came: by the same length, or in chunks of our own, with their end once it came."""
    content = upload(*fields)
    assert content.octets() == b""
    content.add(b"a")
    content.add(b"b")
    assert content.octets() == held.removesuffix(LAST_CHUNK)
    content.done = True
    assert content.octets() == held
    assert content.framed(b"x") == one


def test_chunk() -> None:
    """A chunk is its size in hexadecimal, the data, and line ends (RFC 9112, 7.1)."""
    assert chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"


def test_held_until_let_go() -> None:
    """All content is there to be sent again while it is held, and not before all of it has come."""
    content = upload(LENGTH)
    content.add(b"abc")
    assert (content.whole, content.full) == (False, False)
    content.done = True
    assert content.whole
    content.let_go()
    assert (content.whole, content.full, content.octets()) == (False, False, b"")


@pytest.mark.parametrize("first", [0, 1, WINDOW])
@pytest.mark.parametrize(("size", "full"), [(WINDOW, False), (WINDOW + 1, True)])
def test_window(size: int, full: bool, first: int) -> None:
    """More than `WINDOW` octets, in however many reads, are not to be held; once let go, nothing is."""
    content = upload(LENGTH)
    content.add(b"x" * first)
    content.add(b"x" * (size - first))
    assert content.full is full
    content.let_go()
    content.add(b"x" * WINDOW)
    assert (content.full, content.octets()) == (False, b"")


@pytest.mark.parametrize("let_go", ["early", "late", "never"])
@pytest.mark.parametrize(
    ("pieces", "model"),
    [
        pytest.param([CHAT], "m", id="one_piece"),
        pytest.param([CHAT[:5], CHAT[5:]], "m", id="two_pieces"),
        pytest.param([b'{"x":"', b"y" * WINDOW, b'","model":"m"}'], "m", id="large"),
        pytest.param([b"packed"], None, id="no_json"),
        pytest.param([], None, id="none"),
    ],
)
def test_model(pieces: list[bytes], model: str | None, let_go: str) -> None:
    """The model is found whether the content is held to the end or has passed."""
    content = upload(LENGTH)
    for number, piece in enumerate(pieces):
        content.add(piece)
        if number == 0 and let_go == "early":
            content.let_go()
    content.done = True
    if let_go == "late":
        content.let_go()
    assert content.model() == model
    assert not content.whole
    assert content.model() == model


@pytest.mark.parametrize(("size", "model"), [(WINDOW, "top"), (WINDOW + 1, "inner")])
def test_model_of_what_is_held_is_read_as_json(size: int, model: str) -> None:
    """Up to `WINDOW` octets are read as JSON, where only the top counts; what is larger is only looked through."""
    start, end = b'{"model":"top","x":{"model":"inner"},"y":"', b'"}'
    content = upload(LENGTH)
    content.add(start + b"y" * (size - len(start) - len(end)) + end)
    content.done = True
    assert content.model() == model
