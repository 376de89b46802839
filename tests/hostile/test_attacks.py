"""Whatever a hostile client writes, Ollama sees allowed requests only, and those whole: tests/attacks/, over sockets.

Each attack is sent whole and byte by byte, to the gateway in this process and to the program. After each the proxy
still answers, has one access line for each request, and nothing to say in its diagnostics.
"""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from proxy.exchange.client.requests import RequestParser
from proxy.exchange.upstream import upstream
from proxy.policy.gate import Policy, decide
from proxy.policy.routes import OPT_IN, ROUTES, Route
from tests.support.examples import some
from tests.support.hostile.attack_corpus import load
from tests.support.hostile.attacker import (
    CANARY,
    MARK,
    audit_differences,
    breaches,
    differences,
    misses,
    other_reading,
    strike,
)
from tests.support.hostile.strict_upstream import Recorder
from tests.support.ollama_routes import ollama_routes
from tests.support.proxy_process import Process
from tests.support.raw_http import LIMITS, Proxy, Wire, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.support.hostile.attack_corpus import Attack

ATTACKS = load()
BY_HAND = [attack for attack in ATTACKS if not attack.generated]
FAMILIES = sorted({attack.family for attack in ATTACKS})

# The limits by which bombs are sized. The program gets the same.
MAX_BODY = 65536

# What diagnostics may say about a client.
_SAYABLE = {"tls_on_plain_port"}


@pytest.fixture
async def recorder() -> AsyncIterator[Recorder]:
    """Give an upstream that writes down what it gets."""
    server = Recorder()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def allow() -> tuple[str, ...]:
    """Give the opt-in rows that are open."""
    return ()


@pytest.fixture
async def besieged(recorder: Recorder, allow: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Proxy]:
    """Give the whole gateway, before `recorder`, which needs no time of grace as Ollama does."""
    monkeypatch.setattr(upstream, "GRACE", 0.0)
    proxy = Proxy(recorder.port, allow=allow, limits=replace(LIMITS, max_body=MAX_BODY))
    await proxy.start()
    raised: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
    yield proxy
    await proxy.stop()
    assert not raised


