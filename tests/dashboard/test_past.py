"""An open page follows the log: while it is built, grows, is rotated or removed, and when its index breaks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from proxy.dashboard.past import Past, UnreadableError
from tests.dashboard.indexed import NOW, Indexed, line

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


@pytest.fixture
def log(tmp_path: Path) -> Indexed:
    """Give a log without lines."""
    return Indexed(tmp_path)


@pytest.fixture
async def past(log: Indexed) -> AsyncIterator[Past]:
    """Give what the page of `log` asks; the log may come later."""
    made = Past(str(log.path), clock=lambda: NOW)
    await made.start()
    yield made
    await made.stop()


async def until_it_has(past: Past, requests: int) -> dict[str, Any]:
    """Ask as a page does, again and again, until so many requests are counted."""
    while True:
        try:
            found = await past.history({"period": "all"})
        except UnreadableError:
            continue
        if found.get("totals", {}).get("requests") == requests:
            return found


async def test_log_that_comes_later(past: Past, log: Indexed) -> None:
    """A page that is open before the first request shows it when it comes."""
    assert past.keeper is not None
    assert (await past.keeper.settled()).state == "none"
    assert {*await past.history({})} == {"index"}
    assert await past.lines({}) == {"lines": [], "next": None}
    log.append(line())
    await until_it_has(past, 1)


async def test_first_answer_of_a_log_that_was_read_before(log: Indexed) -> None:
    """If nothing is new, the first answer is whole: it waits for the process that keeps the index to begin."""
    log.append(line())
    log.update()
    past = Past(str(log.path), clock=lambda: NOW)
    await past.start()
    found = await past.history({"period": "all"})
    await past.stop()
    assert found["totals"]["requests"] == 1


async def test_log_that_grows_and_is_rotated(past: Past, log: Indexed) -> None:
    """New lines, also those after a rotation, are counted and shown at the next look."""
    for number in range(1, 5):
        log.append(line(id=f"n{number}"))
        await until_it_has(past, number)
        log.rotate()
    log.rotated(4).unlink()
    log.append(line(id="n5"))
    await until_it_has(past, 4)
    page = await past.lines({"period": "all"})
    assert [(each["record"]["id"], each["file"]) for each in page["lines"]] == [
        ("n5", "access.log"),
        ("n4", "access.log.1"),
        ("n3", "access.log.2"),
        ("n2", "access.log.3"),
    ]


def _overwritten(path: Path) -> None:
    """Damage the index in place, beyond its first page."""
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (os.path.getsize(path) - 4096))


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda path: [each.unlink() for each in path.parent.glob("access.log.index*")], id="removed"),
        pytest.param(_overwritten, id="overwritten"),
    ],
)
async def test_index_that_breaks(past: Past, log: Indexed, spoil: Callable[[Path], object]) -> None:
    """An index that breaks while a page is open is made again: the page sees an error at most, then all lines."""
    log.append(*(line(model=f"m{number}") for number in range(500)))
    await until_it_has(past, 500)
    spoil(log.path.with_name("access.log.index"))
    log.append(line())
    await until_it_has(past, 501)


async def test_progress(past: Past, log: Indexed) -> None:
    """The page learns how far the index is, in bytes, and of which log."""
    log.append(line(), line())
    await until_it_has(past, 2)
    found = past.index()
    size = 2 * len(line())
    assert found == {
        "state": "ready",
        "lines": 2,
        "done": size,
        "total": size,
        "log": str(log.path),
        "problem": None,
        "hint": None,
    }
