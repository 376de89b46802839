"""Which requests a rule's limit holds back, in the order in which they are to be served."""

from __future__ import annotations

import pytest

from proxy.exchange.message.limits import Limit, Wish, held_back, places_left

KIDS, AGENTS = Limit(("kids",), 1), Limit(("agents",), 2)


def wishes(kinds: str, limit: Limit | None = KIDS, first: int = 0) -> list[Wish]:
    """Return requests: `r` is ready, `y` needs a load, `l` is late and needs one, and `R` is late and ready."""
    return [Wish(at, limit, kind in "rR", kind in "lR") for at, kind in enumerate(kinds, first)]


@pytest.mark.parametrize(
    ("kinds", "places", "held"),
    [
        pytest.param("rylR", 0, {0, 1, 2, 3}, id="no place"),
        pytest.param("rylR", -1, {0, 1, 2, 3}, id="fewer than none, after a reload"),
        pytest.param("rRr", 1, set(), id="those that need no load take the place in their order"),
        pytest.param("yyy", 1, set(), id="those that need a load, and aren't late, keep no place"),
        pytest.param("yr", 1, set(), id="one that needs a load is passed until it is late"),
        pytest.param("lr", 1, {1}, id="a late one keeps the place"),
        pytest.param("lR", 1, {1}, id="a late one keeps the place from a late one that needs no load"),
        pytest.param("lry", 1, {1}, id="one that isn't late may be loaded for"),
        pytest.param("lr", 2, set(), id="a late one leaves the other place"),
        pytest.param("llr", 2, {2}, id="two late ones keep both places"),
        pytest.param("rl", 1, {1}, id="a late one doesn't pass one before it"),
        pytest.param("Rl", 1, {1}, id="nor a late one before it"),
        pytest.param("ll", 1, {1}, id="nor one before it that needs a load"),
        pytest.param("ry", 1, set(), id="one that isn't late takes no place"),
        pytest.param("rl", 2, set(), id="a late one has a place behind another"),
        pytest.param("rrl", 2, {2}, id="but not behind two"),
        pytest.param("rll", 2, {2}, id="nor behind one of each kind"),
        pytest.param("rlr", 2, set(), id="a place is left for those behind it"),
        pytest.param("lrl", 2, {2}, id="a late one doesn't pass two of each kind"),
    ],
)
def test_requests_that_are_held_back(kinds: str, places: int, held: set[int]) -> None:
    """A late request that needs a load keeps its place from later ones, and doesn't pass earlier ones of its rule."""
    assert held_back(wishes(kinds), {KIDS.key: places}) == held


def test_rules_hold_back_only_their_own() -> None:
    """Requests of another rule, of one without a limit, or of none, neither hold others back nor are held back."""
    among = [*wishes("l"), *wishes("rr", AGENTS, 1), *wishes("rr", Limit(("me",), None), 3), *wishes("r", None, 5)]
    assert held_back([*among, *wishes("r", KIDS, 6)], {KIDS.key: 1, AGENTS.key: 2}) == {6}


@pytest.mark.parametrize(
    ("waiting", "sent", "now", "left"),
    [
        pytest.param([], [KIDS], {}, {}, id="nobody waits"),
        pytest.param([None], [KIDS], {}, {}, id="nobody with a rule waits"),
        pytest.param([KIDS], [], {}, {KIDS.key: 1}, id="none is sent"),
        pytest.param([KIDS, AGENTS], [AGENTS, None, KIDS], {}, {KIDS.key: 0, AGENTS.key: 1}, id="some are sent"),
        pytest.param([AGENTS], [AGENTS] * 2, {AGENTS.key: 1}, {AGENTS.key: -1}, id="a reload lowered it"),
        pytest.param([AGENTS], [AGENTS], {AGENTS.key: None}, {}, id="a reload removed it"),
        pytest.param([Limit(("me",), None)], [], {("me",): 3}, {("me",): 3}, id="a reload made it"),
    ],
)
def test_places_that_are_left(
    waiting: list[Limit | None],
    sent: list[Limit | None],
    now: dict[tuple[str, ...], int | None],
    left: dict[tuple[str, ...], int],
) -> None:
    """Each rule with a limit, for which a request waits, has the places that Ollama's requests leave."""
    assert places_left(waiting, sent, now) == left
