"""What is to be seen of pulls and loads: few lines in a log, whatever a pull reports; times and sizes in words."""

from __future__ import annotations

import pytest

from proxy.manage.ollama.api import Pulling
from proxy.manage.warm.progress import Lines, duration

GB = 10**9


def told(*reports):
    """Return the lines of a pull that reports so."""
    lines = []
    with Lines(lines.append).pulling("m:8b") as report:
        for each in reports:
            report(each)
    return lines


def test_lines_of_a_pull():
    """Without a terminal a pull of thousands of reports is a line for each tenth."""
    reports = [Pulling("", done * GB // 1000, 5 * GB) for done in range(5001)]
    lines = told(Pulling("pulling manifest", 0, 0), *reports, Pulling("writing manifest", 5 * GB, 5 * GB))
    assert len(lines) == 10
    assert lines[:2] == ["m:8b: pulling", "m:8b: 10 %, 500.0 MB of 5.0 GB"]
    assert lines[-1] == "m:8b: 90 %, 4.5 GB of 5.0 GB"


def test_lines_of_layers():
    """A large layer after a small one is shown from its beginning. A small one after a large one isn't."""
    small_first = [Pulling("", done, 100 if done <= 100 else 1000) for done in range(0, 1001, 10)]
    assert [line.partition(": ")[2] for line in told(*small_first) if "%" in line][-5:] == [
        "50 %, 500 bytes of 1.0 kB",
        "60 %, 600 bytes of 1.0 kB",
        "70 %, 700 bytes of 1.0 kB",
        "80 %, 800 bytes of 1.0 kB",
        "90 %, 900 bytes of 1.0 kB",
    ]
    large_first = [Pulling("", done, 1000 if done <= 1000 else 1010) for done in range(0, 1011, 10)]
    assert len(told(*large_first)) == 10


def test_verifying_is_told_once():
    """Verifying a large model takes minutes, and is shown once, however often Ollama reports it."""
    assert told(*[Pulling("verifying sha256 digest", 5, 5)] * 3)[1:] == ["m:8b: verifying sha256 digest"]


def test_lines_of_a_load():
    """A load is shown at its beginning, and while it continues."""
    lines = []
    with Lines(lines.append).loading("m:8b") as silent:
        silent(60.0)
        silent(120.0)
    assert lines == ["m:8b: loading", "m:8b: still loading, after 1 min", "m:8b: still loading, after 2 min"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (3661, "1 h 1 min"),
        (86400, "1 d"),
        (100000, "1 d 3 h"),
    ],
)
def test_duration(seconds, words):
    """A time is said in two units at most."""
    assert duration(seconds) == words
