"""Content that is sent while it is read: what goes on, what is held back, and how much is read in one turn."""

from __future__ import annotations

import pytest

from proxy.exchange.message.passage import A_TURN, STEP, TOKENS_A_TURN, Passage
from proxy.exchange.message.plain_chunks import LAST_CHUNK, chunk
from proxy.exchange.message.upload import Upload
from proxy.reading.asked import Naming
from proxy.reading.reader import reader_of

CHAT = "/v1/chat/completions"
BODY = b'{"model":"m","messages":[{"content":"Hi"}]}'


class Road:
    """A passage between an upload and Ollama, and the turns in which it reads."""

    def __init__(self, *, chunked: bool = False, new_reader=lambda: reader_of(CHAT, "", "")) -> None:
        self.calls = []
        self.counted = [0]  # what was held, whenever that changed
        self.sent = b""
        self.ended = self.held = self.readied = 0
        self.upload = Upload(chunked=chunked)
        self.passage = Passage(new_reader, chunked=chunked, later=self.calls.append, changed=self.count)

    def count(self):
        self.counted.append(self.passage.held)

    def begin(self):
        self.sent = b""
        self.passage.begin(self.upload, self.send, self.end, self.hold, self.ready, 0.0)

    def send(self, octets):
        assert octets
        self.sent += octets

    def end(self):
        self.ended += 1

    def hold(self):
        self.held += 1

    def ready(self):
        self.readied += 1

    def turn(self):
        """Make one turn of the loop; return whether anything was to be done."""
        calls = self.calls[:]
        del self.calls[:]
        for call in calls:
            call()
        return bool(calls)

    def read_all(self):
        while self.turn():
            pass


def through(pieces, *, chunked=False, early=0):
    """Send content in pieces, some of them before sending begins; return the road, with all of it read."""
    road = Road(chunked=chunked)
    for piece in pieces[:early]:
        road.upload.add(piece)
    road.begin()
    for piece in pieces[early:]:
        road.upload.add(piece)
        road.read_all()
    road.upload.end()
    road.read_all()
    return road


@pytest.mark.parametrize("behind", [b"", b" ", b"\r\n\t " * 50], ids=["nothing", "a_blank", "blanks"])
@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("early", [0, 3])
def test_the_closing_byte_is_held_back(behind, size, early):
    """However content is cut, all before its closing byte goes on, and the rest once it is opened."""
    content = BODY + behind
    road = through([content[at : at + size] for at in range(0, len(content), size)], early=early)
    assert road.passage.known.done
    assert (road.passage.asked.naming, road.passage.asked.model) == (Naming.NAMED, "m")
    assert (road.sent, road.ended) == (BODY[:-1], 0)
    road.passage.open()
    assert (road.sent, road.ended, road.passage.held, road.counted[-1]) == (content, 1, 0, 0)


def test_chunked_content_keeps_its_framing():
    """Content in chunks goes on in chunks, and its last chunk is held back with the closing byte."""
    road = through([BODY[:5], BODY[5:]], chunked=True)
    assert road.sent == chunk(BODY[:5]) + chunk(BODY[5:-1])
    road.passage.open()
    assert road.sent == chunk(BODY[:5]) + chunk(BODY[5:-1]) + chunk(BODY[-1:]) + LAST_CHUNK
    assert road.ended == 1


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_what_cannot_be_read_goes_on_once_it_is_opened(chunked, when):
    """Of content that can't be read nothing more goes on until it is opened; then all does, whenever it comes."""
    road = Road(chunked=chunked)
    road.begin()
    road.upload.add(b'{"model":x,')
    road.read_all()
    assert road.passage.asked.naming is Naming.UNREADABLE
    later = [b"more", b" and more"]
    if when == "before":
        [road.upload.add(piece) for piece in later]
        road.upload.end()
    assert road.sent == b""
    road.passage.open()
    if when == "after":
        [road.upload.add(piece) for piece in later]
        road.upload.end()
    sent = road.sent if not chunked else b"".join(road.sent.split(b"\r\n")[1::2])
    assert sent == b'{"model":x,more and more'
    assert road.sent.endswith(LAST_CHUNK) is chunked
    assert road.ended == 1


def test_more_than_a_turn_holds_the_client():
    """A client that sends more than is read in a turn is held, until less waits to be read."""
    road = Road()
    road.begin()
    road.upload.add(b'{"prompt":"' + b"x" * A_TURN)
    assert (road.held, road.readied, road.passage.full) == (1, 0, True)
    assert road.counted[-1] == road.passage.held
    road.turn()
    assert (road.readied, road.passage.full) == (1, False)


def test_what_waits_to_be_read_is_counted():
    """All that has come and wasn't read yet counts as unread, and one call reads it, however many pieces it is in."""
    road = Road()
    road.begin()
    assert road.passage.unread == 0
    start = b'{"prompt":"'
    road.upload.add(start)
    road.upload.add(b"x" * 2 * A_TURN)
    assert (road.passage.unread, len(road.calls)) == (len(start) + 2 * A_TURN, 1)
    road.turn()
    assert (road.passage.unread, len(road.calls)) == (len(start) + A_TURN, 1)
    road.read_all()
    assert road.passage.unread == 0


