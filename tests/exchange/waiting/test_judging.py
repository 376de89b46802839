"""What is judged before it waits: models that run elsewhere, web searches, and bodies that can't be read."""

from __future__ import annotations

import asyncio
import gc
from time import monotonic
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import zstandard

from proxy.exchange.askers import Askers
from proxy.exchange.upstream.asking import Ollama, Response
from proxy.exchange.waiting.judging import CLOUD_EACH, CLOUD_WITHIN, cloud_in, passes
from proxy.exchange.waiting.loads import RENEWED_AFTER
from proxy.exchange.waiting.room import Room
from proxy.exchange.waiting.rules import Rules
from proxy.policy.access import Access
from proxy.policy.gate import Policy
from proxy.policy.models import Cloud
from proxy.policy.routes import OPT_IN, ROUTES
from proxy.policy.rule_keys import RuleSpec
from proxy.reading.asked import Asked, Naming
from proxy.simulated_ollama.models import REMOTE_STUB, Model, copied
from tests.exchange.waiting.asking import PATHS, Mute, ask, body
from tests.support.raw_http import CLOSE, HANG, NEXT, Proxy, Upstream, chunk, ok, until, within

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from proxy.simulated_ollama.server import SimulatedOllama
    from tests.support.raw_http import Answer, Step

CHAT = PATHS[0]
FORM = "/v1/audio/transcriptions"
POSTS = [route.path for route in ROUTES if route.method == "POST"]
SEARCHES = {"/v1/responses": "web_search", "/v1/messages": "web_search_20250305"}


@pytest.fixture(autouse=True)
def every_row_is_open(house: Proxy) -> None:
    """Open every row, because each may name a model."""
    house.gateway.policy = Policy.of(allow=tuple(OPT_IN), max_body=2**26)


def allow_egress(house: Proxy) -> None:
    """Let the room pass what may leave the Mac, as a reload does."""
    house.gateway.room.apply(Rules(parallel=1, local_only=False))


def naming(path: str, model: str, padding: int = 0) -> tuple[bytes, dict[str, str]]:
    """Return a body for a path that names a model, and the fields that go with it."""
    if path != FORM:
        return body(model, input="Hi", prompt="Hi", x="x" * padding), {}
    part = b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
    form = part % (b"x", b"x" * padding) + part % (b"model", model.encode()) + b"--b--\r\n"
    return form, {"content_type": "multipart/form-data; boundary=b"}


def searching(path: str, padding: int = 0) -> bytes:
    """Return a body that offers a web search."""
    return body(tools=[{"type": SEARCHES[path], "name": "web_search"}], input="Hi", model="tools", x="x" * padding)


def posts(ollama: SimulatedOllama) -> list[str]:
    return [target for method, target in ollama.seen if method == "POST"]


def asked_for_cloud(ollama: SimulatedOllama) -> int:
    return [target for _, target in ollama.seen].count("/api/status")


async def asked(house: Proxy, path: str, content: bytes, **fields: str) -> Answer:
    wire = await ask(house, path, content, **fields)
    return await within(wire.answer())


def words_of(answer: Answer) -> str:
    """Return the words of an error, on any surface."""
    error = orjson.loads(answer.content)["error"]
    return str(error if isinstance(error, str) else error["message"])


async def refused(house: Proxy, answer: Answer, reason: str, status: int = 403) -> dict[str, Any]:
    """Check that an answer is the proxy's refusal, and that the access log calls it so; return the line."""
    assert answer.status == status, answer.content
    [line] = await house.lines()
    assert (line["verdict"], line["reason"], line["ended"]) == ("refused", reason, line["ended"])
    assert line["ended"] in ("proxy/queue", "proxy/request")
    assert "egress" not in line
    return line


# --- where a model runs ---


@pytest.mark.parametrize("path", POSTS)
async def test_a_cloud_model_is_refused_on_every_path(house: Proxy, ollama: SimulatedOllama, path: str) -> None:
    """A model that is named as one of ollama.com is refused, with what the owner could do, and Ollama gets nothing."""
    content, fields = naming(path, "gpt-oss:120b-cloud")
    answer = await asked(house, path, content, **fields)
    line = await refused(house, answer, "leaves_the_mac")
    assert line["model"] == "gpt-oss:120b-cloud"
    assert "`local_only = false`" in words_of(answer)
    assert not ollama.seen


