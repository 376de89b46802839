"""The OpenAI API through the proxy: shapes, streams and errors. What a model says doesn't matter."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from proxy.manage.verify.asking.events import events
from proxy.manage.verify.asking.session import Doubt, Left, Need, Question, Unmet, expect, seen
from proxy.manage.verify.questions.connection import ASKED, BEHIND
from proxy.manage.verify.questions.models import ANOTHER, able
from proxy.manage.verify.questions.pictures import DATA_URL
from proxy.manage.verify.questions.refused import by_rule

if TYPE_CHECKING:
    from proxy.manage.verify.asking.asking import Answer
    from proxy.manage.verify.asking.events import Event
    from proxy.manage.verify.asking.session import Session

OPENAI = "OpenAI API"

NOBODY = "verify-no-such-model"
"""A model that doesn't exist."""

HELLO = [{"role": "user", "content": "Say hello."}]
WEATHER = "What is the weather in Paris? Call get_weather to find out."
WEATHER_SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_WEATHER_TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Tells the weather in a city.", "parameters": WEATHER_SCHEMA},
}

ROOM = 512
"""Tokens for an answer that may need thought before it: a tool call, an object."""

THOUGHT = 64
"""Tokens for a thought: whether it is one can be seen of its beginning."""

_CHAT = "/v1/chat/completions"


def asked_well(session: Session, target: str, content: dict[str, Any], **fields: str) -> Answer:
    """Return the answer of a model, which must be a whole one with status 200."""
    named = {name.replace("_", "-"): value for name, value in fields.items()}
    answer = session.asker.ask("POST", target, content, named, loads=True)
    expect(answer.status == 200, answer.shown)
    expect(not answer.cut, f"`POST {target}`: {answer.cut}")
    return answer


def is_count(value: Any) -> bool:
    """Return whether a value is a number of tokens."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def name_of(session: Session) -> str:
    """Return the name of the model that is asked."""
    return session.model.name if session.model else ""


# --- models -----------------------------------------------------------------------------------------------------------


def models(session: Session) -> str:
    """The list of models is there; Ollama says null where it has none."""
    answer = session.asker.ask("GET", "/v1/models")
    body = answer.json
    expect(answer.status == 200 and seen(body, "object") == "list" and "data" in body, answer.shown)
    data = body["data"]
    expect(data is None or isinstance(data, list), f"`data` is neither a list nor null: {answer.content[:80]!r}")
    names = [seen(entry, "id") for entry in data or ()]
    expect(all(isinstance(name, str) for name in names), "an entry has no `id`")
    if not names:
        return "none: `data` is null"
    return f"{len(names)}: {', '.join(names[:5])}{' ...' if names[5:] else ''}"


def one_model(session: Session) -> str:
    """A model is found by its name, also as SDKs escape it; Ollama finds none with a slash."""
    name = next((model.name for model in session.models if "/" not in model.name and not model.remote), None)
    if name is None:
        raise Left("there is no model whose name has no slash")
    for written in dict.fromkeys((name, name.replace(":", "%3A"))):
        answer = session.asker.ask("GET", f"/v1/models/{written}")
        expect(answer.status == 200 and seen(answer.json, "id") == name, answer.shown)
    return f"{name}, also written {name.replace(':', '%3A')}"


# --- chat -------------------------------------------------------------------------------------------------------------


def chat(session: Session) -> str:
    """A chat is answered at once, with a reason why it ended, and a count of tokens."""
    answer = asked_well(session, _CHAT, {"model": name_of(session), "messages": HELLO, "max_tokens": 16})
    body = answer.json
    expect(seen(body, "object") == "chat.completion", f"`object` is {seen(body, 'object')!r}")
    expect(seen(body, "choices", 0, "message", "role") == "assistant", "there is no message from the assistant")
    content, finish = seen(body, "choices", 0, "message", "content"), seen(body, "choices", 0, "finish_reason")
    expect(isinstance(content, str), "the message has no `content`")
    expect(finish in ("stop", "length"), f"`finish_reason` is {finish!r}")
    usage = seen(body, "usage")
    asked, said, whole = (seen(usage, f"{kind}_tokens") for kind in ("prompt", "completion", "total"))
    expect(is_count(said) and is_count(asked) and whole == asked + said, f"`usage` is {usage}")
    return f"{said} tokens, ended by `{finish}`"


def chunks_of(answer: Answer) -> list[Event]:
    """Return the events of a chat's stream but its terminator, which must be the last."""
    kind = answer.fields.get("content-type", "")
    expect(kind.startswith("text/event-stream"), f"the stream's Content-Type is {kind!r}")
    found = list(events(answer.pieces))
    expect(found and found[-1].data == "[DONE]", f"the stream does not end with `data: [DONE]` ({len(found)} events)")
    return found[:-1]


