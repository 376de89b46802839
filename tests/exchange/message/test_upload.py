"""The content of one request: how it is framed, how long it is held, which model it names."""

from __future__ import annotations

import pytest

from proxy.exchange.message.plain_chunks import chunk
from proxy.exchange.message.upload import HELD_FOR, WINDOW, Upload

CHAT = b'{"model":"m"}'


class Wire:
    """Where content goes that is sent on: it notes the bytes, and that the end was reached."""

    def __init__(self) -> None:
        self.sent = b""
        self.ended = 0

    def send(self, octets: bytes) -> None:
        """Note `octets`."""
        self.sent += octets

    def end(self) -> None:
        """Note the end."""
        self.ended += 1


@pytest.mark.parametrize("first", [0, 1, 2, 3], ids=["none_held", "one_held", "all_held", "with_its_end"])
@pytest.mark.parametrize(
    ("chunked", "expected"), [(False, b"ab"), (True, b"1\r\na\r\n1\r\nb\r\n0\r\n\r\n")], ids=["length", "chunked"]
)
def test_framing(chunked: bool, expected: bytes, first: int) -> None:
    """Content goes up framed as it came, by its length or in chunks, whatever of it came before it could be sent."""
    content, wire = Upload(chunked=chunked), Wire()
    steps = [lambda: content.add(b"a"), lambda: content.add(b"b"), content.end]
    for step in steps[:first]:
        step()
    wire.sent = content.flow(wire.send, wire.end, 0.0)
    for step in steps[first:]:
        step()
    assert wire.sent == expected
    assert wire.ended == (first < 3)


@pytest.mark.parametrize("early", [True, False], ids=["ended_before", "ended_after"])
@pytest.mark.parametrize(("chunked", "expected"), [(False, b""), (True, b"0\r\n\r\n")], ids=["length", "chunked"])
def test_empty_content_has_its_end(chunked: bool, expected: bytes, early: bool) -> None:
    """Chunked content without a byte still goes up with its last chunk, whenever its end came."""
    content, wire = Upload(chunked=chunked), Wire()
    if early:
        content.end()
    wire.sent = content.flow(wire.send, wire.end, 0.0)
    if not early:
        content.end()
    assert wire.sent == expected


@pytest.mark.parametrize(
    ("pieces", "content"),
    [([], b""), ([b"ab", b"c"], b"abc"), ([b"abc", b"de"], None)],
    ids=["nothing", "all_of_it", "too_much"],
)
def test_gathered_before_it_is_sent(pieces: list[bytes], content: bytes | None) -> None:
    """Content that is gathered reports once that all of it is held, or that it is too much to hold."""
    upload, reports = Upload(chunked=False), []
    upload.gather(4, reports.append)
    for piece in pieces:
        upload.add(piece)
    assert reports == ([None] if content is None else [])
    upload.end()
    assert reports
    assert upload.content() == (b"".join(pieces) if content is None else content)


def test_gathered_content_is_sent_whole() -> None:
    """What was gathered goes up unchanged."""
    upload, wire = Upload(chunked=True), Wire()
    upload.gather(100, lambda _: None)
    upload.add(b"a")
    upload.end()
    assert upload.flow(wire.send, wire.end, 0.0) == b"1\r\na\r\n0\r\n\r\n"


def test_gathered_content_ends_once() -> None:
    """Content whose sending begins when its end is reported goes up with one end."""
    upload, wire = Upload(chunked=True), Wire()
    begun: list[bytes] = []
    upload.gather(100, lambda _: begun.append(upload.flow(wire.send, wire.end, 0.0)))
    upload.add(b"a")
    upload.end()
    assert begun == [b"1\r\na\r\n0\r\n\r\n"]
    assert (wire.sent, wire.ended) == (b"", 0)


def test_stopped_content_goes_nowhere() -> None:
    """Once the exchange is over, content that still comes is not sent."""
    content, wire = Upload(chunked=True), Wire()
    content.flow(wire.send, wire.end, 0.0)
    content.stop()
    content.add(b"late")
    content.end()
    assert (wire.sent, wire.ended, content.size) == (b"", 0, 4)


@pytest.mark.parametrize(("seconds", "held"), [(HELD_FOR, True), (HELD_FOR + 1, False)])
def test_held_no_longer_than_needed(seconds: float, held: bool) -> None:
    """Content that was sent whole is let go after a while: an answer that takes minutes costs no memory."""
    content, wire = Upload(chunked=False), Wire()
    content.add(CHAT)
    content.done = True
    content.tick(10 * HELD_FOR)
    assert content.whole
    content.flow(wire.send, wire.end, 100.0)
    content.tick(100.0 + seconds)
    assert content.whole is held
    assert content.model() == "m"


def test_chunk() -> None:
    """A chunk is its size in hexadecimal, the data, and line ends (RFC 9112, 7.1)."""
    assert chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"


def test_held_until_let_go() -> None:
    """All content is there to be sent again while it is held, and not before all of it has come."""
    content = Upload(chunked=False)
    content.add(b"abc")
    assert (content.whole, content.full) == (False, False)
    content.done = True
    assert content.whole
    content.let_go()
    assert (content.whole, content.full) == (False, False)


@pytest.mark.parametrize("first", [0, 1, WINDOW])
@pytest.mark.parametrize(("size", "full"), [(WINDOW, False), (WINDOW + 1, True)])
def test_window(size: int, full: bool, first: int) -> None:
    """More than `WINDOW` bytes, in however many reads, are not to be held; once let go, nothing is."""
    content = Upload(chunked=False)
    content.add(b"x" * first)
    content.add(b"x" * (size - first))
    assert content.full is full
    content.let_go()
    content.add(b"x" * WINDOW)
    assert not content.full


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
    content = Upload(chunked=False)
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
    """Up to `WINDOW` bytes are read as JSON, where only the top counts; what is larger is only looked through."""
    start, end = b'{"model":"top","x":{"model":"inner"},"y":"', b'"}'
    content = Upload(chunked=False)
    content.add(start + b"y" * (size - len(start) - len(end)) + end)
    content.done = True
    assert content.model() == model