@pytest.mark.parametrize("path", ["/v1/models/x:cloud", "/v1/models/x%3Acloud", "/v1/models/far", "/v1/models/FAR"])
async def test_a_path_that_names_one_is_refused(house: Proxy, ollama: SimulatedOllama, path: str) -> None:
    """A model in the path is judged as one in a body is."""
    ollama.models[REMOTE_STUB.name] = REMOTE_STUB
    wire = await house.connect()
    await wire.request("GET", path)
    await refused(house, await within(wire.answer()), "leaves_the_mac")
    assert path not in [target for _, target in ollama.seen]


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("known", [True, False], ids=["listed", "made_since"])
async def test_a_stub_is_refused_under_any_name(house: Proxy, ollama: SimulatedOllama, path: str, known: bool) -> None:
    """A model that only stands for one elsewhere is refused, also if it is younger than Ollama's last list."""
    house.gateway.room.loads.catalog = None
    if not known:
        await house.gateway.room.loads.look()
    ollama.models["mine:latest"] = copied(REMOTE_STUB, "mine:latest", REMOTE_STUB.modified_at)
    content, fields = naming(path, "Mine")
    await refused(house, await asked(house, path, content, **fields), "leaves_the_mac")
    assert posts(ollama) == ([] if known else ["/api/show"])


async def test_a_model_that_became_a_stub_is_refused(house: Proxy, ollama: SimulatedOllama) -> None:
    """A model that was loaded and free is judged by Ollama's next list once the last one is old."""
    for _ in range(2):
        assert (await asked(house, CHAT, body())).status == 200
    ollama.models["tiny:latest"] = copied(REMOTE_STUB, "tiny:latest", REMOTE_STUB.modified_at)
    house.gateway.room.loads.looked_at -= 2 * RENEWED_AFTER
    assert (await asked(house, CHAT, body())).status == 403


async def test_a_model_that_was_pulled_since_is_served(house: Proxy, ollama: SimulatedOllama) -> None:
    """A local model that Ollama's last list lacks is asked for by name, and passes."""
    await house.gateway.room.loads.look()
    ollama.models["new:latest"] = copied(ollama.models["tiny:latest"], "new:latest", REMOTE_STUB.modified_at)
    assert (await asked(house, CHAT, body("new"))).status == 200
    assert posts(ollama)[:1] == ["/api/show"]


@pytest.mark.parametrize(("model", "status"), [("nope", 404), ("a b", 400), ("", 400), ("..", 400)])
async def test_ollama_refuses_what_it_does_not_have(house: Proxy, model: str, status: int) -> None:
    """A name that means no model gets Ollama's own answer."""
    assert (await asked(house, CHAT, body(model))).status == status
    [line] = await house.lines()
    assert (line["verdict"], line["ended"]) == ("allowed", "complete")


async def test_an_ollama_that_is_down_is_reported_as_such(house: Proxy, ollama: SimulatedOllama) -> None:
    """Without an Ollama the client reads that it isn't running, as ever, and each time."""
    await ollama.close()
    for _ in range(2):
        answer = await asked(house, CHAT, body())
        assert (answer.status, "Ollama is not running" in words_of(answer)) == (502, True)
    assert {line["reason"] for line in house.audit} == {"upstream_unreachable"}


# --- before an Ollama that the test plays ---


@pytest.fixture
async def played() -> AsyncIterator[Upstream]:
    """Give an Ollama that has `tiny`, and answers as the test says."""
    upstream = Upstream()
    upstream.lists, upstream.models, upstream.told = True, ("tiny:latest",), False
    await upstream.start()
    yield upstream
    await upstream.stop()


