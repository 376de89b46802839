"""Which model a request names, for the access log if no response named it. Pure."""

from __future__ import annotations

import re

from proxy.exchange.message.json_edges import as_object


def model_in(content: bytes) -> str | None:
    """Return the model that a JSON request names, or None: the last one at the top, as Go reads it."""
    found = {key.lower(): value for key, value in as_object(content).items() if isinstance(value, str)}
    return found.get("model") or found.get("name")  # which /api/show still takes


class ModelScan:
    """The same for a request too large to keep, in constant memory: the last `"model":"…"` outside a text."""

    __slots__ = ("_tail", "model")

    _LONGEST = 600

    def __init__(self) -> None:
        self._tail = b""
        self.model: str | None = None

    _FIELD = re.compile(rb'(?<!\\)"model"\s*:\s*("(?:[^"\\]|\\.){0,512}")')

    def feed(self, data: bytes) -> None:
        """Search the next piece.

        The largest requests contain images, which have no quote for a long time: 64 KiB of that take 3 us, and 150 if
        searched.
        """
        if b'"' not in data:
            self._tail = (self._tail + data[-self._LONGEST :])[-self._LONGEST :]
            return
        seen = self._tail + data
        if b'"model"' in seen:
            for found in self._FIELD.findall(seen):
                value = as_object(b'{"m":' + found + b"}").get("m")
                if isinstance(value, str):
                    self.model = value
        self._tail = seen[-self._LONGEST :]
