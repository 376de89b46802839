"""Read a request's JSON body: at once if it is held whole, otherwise while it passes."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from proxy.reading.fields import NAMESPACE, SHAPES, Fact, Findings, Opaque, folded
from proxy.reading.scanner import NotReadError, Scanner

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.reading.asked import Asked
    from proxy.reading.fields import Field, Shape

WHOLE = 512 * 1024
"""Most bytes of a body that is held whole before Ollama gets any of it."""

PIECE = 64 * 1024
"""Bytes that are read in one turn of the loop."""

_PADDING = 64 * 1024  # blanks after the object that are held back
_MOST_VALUES = 20_000  # that are read at once: 10 ms
_CONTAINERS = frozenset({dict, list})
_PLAIN_KEYS = frozenset(
    {
        *("model", "messages", "stream", "tools", "system", "max_tokens", "temperature", "metadata", "tool_choice"),
        *("role", "content", "type", "text", "id", "name", "input", "tool_use_id", "is_error", "cache_control"),
        *("function", "parameters", "description", "input_schema", "tool_calls", "tool_call_id", "call_id", "output"),
    }
)
"""Keys that Go doesn't fold into others. An object with only such keys is looked up by the few keys that matter."""
_CHAT_KEYS = (_PLAIN_KEYS - {"tools"}) | {"prompt_cache_key", "seed", "top_p"}
"""Keys of a chat that asks for an answer and nothing else. None of them has values that Go would merge."""

_SHORT = 128  # characters of a model's name that is kept
_SHORT_CHAT = 64 * 1024  # bytes. A longer one mostly has tools, and skipping 300 KiB up to them would take 0.1 ms


class _Message(msgspec.Struct, gc=False):
    """A message or another element of the talk, of which nothing is kept. Anything but an object is refused."""


_Talk = list[_Message] | None

_decode_chat = msgspec.json.Decoder(
    msgspec.defstruct(
        "_Chat",
        [
            ("model", str),
            ("stream", bool | None, None),
            *((key, _Talk, None) for key in ("messages", "input")),
            *((key, msgspec.Raw, None) for key in sorted(_CHAT_KEYS - {"model", "stream", "messages", "input"})),
        ],
        forbid_unknown_fields=True,
        gc=False,
    )
).decode
"""Reads a chat without making objects of what it skips, which takes 12,000 instructions less than `orjson.loads`.

Where it skips, it takes more than orjson does: texts that aren't UTF-8, numbers beyond a double and deeper nesting.
Go takes such a body as well, or refuses all of it.
"""

_ESCAPED_LETTER = re.compile(rb"\\u00[4-7]")  # no client escapes ASCII letters


def read(path: str, body: bytes) -> Asked | None:
    """Return what a whole body asks for on a route, or None where the route takes no JSON that names a model."""
    if path not in SHAPES:
        return None
    asked = read_at_once(path, body)
    if asked is not None:
        return asked
    passing = Passing(path)
    passing.feed(body)
    return passing.end()


def read_at_once(path: str, body: bytes) -> Asked | None:
    """Return what a whole body asks for; None if it must be read in pieces, or names no model on this route.

    msgspec reads a short chat that asks for an answer and nothing else, orjson reads any other body. orjson hides a key
    that stands twice, and refuses some texts that Go reads: the scanner reads the bodies where that could matter. It
    also reads those with so many values that they take more than a turn of the loop.
    """
    if path not in SHAPES:
        return None
    images = body.rfind(b"image") >= 0
    return (None if images else read_chat(path, body)) or read_objects(path, body, images=images)