@pytest.fixture
async def before(played: Upstream) -> AsyncIterator[Proxy]:
    """Give the gateway with a room, before `played`."""
    proxy = Proxy(played.port, allow=tuple(OPT_IN))
    await proxy.start()
    proxy.gateway.room = Room(Ollama(proxy.pool, proxy.gateway.target), Rules(parallel=1))
    yield proxy
    await proxy.stop()
    await proxy.gateway.room.judge.close()
    await proxy.gateway.room.loads.close()


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
async def test_the_closing_byte_is_never_sent(before: Proxy, played: Upstream, path: str, chunked: bool) -> None:
    """Of a large body with a cloud model Ollama gets neither the end with which it acts nor anything behind it."""
    content, fields = naming(path, "x:cloud", 700_000)
    wire = await before.connect()
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(content)}"
    kind = "".join(f"\r\nContent-Type: {value}" for value in fields.values())
    await wire.send(f"POST {path} HTTP/1.1\r\nHost: mac\r\n{framing}{kind}\r\n\r\n".encode())
    await wire.send(chunk(content) + b"0\r\n\r\n" if chunked else content)
    await refused(before, await within(wire.answer()), "leaves_the_mac")
    [peer] = [peer for peer in played.peers if peer.octets.startswith(b"POST")]
    await within(peer.closed.wait())
    assert b"x:cloud" in peer.octets
    assert not bytes(peer.octets).rstrip().endswith((b"}", b"0", b"--"))


@pytest.mark.parametrize("status", [200, 401, 403, 500])
async def test_what_ollama_does_not_say_is_refused(before: Proxy, played: Upstream, status: int) -> None:
    """A model that isn't listed passes only if Ollama describes it as its own, or has none of that name."""
    played.answers(ok(b"[]" if status == 200 else b'{"error":"x"}').replace(b" 200 ", b" %d " % status))
    answer = await asked(before, CHAT, body("other"))
    await refused(before, answer, "leaves_the_mac")
    assert "didn't say where" in words_of(answer)
    assert [request.split(b" ")[1] for request in played.requests] == [b"/api/show"]


@pytest.mark.parametrize(
    ("shown", "status"),
    [(b'{"details":{}}', 200), (b'{"remote_host":"https://ollama.com:443"}', 403)],
    ids=["its_own", "stub"],
)
async def test_without_lists_a_model_is_asked_for(before: Proxy, played: Upstream, shown: bytes, status: int) -> None:
    """If Ollama gives no lists, a model passes by its own description, and a stub doesn't."""
    played.lists = False
    played.answers_in_turn((ok(b"no list"),), (ok(b"no list"),), (ok(shown),), (ok(b"answered"),))
    assert (await asked(before, CHAT, body())).status == status
    paths = [request.split(b" ")[1] for request in played.requests]
    assert paths == [b"/api/tags", b"/api/ps", b"/api/show", *([CHAT.encode()] if status == 200 else [])]


async def test_a_client_may_leave_meanwhile(before: Proxy, played: Upstream) -> None:
    """A client that leaves while Ollama is asked ends its request, and nothing of it is sent."""
    played.answers(NEXT, ok())
    wire = await ask(before, CHAT, body("other"))
    await until(lambda: played.requests)
    wire.close()
    [line] = await before.lines()
    assert line["ended"] == "downstream/queue"
    assert [request.split(b" ")[1] for request in played.requests] == [b"/api/show"]


async def test_a_connection_that_closes_is_no_answer(before: Proxy, played: Upstream) -> None:
    """Ollama is asked once more if the connection broke off, and if that breaks off too, the client gets a 502."""
    played.answers_in_turn((CLOSE,), (ok(b"{}"),), (ok(b"answered"),), (CLOSE,))
    assert (await asked(before, CHAT, body("other"))).content == b"answered"
    assert [request.endswith(b'\r\n\r\n{"model":"other"}') for request in played.requests] == [True, True, False]
    assert (await asked(before, CHAT, body("other"))).status == 502
    assert before.audit[-1]["reason"] == "upstream_closed"


# --- what changes while a request waits ---


def forbid_egress(house: Proxy, _ollama: SimulatedOllama) -> None:
    house.gateway.room.apply(Rules(parallel=1))


def turn_the_cloud_on(house: Proxy, ollama: SimulatedOllama) -> None:
    ollama.cloud = True
    house.gateway.room.judge.forget()


async def put_a_stub_there(house: Proxy, ollama: SimulatedOllama) -> None:
    ollama.models["tools:latest"] = copied(REMOTE_STUB, "tools:latest", REMOTE_STUB.modified_at)
    await house.gateway.room.loads.look()


