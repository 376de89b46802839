"""What is read in a passing answer: borders, terminator, model, tokens, events; the same however it is split."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.exchange import streams
from proxy.exchange.message import json_edges
from proxy.exchange.message.json_edges import EDGE
from proxy.exchange.message.model_scan import ModelScan, model_in
from proxy.exchange.message.plain_chunks import chunk
from proxy.exchange.message.whole_answer import facts_in
from proxy.exchange.streams import WHOLE, Answer, Events
from proxy.policy.routes import Dialect
from tests.support.examples import examples
from tests.support.ollama_recordings import recording

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

CHAT, RESPONSES, MESSAGES, NDJSON = Dialect.CHAT, Dialect.RESPONSES, Dialect.MESSAGES, Dialect.NDJSON


@dataclass
class Facts:
    """What was found out."""

    model: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    events: int | None = None
    blank: bool = False


def read(dialect: Dialect, pieces: Iterable[bytes], *, model: str | None = None) -> tuple[Events, Facts]:
    """Return the reader of a stream that came in these pieces, and the facts: the same if each piece is a chunk."""
    facts, facts_of_chunks = Facts(model), Facts(model)
    events, of_chunks = Events(facts, dialect), Events(facts_of_chunks, dialect)
    for piece in pieces:
        events.feed(piece)
        length = of_chunks.token(chunk(piece))
        assert length in (0, len(piece))
        if not length:
            of_chunks.feed(piece)
        assert (of_chunks.events, of_chunks.terminated) == (events.events, events.terminated)
        assert of_chunks.at_border == events.at_border
    events.end()
    of_chunks.end()
    assert facts_of_chunks == facts
    return events, facts


def octetwise(octets: bytes) -> list[bytes]:
    """Return every byte alone."""
    return [octets[at : at + 1] for at in range(len(octets))]


def eventwise(octets: bytes, dialect: Dialect) -> list[bytes]:
    """Return every event alone, as Ollama flushes them."""
    border = b"\n" if dialect is NDJSON else b"\n\n"
    return [event + border for event in octets.split(border)[:-1]]


def data(**found: Any) -> bytes:
    """Return a data-only event."""
    return b"data: " + json.dumps(found, separators=(",", ":")).encode() + b"\n\n"


def event(name: str, **found: Any) -> bytes:
    """Return a named event whose object has the name as its type."""
    return f"event: {name}\n".encode() + data(type=name, **found)


def line(**found: Any) -> bytes:
    """Return a line of NDJSON."""
    return json.dumps(found, separators=(",", ":")).encode() + b"\n"


DONE = b"data: [DONE]\n\n"

# --- what Ollama sends ------------------------------------------------------------------------------------------------

# name of the recording, dialect, model, tokens in and out, events, whether it says that it is complete
STREAMS: list[tuple[str, Dialect, str | None, int | None, int | None, int, bool]] = [
    ("chat-stream", CHAT, "tiny", None, None, 14, True),
    ("chat-stream-usage", CHAT, "tiny", 4, 12, 15, True),
    ("chat-stream-thinking", CHAT, "thinker", None, None, 12, True),
    ("chat-stream-toolcall", CHAT, "toolcaller", None, None, 3, True),
    ("chat-stream-jinja-think-text-tool", CHAT, "jinja", None, None, 9, True),
    ("chat-stream-large", CHAT, "tiny", None, None, 62, True),
    ("responses-stream", RESPONSES, "tiny", 4, 12, 20, True),
    ("responses-stream-thinking", RESPONSES, "thinker", 4, 12, 21, True),
    ("responses-stream-toolcall", RESPONSES, "toolcaller", 6, 6, 7, True),
    ("responses-stream-large", RESPONSES, "tiny", 7, 60, 68, True),
    ("messages-stream", MESSAGES, "tiny", 4, 12, 17, True),
    ("messages-stream-thinking", MESSAGES, "thinker", 4, 12, 17, True),
    ("messages-stream-toolcall", MESSAGES, "toolcaller", 6, 6, 6, True),
    ("messages-stream-large", MESSAGES, "tiny", 7, 60, 65, True),
    ("apichat-stream", NDJSON, "tiny", 4, 12, 13, True),
    ("apichat-stream-thinking", NDJSON, "thinker", 4, 12, 11, True),
    ("apichat-stream-toolcall", NDJSON, "toolcaller", 6, 6, 2, True),
    ("generate-stream", NDJSON, "tiny", 4, 12, 13, True),
    ("generate-stream-large", NDJSON, "tiny", 7, 60, 61, True),
    # No token came, so no count of them in NDJSON.
    ("scn-standin-empty-apichat-stream", NDJSON, "tiny", 5, None, 1, True),
    ("scn-standin-empty-messages-stream", MESSAGES, "tiny", 5, 0, 3, True),
    # The model died: only NDJSON says so, with an "error" line; the others just end.
    ("scn-runner-dies-apichat-stream", NDJSON, "slow", None, None, 7, True),
    ("scn-runner-dies-chat-stream", CHAT, "slow", None, None, 7, False),
    ("scn-runner-dies-responses-stream", RESPONSES, "slow", None, None, 10, False),
    ("scn-runner-dies-messages-stream", MESSAGES, "slow", None, None, 8, False),
    # The model repeated itself, and Ollama doesn't report it.
    ("scn-standin-repeat-chat-stream", CHAT, "tiny", None, None, 34, False),
    ("scn-standin-repeat-responses-stream", RESPONSES, "tiny", None, None, 38, False),
    ("scn-standin-repeat-messages-stream", MESSAGES, "tiny", None, None, 36, False),
    ("scn-standin-repeat-apichat-stream", NDJSON, "tiny", None, None, 34, False),
    # Cut while the answer was under way.
    ("scn-signal-SIGTERM", CHAT, "slow", None, None, 7, False),
]


@pytest.mark.parametrize("crlf", [False, True], ids=["lf", "crlf"])
@pytest.mark.parametrize("split", ["whole", "eventwise", "octetwise"])
@pytest.mark.parametrize("case", [pytest.param(case, id=case[0]) for case in STREAMS])
def test_recorded_streams(case: tuple[Any, ...], split: str, crlf: bool) -> None:
    """Every recorded stream gives its model, counts and end, in any split, and with either line end."""
    name, dialect, model, tokens_in, tokens_out, count, terminated = case
    octets = recording(name).content
    pieces = {"whole": [octets], "eventwise": eventwise(octets, dialect), "octetwise": octetwise(octets)}[split]
    if crlf:
        pieces = [piece.replace(b"\n", b"\r\n") for piece in pieces]
        pieces = octetwise(b"".join(pieces)) if split == "octetwise" else pieces
    events, facts = read(dialect, pieces)
    assert facts == Facts(model, tokens_in, tokens_out, count)
    assert (events.terminated, events.at_border) == (terminated, True)


@pytest.mark.parametrize("model", [None, "m"], ids=["model_unknown", "model_known"])
@pytest.mark.parametrize(
    ("name", "dialect"),
    [
        pytest.param("chat-stream-large", CHAT, id="chat"),
        pytest.param("responses-stream-large", RESPONSES, id="responses"),
        pytest.param("messages-stream-large", MESSAGES, id="messages"),
        pytest.param("apichat-stream-large", NDJSON, id="apichat"),
        pytest.param("generate-stream-large", NDJSON, id="generate"),
    ],
)
def test_tokens_are_not_parsed(name: str, dialect: Dialect, model: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events that only bring a token are counted and not parsed; only the few others of a stream are."""
    parsed: list[bytes] = []

    def counting(octets: bytes) -> dict[str, Any]:
        parsed.append(octets)
        return json_edges.as_object(octets)

    monkeypatch.setattr(streams, "as_object", counting)
    events, _ = read(dialect, eventwise(recording(name).content, dialect), model=model)
    assert events.events >= 60
    assert len(parsed) <= 16  # by both readers


