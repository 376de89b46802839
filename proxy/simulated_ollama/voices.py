"""How each surface words an answer: its events, its whole object, its errors, its way to break off.

A voice turns the runner's messages into what goes into HTTP chunks: `say` returns the contents of the chunks that one
message becomes. Chat and native voices flush once a message, Anthropic's once an event.
"""

from __future__ import annotations

import json
import random
import secrets
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from proxy.simulated_ollama.go.json import Json, dump

if TYPE_CHECKING:
    from proxy.simulated_ollama.runner import Ask, Call, Message

NATIVE_JSON = "application/json; charset=utf-8"
V1_JSON = "application/json"
_OPENAI_TYPES = {400: "invalid_request_error", 404: "not_found_error"}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def native_error(_status: int, text: str) -> Json:
    """The error object of /api."""
    return {"error": text}


def openai_error(status: int, text: str) -> Json:
    """The error object of the OpenAI surface."""
    kind = _OPENAI_TYPES.get(status, "api_error")
    return {"error": {"message": text, "type": kind, "param": None, "code": None}}


def anthropic_error(status: int, text: str) -> Json:
    """The error object of the Anthropic surface."""
    error = {"type": _ANTHROPIC_TYPES.get(status, "api_error"), "message": text}
    return {"type": "error", "error": error, "request_id": f"req_{secrets.token_hex(12)}"}


def timestamp() -> str:
    """Now, as Go prints UTC: RFC 3339 with nanoseconds, final zeros cut."""
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    fraction = f".{nanoseconds:09}".rstrip("0").rstrip(".")
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}{fraction}Z"


def arguments(call: Call) -> str:
    """A tool call's arguments as the JSON text that OpenAI's surface carries."""
    return dump(call.arguments).decode()


class Voice(ABC):
    """One surface's way to word one answer."""

    stream_type: ClassVar[str] = "text/event-stream"
    json_type: ClassVar[str] = V1_JSON
    lead: ClassVar[tuple[tuple[str, str], ...]] = ()  # fields set before it is known whether a stream comes of it

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.first = True
        self.called = False

    @abstractmethod
    def say(self, message: Message) -> list[bytes]:
        """Return the contents of the chunks that `message` becomes."""

    @abstractmethod
    def whole(self, message: Message) -> Json:
        """Return the object that answers at once."""

    def error(self, status: int, text: str) -> Json:
        """Return the error object."""
        return openai_error(status, text)

    def broken(self, text: str) -> list[bytes]:  # noqa: ARG002
        """Return what is still sent when an answer fails in the middle."""
        return []

    def json(self, value: Json) -> bytes:
        """Return an object as this surface sends one: with a final newline on /v1."""
        return dump(value) + (b"\n" if self.json_type == V1_JSON else b"")