@pytest.mark.parametrize(
    ("local_only", "change", "reason"),
    [
        pytest.param(False, forbid_egress, "web_search", id="setting"),
        pytest.param(True, turn_the_cloud_on, "web_search", id="cloud"),
        pytest.param(True, put_a_stub_there, "leaves_the_mac", id="stub"),
    ],
)
async def test_waiting_is_no_way_out(
    house: Proxy, ollama: SimulatedOllama, local_only: bool, change: Any, reason: str
) -> None:
    """What leaves the Mac is judged when a request's turn comes, however long it has waited."""
    room = house.gateway.room
    room.apply(Rules(parallel=1, local_only=local_only))
    ollama.cloud, ollama.tokens_per_second = not local_only, 2.0
    first = await ask(house, CHAT, body("tools", max_tokens=10_000))
    await until(lambda: [each.phase for each in room.snapshot().exchanges] == ["content"])
    second = await ask(house, "/v1/responses", searching("/v1/responses"))
    await until(lambda: len(room.queue.waiting) == 1)
    if (changing := change(house, ollama)) is not None:
        await changing
    first.close()
    answer = await within(second.answer())
    assert answer.status == 403
    assert {line.get("reason") for line in await house.lines(2)} == {None, reason}
    assert "/v1/responses" not in posts(ollama)


async def test_the_question_about_the_cloud_is_asked_once_more(before: Proxy, played: Upstream) -> None:
    """Ollama is asked for its cloud once more if the connection broke off, and never with a body."""
    played.answers_in_turn((CLOSE,), (ok(b'{"cloud":{"disabled":true}}'),), (ok(b"answered"),))
    content = orjson.dumps(orjson.loads(searching("/v1/responses")) | {"model": "tiny"})
    assert (await asked(before, "/v1/responses", content)).content == b"answered"
    assert played.requests[0] == played.requests[1]
    assert played.requests[0].startswith(b"GET /api/status ")
    assert played.requests[0].endswith(b"\r\n\r\n")


# --- bodies that can't be read ---


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(body() + body("x:cloud"), "model_ambiguous", id="two_objects"),
        pytest.param(body()[:-1] + b',"MODEL":"x"}', "model_ambiguous", id="two_spellings"),
        pytest.param(b'{"model":', "model_unreadable", id="cut"),
        pytest.param(b"[" * 600_000, "model_unreadable", id="large_not_json"),
        pytest.param(body(x="x" * 600_000)[:-1], "model_unreadable", id="large_never_closed"),
        pytest.param(body(x="x" * 600_000) + b" " * 70_000, "model_unreadable", id="large_many_blanks"),
        pytest.param(body(x="x" * 600_000) + b"{}", "model_ambiguous", id="large_more_follows"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/show"])
async def test_an_unsure_body_is_refused(
    house: Proxy, ollama: SimulatedOllama, path: str, content: bytes, reason: str
) -> None:
    """A body in which Ollama may read another model is refused, in the client's own form, with what is wrong."""
    answer = await asked(house, path, content)
    await refused(house, answer, reason, 400)
    assert words_of(answer)
    assert len(content) > 512 * 1024 or not posts(ollama)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(zstandard.compress(body(x="x" * (9 << 20))), id="much_unpacked"),
        pytest.param(zstandard.ZstdCompressor(level=0).compress(body(x="x")) + b"\0" * 600_000, id="much_packed"),
        pytest.param(b"no zstd", id="not_zstd"),
    ],
)
async def test_a_packed_body_that_is_not_read_is_refused(house: Proxy, ollama: SimulatedOllama, content: bytes) -> None:
    """A compressed body that is too large to unpack isn't sent at all, and the client reads what to turn off."""
    answer = await asked(house, CHAT, content, content_encoding="zstd")
    await refused(house, answer, "model_unreadable", 400)
    assert "turn off request compression" in words_of(answer)
    assert not posts(ollama)


async def test_a_packed_body_that_is_read_is_judged(house: Proxy, ollama: SimulatedOllama) -> None:
    """Compression hides no model."""
    content = zstandard.compress(body("x:cloud"))
    await refused(house, await asked(house, CHAT, content, content_encoding="zstd"), "leaves_the_mac")
    assert not posts(ollama)


