"""Define which fields of a request's JSON matter on which route, and what Ollama makes of them.

Ollama reads a body twice. Its cloud check (`server/cloud_proxy.go`, `extractModelField`) takes the exact key `model`
from a map of the whole body. Its handlers decode into structs, where Go's encoding/json matches keys without letter
case and the last one counts. Fields are found by the handlers' rule. A model is named only where both rules agree.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cached_property
from typing import Any, Final

from proxy.reading.asked import Asked, Naming

OLD_OPTIONS = frozenset(
    {
        *("numa", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock", "embedding_only"),
        *("rope_frequency_base", "rope_frequency_scale", "num_gqa"),
    }
)
"""The `options` for which older versions of Ollama load a model again. Newer ones pass over them."""

LOAD_OPTIONS = OLD_OPTIONS | {
    *("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict")
}
"""The `options` for which Ollama loads a model again (api/types.go, `Runner`)."""

LONGEST_TEXT = 4096
"""Most bytes of a text that is kept. The longest model name has 593 characters of up to six bytes each."""

_GO_SPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"

NAMESPACE = "namespace"
"""The type of a tool on /v1/responses that stands for the tools within it, of which it may have none."""

_IMAGE_PARTS = frozenset({"image_url", "input_image", "image"})


class Opaque(Enum):
    """A value that the reader does not keep."""

    CONTAINER = auto()  # an object or an array
    TEXT = auto()  # a text that is too long to keep, or not Unicode


def trimmed(text: str) -> str:
    """Return a text without outer blanks, as Go's strings.TrimSpace does."""
    return text.strip(_GO_SPACE)


def folded(key: str) -> str:
    """Return the key that Go takes this one for: it ignores ASCII letter case and knows two more letters."""
    return key.lower().replace("ſ", "s")  # lower() makes a `k` of the Kelvin sign


class Fact(Enum):
    """What a value says about the request."""

    MODEL = auto()
    NAME = auto()  # /api/show still takes it where `model` is empty
    STREAM = auto()
    TOOLS = auto()
    TOOL = auto()
    TOOL_TYPE = auto()
    PROMPT = auto()
    IMAGE = auto()
    PART_TYPE = auto()
    THINK = auto()
    REASONING = auto()  # in chats it takes the place of the flat effort, even if it is empty
    EFFORT = auto()
    FLAT_EFFORT = auto()
    KEEP_ALIVE = auto()
    OPTION = auto()


@dataclass(frozen=True, slots=True)
class Field:
    """One place in the JSON: what its value says, and what is below it."""

    fact: Fact | None = None
    keys: dict[str, Field] = field(default_factory=dict)
    each: Field | None = None  # the elements, where the value is an array


_OF_IMAGES = frozenset({Fact.IMAGE, Fact.PART_TYPE})


def _without_images(place: Field) -> Field | None:
    """Return a place without what is about images only; None if nothing is left."""
    keys = {key: kept for key, below in place.keys.items() if (kept := _without_images(below)) is not None}
    each = None if place.each is None else _without_images(place.each)
    fact = None if place.fact in _OF_IMAGES else place.fact
    return Field(fact, keys, each) if fact is not None or keys or each is not None else None


@dataclass(frozen=True)
class Shape:
    """The JSON that one route takes."""

    top: Field
    streams: bool = False  # without a `stream` field
    search: str | None = None  # how the type of a tool with which Ollama searches the web is written
    search_prefix: bool = False  # whether that is only its beginning
    empty: bool = False  # whether Ollama answers an empty text, too
    relaxed: bool = False  # whether asking a model to think that cannot is no error

    @cached_property
    def talk(self) -> str | None:
        """The key of the list of messages, where the route takes one."""
        return next((key for key in ("messages", "input") if key in self.top.keys), None)

    @cached_property
    def prompts(self) -> frozenset[str]:
        """The keys of what Ollama answers. Without any of it, it only loads or unloads the model."""
        places = self.top.keys.items()
        return frozenset(key for key, each in places if Fact.PROMPT in (each.fact, each.each and each.each.fact))

    @cached_property
    def without_images(self) -> Field:
        """The same fields without those about images, which lie deep and cost the most."""
        return _without_images(self.top) or Field()


def _top(**keys: Field) -> Field:
    return Field(keys={"model": Field(Fact.MODEL), **keys})


