"""Soak the proxy for a while, show how it did, and report what failed. Exit code 1 if anything failed."""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import sys
import tempfile
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

from bench.soak.callers import Callers
from bench.soak.ledger import Ledger
from bench.soak.picture import Sample, growth, picture
from bench.soak.stage import PATIENCE, Stage
from proxy.exchange.upstream.pool import MAX_IDLE

WORKERS = 12
SAMPLE_EACH = 1.0  # seconds; less in a short run
MEMORY_GROWTH = 8.0
"""MiB by which memory may be higher at the end than after the warm-up. The allocator grows in steps of this size.

A leak of only 100 bytes a request would exceed it in ten minutes.
"""
FILES_GROWTH = 2 * WORKERS
MEMORY_MOST = 256.0
"""MiB at which the run is stopped."""


def _is_busy(live: dict[str, Any]) -> bool:
    """Return whether a proxy's state shows requests."""
    return bool(live.get("exchanges") or live.get("held")) or any(
        each["waiting"] + each["sent"] for each in live["models"]
    )


class Soak:
    """One run."""

    def __init__(self, folder: Path, seconds: float, seed: int) -> None:
        self.random = Random(seed)
        self.seconds = seconds
        self.stage = Stage(folder)
        self.ledger = Ledger(self.stage.access_log)
        self.samples: list[Sample] = []
        self.faults: list[str] = []
        self.room: dict[str, int] = {}  # the proxy's counters of those who waited

    async def run(self) -> None:
        """Run all of it; `faults` lists what failed."""
        await self.stage.start()
        try:
            files_before = self.stage.proxy.descriptors()
            callers = Callers(self.stage, self.ledger, self.random)
            await callers.warm_up()
            await self._traffic(callers)
            await callers.close()
            self.faults += callers.faults
            await self._settle(files_before)
            await self._judge_room()
            gone = self.stage.proxy.exit_code is not None
            code = await self.stage.proxy.end(signal.SIGTERM)
            if code and not gone:
                self.faults.append(f"SIGTERM ended it with exit code {code}")
            self.ledger.read()
        finally:
            await self.stage.close()
        self.faults += [*self.ledger.faults(), *self._flatness(), *self._diagnostics()]

    async def _traffic(self, callers: Callers) -> None:
        """Send requests and make trouble until the time is up, or until it makes no sense to continue."""
        self.stage.begun = monotonic()
        trouble = asyncio.create_task(self.stage.trouble(self.random, min(8.0, self.seconds / 4)))
        tasks = [trouble, *(asyncio.create_task(callers.work()) for _ in range(WORKERS))]
        watching = asyncio.create_task(self._watch(callers))
        try:
            await asyncio.wait([*tasks, watching], timeout=self.seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*tasks, watching):  # clients with a running request leave
                task.cancel()
            ended = await asyncio.gather(*tasks, watching, return_exceptions=True)
        self.faults += [f"the soak itself failed: {each!r}" for each in ended if isinstance(each, Exception)]

    async def _watch(self, callers: Callers) -> None:
        """Take samples; end the run if the proxy is gone or takes too much memory."""
        pause, proxy = min(SAMPLE_EACH, self.seconds / 20), self.stage.proxy
        begun, made = monotonic(), 0
        while True:
            await asyncio.sleep(pause)
            if proxy.exit_code is not None:
                break
            self.ledger.read()
            times, callers.times = callers.times or [0.0], []
            now, total = monotonic(), self.ledger.kinds.total()
            sample = Sample(
                at=now - self.stage.begun,
                memory=proxy.memory(),
                descriptors=proxy.descriptors(),
                requests=(total - made) / (now - begun),
                median=statistics.median(times),
                slowest=sorted(times)[int(len(times) * 0.99)],
            )
            self.samples.append(sample)
            begun, made = now, total
            if sample.memory > MEMORY_MOST:
                self.faults.append(f"it took {sample.memory:.0f} MiB, and was ended")
                return
        self.faults.append(f"the proxy ended by itself, with exit code {proxy.exit_code}")

    async def _settle(self, files_before: int) -> None:
        """Wait until every line is written, and every file is closed except idle connections to Ollama."""
        most = files_before + MAX_IDLE
        deadline = monotonic() + PATIENCE
        while monotonic() < deadline and self.stage.proxy.exit_code is None:
            self.ledger.read()
            if self.ledger.complete and self.stage.proxy.descriptors() <= most:
                return
            await asyncio.sleep(0.05)
        if self.stage.proxy.exit_code is None and (files := self.stage.proxy.descriptors()) > most:
            self.faults.append(f"{files} files are open when all clients are gone, instead of {most} at most")

    async def _judge_room(self) -> None:
        """Note what happened to those who waited, and whether anyone is still there.

        The place of a request whose client has left is kept for a moment.
        """
        deadline = monotonic() + PATIENCE
        while _is_busy(live := await self.stage.live()) and monotonic() < deadline:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)
        self.room = live.get("counters", {})
        if _is_busy(live):
            self.faults.append(f"requests are left when all clients are gone: {live}")

    def _flatness(self) -> list[str]:
        found = []
        memory = growth([sample.memory for sample in self.samples])
        files = growth([float(sample.descriptors) for sample in self.samples])
        if memory is not None and memory > MEMORY_GROWTH:
            found.append(f"memory grew by {memory:.1f} MiB after the warm-up; {MEMORY_GROWTH:g} are allowed")
        if files is not None and files > FILES_GROWTH:
            found.append(f"open files grew by {files:.0f} after the warm-up; {FILES_GROWTH} are allowed")
        return found

    def _diagnostics(self) -> list[str]:
        found = [
            f"the diagnostics say `{event}`" for event in ("internal", "log_not_written") if self.stage.said(event)
        ]
        done, refused = self.stage.said("reloaded"), self.stage.said("reload_refused") > 0
        if done != sum(self.stage.reloads) or refused is all(self.stage.reloads):
            found.append(f"{done} reloads succeeded, of {sum(self.stage.reloads)} that should")
        return found

    def summary(self) -> str:
        """Return a summary of a few lines."""
        ledger, moments = self.ledger, self.stage.moments
        rotated = len([*self.stage.access_log.parent.glob("access.log.*")])
        memory = growth([sample.memory for sample in self.samples])
        flat = "too few samples to judge" if memory is None else f"{memory:+.1f} MiB after the warm-up"
        endings = ", ".join(f"{ending} {count}" for ending, count in ledger.endings.most_common())
        kinds = [f"  {count:7}  {kind}" for kind, count in sorted(ledger.kinds.items())]
        return "\n".join(
            [
                f"{ledger.kinds.total()} requests, {ledger.lines} lines in {rotated + 1} files",
                *kinds,
                f"endings: {endings}",
                f"trouble: Ollama restarted {len(moments['R'])} times, {len(self.stage.reloads)} reloads",
                f"waiting: {', '.join(f'{name} {count}' for name, count in sorted(self.room.items()))}",
                f"{ledger.turned_away} callers got the proxy's words about it",
                f"memory: {self.samples[0].memory:.0f} MiB at first, {self.samples[-1].memory:.0f} at last, {flat}",
                f"open files: {self.samples[0].descriptors} at first, {self.samples[-1].descriptors} at last",
            ]
        )


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (%(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="the random seed, to repeat a run")
    parser.add_argument("--ascii", action="store_true", help="draw with ASCII only")
    args = parser.parse_args()
    seed = Random().randrange(10**6) if args.seed is None else args.seed
    with tempfile.TemporaryDirectory(prefix="remote-ollama-proxy-soak-") as folder:
        soak = Soak(Path(folder), args.minutes * 60, seed)
        print(f"Soaking for {args.minutes:g} minutes, --seed {seed}; Ctrl-C ends it.", file=sys.stderr, flush=True)
        try:
            asyncio.run(soak.run())
        except KeyboardInterrupt:
            print("Ended early.", file=sys.stderr)
            return 1
        unicode = not args.ascii and (sys.stdout.encoding or "").lower().startswith("utf")
        if soak.samples:
            legend = "R: Ollama restarted, H: reload, C: requests cancelled"
            print(picture(soak.samples, soak.stage.moments, legend, unicode=unicode), soak.summary(), sep="\n\n")
    for fault in soak.faults[:20]:
        print(f"FAILED: {fault}")
    if soak.faults:
        print(f"{len(soak.faults)} things did not hold.\nhint: make soak ARGS='--seed {seed}'")
        return 1
    print("Nothing failed.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
