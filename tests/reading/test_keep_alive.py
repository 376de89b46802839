"""Which spellings mean that Ollama keeps a model for no time."""

from __future__ import annotations

import orjson
import pytest

from proxy.reading.body import read
from proxy.reading.keep_alive import duration, environment_keeps_none, keeps_none

# Checked against Go 1.26: time.ParseDuration, and the code around it in Ollama's envconfig.KeepAlive and api.Duration.
NONE = (
    "0",
    "-0",
    "+0",
    "0s",
    "0m",
    "0h",
    "-0s",
    "+0ms",
    "0h0m0s",
    "0.0s",
    ".0s",
    "0.s",
    "0.1ns",
    "0\u00b5s",
    "0\u03bcs",
)
NOT_READ = ("", "00", "0.0", "0.", ".", "s", "0 s", "0S", "0d", "0_0", "0x0", "0e0", "\u0660", "\uff10", "???", "0s0")
SOME = {"1ns": 1, "-1m": -60 * 10**9, "5m0s": 300 * 10**9, "1.5h": 5400 * 10**9, ".5s": 5 * 10**8, "0.0009us": 0}
ENVIRONMENT = ("00", "-00", " 0 ", "\t0s\n", '"0"', "'0s'", "\"'0'\"", "\u00a00\u2003")


@pytest.mark.parametrize("text", NONE)
def test_every_way_to_say_none(text):
    """However a duration of nothing is spelled, Ollama keeps no model, by its environment or by a request."""
    assert duration(text) == 0
    assert environment_keeps_none(text)
    assert keeps_none(text)


@pytest.mark.parametrize("text", NOT_READ)
def test_what_go_does_not_read(text):
    """What Go doesn't read as a duration is none; a request with it is refused, so nothing is unloaded."""
    assert duration(text) is None
    assert not keeps_none(text)


@pytest.mark.parametrize(("text", "size"), SOME.items())
def test_other_durations(text, size):
    """Other durations are read to the nanosecond, below zero too."""
    assert duration(text) == size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("9223372036854775807ns", 2**63 - 1),
        ("9223372036854775808ns", None),
        ("-9223372036854775808ns", -(2**63)),
        ("-9223372036854775809ns", None),
    ],
)
def test_the_longest_duration(text, size):
    """A duration has 63 bits, as in Go."""
    assert duration(text) == size


@pytest.mark.parametrize("text", ENVIRONMENT)
def test_the_environment_takes_more(text):
    """In its environment Ollama also takes whole seconds, quotes and blanks."""
    assert environment_keeps_none(text)
    assert not keeps_none(text)


@pytest.mark.parametrize("text", ["", " ", "0.0", "0d", "-1", "-1m", "60", "5m", "???", "' 0'", "X0"])
def test_the_environment_says_otherwise(text):
    """Below zero is forever, and what Ollama can't read is five minutes."""
    assert not environment_keeps_none(text)


@pytest.mark.parametrize(
    ("sent", "none"),
    [
        (b"0", True),
        (b"0.0", True),
        (b"-0", True),
        (b"0e5", True),
        (b"1e-10", True),
        (b"9e-10", True),
        (b'"0"', True),
        (b'"0h0m0s"', True),
        (b"1e-9", False),
        (b"-1e-10", False),
        (b"-1", False),
        (b"300", False),
        (b'"5m"', False),
        (b'""', False),
        (b"null", False),
        (b"false", False),
        (b"[0]", False),
    ],
    ids=str,
)
def test_a_requests_own(sent, none):
    """A request's number is in seconds; a text, a duration. Other values are refused, or as if there were none."""
    asked = read("/api/chat", orjson.dumps({"model": "m"})[:-1] + b',"keep_alive":%b}' % sent)
    assert keeps_none(asked.keep_alive) is none
