"""Recognise every spelling of `keep_alive` and OLLAMA_KEEP_ALIVE with which Ollama doesn't keep a model. Pure.

The rules are those of Go's `time.ParseDuration`, and of Ollama's `envconfig.KeepAlive` (envconfig/config.go) and
`Duration.UnmarshalJSON` (api/types.go).
"""

from __future__ import annotations

import re

from proxy.reading.fields import trimmed

_UNITS = {
    "ns": 1,
    "us": 10**3,
    "\u00b5s": 10**3,  # the micro sign
    "\u03bcs": 10**3,  # the Greek letter
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_NUMBER = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_PART = rf"({_NUMBER})({'|'.join(_UNITS)})"
_PARTS = re.compile(_PART)
_DURATION = re.compile(rf"[-+]?(?:0|(?:{_PART})+)")
_WHOLE = re.compile(r"[-+]?[0-9]+")
_MOST = 2**63 - 1  # nanoseconds: 292 years


def duration(text: str) -> int | None:
    """Return the nanoseconds of a Go duration, or None if Go doesn't read it."""
    if _DURATION.fullmatch(text) is None:
        return None
    size = 0
    for number, unit in _PARTS.findall(text):
        whole, _, fraction = number.partition(".")
        size += int(whole or "0") * _UNITS[unit] + int(fraction or "0") * _UNITS[unit] // 10 ** len(fraction)
    if size > _MOST + text.startswith("-"):
        return None
    return -size if text.startswith("-") else size


def keeps_none(sent: float | str | None) -> bool:
    """Return whether Ollama unloads a model after a request with this `keep_alive`. Below 0 is forever."""
    if isinstance(sent, str):
        return duration(sent) == 0
    return sent is not None and 0 <= sent * 10**9 < 1


def environment_keeps_none(value: str) -> bool:
    """Return whether Ollama with this OLLAMA_KEEP_ALIVE unloads a model after each request.

    A value that it can't read means five minutes.
    """
    text = trimmed(value).strip("\"'")
    size = duration(text)
    if size is None:
        return _WHOLE.fullmatch(text) is not None and int(text) == 0
    return size == 0
