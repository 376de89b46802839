"""Read the model's name in a multipart form, as `/v1/audio/transcriptions` takes it, while the form passes.

Only forms that clients really write are read. A form that Go's mime/multipart might read differently is unreadable.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote_plus

from proxy.reading.asked import Asked, Naming
from proxy.reading.fields import trimmed

_CONTENT_TYPE = re.compile(
    r'multipart/form-data; ?boundary=(?:([\w.-]{1,70})|"([\w.-]{1,70})")', re.ASCII | re.IGNORECASE
)
_DISPOSITION = re.compile(
    r'form-data; name="(?P<name>[^"\\]*)"(?P<file>; filename="[^"\\]*"(?:; filename\*=[\w.%\'-]+)?)?', re.IGNORECASE
)
_FIELD_LINE = re.compile(rb"([A-Za-z-]{1,40}): ?([\x20-\x7e\x80-\xff]*)")
_PLAIN_ENCODINGS = frozenset({"7bit", "8bit", "binary"})

_MOST_PARTS = 64
_LONGEST_HEAD = 8 * 1024  # bytes of the lines before a part's content, with the empty one
_LONGEST_MODEL = 1024  # bytes, with the line end before it
_LONGEST_EPILOGUE = 64  # bytes of line ends after a form, where clients send two; each piece is checked with all before

_END: Final = b"--"


class _UnreadableError(ValueError):
    """The form is not one that clients write."""


class PassingForm:
    """A form that may go on up to its last boundary, with which Ollama acts."""

    __slots__ = ("_boundary", "_buffer", "_ended", "_in_head", "_model", "_models", "_parts", "_query", "asked")

    def __init__(self, content_type: str, query: str) -> None:
        found = _CONTENT_TYPE.fullmatch(content_type)
        boundary = (found[1] or found[2]) if found else ""
        self._boundary = b"\r\n--" + boundary.encode()
        self._query = query
        self._buffer = b"\r\n"  # what was not let on; the first boundary has no line end before it
        self._parts = 0
        self._in_head = False
        self._ended = False
        self._model: bytes | None = None  # the content of the part that is read, if that is `model`
        self._models: list[bytes] = []
        self.asked: Asked | None = None if found else _unreadable("the form has no plain boundary")

    @property
    def tokens(self) -> int:
        """How many boundaries were read."""
        return self._parts

    @property
    def held(self) -> bytes:
        """All that was held back, to be sent after the rest if the request is let through."""
        return self._buffer if self._parts else self._buffer[2:]

    def feed(self, data: bytes) -> bytes:
        """Take the next piece. Return what may go on."""
        first = not self._parts
        self._buffer += data
        if self.asked is not None:
            return b""
        passed: list[bytes] = []
        try:
            while self._advance(passed):
                pass
        except _UnreadableError as error:
            self.asked = _unreadable(str(error))
        on = b"".join(passed)
        return on[2:] if first and self._parts else on

    def _advance(self, passed: list[bytes]) -> bool:
        """Read one head or one part's content. Return False if more must come first."""
        if self._ended:
            rest = self._buffer.removeprefix(self._boundary + _END)
            if len(rest) > _LONGEST_EPILOGUE or rest.strip(b"\r\n"):
                raise _UnreadableError("more follows the form")
            return False
        if self._in_head:
            end = self._buffer.find(b"\r\n\r\n", 0, _LONGEST_HEAD)
            if end < 0:
                if len(self._buffer) >= _LONGEST_HEAD:
                    raise _UnreadableError("a part of the form has too long a head")
                return False
            self._model = b"" if self._is_model(self._buffer[:end]) else None
            self._in_head = False
            self._pass(passed, end + 2)
            return True
        return self._advance_content(passed)

    def _advance_content(self, passed: list[bytes]) -> bool:
        """Read a part's content, which begins with the last line end of its head."""
        at = self._buffer.find(self._boundary)
        if not self._parts and not (self._boundary.startswith(self._buffer) or at == 0):
            raise _UnreadableError("the form does not begin with its boundary")
        if at < 0 or len(self._buffer) < at + len(self._boundary) + 2:
            if self._parts:
                self._take_model(passed, max(0, len(self._buffer) - len(self._boundary) - 1))
            return False
        after = at + len(self._boundary)
        mark = self._buffer[after : after + 2]
        if mark not in (_END, b"\r\n") or (mark == _END and not self._parts):
            raise _UnreadableError("a boundary of the form is not alone on its line")
        if self._parts:
            self._take_model(passed, at)
            if self._model is not None:
                self._models.append(self._model[2:])
                self._model = None
        if mark == _END:
            self._ended = True
            return True
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise _UnreadableError("the form has too many parts")
        self._pass(passed, len(self._boundary) + 2)
        self._in_head = True
        return True

    def _take_model(self, passed: list[bytes], size: int) -> None:
        """Let the beginning of a part's content go on; keep it if it is the model."""
        if self._model is not None:
            self._model += self._buffer[:size]
            if len(self._model) > _LONGEST_MODEL:
                raise _UnreadableError("the field `model` is too long")
        self._pass(passed, size)

    def _pass(self, passed: list[bytes], size: int) -> None:
        passed.append(self._buffer[:size])
        self._buffer = self._buffer[size:]

    def _is_model(self, head: bytes) -> bool:
        """Return whether a part is the field `model`."""
        lines = [_FIELD_LINE.fullmatch(line) for line in head.split(b"\r\n")]
        fields = [(line[1].lower(), line[2].decode("latin-1").strip(" ")) for line in lines if line is not None]
        dispositions = [value for name, value in fields if name == b"content-disposition"]
        encodings = {value.lower() for name, value in fields if name == b"content-transfer-encoding"}
        found = _DISPOSITION.fullmatch(dispositions[0]) if len(dispositions) == 1 else None
        if found is None or len(fields) < len(lines) or encodings - _PLAIN_ENCODINGS:
            raise _UnreadableError("a part of the form has an odd head")
        if found["name"] == "model" and found["file"]:
            raise _UnreadableError("the field `model` is a file")
        return found["name"] == "model"

    def end(self) -> Asked:
        """Return what the form asks for, now that all of it has come."""
        if self.asked is None:
            self.asked = self._asked() if self._ended else _unreadable("the form is not complete")
        return self.asked

    def _asked(self) -> Asked:
        if "model" in unquote_plus(self._query):
            return _asked(Naming.AMBIGUOUS, "the query may name another model than the form")
        if len(self._models) > 1:
            return _asked(Naming.AMBIGUOUS, "the form has more than one field `model`")
        try:
            model = self._models[0].decode() if self._models else ""
        except UnicodeDecodeError:
            return _unreadable("`model` is not a plain text")
        if not trimmed(model):
            return _asked(Naming.MISSING, "the form names no model")
        return Asked(Naming.NAMED, model, prompt=True)


def _unreadable(why: str) -> Asked:
    return _asked(Naming.UNREADABLE, why)


def _asked(naming: Naming, why: str) -> Asked:
    return Asked(naming, None, why, prompt=True)


def read_form(content_type: str, query: str, form: bytes) -> Asked:
    """Return what a whole form asks for."""
    passing = PassingForm(content_type, query)
    passing.feed(form)
    return passing.end()
