"""Read model names as Ollama does: which are the same, which lead off this machine, and which a pattern means.

Ollama's rules are in its `types/model/name.go` and `internal/modelref/modelref.go`. Letter case doesn't matter in its
own store, but it may matter to other registries, so it is kept in what is sent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import translate
from functools import cached_property

from proxy.reading.fields import trimmed

_HOST, _NAMESPACE, _TAG = "registry.ollama.ai", "library", "latest"

_START = "[A-Za-z0-9_]"
_HOST_FORM = re.compile(rf"{_START}[A-Za-z0-9_\-.:]{{0,349}}")
_NAMESPACE_FORM = re.compile(rf"{_START}[A-Za-z0-9_\-]{{0,79}}")
_WORD_FORM = re.compile(rf"{_START}[A-Za-z0-9_\-.]{{0,79}}")  # of a model and of a tag


class ModelNameError(ValueError):
    """The text is not a valid model name or pattern."""


@dataclass(frozen=True)
class ModelName:
    """One name, with host, namespace and tag filled in."""

    host: str
    namespace: str
    model: str
    tag: str  # a model of ollama.com has one that is or ends in `cloud`
    cloud: bool  # whether the name alone sends a request to ollama.com

    @cached_property
    def canonical(self) -> str:
        """The form that all spellings share."""
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}".lower()


def read_name(sent: str) -> ModelName:
    """Return the name that a client sent. Raises ModelNameError.

    A final `:local` says that a model of this machine is meant, and is no part of the name. A final `:cloud`, or a tag
    that ends in `-cloud`, means a model of ollama.com.
    """
    text = trimmed(sent)
    base, source = _source(text)
    if not base or (source and _source(base)[1]):
        raise ModelNameError(sent)
    rest, tag, tagged = base, _TAG, base.rfind(":") > base.rfind("/")
    if tagged:
        rest, _, tag = base.rpartition(":")
    before, slash, model = rest.rpartition("/")
    host, namespace = _HOST, _NAMESPACE
    if slash:
        before, slash, namespace = before.rpartition("/")
    if slash:
        scheme, sign, host = before.partition("://")
        host = host or _HOST if sign else scheme
    forms = ((_HOST_FORM, host), (_NAMESPACE_FORM, namespace), (_WORD_FORM, model), (_WORD_FORM, tag))
    if not all(form.fullmatch(part) for form, part in forms):
        raise ModelNameError(sent)
    if source == "cloud":
        tag = f"{tag}-cloud" if tagged else "cloud"
    return ModelName(host, namespace, model, tag, source == "cloud")


def full_name(sent: str) -> str:
    """Return a name as it may be sent: trimmed, with its tag, without the default host and namespace.

    Raises ModelNameError.
    """
    name = read_name(sent)
    place = f"{name.namespace}/" if name.namespace.lower() != _NAMESPACE else ""
    if name.host.lower() != _HOST:
        place = f"{name.host}/{name.namespace}/"
    return f"{place}{name.model}:{name.tag}"


def normal_name(sent: str) -> str:
    """Return the short form that all spellings of a name share. Raises ModelNameError."""
    return full_name(sent).lower()


def is_cloud(sent: str) -> bool:
    """Return whether a name alone sends a request off the machine, unless Ollama refuses it."""
    return _source(trimmed(sent))[1] == "cloud"


def _source(text: str) -> tuple[str, str]:
    """Return a name without the suffix that says where the model runs, and that place: cloud, local or nothing."""
    before, colon, last = text.rpartition(":")
    suffix = trimmed(last)
    if colon and suffix.lower() in ("cloud", "local"):
        return before, suffix.lower()
    if colon and "/" not in suffix and suffix.lower().endswith("-cloud"):
        return f"{before}:{suffix[: -len('-cloud')]}", "cloud"
    return text, ""


class ModelPattern:
    """A model name in which `*` stands for any characters, completed as Ollama completes names.

    `qwen3:*` means every tag of the library's qwen3, `qwen*` everything there that begins so, `hf.co/*` everything from
    that host, and `*` alone every model.
    """

    __slots__ = ("_matches", "completed", "text")

    def __init__(self, text: str) -> None:
        """Read a pattern. Raises ModelNameError."""
        self.text = text
        whole = re.sub(r"\*+", "*", trimmed(text).lower())
        if whole != "*":
            whole = _completed(whole)
            read_name(whole.replace("*", "x"))
        self.completed = whole  # with host, namespace and tag, in lower case; `*` alone stays as it is
        self._matches = re.compile(translate(whole)).match  # a name has no other sign that fnmatch knows

    def __repr__(self) -> str:
        return f"<ModelPattern {self.text}>"

    def matches(self, sent: str) -> bool:
        """Return whether a name is one of those that the pattern means. Never true of a text that is not valid."""
        try:
            return self._matches(read_name(sent).canonical) is not None
        except ModelNameError:
            return False


def _completed(pattern: str) -> str:
    """Return a pattern with host, namespace and tag."""
    parts = pattern.split("/")
    first, *others = parts
    if not others:
        parts = [_HOST, _NAMESPACE, first]
    elif others == ["*"] and (first == "localhost" or "." in first or ":" in first):  # no namespace is written so
        parts = [first, "*", "*"]
    elif len(others) == 1:
        parts = [_HOST, *parts]
    tagged = ":" in parts[-1] or parts[-1].endswith("*")
    return "/".join(parts) + ("" if tagged else f":{_TAG}")
