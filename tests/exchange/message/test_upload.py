"""The content of one request: how it is framed, how long it is held, which model it names."""

from __future__ import annotations

import pytest

from proxy.exchange.message.plain_chunks import LAST_CHUNK, chunk
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


@pytest.mark.parametrize(
    ("first", "chunks"),
    [(0, (b"a", b"b")), (1, (b"a", b"b")), (2, (b"ab",)), (3, (b"ab",))],
    ids=["none_held", "one_held", "all_held", "with_its_end"],
)
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_framing(chunked: bool, first: int, chunks: tuple[bytes, ...]) -> None:
    """Content goes up by its length or in chunks, as it came, whatever of it came before it could be sent."""
    content, wire = Upload(chunked=chunked), Wire()
    steps = [lambda: content.add(b"a"), lambda: content.add(b"b"), content.end]
    for step in steps[:first]:
        step()
    wire.sent = content.flow(wire.send, wire.end, 0.0)
    for step in steps[first:]:
        step()
    assert wire.sent == (b"".join(map(chunk, chunks)) + LAST_CHUNK if chunked else b"ab")
    assert wire.ended == (first < 3)


def test_small_pieces_are_held_together() -> None:
    """Content that comes two bytes at a time is held in pieces of 1 KiB, which take no more memory than the content."""
    content, wire = Upload(chunked=True), Wire()
    for _ in range(1100):
        content.add(b"xy")
    assert content.flow(wire.send, wire.end, 0.0) == chunk(b"xy" * 512) * 2 + chunk(b"xy" * 76)


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
    ("pieces", "states"),
    [([], []), ([b"ab", b"c"], [(2, False), (3, False)]), ([b"abc", b"de"], [(3, False), (5, True)])],
    ids=["nothing", "all_of_it", "too_much"],
)
def test_gathered_before_it_is_sent(pieces: list[bytes], states: list[tuple[int, bool]]) -> None:
    """Content that is gathered reports each piece and its end, and whether it is too much to hold."""
    upload = Upload(chunked=False)
    reports: list[tuple[int, bool]] = []
    upload.gather(4, lambda: reports.append((upload.held, upload.full)))
    for piece in pieces:
        upload.add(piece)
    assert reports == [(0, False), *states]
    upload.end()
    assert (len(reports), upload.content()) == (len(pieces) + 2, b"".join(pieces))


def test_dropped_content_reports_nothing() -> None:
    """Once the exchange is over, nothing is held, and what still comes isn't reported."""
    upload, reports = Upload(chunked=False), []
    upload.gather(4, lambda: reports.append(upload.held))
    upload.add(b"ab")
    upload.drop()
    upload.add(b"c")
    upload.end()
    assert (reports, upload.held) == ([0, 2], 0)


def test_gathered_content_is_sent_whole() -> None:
    """What was gathered goes up unchanged."""
    upload, wire = Upload(chunked=True), Wire()
    upload.gather(100, lambda: None)
    upload.add(b"a")
    upload.end()
    assert upload.flow(wire.send, wire.end, 0.0) == b"1\r\na\r\n0\r\n\r\n"


def test_gathered_content_ends_once() -> None:
    """Content whose sending begins when its end is reported goes up with one end."""
    upload, wire = Upload(chunked=True), Wire()
    begun: list[bytes] = []
    upload.add(b"a")
    upload.gather(100, lambda: begun.append(upload.flow(wire.send, wire.end, 0.0)) if upload.done else None)
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
