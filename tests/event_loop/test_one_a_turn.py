"""Work that is spread over turns of the loop."""

from __future__ import annotations

import asyncio

import pytest

from proxy.event_loop.life import Life
from proxy.event_loop.one_a_turn import OneATurn


@pytest.fixture
async def turns():
    """Count the turns of the loop, in a list of one number."""
    count = [0]

    def turn():
        count[0] += 1
        asyncio.get_running_loop().call_soon(turn)

    turn()
    yield count
    turn = lambda: None  # noqa: E731 - the next one is the last


async def test_one_call_in_each_turn(turns):
    """However many ask at once, and ask again, one call is made in each turn, first come, first served."""
    in_turn, made = OneATurn(), []

    def call(name, again):
        made.append((turns[0], name))
        if again:
            in_turn(lambda: call(name, again - 1))

    for name in "abc":
        in_turn(lambda name=name: call(name, 2))
    while len(made) < 9:
        await asyncio.sleep(0)
    assert [name for _, name in made] == list("abcabcabc")
    assert len({turn for turn, _ in made}) == 9


async def test_a_mistake_costs_one_call():
    """A call that fails doesn't keep the others from their turn."""
    in_turn, made = OneATurn(), []
    asyncio.get_running_loop().set_exception_handler(lambda *_: made.append("failed"))
    in_turn(lambda: 1 / 0)
    in_turn(lambda: made.append("made"))
    while len(made) < 2:
        await asyncio.sleep(0)
    assert made == ["failed", "made"]


async def test_a_coroutine_waits_for_its_turn(turns):
    """A coroutine goes on in a turn that no other one shares; one that is cancelled costs the others nothing."""
    in_turn, went_on = OneATurn(), []

    async def work(name):
        await in_turn.turn()
        went_on.append((turns[0], name))

    lives = [Life(work(name), asyncio.get_running_loop()) for name in "abc"]
    for life in lives:
        life.start()
    lives[1].cancel(None)
    while len(went_on) < 2:
        await asyncio.sleep(0)
    assert [name for _, name in went_on] == ["a", "c"]
    assert went_on[0][0] < went_on[1][0]
