"""Describe Ollama's models: what each can do, how it is loaded, and whether it answers one request at a time. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import orjson

from proxy.exchange.message.tickets import Form
from proxy.reading.asked import Naming
from proxy.reading.fields import OLD_OPTIONS
from proxy.reading.names import ModelNameError, read_name

if TYPE_CHECKING:
    from proxy.reading.asked import Asked

_EMBEDDING = "embedding"

_ONE_SLOT = frozenset(
    {
        *("mllama", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe", "qwen3next", "lfm2", "lfm2moe"),
        *("nemotron_h", "nemotron_h_moe", "nemotron_h_omni"),
    }
)
"""Families to which Ollama gives one slot, whatever OLLAMA_NUM_PARALLEL says (server/sched.go, `load`)."""


_SWITCHES = frozenset(
    {"use_mmap", "numa", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock", "embedding_only"}
)
"""The options that are `true` or `false`. All others that load a model are numbers."""


_NAMED = Naming.NAMED  # each request uses it

LONGEST_TIME = 64
"""Characters of a time in Ollama's lists: Go writes 35 at most."""

SPELLINGS = 256
"""How many spellings of names one catalog remembers, each with the needs of a request. A catalog lives for seconds."""


@dataclass(frozen=True, slots=True)
class Listed:
    """What /api/ps lists of a model."""

    memory: int | None  # bytes
    context: int | None  # tokens; Ollama lists it since v0.11
    unloads: str | None = None  # when Ollama removes it from memory if nobody uses it, as Ollama writes times


class UnreadableError(ValueError):
    """Ollama's answer isn't what its API promises."""


@dataclass(frozen=True)
class Model:
    """One model of this machine, as /api/tags has it."""

    name: str  # as Ollama writes it
    capabilities: frozenset[str] | None = None  # None: an Ollama before v0.30, which doesn't say
    families: frozenset[str] = frozenset()
    remote: bool = False  # it runs on another machine

    @cached_property
    def embeds(self) -> bool:
        """Whether it only makes embeddings, so that it takes no prompt."""
        return self.capabilities is not None and self.capabilities == {_EMBEDDING}

    @cached_property
    def has_one_slot(self) -> bool:
        """Whether Ollama gives it one slot, however it is set."""
        return self.embeds or not self.families.isdisjoint(_ONE_SLOT)

    def accepts(self, asked: Asked, *, embedding: bool) -> bool:
        """Return whether Ollama would take a request for this model, as far as its capabilities decide it."""
        if self.capabilities is None:
            return True
        if embedding:  # Ollama takes models for chats as well
            return not self.capabilities.isdisjoint(("completion", _EMBEDDING))
        return "completion" in self.capabilities and self.capabilities.issuperset(asked.needs)


@dataclass(frozen=True, slots=True)
class Catalog:
    """The models that Ollama has, by their canonical names."""

    models: dict[str, Model] = field(default_factory=dict)
    spellings: dict[tuple[str | None, tuple[str, ...]], tuple[Form, Model]] = field(
        default_factory=dict, compare=False
    )  # what was found for requests without options, by the name as sent and the needs

    def lacks(self, sent: str) -> bool:
        """Return whether a name means a model of this machine that Ollama doesn't have."""
        name = plain_form(sent).model
        return bool(name) and name not in self.models

    def serving(self, asked: Asked, embedding: bool) -> tuple[Form, Model] | None:
        """Return the form and the model with which Ollama answers a request; None if Ollama refuses it, or may.

        Nearly all requests have no options and name one of a few models in one of a few spellings. One lookup by name
        and needs finds these.
        """
        usual, key = asked.naming is _NAMED and not (embedding or asked.options), (asked.model, asked.needs)
        found = self.spellings.get(key) if usual else None
        if found is None:
            found = self.find(asked)
            if found is None or not found[1].accepts(asked, embedding=embedding):
                return None
            if usual and len(self.spellings) < SPELLINGS:
                self.spellings[key] = found
        return found

    def find(self, asked: Asked) -> tuple[Form, Model] | None:
        """Return the form and the model of this machine that a request needs; None if that isn't certain."""
        if asked.naming is not _NAMED or asked.model is None:
            return None
        form = plain_form(asked.model)
        model = self.models.get(form.model)
        if model is None or model.remote:
            return None
        if not asked.options:
            return form, model
        given = {name: value for name, value in asked.options.items() if value is not None}  # Go passes over a null
        typed = {name: value for name, value in given.items() if _is_typed(name, value)}
        if not given.keys() <= typed.keys() | OLD_OPTIONS:
            return None
        return Form(form.model, tuple(sorted(typed.items()))), model