async def settled(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds: nearly always after a few turns of the loop, so without a timer."""
    for _ in range(100):
        if condition():
            return
        await asyncio.sleep(0)
    await until(condition)


async def lives(port: int) -> None:
    """Ask honestly, on a connection of its own."""
    wire = await Wire.open(port)
    await wire.send(CANARY)
    assert (await wire.answer()).status == 200
    wire.close()


async def judge(proxy: Proxy, recorder: Recorder, attack: Attack, *, apart: bool) -> list[str]:
    """Send an attack, then an honest request; return all that is not as it must be."""
    record = recorder.restart()
    proxy.audit.clear()
    expected = attack.apart if apart else attack.whole
    observed = await strike(proxy.port, attack, apart=apart)
    await settled(lambda: not proxy.clients.connections)
    await lives(proxy.port)
    await settled(lambda: not proxy.clients.connections)
    proxy.gateway.close()
    await settled(lambda: not recorder.open)
    lines = [line for line in proxy.audit if line.get("user_agent") != MARK]
    notes, proxy.notes[:] = [note for note in proxy.notes if note["event"] not in _SAYABLE], []
    return [
        *differences(expected, observed),
        *audit_differences(expected, lines),
        *breaches(attack, expected, record, authority=f"127.0.0.1:{recorder.port}"),
        *(f"diagnostics {note}" for note in notes),
    ]


@pytest.mark.parametrize("attack", [pytest.param(attack, id=attack.name) for attack in BY_HAND])
async def test_attack(besieged: Proxy, recorder: Recorder, attack: Attack) -> None:
    """Sent whole, an attack has its outcome and no other."""
    assert await judge(besieged, recorder, attack, apart=False) == []
    assert other_reading(recorder) == []


@pytest.mark.parametrize("family", FAMILIES)
async def test_attack_octet_by_octet(besieged: Proxy, recorder: Recorder, family: str) -> None:
    """Where reads begin and end opens no way past, and closes none that is in order."""
    family_of = some([attack for attack in ATTACKS if attack.family == family])
    found = {attack.name: await judge(besieged, recorder, attack, apart=True) for attack in family_of}
    assert {name: faults for name, faults in found.items() if faults} == {}
    assert other_reading(recorder) == []


async def test_every_attack_on_the_program(tmp_path: Path, recorder: Recorder) -> None:
    """The program in a process of its own withstands all of them, one after the other, and stops as if nothing were."""
    process = await Process.start(tmp_path, recorder.port, PROXY_MAX_BODY=MAX_BODY)
    found: dict[str, list[str]] = {}
    try:
        await process.says("listening")
        for attack in ATTACKS:
            record = recorder.restart()
            observed = await strike(process.port, attack)
            await lives(process.port)
            found[attack.name] = [
                *differences(attack.whole, observed),
                *breaches(attack, attack.whole, record, authority=f"127.0.0.1:{recorder.port}"),
            ]
        process.signal(signal.SIGTERM)
        code, _ = await process.exit()
    finally:
        await process.kill()
    lines = iter(process.lines())
    for attack in ATTACKS:
        canaries = 2 if attack.whole.then == "open" else 1
        own = []
        while canaries:
            line = next(lines)
            if line.get("user_agent") == MARK:
                canaries -= 1
            else:
                own.append(line)
        found[attack.name] += audit_differences(attack.whole, own)
    assert {name: faults for name, faults in found.items() if faults} == {}
    assert code == 0
    assert [line for line in process.said if "Traceback" in line or "internal" in line or "error" in line] == []


@pytest.mark.parametrize("allow", [tuple(OPT_IN)], ids=["all"])
async def test_with_every_row_open(besieged: Proxy, recorder: Recorder) -> None:
    """With every row open that `allow` opens, what reaches Ollama is a row: nothing else, management least of all."""
    names = {row.name for row in ROUTES}
    for attack in some(ATTACKS):
        record = recorder.restart()
        await strike(besieged.port, attack)
        await settled(lambda: not besieged.clients.connections)
        assert record.faults == [], attack.name
        for request in record.requests:
            readings = ollama_routes(request.method, request.target)
            assert readings, attack.name
            assert readings <= names, attack.name
    assert {line["route"] for line in besieged.audit if line["verdict"] == "allowed"} <= names


@pytest.mark.parametrize("family", FAMILIES)
async def test_every_boundary(family: str) -> None:
    """Cut in two at any byte, an attack admits no other whole request than it does in one read, or byte by byte."""
    policy = Policy.of(max_body=MAX_BODY)
    loop = asyncio.get_running_loop()
    for attack in some([each for each in BY_HAND if each.family == family and len(each.octets) <= 1000]):
        whole, apart = (
            [(each.method, each.target, each.content) for each in outcome.reaches]
            for outcome in (attack.whole, attack.apart)
        )
        for cut in range(1, len(attack.octets)):
            parser = RequestParser(loop, LIMITS.max_head)
            parser.feed(attack.octets[:cut])
            if parser.fault is None:
                parser.feed(attack.octets[cut:])
            admitted = whole_and_admitted(parser, policy)
            assert admitted in (whole[: len(admitted)], apart[: len(admitted)]), (attack.name, cut)


def whole_and_admitted(parser: RequestParser, policy: Policy) -> list[tuple[str, str, bytes]]:
    """Return the requests that would be forwarded whole, up to the one behind which the connection ends."""
    found = []
    while parser.queue:
        request, content = parser.take()
        verdict = decide(request.head, policy)
        if isinstance(verdict, Route) and isinstance(content, bytes):
            found.append((request.head.method, request.head.target, content))
        if not request.persistent or getattr(verdict, "closes", False):
            break
    return found


# --- the judges themselves --------------------------------------------------------------------------------------------


async def test_without_a_proxy_every_attack_is_seen(recorder: Recorder) -> None:
    """Sent to the upstream itself, every attack that would be refused shows: the judge would miss none."""
    missed = []
    for attack in some(ATTACKS):
        record = recorder.restart()
        wire = await Wire.open(recorder.port)
        await wire.send(attack.octets)
        wire.half_close()
        await wire.read_until_closed()
        wire.close()
        refused = [answer for answer in attack.whole.answers if answer.status >= 400]
        if refused and not misses(attack.whole, record) and not record.unfinished:
            missed.append(attack.name)
    assert missed == []


def test_attacks_differ() -> None:
    """No two attacks have the same name or the same bytes, each says why, and those by hand are many."""
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)
    assert len({attack.octets for attack in ATTACKS}) == len(ATTACKS)
    assert all(attack.why for attack in ATTACKS)
    assert len(BY_HAND) >= 900


def test_what_may_reach_is_on_the_table() -> None:
    """No entry lets through what isn't a row that is open without any setting."""
    table = {row.name for row in ROUTES if not row.opt_in}
    for attack in ATTACKS:
        for each in (*attack.whole.reaches, *attack.apart.reaches, *attack.elsewhere):
            assert ollama_routes(each.method, each.target) <= table, attack.name
        for row in {attack.whole.unfinished, attack.apart.unfinished} - {None}:
            assert row in table, attack.name
