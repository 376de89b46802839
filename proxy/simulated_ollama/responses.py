"""How POST /v1/responses words an answer: named events, keys in alphabetical order, no `[DONE]`.

Two quirks are kept: text followed by a tool call leaves the text item unclosed and uses its `output_index` again, and
an answer cut by length is `completed` all the same.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from proxy.simulated_ollama.go.json import Json, dump, dump_map, sorted_keys, whole
from proxy.simulated_ollama.voices import Voice, arguments

if TYPE_CHECKING:
    from proxy.simulated_ollama.runner import Ask, Message


def _number() -> int:
    return random.randrange(999_999)  # noqa: S311


class Responses(Voice):
    """POST /v1/responses. `fields` is the request, folded, from which much is echoed."""

    lead = (("Cache-Control", "no-cache"), ("Connection", "keep-alive"))

    def __init__(self, ask: Ask, fields: dict[str, Json]) -> None:
        super().__init__(ask)
        self.fields = fields
        self.id = f"resp_{_number()}"
        self.created = int(time.time())
        self.sequence = 0
        self.index = 0
        self.reasoning_id = ""
        self.thinking = ""
        self.text_id = ""
        self.text = ""
        self.items: list[Json] = []  # finished reasoning and calls, in the order in which the end reports them

    def _object(self, status: str, output: Json, usage: Json, tools: Json) -> dict[str, Json]:
        ask = self.fields
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "incomplete_details": None,
            "model": self.ask.name,
            "previous_response_id": None,
            "instructions": ask.get("instructions") or None,
            "output": output,
            "error": None,
            "tools": tools,
            "tool_choice": "auto",
            "truncation": "disabled",
            "parallel_tool_calls": True,
            "text": {"format": (ask.get("text") or {}).get("format") or {"type": "text"}},
            "top_p": whole(ask.get("top_p", 1)),
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "top_logprobs": 0,
            "temperature": whole(ask.get("temperature", 1)),
            "reasoning": ask.get("reasoning"),
            "usage": usage,
            "max_output_tokens": ask.get("max_output_tokens"),
            "max_tool_calls": None,
            "store": False,
            "background": False,
            "service_tier": "default",
            "metadata": {},
            "safety_identifier": None,
            "prompt_cache_key": None,
        }

    def _tools(self) -> list[Json]:
        return [
            {
                "type": "function",
                "name": tool["function"]["name"],
                "description": tool["function"]["description"],
                "strict": None,
                "parameters": sorted_keys(tool["function"]["parameters"]),
            }
            for tool in self.ask.tools
        ]

    def _event(self, name: str, value: dict[str, Json]) -> bytes:
        value = {**value, "sequence_number": self.sequence, "type": name}
        self.sequence += 1
        return b"event: " + name.encode() + b"\ndata: " + dump_map(value) + b"\n\n"

    def say(self, message: Message) -> list[bytes]:
        if message.empty:
            return []
        events = []
        if self.first:
            self.first = False
            for name in ("response.created", "response.in_progress"):
                begun = self._object("in_progress", [], None, self._tools())
                events.append(self._event(name, {"response": begun}))
        if message.thinking:
            events += self._think(message.thinking)
        if message.text:
            events += self._close_thought() + self._write(message.text)
        for number, call in enumerate(message.calls):
            events += self._close_thought()
            item = {"id": f"fc_{_number()}_{number}", "type": "function_call", "call_id": call.id, "name": call.name}
            events += self._call(item, arguments(call))
        if message.reason:
            events += self._close_thought() + self._close_text()
            output = [*self.items, *([self._message()] if self.text_id else [])] or None
            done = self._object("completed", output, _usage(message), self._tools())
            events.append(self._event("response.completed", {"response": done}))
        return events

    def _think(self, piece: str) -> list[bytes]:
        events = []
        if not self.reasoning_id:
            self.reasoning_id = f"rs_{_number()}"
            item = {"id": self.reasoning_id, "summary": [], "type": "reasoning"}
            events.append(self._event("response.output_item.added", {"item": item, "output_index": self.index}))
        self.thinking += piece
        where = {"item_id": self.reasoning_id, "output_index": self.index, "summary_index": 0}
        events.append(self._event("response.reasoning_summary_text.delta", {**where, "delta": piece}))
        return events

    def _close_thought(self) -> list[bytes]:
        if not self.reasoning_id:
            return []
        where = {"item_id": self.reasoning_id, "output_index": self.index, "summary_index": 0}
        item = _reasoning(self.reasoning_id, self.thinking)
        self.items.append(item)
        self.reasoning_id = ""
        self.index += 1
        return [
            self._event("response.reasoning_summary_text.done", {**where, "text": self.thinking}),
            self._event("response.output_item.done", {"item": item, "output_index": self.index - 1}),
        ]

    def _message(self) -> Json:
        return _text_item(self.text_id, self.text)

    def _write(self, piece: str) -> list[bytes]:
        events = []
        if not self.text_id:
            self.text_id = f"msg_{_number()}"
            item = {"content": [], "id": self.text_id, "role": "assistant", "status": "in_progress", "type": "message"}
            events.append(self._event("response.output_item.added", {"item": item, "output_index": self.index}))
            where = {"content_index": 0, "item_id": self.text_id, "output_index": self.index}
            events.append(self._event("response.content_part.added", {**where, "part": _part("")}))
        self.text += piece
        where = {"content_index": 0, "item_id": self.text_id, "output_index": self.index, "logprobs": []}
        events.append(self._event("response.output_text.delta", {**where, "delta": piece}))
        return events

    def _close_text(self) -> list[bytes]:
        if not self.text_id or self.called:
            return []
        where = {"content_index": 0, "item_id": self.text_id, "output_index": self.index}
        return [
            self._event("response.output_text.done", {**where, "logprobs": [], "text": self.text}),
            self._event("response.content_part.done", {**where, "part": _part(self.text)}),
            self._event("response.output_item.done", {"item": self._message(), "output_index": self.index}),
        ]

    def _call(self, item: dict[str, Json], text: str) -> list[bytes]:
        self.called = True
        where = {"item_id": item["id"], "output_index": self.index}
        done = {**item, "arguments": text, "status": "completed"}
        self.items.append(done)
        begun = {**item, "arguments": "", "status": "in_progress"}
        events = [
            self._event("response.output_item.added", {"item": begun, "output_index": self.index}),
            self._event("response.function_call_arguments.delta", {**where, "delta": text}),
            self._event("response.function_call_arguments.done", {**where, "arguments": text}),
            self._event("response.output_item.done", {"item": done, "output_index": self.index}),
        ]
        self.index += 1
        return events

    def whole(self, message: Message) -> Json:
        output: list[Json] = []
        if message.thinking:
            output.append(_reasoning(f"rs_{self.id}", message.thinking))
        for number, call in enumerate(message.calls):
            item = {"id": f"fc_{self.id}_{number}", "type": "function_call", "status": "completed"}
            output.append({**item, "call_id": call.id, "name": call.name, "arguments": arguments(call)})
        if not message.calls:
            output.append(_text_item(f"msg_{_number()}", message.text))
        return self._object("completed", output, _usage(message), self._tools())

    def json(self, value: Json) -> bytes:
        return dump(value) + b"\n"


def _part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _text_item(identifier: str, text: str) -> Json:
    head = {"id": identifier, "type": "message", "status": "completed", "role": "assistant"}
    return {**head, "content": [_part(text)]}


def _reasoning(identifier: str, text: str) -> Json:
    summary = [{"type": "summary_text", "text": text}]
    return {"id": identifier, "type": "reasoning", "summary": summary, "encrypted_content": text}


def _usage(message: Message) -> Json:
    asked, said = message.stats.prompt_tokens, message.stats.tokens
    return {
        "input_tokens": asked,
        "output_tokens": said,
        "total_tokens": asked + said,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