def read_chat(path: str, body: bytes) -> Asked | None:
    """Return what a short chat with plain keys and without images asks for; None if the body is anything else."""
    talk = SHAPES[path].talk
    if talk is None or len(body) > _SHORT_CHAT:
        return None
    try:
        found: Any = _decode_chat(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    if not getattr(found, talk) or len(found.model) > _SHORT:
        return None
    return _chat(path, found.model, found.stream)


def read_objects(path: str, body: bytes, *, images: bool) -> Asked | None:
    """Return what a body asks for, read with orjson; None if it must be read in pieces."""
    shape = SHAPES[path]
    if _may_hide(shape, body):
        return None
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(found, dict):
        return Findings(shape).unreadable("the body is not a JSON object")
    if not found.keys() <= _PLAIN_KEYS and _is_odd(shape, found):
        return None
    findings = Findings(shape)
    try:
        _Walk(findings.note).on(shape.top if images else shape.without_images, found)
    except _TooManyError:
        return None
    asked = findings.asked()
    if asked.needs and shape.search is not None and body.rfind(NAMESPACE.encode()) >= 0:  # a hidden key may have it
        asked = replace(asked, needs=())
    # An empty prompt may hide one that stood before it, which Go may keep.
    return asked if asked.prompt or shape.prompts.isdisjoint(found) else None


@lru_cache(maxsize=256)
def _chat(path: str, model: str, stream: bool | None) -> Asked:
    """Return what a chat asks for that has messages, and no tools, images or other fields that matter.

    A device's programs name a few models, so nearly each such chat after the first is found here: 0.1 instead of 5 us.
    """
    findings = Findings(SHAPES[path])
    findings.note(Fact.MODEL, "model", model)
    findings.note(Fact.STREAM, "stream", stream)
    findings.note(Fact.PROMPT, "", Opaque.CONTAINER)
    return findings.asked()


def _may_hide(shape: Shape, body: bytes) -> bool:
    """Return whether a key may stand twice whose values Go would merge, so that the last one isn't all.

    Go keeps the entries of a first `options`, and the fields of elements in a first `tools`. Elsewhere its last value
    counts, as orjson's does. rfind, because it takes half the time of `in`.
    """
    native = "options" in shape.top.keys
    if not native and shape.search is None:
        return False
    if body.rfind(b"\\u00") >= 0 and _ESCAPED_LETTER.search(body):
        return True
    if native:
        return body.rfind(b'"options"') != body.find(b'"options"')
    return body.rfind(b"web_search") >= 0 and body.count(b'"tools"') > 1


def _is_odd(shape: Shape, found: dict[str, Any]) -> bool:
    """Return whether a key that matters is spelled in another way: it may stand twice in that way, too."""
    keys = shape.top.keys
    return any(key not in keys and folded(key) in keys for key in found)


class _TooManyError(ValueError):
    """There are more values than are looked at in one turn of the loop."""


class _Walk:
    """Looks at the values that matter in a body that orjson has read."""

    __slots__ = ("_left", "_note")

    def __init__(self, note: Callable[[Fact, str, object], None]) -> None:
        self._note = note
        self._left = _MOST_VALUES

    def on(self, place: Field, value: Any) -> None:
        """Note what stands in an object or array at a place, and what is below it."""
        self._left -= len(value)
        if self._left < 0:
            raise _TooManyError
        if type(value) is list:
            if place.each is not None:
                self._elements(place.each, value)
            return
        keys, note = place.keys, self._note
        for key in keys.keys() & value.keys() if value.keys() <= _PLAIN_KEYS else value:
            below = keys.get(key) or keys.get(folded(key))
            if below is None:
                continue
            inner = value[key]
            if below.fact is not None:
                note(below.fact, key, Opaque.CONTAINER if type(inner) in _CONTAINERS else inner)
            if type(inner) in _CONTAINERS:
                self.on(below, inner)

    def _elements(self, each: Field, values: list[Any]) -> None:
        deeper = each.each is not None or each.keys
        for inner in values:
            is_container = type(inner) in _CONTAINERS
            if each.fact is not None:
                self._note(each.fact, "", Opaque.CONTAINER if is_container else inner)
            if is_container and not deeper:
                break  # the others add nothing
            if is_container:
                self.on(each, inner)


class Passing:
    """A body too large to be held: it may go on, up to the brace that makes Ollama act.

    Go decodes as soon as the first JSON value is closed. That brace and all that follows it are held back until the
    body's end, when it is known what the body asks for.
    """

    __slots__ = ("_held", "_scanner", "asked")

    def __init__(self, path: str) -> None:
        self._scanner = Scanner(SHAPES[path])
        self._held = b""
        self.asked: Asked | None = None  # once it is known, at the end at the latest

    @property
    def held(self) -> bytes:
        """All that was held back, to be sent after the rest if the request is let through."""
        return self._held

    @property
    def tokens(self) -> int:
        """How many JSON tokens were read."""
        return self._scanner.tokens

    def feed(self, data: bytes) -> bytes:
        """Take the next piece, of at most PIECE bytes. Return what of it may go on.

        Where the body can't be read, `asked` says so at once and nothing more goes on: the caller refuses the request,
        or sends `held` and no longer asks.
        """
        if self.asked is not None or self._held:
            self._hold(data)
            return b""
        try:
            last = self._scanner.feed(data)
        except NotReadError as error:
            self.asked = self._scanner.findings.unreadable(str(error))
            self._held = data
            return b""
        if last < 0:
            return data
        self._hold(data[last:])
        return data[:last]

    def _hold(self, data: bytes) -> None:
        rest = data if self._held else data[1:]
        self._held += data
        if self.asked is not None:
            return
        if rest.strip(b" \t\r\n"):
            self.asked = self._scanner.findings.ambiguous("more follows the JSON object")
        elif len(self._held) > _PADDING:
            self.asked = self._scanner.findings.unreadable("too many blanks follow the JSON object")

    def end(self) -> Asked:
        """Return what the body asks for, now that all of it has come."""
        if self.asked is None:
            findings = self._scanner.findings
            self.asked = findings.asked() if self._held else findings.unreadable("the JSON object is not complete")
        return self.asked
