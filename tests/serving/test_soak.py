"""The soak runs, and sees what it is there to see."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import TYPE_CHECKING

import pytest

from bench.soak.ledger import Ledger
from bench.soak.picture import HEIGHT, WIDTH, Sample, chart, growth, marks, picture
from tests.support.patience import PATIENCE
from tests.support.proxy_process import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


# --- the whole --------------------------------------------------------------------------------------------------------


@pytest.mark.alone
async def test_it_runs() -> None:
    """A few seconds of it hold, and are shown with ASCII where nothing else can be printed; exit code 0."""
    words = (sys.executable, "-m", "bench.soak", "--minutes", "0.07", "--seed", "7")
    environ = os.environ | {"PYTHONIOENCODING": "ascii"}
    process = await asyncio.create_subprocess_exec(
        *words, cwd=ROOT, env=environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(3 * PATIENCE):
        printed, said = await process.communicate()
    text = printed.decode("ascii")
    assert (process.returncode, text.splitlines()[-1]) == (0, "Nothing failed."), text + said.decode()
    assert "memory, MiB\n" in text
    assert "  openai chat, streamed\n" in text
    assert "--seed 7;" in said.decode()


# --- the ledger -------------------------------------------------------------------------------------------------------


class Book:
    """A ledger, and the log that it reads."""

    def __init__(self, log: Path) -> None:
        self.ledger = Ledger(log)
        self._log = log

    def answered(self) -> str:
        """Make a call that is answered; return its id."""
        call = self.ledger.begin("a call")
        call.sent, call.answered = True, 1.0
        return call.id

    def log(self, *names: str, **more: object) -> None:
        """Write the lines of such requests."""
        with self._log.open("a") as file:
            file.writelines(json.dumps({"id": name, "ended": "complete", **more}) + "\n" for name in names)


def missing(book: Book) -> None:
    book.log(book.answered())
    book.answered()


def twice(book: Book) -> None:
    book.log(*[book.answered()] * 2)


def never_sent(book: Book) -> None:
    book.log(book.ledger.begin("a call").id)


def nameless(book: Book) -> None:
    book.ledger.nameless = 2
    book.log("x")


def too_many_nameless(book: Book) -> None:
    book.ledger.nameless = book.ledger.nameless_maybe = 1
    book.log("x", "y", "z")


def gap(book: Book) -> None:
    book.log("x", audit_gap=3)


@pytest.mark.parametrize(
    ("happens", "told"),
    [
        (missing, "1 requests without a line"),
        (twice, "1 requests with more than one line"),
        (never_sent, "1 lines of requests that were never sent"),
        (nameless, "1 lines without a known id instead of 2 to 2"),
        (too_many_nameless, "3 lines without a known id instead of 1 to 2"),
        (gap, "the log says that 3 lines are lost"),
    ],
)
def test_lines_that_do_not_match(tmp_path: Path, happens: Callable[[Book], None], told: str) -> None:
    """Each answered request has exactly one line, and there is no other. Anything else is reported."""
    book = Book(tmp_path / "access.log")
    happens(book)
    book.ledger.read()
    (fault,) = book.ledger.faults()
    assert fault.startswith(told)


def test_lines_that_match(tmp_path: Path) -> None:
    """Who left before an answer may have a line or none, and lines are found in rotated files too."""
    log = tmp_path / "access.log"
    book = Book(log)
    book.log(book.answered(), book.answered())
    log.rename(f"{log}.1")
    left, stayed_away = book.ledger.begin("left"), book.ledger.begin("left")
    left.sent = stayed_away.sent = True
    book.log(book.answered(), left.id)
    book.ledger.read()
    assert (book.ledger.faults(), book.ledger.complete, book.ledger.lines) == ([], True, 4)


# --- the picture ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "grown"),
    [
        pytest.param([5.0] * 100, 0, id="flat"),
        pytest.param([0.0] * 25 + [50.0] * 75, 0, id="warm_up"),
        pytest.param([5.0] * 50 + [500.0] * 3 + [5.0] * 47, 0, id="peak"),
        pytest.param([float(number) for number in range(100)], 50, id="leak"),
        pytest.param([1.0] * 12, None, id="too_few"),
    ],
)
def test_growth(values: list[float], grown: float | None) -> None:
    """What counts is how much higher it is at the end than after the warm-up; a peak in between doesn't."""
    assert growth(values) == grown


@pytest.mark.parametrize(("unicode", "full", "half"), [(True, "█", "▄"), (False, "#", ":")])
def test_chart(unicode: bool, full: str, half: str) -> None:
    """The highest value reaches the top; half of it half-way, and an eighth the middle of the lowest row."""
    lines = chart("title", [0, 80, 40, 10], unicode=unicode)
    assert lines[0] == "title"
    assert [line[10:] for line in lines[1:]] == [f" {full}  ", f" {full}  ", f" {full}{full} ", f" {full}{full}{half}"]
    assert lines[1].split()[0] == "80"


def test_long_chart() -> None:
    """Of more values than there are columns, each column shows the highest of its own."""
    lines = chart("title", [0.0] * 500 + [9.0] + [0.0] * 499, unicode=True)
    assert len(lines) == 1 + HEIGHT
    assert [line.count("█") for line in lines[1:]] == [1] * HEIGHT
    assert {len(line) for line in lines[1:]} == {10 + WIDTH}


def test_marks() -> None:
    """Each happening has its letter in its place; different ones in the same place are a star."""
    assert marks({"R": [0, 5], "H": [5.1, 9.9, 10]}, 10, 10) == "R    *   H"


def test_picture() -> None:
    """The charts share one line of time, with what happened below it."""
    samples = [Sample(float(at), 50 + at, 20, 100, 2, 9) for at in range(1, 11)]
    lines = picture(samples, {"R": [5.0]}, "R: restarted", unicode=False).splitlines()
    assert [line for line in lines if line[:1].isalpha()][:2] == ["memory, MiB", "open files"]
    assert lines[-2].index("R") == 10 + 5
    assert lines[-1].strip() == "0 to 10 s; R: restarted"