def _list(fact: Fact | None = None, **keys: Field) -> Field:
    """Return an array whose elements say `fact`, with fields below them."""
    return Field(each=Field(fact, keys=keys))


_STREAM, _PROMPT = Field(Fact.STREAM), Field(Fact.PROMPT)
_PART = Field(Fact.PART_TYPE)
_PARTS = _list(type=_PART)
_TOOLS = Field(Fact.TOOLS, each=Field(Fact.TOOL, keys={"type": Field(Fact.TOOL_TYPE)}))
_REASONING = Field(Fact.REASONING, keys={"effort": Field(Fact.EFFORT)})
_IMAGES = _list(Fact.IMAGE)
_THINK = Field(Fact.THINK)
_NATIVE: Final = {
    "keep_alive": Field(Fact.KEEP_ALIVE),
    "options": Field(keys={name: Field(Fact.OPTION) for name in LOAD_OPTIONS}),
}

SHAPES = {
    "/v1/chat/completions": Shape(
        _top(
            stream=_STREAM,
            tools=_TOOLS,
            messages=_list(Fact.PROMPT, content=_PARTS),
            reasoning=_REASONING,
            reasoning_effort=Field(Fact.FLAT_EFFORT),
        )
    ),
    "/v1/responses": Shape(
        _top(
            stream=_STREAM,
            tools=_TOOLS,
            instructions=_PROMPT,
            input=Field(Fact.PROMPT, each=Field(Fact.PROMPT, keys={"content": _PARTS, "output": _PARTS})),
            reasoning=_REASONING,
        ),
        search="web_search",
    ),
    "/v1/messages": Shape(
        _top(
            stream=_STREAM,
            tools=_TOOLS,
            messages=_list(Fact.PROMPT, content=_list(type=_PART, content=_PARTS)),
            thinking=Field(keys={"type": _THINK}),
            output_config=_REASONING,
        ),
        search="web_search",
        search_prefix=True,
        relaxed=True,
    ),
    "/v1/completions": Shape(_top(stream=_STREAM, prompt=_PROMPT)),
    "/v1/embeddings": Shape(_top(input=Field(Fact.PROMPT, each=_PROMPT)), empty=True),
    "/api/chat": Shape(
        _top(stream=_STREAM, tools=_TOOLS, messages=_list(Fact.PROMPT, images=_IMAGES), think=_THINK, **_NATIVE),
        streams=True,
    ),
    "/api/generate": Shape(_top(stream=_STREAM, prompt=_PROMPT, images=_IMAGES, think=_THINK, **_NATIVE), streams=True),
    "/api/embed": Shape(_top(input=Field(Fact.PROMPT, each=_PROMPT), **_NATIVE)),
    "/api/embeddings": Shape(_top(prompt=_PROMPT, **_NATIVE)),
    "/api/show": Shape(_top(name=Field(Fact.NAME))),
}
"""By path. No other route takes JSON that names a model."""


