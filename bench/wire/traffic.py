"""What clients send: chats with the heads of the real SDKs, each with another length, other words and other ids.

It is made from a seed, so each contender and each run gets the same. `bench.wire.record` recorded the heads. A request
may say in its first message what its answer should be: see `upstream`.
"""

from __future__ import annotations

import itertools
import json
import random
import uuid
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HEADS = Path(__file__).parent.parent / "heads"

KINDS = {
    "openai-chat": 4,
    "openai-chat-async": 4,
    "openai-responses": 2,
    "anthropic-messages": 2,
    "anthropic-messages-async": 2,
}
"""The SDKs of 14 requests, if the answer is not streamed."""

STREAMED = {"openai-chat-stream": 4, "openai-chat-stream-async": 4, "anthropic-messages-stream-async": 3}
"""The same if it is streamed."""

MANY = 4096
"""Requests that differ, before the first is sent again: far more than any cache of the proxy holds."""

_TRACED = 4  # one request of so many carries an id of its own, as programs add for tracing
_REPEATED = 50  # one of so many is a repetition by the SDK

_LEXICON = """
the of and to in is that it for was on are as with his they at be this from have or by one had not but what all
function returns value error list index string number test file line class import model token stream
naïve façade Größe 模型 回答 🙂 \\n {} [] => != "quoted"
"""
_WORDS = _LEXICON.split()


@dataclass(frozen=True)
class Size:
    """How much text a chat has: characters of all its messages together, and how many messages at most."""

    least: int
    most: int
    messages: int


SMALL = Size(40, 1500, 6)
"""A question, or a short conversation."""

LONG = Size(8_000, 150_000, 60)
"""What a coding tool sends, with its instructions, files and earlier steps."""


@cache
def _head(name: str) -> bytes:
    return (HEADS / f"{name}.http").read_bytes()


@cache
def _book() -> str:
    """Return the text from which all messages are cut."""
    chance = random.Random(15)
    return " ".join(chance.choices(_WORDS, k=60_000))


def _text(chance: random.Random, size: int) -> str:
    begin = chance.randrange(len(_book()) - size)
    return _book()[begin : begin + size]


def _content(chance: random.Random, name: str, size: Size, order: str) -> bytes:
    """Return the content of one request, as the SDK writes it."""
    count = chance.randint(1, size.messages)
    left = int(size.least * (size.most / size.least) ** chance.random())  # small ones are as frequent as large ones
    messages = [
        {"role": ("user", "assistant")[number % 2], "content": _text(chance, left // count)} for number in range(count)
    ]
    messages[0]["content"] = f"<{order}>{messages[0]['content']}"
    asked: dict[str, Any] = {"messages": messages, "model": "tiny"}
    if name == "openai-responses":
        asked = {"input": messages, "model": "tiny", "prompt_cache_key": str(uuid.UUID(int=chance.getrandbits(128)))}
    elif name.startswith("anthropic"):
        asked = {"max_tokens": 4096, **asked, "metadata": {"user_id": f"user_{chance.getrandbits(128):032x}"}}
    elif chance.random() < 0.5:
        asked["temperature"] = round(chance.random(), 2)
    if "stream" in name:
        asked["stream"] = True
    return json.dumps(asked, ensure_ascii=False, separators=(",", ":")).encode()


def requests(port: int, size: Size = SMALL, *, count: int = MANY, order: str = "", seed: int = 15) -> list[bytes]:
    """Return this many requests to `port` as bytes, no two alike."""
    host = b"127.0.0.1:%d" % port
    return [each.replace(b"@HOST@", host, 1) for each in _made(size, count, order, seed)]


@lru_cache(maxsize=16)
def _made(size: Size, count: int, order: str, seed: int) -> list[bytes]:
    chance = random.Random(f"{seed} {size} {count} {order}")
    kinds = STREAMED if "chunks" in order else KINDS
    names = chance.choices([*kinds], weights=[*kinds.values()], k=count)
    return [_request(chance, name, size, order) for name in names]


def _request(chance: random.Random, name: str, size: Size, order: str) -> bytes:
    content = _content(chance, name, size, order)
    head = _head(name).replace(b"@LENGTH@", b"%d" % len(content))
    if chance.randrange(_REPEATED) == 0:
        head = head.replace(b"retry-count: 0", b"retry-count: 1")
    if chance.randrange(_TRACED) == 0:
        traced = str(uuid.UUID(int=chance.getrandbits(128))).encode()
        head = head.replace(b"\r\n\r\n", b"\r\nX-Request-Id: %b\r\n\r\n" % traced)
    return head + content


def cycle(messages: bytes | Sequence[bytes]) -> Iterator[bytes]:
    """Return requests forever: the same one, or several in turn."""
    return itertools.repeat(messages) if isinstance(messages, bytes) else itertools.cycle(messages)
