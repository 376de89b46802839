"""`python -m bench`: measure, print the results, and write them to files."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from datetime import datetime
from typing import TYPE_CHECKING

import uvloop

from bench import machine
from bench.contenders import PEERS
from bench.parts import bodies, bulk, features, growth, memory, requests, rules, streaming, watched
from bench.reporting import report
from bench.stage import FULL, SCALES, staged
from proxy.terminal.console import complain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.contenders import Contender
    from bench.stage import Stage

_USUAL = tuple(peer.name for peer in PEERS if peer.name != "litellm")


def chosen(names: str) -> list[Contender]:
    """Return the peers that `names` asks for, or by default all the usual ones that are installed."""
    by_name = {peer.name: peer for peer in PEERS}
    wanted = names.replace(",", " ").split()
    unknown = [name for name in wanted if name not in by_name and name != "all"]
    if unknown:
        raise SystemExit(f"error: no such peer: {', '.join(unknown)}\nhint: PEERS takes {', '.join(by_name)} and all")
    everyone = not wanted or "all" in wanted
    peers = [by_name[name] for name in ([*_USUAL, *(("litellm",) if wanted else ())] if everyone else wanted)]
    missing = [peer for peer in peers if peer.path is None]
    for peer in missing:
        said = "is left out" if everyone else "is not installed"
        sys.stderr.write(f"{peer.name} {said}: no {peer.program}\nhint: {peer.how}\n")
    if missing and not everyone:
        raise SystemExit(3)
    return [peer for peer in peers if peer.path is not None]


PARTS = {
    "requests": requests.measure,
    "streams": streaming.measure,
    "moving": streaming.moving,
    "bulk": bulk.measure,
    "bodies": bodies.measure,
    "memory": memory.measure,
    "features": features.measure,
    "rules": rules.measure,
    "watched": watched.measure,
    "connections": growth.connections,
    "start": growth.starts,
}
"""The parts, in the order in which they are measured."""


async def measure(stage: Stage, parts: Sequence[str]) -> None:
    """Measure these parts. A signal ends the run in order, so no process is left running."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    for name, part in PARTS.items():
        if name in parts:
            await part(stage)
    stage.say("done")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the chosen parts. Exit codes: 0 measured, whatever the result; 1 a part failed; 3 a named peer is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure the proxy and others that do the same work, in one run.",
        epilog="example: make bench QUICK=1 PEERS='haproxy-tuned caddy'",
    )
    parser.add_argument("--peers", default="", help=f"of {', '.join(peer.name for peer in PEERS)}; default: {_USUAL}")
    parser.add_argument("--scale", choices=SCALES, default=FULL.name, help="how much is measured")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part; may be given more than once")
    parser.add_argument(
        "--write", action="store_true", help="write the results to files, as a full run of all parts does"
    )
    parser.add_argument("--own-load", action="store_true", help="don't use wrk even if it is installed")
    args = parser.parse_args(argv)
    scale = SCALES[args.scale]
    peers = chosen(args.peers)
    load_average = os.getloadavg()[0]
    try:
        with staged(scale, peers, wrk=not args.own_load) as stage:
            stage.figures.about = machine.about(stage, datetime.now().astimezone().date(), load_average)
            uvloop.run(measure(stage, args.part or [*PARTS]))
            figures = stage.figures
    except (asyncio.CancelledError, KeyboardInterrupt):
        return 130
    except RuntimeError as error:
        complain([str(error)], "make bench PEERS='…' leaves others out, make bench ONLY='…' measures less")
        return 1
    if args.write or (scale is FULL and not args.part):
        report.write(figures)
    report.print_results(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