@pytest.mark.parametrize("start", [b"", event("ping")], ids=["at_once", "behind_an_event"])
@pytest.mark.parametrize("name", ["content_block_delta", "response.output_text.delta"])
def test_tokens_are_not_parsed_where_no_model_is_told(name: str, start: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a stream whose events have names, a token behind the first event is never read for a model."""
    parsed: list[bytes] = []
    monkeypatch.setattr(streams, "as_object", lambda octets: parsed.append(octets) or {})
    dialect = MESSAGES if name.startswith("content") else RESPONSES
    _, facts = read(dialect, [start, *[event(name, delta={"text": "a"})] * 20])
    assert (facts.model, facts.events) == (None, 20 + bool(start))
    assert len(parsed) == 2  # one by each reader


@pytest.mark.parametrize("case", [pytest.param(case, id=case[0]) for case in STREAMS if case[6]])
def test_cut_streams(case: tuple[Any, ...]) -> None:
    """A stream cut anywhere before its terminator isn't complete, and is at a border exactly between two events."""
    name, dialect = case[:2]
    octets = recording(name).content
    border = b"\n" if dialect is NDJSON else b"\n\n"
    last = octets[: -len(border)].rfind(border) + len(border) if octets.count(border) > 1 else 0
    for end in range(0, last, 7):
        events, _ = read(dialect, [octets[:end]])
        assert not events.terminated
        assert events.at_border is (not end or octets[:end].endswith(border))


@examples(60)
@given(st.sampled_from([case for case in STREAMS if not case[0].endswith("large")]), st.data())
def test_any_split(case: tuple[Any, ...], draw: st.DataObject) -> None:
    """The facts are the same whatever the split."""
    octets = recording(case[0]).content
    cuts = draw.draw(st.lists(st.integers(min_value=1, max_value=len(octets) - 1), max_size=40))
    pieces = [octets[start:end] for start, end in pairwise(sorted({0, len(octets), *cuts}))]
    events, facts = read(case[1], pieces)
    assert (facts, events.terminated, events.at_border) == (Facts(*case[2:6]), case[6], True)


ANSWERS: list[tuple[str, str | None, int | None, int | None]] = [
    ("chat-nonstream", "tiny", 4, 12),
    ("chat-nonstream-large", "tiny", 7, 600),
    ("chat-nonstream-toolcall", "toolcaller", 6, 6),
    ("completions-nonstream", "tiny", 3, 3),
    ("responses-nonstream", "tiny", 4, 12),
    ("responses-nonstream-toolcall", "toolcaller", 6, 6),
    ("messages-nonstream", "tiny", 4, 12),
    ("messages-nonstream-thinking", "thinker", 4, 12),
    ("messages-nonstream-toolcall", "toolcaller", 6, 6),
    ("apichat-nonstream", "tiny", 4, 12),
    ("apichat-nonstream-toolcall", "toolcaller", 6, 6),
    ("generate-nonstream", "tiny", 4, 12),
    ("generate-nonstream-large", "tiny", 7, 600),
    ("generate-load", "tiny", None, None),
    ("scn-standin-empty-apichat-nonstream", "tiny", 5, None),
    ("scn-standin-repeat-chat-nonstream", "tiny", 0, 0),
]


@pytest.mark.parametrize("case", [pytest.param(case, id=case[0]) for case in ANSWERS])
def test_recorded_answers(case: tuple[str, str | None, int | None, int | None]) -> None:
    """Every recorded answer that isn't streamed gives its model and counts, whole and byte by byte."""
    name, *expected = case
    for pieces in ([recording(name).content], octetwise(recording(name).content)):
        facts = Facts()
        answer = Answer(facts)
        for piece in pieces:
            answer.feed(piece)
        answer.end()
        assert facts == Facts(*expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "octets",
    [
        b"", b"not JSON", b'{"model":"m"', b'["model"]', b'"model"', b"null", b'{"model":""}', b'{"model":5}',
        b'{"usage":[1]}', b'{"usage":{"prompt_tokens":"4","completion_tokens":1.5}}', b'{"prompt_eval_count":true}',
        b'{"response":{"model":null}}', b'{"message":"model"}', b'{"choices":[{"message":{"model":"m"}}]}',
        b'{"model":"\xff"}', b"[" * 5000,
    ],
)  # fmt: skip
def test_answers_that_tell_nothing(octets: bytes) -> None:
    """A fact that isn't given is None, never guessed."""
    facts = Facts()
    answer = Answer(facts)
    answer.feed(octets)
    answer.end()
    assert facts == Facts()


KEYS = (
    *("model", "usage", "prompt_tokens", "input_tokens", "prompt_eval_count"),
    *("completion_tokens", "output_tokens", "eval_count", "other"),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=6,
)


@examples(300)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES))
def test_usual_and_odd_answers_are_read_alike(answer: dict[str, Any]) -> None:
    """What an answer of Ollama's form gives without making objects is what it gives as objects."""
    octets = json.dumps(answer).encode()
    found = facts_in(octets)
    facts = Facts()
    reader = Answer(facts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("proxy.exchange.streams.facts_in", lambda _: None)
        reader.feed(octets)
        reader.end()
    assert found is None or Facts(*found) == facts


def test_an_answer_of_ollama_is_read_without_making_objects() -> None:
    """Each recorded answer that isn't streamed has the form that is read fast."""
    for name, *expected in ANSWERS:
        assert facts_in(recording(name).content) == tuple(expected)


# --- single events ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [None, "m"], ids=["model_unknown", "model_known"])
@pytest.mark.parametrize(
    ("dialect", "octets"),
    [
        pytest.param(CHAT, DONE, id="done"),
        pytest.param(CHAT, b": ping\ndata: [DONE]\n\n", id="done_behind_a_comment"),
        pytest.param(MESSAGES, b'event:message_stop\ndata:{"type":"message_stop"}\n\n', id="message_stop_no_space"),
        pytest.param(MESSAGES, b'data: {"type":"message_stop"}\n\n', id="message_stop_data_only"),
        pytest.param(MESSAGES, b'data: {"type":"message_stop"}\nevent: message_stop\n\n', id="message_stop_name_last"),
        pytest.param(MESSAGES, b"id: 1\nevent: message_stop\ndata: {}\n\n", id="message_stop_other_lines"),
        pytest.param(RESPONSES, b'event:response.completed\ndata:{"response":{}}\n\n', id="completed_no_space"),
        pytest.param(RESPONSES, b"event: response.completed\ndata: {}\n\n", id="completed_empty"),
        pytest.param(RESPONSES, data(type="response.failed"), id="failed_data_only"),
        pytest.param(
            NDJSON,
            line(message={"tool_calls": [{"function": {"arguments": {"done": False}}}]}, done=True),
            id="done_behind_arguments",
        ),
        pytest.param(CHAT, b"data:[DONE]\n\n", id="done_without_a_space"),
        pytest.param(RESPONSES, event("response.completed", response={}), id="completed"),
        pytest.param(RESPONSES, event("response.failed", response={}), id="failed"),
        pytest.param(RESPONSES, event("response.incomplete", response={}), id="incomplete"),
        pytest.param(RESPONSES, b'event: response.completed\ndata: {"response": {}}\n\n', id="completed_with_spaces"),
        pytest.param(MESSAGES, event("message_stop"), id="message_stop"),
        pytest.param(MESSAGES, event("error", error={}), id="error_event"),
        pytest.param(NDJSON, line(done=True), id="done_true"),
        pytest.param(NDJSON, b'{"done": true}\n', id="done_true_with_a_space"),
        pytest.param(NDJSON, line(error="x"), id="error_line"),
        pytest.param(NDJSON, b'{"error": "x"}\n', id="error_line_with_a_space"),
    ],
)
def test_terminators(dialect: Dialect, octets: bytes, known: str | None) -> None:
    """Each dialect has its own ways to say that a stream is complete, and none counts before it is whole."""
    for pieces in ([octets], octetwise(octets), [octets + octets]):
        assert read(dialect, pieces, model=known)[0].terminated
    assert not read(dialect, [octets[:-1]], model=known)[0].terminated


TOKEN = {
    CHAT: data(model="m", choices=[{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]),
    RESPONSES: event("response.output_text.delta", delta="a"),
    MESSAGES: event("content_block_delta", delta={"type": "text_delta", "text": "a"}),
    NDJSON: line(model="m", message={"content": "a"}, done=False),
}
FINISHED = [
    pytest.param(CHAT, data(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]), id="finish_reason"),
    pytest.param(CHAT, b'data: {"choices": [{"delta": {"content": "a"}, "finish_reason": "length"}]}\n\n', id="spaces"),
    pytest.param(CHAT, b'data:{"choices":[{"text":"","index":0,"finish_reason":"stop"}],"model":"m"}\n\n', id="text"),
    pytest.param(MESSAGES, event("message_delta", delta={"stop_reason": "end_turn"}, usage={}), id="stop_reason"),
    pytest.param(MESSAGES, data(type="message_delta", delta={"stop_reason": "tool_use"}), id="stop_reason_data_only"),
    pytest.param(MESSAGES, b'event:message_delta\ndata:{"delta":{"stop_reason":"max_tokens"}}\n\n', id="no_space"),
    pytest.param(NDJSON, line(message={"content": ""}, done=False, done_reason="stop"), id="done_reason"),
    pytest.param(NDJSON, line(done_reason="length", response="", done=False), id="done_reason_first"),
    pytest.param(NDJSON, b'{"message": {}, "done": false, "done_reason": "load"}\n', id="done_reason_with_spaces"),
]


def judged(dialect: Dialect, pieces: Iterable[bytes], known: str | None = "m") -> bool:
    """Return whether content of these pieces, framed cleanly, is a complete answer."""
    return read(dialect, pieces, model=known)[0].complete()


@pytest.mark.parametrize("known", [None, "m"], ids=["model_unknown", "model_known"])
@pytest.mark.parametrize("crlf", [False, True], ids=["lf", "crlf"])
@pytest.mark.parametrize(("dialect", "octets"), FINISHED)
def test_reasons_to_finish(dialect: Dialect, octets: bytes, crlf: bool, known: str | None) -> None:
    """Where the terminator is missing a reason to finish counts as the end, however the stream was split."""
    whole = TOKEN[dialect] * 2 + octets
    whole = whole.replace(b"\n", b"\r\n") if crlf else whole
    for pieces in ([whole], octetwise(whole), eventwise(whole.replace(b"\r\n", b"\n"), dialect)):
        assert judged(dialect, pieces, known)
        assert not read(dialect, pieces, model=known)[0].terminated


@pytest.mark.parametrize(("dialect", "octets"), FINISHED)
def test_tokens_behind_a_reason_to_finish(dialect: Dialect, octets: bytes) -> None:
    """A stream that goes on has not finished: another choice may have been cut."""
    for pieces in ([octets, TOKEN[dialect]], [octets + TOKEN[dialect]], octetwise(octets + TOKEN[dialect])):
        assert not judged(dialect, pieces)


def test_usage_is_no_reason_to_finish() -> None:
    """A chunk without choices brings the usage, and says nothing about the end."""
    token = data(model="m", choices=[{"delta": {"content": "x"}}])
    events, facts = read(CHAT, [token, data(choices=[], usage={"prompt_tokens": 1, "completion_tokens": 2})])
    assert not events.complete()
    assert (facts.tokens_in, facts.tokens_out) == (1, 2)


def test_counts_without_a_reason_to_finish() -> None:
    """The last line of NDJSON has the counts, whether it says why the model stopped or not."""
    last = line(model="m", done=True, prompt_eval_count=1, eval_count=2)
    _, facts = read(NDJSON, [line(model="m", message={"content": "x"}, done=False), last])
    assert (facts.tokens_in, facts.tokens_out) == (1, 2)


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_tokens_that_come_together_are_counted_alone(at_once: int) -> None:
    """However many tokens one read brings, each is an event."""
    _, tokens, *_ = eventwise(recording("chat-stream").content, CHAT)
    first, *_ = eventwise(recording("chat-stream").content, CHAT)
    events, _ = read(CHAT, [first, tokens, tokens * at_once, tokens])
    assert events.events == 3 + at_once


def expecting(dialect: Dialect) -> tuple[Events, bytes]:
    """Return a reader that expects a token like the one before, and that token."""
    events = Events(Facts("m"), dialect)
    events.feed(TOKEN[dialect])
    return events, TOKEN[dialect]


@pytest.mark.parametrize("dialect", TOKEN)
def test_chunk_with_a_token(dialect: Dialect) -> None:
    """A chunk with a token like the one before is counted as it stands; the length of its content is returned."""
    events, token = expecting(dialect)
    for length in (1, 20, 300):
        longer = token.replace(b'"a"', b'"%b"' % (b"a" * length))
        assert events.token(chunk(longer)) == len(longer)
    assert events.events == 4
    assert events.at_border


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(lambda token: chunk(token) * 2, id="two_chunks"),
        pytest.param(lambda token: chunk(token * 2), id="two_events"),
        pytest.param(lambda token: chunk(token[:-1]), id="half_an_event"),
        pytest.param(lambda token: chunk(token + b"x"), id="more_than_an_event"),
        pytest.param(lambda token: chunk(b"x" + token), id="another_beginning"),
        pytest.param(lambda token: chunk(token[:-8] + b"\n\n" + token[-8:]), id="a_border_within"),
        pytest.param(lambda token: chunk(token[:-8] + b"\n" + token[-8:]), id="a_line_more"),
        pytest.param(lambda token: chunk(token.replace(b'"a"', b'"%b"' % (b"a" * 1024))), id="long"),
        pytest.param(lambda token: b"0" + chunk(token), id="leading_zero"),
        pytest.param(lambda token: chunk(token).replace(b"\r\n", b";x=y\r\n", 1), id="extension"),
        pytest.param(lambda token: chunk(token).replace(b"\r\n", b"\r\n\r\n", 1), id="line_end_before"),
        pytest.param(lambda token: chunk(token)[:-1] + b"\r", id="no_line_end"),
        pytest.param(lambda token: chunk(token)[:-2], id="no_end"),
        pytest.param(lambda token: b"%x\r\n%b\r\n" % (len(token) + 1, token), id="another_size"),
        pytest.param(lambda token: b"", id="nothing"),
    ],
)
@pytest.mark.parametrize("dialect", TOKEN)
def test_other_chunks_are_not_tokens(dialect: Dialect, made: Callable[[bytes], bytes]) -> None:
    """What isn't exactly one plain chunk with one token is left to `feed`, uncounted."""
    events, token = expecting(dialect)
    assert events.token(made(token)) == 0
    assert events.events == 1


