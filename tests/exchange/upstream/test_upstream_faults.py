"""Everything that can go wrong on Ollama's side: the client is never shown a clean end, and the audit says why.

One table of misbehaviours, tried on each surface; below it, what the real SDKs raise.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

import anthropic
import httpx
import httpx2
import ollama
import openai
import pytest

from proxy.exchange.relay import STALE_WITHIN
from proxy.exchange.upstream.upstream import MAX_HEAD
from tests.support.examples import some
from tests.support.raw_http import CLOSE, CUT, LAST_CHUNK, NEXT, Proxy, Step, chunk, ok, until, within

if TYPE_CHECKING:
    from tests.support.raw_http import Answer, Upstream, Wire

Script = tuple[bytes | Step, ...]


@dataclass(frozen=True)
class Surface:
    """A route, and an answer of it in three parts, of which the first two alone are not complete."""

    name: str
    target: str
    content_type: bytes
    lead: bytes
    more: bytes
    end: bytes
    event: str | None  # what an error event begins with; None where there are no events

    @property
    def chunked(self) -> bytes:
        """Return a head that announces chunks."""
        return self.head(b"Transfer-Encoding: chunked")

    @property
    def whole(self) -> bytes:
        """Return all of the content."""
        return self.lead + self.more + self.end

    @property
    def length(self) -> bytes:
        """Return the field line with the length of all of the content."""
        return b"Content-Length: %d" % len(self.whole)

    def head(self, *lines: bytes, status: bytes = b"HTTP/1.1 200 OK") -> bytes:
        """Return a head with these lines."""
        return b"\r\n".join((status, b"Content-Type: " + self.content_type, *lines, b"", b""))


SSE = b"text/event-stream"
SURFACES = [
    Surface(
        "chat",
        "/v1/chat/completions",
        SSE,
        b'data: {"model":"m","choices":[]}\n\n',
        b'data: {"model":"m","choices":[{"delta":{"content":"a"}}]}\n\n',
        b"data: [DONE]\n\n",
        'data: {"error":',
    ),
    Surface(
        "responses",
        "/v1/responses",
        SSE,
        b'event: response.created\ndata: {"response":{"id":"resp_7","model":"m"},"sequence_number":0}\n\n',
        b'event: response.output_text.delta\ndata: {"delta":"a","sequence_number":1}\n\n',
        b'event: response.completed\ndata: {"response":{"model":"m"},"sequence_number":2}\n\n',
        "event: response.failed\ndata: ",
    ),
    Surface(
        "messages",
        "/v1/messages",
        SSE,
        b'event: message_start\ndata: {"type":"message_start","message":{"model":"m"}}\n\n',
        b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"a"}}\n\n',
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
        "event: error\ndata: ",
    ),
    Surface(
        "ndjson",
        "/api/chat",
        b"application/x-ndjson",
        b'{"model":"m","message":{"role":"assistant","content":"a"},"done":false}\n',
        b'{"model":"m","message":{"role":"assistant","content":"b"},"done":false}\n',
        b'{"model":"m","message":{"role":"assistant","content":""},"done":true}\n',
        '{"error":',
    ),
    Surface(
        "json", "/v1/chat/completions", b"application/json", b'{"model":"m",', b'"choices":[],', b'"usage":{}}', None
    ),
]


@dataclass(frozen=True)
class Fault:
    """A misbehaviour, and its expected result.

    `then` is "refused" (a 502), "event" (an error event where the surface has one, then a cut), "cut" (nothing but a
    cut) or "whole" (the response is complete, but the connection can't be reused).
    """

    script: Callable[[Surface], Script]
    then: str
    reason: str | None
    content: Callable[[Surface], bytes] = lambda surface: surface.lead
    events_only: bool = False  # no fault of plain JSON, which has no terminator
    kept: bool = False  # HTTP was kept to, so that the connection serves on


def refused(script: Callable[[Surface], Script], reason: str = "upstream_malformed") -> Fault:
    """Return a fault before the head is whole."""
    return Fault(script, "refused", reason)


def head_of(*lines: bytes, status: bytes = b"HTTP/1.1 200 OK", content: bytes = b"") -> Fault:
    """Return the fault of a head that is no good."""
    return refused(lambda surface: (surface.head(*lines, status=status) + content,))


def octets(*script: bytes | Step) -> Fault:
    """Return the fault of bytes that are no HTTP."""
    return refused(lambda _: script)


def closed(*script: bytes | Step) -> Fault:
    """Return the fault of a connection that ends before the head does."""
    return refused(lambda _: script, "upstream_closed")


def after(*script: bytes | Step, reason: str = "upstream_closed") -> Fault:
    """Return a fault at an event border, behind the first chunk."""
    return Fault(lambda surface: (surface.chunked, chunk(surface.lead), *script), "event", reason)


def unfinished(script: Callable[[Surface], Script], then: str, content: Callable[[Surface], bytes]) -> Fault:
    """Return the fault of an answer that ends well by HTTP, and yet is not complete (wire facts, trap 2)."""
    return Fault(script, then, "missing_terminator", content, events_only=True, kept=True)


def malformed(*script: bytes | Step) -> Fault:
    """Return the fault of bad chunks behind the first."""
    return after(*script, reason="upstream_malformed")


INTERIM = b"HTTP/1.1 102 Processing\r\n\r\n"
BEFORE_THE_HEAD = {
    "closes_at_once": closed(CLOSE),
    "resets_at_once": closed(CUT),
    "one_octet": closed(b"H", CLOSE),
    "cut_in_status_line": closed(b"HTTP/1.1 20", CLOSE),
    "reset_in_status_line": closed(b"HTTP/1.1 20", CUT),
    "status_line_and_no_more": closed(b"HTTP/1.1 200 OK\r\n", CLOSE),
    "reset_in_field_line": closed(b"HTTP/1.1 200 OK\r\nContent-Ty", CUT),
    "reset_before_empty_line": closed(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n", CUT),
    "reset_in_the_empty_line": closed(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r", CUT),
    "interim_and_a_reset": closed(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", CUT),
    "interim_and_garbage": octets(INTERIM, b"garbage\r\n\r\n"),
    "interim_and_half_a_head": closed(INTERIM, b"HTTP/1.1 200 OK\r\nContent-Le", CLOSE),
    "cut_in_field_line": closed(b"HTTP/1.1 200 OK\r\nContent-Ty", CLOSE),
    "cut_before_empty_line": closed(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n", CLOSE),
    "interim_and_no_more": closed(b"HTTP/1.1 100 Continue\r\n\r\n", CLOSE),
    "endless_interim": octets(INTERIM * 5, INTERIM * 5),
    "switches_protocols": octets(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
    "switches_to_nothing": octets(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"),
    "http_0_9": head_of(b"Content-Length: 0", status=b"HTTP/0.9 200 OK"),
    "http_1_2": head_of(b"Content-Length: 0", status=b"HTTP/1.2 200 OK"),
    "http_2_0": head_of(b"Content-Length: 0", status=b"HTTP/2.0 200 OK"),
    "http_1_10": head_of(b"Content-Length: 0", status=b"HTTP/1.10 200 OK"),
    "no_version": head_of(b"Content-Length: 0", status=b"HTTP 200 OK"),
    "lower_case_protocol": head_of(b"Content-Length: 0", status=b"http/1.1 200 OK"),
    "switches_to_h2c": octets(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n\0"),
    "a_request": octets(b"GET /api/tags HTTP/1.1\r\nHost: mac\r\n\r\n"),
    "a_page": octets(b"<!DOCTYPE html><title>It works</title>"),
    "status_in_words": head_of(b"Content-Length: 0", status=b"HTTP/1.1 OK"),
    "status_with_sign": head_of(b"Content-Length: 0", status=b"HTTP/1.1 +200 OK"),
    "status_behind_a_tab": head_of(b"Content-Length: 0", status=b"HTTP/1.1\t200 OK"),
    "other_protocol": head_of(b"Content-Length: 0", status=b"ICE/1.0 200 OK"),
    "h2_preface": octets(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00"),
    "status_of_two_digits": head_of(b"Content-Length: 0", status=b"HTTP/1.1 99 Low"),
    "status_of_four_digits": head_of(b"Content-Length: 0", status=b"HTTP/1.1 2000 High"),
    "status_000": head_of(b"Content-Length: 0", status=b"HTTP/1.1 000 None"),
    "status_600": head_of(b"Content-Length: 0", status=b"HTTP/1.1 600 High"),
    "garbage": octets(b"\xff\xfe\x00what is this\r\n\r\n"),
    "only_content": octets(b'{"version":"0.32.15"}'),
    "tls": octets(b"\x15\x03\x03\x00\x02\x02\x46"),
    "ssh": octets(b"SSH-2.0-OpenSSH_9.9\r\n"),
    "empty_line_first": octets(b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    "bare_lf": octets(b"HTTP/1.1 200 OK\nContent-Length: 0\n\n"),
    "folded_line": head_of(b"X-A: a", b" b", b"Content-Length: 0"),
    "nul_in_value": head_of(b"X-A: a\x00b", b"Content-Length: 0"),
    "control_in_value": head_of(b"X-A: \x1b[2J", b"Content-Length: 0"),
    "smuggled_line": head_of(b"X-A: a\rSet-Cookie: b", b"Content-Length: 0"),
    "space_before_colon": head_of(b"Content-Length : 0"),
    "empty_name": head_of(b": a", b"Content-Length: 0"),
    "space_in_name": head_of(b"X A: a", b"Content-Length: 0"),
    "nul_in_name": head_of(b"X\0: a", b"Content-Length: 0"),
    "bare_cr": octets(b"HTTP/1.1 200 OK\rContent-Length: 0\r\r"),
    "no_colon": head_of(b"Content-Length 0"),
    "two_lengths": head_of(b"Content-Length: 2", b"Content-Length: 3", content=b"abc"),
    "one_length_twice": head_of(b"Content-Length: 2", b"Content-Length: 2", content=b"ab"),
    "list_of_lengths": head_of(b"Content-Length: 2, 2", content=b"ab"),
    "negative_length": head_of(b"Content-Length: -1"),
    "length_empty": head_of(b"Content-Length:"),
    "length_with_plus": head_of(b"Content-Length: +2", content=b"ab"),
    "length_with_0x": head_of(b"Content-Length: 0x2", content=b"ab"),
    "length_with_point": head_of(b"Content-Length: 2.0", content=b"ab"),
    "length_with_underscore": head_of(b"Content-Length: 1_0", content=b"abcdefghij"),
    "length_with_space": head_of(b"Content-Length: 1 0", content=b"abcdefghij"),
    "length_in_words": head_of(b"Content-Length: two", content=b"ab"),
    "length_beyond_measure": head_of(b"Content-Length: 99999999999999999999", content=b"ab"),
    "length_and_chunks": head_of(b"Content-Length: 2", b"Transfer-Encoding: chunked", content=LAST_CHUNK),
    "chunks_and_length": head_of(b"Transfer-Encoding: chunked", b"Content-Length: 2", content=LAST_CHUNK),
    "coding_gzip": head_of(b"Transfer-Encoding: gzip", content=b"\x1f\x8b"),
    "coding_identity": head_of(b"Transfer-Encoding: identity", content=b"ab"),
    "coding_empty": head_of(b"Transfer-Encoding:", content=b"ab"),
    "coding_quoted": head_of(b'Transfer-Encoding: "chunked"', content=LAST_CHUNK),
    "coding_with_parameter": head_of(b"Transfer-Encoding: chunked;q=1", content=LAST_CHUNK),
    "coding_chunked_gzip": head_of(b"Transfer-Encoding: chunked, gzip", content=LAST_CHUNK),
    "coding_chunked_chunked": head_of(b"Transfer-Encoding: chunked, chunked", content=LAST_CHUNK),
    "coding_gzip_chunked": head_of(b"Transfer-Encoding: gzip, chunked", content=LAST_CHUNK),
    "coding_twice": head_of(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", content=LAST_CHUNK),
    "coding_like_chunked": head_of(b"Transfer-Encoding: xchunked", content=LAST_CHUNK),
    "chunks_in_http_1_0": head_of(b"Transfer-Encoding: chunked", status=b"HTTP/1.0 200 OK", content=LAST_CHUNK),
    "one_long_line": octets(b"HTTP/1.1 200 OK\r\nX-A: ", b"a" * MAX_HEAD, b"a" * MAX_HEAD),
    "endless_lines": octets(b"HTTP/1.1 200 OK\r\n", b"X-A: bcdefghi\r\n" * (MAX_HEAD // 10)),
}


def _in_an_event(surface: Surface) -> bytes:
    return surface.lead + surface.more[:9]


def _no_event(_: Surface) -> bytes:
    return b""


def _whole(surface: Surface) -> bytes:
    return surface.whole


def _half(end: Step) -> Callable[[Surface], Script]:
    return lambda surface: (surface.chunked, chunk(surface.lead), chunk(surface.more[:9]), end)


def _with_length(end: Step) -> Callable[[Surface], Script]:
    return lambda surface: (surface.head(b"Content-Length: 5000") + surface.lead, end)


def _finished(*behind: bytes | Step) -> Callable[[Surface], Script]:
    return lambda surface: (surface.chunked, chunk(surface.whole), *behind)


def _until_close(*behind: bytes | Step) -> Callable[[Surface], Script]:
    return lambda surface: (surface.head() + surface.lead, *behind)


IN_CONTENT = {
    "cut_at_border": after(CLOSE),
    "reset_at_border": after(CUT),
    "cut_in_chunk_size": after(b"1", CLOSE),
    "cut_before_chunk_data": after(b"10\r\n", CUT),
    "cut_behind_head": Fault(lambda surface: (surface.chunked, CLOSE), "event", "upstream_closed", _no_event),
    "reset_behind_head": Fault(lambda surface: (surface.chunked, CUT), "event", "upstream_closed", _no_event),
    "cut_in_event": Fault(_half(CLOSE), "cut", "upstream_closed", _in_an_event),
    "reset_in_event": Fault(_half(CUT), "cut", "upstream_closed", _in_an_event),
    "cut_in_chunk": Fault(
        lambda surface: (surface.chunked, chunk(surface.lead), b"99\r\n" + surface.more[:9], CLOSE),
        "cut", "upstream_closed", _in_an_event,
    ),
    "chunk_size_in_words": malformed(b"xyz\r\nabc\r\n"),
    "chunk_size_negative": malformed(b"-1\r\n"),
    "chunk_size_with_plus": malformed(b"+1\r\na\r\n"),
    "chunk_size_with_0x": malformed(b"0x1\r\na\r\n"),
    "chunk_size_with_underscore": malformed(b"1_0\r\n"),
    "chunk_size_behind_space": malformed(b" 1\r\na\r\n"),
    "chunk_size_with_nul": malformed(b"1\0\r\na\r\n"),
    "chunk_size_in_fullwidth": malformed("\uff11\r\na\r\n".encode()),
    "chunk_line_ended_by_cr": malformed(b"1\ra\r\n"),
    "cut_in_chunk_line_end": after(b"1\r", CLOSE),
    "chunk_size_empty": malformed(b"\r\n\r\n"),
    "chunk_size_beyond_measure": malformed(b"fffffffffffffffff\r\n"),
    "chunk_line_ended_by_lf": malformed(b"1\na\n0\n\n"),
    "chunk_longer_than_its_size": Fault(
        lambda surface: (surface.chunked, chunk(surface.lead)[:-2] + b"more\r\n"), "event", "upstream_malformed",
    ),
    "http_within_chunks": malformed(b"HTTP/1.1 200 OK\r\n\r\n"),
    "bad_trailer": malformed(b"0\r\nX\r\n\r\n"),
    "length_in_trailer": malformed(b"0\r\nContent-Length: 5\r\n\r\n"),
    "folded_trailer": malformed(b"0\r\nX: a\r\n b\r\n\r\n"),
    "nul_in_trailer": malformed(b"0\r\nX: a\0\r\n\r\n"),
    "cut_in_trailer": after(b"0\r\nX: a\r\n", CLOSE),
    "reset_in_trailer": after(b"0\r\nX: a", CUT),
    "endless_trailer": malformed(b"0\r\nX: ", *[b"a" * MAX_HEAD] * 4),
    "endless_trailers": malformed(b"0\r\n", *[b"X: a\r\n" * (MAX_HEAD // 6)] * 4),
    "endless_chunk_extension": malformed(b"1;", *[b"a" * MAX_HEAD] * 4),
    "cut_in_event_by_bad_chunk": Fault(
        lambda surface: (surface.chunked, chunk(surface.lead), chunk(surface.more[:9]), b"zz\r\n"),
        "cut", "upstream_malformed", _in_an_event,
    ),
    "short_of_its_length": Fault(_with_length(CLOSE), "event", "upstream_closed"),
    "reset_short_of_its_length": Fault(_with_length(CUT), "event", "upstream_closed"),
    "none_of_its_length": Fault(
        lambda surface: (surface.head(b"Content-Length: 5000"), CLOSE), "event", "upstream_closed", _no_event
    ),
    "cut_in_event_short_of_its_length": Fault(
        lambda surface: (surface.head(b"Content-Length: 5000") + surface.lead + surface.more[:9], CUT),
        "cut", "upstream_closed", _in_an_event,
    ),
    "one_octet_short_of_its_length": Fault(
        lambda surface: (surface.head(surface.length) + surface.whole[:-1], CLOSE),
        "cut", "upstream_closed", lambda surface: surface.whole[:-1],
    ),
    "cut_in_terminator": Fault(
        lambda surface: (surface.chunked, chunk(surface.whole[:-1]), CLOSE),
        "cut", "upstream_closed", lambda surface: surface.whole[:-1],
    ),
    "cut_behind_the_terminator": Fault(_finished(CLOSE), "cut", "upstream_closed", _whole),
    "reset_behind_the_terminator": Fault(_finished(CUT), "cut", "upstream_closed", _whole),
    "cut_in_the_last_chunk": Fault(_finished(b"0\r\n", CLOSE), "cut", "upstream_closed", _whole),
    "bad_trailer_behind_the_terminator": Fault(_finished(b"0\r\nX\r\n\r\n"), "cut", "upstream_malformed", _whole),
    "ends_with_a_reset": Fault(_until_close(CUT), "event", "upstream_closed"),
    "clean_end_without_terminator": unfinished(
        lambda surface: (surface.chunked, chunk(surface.lead), LAST_CHUNK), "event", lambda surface: surface.lead
    ),
    "clean_end_without_event": unfinished(lambda surface: (surface.chunked, LAST_CHUNK), "event", _no_event),
    "clean_end_in_event": unfinished(
        lambda surface: (surface.chunked, chunk(surface.lead), chunk(surface.more[:9]), LAST_CHUNK), "cut", _in_an_event
    ),
    "clean_end_in_terminator": unfinished(
        lambda surface: (surface.chunked, chunk(surface.whole[:-3]), LAST_CHUNK),
        "cut", lambda surface: surface.whole[:-3],
    ),
    "clean_end_without_terminator_in_capitals": unfinished(
        lambda surface: (
            surface.chunked.replace(surface.content_type, surface.content_type.upper()),
            chunk(surface.lead), LAST_CHUNK,
        ),
        "event", lambda surface: surface.lead,
    ),
    "length_without_terminator": unfinished(
        lambda surface: (surface.head(b"Content-Length: %d" % len(surface.lead)) + surface.lead,),
        "event", lambda surface: surface.lead,
    ),
    "length_without_event": unfinished(lambda surface: (surface.head(b"Content-Length: 0"),), "event", _no_event),
    "length_ends_in_event": unfinished(
        lambda surface: (
            surface.head(b"Content-Length: %d" % len(_in_an_event(surface))), _in_an_event(surface),
        ),
        "cut", _in_an_event,
    ),
    "connection_end_without_event": Fault(
        lambda surface: (surface.head(), CLOSE), "event", "missing_terminator", _no_event, events_only=True
    ),
    "connection_end_in_event": Fault(
        lambda surface: (surface.head() + _in_an_event(surface), CLOSE),
        "cut", "missing_terminator", _in_an_event, events_only=True,
    ),
    "connection_end_without_terminator": Fault(_until_close(CLOSE), "event", "missing_terminator", events_only=True),
}  # fmt: skip

SPOILT = {
    "close_announced": Fault(
        lambda surface: (surface.head(b"Connection: close", surface.length) + surface.whole, CLOSE),
        "whole", None, _whole,
    ),
    "http_1_0": Fault(
        lambda surface: (surface.head(surface.length, status=b"HTTP/1.0 200 OK") + surface.whole,),
        "whole", None, _whole,
    ),
    "close_unannounced": Fault(_finished(LAST_CHUNK, CLOSE), "whole", None, _whole),
    "reset_behind_it": Fault(_finished(LAST_CHUNK, CUT), "whole", None, _whole),
    "ends_with_the_connection": Fault(
        lambda surface: (surface.head() + surface.lead, surface.more + surface.end, CLOSE), "whole", None, _whole
    ),
    "longer_than_its_length": Fault(
        lambda surface: (surface.head(surface.length) + surface.whole + b"more",), "whole", None, _whole
    ),
    "longer_than_its_length_later": Fault(
        lambda surface: (surface.head(surface.length) + surface.whole, b"more"), "whole", None, _whole
    ),
    "interim_behind_it": Fault(_finished(LAST_CHUNK + INTERIM), "whole", None, _whole),
    "garbage_behind_it": Fault(_finished(LAST_CHUNK + b"garbage"), "whole", None, _whole),
    "second_answer_behind_it": Fault(_finished(LAST_CHUNK + ok(b"evil")), "whole", None, _whole),
    "second_answer_later": Fault(_finished(LAST_CHUNK, ok(b"evil")), "whole", None, _whole),
    "timeout_later": Fault(
        _finished(LAST_CHUNK, b"HTTP/1.1 408 Late\r\nConnection: close\r\n\r\n"), "whole", None, _whole
    ),
}  # fmt: skip

FAULTS = BEFORE_THE_HEAD | IN_CONTENT | SPOILT

# On a connection that has served one exchange: what happens when the next begins, and what comes of that one.
# IDLE: the connection does this while nobody uses it, and the next exchange never learns.
IDLE: dict[str, Script] = {
    "fin": (CLOSE,),
    "reset": (CUT,),
    "garbage": (b"garbage\r\n\r\n",),
    "one_octet": (b"H",),
    "line_end": (b"\r\n",),
    "an_answer": (ok(b"evil"),),
    "half_an_answer": (ok(b"evil")[:-2],),
    "an_answer_and_fin": (ok(b"evil"), CLOSE),
    "interim": (INTERIM,),
    "timeout": (b"HTTP/1.1 408 Late\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", CLOSE),
    "last_chunk": (LAST_CHUNK,),
}
# REUSED: the connection does this when the next request has come, a POST; None: its SDK may repeat it.
REUSED: dict[str, tuple[Script, str | None]] = {
    "stale_fin": ((CLOSE,), None),
    "stale_reset": ((CUT,), None),
    "one_octet_and_fin": ((b"H", CLOSE), "upstream_closed"),
    "one_octet_and_reset": ((b"H", CUT), "upstream_closed"),
    "interim_and_fin": ((INTERIM, CLOSE), "upstream_closed"),
    "half_a_head": ((b"HTTP/1.1 200 OK\r\nContent-", CLOSE), "upstream_closed"),
    "garbage": ((b"garbage\r\n\r\n",), "upstream_malformed"),
    "line_end_first": ((b"\r\n" + ok(b"evil"),), "upstream_malformed"),
    "last_chunk_first": ((LAST_CHUNK + ok(b"evil"),), "upstream_malformed"),
}
BETWEEN = [*IDLE, *REUSED]
CASES = [
    pytest.param(surface, fault, id=f"{surface.name}-{name}")
    for surface in SURFACES
    for name, fault in FAULTS.items()
    if surface.event or not fault.events_only
]


def test_the_table_is_large() -> None:
    """There are at least a hundred kinds of misbehaviour, and some in every phase."""
    assert len(FAULTS) + len(BETWEEN) >= 100
    assert min(map(len, (BEFORE_THE_HEAD, IN_CONTENT, SPOILT, BETWEEN))) >= 10


@pytest.fixture
async def gateway(upstream: Upstream) -> AsyncIterator[Proxy]:
    """Give a gateway that serves /api/chat too."""
    proxy = Proxy(upstream.port, allow=("POST /api/chat",))
    await proxy.start()
    yield proxy
    await proxy.stop()


def error_in(surface: Surface, octets: bytes) -> str:
    """Return the message of an error event in the surface's own form."""
    assert surface.event is not None
    told = octets.decode()
    assert told.startswith(surface.event)
    assert told.endswith("\n" if surface.name == "ndjson" else "\n\n")
    found = json.loads(told[told.index("{") :])
    if surface.name == "ndjson":
        return str(found["error"])
    assert found.get("type") == {"chat": None, "responses": "response.failed", "messages": "error"}[surface.name]
    return str(found["error"]["message"])


SAID = {
    "upstream_closed": "Ollama stopped before its answer was complete",
    "upstream_malformed": "Ollama's answer turned into invalid HTTP",
    "missing_terminator": "Ollama ended its answer without finishing it",
}
REFUSED = {
    "upstream_closed": "Ollama closed the connection before it answered",
    "upstream_malformed": "The response from `upstream` was not valid HTTP",
}


@pytest.mark.parametrize(("surface", "fault"), CASES)
async def test_faults(gateway: Proxy, upstream: Upstream, wire: Wire, surface: Surface, fault: Fault) -> None:
    """Whatever Ollama does, the client sees the truth, the audit has it, and the next request is served well."""
    upstream.answers_in_turn(fault.script(surface), (ok(b"next"),))
    await wire.request("POST", surface.target, b'{"model":"m"}')
    answer = await wire.answer()
    (line,) = await gateway.lines()
    assert (line["model"], line["status"]) == ("m", answer.status)
    if fault.then == "refused":
        assert (answer.status, answer.whole, answer.fields["x-should-retry"]) == (502, True, "false")
        assert REFUSED[str(fault.reason)] in answer.content.decode()
        assert (line["ended"], line["reason"]) == ("upstream/wait", fault.reason)
    elif fault.then == "whole":
        assert (answer.status, answer.whole, answer.content) == (200, True, surface.whole)
        assert (line["ended"], line.get("reason")) == ("complete", None)
    else:
        content = fault.content(surface)
        assert (answer.status, answer.whole) == (200, False)
        assert answer.content.startswith(content)
        if fault.then == "event" and surface.event:
            assert SAID[str(fault.reason)] in error_in(surface, answer.content.removeprefix(content))
        else:
            assert answer.content == content
        assert (line["ended"], line["reason"]) == ("upstream/content", fault.reason)
        assert line["bytes_out"] == len(content)
    if not fault.kept:
        await within(upstream.peers[0].closed.wait())
    client = wire if answer.whole else await gateway.connect()
    await client.request("GET", "/api/tags")
    assert (await client.answer()).content == b"next"
    assert len(upstream.peers) == (1 if fault.kept else 2)
    client.close()


@pytest.mark.parametrize("surface", SURFACES, ids=lambda surface: surface.name)
@pytest.mark.parametrize("script", [pytest.param(script, id=name) for name, script in IDLE.items()])
async def test_faults_while_idle(
    gateway: Proxy, upstream: Upstream, wire: Wire, surface: Surface, script: Script
) -> None:
    """Whatever an idle connection brings reaches no exchange: the next one is served on a fresh connection."""
    whole = (surface.chunked, chunk(surface.whole), LAST_CHUNK)
    upstream.answers_in_turn((*whole, NEXT, *script), (*whole,))
    await wire.request("POST", surface.target, b'{"model":"m"}')
    assert (await wire.answer()).content == surface.whole
    upstream.proceed()
    await within(upstream.peers[0].closed.wait())
    await wire.request("POST", surface.target, b'{"model":"m"}')
    answer = await wire.answer()
    assert (answer.status, answer.whole, answer.content) == (200, True, surface.whole)
    assert [line["ended"] for line in await gateway.lines(2)] == ["complete"] * 2
    assert [len(upstream.peers), len(upstream.requests)] == [2, 2]


async def reused(upstream: Upstream, wire: Wire, surface: Surface, *scripts: Script, content: bytes = b"{}") -> Answer:
    """Return the answer to the second request on a connection to Ollama, which goes by these scripts."""
    whole = (surface.chunked, chunk(surface.whole), LAST_CHUNK)
    upstream.answers_in_turn(whole, *scripts, whole)
    await wire.request("POST", surface.target, b"{}")
    assert (await wire.answer()).content == surface.whole
    await wire.request("POST", surface.target, content)
    return await wire.answer()


@pytest.mark.parametrize("surface", SURFACES, ids=lambda surface: surface.name)
@pytest.mark.parametrize(("script", "reason"), [pytest.param(*case, id=name) for name, case in REUSED.items()])
async def test_faults_on_reuse(
    gateway: Proxy, upstream: Upstream, wire: Wire, surface: Surface, script: Script, reason: str | None
) -> None:
    """A POST on a reused connection that fails isn't repeated here; its SDK may, if no byte has come."""
    answer = await reused(upstream, wire, surface, script)
    line = (await gateway.lines(2))[1]
    assert (answer.status, answer.whole) == (502, True)
    assert (line["ended"], line["reason"]) == ("upstream/wait", reason or "upstream_closed")
    assert answer.fields.get("x-should-retry") == ("false" if reason else None)
    assert len(upstream.requests) == 2


@pytest.mark.parametrize("surface", SURFACES, ids=lambda surface: surface.name)
@pytest.mark.parametrize("end", [CLOSE, CUT], ids=["fin", "reset"])
async def test_late_ends_on_reuse(
    gateway: Proxy, upstream: Upstream, wire: Wire, monkeypatch: pytest.MonkeyPatch, surface: Surface, end: Step
) -> None:
    """A connection that ends a second after sending wasn't stale: Ollama died of the request, and no SDK repeats it."""
    asking = asyncio.create_task(reused(upstream, wire, surface, (NEXT, end)))
    await until(lambda: len(upstream.requests) == 2)
    monkeypatch.setattr("proxy.exchange.relay.monotonic", lambda: monotonic() + STALE_WITHIN)
    upstream.proceed()
    answer = await asking
    assert (answer.status, answer.whole, answer.fields["x-should-retry"]) == (502, True, "false")
    assert (await gateway.lines(2))[1]["reason"] == "upstream_closed"
    assert len(upstream.requests) == 2


async def drained(wire: Wire) -> None:
    """Read all there is, up to the end."""
    while await wire.read():
        pass


CUT_SHORT = [
    pytest.param(surface, fault, id=f"{surface.name}-{name}")
    for surface in SURFACES
    for name, fault in IN_CONTENT.items()
    if ("length" not in name or surface.event)
    and (surface.event or not fault.events_only)
    and surface.name in {"chat", "json"}
]


@pytest.mark.parametrize(("surface", "fault"), CUT_SHORT)
async def test_faults_to_an_http_1_0_client(
    gateway: Proxy, upstream: Upstream, wire: Wire, surface: Surface, fault: Fault
) -> None:
    """Where the connection's end is the content's, a fault ends it with a reset: all else would look complete."""
    upstream.answers_in_turn(fault.script(surface), (ok(b"next"),))
    await wire.send(f"POST {surface.target} HTTP/1.0\r\nContent-Length: 2\r\n\r\n{{}}".encode())
    with pytest.raises(ConnectionResetError):
        await drained(wire)
    (line,) = await gateway.lines()
    assert (line["ended"], line["reason"]) == ("upstream/content", fault.reason)


@pytest.mark.parametrize("events", [1, 2])
async def test_failed_event_goes_on_counting(gateway: Proxy, upstream: Upstream, wire: Wire, events: int) -> None:
    """The event that ends a response carries its id and the number after the last one seen."""
    surface = SURFACES[1]
    upstream.answers(surface.chunked, *map(chunk, (surface.lead, surface.more)[:events]), CUT)
    await wire.request("POST", surface.target, b"{}")
    found = json.loads((await wire.answer()).content.rpartition(b"data: ")[2])
    assert (found["sequence_number"], found["response"]["id"]) == (events, "resp_7")
    assert (found["response"]["status"], found["response"]["error"]["code"]) == ("failed", "server_error")


@pytest.mark.parametrize("surface", [each for each in SURFACES if each.event], ids=lambda surface: surface.name)
@pytest.mark.parametrize("missing", [1, 2])
async def test_ends_without_line_ends(
    gateway: Proxy, upstream: Upstream, wire: Wire, surface: Surface, missing: int
) -> None:
    """A stream whose terminator lacks its line ends is complete, and passes as it is: nothing is added to it."""
    whole = surface.whole.rstrip(b"\n") + b"\n" * (surface.whole.endswith(b"\n\n") and missing == 1)
    upstream.answers(surface.chunked, chunk(whole), LAST_CHUNK)
    await wire.request("POST", surface.target, b"{}")
    answer = await wire.answer()
    assert (answer.content, answer.whole) == (whole, True)
    assert (await gateway.lines())[0]["ended"] == "complete"


FINISHED = {
    "chat": b'data: {"model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
    "messages": b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"}}\n\n',
    "ndjson": b'{"model":"m","message":{"content":""},"done":false,"done_reason":"stop"}\n',
}


@pytest.mark.parametrize("surface", [each for each in SURFACES if each.name in FINISHED], ids=lambda each: each.name)
@pytest.mark.parametrize(
    ("end", "then"),
    [
        pytest.param((LAST_CHUNK,), "complete", id="clean"),
        pytest.param((CLOSE,), "upstream/content", id="fin"),
        pytest.param((CUT,), "upstream/content", id="reset"),
        pytest.param((chunk(b"data: {")[:-2], CLOSE), "upstream/content", id="fin_in_a_chunk"),
        pytest.param((chunk(b'data: {"cho'), LAST_CHUNK), "upstream/content", id="clean_in_an_event"),
    ],
)
async def test_ends_with_a_reason(
    gateway: Proxy, upstream: Upstream, wire: Wire, surface: Surface, end: Script, then: str
) -> None:
    """A reason to finish is an end where the terminator is missing and the framing ended cleanly, and nowhere else."""
    content = surface.lead + FINISHED[surface.name]
    upstream.answers(surface.chunked, chunk(content), *end)
    await wire.request("POST", surface.target, b"{}")
    answer = await wire.answer()
    assert answer.content.startswith(content)
    assert answer.whole is (then == "complete")
    assert (await gateway.lines())[0]["ended"] == then
    if answer.whole:
        assert answer.content == content


async def test_large_event_cut(gateway: Proxy, upstream: Upstream, wire: Wire) -> None:
    """Nothing of our own is written inside an event, whatever its size."""
    surface = SURFACES[0]
    upstream.answers(surface.chunked, chunk(surface.lead), *[chunk(b"data: " + b"x" * 100_000)] * 4, CUT)
    await wire.request("POST", surface.target, b"{}")
    answer = await wire.answer()
    assert not answer.whole
    assert re.fullmatch(rb"(data: x+)+", answer.content.removeprefix(surface.lead))


async def test_own_mistake_in_reading(
    gateway: Proxy, upstream: Upstream, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug in reading a response costs its facts, never the response, and the audit line reports it."""

    def feed(self: object, data: bytes) -> None:
        raise RuntimeError

    monkeypatch.setattr("proxy.exchange.streams.Events.feed", feed)
    surface = SURFACES[0]
    upstream.answers(surface.chunked, chunk(surface.whole), LAST_CHUNK)
    await wire.request("POST", surface.target, b'{"model":"m"}')
    answer = await wire.answer()
    assert (answer.content, answer.whole) == (surface.whole, True)
    (line,) = await gateway.lines()
    assert (line["ended"], line["reason"]) == ("complete", "internal")


# --- what the SDKs make of it -----------------------------------------------------------------------------------------


Ask = Callable[[], AsyncIterator[object]]
TURN: Any = [{"role": "user", "content": "x"}]


@pytest.fixture
async def asks(gateway: Proxy) -> AsyncIterator[dict[str, Ask]]:
    """Give, for each surface, what a program does with its SDK to see every event of an answer."""
    base = f"http://127.0.0.1:{gateway.port}"
    # Nothing here is encrypted, and to load the certificates of the world takes longer than any of these tests.
    openai_http = openai.DefaultAsyncHttpxClient(verify=False)
    anthropic_http = anthropic.DefaultAsyncHttpxClient(verify=False)
    by_openai = openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="none", http_client=openai_http)
    by_anthropic = anthropic.AsyncAnthropic(base_url=base, api_key="none", http_client=anthropic_http)
    by_ollama = ollama.AsyncClient(host=base, verify=False)

    async def chat() -> AsyncIterator[object]:
        async for event in await by_openai.chat.completions.create(model="m", messages=TURN, stream=True):
            yield event

    async def responses() -> AsyncIterator[object]:
        async for event in await by_openai.responses.create(model="m", input="x", stream=True):
            yield event

    async def messages() -> AsyncIterator[object]:
        stream = await by_anthropic.messages.create(model="m", max_tokens=5, messages=TURN, stream=True)
        async for event in stream:
            yield event

    async def ndjson() -> AsyncIterator[object]:
        async for event in await by_ollama.chat(model="m", messages=TURN, stream=True):
            yield event

    async def plain() -> AsyncIterator[object]:
        once = by_openai.with_options(
            max_retries=0
        )  # a connection that breaks before the content is there is tried again
        yield await once.chat.completions.create(model="m", messages=TURN)

    yield {"chat": chat, "responses": responses, "messages": messages, "ndjson": ndjson, "json": plain}
    await by_openai.close()
    await by_anthropic.close()
    await by_ollama._client.aclose()


async def exhausted(events: AsyncIterator[object]) -> None:
    """Take all there is."""
    async for _ in events:
        pass


# The anthropic and ollama SDKs let their HTTP library's own error through where a connection breaks inside content.
BROKEN_OFF = (httpx.RemoteProtocolError, httpx2.RemoteProtocolError, httpx.ReadError, httpx2.ReadError)
CLOSED = "Ollama closed the connection before it answered"
NO_HTTP = "The response from `upstream` was not valid HTTP"
RAISED = [
    ("chat", "closes_at_once", "InternalServerError", CLOSED, 0),
    ("chat", "garbage", "InternalServerError", NO_HTTP, 0),
    ("chat", "cut_at_border", "APIError", SAID["upstream_closed"], 1),
    ("chat", "chunk_size_in_words", "APIError", SAID["upstream_malformed"], 1),
    ("chat", "clean_end_without_terminator", "APIError", SAID["missing_terminator"], 1),
    ("chat", "cut_in_event", "APIConnectionError", "Connection error", 1),
    ("responses", "closes_at_once", "InternalServerError", CLOSED, 0),
    ("responses", "cut_at_border", "APIError", SAID["upstream_closed"], 1),
    ("responses", "clean_end_without_terminator", "APIError", SAID["missing_terminator"], 1),
    ("responses", "cut_in_event", "APIConnectionError", "Connection error", 1),
    ("messages", "closes_at_once", "InternalServerError", CLOSED, 0),
    ("messages", "cut_at_border", "APIStatusError", SAID["upstream_closed"], 1),
    ("messages", "clean_end_without_terminator", "APIStatusError", SAID["missing_terminator"], 1),
    ("messages", "cut_in_event", "RemoteProtocolError", "without sending complete message body", 1),
    ("ndjson", "closes_at_once", "ResponseError", CLOSED, 0),
    ("ndjson", "cut_at_border", "ResponseError", SAID["upstream_closed"], 1),
    ("ndjson", "clean_end_without_terminator", "ResponseError", SAID["missing_terminator"], 1),
    ("ndjson", "cut_in_event", "RemoteProtocolError", "without sending complete message body", 1),
    ("json", "closes_at_once", "InternalServerError", CLOSED, 0),
    ("json", "cut_at_border", "APIConnectionError", "Connection error", 0),
    ("json", "short_of_its_length", "APIConnectionError", "Connection error", 0),
]


@pytest.mark.parametrize(("name", "fault", "error", "said", "events"), RAISED)
async def test_what_sdks_raise(
    upstream: Upstream, asks: dict[str, Ask], name: str, fault: str, error: str, said: str, events: int
) -> None:
    """An SDK raises an error that says what happened, after the events that came, and asks Ollama only once."""
    surface = next(each for each in SURFACES if each.name == name)
    upstream.answers(*FAULTS[fault].script(surface))
    seen = []

    async def ask() -> None:
        async for event in asks[name]():
            seen.append(event)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(Exception, match=re.escape(said)) as caught:
        await within(ask())
    assert (type(caught.value).__name__, len(seen), len(upstream.requests)) == (error, events, 1)


@pytest.mark.parametrize("surface", SURFACES, ids=lambda surface: surface.name)
@pytest.mark.parametrize("phase", [BEFORE_THE_HEAD, IN_CONTENT], ids=["before_the_head", "in_content"])
async def test_no_fault_is_a_success_to_an_sdk(
    upstream: Upstream, asks: dict[str, Ask], surface: Surface, phase: dict[str, Fault]
) -> None:
    """Whatever Ollama did wrong, the SDK of each surface raises an error of its own, never nothing."""
    silent, others = [], []
    for name, fault in some([*phase.items()]):
        if fault.events_only and not surface.event:
            continue
        if surface.name == "chat" and fault.content is _whole:
            continue  # behind `[DONE]` the SDK reads no further, and it has all there is
        upstream.answers(*fault.script(surface))
        try:
            await within(exhausted(asks[surface.name]()))
        except (openai.OpenAIError, anthropic.AnthropicError, ollama.ResponseError, *BROKEN_OFF):
            continue
        except Exception as error:  # named below
            others.append((name, repr(error)))
        else:
            silent.append(name)
    assert (silent, others) == ([], [])


@pytest.mark.parametrize("surface", SURFACES, ids=lambda surface: surface.name)
async def test_spoilt_connections_are_nothing_to_sdks(
    upstream: Upstream, asks: dict[str, Ask], surface: Surface
) -> None:
    """What Ollama does wrong behind a whole answer is no error to an SDK."""
    for fault in SPOILT.values():
        upstream.answers(*fault.script(surface))
        await within(exhausted(asks[surface.name]()))


@pytest.mark.parametrize("content", [b"", b'{"model":"m",'], ids=["none", "half"])
async def test_half_an_object_is_an_error_to_the_sdk(upstream: Upstream, asks: dict[str, Ask], content: bytes) -> None:
    """An answer that HTTP calls whole, and JSON doesn't, passes as it is: the SDK raises an error by itself."""
    upstream.answers(ok(content))
    with pytest.raises(json.JSONDecodeError):
        await within(exhausted(asks["json"]()))


@pytest.mark.parametrize("surface", SURFACES, ids=lambda surface: surface.name)
async def test_sdks_are_content(upstream: Upstream, asks: dict[str, Ask], surface: Surface) -> None:
    """What is whole raises nothing: the answers of this table are what the SDKs expect."""
    upstream.answers(surface.chunked, chunk(surface.whole), LAST_CHUNK)
    assert [event async for event in asks[surface.name]()]
