"""The Anthropic API through the proxy: shapes, the order of events, errors. What a model says doesn't matter."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from proxy.manage.verify.asking.events import events
from proxy.manage.verify.asking.session import Doubt, Left, Need, Question, Unmet, expect, seen
from proxy.manage.verify.questions.connection import ASKED, BEHIND
from proxy.manage.verify.questions.models import ANOTHER, able
from proxy.manage.verify.questions.openai import (
    HELLO,
    NOBODY,
    ROOM,
    THOUGHT,
    WEATHER,
    WEATHER_SCHEMA,
    asked_well,
    is_count,
    name_of,
)
from proxy.manage.verify.questions.pictures import PNG_BASE64
from proxy.manage.verify.questions.refused import by_rule

if TYPE_CHECKING:
    from proxy.manage.verify.asking.asking import Answer
    from proxy.manage.verify.asking.session import Session

ANTHROPIC = "Anthropic API"

_MESSAGES = "/v1/messages"
_TOOL = {"name": "get_weather", "description": "Tells the weather in a city.", "input_schema": WEATHER_SCHEMA}
_BLOCK = ("content_block_start", "content_block_delta", "content_block_stop")


def messages_version(session: Session) -> str:
    """Ollama is new enough for what Claude Code asks."""
    since = session.too_old("messages")
    hint = f"{session.asker.there}brew upgrade ollama; or leave it out: --skip-anthropic-tests"
    expect(not since, f"Ollama has no /v1/messages before {since}", hint)
    return "new enough for /v1/messages (0.14.0)"


def _send(session: Session, target: str = _MESSAGES, **content: Any) -> Answer:
    """Return the answer to a message, which must be a whole one with status 200 and have the proxy's id."""
    asked = {"model": name_of(session), "max_tokens": 16, "messages": HELLO, **content}
    answer = asked_well(session, target, asked, anthropic_version="2023-06-01", x_api_key="unused")
    expect(answer.fields.get("request-id") == answer.id, "the answer lacks `request-id`, which SDKs show in errors")
    return answer


def _judge(body: Any) -> tuple[int, int, str]:
    """Return tokens in, tokens out and the reason of the end of a message that isn't streamed."""
    expect(seen(body, "type") == "message" and seen(body, "role") == "assistant", f"it is {str(body)[:120]}")
    blocks = seen(body, "content")
    expect(blocks is None or isinstance(blocks, list), f"`content` is {blocks!r}")
    usage, reason = seen(body, "usage"), seen(body, "stop_reason")
    asked, said = seen(usage, "input_tokens"), seen(usage, "output_tokens")
    expect(is_count(asked) and is_count(said), f"`usage` is {usage}")
    expect(reason in ("end_turn", "max_tokens", "stop_sequence", "tool_use"), f"`stop_reason` is {reason!r}")
    return asked, said, reason


def message(session: Session) -> str:
    """A message is answered at once."""
    asked, said, reason = _judge(_send(session).json)
    return f"{asked} tokens in, {said} out, ended by `{reason}`"


def system_prompt(session: Session) -> str:
    """A system prompt is taken, as a text and as blocks."""
    for system in ("Be brief.", [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]):
        _judge(_send(session, system=system).json)
    return "accepted as a text and as blocks"


def several_turns(session: Session) -> str:
    """A conversation of several turns is taken."""
    turns = ("user", "My name is Ada."), ("assistant", "Hello, Ada."), ("user", "What is my name?")
    asked, _, _ = _judge(_send(session, messages=[{"role": role, "content": text} for role, text in turns]).json)
    return f"three turns, {asked} tokens in"


def message_stream(session: Session) -> str:
    """A stream, asked for as Claude Code does, has its events in the order that SDKs rely on."""
    found = list(events(_send(session, f"{_MESSAGES}?beta=true", stream=True, max_tokens=24).pieces))
    names = [event.name for event in found if event.name != "ping"]
    expect(names[:1] == ["message_start"], f"the first event is {names[:1]}")
    expect(names[-2:] == ["message_delta", "message_stop"], f"the last events are {names[-2:]}")
    blocks = 0
    state = "content_block_stop"
    for name in names[1:-2]:
        allowed = _BLOCK[:1] if state == "content_block_stop" else _BLOCK[1:]
        expect(name in allowed, f"`{name}` comes after `{state}`")
        state, blocks = name, blocks + (name == "content_block_start")
    expect(state == "content_block_stop", "a block is not closed")
    return f"{len(found)} events with {blocks} block{'' if blocks == 1 else 's'}, from message_start to message_stop"


