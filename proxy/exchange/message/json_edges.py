"""Read facts from a JSON object of which only the beginning and the end were kept.

Pure. A text between the edges may contain anything, and so may a text at the edges. But its quotes are escaped there,
and the inside of a nested object or list doesn't parse together with one edge of the whole.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import Any

import orjson

EDGE = 8 * 1024
"""Bytes that are kept of each edge: Ollama puts the model at the beginning, the counts at the end."""

_COUNTS = re.compile(
    rb'(?<!\\)"(prompt_tokens|completion_tokens|input_tokens|output_tokens|prompt_eval_count|eval_count)": ?(\d{1,12})'
)
_MODEL = re.compile(rb'(?<!\\)"model": ?("(?:[^"\\]|\\.){0,512}")')
_DONE = re.compile(rb'(?<!\\)"done": ?true')
_DONE_REASON = re.compile(rb'(?<!\\)"done_reason": ?"[^"\\]+"')
_FINISH_REASON = re.compile(rb'(?<!\\)"finish_reason": ?"[^"\\]+"')
_TYPE = re.compile(rb'(?<!\\)"type": ?"([a-z_.]{1,64})"')
_ERROR = re.compile(rb'\{\s*"error"').match

_TRIES = 8  # places at each edge that are checked: a hostile model could write hundreds


def as_object(octets: bytes) -> dict[str, Any]:
    """Return `octets` as a JSON object; an empty one if they aren't one."""
    try:
        found = orjson.loads(octets)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def model_of(beginning: bytes) -> str | None:
    """Return the model that is named first."""
    found = _MODEL.search(beginning)
    return (as_object(b'{"model":%b}' % found[1]).get("model") or None) if found else None


def counts_of(end: bytes) -> dict[str, int]:
    """Return the counts of tokens, by name."""
    return {name.decode(): int(count) for name, count in _COUNTS.findall(end)}


def type_of(beginning: bytes, end: bytes) -> bytes | None:
    """Return the type that the object names."""
    found = _at_top(_TYPE, beginning, end)
    return None if found is None else found[1]


def is_done(beginning: bytes, end: bytes) -> bool:
    """Return whether a line of NDJSON says that it is the last: `done`, or an error."""
    return _at_top(_DONE, beginning, end) is not None or _ERROR(beginning) is not None


def is_finished(beginning: bytes, end: bytes) -> bool:
    """Return whether a line of NDJSON has a `done_reason`."""
    return _at_top(_DONE_REASON, beginning, end) is not None


def is_finished_choice(end: bytes) -> bool:
    """Return whether the last choice of a chat's chunk has a `finish_reason`."""
    return _at_end(_FINISH_REASON, end, b'{"choices":[{') is not None


def _at_top(pattern: re.Pattern[bytes], beginning: bytes, end: bytes) -> re.Match[bytes] | None:
    """Return a match of key and value that belongs to the object itself: the object could end or begin with it."""
    for found in islice(pattern.finditer(beginning), _TRIES):
        if as_object(beginning[: found.end()] + b"}"):
            return found
    return _at_end(pattern, end, b"{")


def _at_end(pattern: re.Pattern[bytes], end: bytes, opening: bytes) -> re.Match[bytes] | None:
    """Return a match that makes a complete object of `opening` and everything that follows it."""
    for found in list(pattern.finditer(end))[-_TRIES:]:
        if as_object(opening + end[found.start() :]):
            return found
    return None
