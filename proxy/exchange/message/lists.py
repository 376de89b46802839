"""Lists of models, without those that the asker may not use. Pure.

`GET /v1/models`, `/api/tags` and `/api/ps` name every model that Ollama has. Entries for other models are cut out. The
rest of the response is passed on byte for byte.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from proxy.exchange.message.failures import Unlisted
from proxy.reading.names import ModelNameError, is_cloud, read_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.policy.access import Rule
    from proxy.policy.routes import Route

_KEYS = {
    "/v1/models": ("data", ("id",)),
    "/api/tags": ("models", ("name", "model")),
    "/api/ps": ("models", ("name", "model")),
}
"""For each path, the key of its list, and the keys under which an entry has the model's name."""

_blank = re.compile(r"[ \t\r\n]*").match
_scan = json.JSONDecoder().raw_decode

_validators = re.compile(
    rb"\r\n(?:etag|last-modified|accept-ranges|content-md5|(?:content-|repr-)?digest):[^\r]*", re.IGNORECASE
).sub


@dataclass(frozen=True, slots=True)
class Shown:
    """Which models of a list an asker sees."""

    route: Route
    rule: Rule | None = None  # the asker's, if there are rules
    local_only: bool = False  # none that runs elsewhere
    elsewhere: frozenset[str] | None = frozenset()  # canonical names of those that do; None: not known

    def includes(self, entry: Any) -> bool:
        """Return whether an entry is shown. One without a readable name isn't."""
        if not isinstance(entry, dict):
            return False
        if self.local_only and (entry.get("remote_host") or entry.get("remote_model")):
            return False
        names = [entry[key] for key in _KEYS[self.route.path][1] if key in entry]
        return bool(names) and all(map(self._allows, names))

    def _allows(self, name: object) -> bool:
        if not isinstance(name, str) or (self.rule is not None and not self.rule.allows(name)):
            return False
        if not self.local_only:
            return True
        try:
            return not is_cloud(name) and read_name(name).canonical not in (self.elsewhere or ())
        except ModelNameError:
            return False  # no request can name it


def shortened(content: bytes, shown: Shown) -> bytes:
    """Return a list of models without the entries that aren't shown. Raises Unlisted if it can't be read."""
    key = _KEYS[shown.route.path][0]
    if shown.elsewhere is None:
        raise Unlisted("it isn't known which models run elsewhere")
    try:
        if not isinstance(orjson.loads(content), dict):  # it checks the JSON, so that `_parts` needn't
            raise Unlisted("no object")
        text = content.decode()
        found = [(name, *place) for name, *place in _members(text) if name.lower() == key]
        if [name for name, *_ in found] != [key]:
            raise Unlisted(f"not one list under `{key}`")
        _, value, begin, end = found[0]
        if value is None:
            return content
        if not isinstance(value, list):
            raise Unlisted(f"no list under `{key}`")
        every = list(_elements(text, begin))
    except (ValueError, RecursionError) as error:
        raise Unlisted(f"no JSON that can be read: {type(error).__name__}") from None
    kept = [text[at:to] for entry, at, to in every if shown.includes(entry)]
    return content if len(kept) == len(every) else f"{text[:begin]}[{','.join(kept)}]{text[end:]}".encode()


def without_validators(head: bytes) -> bytes:
    """Return a response's head without the fields that describe the bytes of the whole list."""
    return _validators(b"", head)


def _members(text: str) -> Iterator[tuple[str, Any, int, int]]:
    """Yield key and value of each member of the object that a valid text is, and where the value begins and ends."""
    at = _after(text, text.index("{") + 1)
    while text[at] != "}":
        key, end = _scan(text, at)
        begin = _after(text, _after(text, end) + 1)
        value, end = _scan(text, begin)
        yield key, value, begin, end
        at = _next(text, end)


def _elements(text: str, at: int) -> Iterator[tuple[Any, int, int]]:
    """Yield each element of the array that begins there, and where the element begins and ends."""
    at = _after(text, at + 1)
    while text[at] != "]":
        value, end = _scan(text, at)
        yield value, at, end
        at = _next(text, end)


def _next(text: str, at: int) -> int:
    """Return where the next part begins, or the closing bracket stands."""
    at = _after(text, at)
    return _after(text, at + 1) if text[at] == "," else at


def _after(text: str, at: int) -> int:
    """Return where blanks end."""
    found = _blank(text, at)
    return found.end() if found is not None else at