def message_usage(session: Session) -> str:
    """A stream reports its tokens: an estimate at its start, the count at its end."""
    found = {event.name: event.json for event in events(_send(session, stream=True, max_tokens=8).pieces)}
    guess = seen(found.get("message_start"), "message", "usage", "input_tokens")
    usage = seen(found.get("message_delta"), "usage")
    asked, said = seen(usage, "input_tokens"), seen(usage, "output_tokens")
    expect(is_count(guess), "message_start has no `usage`")
    expect(is_count(said), "message_delta has no `usage`")
    return f"{asked if is_count(asked) else guess} tokens in, {said} out"


def message_tool(session: Session) -> str:
    """A model that can uses a tool, and takes what came of it."""
    name = able(session, "tools")
    turns: list[dict[str, Any]] = [{"role": "user", "content": WEATHER}]
    content: dict[str, Any] = {"model": name, "max_tokens": ROOM, "tools": [_TOOL], "temperature": 0}
    body = _send(session, messages=turns, **content).json
    uses = [block for block in seen(body, "content") or () if seen(block, "type") == "tool_use"]
    if not uses:
        raise Doubt(f"{name} answered in words instead of using the tool", ANOTHER)
    expect(seen(body, "stop_reason") == "tool_use", "`stop_reason` is not `tool_use`")
    expect(isinstance(uses[0].get("input"), dict) and isinstance(uses[0].get("id"), str), f"the use is {uses[0]}")
    result = {"type": "tool_result", "tool_use_id": uses[0]["id"], "content": "Sunny, 21 degrees."}
    turns += [{"role": "assistant", "content": body["content"]}, {"role": "user", "content": [result]}]
    _judge(_send(session, messages=turns, **{**content, "max_tokens": 16}).json)
    return f"{name} uses {uses[0]['name']}({json.dumps(uses[0]['input'])[:60]}), and takes the result"


def message_thinking(session: Session) -> str:
    """A model that thinks puts its thoughts into a block of their own."""
    name = able(session, "thinking")
    thinking = {"type": "enabled", "budget_tokens": ROOM}
    turn = {"role": "user", "content": "What is 2 + 3?"}
    body = _send(session, model=name, messages=[turn], max_tokens=THOUGHT, thinking=thinking).json
    kinds = [seen(block, "type") for block in seen(body, "content") or ()]
    if "thinking" not in kinds:
        raise Doubt(f"{name} answered without thinking", ANOTHER)
    return f"{name} answers in blocks: {', '.join(kinds)}"


def message_image(session: Session) -> str:
    """A model that sees accepts a picture in base64."""
    name = able(session, "vision")
    source = {"type": "base64", "media_type": "image/png", "data": PNG_BASE64}
    parts = [{"type": "image", "source": source}, {"type": "text", "text": "Which colour is this?"}]
    _judge(_send(session, model=name, messages=[{"role": "user", "content": parts}], max_tokens=32).json)
    return f"{name} accepts a picture"


def message_errors(session: Session) -> str:
    """Errors have the format that Anthropic's SDKs read: no max_tokens, an unknown model, no JSON."""
    asks: tuple[tuple[Any, int, str, str], ...] = (
        ({"model": NOBODY, "messages": HELLO}, 400, "invalid_request_error", "max_tokens"),
        ({"model": NOBODY, "messages": HELLO, "max_tokens": 1}, 404, "not_found_error", NOBODY),
        (b'{"model":', 400, "invalid_request_error", ""),
    )
    for content, status, kind, words in asks:
        answer = session.asker.ask("POST", _MESSAGES, content, {"anthropic-version": "2023-06-01"})
        body = answer.json
        if by_rule(session, answer):
            raise Left("access rules refuse a model that doesn't exist")
        if answer.status != status or words not in answer.message:
            raise Unmet(f"{answer.shown}, instead of {status}{f' and a word on {words}' if words else ''}")
        expect(seen(body, "type") == "error" and seen(body, "error", "type") == kind, f"the error is {body}")
    return "no max_tokens: 400, unknown model: 404, no JSON: 400"


_BEHIND = BEHIND | {Need.ANTHROPIC}
_NEW = _BEHIND | {Need.MESSAGES}
_ASKED = ASKED | _NEW

ANTHROPIC_QUESTIONS = (
    Question(ANTHROPIC, "version for messages", messages_version, _BEHIND),
    Question(ANTHROPIC, "errors", message_errors, _NEW),
    Question(ANTHROPIC, "message", message, _ASKED),
    Question(ANTHROPIC, "message, streamed", message_stream, _ASKED),
    Question(ANTHROPIC, "usage in the stream", message_usage, _ASKED),
    Question(ANTHROPIC, "system prompt", system_prompt, _ASKED),
    Question(ANTHROPIC, "several turns", several_turns, _ASKED),
    Question(ANTHROPIC, "tool use", message_tool, _ASKED),
    Question(ANTHROPIC, "thinking", message_thinking, _ASKED),
    Question(ANTHROPIC, "image", message_image, _ASKED),
)