@pytest.mark.parametrize(("dialect", "octets"), FINISHED)
def test_reason_to_finish_is_no_token(dialect: Dialect, octets: bytes) -> None:
    """An event that ends a choice is read, however much it looks like a token."""
    events, _ = expecting(dialect)
    assert events.token(chunk(octets)) == 0


@pytest.mark.parametrize(("dialect", "octets"), FINISHED)
def test_token_behind_a_reason_to_finish(dialect: Dialect, octets: bytes) -> None:
    """A token in a chunk takes a reason to finish back: the answer goes on."""
    events, token = expecting(dialect)
    for piece in (octets, token):
        if not events.token(chunk(piece)):
            events.feed(piece)
    assert not events.complete()


@pytest.mark.parametrize("dialect", TOKEN)
def test_a_token_behind_half_an_event_is_not_taken(dialect: Dialect) -> None:
    """A chunk that continues an event isn't a token, whatever it looks like."""
    events, token = expecting(dialect)
    events.feed(token[:9])
    assert events.token(chunk(token)) == 0


def test_another_kind_of_token() -> None:
    """Where tokens of several kinds alternate, each first one is read, and those like it are taken."""
    events, token = expecting(RESPONSES)
    other = event("response.reasoning_summary_text.delta", delta="a")
    for piece in (other, token, other):
        assert events.token(chunk(piece)) == 0
        events.feed(piece)
        assert events.token(chunk(piece)) == len(piece)
    assert events.events == 7


