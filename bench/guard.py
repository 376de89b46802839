"""Count the instructions of a small chat, an identical GET and a chunk, and compare them with the earlier counts.

The chats are those of `bench.wire.traffic`, each different, and so are the answers and the events of the stream.

Times differ between runs and machines. Instruction counts hardly do, so a change of a tenth shows. The whole process is
counted, and the difference between a short run and a long one leaves out its start and end.

python -m bench.guard [--update]    0: as before or better, 1: more than a tenth above, 3: can't count here
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.contenders import ROOT, free_port
from bench.machine import optimised
from bench.parts.requests import VERSION
from bench.wire import traffic
from bench.wire.answers import STAMP
from bench.wire.load import chat, request, whole
from bench.wire.upstream import Ollama, Wheel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

KEPT = Path(__file__).parent / "guard.json"

TOLERATED = 1.10
"""How many times the earlier count still passes: patch releases of Python and of libraries differ by less."""

WARM = 100
"""Chats, GETs and chunks of the short run: enough to fill the caches."""

MORE = 1000
"""What the long run does in addition."""

_SERVE = (
    "from proxy.command_line import cli; from proxy.serving import listener; listener.TICK = 1e6; "
    "raise SystemExit(cli.main([]))"
)
"""The proxy with its timer stopped: what it does each second would count for more on a busy machine."""

_PATIENCE = 600.0  # seconds; the proxy runs about fifty times slower


@dataclass(frozen=True)
class Tool:
    """A program that counts the instructions of another, and the form in which it prints the count."""

    name: str
    command: tuple[str, ...]
    pattern: str

    def count(self, output: str) -> int:
        """Return the count in its output."""
        found = re.search(self.pattern, output)
        if found is None:
            raise RuntimeError(f"{self.name} printed no count: {output[-1000:]}")
        return int(found[1] or 0)


# Valgrind first, because it simulates the same processor everywhere.
CALLGRIND = Tool(
    "callgrind", ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"), r"Collected : ([\d]+)"
)
PERF = Tool("perf", ("perf", "stat", "-x,", "-e", "instructions:u"), r"(?m)^(\d+),[^,]*,instructions")

_NONE = Tool("none", (), "(0?)")


def tool() -> Tool | None:
    """Return the counter that is available here."""
    if shutil.which("valgrind"):
        return CALLGRIND
    if shutil.which("perf"):
        done = subprocess.run((*PERF.command, "true"), capture_output=True, text=True, check=False)
        if re.search(PERF.pattern, done.stderr):
            return PERF
    return None


def key(counted_by: Tool) -> str:
    """Return what a count is valid for. Another Python, build or architecture gives another count."""
    version = f"{platform.python_implementation().lower()}-{sys.version_info.major}.{sys.version_info.minor}"
    return f"{version}{'-pgo' if optimised() else ''} {platform.machine()} {counted_by.name}"


async def count(counted_by: Tool, *, chats: int = WARM, gets: int = WARM, chunks: int = WARM) -> int:
    """Return the instructions of a proxy that serves this many chats and GETs, and a stream of this many chunks."""
    loop = asyncio.get_running_loop()
    wheel = Wheel()
    upstream: list[Paced] = []

    def play() -> Paced:
        upstream.append(Paced(wheel))
        return upstream[-1]

    server = await loop.create_server(play, "127.0.0.1", 0)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        port = free_port()
        environment = _environment(Path(name), port, server.sockets[0].getsockname()[1])
        process = await asyncio.create_subprocess_exec(
            *counted_by.command,
            sys.executable,
            "-c",
            _SERVE,
            cwd=ROOT,
            env=environment,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(_PATIENCE):
                reader, writer = await _connect(port, process)
                for message in (*traffic.requests(port)[:chats], *[VERSION] * gets):
                    writer.write(message)
                    await _answer(reader)
                writer.write(request("POST", "/v1/chat/completions", chat(f"chunks={chunks}")))
                await _stream(reader, upstream, chunks)
                writer.close()
                process.send_signal(signal.SIGTERM)
                _, said = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    server.close()
    return counted_by.count(said.decode(errors="replace"))


class Paced(Ollama):
    """An upstream that sends its next chunk only when it is asked to, after the previous one has arrived."""

    __slots__ = ()

    def resume_writing(self) -> None:
        """Don't send by itself: the test calls for each chunk."""


