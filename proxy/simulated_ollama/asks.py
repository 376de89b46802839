"""What a request body asks for, read as each surface's middleware reads it, with the same error messages.

Each reader takes the decoded fields of its Go struct and returns an Ask and the Voice to answer it with. A complaint
here comes before any model is looked at: `Complaint`, sent with a charset and without a final newline.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from proxy.simulated_ollama.go.json import Json, folded, kind
from proxy.simulated_ollama.responses import Responses
from proxy.simulated_ollama.runner import Ask, Form
from proxy.simulated_ollama.voices import (
    ApiChat,
    Chat,
    Completions,
    Generate,
    Messages,
    Voice,
    anthropic_error,
    estimated_tokens,
    native_error,
    openai_error,
)

if TYPE_CHECKING:
    from collections.abc import Callable

Version = tuple[int, ...]
Fields = dict[str, Json]

_EFFORTS = ("minimal", "low", "medium", "high", "xhigh", "ultra", "max", "none")
_DATA_IMAGE = re.compile(r"data:image/(jpeg|jpg|png|webp);base64,[A-Za-z0-9+/=\s]+")
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_DURATION = re.compile(r"[+-]?(?:\d+(?:\.\d*)?(?:h|ms|m|s|us|µs|ns))+|[+-]?0")


class Complaint(Exception):  # noqa: N818 - an answer
    """The request is refused with 400 before any model is looked at."""


def chat(fields: Fields, version: Version) -> tuple[Ask, Voice]:
    """POST /v1/chat/completions."""
    if not fields.get("messages"):
        raise Complaint("[] is too short - 'messages'")
    turns = [turn for message in fields["messages"] for turn in _openai_turns(folded(message))]
    ask = Ask(_name(fields), bool(fields.get("stream")), turns, _tools(fields))
    ask.think = _effort(fields.get("reasoning_effort") or folded(fields.get("reasoning")).get("effort"))
    ask.limit = fields.get("max_tokens")
    ask.stops = _stops(fields.get("stop"))
    ask.json = _is_json(fields.get("response_format"))
    usage = bool(folded(fields.get("stream_options")).get("include_usage"))
    return ask, Chat(ask, usage=usage, old=version < (0, 32, 6))


def completions(fields: Fields, _version: Version) -> tuple[Ask, Voice]:
    """POST /v1/completions."""
    ask = Ask(_name(fields), bool(fields.get("stream")), [("user", str(fields.get("prompt", "")))])
    ask.limit = fields.get("max_tokens")
    ask.stops = _stops(fields.get("stop"))
    return ask, Completions(ask, usage=bool(folded(fields.get("stream_options")).get("include_usage")))


def responses(fields: Fields, _version: Version) -> tuple[Ask, Voice]:
    """POST /v1/responses; without an `input` it only loads the model."""
    turns = _input(fields.get("input"))
    ask = Ask(_name(fields), bool(fields.get("stream")), turns, _tools(fields), load_only=not turns)
    if fields.get("instructions"):
        ask.turns = [("system", fields["instructions"]), *turns]
    ask.think = _effort(folded(fields.get("reasoning")).get("effort"))
    ask.limit = fields.get("max_output_tokens")
    ask.json = _is_json(folded(fields.get("text")).get("format"))
    return ask, Responses(ask, fields)


def messages(fields: Fields, _version: Version) -> tuple[Ask, Voice]:
    """POST /v1/messages."""
    if not fields.get("model"):
        raise Complaint("model is required")
    if fields.get("max_tokens", 0) <= 0:
        raise Complaint("max_tokens is required and must be positive")
    if not fields.get("messages"):
        raise Complaint("messages is required")
    system = _blocks("system", fields.get("system")) if fields.get("system") else []
    said = map(folded, fields["messages"])
    turns = system + [turn for one in said for turn in _blocks(one.get("role", ""), one.get("content", ""))]
    ask = Ask(_name(fields), bool(fields.get("stream")), turns, _tools(fields))
    ask.think = {"enabled": True, "disabled": False}.get(folded(fields.get("thinking")).get("type", ""))
    ask.think_strictly = False
    ask.limit = fields["max_tokens"]
    ask.stops = _stops(fields.get("stop_sequences"))
    return ask, Messages(ask, estimated_tokens(turns, ask.tools))


def api_chat(fields: Fields, _version: Version) -> tuple[Ask, Voice]:
    """POST /api/chat; without messages it only loads the model."""
    turns = [(m.get("role", ""), m.get("content") or "") for m in map(folded, fields.get("messages", []))]
    ask = Ask(_name(fields), fields.get("stream", True), turns, _tools(fields), load_only=not turns)
    _native_options(ask, fields)
    return ask, ApiChat(ask)


def generate(fields: Fields, _version: Version) -> tuple[Ask, Voice]:
    """POST /api/generate; without a prompt it only loads the model."""
    prompt = fields.get("prompt", "")
    turns = [("user", prompt)] if prompt else []
    if fields.get("system"):
        turns = [("system", fields["system"]), *turns]
    ask = Ask(_name(fields), fields.get("stream", True), turns, load_only=not prompt)
    _native_options(ask, fields)
    return ask, Generate(ask)


# Ollama's api/types.go, `Runner`.
_LOAD_OPTIONS = frozenset(
    {"num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict"}
)
# Handler name -> reader, Go type, types that are checked, and how complaints are worded.
READERS: dict[str, tuple[Callable[[Fields, Version], tuple[Ask, Voice]], str, Callable[[int, str], Json]]] = {
    "chat": (chat, "openai.ChatCompletionRequest", openai_error),
    "completions": (completions, "openai.CompletionRequest", openai_error),
    "responses": (responses, "openai.ResponsesRequest", openai_error),
    "messages": (messages, "anthropic.MessagesRequest", anthropic_error),
    "api_chat": (api_chat, "api.ChatRequest", native_error),
    "generate": (generate, "api.GenerateRequest", native_error),
}
TYPES = {"model": "string", "stream": "bool", "max_tokens": "int", "max_output_tokens": "int", "prompt": "string"}
MESSAGES_TYPES = {"chat": "[]openai.Message", "messages": "[]anthropic.MessageParam", "api_chat": "[]api.Message"}


def _name(fields: Fields) -> str:
    name: str = fields.get("model", "")
    return name


def _native_options(ask: Ask, fields: Fields) -> None:
    options = folded(fields.get("options"))
    ask.limit = options.get("num_predict")
    ask.stops = _stops(options.get("stop"))
    ask.json = bool(fields.get("format"))
    ask.keep_alive = seconds(fields["keep_alive"]) if "keep_alive" in fields else None
    ask.load = load_options(fields)
    think = fields.get("think")
    ask.think = think if think is None or isinstance(think, bool) else _effort(think)


def load_options(fields: Fields) -> Form:
    """Return the options for which Ollama loads a model again. A null stands for none (api/types.go, `FromMap`)."""
    options = fields.get("options")
    given = options.items() if isinstance(options, dict) else ()
    return tuple(sorted((name, value) for name, value in given if name in _LOAD_OPTIONS and value is not None))


def seconds(duration: Json) -> float:
    """Return a keep_alive in seconds: a number, or a Go duration; below zero is forever. Raises Complaint."""
    if isinstance(duration, str):
        if not _DURATION.fullmatch(duration):
            raise Complaint(f'time: invalid duration "{duration}"')
        size = sum(
            float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)(h|ms|m|s|us|µs|ns)", duration)
        )
        duration = -size if duration.startswith("-") else size
    return math.inf if duration < 0 else float(duration)


def _stops(stop: Json) -> list[str]:
    return [stop] if isinstance(stop, str) else list(stop or [])


def _is_json(wanted: Json) -> bool:
    """Return whether a response format requires JSON; unknown formats are ignored."""
    return folded(wanted).get("type") in ("json_object", "json_schema")


def _effort(effort: Json) -> bool | None:
    if not effort:
        return None
    if effort not in _EFFORTS:
        listed = ", ".join(f'"{name}"' for name in _EFFORTS[:-1])
        raise Complaint(f'invalid reasoning value: "{effort}" (must be {listed}, or "none")')
    return bool(effort != "none")


def _tools(fields: Fields) -> list[Json]:
    """Return the tools in one form; each surface has its own."""
    found = []
    for tool in map(folded, fields.get("tools") or []):
        function = folded(tool.get("function")) or tool
        described = {"name": function.get("name", ""), "description": function.get("description", "")}
        schema = function.get("parameters") or function.get("input_schema") or {}
        found.append({"type": "function", "function": {**described, "parameters": schema}})
    return found


def _openai_turns(message: Fields) -> list[tuple[str, str]]:
    """Return one turn a content part, as Ollama makes of it."""
    role, content = message.get("role", ""), message.get("content")
    if content is None or isinstance(content, str):
        return [(role, content or "")]
    if not isinstance(content, list):
        go_type = {"number": "float64", "object": "map[string]interface {}"}.get(kind(content), "bool")
        raise Complaint(f"invalid message content type: {go_type}")
    turns = []
    for part in map(folded, content):
        if part.get("type") == "text":
            turns.append((role, part.get("text", "")))
        elif part.get("type") == "image_url":
            image = part.get("image_url")
            _check_image(image if isinstance(image, str) else folded(image).get("url", ""))
            turns.append((role, ""))
        else:
            raise Complaint("invalid message format")
    return turns


def _check_image(url: str) -> None:
    if url.startswith(("http://", "https://")):
        raise Complaint("image URLs are not currently supported, please use base64 encoded data instead")
    if not _DATA_IMAGE.fullmatch(url):
        raise Complaint("invalid image input")


def _blocks(role: str, content: Json) -> list[tuple[str, str]]:
    """Return an Anthropic message as turns; a block of an unknown type is dropped silently."""
    if isinstance(content, str):
        return [(role, content)]
    turns = []
    for block in map(folded, content):
        if block.get("type") == "text":
            turns.append((role, block.get("text", "")))
        elif block.get("type") == "tool_result":
            turns += _blocks("tool", block.get("content") or "")
        elif block.get("type") == "image" and (source := folded(block.get("source")).get("type")) != "base64":
            raise Complaint(f"invalid image source type: {source}. Only base64 images are supported.")
    return turns


def _input(items: Json) -> list[tuple[str, str]]:
    """Return the input of /v1/responses as turns."""
    if items is None or isinstance(items, str):
        return [("user", items)] if items else []
    turns = []
    for index, item in enumerate(map(folded, items)):
        item_type = item.get("type", "message" if "role" in item else "")
        if item_type == "message":
            turns += _input_parts(index, item)
        elif item_type == "function_call_output":
            turns.append(("tool", str(item.get("output", ""))))
        elif item_type not in ("function_call", "reasoning"):
            raise Complaint(f'input[{index}]: unknown input item type: "{item_type}"')
    return turns


def _input_parts(index: int, item: Fields) -> list[tuple[str, str]]:
    role, content = item.get("role", ""), item.get("content", "")
    if isinstance(content, str):
        return [(role, content)]
    turns = []
    for part in map(folded, content):
        item_type = part.get("type")
        if item_type not in ("input_text", "output_text", "input_image"):
            raise Complaint(f'input[{index}]: unknown content type: "{item_type}"')
        if item_type == "input_image":
            _check_image(str(part.get("image_url", "")))
        turns.append((role, part.get("text", "")))
    return turns