def test_sequence_number_in_a_chunk() -> None:
    """The sequence number of the last event is known if it came as a chunk."""
    events, _ = expecting(RESPONSES)
    assert events.token(chunk(event("response.output_text.delta", delta="a", sequence_number=41)))
    assert events.last_sequence() == (41, None)


def test_usage_behind_a_reason_to_finish() -> None:
    """The chunk with the usage has no choices, and takes nothing back."""
    finished = data(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
    usage = data(choices=[], usage={"prompt_tokens": 4, "completion_tokens": 2})
    assert judged(CHAT, [finished, usage])
    assert judged(CHAT, [finished + usage + b": ping\n\n"])


@pytest.mark.parametrize(
    ("dialect", "octets"),
    [
        pytest.param(CHAT, data(choices=[{"index": 0, "finish_reason": None}]), id="null"),
        pytest.param(CHAT, data(choices=[{"index": 0, "finish_reason": ""}]), id="empty"),
        pytest.param(CHAT, data(choices=[{"index": 0, "finish_reason": {"a": "stop"}}]), id="an_object"),
        pytest.param(CHAT, data(choices=[{"delta": {"finish_reason": "stop"}}]), id="in_the_delta"),
        pytest.param(CHAT, data(finish_reason="stop", choices=[{"delta": {}}]), id="at_the_top"),
        pytest.param(CHAT, data(choices=[{"delta": {"content": '"finish_reason":"stop"'}}]), id="in_a_text"),
        pytest.param(CHAT, data(choices=[{"finish_reason": "stop"}, {"finish_reason": None}]), id="one_of_two_choices"),
        pytest.param(CHAT, data(choices=["finish_reason"]), id="no_choice"),
        pytest.param(
            CHAT,
            data(choices=[{"delta": {"tool_calls": [{"function": {"arguments": {"finish_reason": "stop"}}}]}}]),
            id="in_arguments",
        ),
        pytest.param(MESSAGES, event("message_delta", delta={"stop_reason": None}), id="no_stop_reason"),
        pytest.param(MESSAGES, event("message_delta", stop_reason="end_turn"), id="stop_reason_at_the_top"),
        pytest.param(MESSAGES, event("message_delta", delta=["stop_reason"]), id="delta_that_is_a_list"),
        pytest.param(
            MESSAGES, event("message_start", message={"stop_reason": "end_turn", "model": "m"}), id="message_start"
        ),
        pytest.param(
            MESSAGES, event("content_block_delta", delta={"stop_reason": "end_turn"}), id="stop_reason_of_a_block"
        ),
        pytest.param(
            MESSAGES, event("x", text='event: message_stop\ndata: {"type":"message_stop"}'), id="message_text"
        ),
        pytest.param(NDJSON, line(message={"done_reason": "stop"}, done=False), id="done_reason_nested"),
        pytest.param(NDJSON, line(message={"content": '"done_reason":"stop"'}, done=False), id="done_reason_text"),
        pytest.param(NDJSON, line(message={}, done=False, done_reason=""), id="done_reason_empty"),
        pytest.param(NDJSON, line(message={}, done=False, done_reason=True), id="done_reason_no_text"),
        pytest.param(
            RESPONSES, data(type="response.output_text.delta", finish_reason="stop"), id="responses_have_none"
        ),
        pytest.param(RESPONSES, event("error", error={}), id="error_of_responses"),
    ],
)
def test_no_reasons_to_finish(dialect: Dialect, octets: bytes) -> None:
    """What a model says, and what stands elsewhere, is no reason to finish."""
    for pieces in ([octets], octetwise(octets), [octets + octets], [octets.rstrip(b"\n")]):
        assert not judged(dialect, pieces)
        assert not judged(dialect, pieces, None)


def test_a_block_that_begins_behind_a_stop_reason() -> None:
    """An answer that goes on behind its stop reason isn't at its end, so where it then ends it is cut."""
    stop = event("message_delta", delta={"stop_reason": "tool_use"})
    begun = event("content_block_start", index=1, content_block={"type": "text"})
    for pieces in ([stop, begun], octetwise(stop + begun), [stop + begun]):
        assert not judged(MESSAGES, pieces)


UNTERMINATED = [
    pytest.param(CHAT, b"data: [DONE]", id="done"),
    pytest.param(CHAT, b"data:[DONE]", id="done_no_space"),
    pytest.param(CHAT, b": ping\ndata: [DONE]", id="done_behind_a_comment"),
    pytest.param(RESPONSES, b'event: response.completed\ndata: {"type":"response.completed"}', id="completed"),
    pytest.param(MESSAGES, b'event: message_stop\ndata: {"type":"message_stop"}', id="message_stop"),
    pytest.param(MESSAGES, b'data: {"type":"message_stop"}', id="message_stop_data_only"),
    pytest.param(NDJSON, b'{"model":"m","done":true}', id="done_true"),
    pytest.param(NDJSON, b'{"error":"it broke"}', id="error"),
    *(pytest.param(each.values[0], each.values[1].rstrip(b"\n"), id=each.id) for each in FINISHED),
]


@pytest.mark.parametrize("ends", [b"", b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize(
    ("dialect", "octets"), [*UNTERMINATED, pytest.param(CHAT, b"data: [DONE] ", id="done_and_a_space")]
)
def test_rest_without_its_line_ends(dialect: Dialect, octets: bytes, ends: bytes) -> None:
    """The last event needs no line ends behind it, for nothing follows; it counts as an event."""
    whole = TOKEN[dialect] + octets + ends
    for pieces in ([whole], octetwise(whole), [TOKEN[dialect], octets, ends]):
        events, _ = read(dialect, pieces, model="m")
        assert events.complete()
        assert events.events == 2


@pytest.mark.parametrize(("dialect", "octets"), UNTERMINATED)
def test_rest_that_is_cut(dialect: Dialect, octets: bytes) -> None:
    """An event that is cut anywhere is none, and what came before it, even a reason to finish, doesn't help."""
    finished = next((each.values[1] for each in FINISHED if each.values[0] is dialect), b"")
    begins = octets.index(b"data:") + 5 if b"data:" in octets else 1
    for end in range(begins + 1, len(octets)):
        assert not judged(dialect, [TOKEN[dialect] + octets[:end]])
        assert not judged(dialect, [finished, octets[:end]])


@pytest.mark.parametrize(("dialect", "octets"), FINISHED)
def test_large_rest_that_is_cut(dialect: Dialect, octets: bytes) -> None:
    """A large event that is cut behind a reason to finish is cut all the same."""
    more = (b"" if dialect is NDJSON else b"data: ") + b'{"message":"' + b"x" * 2 * WHOLE
    assert not judged(dialect, [octets, *pieces_of(more)])
    assert not judged(dialect, [octets, *pieces_of(more + b'"}')])


@pytest.mark.parametrize(
    ("dialect", "octets"),
    [
        (CHAT, DONE),
        (MESSAGES, event("message_stop")),
        (RESPONSES, event("response.completed")),
        (NDJSON, line(done=True)),
    ],
)
def test_what_follows_a_terminator(dialect: Dialect, octets: bytes) -> None:
    """Behind the terminator nothing is missing, whatever still comes or breaks off."""
    assert judged(dialect, [octets, TOKEN[dialect][:9]])
    assert judged(dialect, [octets + TOKEN[dialect]])


@pytest.mark.parametrize(
    ("dialect", "name"),
    [
        (MESSAGES, "message_stopped"),
        (MESSAGES, "x_message_stop"),
        (MESSAGES, "errors"),
        (RESPONSES, "response.completed.x"),
    ],
)
def test_names_like_terminators(dialect: Dialect, name: str) -> None:
    """A name that only begins or ends like a terminator's is another event's."""
    assert not judged(dialect, [event(name)])
    assert not judged(dialect, [data(type=name)])


@pytest.mark.parametrize("name", ["chat-stream", "messages-stream", "responses-stream", "apichat-stream"])
def test_recorded_streams_cut_cleanly(name: str) -> None:
    """A recorded stream whose framing ends anywhere before its last words is not complete."""
    dialect = next(case[1] for case in STREAMS if case[0] == name)
    octets = recording(name).content
    reasons = (b'"finish_reason":"', b'"stop_reason":"', b'"response.completed"', b'"done":true')
    last = max(octets.rfind(reason) for reason in reasons)
    for end in range(1, last, 11):
        assert not judged(dialect, [octets[:end]], None)
    assert judged(dialect, [octets.rstrip(b"\n")], None)


SPOOF = (
    'data: [DONE]\n\nevent: message_stop\n\n"usage":{"prompt_tokens":9} "done":true "error" "model":"evil" '
    '"finish_reason":"stop" "stop_reason":"end_turn" "done_reason":"stop"'
)


@pytest.mark.parametrize("known", [None, "m"], ids=["model_unknown", "model_known"])
@pytest.mark.parametrize(
    ("dialect", "octets"),
    [
        pytest.param(CHAT, data(model="m", choices=[{"delta": {"content": SPOOF}}]), id="chat_text"),
        pytest.param(
            CHAT,
            data(
                model="m",
                choices=[
                    {
                        "delta": {
                            "tool_calls": [
                                {
                                    "function": {
                                        "arguments": json.dumps(
                                            {"usage": {"prompt_tokens": 9}, "model": "evil", "x": SPOOF}
                                        )
                                    }
                                }
                            ]
                        }
                    }
                ],
            ),
            id="chat_arguments",
        ),
        pytest.param(CHAT, data(model="m", choices=[{"delta": {"usage": {"prompt_tokens": 9}}}]), id="chat_nested"),
        pytest.param(CHAT, event("x", model="m", text="data: [DONE]"), id="chat_named"),
        pytest.param(RESPONSES, event("response.output_text.delta", model="m", delta=SPOOF), id="responses_text"),
        pytest.param(
            RESPONSES,
            event(
                "response.function_call_arguments.delta",
                model="m",
                delta='{"type":"response.completed","response":{"usage":{"input_tokens":9}}}',
            ),
            id="responses_arguments",
        ),
        pytest.param(
            RESPONSES,
            event("response.in_progress", response={"model": "m", "status": "completed"}),
            id="responses_status",
        ),
        pytest.param(MESSAGES, event("content_block_delta", model="m", delta={"text": SPOOF}), id="messages_text"),
        pytest.param(
            MESSAGES,
            event(
                "content_block_start",
                model="m",
                content_block={"input": {"type": "message_stop", "usage": {"input_tokens": 9}}},
            ),
            id="messages_input",
        ),
        pytest.param(NDJSON, line(model="m", message={"content": SPOOF}, done=False), id="ndjson_text"),
        pytest.param(
            NDJSON,
            line(
                model="m",
                message={
                    "tool_calls": [
                        {
                            "function": {
                                "arguments": {"done": True, "error": "no", "prompt_eval_count": 9, "model": "evil"}
                            }
                        }
                    ]
                },
                done=False,
            ),
            id="ndjson_arguments",
        ),
        pytest.param(NDJSON, line(model="m", response=SPOOF, done=False), id="generate_text"),
        pytest.param(NDJSON, line(model="m", done="true"), id="ndjson_done_text"),
    ],
)
def test_spoofs(dialect: Dialect, octets: bytes, known: str | None) -> None:
    """Nothing that a model says, in a text or in the arguments of a tool, passes for a terminator or a fact."""
    for pieces in ([octets], octetwise(octets), [octets + octets]):
        events, facts = read(dialect, pieces, model=known)
        assert (events.complete(), events.terminated, facts.model) == (False, False, "m")
        assert (facts.tokens_in, facts.tokens_out) == (None, None)
        assert facts.events == len(b"".join(pieces)) // len(octets)


def test_failed_chat_chunk() -> None:
    """The empty chunk that Ollama writes when a model died names no model, and the next may."""
    events, facts = read(CHAT, [data(model=""), data(model="m")])
    assert (facts.model, facts.events, events.terminated) == ("m", 2, False)


def test_estimates_are_no_counts() -> None:
    """The counts in message_start are an estimate and a 0, so a stream that is cut after it has none."""
    start = event("message_start", message={"model": "m", "usage": {"input_tokens": 9, "output_tokens": 0}})
    assert read(MESSAGES, [start])[1] == Facts("m", None, None, 1)
    delta = event("message_delta", usage={"input_tokens": 12, "output_tokens": 5})
    assert read(MESSAGES, [start, delta])[1] == Facts("m", 12, 5, 2)


def test_counts_with_spaces() -> None:
    """A usage chunk is read as well when its writer puts spaces behind colons."""
    octets = b'data: {"model": "m"}\n\ndata: {"usage": {"prompt_tokens": 3, "completion_tokens": 4}}\n\n'
    for pieces in ([octets], eventwise(octets, CHAT)):
        assert read(CHAT, pieces)[1] == Facts("m", 3, 4, 2)


@pytest.mark.parametrize("known", [None, "m"], ids=["model_unknown", "model_known"])
@pytest.mark.parametrize(
    ("dialect", "octets", "count"),
    [
        pytest.param(CHAT, b": ping\n\n" + data(model="m"), 1, id="comment_first"),
        pytest.param(CHAT, data(model="m") + b": ping\n\n", 1, id="comment_last"),
        pytest.param(CHAT, data(model="m") + b": ping\n\n" + data(model="m"), 2, id="comment_between"),
        pytest.param(CHAT, b"\n\n" + data(model="m") + b"\n\n" * 3, 1, id="empty_lines"),
        pytest.param(NDJSON, b"\n" + line(model="m") + b"\n\n" + line(model="m"), 2, id="empty_lines_of_ndjson"),
        pytest.param(CHAT, b'data: {\ndata: "model":"m"}\n\n', 1, id="data_in_two_lines"),
        pytest.param(CHAT, b'id: 1\nretry: 5\ndata:{"model":"m"}\n\n', 1, id="other_lines"),
    ],
)
def test_what_is_an_event(dialect: Dialect, octets: bytes, count: int, known: str | None) -> None:
    """Comments and empty lines are no events, wherever they stand (HTML standard, 9.2.6)."""
    for pieces in ([octets], octetwise(octets), eventwise(octets, dialect)):
        events, facts = read(dialect, pieces, model=known)
        assert (facts.model, facts.events, events.at_border) == ("m", count, True)


def test_nothing_yet() -> None:
    """Before anything has come the stream is at a border, has no events, and isn't complete."""
    events, facts = read(CHAT, [])
    assert (events.at_border, events.terminated, facts) == (True, False, Facts(events=0))


@pytest.mark.parametrize("split", [octetwise, lambda octets: [octets], lambda octets: eventwise(octets, RESPONSES)])
def test_last_sequence(split: Any) -> None:
    """The last event's number and the response's id are known: an event of our own goes on from there."""
    octets = recording("scn-runner-dies-responses-stream").content
    events, _ = read(RESPONSES, split(octets))
    assert events.last_sequence() == (9, "resp_392052")


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (b"", (-1, None)),
        (event("response.created", response={"id": 5}), (-1, None)),
        (event("response.created", response={"id": "resp_1"}, sequence_number="0"), (-1, "resp_1")),
        (b"event: response.created\ndata: junk\n\n", (-1, None)),
    ],
)
def test_last_sequence_untold(octets: bytes, expected: tuple[int, str | None]) -> None:
    """Without a number the next is 0; without an id there is none."""
    assert read(RESPONSES, [octets] if octets else [])[0].last_sequence() == expected


# --- large events and answers -----------------------------------------------------------------------------------------


def pieces_of(octets: bytes, step: int = 60_001) -> list[bytes]:
    """Return `octets` in reads of a size that no border knows."""
    return [octets[at : at + step] for at in range(0, len(octets), step)]


LONG = "x" * (WHOLE + 100_000)
HUGE_CONTEXT = list(range(100_000, 150_000))
LARGE: list[Any] = [
    pytest.param(
        CHAT,
        data(model="m", choices=[LONG]) + data(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 4}) + DONE,
        Facts("m", 3, 4, 3),
        id="chat_first",
    ),
    pytest.param(
        CHAT, data(model="m") + data(model="m", choices=[LONG]) + DONE, Facts("m", None, None, 3), id="chat_second"
    ),
    pytest.param(
        RESPONSES,
        event("response.created", response={"model": "m"})
        + event("response.output_text.done", text=LONG)
        + event(
            "response.completed",
            response={"model": "m", "output": [LONG], "usage": {"input_tokens": 3, "output_tokens": 4}},
        ),
        Facts("m", 3, 4, 3),
        id="responses",
    ),
    pytest.param(
        RESPONSES,
        event("response.created", response={"model": "m", "text": LONG})
        + event("response.completed", response={"usage": {"input_tokens": 3, "output_tokens": 4}}),
        Facts("m", 3, 4, 2),
        id="responses_first",
    ),
    pytest.param(
        MESSAGES,
        event("message_start", message={"model": "m"})
        + event("content_block_delta", delta={"partial_json": LONG})
        + event("message_delta", usage={"input_tokens": 3, "output_tokens": 4})
        + event("message_stop"),
        Facts("m", 3, 4, 4),
        id="messages",
    ),
    pytest.param(
        NDJSON,
        line(model="m", response="a", done=False)
        + line(
            model="m",
            response="",
            done=True,
            done_reason="stop",
            context=HUGE_CONTEXT,
            prompt_eval_count=3,
            eval_count=4,
        ),
        Facts("m", 3, 4, 2),
        id="generate_with_a_long_context",
    ),
    pytest.param(
        NDJSON,
        line(model="m", message={"content": LONG}, done=True, prompt_eval_count=3, eval_count=4),
        Facts("m", 3, 4, 1),
        id="apichat_in_one",
    ),
    pytest.param(
        NDJSON,
        line(model="m", message={"content": LONG}, done=False) + line(model="m", done=True),
        Facts("m", None, None, 2),
        id="apichat_two",
    ),
    pytest.param(NDJSON, line(model="m", done=False) + line(error=LONG), Facts("m", None, None, 2), id="ndjson_error"),
]


