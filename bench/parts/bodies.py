"""What the body of a request costs: a coding tool's chat that is read before it is sent, and hostile bodies."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from time import thread_time
from typing import TYPE_CHECKING

import orjson

from bench.contenders import OURS
from bench.parts.features import contender
from bench.parts.streaming import ENDLESS
from bench.reading import coding
from bench.wire.load import request, whole
from bench.wire.streams import watch

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.stage import Stage

STREAMS = 5
"""Streams whose delay is measured while a hostile body is read."""

_CHATS = 16  # that differ
_AT_ONCE = 4
_PASSES = 4  # of orjson over all chats
_MILLION = 1_000_000
_BLOCK = 256 * 1024
_CHAT = "/v1/chat/completions"
_BEGIN = b'{"model":"tiny","messages":[{"role":"user","content":"Why?"}],"a":'
_READ_AT_ONCE = 500_000  # bytes: a little less than what the proxy reads in one turn of its loop


def _packed(content: bytes) -> list[bytes]:
    packed = zstd.compress(content)
    return [request("POST", _CHAT, packed).replace(b"\r\n\r\n", b"\r\nContent-Encoding: zstd\r\n\r\n", 1)]


def _plain(content: bytes) -> list[bytes]:
    return [request("POST", _CHAT, content)]


def _escapes(size: int) -> list[bytes]:
    begin, end = _BEGIN + b'"', b'"}'
    blocks = (size - len(begin) - len(end)) // _BLOCK
    length = len(begin) + blocks * _BLOCK + len(end)
    head = request("POST", _CHAT, begin).replace(b"Length: %d\r\n" % len(begin), b"Length: %d\r\n" % length)
    return [head, *[b"\\\\" * (_BLOCK // 2)] * blocks, end]


HOSTILE: dict[str, tuple[str, Callable[[int], Sequence[bytes]]]] = {
    "nothing": ("nothing", lambda _: ()),
    "tokens": ("a million tokens, packed", lambda _: _packed(_BEGIN + b"[" + b"1," * (_MILLION // 2) + b"1]}")),
    "texts": (
        "a million tokens that matter, packed",
        lambda _: _packed(b'{"model":"tiny","messages":[' + b'"",' * (_MILLION // 2) + b'""]}'),
    ),
    "objects": (
        "as many objects as are read at once",
        lambda _: _plain(_BEGIN + b"[" + b'{"":{}},' * (_READ_AT_ONCE // 8) + b"1]}"),
    ),
    "levels": ("10,000 levels", lambda _: _plain(_BEGIN + b"[" * 9_990 + b"]" * 9_990 + b"}")),
    "escapes": ("64 MiB of escapes", _escapes),
}
"""Bodies that are made to take long: their text in the results, and the request in the pieces that are sent.

Each is made from the number of bytes that the largest may have.
"""


async def measure(stage: Stage) -> None:
    """Measure both."""
    await _chats(stage)
    await _hostile(stage)


async def _chats(stage: Stage) -> None:
    """Measure what reading adds to a coding tool's chats, and what orjson alone takes for the same chats."""
    chats = [coding(seed, "tiny") for seed in range(_CHATS)]
    requests = [request("POST", "/v1/messages", each) for each in chats]
    stage.say("a coding tool's chats, with and without the room")
    with contextlib.ExitStack() as stack:
        variants = {
            name: stack.enter_context(stage.running(contender(feature)))
            for name, feature in (("with", "nothing"), ("without", "room"))
        }
        for number in range(stage.scale.rounds + 1):
            used = {"orjson.loads": _loads(chats)}
            for name, running in sorted(variants.items(), reverse=bool(number % 2)):
                before = running.cpu()
                asked = await stage.generator.run(running.port, requests, _AT_ONCE, stage.scale.seconds)
                used[name] = (running.cpu() - before) / max(1, asked.requests) * 1e6
            if number:  # the first responses of each aren't counted
                for name in variants:
                    stage.figures.note("coding_cpu", name, used[name])
                stage.figures.note("reading_cpu", "ours", used["with"] - used["without"])
                stage.figures.note("reading_cpu", "orjson.loads", used["orjson.loads"])


def _loads(chats: Sequence[bytes]) -> float:
    """Return the microseconds of CPU that orjson takes for a chat, if each is another than the one before."""
    began = thread_time()
    for _ in range(_PASSES):
        for each in chats:
            orjson.loads(each)
    return (thread_time() - began) / (_PASSES * len(chats)) * 1e6


async def _hostile(stage: Stage) -> None:
    """Measure the longest delay of a few streams while one hostile body comes after another."""
    made = {kind: make(stage.scale.bulk) for kind, (_, make) in HOSTILE.items()}
    stage.say("streams next to hostile bodies")
    with stage.running(OURS) as running:
        for _ in range(stage.scale.least):
            longest = 0.0
            for kind, pieces in made.items():
                sending = asyncio.create_task(_send(running.port, pieces))
                try:
                    order = f"chunks={ENDLESS}&every=10"
                    window = await watch(running, order, STREAMS, stage.scale.seconds)
                    if sending.done():
                        sending.result()
                finally:
                    sending.cancel()
                    await asyncio.wait((sending,))
                stage.figures.note(f"hostile_delay@{kind}", "ours", window.delay(1.0))
                longest = max(longest, window.delay(1.0))
            stage.figures.note("hostile_delay", "ours", longest)


async def _send(port: int, pieces: Sequence[bytes]) -> None:
    """Send one request again and again, in these pieces. A refusal may end the connection, so another one follows."""
    loop = asyncio.get_running_loop()
    while pieces:
        with socket.socket() as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", port))
            answer = b""
            while b"connection: close" not in answer.lower():
                for piece in pieces:
                    await loop.sock_sendall(sock, piece)
                answer = b""
                while not whole(answer):
                    data = await loop.sock_recv(sock, 65536)
                    if not data:
                        raise RuntimeError(f"a hostile request got no response, only {answer!r}")
                    answer += data