def chat_stream(session: Session) -> str:
    """A stream has a role, pieces, a reason for its end, and a terminator, and its own kind of content."""
    content = {"model": name_of(session), "messages": HELLO, "max_tokens": 24, "stream": True}
    answer = asked_well(session, _CHAT, content)
    chunks = [event.json for event in chunks_of(answer)]
    expect(chunks, "the stream has no event but its terminator")
    kinds = {seen(chunk, "object") for chunk in chunks}
    expect(kinds == {"chat.completion.chunk"}, f"its events are {kinds}")
    expect(seen(chunks[0], "choices", 0, "delta", "role") == "assistant", "the first event has no role")
    finish = [seen(chunk, "choices", 0, "finish_reason") for chunk in chunks]
    expect(finish[-1] in ("stop", "length"), f"the last event's `finish_reason` is {finish[-1]!r}")
    reads = len({piece.moment for piece in answer.pieces})
    return f"{len(chunks)} events in {reads} reads, ended by `{finish[-1]}` and [DONE]"


def chat_usage(session: Session) -> str:
    """The last event of a stream reports the tokens, if the request asked for that."""
    content = {"model": name_of(session), "messages": HELLO, "max_tokens": 8, "stream": True}
    chunks = chunks_of(asked_well(session, _CHAT, {**content, "stream_options": {"include_usage": True}}))
    usage = seen(chunks[-1].json, "usage") if chunks else None
    asked, said = seen(usage, "prompt_tokens"), seen(usage, "completion_tokens")
    expect(is_count(asked) and is_count(said), "no event before [DONE] reports the usage")
    return f"{asked} tokens in, {said} out"


def json_mode(session: Session) -> str:
    """With a `response_format` the answer is JSON; a model may run out of tokens, or say nothing, before it is."""
    turn = {"role": "user", "content": "Answer with a JSON object that has one key, `answer`, whose value is 42."}
    content = {"model": name_of(session), "messages": [turn], "max_tokens": ROOM, "temperature": 0}
    body = asked_well(session, _CHAT, {**content, "response_format": {"type": "json_object"}}).json
    text, finish = seen(body, "choices", 0, "message", "content"), seen(body, "choices", 0, "finish_reason")
    expect(isinstance(text, str), "the message has no `content`")
    try:
        return f"parses: {json.dumps(json.loads(text))[:60]}"
    except ValueError:
        if finish == "length":
            raise Doubt(f"cut after {ROOM} tokens, before the object was complete", ANOTHER) from None
        if not text.strip():
            raise Doubt("the model thought, and answered nothing", ANOTHER) from None
        raise Doubt(f"this model's answer isn't JSON: {text[:60]!r}", ANOTHER) from None


# --- what some models can ---------------------------------------------------------------------------------------------


def chat_tool(session: Session) -> str:
    """A model that can calls a tool, whose arguments are JSON."""
    name = able(session, "tools")
    turn = {"role": "user", "content": WEATHER}
    content = {"model": name, "messages": [turn], "tools": [_WEATHER_TOOL], "max_tokens": ROOM, "temperature": 0}
    body = asked_well(session, _CHAT, content).json
    call = seen(body, "choices", 0, "message", "tool_calls", 0)
    if call is None:
        raise Doubt(f"{name} answered in words instead of calling the tool", ANOTHER)
    expect(seen(body, "choices", 0, "finish_reason") == "tool_calls", "`finish_reason` is not `tool_calls`")
    expect(isinstance(seen(call, "id"), str) and seen(call, "type") == "function", f"the call is {call}")
    try:
        arguments = json.loads(seen(call, "function", "arguments"))
    except (TypeError, ValueError):
        raise Unmet(f"the arguments aren't JSON: {call}") from None
    return f"{name} calls {seen(call, 'function', 'name')}({json.dumps(arguments)[:60]})"


def chat_thinking(session: Session) -> str:
    """A model that thinks separates its thoughts from its answer."""
    name = able(session, "thinking")
    turn = {"role": "user", "content": "What is 2 + 3?"}
    content = {"model": name, "messages": [turn], "reasoning_effort": "low", "max_tokens": THOUGHT}
    body = asked_well(session, _CHAT, content).json
    thought = seen(body, "choices", 0, "message", "reasoning")
    if not isinstance(thought, str) or not thought:
        raise Doubt(f"{name} answered without thinking", ANOTHER)
    return f"{name} thinks ({len(thought)} characters), and answers"


