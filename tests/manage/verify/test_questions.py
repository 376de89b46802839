"""The questions that `verify` asks: what each takes for kept and for broken, and the one file that they become."""

from __future__ import annotations

import ast
import asyncio
import http.client
import io
import json
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from proxy.exchange.askers import Askers
from proxy.exchange.upstream.asking import Ollama
from proxy.exchange.waiting.room import Room
from proxy.exchange.waiting.rules import Rules
from proxy.manage.verify.asking import asking
from proxy.manage.verify.asking.asking import Answer, Asked, Asker, Piece
from proxy.manage.verify.asking.events import events
from proxy.manage.verify.asking.report import Report, plain
from proxy.manage.verify.asking.session import Left, NoAnswer, Promised, Question, Result, Session, Unmet, seen
from proxy.manage.verify.asking.silence import silent, unconnected
from proxy.manage.verify.client_script import MODULES, client_script, source
from proxy.manage.verify.command import promised
from proxy.manage.verify.questions import (
    anthropic,
    connection,
    gaps,
    guards,
    leaving,
    models,
    openai,
    reach,
    rules,
    script,
    table,
)
from proxy.manage.verify.questions.gaps import Flow, in_lumps, lumpy
from proxy.manage.verify.questions.script import place_of, put_all, questions_of_apis, questions_of_proxy
from proxy.policy.access import Access
from proxy.policy.routes import ROUTES
from proxy.policy.rule_keys import RuleSpec
from proxy.reading.names import ModelPattern
from proxy.settings.kinds import printable
from proxy.settings.settings import Settings
from proxy.simulated_ollama import DEFAULT_MODELS, EMBEDDER, REMOTE_STUB, Model, SimulatedOllama
from tests.support.middlebox import Between
from tests.support.patience import PATIENCE
from tests.support.ports import free_port
from tests.support.proxy_process import ROOT
from tests.support.raw_http import CLOSE, LAST_CHUNK, Proxy, chunk, ok, stream_head

PACKAGES = (Path(asking.__file__).parent, Path(models.__file__).parent)
FILES = sorted(path.stem for folder in PACKAGES for path in folder.glob("*.py") if path.stem != "__init__")
TREES = {name: ast.parse(source(name), feature_version=(3, 9)) for name in MODULES}
PROMISED = promised(Settings())
TINY = models.Model("tiny:latest", 575_318, ("completion",))


def session(port, *, told=PROMISED, release=(0, 32, 15), **given):
    """Return a session that knows what the first questions find out, where the proxy is at `port`."""
    made = Session(
        Asker("127.0.0.1", port, **{key: given.pop(key) for key in ("away",) if key in given}), told, **given
    )
    made.connected = made.is_proxy = made.guarded = True
    made.release, made.models, made.model = release, (TINY,), TINY
    return made


async def put(made, *questions):
    """Return what came of questions, by their names, asked in another thread."""
    results = await asyncio.to_thread(lambda: [result for result, _ in put_all(made, questions)])
    return {result.name: result for result in results}


async def ask(made, function):
    """Return what came of one question."""
    return (await put(made, Question("group", "it", function)))["it"]


@pytest.fixture
def hasty(monkeypatch):
    """Wait for no server that says nothing, or closes nothing."""
    monkeypatch.setattr(asking, "QUICK", 0.3)
    monkeypatch.setattr(asking, "_CLOSE_TIME", 0.3)


@pytest.fixture
async def before_ollama():
    """Return what starts a simulated Ollama and the gateway before it, in this process."""
    started = []

    async def start(models=DEFAULT_MODELS, allow=(), **given):
        ollama = SimulatedOllama(models, **{"tokens_per_second": 200.0} | given)
        await ollama.start()
        proxy = Proxy(ollama.port, allow=allow)
        await proxy.start()
        room = proxy.gateway.room = Room(Ollama(proxy.pool, proxy.gateway.target), Rules())
        started.extend((proxy.stop, room.judge.close, room.loads.close, ollama.close))
        return ollama, proxy

    yield start
    for stop in started:
        await stop()


# --- one file ---------------------------------------------------------------------------------------------------------


def test_every_module_is_joined():
    """The one file has every module of the package, each after those that it imports."""
    assert sorted(MODULES) == sorted([*FILES, "output"])
    for number, name in enumerate(MODULES):
        ours = [node.module for node in TREES[name].body if isinstance(node, ast.ImportFrom)]
        needed = {each.rpartition(".")[2] for each in ours if each.startswith("proxy")}
        assert needed <= {*MODULES[:number]}, name


def test_no_name_twice():
    """No two modules define the same name: joined, the second would take the place of the first."""
    defined = []
    for tree in TREES.values():
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                defined.append(node.name)
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                defined += [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]
    assert sorted({name for name in defined if defined.count(name) > 1}) == []


def test_needs_nothing():
    """The package imports the standard library and itself, whole modules without another name, and nothing inside."""
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert all(alias.name.partition(".")[0] in sys.stdlib_module_names for alias in node.names)
                assert not any(alias.asname for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                stdlib = node.module.partition(".")[0] in sys.stdlib_module_names
                assert stdlib or node.module.rpartition(".")[2] in MODULES, (name, node.module)
                assert not any(alias.asname for alias in node.names)
        inside = [each for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for each in ast.walk(node)]
        assert not [each for each in inside if isinstance(each, (ast.Import, ast.ImportFrom))]


def test_the_file_is_for_python_3_9():
    """The one file compiles for Python 3.9, imports nothing from this package, and has its table."""
    text = client_script(promised(Settings(allow=("GET /api/ps",), max_body=2000)), "http://mac:1")
    tree = ast.parse(text, feature_version=(3, 9))
    assert "import proxy" not in text.partition('"""\n')[2]
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Match)]
    made = {}
    exec(compile(tree, "check.py", "exec", dont_inherit=True), made)
    assert ("GET", "/api/ps") in made["PROMISED"].served
    assert ("GET", "/api/ps") not in made["PROMISED"].closed
    assert (made["PROMISED"].max_body, made["URL"]) == (2000, "http://mac:1")


def old_pythons():
    """Return the interpreters older than this one that run here."""
    found = []
    for name in ("python3.9", "python3.10"):
        path = shutil.which(name)
        if path and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
            found.append(path)
    return found


@pytest.mark.parametrize("python", [*old_pythons(), sys.executable])
def test_usage_of_the_file(python, tmp_path):
    """The one file explains itself, uses its own URL by default, and exits 2 on wrong usage."""
    path = tmp_path / "check.py"
    path.write_text(client_script(PROMISED, "http://mac:11434"))

    def call(*words):
        return subprocess.run([python, "-I", "-S", path, *words], capture_output=True, text=True, check=False)

    told = call("--help")
    assert told.returncode == 0
    assert "default: http://mac:11434" in told.stdout
    for words in (["ftp://mac"], ["--zzz"]):
        wrong = call(*words)
        assert (wrong.returncode, wrong.stderr.splitlines()[-1]) == (2, "hint: check.py --help")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
@pytest.mark.parametrize("words", [("--help",), ("http://127.0.0.1:1",), ("--json",)], ids=["help", "lines", "json"])
def test_output_of_the_file(tmp_path, words):
    """The one file writes its output as the program does: a full disk is an error with a hint, and exit code 1."""
    path = tmp_path / "check.py"
    path.write_text(client_script(PROMISED, "http://127.0.0.1:1"))
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-I", "-S", path, *words]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env={})
    error = "error: standard output can't be written: No space left on device\nhint: df -h (that disk is full)\n"
    assert (done.returncode, done.stderr) == (1, error)


# --- what is promised -------------------------------------------------------------------------------------------------


def test_promises_are_the_settings():
    """What is promised is the table with what `allow` opens; what it could open, and doesn't, is closed."""
    told = promised(Settings(allow=("/",)))
    assert {*told.served, *told.closed} == {(row.method, row.path) for row in ROUTES}
    assert ("HEAD", "/") in told.served
    assert len(told.closed) == len(PROMISED.closed) - 2
    assert told.max_body == Settings().max_body