class Findings:
    """Collects what the values of one body say, in their order."""

    __slots__ = (
        *("_effort", "_flat_effort", "_images", "_keep_alive", "_model", "_name", "_options", "_prompt"),
        *("_grouped", "_reasons", "_search", "_shape", "_spelled", "_streams", "_thinks", "_tools"),
    )

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._model: object = None  # the last value of `model`
        self._name: object = None
        self._spelled: set[str] = set()  # the ways in which the keys `model` and `name` are written
        self._streams = shape.streams
        self._tools = self._grouped = self._search = self._images = self._prompt = self._thinks = False
        self._reasons = self._effort = self._flat_effort = False
        self._keep_alive: object = None
        self._options: dict[str, Any] = {}

    def note(self, fact: Fact, key: str, value: object) -> None:
        """Take one value; `key` is the key that leads to it, as it is written, or empty in an array."""
        _TAKE[fact](self, key, value)

    def _take_model(self, key: str, value: object) -> None:
        self._model = value
        self._spelled.add(key)

    def _take_name(self, key: str, value: object) -> None:
        self._name = value
        self._spelled.add(key)

    def _take_stream(self, _key: str, value: object) -> None:
        self._streams = self._shape.streams if value is None else value is True

    def _take_tools(self, _key: str, _value: object) -> None:
        self._tools = False  # another array before counts no longer

    def _take_tool(self, _key: str, _value: object) -> None:
        self._tools = True

    def _take_tool_type(self, _key: str, value: object) -> None:
        self._search = self._search or self._may_search(value)
        self._grouped = self._grouped or not isinstance(value, str) or value == NAMESPACE

    def _take_prompt(self, key: str, value: object) -> None:
        if not self._prompt:  # an array is judged by its elements, of which an empty one is answered, too
            self._prompt = not key or value not in ("", None, Opaque.CONTAINER) or (value == "" and self._shape.empty)

    def _take_image(self, _key: str, _value: object) -> None:
        self._images = True

    def _take_part_type(self, _key: str, value: object) -> None:
        if value in _IMAGE_PARTS:
            self._images = True

    def _take_think(self, _key: str, value: object) -> None:
        self._thinks = value is True or (isinstance(value, str) and value not in ("", "disabled", "adaptive"))

    def _take_reasoning(self, _key: str, value: object) -> None:
        self._reasons = value is Opaque.CONTAINER
        self._effort = self._effort and self._reasons

    def _take_effort(self, _key: str, value: object) -> None:
        self._effort = value not in ("", "none", None)

    def _take_flat_effort(self, _key: str, value: object) -> None:
        self._flat_effort = value not in ("", "none", None)

    def _take_keep_alive(self, _key: str, value: object) -> None:
        self._keep_alive = "" if isinstance(value, (Opaque, bool)) else value

    def _take_option(self, key: str, value: object) -> None:
        self._options[folded(key)] = None if isinstance(value, Opaque) else value

    def _may_search(self, value: object) -> bool:
        """Return whether a tool of this type makes Ollama search, or may: no text replaces a text before it in Go."""
        search = self._shape.search
        if search is None:
            return False
        if not isinstance(value, str):
            return True
        return trimmed(value).startswith(search) if self._shape.search_prefix else value == search

    def unreadable(self, why: str) -> Asked:
        """Return what is known of a body that can't be read to its end."""
        return self._asked(Naming.UNREADABLE, None, why)

    def ambiguous(self, why: str) -> Asked:
        """Return what is known of a body that Ollama's readers may read differently."""
        return self._asked(Naming.AMBIGUOUS, None, why)

    def asked(self) -> Asked:
        """Return what the body asks for, now that all of it is read."""
        others = sorted(self._spelled - {"model", "name"})
        if others:
            return self.ambiguous(f"the key `model` is spelled {others[0]!r}")
        model = self._model if "model" in self._spelled else ""
        if model == "" and "name" in self._spelled:
            model = self._name
        if not isinstance(model, str) or len(model) > LONGEST_TEXT:
            return self.unreadable("`model` is not a plain text")
        if not trimmed(model):
            return self._asked(Naming.MISSING, None, "the body names no model")
        if "�" in model:
            return self.unreadable("`model` is not a plain text")
        return self._asked(Naming.NAMED, model, "")

    def _asked(self, naming: Naming, model: str | None, why: str) -> Asked:
        thinking = self._thinks or (self._effort if self._reasons else self._flat_effort)
        calls = self._tools and not self._grouped
        return Asked(
            naming,
            model,
            why,
            streams=self._streams,
            tools=self._tools,
            web_search=self._search,
            thinking=thinking,
            images=self._images,
            prompt=self._prompt,
            needs=("tools",) * calls + ("thinking",) * (thinking and not self._shape.relaxed),
            keep_alive=self._keep_alive,  # type: ignore[arg-type]
            options=self._options,
        )


_TAKE = {
    Fact.MODEL: Findings._take_model,
    Fact.NAME: Findings._take_name,
    Fact.STREAM: Findings._take_stream,
    Fact.TOOLS: Findings._take_tools,
    Fact.TOOL: Findings._take_tool,
    Fact.TOOL_TYPE: Findings._take_tool_type,
    Fact.PROMPT: Findings._take_prompt,
    Fact.IMAGE: Findings._take_image,
    Fact.PART_TYPE: Findings._take_part_type,
    Fact.THINK: Findings._take_think,
    Fact.REASONING: Findings._take_reasoning,
    Fact.EFFORT: Findings._take_effort,
    Fact.FLAT_EFFORT: Findings._take_flat_effort,
    Fact.KEEP_ALIVE: Findings._take_keep_alive,
    Fact.OPTION: Findings._take_option,
}
