"""A coroutine whose steps are taken in the call that makes them possible."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from proxy.event_loop.life import Life, Signal
from tests.support.raw_http import until

if TYPE_CHECKING:
    from collections.abc import Coroutine


def alive(coroutine: Coroutine[object, None, None]) -> Life:
    """Return a life that has begun."""
    life = Life(coroutine, asyncio.get_running_loop())
    life.start()
    return life


async def test_goes_on_within_the_call() -> None:
    """Who gives the value has the next step done when its call returns."""
    signal: Signal[str] = Signal()
    seen: list[str] = []

    async def wait() -> None:
        seen.append("waits")
        seen.append(await signal)

    alive(wait())
    assert seen == ["waits"]
    signal.set("value")
    assert seen == ["waits", "value"]
    signal.set("other")
    assert (seen, signal.value) == (["waits", "value"], "value")


async def test_value_that_is_there_already() -> None:
    """A value that was given before it is awaited is not waited for."""
    signal: Signal[int] = Signal()
    signal.set(1)
    seen: list[int] = []

    async def wait() -> None:
        seen.append(await signal)

    alive(wait())
    assert seen == [1]


async def test_cancelled_at_once() -> None:
    """A cancellation reaches the coroutine within the call, with its reason, and what it waited for changes nothing."""
    signal: Signal[None] = Signal()
    seen: list[object] = []

    async def wait() -> None:
        try:
            await signal
        except asyncio.CancelledError as error:
            seen.append(error.args[0])
            await asyncio.sleep(0)
            seen.append("goes on")

    life = alive(wait())
    life.cancel("left")
    signal.set(None)
    assert seen == ["left"]
    await until(lambda: len(seen) == 2)
    life.cancel("too late")
    assert seen == ["left", "goes on"]


async def test_cancelled_while_it_runs() -> None:
    """A coroutine that is cancelled in one of its own steps learns it where it next waits."""
    seen: list[object] = []
    lives: list[Life] = []

    async def wait() -> None:
        await asyncio.sleep(0)
        lives[0].cancel("why")
        seen.append("still runs")
        try:
            await Signal[None]()
        except asyncio.CancelledError as error:
            seen.append(error.args[0])

    lives.append(alive(wait()))
    await until(lambda: len(seen) == 2)
    assert seen == ["still runs", "why"]


@pytest.mark.parametrize("how", ["result", "exception", "cancelled"])
async def test_futures(how: str) -> None:
    """Futures of asyncio are waited for as a task waits; a cancelled wait cancels its future."""
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    seen: list[object] = []

    async def wait() -> None:
        try:
            seen.append(await future)
        except (ValueError, asyncio.CancelledError) as error:
            seen.append(type(error).__name__)

    life = alive(wait())
    if how == "result":
        future.set_result("result")
    elif how == "exception":
        future.set_exception(ValueError())
    else:
        life.cancel(None)
        assert future.cancelled()
    await until(lambda: seen)
    assert seen == [{"result": "result", "exception": "ValueError", "cancelled": "CancelledError"}[how]]


async def test_mistake() -> None:
    """What a coroutine doesn't catch is reported to the loop, and ends it."""
    said: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context["exception"]))
    signal: Signal[None] = Signal()

    async def wait() -> None:
        await signal
        raise ZeroDivisionError

    life = alive(wait())
    signal.set(None)
    life.cancel(None)
    assert [type(each) for each in said] == [ZeroDivisionError]
