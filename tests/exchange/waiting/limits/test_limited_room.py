"""The gateway holds a rule's `max_active`, with pings, over reloads, and for its askers alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from proxy.exchange.askers import Askers
from proxy.exchange.message.limits import active_limits
from proxy.exchange.waiting.pings import Times
from proxy.policy.access import Access
from proxy.policy.rule_keys import RuleSpec
from tests.exchange.waiting.asking import NEVER, PATHS, Mute, ask, body
from tests.support.asked_tailscale import Clock, Reports
from tests.support.raw_http import until

if TYPE_CHECKING:
    from proxy.simulated_ollama.server import SimulatedOllama
    from tests.support.raw_http import Proxy, Wire

KIDS, ME = "127.0.0.2", "127.0.0.3"
LONG = body(max_tokens=10_000)


def rules(house: Proxy, most: int | None) -> None:
    """Apply rules of which the first has a limit, as a reload does."""
    specs = [RuleSpec((KIDS, "127.0.0.4"), ("*",), (), most), RuleSpec(("127.0.0.0/8",), ("*",))]
    house.gateway.askers = Askers(Access.of(specs, house.gateway.policy), Reports(), Clock())
    room = house.gateway.room
    room.apply(replace(room.rules, parallel=None, limits=active_limits(specs)))


def seen(house: Proxy) -> list[tuple[str, str | None]]:
    """Return for each exchange where it is, and which rule's limit it waits for."""
    return [(each.phase, each.limit) for each in house.gateway.room.snapshot().exchanges]


@pytest.fixture
async def busy(house: Proxy, ollama: SimulatedOllama) -> Wire:
    """Give a long answer for a rule with `max_active = 1`, and another request of the rule that waits for it."""
    rules(house, 1)
    await (await ask(house, PATHS[0], body())).answer()  # loads the model
    ollama.tokens_per_second = 2.0
    first = await ask(house, PATHS[0], LONG, KIDS)
    await until(lambda: seen(house) == [("content", None)])
    await ask(house, PATHS[0], LONG, "127.0.0.4")
    await until(lambda: seen(house) == [("content", None), ("queue", "rule 1 of `access`")])
    return first


async def test_request_beyond_the_limit_waits(house: Proxy, busy: Wire) -> None:
    """A second request of the rule goes to Ollama when the first one has ended, and says meanwhile why it waits."""
    busy.close()
    await until(lambda: seen(house) == [("content", None)])


async def test_client_that_leaves_keeps_its_place_for_a_moment(
    house: Proxy, busy: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While Ollama may still have a request whose client has left, the next one of the rule waits."""
    monkeypatch.setattr("proxy.exchange.waiting.room.GRACE", NEVER)
    busy.close()
    await until(lambda: len(seen(house)) == 1)
    assert seen(house) == [("queue", "rule 1 of `access`")]


async def test_others_pass(house: Proxy, busy: Wire) -> None:
    """A request of another rule for the same model goes to Ollama meanwhile."""
    await ask(house, PATHS[0], body(), ME)
    await until(lambda: seen(house) == [("content", None), ("queue", "rule 1 of `access`"), ("wait", None)])


@pytest.mark.parametrize("content", [body("nope"), b'{"model":"tiny","messages":[]}'], ids=["no model", "no prompt"])
async def test_requests_without_a_turn_do_not_count(house: Proxy, busy: Wire, content: bytes) -> None:
    """What Ollama answers at once needs no place, even at the limit."""
    wire = await ask(house, PATHS[0], content, KIDS)
    assert (await wire.answer()).status in (200, 400, 404)


@pytest.mark.parametrize(
    ("path", "content"),
    [
        pytest.param("/api/chat", b'{"model":"tiny","messages":[null]}', id="no message"),
        pytest.param("/api/generate", b'{"model":"tiny","prompt":"Hi","prompt":null}', id="null behind the prompt"),
        pytest.param("/v1/responses", b'{"model":"tiny","input":"Hi","input":[]}', id="empty input behind the input"),
        pytest.param(
            "/v1/responses", b'{"model":"tiny","instructions":"Hi","instructions":null}', id="null behind instructions"
        ),
        pytest.param(
            "/api/chat", b'{"model":"tiny","messages":[{}],"Tools":[{}],"tools":[]}', id="tools that are gone"
        ),
        pytest.param(
            "/v1/responses", body(input="Hi", tools=[{"type": "namespace", "tools": []}]), id="no tools in one"
        ),
        pytest.param(
            "/v1/responses", body(input="Hi", tools=[{"type": "namespace"}])[:-1] + b',"tools":[{}]}', id="a hidden one"
        ),
        pytest.param(PATHS[0], body(tools=[{"type": "function"}]), id="tools that the list doesn't promise"),
        pytest.param(PATHS[0], body(reasoning={}, reasoning_effort="high"), id="an effort that doesn't count"),
        pytest.param(PATHS[0], body(reasoning_effort="high", Reasoning_effort="none"), id="an effort that is gone"),
    ],
)
async def test_no_spelling_passes_the_limit(house: Proxy, busy: Wire, path: str, content: bytes) -> None:
    """A request that Ollama answers waits for its rule's limit, however it says what it wants."""
    await ask(house, path, content, KIDS)
    await until(lambda: len(seen(house)) == 3)
    await until(lambda: seen(house)[2] == ("queue", "rule 1 of `access`"))


async def test_model_elsewhere_waits_for_the_limit(house: Proxy, busy: Wire) -> None:
    """A request that may leave the Mac waits for its rule's limit, though it needs no model here."""
    house.gateway.room.apply(replace(house.gateway.room.rules, local_only=False))
    await ask(house, PATHS[0], body("gpt-oss:120b-cloud"), KIDS)
    await until(lambda: seen(house)[2:] == [("queue", "rule 1 of `access`")])


async def test_limit_holds_without_lists(house: Proxy, busy: Wire) -> None:
    """While Ollama doesn't say which models it has, a rule's limit still holds."""
    room = house.gateway.room
    room.apply(replace(room.rules, local_only=False))
    room.loads.ollama = Mute()
    room.loads.forget()
    await ask(house, PATHS[0], body(), KIDS)
    await until(lambda: seen(house)[2:] == [("queue", "rule 1 of `access`")])
    busy.close()
    await until(lambda: [phase for phase, _ in seen(house)] == ["content", "queue"])


@pytest.mark.parametrize("most", [2, None])
async def test_reload_lets_them_go(house: Proxy, busy: Wire, most: int | None) -> None:
    """A higher limit, or none, counts at once for those who wait."""
    rules(house, most)
    await until(lambda: seen(house) == [("content", None), ("wait", None)])


async def test_waiting_client_gets_pings(house: Proxy, busy: Wire) -> None:
    """Whoever waits for a limit gets an early head and pings, like anyone who waits."""
    room = house.gateway.room
    room.rules = replace(room.rules, times=Times(1.0, 1.0))
    wire = await ask(house, PATHS[0], LONG, KIDS)
    await until(lambda: len(seen(house)) == 3)
    house.pass_time(2.0)
    assert b"200 OK" in await wire.read_until(b"\r\n\r\n")
