"""What can be read in a passing answer: its events' borders, its terminator, the model, the tokens.

Pure: octets in, facts out; the octets themselves are never changed, held back or kept longer than an event. What isn't
told is None, never guessed.
"""

from __future__ import annotations

import re
from typing import Any, Protocol

import orjson

from proxy.routes import Dialect

# An event or JSON answer up to this size is read whole; of a larger one only its beginning and its end, where Ollama
# puts the model and the counts.
WHOLE = 256 * 1024
EDGE = 8 * 1024

_TAIL_COUNTS = re.compile(
    rb'(?<!\\)"(prompt_tokens|completion_tokens|input_tokens|output_tokens|prompt_eval_count|eval_count)": ?(\d{1,12})'
)
_HEAD_MODEL = re.compile(rb'(?<!\\)"model": ?("(?:[^"\\]|\\.){0,512}")')
_DONE = re.compile(rb'(?<!\\)"done": ?true[,}]|\A\{"error"')
_COUNTS_IN = ("prompt_tokens", "input_tokens", "prompt_eval_count")
_COUNTS_OUT = ("completion_tokens", "output_tokens", "eval_count")


_COLON = ord(":")  # begins a comment, which is no event; what a line end begins is none either
# A chat's terminator, `data: [DONE]`, is shorter; any other event of a chat is longer.
_DONE_LIMIT = 64
# What no other event without facts holds; inside a text JSON would escape the quotes, or the line end before "event".
_MARKS = {
    Dialect.CHAT: (b'"usage":', None),
    Dialect.RESPONSES: (b'"response":', b"event: error"),
    Dialect.MESSAGES: (b"event: message_", b"event: error"),
    Dialect.NDJSON: (b"true", b'"error"'),
}


class Facts(Protocol):
    """Where the facts go: an Exchange has these."""

    model: str | None
    tokens_in: int | None
    tokens_out: int | None
    events: int | None