@pytest.mark.parametrize("crlf", [False, True], ids=["lf", "crlf"])
@pytest.mark.parametrize("step", [60_001, 255_999, 2**30])
@pytest.mark.parametrize(("dialect", "octets", "expected"), LARGE)
def test_large_events(dialect: Dialect, octets: bytes, expected: Facts, step: int, crlf: bool) -> None:
    """Of an event too large to keep, the facts are found at its edges, and what follows it is read as ever."""
    octets = octets.replace(b"\n", b"\r\n") if crlf else octets
    events, facts = read(dialect, pieces_of(octets, step))
    assert (facts, events.terminated, events.at_border) == (expected, True, True)


@pytest.mark.parametrize("crlf", [False, True], ids=["lf", "crlf"])
@pytest.mark.parametrize("dialect", list(Dialect))
def test_border_of_a_large_event(dialect: Dialect, crlf: bool) -> None:
    """The border behind a large event is seen wherever a read splits it."""
    octets = (line if dialect is NDJSON else data)(model="m", text=LONG)
    octets = octets.replace(b"\n", b"\r\n") if crlf else octets
    for back in range(6):
        end = len(octets) - back
        events, facts = read(dialect, [*pieces_of(octets[:end]), *octetwise(octets[end:])])
        assert (events.at_border, facts.events) == (True, 1)