# --- web search ---


@pytest.mark.parametrize("path", SEARCHES)
@pytest.mark.parametrize("padding", [0, 700_000], ids=["whole", "passing"])
async def test_a_search_passes_while_the_cloud_is_off(
    house: Proxy, ollama: SimulatedOllama, path: str, padding: int
) -> None:
    """A request that offers a web search is served if Ollama says that its cloud is off, and costs one question."""
    for _ in range(2):
        answer = await asked(house, path, searching(path, padding), anthropic_version="2023-06-01")
        assert answer.status == 200
    assert [target for _, target in ollama.seen].count("/api/status") == 1
    assert not any("egress" in line for line in house.audit)


@pytest.mark.parametrize("path", SEARCHES)
@pytest.mark.parametrize(("cloud", "version"), [(True, "0.32.15"), (False, "0.16.1")], ids=["on", "no_switch"])
async def test_a_search_is_refused_otherwise(
    house: Proxy, ollama: SimulatedOllama, path: str, cloud: bool, version: str
) -> None:
    """With the cloud on, or an Ollama that can't turn it off, an offered search is refused with what to change."""
    ollama.cloud, ollama.release = cloud, tuple(map(int, version.split(".")))
    answer = await asked(house, path, searching(path))
    await refused(house, answer, "web_search")
    assert '`web_search = "disabled"`' in words_of(answer)
    assert not posts(ollama)


@pytest.mark.parametrize("path", SEARCHES)
async def test_a_search_in_a_loaded_model_is_judged(house: Proxy, ollama: SimulatedOllama, path: str) -> None:
    """A search whose model is loaded and free is judged like any other, although such a request needs no wait."""
    ollama.cloud = True
    for _ in range(2):
        assert (await asked(house, path, body("tools", input="Hi"))).status == 200
    content = searching(path).replace(b'"model":"tools"', b'"model":"tools:latest"')  # which is read at once
    assert (await asked(house, path, content)).status == 403
    assert posts(ollama).count(path) == 2


async def test_the_owner_may_turn_the_cloud_off_meanwhile(house: Proxy, ollama: SimulatedOllama) -> None:
    """A refused search passes as soon as the cloud is off."""
    ollama.cloud = True
    assert (await asked(house, "/v1/responses", searching("/v1/responses"))).status == 403
    ollama.cloud = False
    assert (await asked(house, "/v1/responses", searching("/v1/responses"))).status == 200


async def test_the_cloud_is_asked_for_each_minute(house: Proxy, ollama: SimulatedOllama) -> None:
    """Ollama is asked at the start and again each minute, so a cloud that was turned on is noticed."""
    judge = house.gateway.room.judge
    judge.tick(monotonic())
    await until(lambda: judge.cloud(monotonic()) is Cloud.OFF)
    ollama.cloud = True
    house.pass_time(CLOUD_EACH - 5.0)
    assert (await asked(house, CHAT, body())).status == 200
    assert asked_for_cloud(ollama) == 1
    house.pass_time(CLOUD_EACH + 1.0)
    await until(lambda: judge.cloud(monotonic()) is Cloud.ON)
    assert (await asked(house, "/v1/responses", searching("/v1/responses"))).status == 403


async def test_where_all_may_leave_the_cloud_is_not_asked_for(house: Proxy, ollama: SimulatedOllama) -> None:
    """Without `local_only` nothing depends on Ollama's cloud, so only a search asks for it."""
    allow_egress(house)
    house.pass_time(2 * CLOUD_EACH)
    assert (await asked(house, CHAT, body())).status == 200
    assert asked_for_cloud(ollama) == 0


async def test_the_state_of_the_cloud_grows_old(house: Proxy) -> None:
    """What Ollama said of its cloud is believed until it should have said it again, and no longer."""
    judge, began = house.gateway.room.judge, monotonic()
    assert (await asked(house, "/v1/responses", searching("/v1/responses"))).status == 200
    assert judge.cloud(began + CLOUD_EACH + CLOUD_WITHIN) is Cloud.OFF
    assert judge.cloud(monotonic() + CLOUD_EACH + CLOUD_WITHIN + 0.001) is Cloud.UNKNOWN