def _environment(folder: Path, port: int, upstream: int) -> Mapping[str, str]:
    """Return the proxy's whole environment. It is minimal, because reading it is counted too."""
    (folder / "config.toml").touch()
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "PYTHONHASHSEED": "0",
        "PROXY_LISTEN": "127.0.0.1",
        "PROXY_PORT": str(port),
        "PROXY_UPSTREAM": f"http://127.0.0.1:{upstream}",
        "PROXY_ACCESS_LOG": str(folder / "access.log"),
        "PROXY_DIAGNOSTICS_LOG": str(folder / "diagnostics.log"),
        "PROXY_CONFIG": str(folder / "config.toml"),
    }


async def _connect(port: int, process: asyncio.subprocess.Process) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    while True:
        try:
            return await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            if process.returncode is not None:
                raise RuntimeError((await process.communicate())[1].decode(errors="replace")) from None
            await asyncio.sleep(0.1)


async def _answer(reader: asyncio.StreamReader) -> None:
    answer = await reader.read(65536)
    while not whole(answer):
        answer += await reader.read(65536)
    if not answer.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(answer.decode(errors="replace"))


async def _stream(reader: asyncio.StreamReader, upstream: Sequence[Paced], chunks: int) -> None:
    """Receive each chunk before the next is sent. The proxy's own requests have other connections."""
    while not (await reader.read(65536)).startswith(b"HTTP/1.1 200"):
        pass
    serving = next(each for each in upstream if each.streams)
    for number in range(chunks):
        serving.send_chunk()
        received = b""
        while not STAMP.search(received):
            received += await reader.read(65536)
        while number == chunks - 1 and not received.endswith(b"0\r\n\r\n"):
            received += await reader.read(65536)


async def measure(counted_by: Tool) -> dict[str, int]:
    """Return the instructions for one small chat, for one GET, and for one chunk."""
    await count(_NONE, chats=1, gets=1, chunks=1)  # compiles the modules first, because compiling would be counted
    short, *long = await asyncio.gather(
        count(counted_by),
        count(counted_by, chats=WARM + MORE),
        count(counted_by, gets=WARM + MORE),
        count(counted_by, chunks=WARM + MORE),
    )
    return {name: round((each - short) / MORE) for name, each in zip(("chat", "get", "chunk"), long, strict=True)}


def compare(found: Mapping[str, int], before: Mapping[str, int]) -> tuple[list[str], bool]:
    """Return a line for each count, and whether all are within the tolerance."""
    lines, well = [], True
    for name, instructions in found.items():
        ratio = instructions / before.get(name, instructions)
        grown = ratio > TOLERATED
        well = well and not grown
        lines.append(
            f"{'fail' if grown else 'pass'}  a {name} takes {instructions:,} instructions,"
            f" {100 * (ratio - 1):+.1f} % against {before.get(name, instructions):,}"
        )
    return lines, well


def main(argv: Sequence[str] | None = None) -> int:
    """Count, and compare with the kept counts or replace them."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.guard",
        description="Count the instructions of a chat, an identical GET and a chunk, and compare with guard.json.",
        epilog="example: make bench-guard UPDATE=1",
    )
    parser.add_argument("--update", action="store_true", help="keep the new counts")
    args = parser.parse_args(argv)
    counted_by = tool()
    if counted_by is None:
        sys.stderr.write(
            "error: instructions can't be counted here: no valgrind, and no perf that counts them\n"
            "hint: Debian: sudo apt install valgrind (there is none for macOS on Apple silicon)\n"
        )
        return 3
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    valid_for = key(counted_by)
    before = kept.get(valid_for)
    if before is None and not args.update:
        sys.stderr.write(
            f"error: nothing is kept for {valid_for}, only for {', '.join(kept) or 'nothing else'}\n"
            "hint: make bench-guard UPDATE=1, on the commit to compare with\n"
        )
        return 3
    found = asyncio.run(measure(counted_by))
    lines, well = compare(found, before or found)
    print("\n".join(lines))
    if args.update:
        KEPT.write_text(json.dumps(kept | {valid_for: found}, indent=1, sort_keys=True) + "\n")
        return 0
    if not well:
        sys.stderr.write("hint: valgrind --tool=callgrind shows where; if it is worth it, make bench-guard UPDATE=1\n")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