def _object(octets: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(octets)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _note(facts: Facts, answer: dict[str, Any]) -> None:
    """Take model and counts from `answer`: a whole answer, an event, or what an event wraps."""
    inner = answer.get("response") if isinstance(answer.get("response"), dict) else answer.get("message")
    for each in (answer, inner):
        if isinstance(each, dict):
            model = each.get("model")
            if facts.model is None and isinstance(model, str) and model:
                facts.model = model
            usage = each.get("usage")
            if answer.get("type") != "message_start":  # whose counts are an estimate and a 0
                _count(facts, usage if isinstance(usage, dict) else each)


def _count(facts: Facts, counts: dict[str, Any]) -> None:
    for name in _COUNTS_IN:
        if type(counts.get(name)) is int:
            facts.tokens_in = counts[name]
            break
    for name in _COUNTS_OUT:
        if type(counts.get(name)) is int:
            facts.tokens_out = counts[name]
            break


def _note_edges(facts: Facts, beginning: bytes, end: bytes) -> None:
    """Do the same for an answer of which only the edges were kept."""
    model = _HEAD_MODEL.search(beginning)
    if facts.model is None and model is not None:
        facts.model = _object(b'{"model":%b}' % model[1]).get("model") or None
    _count(facts, {name.decode(): int(count) for name, count in _TAIL_COUNTS.findall(end)})


class Reading:
    """One answer, read as it passes: what `Answer` and `Events` share. Their `feed` takes content in any pieces, and
    their `end` tells the facts that are there once no more will come.
    """

    __slots__ = ("_facts", "_rest", "_tail", "terminated")

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._rest = b""  # what isn't whole yet: the beginning of an event, or of the answer
        self._tail: bytes | None = None  # once `_rest` is full, the last octets seen
        self.terminated = False  # the stream said that it is complete

    @property
    def at_border(self) -> bool:
        """Whether an event of our own may come next: nothing stands half written."""
        return not self._rest

    def _hold(self, data: bytes) -> None:
        """Keep `data`, which ends no event, within bounds."""
        if self._tail is not None:
            self._tail = (self._tail + data)[-EDGE:]
        elif len(self._rest) + len(data) <= WHOLE:
            self._rest += data
        else:
            both = self._rest + data
            self._rest, self._tail = both[:EDGE], both[-EDGE:]


class Answer(Reading):
    """A JSON answer that isn't streamed."""

    __slots__ = ()

    def feed(self, data: bytes) -> None:
        """Keep `data` until the end."""
        self._hold(data)

    def end(self) -> None:
        """Read what was kept."""
        if self._tail is None:
            _note(self._facts, _object(self._rest))
        else:
            _note_edges(self._facts, self._rest, self._tail)


class Events(Reading):
    """An event stream (HTML standard, 9.2), or NDJSON, whose events are lines."""

    __slots__ = (
        *("_behind", "_border", "_last", "_least", "_mark", "_named", "_other", "_plain", "_response_id"),
        *("dialect", "events"),
    )

    def __init__(self, facts: Facts, dialect: Dialect) -> None:
        super().__init__(facts)
        self.events = 0  # so far
        self.dialect = dialect
        self._mark, self._other = _MARKS[dialect]
        self._least = _DONE_LIMIT if self._other is None else 0  # octets of an event that `_MARKS` say enough about
        self._border = b"\n" if dialect is Dialect.NDJSON else b"\n\n"
        self._behind = self._border[1:]  # the end of an event's last line
        self._named = dialect in (Dialect.MESSAGES, Dialect.RESPONSES)  # events have two lines
        self._last = b""
        self._plain = False  # the model is known, and nothing is kept of an event
        self._response_id: str | None = None

    def feed(self, data: bytes) -> None:
        """Read every event that `data` completes."""
        line, end, behind = data.partition(b"\n")  # `find` and `in` take twice as long on Python 3.11
        if self._named:
            end, behind = behind.partition(b"\n")[1:]
        if (
            behind == self._behind
            and end
            and len(line) > self._least
            and self._plain
            and line[0] > _COLON
            and not data.partition(self._mark)[1]
            and (self._other is None or not data.partition(self._other)[1])
        ):
            # One whole event that tells nothing but a token: nearly all there are.
            self.events += 1
            if self._named:
                self._last = data
            return
        self._read(data)
        self._plain = self._facts.model is not None and not self._rest

    def end(self) -> None:
        """Tell how many events there were; the rest is told already."""
        self._facts.events = self.events

    def _read(self, data: bytes) -> None:
        """Do the same for any `data`."""
        border = self._border
        if self._tail is not None:
            data = self._end_of_large(data, self._tail)
        elif self._rest:
            data = self._rest + data
            self._rest = b""
        if b"\r" in data:  # JSON has no bare CR, so these are line ends; Ollama writes none
            data = data.replace(b"\r\n", b"\n")
        whole = data.rfind(border) + len(border)
        if whole < len(border):
            self._hold(data)
            return
        for event in data[: whole - len(border)].split(border):
            self._event(event)
        if whole < len(data):
            self._hold(data[whole:])

    def _end_of_large(self, data: bytes, tail: bytes) -> bytes:
        """Go on with an event too large to keep; return what follows it, or what feeds nothing yet."""
        seen = (tail[-3:] + data).replace(b"\r\n", b"\n")  # the border may have begun there
        end = seen.find(self._border)
        if end < 0:
            self._hold(data)
            return b""
        self._large(self._rest, (tail[:-3] + seen[:end])[-EDGE:])
        self._rest, self._tail = b"", None
        return seen[end + len(self._border) :]

    def _large(self, beginning: bytes, end: bytes) -> None:
        """Count one event of which only the edges were kept, and read those if it says something."""
        self.events = first = self.events + 1
        if self.dialect is Dialect.NDJSON:  # a context of many tokens, or an answer in one message
            self.terminated = bool(_DONE.search(beginning) or _DONE.search(end))
            speaks = first == 1 or self.terminated
        else:
            speaks = self._speaks(beginning, first == 1)
        if speaks:
            _note_edges(self._facts, beginning, end)

    def _event(self, event: bytes) -> None:
        """Count one event, and read it if it says something."""
        if not event or event.startswith(b":"):
            return
        self.events = first = self.events + 1
        self._last = event
        if self._speaks(event, first == 1):
            found = self._data(event)
            _note(self._facts, found)
            inner = found.get("response")
            if isinstance(inner, dict) and isinstance(inner.get("id"), str):
                self._response_id = inner["id"]

    def _speaks(self, event: bytes, first: bool) -> bool:
        """Say whether `event` holds facts; note whether it is the stream's terminator."""
        dialect = self.dialect
        if dialect is Dialect.CHAT:
            if event.startswith((b"data: [DONE]", b"data:[DONE]")):
                self.terminated = True
                return False
            return first or self._facts.model is None or b'"usage":' in event
        if dialect is Dialect.NDJSON:
            if b"true" in event or b'"error"' in event:
                found = _object(event)
                self.terminated = found.get("done") is True or "error" in found
            return first or self.terminated
        if dialect is Dialect.MESSAGES:
            if event.startswith((b"event: message_stop", b"event: error")):
                self.terminated = True
            return first or event.startswith(b"event: message_delta")
        if event.startswith((b"event: response.completed", b"event: response.failed", b"event: response.incomplete")):
            return self._end()
        return first

    def _end(self) -> bool:
        self.terminated = True
        return True

    def _data(self, event: bytes) -> dict[str, Any]:
        if self.dialect is Dialect.NDJSON:
            return _object(event)
        lines = [line[5:] for line in event.split(b"\n") if line.startswith(b"data:")]
        return _object(b"\n".join(lines))

    def last_sequence(self) -> tuple[int, str | None]:
        """Return the last event's sequence_number (-1 when there is none) and the response's id, if one was told."""
        number = self._data(self._last).get("sequence_number")
        return (number if type(number) is int else -1), self._response_id


def model_in(content: bytes) -> str | None:
    """Return the model that a JSON request names, or None: the last one at the top, as Go reads it."""
    found = {key.lower(): value for key, value in _object(content).items() if isinstance(value, str)}
    return found.get("model") or found.get("name")  # which /api/show still takes


class ModelScan:
    """The same for a request too large to keep, in constant memory: the last `"model":"…"` outside of a text."""

    __slots__ = ("_tail", "model")

    _LONGEST = 600

    def __init__(self) -> None:
        self._tail = b""
        self.model: str | None = None

    _FIELD = re.compile(rb'(?<!\\)"model"\s*:\s*("(?:[^"\\]|\\.){0,512}")')

    def feed(self, data: bytes) -> None:
        """Look through the next piece."""
        seen = self._tail + data if self._tail else data
        for found in self._FIELD.findall(seen) if b'"model"' in seen else ():
            value = _object(b'{"m":' + found + b"}").get("m")
            if isinstance(value, str):
                self.model = value
        self._tail = seen[-self._LONGEST :]