@pytest.mark.parametrize("step", [CLOSE, HANG], ids=["closes", "silent"])
async def test_a_failed_question_is_no_mistake(
    before: Proxy, played: Upstream, monkeypatch: pytest.MonkeyPatch, step: Step
) -> None:
    """An Ollama that doesn't answer about its cloud is asked again later, and nothing is logged as a mistake."""
    monkeypatch.setattr("proxy.exchange.waiting.judging.CLOUD_WITHIN", 0.01)
    mistakes: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: mistakes.append(context))
    judge, now = before.gateway.room.judge, monotonic()
    played.answers(step)

    def looks(times: int) -> bool:
        nonlocal now
        now += 2 * CLOUD_EACH
        judge.tick(now)
        return len(played.requests) >= times

    await until(lambda: looks(5))
    gc.collect()
    assert not mistakes
    assert judge.cloud(monotonic()) is Cloud.UNKNOWN


async def test_the_end_of_the_process_ends_a_question(before: Proxy, played: Upstream) -> None:
    """A question that is under way when the process ends is over before that."""
    played.answers(NEXT, ok())
    judge = before.gateway.room.judge
    judge.tick(monotonic())
    await until(lambda: played.requests)
    running = asyncio.all_tasks()
    await judge.close()
    assert running - asyncio.all_tasks()


async def test_a_restarted_ollama_is_asked_again(house: Proxy, ollama: SimulatedOllama) -> None:
    """What Ollama said of its cloud is believed no longer when it may have been restarted."""
    room = house.gateway.room
    assert (await asked(house, "/v1/responses", searching("/v1/responses"))).status == 200
    ollama.cloud = True
    room.judge.forget()
    assert (await asked(house, "/v1/responses", searching("/v1/responses"))).status == 403


@pytest.mark.parametrize(
    ("status", "content", "cloud"),
    [
        (200, b'{"cloud":{"disabled":true,"source":"env"}}', Cloud.OFF),
        (200, b'{"cloud":{"disabled":false,"source":"none"}}', Cloud.ON),
        (404, b"404 page not found", Cloud.NO_SWITCH),
        (200, b'{"cloud":{"disabled":"true"}}', Cloud.UNKNOWN),
        (200, b'{"cloud":true}', Cloud.UNKNOWN),
        (200, b"[]", Cloud.UNKNOWN),
        (200, b"<html>", Cloud.UNKNOWN),
        (500, b'{"cloud":{"disabled":true}}', Cloud.UNKNOWN),
        (403, b"", Cloud.UNKNOWN),
    ],
)
def test_the_state_of_the_cloud(status: int, content: bytes, cloud: Cloud) -> None:
    """Only a clear answer says that the cloud is off."""
    assert cloud_in(Response(status, content)) is cloud


# --- rules of access ---


@pytest.mark.parametrize(
    ("wanted", "short"),
    [
        pytest.param(Asked(Naming.NAMED, "tiny"), True, id="allowed"),
        pytest.param(Asked(Naming.NAMED, "tiny:cloud"), True, id="allowed, if Ollama has it itself"),
        pytest.param(Asked(Naming.NAMED, "plain"), False, id="not allowed"),
        pytest.param(Asked(Naming.MISSING), False, id="none"),
        pytest.param(Asked(Naming.AMBIGUOUS), False, id="two"),
    ],
)
def test_what_a_rule_lets_pass_at_once(wanted: Asked, short: bool) -> None:
    """A request with the name of an allowed model needs no further judgement of its rule."""
    [rule] = Access.of((RuleSpec(("*",), ("tiny:*",)),), Policy.of(max_body=1)).rules
    assert passes(wanted, rule) is short


KID = "127.0.0.2"
KIDS_MODELS = ("tiny", "someone/*")


