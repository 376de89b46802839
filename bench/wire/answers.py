"""Responses of Ollama as recorded from 0.32.15, with a different length, text, id and Date each time.

Real clients send requests seconds apart, so each response has the Date of another second, however fast they are sent
here.
"""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import dataclass
from email.utils import formatdate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

STAMP_DIGITS = 19

STAMP = re.compile(rb'"(?:content|text|delta)": ?"(\d{19})')
"""Matches the time at which each event was sent, in nanoseconds of the monotonic clock."""

_DAY = 86_400
_NOW = 1_795_458_772
_VARIED = 509  # texts that differ, a prime: with it no two answers of a run are alike
_LONGEST = 2000  # characters of an answer

_JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\n"
_EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"

VERSION = _JSON + b"Date: Mon, 23 Nov 2026 18:33:32 GMT\r\n" + b'Content-Length: 21\r\n\r\n{"version":"0.32.15"}'
"""The one answer that is always the same."""

_MODELS = (
    b'{"models":[{"name":"tiny:latest","size":5137025024,"details":{"family":"llama"},"context_length":131072,'
    b'"capabilities":["completion","tools"]}]}'
)
LISTS = _JSON + b"Content-Length: %d\r\n\r\n%b" % (len(_MODELS), _MODELS)
"""What there is, and what is loaded: the one model that all requests name."""

_dates = itertools.cycle([f"Date: {formatdate(_NOW + second, usegmt=True)}\r\n".encode() for second in range(_DAY)])
_numbers = itertools.count(100)


def date() -> bytes:
    """Return the Date field line of the next second."""
    return next(_dates)


_chance = random.Random(15)
_LEXICON = "the of and to in is that it for was function value error list index token stream \\n \\u003c 模"
_WORDS = _LEXICON.encode().split()
_TEXTS = [b" ".join(_chance.choices(_WORDS, k=1 + int((_LONGEST / 4) ** _chance.random()))) for _ in range(_VARIED)]
_TOKENS = [b"".join(_chance.choices(_WORDS, k=_chance.choice((1, 1, 1, 1, 2, 3, 12)))) for _ in range(_VARIED)]


@dataclass(frozen=True)
class Surface:
    """The answers of one API. `%d` is the number of an answer, `%b` its text."""

    whole: bytes  # one that isn't streamed
    start: bytes  # chunks that begin a stream, before its first token
    before: bytes  # the beginning of each event of a stream, up to its text
    after: bytes  # what follows the text
    end: bytes  # chunks that end a stream
    texts: Iterator[bytes]
    tails: Iterator[bytes]  # texts of events, with what follows them

    def answer(self) -> bytes:
        """Return the next answer."""
        content = self.whole % (next(_numbers), next(self.texts))
        return b"%b%bContent-Length: %d\r\n\r\n%b" % (_JSON, date(), len(content), content)

    def stream_head(self) -> bytes:
        """Return the head of the next stream, and what comes before its first token."""
        return b"%b%bTransfer-Encoding: chunked\r\n\r\n%b" % (_EVENTS, date(), self.start)

    def event(self) -> bytes:
        """Return the beginning of each event of the next stream."""
        return self.before % next(_numbers) if b"%d" in self.before else self.before


def _surface(whole: bytes, start: bytes, before: bytes, after: bytes, end: bytes) -> Surface:
    tails = [b" " + token + after for token in _TOKENS]
    return Surface(whole, start, before, after, end, itertools.cycle(_TEXTS), itertools.cycle(tails))


def _chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


_LAST = b"0\r\n\r\n"

CHAT = _surface(
    b'{"id":"chatcmpl-%d","object":"chat.completion","created":1795458772,"model":"tiny","system_fingerprint":'
    b'"fp_ollama","choices":[{"index":0,"message":{"role":"assistant","content":"%b"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":4,"completion_tokens":3,"total_tokens":7}}\n',
    b"",
    b'data: {"id":"chatcmpl-%d","object":"chat.completion.chunk","created":1795458772,"model":"tiny",'
    b'"system_fingerprint":"fp_ollama","choices":[{"index":0,"delta":{"content":"',
    b'"},"finish_reason":null}]}\n\n',
    _chunk(b"data: [DONE]\n\n") + _LAST,
)
MESSAGES = _surface(
    b'{"id":"msg_%024d","type":"message","role":"assistant","model":"tiny","content":[{"type":"text","text":"%b"}],'
    b'"stop_reason":"end_turn","usage":{"input_tokens":4,"output_tokens":3}}\n',
    _chunk(
        b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_a529831b8c1bf307f2ca6611",'
        b'"type":"message","role":"assistant","model":"tiny","content":[],"usage":{"input_tokens":4,"output_tokens":0}}}\n\n'
    )
    + _chunk(
        b'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
        b'"content_block":{"type":"text","text":""}}\n\n'
    ),
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"',
    b'"}}\n\n',
    _chunk(b'event: message_stop\ndata: {"type":"message_stop"}\n\n') + _LAST,
)
RESPONSES = _surface(
    b'{"id":"resp_%d","object":"response","created_at":1795458772,"status":"completed","model":"tiny","output":'
    b'[{"id":"msg_1","type":"message","status":"completed","role":"assistant","content":[{"type":"output_text",'
    b'"text":"%b","annotations":[]}]}],"usage":{"input_tokens":4,"output_tokens":3,"total_tokens":7}}\n',
    _chunk(
        b'event: response.created\ndata: {"response":{"created_at":1795458784,"id":"resp_77175","model":"tiny",'
        b'"object":"response","output":[],"status":"in_progress","usage":null},"sequence_number":0,"type":"response.created"}\n\n'
    ),
    b"event: response.output_text.delta\n"
    b'data: {"type":"response.output_text.delta","sequence_number":5,"item_id":"msg_%d","output_index":0,'
    b'"content_index":0,"delta":"',
    b'"}\n\n',
    _chunk(b'event: response.completed\ndata: {"type":"response.completed","sequence_number":9}\n\n') + _LAST,
)