@pytest.mark.parametrize("end", [False, True], ids=["goes_on", "ended"])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_nothing_is_sent_for_no_content(chunked, end):
    """Content of which nothing has come sends nothing when it is opened, unless it has ended in chunks."""
    road = Road(chunked=chunked)
    road.begin()
    if end:
        road.upload.end()
    road.passage.open()
    assert road.sent == (LAST_CHUNK if chunked and end else b"")


def test_nothing_is_read_once_nobody_waits():
    """When the wait for what content asks for is over, a read that was due reads nothing, and opening sends all."""
    road = Road()
    road.begin()
    road.upload.add(BODY[:9])
    road.passage.known.set(None)
    road.read_all()
    road.upload.add(BODY[9:])
    assert (road.sent, road.calls) == (b"", [])
    road.passage.open()
    assert road.sent == BODY


def test_again_from_its_beginning():
    """Content that is all held goes through again on another connection, as if for the first time."""
    road = Road()
    road.begin()
    road.upload.add(BODY[:20])
    road.read_all()
    road.upload.stop()
    road.passage.stop()
    road.upload.add(BODY[20:25])
    road.begin()
    road.upload.add(BODY[25:])
    road.upload.end()
    road.read_all()
    assert road.sent == BODY[:-1]
    road.passage.open()
    assert (road.sent, road.ended) == (BODY, 1)


def test_stopped_content_goes_nowhere():
    """Once the exchange is over, nothing is read or sent, and nothing is held."""
    road = Road()
    road.begin()
    road.upload.add(BODY)
    road.passage.stop()
    road.read_all()
    road.upload.add(BODY)
    road.upload.end()
    road.read_all()
    assert road.passage.unread == 0
    road.passage.open()
    assert (road.sent, road.ended, road.passage.known.done, road.passage.held) == (b"", 0, False, 0)


class Broken:
    """A reader with a mistake in it."""

    asked, tokens, held = None, 0, b""

    def feed(self, data):
        """Fail."""
        raise KeyError(data)


def test_a_mistake_of_ours_reaches_who_waits():
    """A mistake in reading is what the exchange finds, which then ends."""
    road = Road(new_reader=Broken)
    road.begin()
    road.upload.add(b"x")
    road.read_all()
    assert isinstance(road.passage.known.value, KeyError)


# --- hostile content ---


def filled(start: bytes, again: bytes, size: int) -> bytes:
    return start + again * ((size - len(start)) // len(again))


HOSTILE = {
    "deep": filled(b'{"x":', b"[", 512 * 1024),
    "deep_objects": filled(b'{"x":', b'{"x":', 512 * 1024),
    "numbers": filled(b'{"messages":[0', b",0", 640 * 1024),
    "objects": filled(b'{"messages":[{}', b",{}", 640 * 1024),
    "tools": filled(b'{"tools":[{"type":1}', b',{"type":1}', 640 * 1024),
    "keys": filled(b'{"a":0', b',"a":0', 640 * 1024),
    "models": filled(b'{"model":""', b',"model":""', 640 * 1024),
    "open_texts": filled(b'{"x":[["', b'",["', 512 * 1024),
    "one_text": filled(b'{"x":"', b"x", 4 * 2**20),
    "escapes": filled(b'{"x":"', b"\\n", 1024 * 1024),
    "blanks": b'{"model":"m"}' + b" " * 2**20,
}


class Counting:
    """A reader that counts what it is given."""

    def __init__(self) -> None:
        self._reader = reader_of("/v1/messages", "", "")
        self.fed = 0

    def __getattr__(self, name):
        return getattr(self._reader, name)

    def feed(self, data):
        """Count, and read."""
        assert len(data) <= STEP
        self.fed += len(data)
        return self._reader.feed(data)


class Costly:
    """A reader for which each piece is as many tokens as a turn may have."""

    asked, tokens, held = None, 0, b""

    def feed(self, data):
        """Count."""
        self.tokens += TOKENS_A_TURN
        return data


def test_tokens_end_a_turn():
    """A turn ends with the piece that brings it to TOKENS_A_TURN."""
    road = Road(new_reader=Costly)
    road.begin()
    road.upload.add(b"x" * 2 * STEP)
    road.turn()
    assert road.passage.unread == STEP


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_turn_of_the_loop_reads_little(content):
    """Whatever content is, one turn of the loop reads at most so many bytes, and tokens, of it."""
    readers = []
    road = Road(new_reader=lambda: readers.append(Counting()) or readers[-1])
    road.begin()
    sent = 0
    while sent < len(content) and road.passage.asked is None:
        road.upload.add(content[sent : sent + 256 * 1024])
        sent += 256 * 1024
        while road.calls:
            before = readers[-1].fed, readers[-1].tokens
            road.turn()
            assert readers[-1].fed - before[0] <= A_TURN
            assert readers[-1].tokens - before[1] <= TOKENS_A_TURN + STEP
    assert road.passage.unread <= 256 * 1024
