"""Read one JSON object in pieces, note what matters, and keep none of it.

Whatever Go's encoding/json takes is read as Go reads it. Some faults are passed over: a bad escape in a text, and a bad
comma where nothing matters. Ollama refuses such a body as a whole, so nothing can be read differently.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import orjson

from proxy.reading.fields import LONGEST_TEXT, Findings, Opaque, folded

if TYPE_CHECKING:
    from proxy.reading.fields import Field, Shape

MOST_TOKENS = 1_000_000
"""After so many the scanner gives up: about a second of work, spread over many turns of the loop."""

DEEPEST = 10_000
"""Levels of nesting that Go reads."""

_LONGEST_WORD = 512  # bytes of a number

_TEXT = rb'"(?:[^"\\]++|\\.)*+"'
_PLAIN = rb'(?:[^"\[\]{}]++|%b)*+' % _TEXT  # all that opens and closes nothing
_FLAT = rb"\{%b\}|\[%b\]" % (_PLAIN, _PLAIN)

_BLANKS = re.compile(rb"[ \t\r\n]*+")
_WORD = re.compile(rb"[-+.0-9A-Za-z]*+")
_SCALAR = re.compile(rb"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][-+]?[0-9]++)?|true|false|null")
_NOISE = re.compile(rb'(?s)(?:[^"\[\]{}]++|%b|%b)*+' % (_TEXT, _FLAT))  # as much of it as one step can skip
_DEEPEST_NOISE = re.compile(rb"(?s)%b" % _PLAIN)  # where no container may begin
_SHORT_SCALAR = rb"-?(?:0|[1-9][0-9]{0,40}+)(?:\.[0-9]{1,40}+)?(?:[eE][-+]?[0-9]{1,4}+)?|true|false|null"
_SKIPPED = re.compile(  # a value that doesn't matter, with its comma
    rb"(?s)[ \t\r\n]*+(?:%b|%b|(?:%b)(?=[ \t\r\n,\]}]))[ \t\r\n]*+(,)?" % (_TEXT, _FLAT, _SHORT_SCALAR)
)
_SHORT_TEXT = re.compile(rb'"([ !#-\[\]-~]{0,64}+)"[ \t\r\n]*+(,)?')  # ASCII, without escapes
_SHORT_KEY = re.compile(rb'"([ !#-\[\]-~]{0,64}+)"[ \t\r\n]*+:')  # ASCII, without escapes
_ESCAPES = re.compile(rb'(?s)(?:\\.[^"\\]{0,64}+)++')  # those that follow each other closely, as in code

# What may come next.
_VALUE, _ELEMENT, _KEY, _FIRST_KEY, _COLON, _NEXT = range(6)

_QUOTE, _COMMA, _COLON_SIGN = b'",:'
_OPEN_ARRAY, _CLOSE_ARRAY, _OPEN_OBJECT, _CLOSE_OBJECT = b"[]{}"
_BLANK = frozenset(b" \t\r\n")

_BROKEN = "the body is not valid JSON"
_NO_OBJECT = "the body is not a JSON object"


class NotReadError(ValueError):
    """The body is not JSON, or more than the scanner takes."""


class Scanner:
    """Reads one JSON object, piece by piece, and notes in `findings` what its fields say."""

    __slots__ = (
        "_escaped",
        "_field",
        "_fields",
        "_kept",
        "_key",
        "_keyed",
        "_left",
        "_most",
        "_text",
        "_want",
        "_word",
        "findings",
    )

    def __init__(self, shape: Shape, *, most_tokens: int = MOST_TOKENS) -> None:
        self.findings = Findings(shape)
        self._most = self._left = most_tokens
        self._want = _VALUE
        self._fields: list[Field | None] = []  # of the open containers; None: nothing in it matters
        self._keyed: list[bool] = []  # whether each is an object
        self._field: Field | None = shape.top  # of the value that comes next
        self._key = ""  # which leads to that value
        self._text = False  # whether a piece ended inside a text
        self._escaped = False  # whether it ended after a backslash
        self._kept: bytearray | None = None  # the text so far; None: it doesn't matter
        self._word = b""  # the beginning of a number, `true`, `false` or `null` that a piece cut

    @property
    def tokens(self) -> int:
        """How many tokens were read."""
        return self._most - self._left

    def feed(self, data: bytes) -> int:
        """Read the next piece. Return where in it the object's last brace is, or -1. Raises NotReadError."""
        at = self._rest_of_text(data, 0) if self._text else self._rest_of_word(data) if self._word else 0
        end = len(data)
        while at < end:
            if self._keyed and self._fields[-1] is None:
                noise = _NOISE if len(self._keyed) < DEEPEST else _DEEPEST_NOISE
                at = noise.match(data, at).end()  # type: ignore[union-attr]
                if at == end:
                    return -1
            sign = data[at]
            if sign in _BLANK:
                at = _BLANKS.match(data, at).end()  # type: ignore[union-attr]
                continue
            self._left -= 1
            if self._left < 0:
                raise NotReadError("the body has more JSON tokens than this proxy reads")
            if sign in b"]}":
                self._close(sign)
                if not self._keyed:
                    return at
                at += 1
            elif self._keyed and self._fields[-1] is None:
                at = self._in_noise(data, at, sign)
            elif sign == _COMMA and self._want == _NEXT:
                self._want = _KEY if self._keyed[-1] else _VALUE
                at += 1
            else:
                at = self._step(data, at, sign)
        return -1

    def _in_noise(self, data: bytes, at: int, sign: int) -> int:
        """Read what `_NOISE` left where nothing matters: a container's beginning, or a text that the piece cuts."""
        if sign == _QUOTE:
            self._kept = None
            return self._rest_of_text(data, at + 1)
        self._push(None, sign == _OPEN_OBJECT)
        return at + 1

    def _step(self, data: bytes, at: int, sign: int) -> int:
        """Read one token. Return where it ends."""
        want = self._want
        if want in (_KEY, _FIRST_KEY) and sign == _QUOTE:
            short = _SHORT_KEY.match(data, at)
            if short is None:
                self._kept = bytearray()
                return self._rest_of_text(data, at + 1)
            self._name(short[1].decode())
            self._want = _VALUE
            skipped = _SKIPPED.match(data, short.end()) if self._field is None else None
            return short.end() if skipped is None else self._past(skipped)
        if want == _COLON and sign == _COLON_SIGN:
            self._want = _VALUE
            return at + 1
        if want > _ELEMENT:
            raise NotReadError(_BROKEN)
        return self._value(data, at, sign)

    def _value(self, data: bytes, at: int, sign: int) -> int:
        """Read a value, or its beginning. Return where that ends."""
        inside = self._fields[-1] if self._keyed else None
        if inside is not None and not self._keyed[-1]:
            self._field, self._key = inside.each, ""
        place = self._field
        if place is None:
            skipped = _SKIPPED.match(data, at)
            if skipped is not None:
                return self._past(skipped)
        if sign in (_OPEN_OBJECT, _OPEN_ARRAY):
            if not self._keyed and sign == _OPEN_ARRAY:
                raise NotReadError(_NO_OBJECT)
            if place is not None and place.fact is not None:
                self.findings.note(place.fact, self._key, Opaque.CONTAINER)
            self._push(place, sign == _OPEN_OBJECT)
            return at + 1
        if not self._keyed:
            raise NotReadError(_NO_OBJECT)
        if sign == _QUOTE:
            short = _SHORT_TEXT.match(data, at)
            if short is not None and place is not None and place.fact is not None:
                self.findings.note(place.fact, self._key, short[1].decode())
                return self._past(short)
            self._kept = bytearray() if place is not None and place.fact is not None else None
            return self._rest_of_text(data, at + 1)
        return self._word_at(data, at)

    def _past(self, value: re.Match[bytes]) -> int:
        """Go on behind a value that was read at once, and behind its comma."""
        if value.end(value.re.groups) < 0:
            self._want = _NEXT
        else:
            self._left -= 1
            self._want = _KEY if self._keyed[-1] else _VALUE
        return value.end()

    def _push(self, place: Field | None, is_object: bool) -> None:
        if len(self._keyed) >= DEEPEST:
            raise NotReadError(f"the body is nested more than {DEEPEST:,} levels deep")
        self._fields.append(place)
        self._keyed.append(is_object)
        self._want = _FIRST_KEY if is_object else _ELEMENT

    def _close(self, sign: int) -> None:
        if not self._keyed or self._keyed[-1] != (sign == _CLOSE_OBJECT):
            raise NotReadError(_BROKEN if self._keyed else _NO_OBJECT)
        if self._want not in (_NEXT, _ELEMENT, _FIRST_KEY):
            raise NotReadError(_BROKEN)
        self._fields.pop()
        self._keyed.pop()
        self._want = _NEXT

    def _name(self, key: str) -> None:
        """Take the key that leads to the next value."""
        inside = self._fields[-1]
        self._key = key
        self._field = inside.keys.get(folded(key)) if inside is not None else None

    def _rest_of_text(self, data: bytes, at: int) -> int:
        """Read on inside a text. Return where it ends, or the end of the data."""
        begin, end = at, len(data)
        at += self._escaped
        quote = data.find(b'"', at)
        while True:
            if 0 <= quote < at:
                quote = data.find(b'"', at)
            escape = data.find(b"\\", at, end if quote < 0 else quote)
            if escape < 0:
                break
            escapes = _ESCAPES.match(data, escape)
            at = end + 1 if escapes is None else escapes.end()
        if self._kept is not None and len(self._kept) <= LONGEST_TEXT:
            self._kept += data[begin : end if quote < 0 else quote]
        self._text = quote < 0
        self._escaped = at > end
        if quote < 0:
            return end
        self._end_text()
        return quote + 1

    def _end_text(self) -> None:
        if self._fields[-1] is None:
            return
        text = None if self._kept is None else _text(self._kept)
        if self._want in (_KEY, _FIRST_KEY):
            self._name(text if isinstance(text, str) else "")
            self._want = _COLON
            return
        self._want = _NEXT
        if text is not None and self._field is not None and self._field.fact is not None:
            self.findings.note(self._field.fact, self._key, text)

    def _rest_of_word(self, data: bytes) -> int:
        begun, self._word = self._word, b""
        return self._word_at(begun + data[:_LONGEST_WORD], 0) - len(begun)

    def _word_at(self, data: bytes, at: int) -> int:
        """Read a number, `true`, `false` or `null`. Return where it ends."""
        end = _WORD.match(data, at).end()  # type: ignore[union-attr]
        word = data[at:end]
        if len(word) > _LONGEST_WORD:
            raise NotReadError("the body has a number that is too long to read")
        if end == len(data):
            self._word = word
            return end
        if _SCALAR.fullmatch(word) is None:
            raise NotReadError(_BROKEN)
        self._want = _NEXT
        if self._field is not None and self._field.fact is not None:
            self.findings.note(self._field.fact, self._key, _scalar(word))
        return end


def _text(kept: bytearray) -> str | Opaque:
    """Return the text between two quotes."""
    if len(kept) > LONGEST_TEXT:
        return Opaque.TEXT
    try:
        text: str = orjson.loads(b'"%b"' % bytes(kept))
    except orjson.JSONDecodeError:
        return Opaque.TEXT
    return text


def _scalar(word: bytes) -> float | bool | Opaque | None:
    try:
        value: float | bool | None = orjson.loads(word)
    except orjson.JSONDecodeError:  # larger than a double
        return Opaque.TEXT
    return value