def test_usage_behind_a_large_choice() -> None:
    """A chat chunk too large to keep has its usage at its end."""
    choices = [{"delta": {"content": LONG}}]
    usage = {"prompt_tokens": 3, "completion_tokens": 4}
    _, facts = read(CHAT, [data(model="m"), *pieces_of(data(model="m", choices=choices, usage=usage))])
    assert (facts.tokens_in, facts.tokens_out) == (3, 4)


@pytest.mark.parametrize("behind", [1, 2, 5, 40])
def test_counts_next_to_a_border_that_comes_later(behind: int) -> None:
    """The end of a large event is read as it came, wherever the reads that brought it were cut."""
    octets = line(model="m", x="y" * (WHOLE + 1), done=True, prompt_eval_count=54321, eval_count=12345)
    _, facts = read(NDJSON, [line(model="m"), octets[: -behind - 50], octets[-behind - 50 : -behind], octets[-behind:]])
    assert (facts.tokens_in, facts.tokens_out) == (54321, 12345)


def test_large_events_are_not_kept() -> None:
    """Of an event without end no more than its edges is held, and the stream isn't at a border."""
    events, _ = read(CHAT, [data(model="m"), b"data: ", *[b"x" * 100_000] * 40])
    assert len(events._rest) == EDGE
    assert len(events._tail or b"") == EDGE
    assert not events.at_border