@pytest.mark.parametrize(
    ("origins", "stranger"),
    [
        ((), "https://verify.invalid"),
        (("https://verify.invalid",), "http://verify.invalid"),
        (("https://verify.invalid", "HTTP://verify.invalid"), "verify://verify.invalid"),
        (("https://verify.invalid", "http://verify.invalid", "Verify://*"), ""),
    ],
)
def test_a_stranger_is_one(origins, stranger):
    """The page that must be refused is none that the owner allowed."""
    assert promised(Settings(allowed_origins=origins)).stranger == stranger


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("http://mac:11434", ("mac", 11434, False)),
        ("http://mac", ("mac", 11434, False)),
        ("mac:80", ("mac", 80, False)),
        ("http://[fd7a::1]:5/", ("fd7a::1", 5, False)),
        ("http://mac.tail1.ts.net:11434/", ("mac.tail1.ts.net", 11434, False)),
        ("https://mac.tail1.ts.net", ("mac.tail1.ts.net", 443, True)),
        ("https://mac.tail1.ts.net:8443/", ("mac.tail1.ts.net", 8443, True)),
    ],
)
def test_places(url, place):
    """A URL may lack what goes without saying."""
    assert place_of(url) == place


@pytest.mark.parametrize(
    "url", ["https://mac/v1", "http://mac/v1", "http://", "ftp://mac", "http://u:p@mac", "http://mac:x"]
)
def test_no_places(url):
    """What is no URL of a proxy is wrong usage."""
    with pytest.raises(ValueError, match=r"mac|http|Port"):
        place_of(url)


# --- silence ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "detail", "afar", "here"),
    [
        (
            socket.gaierror(-2, "Name or service not known"),
            "the name mac can't be resolved here",
            "tailscale status",
            None,
        ),
        (ConnectionRefusedError(111, "x"), "nothing listens at mac:1", "on the Mac: rop status", "rop status"),
        (TimeoutError("timed out"), "neither accepts nor refuses", "tailscale ping mac`; if they are", "rop status"),
        (OSError(113, "No route to host"), "there is no route to mac:1: No route to host", "tailscale status", None),
    ],
)
def test_unconnected(error, detail, afar, here):
    """A wrong name, a closed port, a firewall and a missing route are distinguished, each with a hint."""
    for away, hint in ((True, afar), (False, here or afar)):
        found = unconnected(error, "mac", "mac:1", "rop", away=away)
        assert detail in found.detail
        assert hint in found.hint


@pytest.mark.parametrize(
    ("error", "loads", "detail", "hint"),
    [
        (TimeoutError(), True, "no answer within 300 s", "on the Mac: rop warm MODEL"),
        (TimeoutError(), False, "no answer within 300 s", "on the Mac: rop status"),
        (ConnectionResetError(), False, "peers outside its tailnet", "tailscale status"),
        (http.client.RemoteDisconnected(), False, "peers outside its tailnet", "tailscale status"),
        (http.client.BadStatusLine("SSH-2.0"), False, "isn't HTTP", "on the Mac: rop status"),
    ],
)
def test_silent(error, loads, detail, hint):
    """A loading model, an unwanted peer and another program on the port are distinguished."""
    found = silent(error, "`GET /`", "rop", 300, away=True, loads=loads)
    assert detail in found.detail
    assert hint in found.hint


@pytest.mark.parametrize(
    ("octets", "detail"),
    [(b"", "was closed without an answer"), (b"SSH-2.0-x\r\n", "isn't HTTP")],
)
async def test_no_answer(octets, detail):
    """A port that closes silently, or speaks something else, is not the proxy."""

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(octets)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        asker = Asker("127.0.0.1", server.sockets[0].getsockname()[1], away=True)
        with pytest.raises(NoAnswer, match=detail):
            await asyncio.to_thread(asker.ask, "GET", "/api/version")
    assert [(each.status, each.known) for each in asker.asked] == [(None, False)]


# --- asking -----------------------------------------------------------------------------------------------------------