def chat_image(session: Session) -> str:
    """A model that sees accepts a picture as a data URL."""
    name = able(session, "vision")
    parts = [{"type": "text", "text": "Which colour is this?"}, {"type": "image_url", "image_url": {"url": DATA_URL}}]
    content = {"model": name, "messages": [{"role": "user", "content": parts}], "max_tokens": 32}
    body = asked_well(session, _CHAT, content).json
    expect(isinstance(seen(body, "choices", 0, "message", "content"), str), "the message has no `content`")
    return f"{name} accepts a picture of {len(DATA_URL)} characters"


# --- responses --------------------------------------------------------------------------------------------------------


def responses_version(session: Session) -> str:
    """Ollama is new enough for what Codex asks."""
    since = session.too_old("responses")
    expect(not since, f"Ollama has no /v1/responses before {since}", f"{session.asker.there}brew upgrade ollama")
    return "new enough for /v1/responses (0.13.3)"


def response(session: Session) -> str:
    """A response is answered at once."""
    content = {"model": name_of(session), "input": "Say hello.", "max_output_tokens": 16}
    body = asked_well(session, "/v1/responses", content).json
    expect(seen(body, "object") == "response" and seen(body, "status") == "completed", f"it is {str(body)[:120]}")
    expect(isinstance(seen(body, "output"), list), "it has no `output`")
    asked, said = seen(body, "usage", "input_tokens"), seen(body, "usage", "output_tokens")
    expect(is_count(asked) and is_count(said), "it has no `usage`")
    return f"completed: {asked} tokens in, {said} out"


def response_stream(session: Session) -> str:
    """A streamed response begins with `response.created`, counts its events, and ends with `response.completed`."""
    content = {"model": name_of(session), "input": "Say hello.", "max_output_tokens": 24, "stream": True}
    answer = asked_well(session, "/v1/responses", content)
    found = list(events(answer.pieces))
    names = [event.name for event in found]
    expect(names[:1] == ["response.created"], f"the first event is {names[:1]}")
    expect(names[-1:] == ["response.completed"], f"the last event is {names[-1:]}: Codex would retry")
    numbers = [seen(event.json, "sequence_number") for event in found]
    expect(numbers == list(range(len(numbers))), f"the events are numbered {numbers[:20]}")
    return f"{len(found)} events, from response.created to response.completed"


# --- errors -----------------------------------------------------------------------------------------------------------


def unknown_model(session: Session) -> str:
    """A model that doesn't exist is not found, and the message names it."""
    asks = (("POST", _CHAT, {"model": NOBODY, "messages": HELLO}), ("GET", f"/v1/models/{NOBODY}", None))
    for method, target, content in asks:
        answer = session.asker.ask(method, target, content)
        expect((answer.status == 404 or by_rule(session, answer)) and NOBODY in answer.message, answer.shown)
    return f"{answer.status}, and the message names it"


def malformed(session: Session) -> str:
    """Ollama refuses a request that isn't JSON, or has no messages, with a reason."""
    for content in (b'{"model":', {"model": NOBODY, "messages": []}):
        answer = session.asker.ask("POST", _CHAT, content)
        kind = seen(answer.json, "error", "type")
        if by_rule(session, answer):
            raise Left("access rules refuse a model that doesn't exist")
        expect(answer.status == 400 and kind == "invalid_request_error" and answer.message, answer.shown)
    return "400, with Ollama's reason"


_RESPONSES = ASKED | {Need.RESPONSES}

OPENAI_QUESTIONS = (
    Question(OPENAI, "models", models, BEHIND),
    Question(OPENAI, "one model", one_model, BEHIND),
    Question(OPENAI, "unknown model", unknown_model, BEHIND),
    Question(OPENAI, "malformed request", malformed, BEHIND),
    Question(OPENAI, "chat", chat, ASKED),
    Question(OPENAI, "chat, streamed", chat_stream, ASKED),
    Question(OPENAI, "usage in the stream", chat_usage, ASKED),
    Question(OPENAI, "JSON mode", json_mode, ASKED),
    Question(OPENAI, "tool call", chat_tool, ASKED),
    Question(OPENAI, "thinking", chat_thinking, ASKED),
    Question(OPENAI, "image", chat_image, ASKED),
    Question(OPENAI, "version for responses", responses_version, BEHIND),
    Question(OPENAI, "response", response, _RESPONSES),
    Question(OPENAI, "response, streamed", response_stream, _RESPONSES),
)
