"""Who lets what through: every attack against every proxy on this machine, judged by what a strict upstream saw.

`make compare-security` prints the tables and writes them into docs/security-comparison.md, between the marks there.
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.peers import report
from tests.peers.finding import Finding, Kind, let_through, reached
from tests.peers.peers import PEERS, Running
from tests.support.hostile.attack_corpus import load
from tests.support.hostile.attacker import CANARY
from tests.support.hostile.strict_upstream import Recorder

if TYPE_CHECKING:
    from tests.peers.peers import Peer
    from tests.support.hostile.attack_corpus import Attack

# Seconds: in which an answer must have begun, in which others must follow, and in which one too many shows.
PATIENCE = 1.5
QUIET = 0.25
SETTLED = 0.06


async def talk(port: int, octets: bytes, answers: int) -> tuple[list[int], bool]:
    """Send bytes; return the statuses that came back, and whether anything at all did, be it only the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
    said, ended = b"", False
    with suppress(TimeoutError, ConnectionError):
        writer.write(octets)
        patience = PATIENCE if answers else QUIET
        while not ended:
            count = len(statuses_in(said))
            wait = patience if not count else QUIET if count < answers else SETTLED
            data = await asyncio.wait_for(reader.read(65536), wait)
            ended = not data
            said += data
    ended = ended or reader.at_eof() or reader.exception() is not None
    writer.transport.abort()
    return statuses_in(said), ended or bool(said)


def statuses_in(said: bytes) -> list[int]:
    """Return the final statuses in what a server said."""
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] ([2-5][0-9][0-9])", said)]


async def probe(running: Running, recorder: Recorder, attack: Attack) -> Finding:
    """Send one attack whole, then an honest request on another connection."""
    record = recorder.restart()
    statuses, heard = await talk(running.port, attack.octets, len(attack.whole.answers))
    alive, _ = await talk(running.port, CANARY, 1)
    kinds = let_through(attack, record)
    stricter = not kinds and not reached(attack, record) and bool(statuses) and statuses[0] >= 400
    broke, traceback = running.complains()
    if broke or alive != [200] or 500 in statuses:
        kinds.append(Kind.BROKE)
    if traceback:
        kinds.append(Kind.TRACEBACK)
    if attack.whole.answers and not heard:
        kinds.append(Kind.WAITED)
    return Finding(kinds, statuses, stricter)


async def besiege(peer: Peer, attacks: list[Attack], folder: Path) -> dict[str, Finding]:
    """Start a proxy before an upstream of its own, and send it every attack."""
    recorder = Recorder()
    await recorder.start()
    running = Running(peer, folder, recorder.port)
    found = {}
    try:
        await running.ready()
        for attack in attacks:
            found[attack.name] = await probe(running, recorder, attack)
            if running.process.poll() is not None:
                running = Running(peer, folder, recorder.port)
                await running.ready()
    finally:
        running.stop()
        await recorder.stop()
    return found


async def main() -> int:
    """Run them all, side by side; 1 if this proxy let anything through or broke, or one wouldn't start."""
    attacks = load()
    peers = [peer for peer in PEERS if peer.found]
    for peer in PEERS:
        if not peer.found:
            print(f"{peer.name} is not on this machine, and left out\nhint: {peer.install}", file=sys.stderr)
    print(f"{len(attacks)} attacks on {len(peers)} proxies; takes two minutes", file=sys.stderr)
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / str(number) for number in range(len(peers))]
        for folder in (Path(name), *folders):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o755)
        try:
            results = await asyncio.gather(*map(besiege, peers, [attacks] * len(peers), folders))
        except RuntimeError as error:
            print(f"error: {error}\nhint: read its configuration in tests/peers/", file=sys.stderr)
            return 1
    findings = {peer.name: result for peer, result in zip(peers, results, strict=True)}
    text = report.tables(attacks, peers, findings)
    print(text)
    report.write(text)
    return int(any(finding.kinds for finding in findings["ours"].values()))


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
