"""A hostile client: sends the bytes of an attack over a socket, and returns how its outcome differs from the entry.

The judge is the upstream: what a strict reader there saw decides, not the client's response.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from proxy.exchange.message.forwarding import CREDENTIALS, HOP_BY_HOP
from proxy.policy.replies import CONTINUE
from proxy.reading.via import PSEUDONYM
from tests.support.hostile.strict_upstream import read_by_h11
from tests.support.raw_http import Wire

if TYPE_CHECKING:
    from tests.support.hostile.attack_corpus import Attack, Outcome
    from tests.support.hostile.strict_upstream import Record, Recorder

MARK = "canary"
CANARY = b"GET /api/tags HTTP/1.1\r\nHost: mac\r\nUser-Agent: %b\r\n\r\n" % MARK.encode()
"""The honest request behind each attack: served on its connection if that is in step, and by the proxy if it lives."""

# Of bytes sent one by one, so many at the beginning and the end; what is between goes in pieces.
_SINGLY = 400
_PIECE = 8192

# Fields that no request may carry to Ollama. The recorder itself checks the framing.
_NEVER = (HOP_BY_HOP | CREDENTIALS | {b"expect", b"origin", b"referer", b"forwarded", b"x-real-ip"}) - {
    b"transfer-encoding"
}


@dataclass
class Observed:
    """What came of an attack, as the client sees it."""

    statuses: list[int] = field(default_factory=list)
    then: str = ""


def pieces(octets: bytes) -> list[bytes]:
    """Return `octets` one by one; of many, those at both ends."""
    if len(octets) <= 2 * _SINGLY:
        return [octets[spot : spot + 1] for spot in range(len(octets))]
    between = octets[_SINGLY:-_SINGLY]
    return [
        *pieces(octets[:_SINGLY]),
        *(between[spot : spot + _PIECE] for spot in range(0, len(between), _PIECE)),
        *pieces(octets[-_SINGLY:]),
    ]


async def strike(port: int, attack: Attack, *, apart: bool = False) -> Observed:
    """Send an attack to `port`, whole or byte by byte; read what is answered, and how the connection ends."""
    wire = await Wire.open(port)
    observed = Observed()
    expected = attack.apart if apart else attack.whole
    try:
        with suppress(ConnectionError):
            for piece in pieces(attack.octets) if apart else [attack.octets]:
                await wire.send(piece)
                if apart:
                    await asyncio.sleep(0)
        await _read(wire, expected, observed)
    finally:
        wire.close()
    return observed


async def _read(wire: Wire, expected: Outcome, observed: Observed) -> None:
    try:
        for due in expected.answers:
            await _answer(wire, observed, to_head=due.to_head)
        if expected.then == "open":
            await wire.send(CANARY)
            await _answer(wire, observed)
            observed.then = "open" if observed.statuses.pop() == 200 else "refuses the next request"
        if expected.then != "closed":
            wire.half_close()
        rest = (await wire.read_until_closed()).removeprefix(CONTINUE)
        observed.then = observed.then or ("sends more" if rest else expected.then)
    except asyncio.IncompleteReadError as error:
        observed.then = "cuts an answer" if error.partial else "closed"
    except ConnectionError:
        observed.then = "resets"
    except TimeoutError:
        observed.then = "hangs"


async def _answer(wire: Wire, observed: Observed, *, to_head: bool = False) -> None:
    """Read one final answer."""
    while (answer := await wire.answer(to_head=to_head)).status < 200:
        pass
    observed.statuses.append(answer.status)
    if not answer.whole:
        observed.then = "cuts an answer"


def differences(expected: Outcome, observed: Observed) -> list[str]:
    """Say in what the client saw something else than was due."""
    due = [answer.status for answer in expected.answers]
    found = [] if observed.statuses == due else [f"answers {observed.statuses}, not {due}"]
    return found if observed.then == expected.then else [*found, f"then {observed.then}, not {expected.then}"]


def audit_differences(expected: Outcome, lines: list[dict[str, Any]]) -> list[str]:
    """Say in what the access lines of an attack aren't one for each request, with its reason."""
    due: list[tuple[int | None, str | None]] = [(each.status, each.reason) for each in expected.answers]
    reported = [(line.get("status"), line.get("reason")) for line in lines]
    if expected.then == "waits":  # the request that never became whole has a line too
        last = reported.pop() if reported else None
        if last is None or lines[-1]["ended"] == "complete":
            return [f"no line about the client that left, but {lines}"]
    return [] if reported == due else [f"access lines {reported}, not {due}"]


def misses(expected: Outcome, record: Record) -> list[str]:
    """Say in what the requests that reached Ollama aren't those that are due, whatever their fields."""
    found = [f"no strict reader takes {fault}" for fault in record.faults]
    due = [(each.method, each.target, each.content) for each in expected.reaches]
    came = [(each.method, each.target, each.content) for each in record.requests if each.values("user-agent") != [MARK]]
    return found if came == due else [*found, f"Ollama saw {_short(came)}, not {_short(due)}"]


def breaches(attack: Attack, expected: Outcome, record: Record, *, authority: str) -> list[str]:
    """Say what reached Ollama that mustn't have."""
    found = misses(expected, record)
    begun = f"{expected.unfinished} HTTP/1.1\r\n".encode() if expected.unfinished else b"\0"
    found += [f"Ollama saw a beginning {octets[:80]!r}" for octets in record.unfinished if not octets.startswith(begun)]
    for request in record.requests:
        if request.values("user-agent") == [MARK]:
            continue
        names = {name.encode("latin-1") for name, _ in request.fields}
        found += [f"field {name.decode()}" for name in sorted(names & _NEVER)]
        found += [f"field {name}" for name in attack.absent if request.values(name)]
        if request.values("host") != [authority]:
            found.append(f"Host {request.values('host')}")
        if not any(PSEUDONYM.decode() in via for via in request.values("via")):
            found.append("no Via of ours")
        if request.trailers or request.values("transfer-encoding") not in ([], ["chunked"]):
            found.append(f"framing {request.values('transfer-encoding')} with trailers {request.trailers}")
        lines = {f"{name}: {value}" for name, value in request.fields}
        found += [f"no field `{line}`" for line in attack.present if line not in lines]
    return found


def other_reading(recorder: Recorder) -> list[str]:
    """Say where another strict parser reads other requests from what the upstream got."""
    found = []
    for connection in recorder.connections:
        ours = [(each.method, each.target, each.content) for each in connection.requests]
        if (theirs := read_by_h11(bytes(connection.octets))) != ours:
            found.append(f"h11 reads {_short(theirs)}, not {_short(ours)}")
    return found


def _short(requests: list[tuple[str, str, bytes]]) -> list[str]:
    return [f"{method} {target[:60]} {content[:60]!r}" for method, target, content in requests[:6]]
