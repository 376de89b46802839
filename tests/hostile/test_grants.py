"""No grant of Tailscale's lets anything leave the Mac, nor opens a row that the owner doesn't let grants open."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from proxy.exchange.upstream.asking import Ollama
from proxy.exchange.waiting.room import Room
from proxy.exchange.waiting.rules import Rules
from proxy.policy.rule_keys import RuleSpec, read_grants
from proxy.settings.settings import Settings
from proxy.simulated_ollama.models import REMOTE_STUB
from proxy.simulated_ollama.server import SimulatedOllama
from proxy.tailnet.device import Who, of_whois
from tests.exchange.access_stage import Stage
from tests.exchange.waiting.asking import body
from tests.support.raw_http import within

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CAPABILITY = "example.com/cap/ollama"
VISITOR = "100.64.0.31"
ALL = {"models": ["*"]}
ROWS = ["POST /api/chat", "/api/generate"]

GRANTS = [
    pytest.param(ALL, id="every model"),
    pytest.param({"models": ["*", "x:cloud", "*:*-cloud", "far", "ollama.com/*"]}, id="cloud models by name"),
    pytest.param({**ALL, "local_only": False}, id="local_only"),
    pytest.param({**ALL, "local_only": "false", "native_options": "pass", "allow": ROWS}, id="other options"),
    pytest.param({**ALL, "also": ROWS}, id="also"),
    pytest.param({**ALL, "also": ROWS, "capability_may_open_rows": True, "may_open_rows": True}, id="its own leave"),
    pytest.param({**ALL, "Also": ROWS, "ALSO": ROWS, "also ": ROWS}, id="also, in other letters"),
    pytest.param({**ALL, "policy": {"routes": {}}, "number": 1, "who": ["*"], "egress": True}, id="parts of a rule"),
    pytest.param(({"models": ["*"], "max_active": 9}, {"also": ROWS}, {"local_only": False}), id="several values"),
]
LARGE = "x" * 700_000  # more than is held whole
SEARCH = [{"type": "web_search", "name": "web_search"}]

LEAVES = [
    pytest.param("POST", "/v1/chat/completions", body("x:cloud"), "leaves_the_mac", id="cloud"),
    pytest.param("POST", "/v1/chat/completions", body("x:8b-Cloud", x=LARGE), "leaves_the_mac", id="cloud, large"),
    pytest.param("GET", "/v1/models/x%3Acloud", b"", "leaves_the_mac", id="cloud, in the path"),
    pytest.param("POST", "/v1/messages", body("far"), "leaves_the_mac", id="stub"),
    pytest.param("POST", "/api/show", body("FAR"), "leaves_the_mac", id="stub, shown"),
    pytest.param("GET", "/v1/models/far", b"", "leaves_the_mac", id="stub, in the path"),
    pytest.param("POST", "/v1/responses", body("tools", input="Hi", tools=SEARCH), "web_search", id="search"),
]
OPENED = [
    pytest.param("POST", "/api/chat", body("x:cloud"), "leaves_the_mac", id="cloud"),
    pytest.param("POST", "/api/chat", body("far"), "leaves_the_mac", id="stub"),
    pytest.param("POST", "/api/chat", b'{"model":"tiny","keep_alive":0}', "native_options", id="unload"),
]
CLOSED = [
    pytest.param("POST", "/api/chat", body(), "path_not_served", id="also"),
    pytest.param("POST", "/api/pull", body(), "path_not_served", id="no setting's"),
]


@pytest.fixture
async def ollama() -> AsyncIterator[SimulatedOllama]:
    """Give an Ollama whose cloud is on, with a model that only stands for one elsewhere."""
    async with SimulatedOllama(tokens_per_second=0, cloud=True) as ollama:
        ollama.models[REMOTE_STUB.name] = REMOTE_STUB
        yield ollama


@pytest.fixture
async def stage(ollama: SimulatedOllama) -> AsyncIterator[Stage]:
    """Give a gateway with a room before `ollama`, whose rules name nobody."""
    stage = Stage(ollama.port)
    await stage.open()
    room = stage.proxy.gateway.room = Room(Ollama(stage.proxy.pool, stage.proxy.gateway.target), Rules())
    yield stage
    await stage.close()
    await room.judge.close()
    await room.loads.close()


def grant(stage: Stage, given: object, *, may_open_rows: bool = False) -> None:
    """Give a visitor a grant, in an answer of Tailscale's."""
    values = list(given) if isinstance(given, tuple) else [given]
    node = {"StableID": "nVisitor", "Name": "visitor.tail1.ts.net.", "ComputedName": "visitor", "Addresses": [VISITOR]}
    profile = {"LoginName": "visitor@example.com"}
    who = of_whois({"Node": node, "UserProfile": profile, "CapMap": {CAPABILITY: values}}, CAPABILITY)
    assert isinstance(who, Who)
    stage.tailscale.join(who)
    stage.apply(capability=CAPABILITY, may_open_rows=may_open_rows)