def rule(house: Proxy) -> None:
    """Give one device a few models, and all others every one. Nothing else is refused."""
    allow_egress(house)
    specs = (RuleSpec((KID,), KIDS_MODELS), RuleSpec(("*",), ("*",)))
    access = Access.of(specs, Policy.of(allow=tuple(OPT_IN), max_body=2**26))
    house.gateway.policy, house.gateway.askers = access.policy, Askers(access, house.notes.append)


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("padding", [0, 700_000], ids=["whole", "passing"])
async def test_each_device_has_its_models(house: Proxy, ollama: SimulatedOllama, path: str, padding: int) -> None:
    """A model that the asker's rule doesn't allow is refused on each path, and another device may have it."""
    rule(house)
    content, fields = naming(path, "plain", padding if path != FORM else 0)
    wire = await ask(house, path, content, KID, **fields)
    answer = await within(wire.answer())
    line = await refused(house, answer, "model_not_allowed")
    assert (line["model"], line["peer"]) == ("plain", KID)
    assert "rule 1 of `access`" in words_of(answer)
    assert padding or not ollama.seen
    assert (await asked(house, path, content, **fields)).status != 403


@pytest.mark.parametrize(
    ("model", "status"),
    [
        ("tiny", 200),
        ("TINY:latest", 200),
        (" someone/tiny:v1", 200),
        ("someone/tiny:v2", 404),
        ("tiny:v1", 403),
        ("far", 403),
    ],
)
async def test_names_are_compared_as_ollama_does(house: Proxy, model: str, status: int) -> None:
    """Every spelling of an allowed model passes, and no spelling of another one."""
    rule(house)
    wire = await ask(house, CHAT, body(model), KID)
    assert (await within(wire.answer())).status == status


@pytest.mark.parametrize(
    ("path", "status"), [("tiny", 200), ("tiny%3Alatest", 200), ("plain", 403), ("plain%3alatest", 403)]
)
async def test_a_model_in_the_path_is_ruled(house: Proxy, path: str, status: int) -> None:
    """The description of one model is refused like the model."""
    rule(house)
    wire = await house.connect(KID)
    await wire.request("GET", f"/v1/models/{path}")
    assert (await within(wire.answer())).status == status


async def test_a_loaded_model_is_ruled(house: Proxy, ollama: SimulatedOllama) -> None:
    """A model that could answer at once is refused like any other, and an allowed one answers."""
    rule(house)
    for model in ("plain", "tiny"):
        assert (await asked(house, CHAT, body(model))).status == 200
    sent = posts(ollama)
    for model, status in (("plain", 403), ("tiny", 200)):
        wire = await ask(house, CHAT, body(model), KID)
        assert (await within(wire.answer())).status == status
    assert posts(ollama) == [*sent, CHAT]


@pytest.mark.parametrize("content", [body("tiny")[:-1] + b',"Model":"plain"}', b"[]", body("tiny") + body("plain")])
async def test_an_unsure_model_is_refused_by_rules(house: Proxy, ollama: SimulatedOllama, content: bytes) -> None:
    """With rules, a body that may name another model is refused, whatever may leave the Mac."""
    rule(house)
    assert (await within((await ask(house, CHAT, content, KID)).answer())).status == 400
    assert not ollama.seen


async def test_a_packed_body_is_ruled(house: Proxy, ollama: SimulatedOllama) -> None:
    """Compression hides no model from a rule, and a body that isn't unpacked is refused."""
    rule(house)
    for content, status in ((body("plain"), 403), (body("tiny", x="x" * (9 << 20)), 400)):
        wire = await ask(house, CHAT, zstandard.compress(content), KID, content_encoding="zstd")
        assert (await within(wire.answer())).status == status
    assert not ollama.seen


# --- where it may leave ---


@pytest.mark.parametrize(
    ("path", "content", "egress"),
    [
        pytest.param(CHAT, body(), False, id="local"),
        pytest.param(CHAT, body("x:cloud"), True, id="cloud_name"),
        pytest.param(CHAT, body("far"), True, id="stub"),
        pytest.param("/v1/responses", searching("/v1/responses"), True, id="search"),
        pytest.param(CHAT, body("x:cloud")[:-1] + b',"MODEL":"tiny"}', True, id="two_spellings"),
        pytest.param(CHAT, body("x:cloud", x="x" * 600_000) + b"{}", True, id="large_more_follows"),
    ],
)
async def test_allowed_egress_is_in_the_log(
    house: Proxy, ollama: SimulatedOllama, path: str, content: bytes, egress: bool
) -> None:
    """With `local_only = false` all of it passes, and the line says which request may have left the Mac."""
    allow_egress(house)
    ollama.cloud = True
    ollama.models[REMOTE_STUB.name] = REMOTE_STUB
    await house.gateway.room.loads.look()
    assert (await asked(house, path, content)).status in (200, 401)  # nobody is signed in to ollama.com
    [line] = await house.lines()
    assert (line["verdict"], line.get("egress", False)) == ("allowed", egress)