async def test_ids_and_moments(gateway, upstream):
    """Each request has an id of its own, which comes back; each piece of an answer has the moment of its arrival."""
    upstream.answers(stream_head(), chunk(b"data: 1\n\n"), chunk(b"data: 2\n\n"), LAST_CHUNK)
    asker = Asker("127.0.0.1", gateway.port)
    first, second = [await asyncio.to_thread(asker.ask, "GET", "/v1/models") for _ in range(2)]
    assert first.id.rpartition("-")[0] == second.id.rpartition("-")[0] == asker.name
    assert first.id != second.id
    assert first.echoed
    assert first.cut == ""
    assert [event.data for event in events(first.pieces)] == ["1", "2"]
    assert first.pieces[0].moment <= first.pieces[-1].moment
    assert [(each.id, each.status, each.known) for each in asker.asked] == [
        (first.id, 200, True),
        (second.id, 200, True),
    ]


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", id="length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n", id="between_chunks"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nshort", id="inside_a_chunk"),
    ],
)
async def test_cut_answers(script, upstream):
    """An answer that breaks off is never taken for a whole one."""
    upstream.answers(script, CLOSE)
    answer = await asyncio.to_thread(Asker("127.0.0.1", upstream.port).ask, "GET", "/")
    assert (answer.content, answer.status) == (b"short", 200)
    assert "broke off after 5" in answer.cut


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"error":"native"}', "native"),
        (b'{"error":{"message":"openai"}}', "openai"),
        (b'{"type":"error","error":{"type":"x","message":"anthropic"}}', "anthropic"),
        (b"404 page not found", "404 page not found"),
        (b"\xff", "\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_messages_of_errors(content, message):
    """What an error says is read in each API's shape, or as it is."""
    assert Answer("id", "GET", "/", 400, {}, [Piece(content, 0)]).message == message


STREAM = b'event: a\ndata: {"x":1}\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize("size", [1, 7, len(STREAM)])
def test_events(size):
    """Events are read whole from pieces of any size; what follows the last border is none yet."""
    octets = STREAM + b"data: more"
    pieces = [Piece(octets[at : at + size], at) for at in range(0, len(octets), size)]
    found = list(events(pieces))
    assert [(event.name, event.data) for event in found] == [("a", '{"x":1}'), ("", "[DONE]")]
    assert (found[0].json, found[1].json) == ({"x": 1}, {})
    assert found[0].moment <= found[1].moment


def test_paths_in_json():
    """What isn't there is None, whatever is there instead."""
    told = {"a": [{"b": 1}], "c": None}
    assert seen(told, "a", 0, "b") == seen(told, "a", -1, "b") == 1
    assert [seen(told, *path) for path in (("a", 1), ("c", "d"), ("a", "b"), ("x",), ("a", 0, "b", "c"))] == [None] * 5


# --- models -----------------------------------------------------------------------------------------------------------


def test_models_are_listed_by_size():
    """The smallest comes first; what runs elsewhere is marked, by its host or its name."""
    entries = [
        {"name": "b", "size": 2},
        {"name": "a", "size": 1, "capabilities": ["completion"]},
        {"name": "far", "size": 0, "remote_host": "https://ollama.com:443"},
        {"name": "gpt-oss:120b-cloud", "size": 3},
        {"size": 4},
    ]
    found = models.listed({"models": entries})
    assert [(each.name, each.remote, each.capabilities) for each in found] == [
        ("far", True, None),
        ("a", False, ("completion",)),
        ("b", False, None),
        ("gpt-oss:120b-cloud", True, None),
    ]
    assert models.listed({"models": None}) == models.listed([]) == ()


@pytest.mark.parametrize(
    ("wanted", "same"), [("tiny", True), (" TINY:latest ", True), ("tiny:v1", False), ("tin", False)]
)
def test_names_of_models(wanted, same):
    """Letter case and `:latest` don't matter, as for Ollama."""
    assert models.same_name("tiny:latest", wanted) is same


# --- flows ------------------------------------------------------------------------------------------------------------


def flow(pieces, *moments):
    return Flow(pieces, tuple(moments), moments[-1] - moments[0] if moments else 0.0)


EACH_20_MS = flow(24, *(0.02 * number for number in range(24)))


@pytest.mark.parametrize(
    ("through", "held"),
    [
        pytest.param(EACH_20_MS, False, id="the_same"),
        pytest.param(flow(24, 0, 0.15, 0.3, 0.45), True, id="lumps"),
        pytest.param(flow(24, 0.5), True, id="all_at_the_end"),
        pytest.param(flow(24, 0, 0.3), True, id="in_two_pieces"),
        pytest.param(flow(24, *(0.04 * number for number in range(10))), False, id="a_busy_machine"),
        pytest.param(flow(24, *(0.02 * number for number in range(12)), 0.5), False, id="one_long_silence"),
    ],
)
def test_lumpy_beside_ollama(through, held):
    """Half the reads and longer silences are lumps; a stumble, or reads merged by a busy machine, are none."""
    assert lumpy(EACH_20_MS, through) is held


def test_all_said_in_a_moment():
    """What Ollama itself says in a moment may come in one piece."""
    assert lumpy(flow(24, *(0.001 * number for number in range(24))), flow(24, 0.0)) is False


@pytest.mark.parametrize(
    ("found", "held"),
    [
        pytest.param(EACH_20_MS, False, id="one_by_one"),
        pytest.param(flow(24, 0, 0.15, 0.3, 0.45), True, id="lumps"),
        pytest.param(flow(24, 0, 0.01, 0.02, 0.03), False, id="a_fast_model"),
        pytest.param(flow(24, 0, 0.3), False, id="too_few_reads"),
        pytest.param(flow(10, *(0.3 * number for number in range(10))), False, id="a_slow_model"),
    ],
)
def test_lumps_alone(found, held):
    """Without anything to compare, several pieces a read with silences between are lumps."""
    assert (in_lumps(found) is not None) is held


async def test_gaps(before_ollama):
    """A stream through the proxy comes as it does from Ollama; one that is held does not."""
    ollama, proxy = await before_ollama(tokens_per_second=60.0)
    direct = Asker("127.0.0.1", ollama.port)
    assert (await ask(session(proxy.port, direct=direct), gaps.token_gaps)).outcome == "pass"
    assert (await ask(session(proxy.port, away=True), gaps.token_gaps)).outcome == "pass"
    async with Between(proxy.port, holds=True) as holding:
        beside = await ask(session(holding.port, direct=direct), gaps.token_gaps)
        alone = await ask(session(holding.port, away=True), gaps.token_gaps)
    assert (beside.outcome, beside.detail.partition(":")[0]) == ("fail", "the proxy holds a stream back")
    assert (alone.outcome, alone.detail.partition(":")[0]) == ("fail", "a stream is held back")
    assert "verify` on the Mac compares with Ollama itself" in alone.hint


async def test_gaps_of_a_fast_model(before_ollama):
    """A model that says all at once gives no cause for alarm, whatever is merged on the way."""
    ollama, proxy = await before_ollama(tokens_per_second=0)
    for direct in (None, Asker("127.0.0.1", ollama.port)):
        assert (await ask(session(proxy.port, direct=direct, away=True), gaps.token_gaps)).outcome == "pass"


IN_LUMPS = flow(24, 0, 0.15, 0.3, 0.45)
MERGED = flow(24, *(0.05 * number for number in range(9)))  # by a busy machine: less than half the reads


@pytest.mark.parametrize(
    ("looks", "outcome"),
    [
        pytest.param([(EACH_20_MS, IN_LUMPS)] * 3, "fail", id="always"),
        pytest.param([(EACH_20_MS, IN_LUMPS)] * 2 + [(EACH_20_MS, EACH_20_MS)], "pass", id="once_well"),
        pytest.param([(MERGED, IN_LUMPS), (EACH_20_MS, IN_LUMPS), (EACH_20_MS, IN_LUMPS)], "fail", id="all_but_one"),
        pytest.param([(MERGED, MERGED)] * 3, "pass", id="never_clear"),
        pytest.param([(MERGED, MERGED)] * 2 + [(EACH_20_MS, IN_LUMPS)], "pass", id="once"),
    ],
)
async def test_looks_at_gaps(looks, outcome, monkeypatch):
    """One good look is enough; looks at a source that comes in lumps itself don't count; two bad ones fail."""
    told = iter([each for look in looks for each in look])
    monkeypatch.setattr(gaps, "_flow", lambda *_: next(told))
    assert (await ask(session(1, direct=Asker("127.0.0.1", 1)), gaps.token_gaps)).outcome == outcome


@pytest.mark.parametrize(("slowest", "outcome"), [(0.001, "fail"), (0.2, "warn")])
async def test_gaps_over_a_bad_network(slowest, outcome, monkeypatch):
    """Lumps are blamed on the proxy only where the network is quicker than they are far apart."""
    monkeypatch.setattr(gaps, "_flow", lambda *_: flow(24, 0, 0.15, 0.3, 0.45))
    monkeypatch.setattr(gaps, "_way_and_back", lambda _: slowest)
    found = await ask(session(1, away=True), gaps.token_gaps)
    assert (found.outcome, "pieces arrive several at a time" in found.detail) == (outcome, True)


async def test_gaps_of_a_buffer(monkeypatch):
    """A stream that comes whole, long after the first token could have, is held back by a buffer."""
    monkeypatch.setattr(gaps, "_flow", lambda *_: Flow(24, (5.0,), 5.0))
    monkeypatch.setattr(gaps, "_way_and_back", lambda _: 0.001)
    made = session(1, away=True)
    made.asker.ask = lambda *_, **__: None
    found = await ask(made, gaps.token_gaps)
    assert found.outcome == "fail"
    assert "24 pieces came all at once, 5.0 s after the first could have" in found.detail


async def test_gaps_of_few_pieces(monkeypatch):
    """An answer of a few pieces proves nothing."""
    monkeypatch.setattr(gaps, "_flow", lambda *_: flow(3, 0, 1, 2))
    for direct in (None, Asker("127.0.0.1", 1)):
        assert (await ask(session(1, direct=direct), gaps.token_gaps)).outcome == "skip"


# --- answers that break a promise -------------------------------------------------------------------------------------


def answer(told, status=b"200 OK"):
    """Return a response of JSON."""
    content = json.dumps(told).encode()
    return ok(content).replace(b"200 OK", status)


def stream(*told, end=b""):
    """Return a response of events; a dict with `type` is a named one."""
    said = []
    for each in told:
        name = b"event: %b\n" % each["type"].encode() if isinstance(each, dict) and "type" in each else b""
        said.append(name + b"data: " + (each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n\n")
    return (stream_head(), *(chunk(each) for each in (*said, *([end] if end else []))), LAST_CHUNK)


MESSAGE = {"role": "assistant", "content": "Hi"}
USAGE = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
CHAT = {
    "object": "chat.completion",
    "choices": [{"message": MESSAGE, "finish_reason": "stop"}],
    "usage": USAGE,
}
SAID = {
    "type": "message",
    "role": "assistant",
    "content": [{"type": "text", "text": "Hi"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 2, "output_tokens": 1},
}
RESPONSE = {
    "object": "response",
    "status": "completed",
    "output": [],
    "usage": {"input_tokens": 2, "output_tokens": 1},
}
CREATED, COMPLETED = (
    {"type": f"response.{name}", "sequence_number": number} for number, name in enumerate(("created", "completed"))
)


def delta(finish=None, kind="chat.completion.chunk", **said):
    return {"object": kind, "choices": [{"delta": said, "finish_reason": finish}]}


def call(arguments):
    return {
        **CHAT,
        "choices": [
            {
                "message": {
                    **MESSAGE,
                    "tool_calls": [
                        {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
                    ],
                },
                "finish_reason": "tool_calls",
            }
        ],
    }


ROLE, END, DONE = delta(role="assistant", content="H"), delta("stop"), b"[DONE]"
START = {"type": "message_start", "message": {"usage": {"input_tokens": 1}}}
DELTA = {"type": "message_delta", "usage": {"input_tokens": 1, "output_tokens": 2}}
STOP = {"type": "message_stop"}
OPEN, MORE, CLOSED = ({"type": f"content_block_{what}"} for what in ("start", "delta", "stop"))

BROKEN = [
    pytest.param(openai.models, (answer({"object": "list"}),), "fail", "answered with 200", id="models_no_data"),
    pytest.param(openai.models, (answer({"object": "list", "data": {}}),), "fail", "neither a list", id="models_data"),
    pytest.param(openai.models, (answer({"object": "list", "data": [{}]}),), "fail", "no `id`", id="models_id"),
    pytest.param(openai.models, (answer([]),), "fail", "answered with 200", id="models_array"),
    pytest.param(openai.one_model, (answer({"id": "other"}),), "fail", "answered with 200", id="one_model"),
    pytest.param(openai.chat, (answer({"error": "busy"}, b"503 Busy"),), "fail", "503: busy", id="chat_status"),
    pytest.param(openai.chat, (answer({**CHAT, "object": "x"}),), "fail", "`object` is 'x'", id="chat_object"),
    pytest.param(openai.chat, (answer({**CHAT, "choices": []}),), "fail", "no message", id="chat_choices"),
    pytest.param(openai.chat, (answer({**CHAT, "usage": {}}),), "fail", "`usage` is {}", id="chat_usage"),
    pytest.param(
        openai.chat,
        (answer({**CHAT, "choices": [{"message": MESSAGE, "finish_reason": None}]}),),
        "fail",
        "`finish_reason` is None",
        id="chat_finish",
    ),
    pytest.param(openai.chat_stream, stream(ROLE, END, DONE), "pass", "2 events in", id="chat_stream"),
    pytest.param(openai.chat_stream, (answer(CHAT),), "fail", "Content-Type is", id="chat_stream_type"),
    pytest.param(openai.chat_stream, stream(END, DONE), "fail", "no role", id="chat_stream_role"),
    pytest.param(openai.chat_stream, stream(ROLE, DONE), "fail", "`finish_reason` is None", id="chat_stream_finish"),
    pytest.param(openai.chat_stream, stream(ROLE), "fail", "broke off", id="chat_stream_unfinished"),
    pytest.param(openai.chat_stream, stream(ROLE, END), "fail", "does not end with", id="chat_stream_without_done"),
    pytest.param(openai.chat_stream, stream(DONE), "fail", "no event but", id="chat_stream_empty"),
    pytest.param(
        openai.chat_stream, stream({**ROLE, "object": "x"}, DONE), "fail", "events are", id="chat_stream_kind"
    ),
    pytest.param(openai.chat_usage, stream(ROLE, END, DONE), "fail", "reports the usage", id="usage_missing"),
    pytest.param(
        openai.chat_usage, stream(ROLE, {"choices": [], "usage": USAGE}, DONE), "pass", "2 tokens in, 1 out", id="usage"
    ),
    pytest.param(openai.json_mode, (answer(CHAT),), "warn", "isn't JSON: 'Hi'", id="json_words"),
    pytest.param(
        openai.json_mode,
        (answer({**CHAT, "choices": [{"message": {"content": '{"a'}, "finish_reason": "length"}]}),),
        "warn",
        "cut after 512 tokens",
        id="json_cut",
    ),
    pytest.param(
        openai.json_mode,
        (answer({**CHAT, "choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}),),
        "warn",
        "answered nothing",
        id="json_empty",
    ),
    pytest.param(openai.chat_tool, (answer(CHAT),), "warn", "answered in words", id="tool_words"),
    pytest.param(openai.chat_tool, (answer(call("{no")),), "fail", "arguments aren't JSON", id="tool_arguments"),
    pytest.param(openai.chat_tool, (answer(call('{"a":1}')),), "pass", 'get_weather({"a": 1})', id="tool"),
    pytest.param(openai.chat_thinking, (answer(CHAT),), "warn", "without thinking", id="thinking"),
    pytest.param(openai.chat_image, (answer({**CHAT, "choices": []}),), "fail", "no `content`", id="image"),
    pytest.param(openai.response, (answer({**RESPONSE, "status": "failed"}),), "fail", "it is {", id="response_status"),
    pytest.param(openai.response, (answer({**RESPONSE, "output": None}),), "fail", "no `output`", id="response_output"),
    pytest.param(openai.response, (answer({**RESPONSE, "usage": {}}),), "fail", "no `usage`", id="response_usage"),
    pytest.param(openai.response_stream, stream(CREATED, COMPLETED), "pass", "2 events", id="response_stream"),
    pytest.param(
        openai.response_stream, stream(COMPLETED), "fail", "first event is ['response.completed']", id="response_first"
    ),
    pytest.param(
        openai.response_stream, stream(CREATED, CREATED, COMPLETED), "fail", "numbered [0, 0, 1]", id="response_numbers"
    ),
    pytest.param(openai.response_stream, stream(CREATED), "fail", "broke off", id="response_unfinished"),
    pytest.param(openai.unknown_model, (answer({}),), "fail", "answered with 200", id="unknown_model"),
    pytest.param(openai.malformed, (answer({"error": "x"}, b"400 Bad"),), "fail", "400: x", id="malformed_shape"),
    pytest.param(anthropic.message, (answer({**SAID, "role": "user"}),), "fail", "it is {", id="message_role"),
    pytest.param(anthropic.message, (answer({**SAID, "content": "Hi"}),), "fail", "`content` is", id="message_content"),
    pytest.param(anthropic.message, (answer({**SAID, "content": None}),), "pass", "2 tokens in, 1", id="message_empty"),
    pytest.param(anthropic.message, (answer({**SAID, "usage": None}),), "fail", "`usage` is None", id="message_usage"),
    pytest.param(
        anthropic.message,
        (answer({**SAID, "stop_reason": None}),),
        "fail",
        "`stop_reason` is None",
        id="message_reason",
    ),
    pytest.param(
        anthropic.message_stream,
        stream(START, OPEN, MORE, CLOSED, OPEN, CLOSED, DELTA, STOP),
        "pass",
        "8 events with 2 blocks",
        id="message_stream",
    ),
    pytest.param(
        anthropic.message_stream, stream(START, {"type": "ping"}, DELTA, STOP), "pass", "0 blocks", id="message_ping"
    ),
    pytest.param(anthropic.message_stream, stream(DELTA, STOP), "fail", "the first event is", id="message_start"),
    pytest.param(anthropic.message_stream, stream(START, STOP), "fail", "the last events are", id="message_end"),
    pytest.param(
        anthropic.message_stream, stream(START, MORE, DELTA, STOP), "fail", "comes after", id="message_unopened"
    ),
    pytest.param(
        anthropic.message_stream, stream(START, OPEN, DELTA, STOP), "fail", "not closed", id="message_unclosed"
    ),
    pytest.param(anthropic.message_stream, stream(START, DELTA), "fail", "broke off", id="message_unfinished"),
    pytest.param(
        anthropic.message_usage, stream({**START, "message": {}}, DELTA, STOP), "fail", "message_start", id="no_guess"
    ),
    pytest.param(
        anthropic.message_usage, stream(START, {"type": "message_delta"}, STOP), "fail", "message_delta", id="no_count"
    ),
    pytest.param(anthropic.message_tool, (answer(SAID),), "warn", "answered in words", id="tool_use_words"),
    pytest.param(
        anthropic.message_tool,
        (answer({**SAID, "content": [{"type": "tool_use"}]}),),
        "fail",
        "`stop_reason` is not `tool_use`",
        id="tool_use_reason",
    ),
    pytest.param(anthropic.message_thinking, (answer(SAID),), "warn", "without thinking", id="message_thinking"),
    pytest.param(
        anthropic.message_errors, (answer({"error": "x"}, b"400 Bad"),), "fail", "word on max_tokens", id="errors_words"
    ),
    pytest.param(
        anthropic.message_errors,
        (answer({"error": "max_tokens"}, b"400 Bad"),),
        "fail",
        "the error is",
        id="errors_shape",
    ),
    pytest.param(connection.ollama_answers, (answer({"version": "0.32.15"}),), "pass", "0.32.15", id="version"),
    pytest.param(
        connection.ollama_answers, (answer({"version": "mine"}),), "warn", "can't be compared", id="no_version"
    ),
    pytest.param(connection.ollama_answers, (answer({}),), "fail", "version is unknown", id="no_ollama"),
    pytest.param(table.forwarded(("GET", "/api/version")), (answer({}),), "pass", "answers 200", id="forwarded"),
    pytest.param(
        table.forwarded(("POST", "/api/chat")), (answer({}),), "fail", "does not reach Ollama", id="not_forwarded"
    ),
]


@pytest.mark.parametrize(("function", "script", "outcome", "detail"), BROKEN)
async def test_answers(function, script, outcome, detail, gateway, upstream):
    """Each shape that breaks a promise is named. What only a model did is a doubt."""
    upstream.answers(*script)
    made = session(gateway.port, away=True)
    made.models = (replace(TINY, capabilities=("completion", "tools", "thinking", "vision")),)
    found = await ask(made, function)
    assert found.outcome == outcome, found
    assert detail in found.detail
    assert found.hint or outcome == "pass"
    if outcome == "fail" and "--verbose" in found.hint:
        assert found.hint.endswith(f"grep {found.ids[-1]} ~/Library/Logs/remote-ollama-proxy/access.log")


async def test_answer_of_no_shape(gateway, upstream):
    """An answer of a shape that no question expects is a failure, not a traceback."""
    upstream.answers(answer({}))
    made = session(gateway.port)
    found = await ask(made, lambda given: given.asker.ask("GET", "/api/version").json["no such key"])
    assert (found.outcome, found.detail) == (
        "fail",
        "the answer has an unexpected shape: KeyError 'no such key'",
    )


# --- the proxy --------------------------------------------------------------------------------------------------------


async def test_proxy_keeps_its_promises(before_ollama):
    """Before the gateway every question of the table and its guards is answered well, whatever rows are open."""
    allow = ("HEAD /api/tags", "GET /", "POST /api/embed")
    _, proxy = await before_ollama(allow=allow)
    told = promised(Settings(allow=allow))
    found = await put(session(proxy.port, told=told), *questions_of_proxy(told))
    assert {name: result.detail for name, result in found.items() if result.outcome != "pass"} == {}


async def test_ollama_keeps_none(before_ollama, hasty, monkeypatch):
    """Before Ollama itself not one of them is: none passes by accident."""
    ollama, _ = await before_ollama()
    made = session(ollama.port)
    served = {" ".join(row) for row in PROMISED.served}
    for question in questions_of_proxy(PROMISED):
        made.guarded = True
        monkeypatch.setattr(asking, "QUICK", PATIENCE if question.name in served else 0.3)
        found = (await put(made, question))[question.name]
        assert found.outcome == ("pass" if question.name in served else "fail"), found


@pytest.mark.parametrize("cloud", [False, True], ids=["off", "on"])
async def test_nothing_leaves_the_mac(before_ollama, cloud):
    """Cloud names, the stubs that the Mac itself sees, and a search while the cloud is on are refused."""
    ollama, proxy = await before_ollama([*DEFAULT_MODELS, REMOTE_STUB], cloud=cloud)
    made = session(proxy.port, direct=Asker("127.0.0.1", ollama.port))
    found = await put(made, *leaving.LEAVING_QUESTIONS)
    assert {result.outcome for result in found.values()} == {"pass"}
    assert found["cloud models"].detail.endswith("and far:latest")
    assert ("is refused" in found["web search"].detail) is cloud


async def test_what_leaves_the_mac_is_found(before_ollama):
    """A proxy that lets a stub or a search through fails, and one whose owner allows it isn't asked."""
    ollama, proxy = await before_ollama([*DEFAULT_MODELS, REMOTE_STUB], cloud=True)
    proxy.gateway.room.apply(Rules(local_only=False))
    direct = Asker("127.0.0.1", ollama.port)
    for question in leaving.LEAVING_QUESTIONS:
        found = await put(session(proxy.port, direct=direct), question)
        assert found[question.name].outcome == "fail"
    told = replace(PROMISED, local_only=False)
    found = await put(session(proxy.port, direct=direct, told=told), *leaving.LEAVING_QUESTIONS)
    assert {result.outcome for result in found.values()} == {"skip"}


async def test_nothing_harmful_is_sent_unguarded(before_ollama, hasty):
    """Where a pull isn't refused, what could delete, sign out or reach the owner's account isn't sent."""
    ollama, _ = await before_ollama()
    made = session(ollama.port)
    made.is_proxy = None
    await put(made, *connection.CONNECTION_QUESTIONS, *questions_of_apis(), *questions_of_proxy(PROMISED))
    assert {target for _, target in ollama.seen} == {"/api/version", "/api/pull"}
    made.is_proxy, made.guarded = True, False
    await put(made, *questions_of_proxy(PROMISED))
    sent = [request for request in ollama.seen if request[0] == "DELETE" or "sign" in request[1] or "/me" in request[1]]
    assert {target.partition("?")[0] for _, target in sent} <= {
        row[1].replace("*", openai.NOBODY) for row in PROMISED.served
    }
    assert (ollama.signed_out, len(ollama.models)) == (False, len(DEFAULT_MODELS))


async def test_one_open_route_ends_the_harm(before_ollama):
    """After one route that isn't blocked, none that could harm is tried."""
    ollama, proxy = await before_ollama()

    def leaks(head):
        return head.startswith(b"POST /api/copy ")

    async with Between(proxy.port, beyond=ollama.port, leaks=leaks) as leaking:
        found = await put(session(leaking.port), *questions_of_proxy(PROMISED))
    assert found["POST /api/copy"].outcome == "fail"
    assert found["POST /api/signout"].detail.startswith("not sent: ")


@pytest.mark.parametrize(
    ("port", "taken", "outcome", "detail"),
    [
        (11434, False, "pass", "is the proxy itself"),
        (5, True, "fail", "accepts connections from here, past the proxy"),
        (5, False, "pass", "accepts no connection"),
    ],
)
async def test_ollamas_own_port(port, taken, outcome, detail, monkeypatch):
    """Ollama's own port must not take connections from a client; the proxy may have the same number."""
    monkeypatch.setattr(reach, "_is_here", lambda _: False)
    made = session(port)
    made.asker.takes = lambda *_: taken
    made.asker.at = lambda _: Asker("127.0.0.1", free_port())
    found = await ask(made, reach.own_port)
    assert found.outcome == outcome
    assert detail in found.detail


async def test_ollamas_own_port_here():
    """On the machine itself Ollama may be reached."""
    assert (await ask(session(5), reach.own_port)).outcome == "skip"


async def test_further_addresses(before_ollama):
    """At each further address the proxy must answer, and block."""
    ollama, proxy = await before_ollama()
    well = session(proxy.port, also=(Asker("127.0.0.1", proxy.port),))
    found = await ask(well, connection.also_there)
    assert (found.outcome, len(found.ids)) == ("pass", 2)
    assert (
        await ask(session(proxy.port, also=(Asker("127.0.0.1", ollama.port),)), connection.also_there)
    ).outcome == "fail"


@pytest.mark.parametrize("wanted", [None, "far"])
async def test_only_far_models(wanted, before_ollama):
    """A model that runs elsewhere is asked only if it is wanted."""
    _, proxy = await before_ollama((REMOTE_STUB, EMBEDDER))
    proxy.gateway.room.apply(Rules(local_only=False))
    made = session(proxy.port, wanted=wanted)
    made.model = None
    found = await ask(made, connection.model_to_ask)
    assert (found.outcome, made.model and made.model.name) == (
        ("skip", None) if wanted is None else ("pass", "far:latest")
    )


async def test_a_model_with_a_slash(before_ollama):
    """A model that can't be fetched by its name isn't asked for."""
    _, proxy = await before_ollama((Model("someone/tiny:v1"),))
    made = session(proxy.port)
    await ask(made, connection.model_to_ask)
    assert (await ask(made, openai.one_model)).outcome == "skip"


def test_too_old():
    """Versions are compared as numbers; 0.0.0, and what can't be compared, is the newest."""
    made = session(1)
    told = []
    for release in ((0, 13, 2), (0, 13, 3), (0, 14, 0), (0, 0, 0), ()):
        made.release = release
        told.append((made.too_old("responses"), made.too_old("messages")))
    assert told == [("0.13.3", "0.14.0"), (None, "0.14.0"), (None, None), (None, None), (None, None)]


# --- whole runs, in this process --------------------------------------------------------------------------------------


async def everything(port, *, told=PROMISED, **given):
    """Return what comes of all that is asked, before anything is known."""
    made = Session(Asker("127.0.0.1", port), told, **given)
    asked = (*connection.CONNECTION_QUESTIONS, *questions_of_apis(), *questions_of_proxy(told))
    results = await asyncio.to_thread(lambda: [result for result, _ in put_all(made, asked)])
    return {f"{result.group}: {result.name}": result for result in results}


def failed(found):
    """Return the names of what failed."""
    return {name.partition(": ")[2] for name, result in found.items() if result.outcome == "fail"}


async def test_old_ollama(before_ollama):
    """An Ollama that lacks a route fails once for each, with the upgrade; what needs the route is skipped."""
    _, proxy = await before_ollama(version="0.13.2")
    found = await everything(proxy.port)
    assert failed(found) == {"version for responses", "version for messages"}
    messages = found["Anthropic API: version for messages"]
    assert messages.detail == "Ollama has no /v1/messages before 0.14.0"
    assert messages.hint == "brew upgrade ollama; or leave it out: --skip-anthropic-tests"
    assert found["OpenAI API: version for responses"].hint == "brew upgrade ollama"
    assert found["Anthropic API: message"].detail == found["OpenAI API: response"].detail == "Ollama is too old"
    assert found["OpenAI API: tool call"].outcome == found["OpenAI API: chat, streamed"].outcome == "pass"
    assert failed(await everything(proxy.port, skip_anthropic=True, skip_models=True)) == {"version for responses"}


async def test_no_models(before_ollama):
    """Without a model what needs one is skipped, with the command that gets one, and that is no failure."""
    _, proxy = await before_ollama(())
    found = await everything(proxy.port)
    assert failed(found) == set()
    assert found["Connection: model to ask"].hint == "ollama pull NAME"
    assert found["OpenAI API: models"].detail == "none: `data` is null"
    assert found["OpenAI API: chat"].detail == "there is no model to ask"
    assert found["OpenAI API: unknown model"].outcome == "pass"


@pytest.mark.parametrize(
    ("name", "detail", "hint"),
    [
        ("nope", "there is no model `nope`", "--model NAME, with one of these: plain:latest, "),
        ("embedder", "`embedder` can't chat, it only embeds", "--model NAME, to ask another one"),
    ],
)
async def test_wrong_model(name, detail, hint, before_ollama):
    """A model that isn't there, or can't chat, is a failure that says which there are."""
    _, proxy = await before_ollama((*DEFAULT_MODELS, EMBEDDER))
    found = await everything(proxy.port, wanted=name)
    assert failed(found) == {"model to ask"}
    assert found["Connection: model to ask"].detail == detail
    assert found["Connection: model to ask"].hint.startswith(hint)


async def test_a_wanted_model(before_ollama):
    """A model that is wanted is asked, also for what only some can, if it can."""
    _, proxy = await before_ollama()
    found = await everything(proxy.port, wanted="Thinker")
    assert failed(found) == set()
    assert "thinker:latest" in found["Connection: model to ask"].detail
    assert found["OpenAI API: thinking"].detail.startswith("thinker:latest thinks")


async def test_what_some_models_can(before_ollama):
    """A picture is shown to a model that sees; those that only embed, or run elsewhere, are asked nothing."""
    eyes = Model("eyes:latest", 10**6, capabilities=("completion", "vision"))
    _, proxy = await before_ollama((EMBEDDER, replace(REMOTE_STUB, size=1), eyes))
    found = await everything(proxy.port)
    assert failed(found) == set()
    assert found["Connection: model to ask"].detail.startswith("eyes:latest, 1.0 MB: the smallest that can chat, of 2")
    assert found["OpenAI API: image"].outcome == found["Anthropic API: image"].outcome == "pass"
    assert found["Anthropic API: tool use"].detail == "no model here has the capability `tools`"


async def test_capabilities_are_asked_for(before_ollama):
    """If the list of models lacks capabilities, as before 0.30, each model is asked for them."""
    ollama, proxy = await before_ollama((EMBEDDER, Model("tiny:latest")), version="0.29.9")
    found = await everything(proxy.port, skip_models=True)
    assert found["Connection: model to ask"].detail.startswith("tiny:latest")
    assert ("POST", "/api/show") in ollama.seen


async def test_blocked_route_open(before_ollama):
    """When a pull gets through, that fails, and nothing that could harm is sent."""
    ollama, proxy = await before_ollama()

    def leaks(head):
        return head.startswith(b"POST /api/pull ")

    async with Between(proxy.port, beyond=ollama.port, leaks=leaks) as leaking:
        found = await everything(leaking.port, skip_models=True)
    assert failed(found) == {"from the proxy", "POST /api/pull"}
    assert "it lets `POST /api/pull` through to Ollama" in found["Connection: from the proxy"].detail
    assert found["Proxy: POST /api/create"].outcome == "pass"
    for name in ("DELETE /api/delete", "POST /api/signout", "spellings of a path"):
        assert found[f"Proxy: {name}"].detail.startswith("not sent: ")
    assert not [target for _, target in ollama.seen if "delete" in target or "signout" in target]


async def test_a_spelling_gets_by(before_ollama):
    """When a spelling of a path gets round the table, that fails, and shows which."""
    ollama, proxy = await before_ollama()

    def leaks(head):
        return head.startswith(b"DELETE /api%2Fdelete ")

    async with Between(proxy.port, beyond=ollama.port, leaks=leaks) as leaking:
        found = await everything(leaking.port, skip_models=True)
    assert failed(found) == {"spellings of a path"}
    assert "`DELETE /api%2Fdelete` was answered with 400" in found["Proxy: spellings of a path"].detail


async def test_nobody_there():
    """If nothing listens, that is reported with a hint, and nothing else is asked."""
    found = await everything(free_port())
    assert failed(found) == {"an answer"}
    assert found["Connection: an answer"].hint == "remote-ollama-proxy status"
    assert found["OpenAI API: chat"].detail.startswith("there is no answer from 127.0.0.1:")


# --- the report -------------------------------------------------------------------------------------------------------


def results(*outcomes, group="G"):
    return [
        Result(group, f"q{number}", outcome, "why" if outcome == "skip" else "it", "do" if outcome == "fail" else "")
        for number, outcome in enumerate(outcomes, 1)
    ]


def report(found, **given):
    """Return whether a report says that something failed, and its lines."""
    out = io.StringIO()
    made = Report(out=out, **given)
    for each in found:
        made.add(each, ["> said"])
    asked = [Asked(f"verify-x-{number}", "GET", "/", 200, True) for number in range(1, 12)]
    made.end([*asked, Asked("verify-x-12", "GET", "/", None, False)], "a note")
    return made.failed, out.getvalue().splitlines()


def test_report():
    """Results are numbered in their groups, hints stand below failures, skips for one reason share a line."""
    failed, lines = report([*results("pass", "skip", "skip", "fail"), *results("skip", "warn", group="H")])
    assert failed
    assert lines == [
        "G",
        "      1  PASS  q1: it",
        "    2-3  SKIP  q2 ... q3: why",
        "      4  FAIL  q4: it",
        "               hint: do",
        "",
        "H",
        "      5  SKIP  q1: why",
        "      6  WARN  q2: it",
        "",
        "1 passed, 1 warned, 1 failed, 3 skipped in 0.0 s",
        "      4  G: q4",
        "",
        "a note",
        "",
        "12 requests, in the Mac's access log as `verify-x-NUMBER`: number, and status of the answer;",
        "those with * have an id of the proxy's own there, or none:",
        "     1 200     2 200     3 200     4 200     5 200     6 200     7 200     8 200     9 200    10 200",
        "    11 200    12 ---*",
    ]


def test_report_of_json(capsys):
    """With --json it leaves standard output to the JSON, and what was said goes to standard error."""
    assert report(results("pass", "warn"), as_json=True, verbose=True) == (False, [])
    assert capsys.readouterr().err == "  > said\n" * 2


def test_report_verbose():
    """With --verbose what was said stands below its result."""
    assert "               > said" in report(results("pass"), verbose=True)[1]


@pytest.mark.parametrize(("environ", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_report_in_colours(environ, coloured, monkeypatch):
    """A terminal gets colours, unless it, or its user, wants none."""
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    out = io.StringIO()
    out.isatty = lambda: True
    Report(out=out).add(results("fail")[0])
    assert ("\x1b[31mFAIL\x1b[0m" in out.getvalue()) is coloured


def test_report_of_what_is_asked():
    """A terminal shows the current question while it waits, and clears it for the result."""
    out = io.StringIO()
    made = Report(out=out)
    made.asking("chat")
    assert out.getvalue() == ""
    out.isatty = lambda: True
    made = Report(out=out)
    made.asking("chat")
    shown = out.getvalue()
    assert shown == "      1  ....  chat\r"
    made.add(results("pass")[0])
    assert out.getvalue().startswith(f"{shown}{' ' * (len(shown) - 1)}\r")


@pytest.mark.parametrize("text", ["plain", "\x1b[2J\x07", "a\u202eb", "\ud800", "日本"])
def test_plain_text(text):
    """What a server says can't steer the terminal: the same is escaped as by the program's own."""
    assert plain(text) == printable(text)


def test_outcomes_of_questions():
    """A promise that isn't kept fails, a question that can't be asked is skipped, with their hints."""
    made = session(1)

    def raises(error):
        def function(_):
            raise error

        return made.put(Question("g", "q", function))

    assert (raises(Unmet("d", "h")).outcome, raises(Left("d", "h")).outcome) == ("fail", "skip")
    assert (raises(NoAnswer("d", "h")).outcome, raises(NoAnswer("d", "h")).hint) == ("fail", "h")
    assert Promised((), ()).stranger


def test_shown_run():
    """Each line of the run that docs/verify.md shows is of a question, or of a check of the Mac that has its entry."""
    page = (ROOT / "docs" / "verify.md").read_text()
    shown = re.findall(r"^ +[\d-]+  [A-Z]+  (.+?): ", page, re.MULTILINE)
    asked = (*connection.CONNECTION_QUESTIONS, *questions_of_apis(), *questions_of_proxy(PROMISED))
    known = {question.name for question in asked} | set(
        re.findall(r"`([^`]+)`", (ROOT / "docs" / "verify-mac.md").read_text())
    )
    assert len(shown) > 20
    assert {name for told in shown for name in told.split(" ... ")} <= known


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_program_of_its_own(capsys):
    """As a program it asks, prints, and exits with 1 if something fails, with 2 on wrong usage."""
    assert script.main([f"http://127.0.0.1:{free_port()}", "--skip-model-tests"], PROMISED) == 1
    assert "nothing listens at 127.0.0.1:" in capsys.readouterr().out
    for words in (["ftp://mac"], []):
        assert script.main(words, PROMISED) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith("hint: ")


def test_interrupted(capsys, monkeypatch):
    """Ctrl-C prints the results so far, and exits with 1."""

    def interrupted(*_):
        yield results("pass")[0], []
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "put_all", interrupted)
    assert script.main(["http://mac"], PROMISED) == 1
    said = capsys.readouterr()
    assert said.err == "interrupted\n"
    assert "1 passed, 0 failed" in said.out


def test_ports_of_a_host():
    """A port that listens takes a connection, another doesn't; bytes sent to nobody bring no answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert Asker("127.0.0.1", 1).takes(server.getsockname()[1], 1.0) is True
    asker = Asker("127.0.0.1", free_port())
    assert asker.takes(asker.port, 1.0) is False
    with pytest.raises(NoAnswer, match="nothing listens"):
        asker.raw("GET / HTTP/1.1\r\nHost: x")


async def test_nothing_to_ask():
    """Where everything is open, no page is a stranger, or a limit isn't known, that is said."""
    told = replace(PROMISED, closed=(), stranger="", max_body=0)
    made = session(1, told=told)
    for function in (table.closed, guards.foreign_origin, table.too_large):
        assert (await ask(made, function)).outcome == "skip"


# --- access rules -----------------------------------------------------------------------------------------------------


def ruled_by(proxy, *rules):
    """Apply access rules; return what a proxy with them promises."""
    proxy.gateway.askers = Askers(Access.of(rules, proxy.gateway.policy), lambda *_, **__: None)
    return promised(Settings(access=rules))


async def test_device_that_no_rule_names(before_ollama):
    """A device that no access rule names finds out that it is refused, as it should be, and asks nothing else."""
    _, proxy = await before_ollama()
    told = ruled_by(proxy, RuleSpec(("tag:a",), ("*",)))
    found = await everything(proxy.port, told=told)
    assert failed(found) == set()
    assert found["Connection: from the proxy"].detail == "it refuses this device, as it should: no access rule names it"
    assert found["OpenAI API: chat"].detail == "not asked: no access rule names this device"


async def test_refusal_without_rules_is_no_promise(before_ollama):
    """A refusal by access rules that the settings don't have is a failure."""
    _, proxy = await before_ollama()
    ruled_by(proxy, RuleSpec(("tag:a",), ("*",)))
    found = await everything(proxy.port)
    assert "from the proxy" in failed(found)


async def test_device_with_some_models(before_ollama):
    """A device asks one of the models that its rule allows, and rows that are open for some devices are no failure."""
    _, proxy = await before_ollama()
    told = ruled_by(proxy, RuleSpec(("127.0.0.1",), ("thinker",), ("GET /api/ps",)))
    found = await everything(proxy.port, told=told)
    assert failed(found) == set()
    assert "thinker:latest" in found["Connection: model to ask"].detail
    assert found["OpenAI API: models"].detail == "1: thinker:latest"


SOME = RuleSpec(("127.0.0.1",), ("thinker",), ("GET /api/ps", "HEAD /api/tags"))
OTHERS = RuleSpec(("tag:a",), ("*",), ("POST /api/chat", "HEAD /"))


async def test_rule_of_this_device(before_ollama):
    """The rule that counts for a device is checked: what the device sees, may use and may not; others are named."""
    ollama, proxy = await before_ollama()
    told = ruled_by(proxy, SOME, OTHERS)
    made = session(proxy.port, told=told, direct=Asker("127.0.0.1", ollama.port))
    found = await put(made, *questions_of_proxy(told))
    assert {name for name, result in found.items() if result.outcome == "fail"} == set()
    assert found["access rule 1"].detail == (
        "counts for this device, which sees 1 model, may use thinker:latest, is refused plain:latest (403), "
        "may ask HEAD /api/tags, GET /api/ps, is refused HEAD /, POST /api/chat"
    )
    assert found["access rule 2"].outcome == "skip"
    assert "on one of them" in found["access rule 2"].detail


async def test_rule_that_allows_every_model(before_ollama):
    """A rule that allows every model refuses none, so a device can't see which of two such rules counts for it."""
    _, proxy = await before_ollama()
    told = ruled_by(proxy, RuleSpec(("127.0.0.1",), ("*",)), RuleSpec(("tag:a",), ("thinker",)))
    found = await put(session(proxy.port, told=told), *rules.rule_questions(told))
    assert [result.outcome for result in found.values()] == ["pass", "skip"]
    assert found["access rule 1"].detail.endswith("may use every model")
    told = ruled_by(proxy, RuleSpec(("127.0.0.1",), ("*",)), RuleSpec(("tag:a",), ("*",)))
    found = await put(session(proxy.port, told=told), *rules.rule_questions(told))
    assert {result.detail.partition(",")[0] for result in found.values()} == {"rules 1"}


def judging(proxy, ollama, told):
    """Return a session on the Mac, where the running proxy says what its rules say."""
    made = session(proxy.port, told=told, direct=Asker("127.0.0.1", ollama.port))
    made.judge = lambda names: [each._asdict() for each in proxy.gateway.askers.access.judged(names)]
    return made


LIMITED = RuleSpec(("tag:b",), ("tiny", "tools:*"), ("POST /api/embed",), 2)
NO_MODEL = RuleSpec(("tag:c",), ("nothing",))
LATE = RuleSpec(("tag:b",), ("thinker",))


@pytest.mark.parametrize(
    ("given", "outcome", "detail"),
    [
        pytest.param(
            (SOME, LIMITED),
            "pass",
            "allows 2 of 8 models (tiny:latest, tools:latest), opens POST /api/embed, at most 2 at once; counts for ",
            id="some_models",
        ),
        pytest.param((SOME, OTHERS._replace(also=())), "pass", "allows 8 of 8 models (", id="every_model"),
        pytest.param((SOME, NO_MODEL), "pass", "allows 0 of 8 models; counts for other devices", id="no_model"),
        pytest.param(
            (LIMITED, OTHERS._replace(who=("127.0.0.1",)), OTHERS),
            "pass",
            "allows 2 of 8 models (tiny:latest, tools:latest), opens POST /api/embed, at most 2 at once; counts for ",
            id="first_of_three",
        ),
    ],
)
async def test_other_rules_are_judged(before_ollama, given, outcome, detail):
    """On the Mac, the running proxy says what the rules of other devices allow. It isn't called tried."""
    ollama, proxy = await before_ollama()
    told = ruled_by(proxy, *given)
    number = given.index(LIMITED) + 1 if LIMITED in given else 2
    found = (await put(judging(proxy, ollama, told), *rules.rule_questions(told)))[f"access rule {number}"]
    assert found.outcome == outcome
    assert found.detail.startswith(f"judged by the running proxy, and not tried: {detail}")


async def test_rule_that_never_counts_is_not_judged(before_ollama):
    """A rule whose askers all have an earlier rule is called out of reach, whatever it allows."""
    ollama, proxy = await before_ollama()
    told = ruled_by(proxy, SOME, LIMITED, LATE)
    found = (await put(judging(proxy, ollama, told), *rules.rule_questions(told)))["access rule 3"]
    assert (found.outcome, found.detail) == ("skip", "never counts: rule 2 comes first and names all of its askers")


async def test_rule_that_never_counts_hides_no_other(before_ollama):
    """A rule out of reach that allows every model leaves no doubt which rule counts for this device."""
    _, proxy = await before_ollama()
    every = RuleSpec(("127.0.0.1",), ("*",))
    told = ruled_by(proxy, every, every)
    found = await put(session(proxy.port, told=told), *rules.rule_questions(told))
    assert [result.outcome for result in found.values()] == ["pass", "skip"]


async def test_rules_are_judged_for_a_refused_mac(before_ollama):
    """Where no rule names the Mac, nothing can be tried there, and every rule is judged."""
    ollama, proxy = await before_ollama()
    told = ruled_by(proxy, LIMITED, NO_MODEL)
    made = judging(proxy, ollama, told)
    made.ruled_out = True
    found = await put(made, *rules.rule_questions(told))
    assert [result.outcome for result in found.values()] == ["pass", "pass"]
    assert found["access rule 2"].detail.endswith("0 of 8 models; not asked: no access rule names this device")


@pytest.mark.parametrize(
    ("applied", "why"),
    [
        pytest.param((SOME, LIMITED._replace(models=("tiny",))), "disagree about tools:latest", id="fewer_models"),
        pytest.param((SOME, LIMITED._replace(models=("*",))), "disagree about jinja:latest", id="more_models"),
        pytest.param((SOME, LIMITED._replace(also=())), "opens nothing by it", id="row_closed"),
        pytest.param((SOME, LIMITED._replace(also=OTHERS.also)), "opens HEAD /, POST /api/chat by it", id="other_rows"),
        pytest.param((SOME,), "doesn't have this rule", id="no_such_rule"),
    ],
)
async def test_other_rules_of_a_running_proxy(before_ollama, applied, why):
    """A running proxy that has other rules than the settings fails the questions about them, and is to be restarted."""
    ollama, proxy = await before_ollama()
    ruled_by(proxy, *applied)
    told = promised(Settings(access=(SOME, LIMITED)))
    found = (await put(judging(proxy, ollama, told), *rules.rule_questions(told)))["access rule 2"]
    assert (found.outcome, found.hint) == ("fail", "remote-ollama-proxy restart proxy")
    assert why in found.detail


@pytest.mark.parametrize(
    ("applied", "why"),
    [
        pytest.param(SOME._replace(models=("thinker", "toolcaller")), "lists toolcaller:latest", id="sees_more"),
        pytest.param(SOME._replace(models=("plain",)), "lists plain:latest", id="sees_others"),
        pytest.param(SOME._replace(models=("nothing",)), "leaves out thinker:latest", id="sees_less"),
        pytest.param(SOME._replace(also=("GET /api/ps",)), "does not reach Ollama", id="row_closed"),
        pytest.param(SOME._replace(also=(*SOME.also, "POST /api/chat")), "doesn't open it", id="row_open"),
    ],
)
async def test_broken_rule_is_found(before_ollama, applied, why):
    """A proxy that applies another rule than the settings have fails the question about that rule."""
    ollama, proxy = await before_ollama()
    ruled_by(proxy, applied, OTHERS)
    told = promised(Settings(access=(SOME, OTHERS)))
    made = session(proxy.port, told=told, direct=Asker("127.0.0.1", ollama.port))
    found = (await put(made, *rules.rule_questions(told)))["access rule 1"]
    assert found.outcome == "fail"
    assert why in found.detail


async def test_model_that_is_let_through_is_found(before_ollama, monkeypatch):
    """A model that a rule doesn't allow, and that gets through on one path only, fails the question about the rule."""
    ollama, proxy = await before_ollama()
    told = ruled_by(proxy, SOME, OTHERS)
    monkeypatch.setattr(proxy.gateway.room, "passes", lambda visit: visit.route.path == "/v1/messages")
    made = session(proxy.port, told=told, direct=Asker("127.0.0.1", ollama.port))
    found = (await put(made, *rules.rule_questions(told)))["access rule 1"]
    assert found.outcome == "fail"
    assert "isn't refused: `POST /v1/messages`" in found.detail


def test_patterns_are_compared_as_the_proxy_does():
    """The one file compares a model's listed name with a rule's patterns as the proxy itself does."""
    names = ("qwen3:4b", "Qwen3:4B", "qwen3:latest", "someone/tiny:v1", "hf.co/a/b:Q4", "library/x:1", "gemma3:4b-it")
    for pattern in ("qwen3:*", "qwen*", "QWEN3", "someone/*", "hf.co/*", "*", "x:1", "gemma3:4b*", "*/tiny:v1"):
        told = promised(Settings(access=(RuleSpec(("*",), (pattern,)),)))
        made = [rules.allows(told.rules[0], name) for name in names]
        assert made == [ModelPattern(pattern).matches(name) for name in names], pattern