async def reason(stage: Stage, method: str, target: str, content: bytes) -> str:
    """Return why a request of the visitor is refused."""
    wire = await stage.sends(VISITOR, method, target, content)
    await within(wire.answer())
    [line] = await stage.proxy.lines()
    assert (line["verdict"], line["device"]) == ("refused", "visitor")
    assert "egress" not in line
    return str(line["reason"])


def seen(ollama: SimulatedOllama) -> set[tuple[str, str]]:
    """Return what Ollama was asked, without the proxy's own questions."""
    own = {("GET", "/api/tags"), ("GET", "/api/ps"), ("GET", "/api/status"), ("POST", "/api/show")}
    return {each for each in ollama.seen if each not in own}


@pytest.mark.parametrize(("method", "target", "content", "why"), LEAVES)
@pytest.mark.parametrize("given", GRANTS)
async def test_no_grant_lifts_local_only(
    stage: Stage, ollama: SimulatedOllama, given: object, method: str, target: str, content: bytes, why: str
) -> None:
    """Whatever a grant says, what would leave the Mac is refused, and Ollama doesn't get it."""
    grant(stage, given)
    assert await reason(stage, method, target, content) == why
    assert not seen(ollama) or LARGE in content.decode()  # of which the closing byte is never sent


@pytest.mark.parametrize(("method", "target", "content", "why"), CLOSED)
@pytest.mark.parametrize("given", GRANTS)
async def test_no_grant_opens_a_row(
    stage: Stage, ollama: SimulatedOllama, given: object, method: str, target: str, content: bytes, why: str
) -> None:
    """Whatever a grant says, it opens no row unless the owner lets grants open rows."""
    grant(stage, given)
    assert await reason(stage, method, target, content) == why
    assert not seen(ollama)


@pytest.mark.parametrize(("method", "target", "content", "why"), [*LEAVES, *OPENED, CLOSED[-1]])
async def test_rows_of_a_grant_lift_nothing_else(
    stage: Stage, method: str, target: str, content: bytes, why: str
) -> None:
    """A grant that may open rows opens those, and what would leave the Mac is refused there too."""
    grant(stage, {**ALL, "also": ROWS, "local_only": False}, may_open_rows=True)
    assert await reason(stage, method, target, content) == why


@pytest.mark.parametrize("path", ["/v1/models", "/api/tags"])
@pytest.mark.parametrize("given", GRANTS)
async def test_no_grant_shows_a_model_that_runs_elsewhere(stage: Stage, given: object, path: str) -> None:
    """Whatever a grant says, lists leave out the models that only stand for one elsewhere."""
    grant(stage, given)
    answer = await stage.asks(VISITOR, "GET", path)
    assert answer.status == 200
    assert b'"tiny' in answer.content
    assert b'"far' not in answer.content


@pytest.mark.parametrize("option", Settings.model_fields)
def test_grant_is_no_setting(option: str) -> None:
    """A key of a grant that is named like an option of the proxy changes nothing."""
    expected = RuleSpec((), ("*",)), ()
    for value in (True, False, "off", "pass", ["*"], ROWS, 0, None, {}):
        assert read_grants(({**ALL, option: value},), may_open_rows=False) == expected