class Chat(Voice):
    """POST /v1/chat/completions."""

    def __init__(self, ask: Ask, *, usage: bool, old: bool) -> None:
        super().__init__(ask)
        self.usage = usage
        self.old = old  # before v0.32.6: a role in each delta, and no chunk of its own for the finish_reason
        self.id = f"chatcmpl-{random.randrange(999)}"  # noqa: S311
        self.created = int(time.time())

    def _head(self, object_type: str, model: str) -> dict[str, Json]:
        head = {"id": self.id, "object": object_type, "created": self.created, "model": model}
        return head | {"system_fingerprint": "fp_ollama"}

    def _event(self, delta: Json, finish: str | None = None, model: str | None = None) -> bytes:
        head = self._head("chat.completion.chunk", self.ask.name if model is None else model)
        return _data({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    def say(self, message: Message) -> list[bytes]:
        if message.empty:
            return []
        delta = _chat_delta(message)
        self.called = self.called or bool(message.calls)
        finish = "tool_calls" if self.called and message.reason == "stop" else message.reason or None
        events = []
        if self.old:
            events.append(self._event({"role": "assistant", **(delta or {"content": ""})}, finish))
        else:
            if delta or self.first:
                role = {"role": "assistant"} if self.first else {}
                events.append(self._event(role | (delta or {"content": ""})))
            if finish:
                events.append(self._event({}, finish))
        self.first = False
        if finish:
            if self.usage:
                head = self._head("chat.completion.chunk", self.ask.name)
                events.append(_data({**head, "choices": [], "usage": _openai_usage(message)}))
            events.append(b"data: [DONE]\n\n")
        return [b"".join(events)]

    def broken(self, text: str) -> list[bytes]:  # noqa: ARG002
        """A chunk without a model's name is the only sign of a failure."""
        return [self._event({"content": ""}, None, "")]

    def whole(self, message: Message) -> Json:
        said: dict[str, Json] = {"role": "assistant", "content": message.text}
        if message.thinking:
            said["reasoning"] = message.thinking
        if message.calls:
            said["tool_calls"] = [_openai_call(call) for call in message.calls]
        finish = "tool_calls" if message.calls and message.reason == "stop" else message.reason or None
        choice = {"index": 0, "message": said, "finish_reason": finish}
        return {**self._head("chat.completion", self.ask.name), "choices": [choice], "usage": _openai_usage(message)}


class Completions(Voice):
    """POST /v1/completions."""

    def __init__(self, ask: Ask, *, usage: bool) -> None:
        super().__init__(ask)
        self.usage = usage
        self.id = f"cmpl-{random.randrange(999)}"  # noqa: S311
        self.created = int(time.time())

    def _chunk(self, choices: list[Json], usage: Json = None) -> bytes:
        chunk = {"id": self.id, "object": "text_completion", "created": self.created, "choices": choices}
        chunk |= {"model": self.ask.name, "system_fingerprint": "fp_ollama"}
        return _data(chunk if usage is None else {**chunk, "usage": usage})

    def say(self, message: Message) -> list[bytes]:
        events = self._chunk([{"text": message.text, "index": 0, "finish_reason": message.reason or None}])
        if message.reason:
            events += self._chunk([], _openai_usage(message)) if self.usage else b""
            events += b"data: [DONE]\n\n"
        return [events]

    def whole(self, message: Message) -> Json:
        choice = {"text": message.text, "index": 0, "finish_reason": message.reason or None}
        head = {"id": self.id, "object": "text_completion", "created": self.created, "model": self.ask.name}
        return {**head, "system_fingerprint": "fp_ollama", "choices": [choice], "usage": _openai_usage(message)}


class ApiChat(Voice):
    """POST /api/chat."""

    stream_type = "application/x-ndjson"
    json_type = NATIVE_JSON

    def _said(self, message: Message) -> dict[str, Json]:
        said: dict[str, Json] = {"role": "assistant", "content": message.text}
        if message.thinking:
            said["thinking"] = message.thinking
        if message.calls:
            said["tool_calls"] = [
                {"id": call.id, "function": {"index": index, "name": call.name, "arguments": call.arguments}}
                for index, call in enumerate(message.calls)
            ]
        return {"message": said}

    def _end(self, message: Message) -> dict[str, Json]:
        stats = message.stats
        counts = {
            "total_duration": stats.total,
            "load_duration": stats.load,
            "prompt_eval_count": stats.prompt_tokens,
            "prompt_eval_duration": stats.prompt,
            "eval_count": stats.tokens,
            "eval_duration": stats.speech,
        }
        return {name: count for name, count in counts.items() if count}

    def whole(self, message: Message) -> Json:
        line = {"model": self.ask.name, "created_at": timestamp(), **self._said(message), "done": bool(message.reason)}
        return line | {"done_reason": message.reason} | self._end(message) if message.reason else line

    def say(self, message: Message) -> list[bytes]:
        return [] if message.empty else [dump(self.whole(message)) + b"\n"]

    def broken(self, text: str) -> list[bytes]:
        """NDJSON alone has an error in the middle."""
        return [dump({"error": text}) + b"\n"]

    def error(self, status: int, text: str) -> Json:
        return native_error(status, text)


class Generate(ApiChat):
    """POST /api/generate."""

    def _said(self, message: Message) -> dict[str, Json]:
        return {"response": message.text} | ({"thinking": message.thinking} if message.thinking else {})

    def _end(self, message: Message) -> dict[str, Json]:
        count = message.stats.context
        return ({"context": list(range(100, 100 + count))} if count else {}) | super()._end(message)

    def say(self, message: Message) -> list[bytes]:
        return [dump(self.whole(message)) + b"\n"]  # here even a message that says nothing is sent


class Messages(Voice):
    """POST /v1/messages."""

    lead = (("Cache-Control", "no-cache"), ("Connection", "keep-alive"))

    def __init__(self, ask: Ask, estimate: int) -> None:
        super().__init__(ask)
        self.estimate = estimate
        self.id = f"msg_{secrets.token_hex(12)}"
        self.index = 0
        self.open = ""  # the type of the block that is open

    def _head(self, content: Json) -> dict[str, Json]:
        head = {"id": self.id, "type": "message", "role": "assistant", "model": self.ask.name}
        return {**head, "content": content}

    def _close(self) -> list[bytes]:
        if not self.open:
            return []
        self.open = ""
        self.index += 1
        return [_event("content_block_stop", {"index": self.index - 1})]

    def _start(self, kind: str, block: Json) -> list[bytes]:
        if self.open == kind:
            return []
        events = self._close()
        self.open = kind
        return [*events, _event("content_block_start", {"index": self.index, "content_block": block})]

    def _delta(self, delta: Json) -> bytes:
        return _event("content_block_delta", {"index": self.index, "delta": delta})

    def say(self, message: Message) -> list[bytes]:
        if message.empty:
            return []
        events = []
        if self.first:
            self.first = False
            usage = {"input_tokens": self.estimate, "output_tokens": 0}
            events.append(_event("message_start", {"message": self._head([]) | {"usage": usage}}))
        if message.thinking:
            events += self._start("thinking", {"type": "thinking", "thinking": ""})
            events.append(self._delta({"type": "thinking_delta", "thinking": message.thinking}))
        if message.text:
            events += self._start("text", {"type": "text", "text": ""})
            events.append(self._delta({"type": "text_delta", "text": message.text}))
        for call in message.calls:
            self.called = True
            block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
            events += self._start("tool_use", block)
            events.append(self._delta({"type": "input_json_delta", "partial_json": arguments(call)}))
            events += self._close()
        if message.reason:
            events += self._close()
            delta = {"stop_reason": _stop_reason(message.reason, called=self.called)}
            events.append(_event("message_delta", {"delta": delta, "usage": _anthropic_usage(message)}))
            events.append(_event("message_stop", {}))
        return events

    def whole(self, message: Message) -> Json:
        content: list[Json] = [{"type": "thinking", "thinking": message.thinking}] if message.thinking else []
        content += [{"type": "text", "text": message.text}] if message.text else []
        for call in message.calls:
            content += [{"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments}]
        reason = _stop_reason(message.reason, called=bool(message.calls))
        end = {"stop_reason": reason} if reason else {}
        return self._head(content or None) | end | {"usage": _anthropic_usage(message)}

    def error(self, status: int, text: str) -> Json:
        return anthropic_error(status, text)


def estimated_tokens(turns: list[tuple[str, str]], tools: list[Json]) -> int:
    """Return what message_start says of the input: characters / 4, schemas as sent, at least 1."""
    size = sum(len(role) + len(text) for role, text in turns)
    for tool in (tool["function"] for tool in tools):
        size += len(tool["name"]) + len(tool["description"])
        size += len(json.dumps(tool["parameters"], ensure_ascii=False)) if tool["parameters"] else 0
    return max(1, size // 4)


def _stop_reason(reason: str, *, called: bool) -> str:
    return "tool_use" if called and reason else {"stop": "end_turn", "length": "max_tokens"}.get(reason, "")


def _chat_delta(message: Message) -> dict[str, Json]:
    if message.calls:
        return {"content": "", "tool_calls": [_openai_call(call) for call in message.calls]}
    if message.thinking:
        return {"content": "", "reasoning": message.thinking}
    return {"content": message.text} if message.text else {}


def _openai_call(call: Call) -> Json:
    function = {"name": call.name, "arguments": arguments(call)}
    return {"id": call.id, "index": 0, "type": "function", "function": function}


def _openai_usage(message: Message) -> Json:
    asked, said = message.stats.prompt_tokens, message.stats.tokens
    return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}


def _anthropic_usage(message: Message) -> Json:
    return {"input_tokens": message.stats.prompt_tokens, "output_tokens": message.stats.tokens}


def _data(value: Json) -> bytes:
    return b"data: " + dump(value) + b"\n\n"


def _event(name: str, value: dict[str, Json]) -> bytes:
    return b"event: " + name.encode() + b"\n" + _data({"type": name, **value})