async def test_a_packed_body_that_is_not_read_may_leave(house: Proxy, ollama: SimulatedOllama) -> None:
    """What passes unread may name a model of ollama.com, so its line says that it may have left the Mac."""
    allow_egress(house)
    ollama.cloud = True
    content = zstandard.compress(body("x:cloud", x="x" * (9 << 20)))
    assert (await asked(house, CHAT, content, content_encoding="zstd")).status == 401
    assert (await house.lines())[0]["egress"] is True


@pytest.mark.parametrize("lists", [True, False], ids=["listed", "no_lists"])
async def test_first_request_for_a_stub_is_in_the_log(house: Proxy, ollama: SimulatedOllama, lists: bool) -> None:
    """Ollama is asked for its models before a request is said to stay, and without its lists any request may leave."""
    allow_egress(house)
    ollama.models[REMOTE_STUB.name] = REMOTE_STUB
    if not lists:
        house.gateway.room.loads.ollama = Mute()
    await asked(house, CHAT, body("far"))
    assert (await house.lines())[0]["egress"] is True


async def test_the_first_request_for_a_local_model_is_no_egress(house: Proxy) -> None:
    """Ollama is asked for its models before a request is said to leave the Mac."""
    allow_egress(house)
    assert (await asked(house, CHAT, body())).status == 200
    assert "egress" not in (await house.lines())[0]


async def test_a_local_model_that_was_pulled_since_is_no_egress(house: Proxy, ollama: SimulatedOllama) -> None:
    """Ollama is asked again if its last list is old."""
    allow_egress(house)
    await house.gateway.room.loads.look()
    house.gateway.room.loads.looked_at -= 2 * RENEWED_AFTER
    ollama.models["new:latest"] = copied(ollama.models["tiny:latest"], "new:latest", REMOTE_STUB.modified_at)
    assert (await asked(house, "/api/chat", orjson.dumps({"model": "new", "messages": []}))).status == 200
    assert "egress" not in (await house.lines())[0]


async def test_a_description_is_no_egress(before: Proxy, played: Upstream) -> None:
    """Ollama describes any model itself, so nothing has to be known of it."""
    before.gateway.room.apply(Rules(parallel=1, local_only=False))
    played.lists = False
    played.answers(ok(b"{}"))
    assert (await asked(before, "/api/show", body("other"))).status == 200
    assert "egress" not in (await before.lines())[0]
    assert [request.split(b" ")[1] for request in played.requests] == [b"/api/show"]


async def test_a_search_with_the_cloud_off_is_no_egress(house: Proxy, ollama: SimulatedOllama) -> None:
    """A search that Ollama can't make doesn't leave the Mac."""
    allow_egress(house)
    assert (await asked(house, "/v1/responses", searching("/v1/responses"))).status == 200
    assert "egress" not in (await house.lines())[0]


async def test_a_reload_applies_to_the_next_request(house: Proxy) -> None:
    """The switch counts from the reload on, in both directions."""
    for local_only, verdict in ((True, "refused"), (False, "allowed"), (True, "refused")):
        house.gateway.room.apply(Rules(parallel=1, local_only=local_only))
        assert (await asked(house, CHAT, body("x:cloud"))).status == 403
        assert house.audit[-1]["verdict"] == verdict


def test_the_table_is_all_that_names_models() -> None:
    """Each row that takes a body, and the one with a model in its path, is judged."""
    assert {route.name for route in ROUTES if not route.names_model} == {
        *("GET /", "HEAD /", "GET /api/version", "HEAD /api/version", "GET /api/tags", "HEAD /api/tags"),
        *("GET /api/ps", "GET /api/status", "GET /v1/models"),
    }
    assert isinstance(REMOTE_STUB, Model)