def test_spoofs_in_large_events() -> None:
    """At the edges too, a text passes for no fact: its quotes are escaped."""
    spoof = f"{SPOOF}{'x' * 2 * WHOLE}{SPOOF}"
    events, facts = read(NDJSON, pieces_of(line(message={"content": spoof}, model="m", done=False)))
    assert (events.complete(), facts) == (False, Facts(None, None, None, 1))
    events, facts = read(CHAT, pieces_of(data(model="m", choices=[spoof])))
    assert (events.complete(), facts) == (False, Facts("m", None, None, 1))


NESTED = {"done": True, "done_reason": "stop", "error": "no", "finish_reason": "stop", "type": "message_stop"}


@pytest.mark.parametrize(
    ("dialect", "octets", "complete"),
    [
        pytest.param(NDJSON, line(message={"a": NESTED, "content": LONG}, done=False), False, id="nested_first"),
        pytest.param(NDJSON, line(message={"content": LONG, "a": NESTED}, done=False), False, id="nested_last"),
        pytest.param(NDJSON, line(message={"content": LONG, "a": NESTED}, done=True), True, id="nested_and_done"),
        pytest.param(NDJSON, line(message={"content": LONG}, done=False, done_reason="stop"), True, id="done_reason"),
        pytest.param(NDJSON, line(model="m", done=True, context=HUGE_CONTEXT, eval_count=4), True, id="context"),
        pytest.param(CHAT, data(choices=[{"delta": {"content": LONG}, "finish_reason": "stop"}]), True, id="chat"),
        pytest.param(CHAT, data(choices=[{"text": LONG, "finish_reason": "stop"}], model="m"), True, id="completions"),
        pytest.param(CHAT, data(choices=[{"delta": {"content": LONG}, "finish_reason": None}]), False, id="chat_null"),
        pytest.param(CHAT, data(choices=[{"delta": {"content": LONG, "a": NESTED}}]), False, id="chat_nested"),
        pytest.param(RESPONSES, data(response={"output": LONG}, type="response.completed"), True, id="completed"),
        pytest.param(RESPONSES, data(item={"text": LONG, "a": NESTED}, type="response.x"), False, id="responses_other"),
        pytest.param(MESSAGES, data(text=LONG, a=NESTED), False, id="messages_nested"),
        pytest.param(MESSAGES, data(type="message_stop", text=LONG), True, id="messages_data_only"),
    ],
)
def test_ends_of_large_events(dialect: Dialect, octets: bytes, complete: bool) -> None:
    """At the edges of what is too large to keep, only what stands at the top of the object ends a stream."""
    assert judged(dialect, pieces_of(octets)) is complete
    assert not judged(dialect, pieces_of(octets.rstrip(b"\n")))  # it can't be seen that nothing is missing
    assert not judged(dialect, pieces_of(octets.rstrip(b"\n")[:-1]))


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        pytest.param(
            {"model": "m", "text": LONG, "usage": {"prompt_tokens": 3, "completion_tokens": 4}},
            Facts("m", 3, 4),
            id="openai",
        ),
        pytest.param(
            {"model": "m:\u00e9\n", "content": LONG, "usage": {"input_tokens": 3, "output_tokens": 4}},
            Facts("m:\u00e9\n", 3, 4),
            id="anthropic",
        ),
        pytest.param(
            {"model": "m", "response": LONG, "prompt_eval_count": 3, "eval_count": 4}, Facts("m", 3, 4), id="native"
        ),
        pytest.param({"model": "", "response": LONG}, Facts(), id="no_model"),
        pytest.param({"text": LONG, "model": "m"}, Facts(), id="model_not_at_the_edge"),
        pytest.param({"model": "m" * 600, "text": LONG}, Facts(), id="endless_model"),
        pytest.param({"text": f'"model":"evil"{LONG}"prompt_tokens":9'}, Facts(), id="spoofs"),
    ],
)
def test_large_answers(octets: dict[str, Any], expected: Facts) -> None:
    """Of an answer too large to keep, model and counts are read at its edges."""
    for spaced in (json.dumps(octets), json.dumps(octets, separators=(",", ":"))):
        facts = Facts()
        answer = Answer(facts)
        for piece in pieces_of(spaced.encode()):
            answer.feed(piece)
        assert len(answer._rest) == EDGE
        answer.end()
        assert facts == expected