@lru_cache(maxsize=256)
def plain_form(sent: str) -> Form:
    """Return the form of a model that a request without options needs.

    Nearly all requests name one of a few models in one of a few spellings: 5 us without the cache.
    """
    return Form(local_name(sent))


def local_name(sent: str) -> str:
    """Return a name's canonical form, or nothing if it means no model of this machine."""
    try:
        name = read_name(sent)
    except ModelNameError:
        return ""
    return "" if name.cloud else name.canonical


def _is_typed(option: str, value: object) -> bool:
    """Return whether Ollama takes a value for an option (api/types.go, `FromMap`). For Python, `true` would equal 1."""
    return type(value) is bool if option in _SWITCHES else type(value) in (int, float)


def catalog_of(tags: bytes) -> Catalog:
    """Return what /api/tags lists. Raises UnreadableError."""
    models: dict[str, Model] = {}
    for entry in _entries(tags):
        details = entry.get("details")
        details = details if isinstance(details, dict) else {}
        families = _texts(details.get("families")) or _texts([details.get("family")])
        remote = bool(entry.get("remote_host"))
        canonical = _canonical(entry)
        remote = remote or (canonical in models and models[canonical].remote)
        if canonical is not None:
            models[canonical] = Model(entry["name"], _texts(entry.get("capabilities")), families or frozenset(), remote)
    return Catalog(models)


def loaded_in(ps: bytes) -> dict[str, Listed]:
    """Return the models that /api/ps lists, by their canonical names. Raises UnreadableError."""
    entries = [(entry, _canonical(entry)) for entry in _entries(ps)]
    return {
        name: Listed(_count(entry, "size"), _count(entry, "context_length"), _moment(entry.get("expires_at")))
        for entry, name in entries
        if name is not None
    }


def _count(entry: dict[str, Any], key: str) -> int | None:
    value = entry.get(key)
    return value if type(value) is int else None


def _moment(value: object) -> str | None:
    return value if isinstance(value, str) and len(value) <= LONGEST_TIME else None


def load_request(form: Form, model: Model) -> tuple[str, bytes]:
    """Return path and body of the request that loads a model and nothing else.

    It is of the kind that the model takes, and has no `keep_alive`, which would stay in force for later requests.
    """
    body: dict[str, Any] = {"model": model.name}
    if form.options:
        body["options"] = dict(form.options)
    return ("/api/embed" if model.embeds else "/api/generate"), orjson.dumps(body)


def _entries(body: bytes) -> list[dict[str, Any]]:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise UnreadableError(str(error)) from None
    entries = found.get("models") if isinstance(found, dict) else None
    if not isinstance(entries, list):
        raise UnreadableError("no list of models")
    return [entry for entry in entries if isinstance(entry, dict)]


def _texts(value: object) -> frozenset[str] | None:
    """Return the texts in a list; None if it is no list."""
    return frozenset(each for each in value if isinstance(each, str)) if isinstance(value, list) else None


def _canonical(entry: dict[str, Any]) -> str | None:
    name = entry.get("name")
    try:
        return read_name(name).canonical if isinstance(name, str) else None
    except ModelNameError:
        return None
