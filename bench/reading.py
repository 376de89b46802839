"""What reading a request's body costs: `python -m bench.reading` prints a table. No server, no sockets.

A hostile body is fed until the reader gives up. What counts there is the longest that one piece keeps the loop.
"""

from __future__ import annotations

import random
from time import perf_counter
from typing import TYPE_CHECKING, Any

import orjson

from proxy.reading.body import PIECE, Passing, read

if TYPE_CHECKING:
    from collections.abc import Callable

_ROUNDS = 30
_CHAT, _MESSAGES, _GENERATE, _NATIVE = "/v1/chat/completions", "/v1/messages", "/api/generate", "/api/chat"

HOSTILE = {
    "`[[[[…`": (_NATIVE, b'{"a":' + b"[" * (1 << 20)),
    "`[],[],…`": (_NATIVE, b'{"a":[' + b"[]," * (1 << 19)),
    '`{"a":1,"a":1,…`': (_NATIVE, b"{" + b'"a":1,' * (1 << 19)),
    '`{"model":"a","model":"a",…`': (_NATIVE, b"{" + b'"model":"a",' * (1 << 18)),
    '`{"options":{"num_ctx":1,…`': (_NATIVE, b'{"options":{' + b'"num_ctx":1,' * (1 << 18)),
    '`{"messages":["","",…`': (_NATIVE, b'{"messages":[' + b'"",' * (1 << 19)),
    "escapes": (_GENERATE, b'{"prompt":"' + b"\\\\" * (1 << 20)),
    "escaped quotes": (_GENERATE, b'{"prompt":"' + b'\\"' * (1 << 20)),
}


def chat() -> bytes:
    """Return a small chat of 1 KB."""
    messages = [{"role": "system", "content": "Be brief. " * 40}, {"role": "user", "content": "Why is it blue? " * 25}]
    return orjson.dumps({"model": "qwen3:8b", "messages": messages, "stream": True, "temperature": 0.7})


def coding(seed: int = 1, model: str = "qwen3:8b") -> bytes:
    """Return a coding tool's chat of 300 KiB: 15 tools, and some sixty turns with calls and their results."""
    pick = random.Random(seed)
    words = ["".join(pick.choices("abcdefghijklmnopqrstuvwxyz", k=pick.randint(2, 9))) for _ in range(500)]

    def text(size: int) -> str:
        return " ".join(pick.choices([*words, "\n    ", '"', "\t", "é"], k=size // 6))

    schema: dict[str, Any] = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(6)}}
    tools = [{"name": f"Tool{n}", "description": text(1500), "input_schema": schema} for n in range(15)]
    messages: list[dict[str, Any]] = []
    body = b""
    while len(body) < 300 * 1024:
        call = {"type": "tool_use", "id": f"toolu_{len(messages)}", "name": "Tool1", "input": {"p0": text(300)}}
        result = {"type": "tool_result", "tool_use_id": call["id"], "content": [{"type": "text", "text": text(2500)}]}
        messages.append({"role": "user", "content": [{"type": "text", "text": text(400)}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": text(200)}, call]})
        messages.append({"role": "user", "content": [result]})
        fields = {"model": model, "max_tokens": 32000, "messages": messages, "tools": tools, "stream": True}
        body = orjson.dumps(fields)
    return body


def alternating(*works: Callable[[], object]) -> list[float]:
    """Return the best time of each, taken in turns so that each finds the caches as the others leave them."""
    best = [float("inf")] * len(works)
    for _ in range(_ROUNDS):
        for number, work in enumerate(works):
            began = perf_counter()
            work()
            best[number] = min(best[number], perf_counter() - began)
    return best


def passing(path: str, body: bytes) -> tuple[float, float]:
    """Feed a body in pieces until it ends or is given up. Return the time for all, and the longest for one piece."""
    reader, longest, began = Passing(path), 0.0, perf_counter()
    for at in range(0, len(body), PIECE):
        piece = body[at : at + PIECE]
        start = perf_counter()
        reader.feed(piece)
        longest = max(longest, perf_counter() - start)
        if reader.asked is not None:
            break
    reader.end()
    return perf_counter() - began, longest


def main() -> None:
    """Print the table."""
    print("| body | `orjson.loads`, µs | read whole, µs | ratio | in passing, µs |\n|---|---|---|---|---|")
    for name, path, body in (("chat, 1 KB", _CHAT, chat()), ("coding tool's chat, 300 KiB", _MESSAGES, coding())):

        def loads(body: bytes = body) -> object:
            return orjson.loads(body)

        def whole(path: str = path, body: bytes = body) -> object:
            return read(path, body)

        def passes(path: str = path, body: bytes = body) -> object:
            return passing(path, body)

        one, two, three = (took * 1e6 for took in alternating(loads, whole, passes))
        print(f"| {name} | {one:.1f} | {two:.1f} | {two / one:.1f} | {three:.0f} |")
    print("\n| 64 MiB | ms | MiB/s |\n|---|---|---|")
    for name, unit in (("one text", b"abcdefgh" * 8), ("one text of code", b'some code; \\n    with \\"quotes\\", ')):
        body = b'{"model":"m","prompt":"' + (unit * ((64 << 20) // len(unit))) + b'"}'
        took = min(passing(_GENERATE, body)[0] for _ in range(3))
        print(f"| {name} | {took * 1e3:.0f} | {len(body) / took / (1 << 20):,.0f} |")
    print("\n| hostile body | longest piece, ms | all, ms |\n|---|---|---|")
    for name, (path, body) in HOSTILE.items():
        runs = [passing(path, body) for _ in range(3)]
        print(f"| {name} | {min(run[1] for run in runs) * 1e3:.1f} | {min(run[0] for run in runs) * 1e3:.0f} |")


if __name__ == "__main__":
    main()