@pytest.mark.parametrize(("beyond", "expected"), [(0, 7), (1, None)], ids=["largest", "too_large"])
def test_largest_answer_that_is_read_whole(beyond: int, expected: int | None) -> None:
    """Up to `WHOLE` bytes are read as JSON; of more, only what stands near the beginning or the end is seen."""
    pad = "x" * (WHOLE // 2)
    start = json.dumps({"model": "m", "a": pad, "prompt_eval_count": 7, "b": ""})
    answer, facts = (start[:-2] + "y" * (WHOLE + beyond - len(start)) + '"}').encode(), Facts()
    assert len(answer) == WHOLE + beyond
    reading = Answer(facts)
    reading.feed(answer)
    reading.end()
    assert (facts.model, facts.tokens_in) == ("m", expected)


def test_broken_model_at_the_edge() -> None:
    """A model that is no JSON text is none, and harms nothing."""
    facts = Facts()
    answer = Answer(facts)
    answer.feed(rb'{"model":"\x","text":"' + LONG.encode())
    answer.end()
    assert facts == Facts()


# --- the model of a request -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "model"),
    [
        (b'{"model":"m"}', "m"),
        (b'{"messages":[{"model":"no"}],"model":"m"}', "m"),
        (b'{"MODEL":"m"}', "m"),
        (b'{"model":"a","model":"b"}', "b"),
        (b'{"model":"a","Model":"b"}', "b"),
        (b'{"name":"m"}', "m"),
        (b'{"name":"n","model":"m"}', "m"),
        (b'{"model":"m","name":"n"}', "m"),
        (b'{"model":"","name":"n"}', "n"),
        (b'{"\\u006dodel":"m"}', "m"),
        (b'{"model":" M\\u00e9 "}', " M\u00e9 "),
        (b'{"model":null}', None),
        (b'{"model":5}', None),
        (b'{"model":["m"]}', None),
        (b'{"model":""}', None),
        (b"{}", None),
        (b'["model","m"]', None),
        (b"", None),
        (b'{"model":"m"', None),
        (b"\x28\xb5\x2f\xfd", None),
    ],
)
def test_model_in(content: bytes, model: str | None) -> None:
    """A request names its model at the top, in any letter case, the last one counting; /api/show may call it name."""
    assert (model_in(content) or None) == model


PADDING = b"x" * 100_000


@pytest.mark.parametrize("step", [1, 7, 65536], ids=["octetwise", "sevenwise", "whole"])
@pytest.mark.parametrize(
    ("content", "model"),
    [
        pytest.param(b'{"model":"m","messages":[]}', "m", id="first"),
        pytest.param(b'{"messages":["a"],"model" : \n"m"}', "m", id="last_with_spaces"),
        pytest.param(b'{"model":"a","messages":[],"model":"b"}', "b", id="two"),
        pytest.param(b'{"model":"m","content":"\\"model\\":\\"evil\\""}', "m", id="text"),
        pytest.param(b'{"content":"\\"model\\":\\"evil\\""}', None, id="text_only"),
        pytest.param(b'{"content":"\\\\","model":"m"}', "m", id="behind_a_backslash"),
        pytest.param(b'{"model":"caf\\u00e9"}', "caf\u00e9", id="escaped"),
        pytest.param(b'{"model":"a\\"b"}', 'a"b', id="quote"),
        pytest.param(b'{"model":"\\x"}', None, id="broken_escape"),
        pytest.param(b'{"model":null,"x":"y"}', None, id="null"),
        pytest.param(b'{"model":"unfinished', None, id="cut"),
    ],
)
def test_model_scan(content: bytes, model: str | None, step: int) -> None:
    """In content of any size and split the model is found without keeping the content."""
    scan = ModelScan()
    for piece in pieces_of(content, step):
        scan.feed(piece)
    assert scan.model == model


def test_model_scan_is_bounded() -> None:
    """However much passes, next to nothing is kept, and a model before or behind it is found."""
    before, behind = ModelScan(), ModelScan()
    before.feed(b'{"model":"before","content":"')
    for _ in range(20):
        before.feed(PADDING)
        behind.feed(PADDING)
    behind.feed(b'","model":"behind"}')
    assert (before.model, behind.model) == ("before", "behind")
    assert len(before._tail) < 1000
